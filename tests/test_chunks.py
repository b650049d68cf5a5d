"""How many points one pass evaluates: two where samples are proven to stay apart, else one; the result is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import data, exact, net, run, weight
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

F64 = np.float64
IMAGES, TABLE = "(double[N,3,6,6] x) => (double[N,4] y)", "(double[N,5] x) => (double[N,4] y)"
CONV = "Conv<pads=[1,1,1,1]>"
HEAD = "h = Tanh(z) \n y = MatMul(h, v)"
MODELS: dict[str, tuple[str, str, int]] = {  # signature, nodes, and how many points at a time
    "a table": (TABLE, f"z = Gemm(x, w, b) \n {HEAD}", 2),
    "a residual network": (
        IMAGES,
        f"a = {CONV}(x, c) \n r = Relu(a) \n d = {CONV}(r, e) \n s = Add(d, r) \n t = Tanh(s) \n m = MaxPool<"
        "kernel_shape=[2,2], strides=[2,2]>(t) \n f = Flatten(m) \n y = MatMul(f, u)",
        2,
    ),
    "values of its own batch": (TABLE, f"q = Tanh(x) \n n = Sub(q, rows) \n z = Gemm(n, w, b) \n {HEAD}", 2),
    "a fixed batch": (TABLE.replace("N", "2"), f"z = Gemm(x, w, b) \n {HEAD}", 1),
    "minus the batch's mean": (
        TABLE,
        f"q = Tanh(x) \n m = ReduceMean<keepdims=1>(q, zero) \n n = Sub(q, m) \n z = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
    "normalised by the batch": (
        TABLE,
        "q = Tanh(x) \n n, p, r = BatchNormalization<training_mode=1>(q, ones, zeros, zeros, ones) \n"
        f"z = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
    "a batch written into a Reshape": (
        TABLE,
        f"q = Tanh(x) \n n = Reshape(q, two_rows) \n z = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
    "a token of two samples": (
        "(double[N,5] x) => (double[N,4] y)",
        f"q = Tanh(x) \n n = Concat<axis=1>(q, token) \n z = MatMul(n, w6) \n {HEAD}",
        1,
    ),
    "recurrent": (
        "(double[N,4,5] x) => (double[N,4] y)",
        "q = Tanh(x) \n s = Transpose<perm=[1,0,2]>(q) \n a, l = RNN<hidden_size=3>(s, i3, h3) \n"
        "z = Squeeze(l, zero) \n y = MatMul(z, v)",
        1,
    ),
    "recurrent, with a first state of one sample": (
        "(double[N,4,5] x) => (double[N,4] y)",
        "q = Tanh(x) \n s = Transpose<perm=[1,0,2]>(q) \n a, l = RNN<hidden_size=3>(s, i3, h3, , , first) \n"
        "z = Squeeze(l, zero) \n y = MatMul(z, v)",
        1,
    ),
    "a loop whose state is one sample": (
        "(double[N,4,5] x) => (double[N,4] y)",
        "s = Transpose<perm=[1,0,2]>(x) \n l, k = Scan<num_scan_inputs=1, body=step (double[1,5] h, double[N,5] i) =>"
        "(double[M,5] o, double[M,5] p) {a = Add(h, i) \n o = Tanh(a) \n p = Identity(o)}>(rows, s) \n"
        f"z = Gemm(l, w, b) \n {HEAD}",
        1,
    ),
    "a token of two samples whose number is hidden": (
        TABLE,
        "q = Tanh(x) \n n = Concat<axis=1>(q, token) \n d = Shape<start=0,end=1>(x) \n g = Concat<axis=0>(d, ten) \n"
        f"r = Reshape(n, g) \n z = MatMul(r, w6) \n {HEAD}",
        1,
    ),
    "a token for each sample": (
        TABLE,
        "q = Tanh(x) \n d = Shape<start=0,end=1>(x) \n g = Concat<axis=0>(d, five) \n t = Expand(rows, g) \n"
        f"n = Concat<axis=1>(q, t) \n z = MatMul(n, w6) \n {HEAD}",
        2,
    ),
    "divided by how many samples there are": (
        TABLE,
        "q = Tanh(x) \n d = Shape<start=0,end=1>(x) \n g = Cast<to=11>(d) \n n = Div(q, g) \n"
        f"z = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
    "a Reshape by the sizes": (
        TABLE,
        "q = Tanh(x) \n d = Shape<start=0,end=1>(x) \n g = Concat<axis=0>(d, five) \n r = Reshape(q, g) \n"
        f"z = Gemm(r, w, b) \n {HEAD}",
        2,
    ),
    "which sample is largest": (
        TABLE,
        f"q = Tanh(x) \n i = ArgMax<axis=0, keepdims=0>(x) \n n = Gather<axis=1>(q, i) \nz = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
    "turned": ("(double[N,M] x) => (double[M,N] y)", "q = Tanh(x) \n y = Transpose(q)", 1),
    "another input": (
        "(double[N,5] x, double[N,5] k) => (double[N,4] y)",
        f"q = Tanh(x) \n n = Mul(q, k) \n z = Gemm(n, w, b) \n {HEAD}",
        1,
    ),
}


def held() -> dict[str, np.ndarray]:
    """Weights by name."""
    return {
        "w": weight(5, 3, dtype=F64),
        "w6": weight(10, 3, seed=1, dtype=F64),
        "b": weight(3, dtype=F64),
        "v": weight(3, 4, seed=2, dtype=F64),
        "c": weight(8, 3, 3, 3, dtype=F64),
        "e": weight(8, 8, 3, 3, seed=3, dtype=F64),
        "u": weight(72, 4, dtype=F64),
        "rows": data(1, 5, seed=4, dtype=F64),
        "token": data(2, 5, seed=5, dtype=F64),
        "ones": np.ones(5),
        "zeros": np.zeros(5),
        "i3": weight(1, 3, 5, seed=6, dtype=F64),
        "h3": weight(1, 3, 3, seed=7, dtype=F64),
        "first": weight(1, 1, 3, seed=8, dtype=F64),
        "zero": np.array([0]),
        "two_rows": np.array([2, 5]),
        "ten": np.array([10]),
        "five": np.array([5]),
    }


def made(name: str) -> onnx.ModelProto:
    """One of the models."""
    signature, body, _ = MODELS[name]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return net(signature, body, **{k: v for k, v in held().items() if k in words})


def feed_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Two samples for each input; one where a loop's state is one."""
    samples = 1 if any(n.op_type == "Scan" or "first" in n.input for n in model.graph.node) else 2
    sizes = {t.name: [d.dim_value or samples for d in t.type.tensor_type.shape.dim] for t in model.graph.input}
    return {name: data(*shape, seed=i, dtype=F64) for i, (name, shape) in enumerate(sizes.items())}


def at_a_time(model: onnx.ModelProto) -> int:
    """How many points a step of a compiled model's loop is given."""
    (scan,) = (n for n in model.graph.node if n.op_type == "Scan" and n.name.startswith(("integrated", "smoothgrad")))
    (argument, *_) = (t for t in scan.attribute[0].g.input if "arg" in t.name)
    shape = argument.type.tensor_type.shape.dim
    return shape[0].dim_value if shape else 1


def compiled(model: onnx.ModelProto, rule: str = "integrated-gradients", **options: Any) -> onnx.ModelProto:
    """A model with its explanation by six points."""
    key = "steps" if rule == "integrated-gradients" else "samples"
    return compile_model(model, rule, explain_input="x", parameters={key: 6}, **options).model


@pytest.mark.parametrize("name", MODELS)
def test_two_points_at_a_time_where_samples_are_proven_to_stay_apart(name: str) -> None:
    assert at_a_time(compiled(made(name))) == MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_mean_over_gradients_of_each_point(name: str) -> None:
    model = made(name)
    feed = feed_of(model)
    found = exact(compiled(model, explain_reduce="sum"), feed)["relevance"]
    gradient = compile_model(model, "gradient", explain_input="x", explain_reduce="sum").model
    slopes = [exact(gradient, {**feed, "x": feed["x"] * ((k + 0.5) / 6)})["relevance"] for k in range(6)]
    expected = feed["x"] * np.mean(slopes, 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name, (*_, count) in MODELS.items() if count == 2])
def test_each_sample_is_explained_by_itself(name: str) -> None:
    model = made(name)
    feed, target = feed_of(model), np.array([1, 3])
    explained = compiled(model)
    both = exact(explained, {**feed, "target": target})["relevance"]
    alone = [exact(explained, {"x": feed["x"][i : i + 1], "target": target[i : i + 1]})["relevance"] for i in (0, 1)]
    np.testing.assert_allclose(both, np.concatenate(alone), rtol=0, atol=1e-13 * np.abs(both).max())


@pytest.mark.parametrize(("batch", "rows", "count"), [("N", 2, 2), ("M", 1, 1)])
def test_two_explained_inputs_are_joined_if_they_have_one_batch(batch: str, rows: int, count: int) -> None:
    """One row for all samples is not one row for all points."""
    signature = f"(double[N,5] x, double[{batch},5] k) => (double[N,4] y)"
    body = f"q = Tanh(x) \n p = Tanh(k) \n n = Add(q, p) \n z = Gemm(n, w, b) \n {HEAD}"
    model = net(signature, body, **{k: held()[k] for k in ("w", "b", "v")})
    made, one_by_one = (
        compile_model(model, "integrated-gradients", parameters={"steps": 6}, explain_input=["x", "k"], chunk=k).model
        for k in (None, 1)
    )
    assert at_a_time(made) == count
    feed = {"x": data(2, 5, dtype=F64), "k": data(rows, 5, seed=1, dtype=F64)}
    found, expected = exact(made, feed), exact(one_by_one, feed)
    for name in ("relevance_x", "relevance_k"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("steps", "count"), [(32, 2), (6, 2), (50, 2), (25, 1), (1, 1)])
def test_two_points_at_a_time_where_they_divide_the_steps(steps: int, count: int) -> None:
    made_of = compile_model(made("a table"), "integrated-gradients", parameters={"steps": steps}).model
    assert at_a_time(made_of) == count


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad"])
def test_a_step_reads_something_that_is_no_tensor(rule: str, chunk: int) -> None:
    """So ONNX Runtime does not lay out the body's memory anew, in one block beside that of the first step."""
    model = compiled(made("a table"), rule, chunk=chunk)
    step = next(n for n in model.graph.node if n.op_type == "Scan").attribute[0].g
    (read,) = (n for n in step.node if n.op_type == "SequenceLength")
    (maker,) = (n for n in model.graph.node if read.input[0] in n.output)
    assert maker.op_type == "SequenceConstruct"


def test_an_odd_number_of_points_is_done_one_by_one_and_what_is_asked_for_is_done() -> None:
    model = made("a table")
    odd = compile_model(model, "integrated-gradients", parameters={"steps": 5}).model
    assert at_a_time(odd) == 1
    assert [at_a_time(compiled(model, chunk=k)) for k in (1, 3, 6)] == [1, 3, 6]


MEET = {
    "minus the batch's mean": "ReduceMean 'ReduceMean_1' works along the samples' axis",
    "normalised by the batch": "BatchNormalization 'BatchNormalization_1' takes its mean over samples",
    "turned": "axis 0 of 'y' is none of samples",
    "a fixed batch": "the model's batch is fixed",
    "another input": "'k' would have to be repeated",
}


@pytest.mark.parametrize("name", MEET)
def test_what_would_meet_is_not_put_into_one_batch(name: str) -> None:
    with pytest.raises(RuleError, match=f"^--chunk 3: {MEET[name]}; use --chunk 1$"):
        compiled(made(name), chunk=3)


MAY_MEET = {
    "tokens of all samples behind each other, as torch exports the end of an attention": (
        "q = Tanh(x) \n t = Transpose<perm=[1,0,2]>(q) \n r = Reshape(t, rows) \n z = Gemm(r, w) \n s = Tanh(z) \n"
        "u = Reshape(s, tokens) \n y = ReduceMean<keepdims=0>(u, zero)",
        "Reshape 'Reshape_2' does not keep the samples' axis apart",
    ),
    "each image and its mirror image, behind each other": (
        "m = Gather<axis=1>(x, mirrored) \n c = Concat<axis=0>(x, m) \n z = MatMul(c, w) \n h = Tanh(z) \n"
        "s, t = Split<axis=0, num_outputs=2>(h) \n a = Add(s, t) \n y = ReduceMean<keepdims=0>(a, one)",
        "Concat 'Concat_1' works along the samples' axis",
    ),
}


@pytest.mark.parametrize("name", MAY_MEET)
def test_what_may_meet_is_put_into_one_batch_with_a_note(name: str) -> None:
    body, why = MAY_MEET[name]
    indices = {"rows": [-1, 5], "tokens": [4, -1, 3], "zero": [0], "one": [1], "mirrored": [3, 2, 1, 0]}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    held = {"w": weight(5, 3, dtype=F64), **{k: np.array(v) for k, v in indices.items() if k in words}}
    model = net("(double[N,4,5] x) => (double[N,3] y)", body, **held)
    both = [compile_model(model, "integrated-gradients", parameters={"steps": 6}, chunk=k) for k in (1, 3)]
    (note,) = set(both[1].notes) - set(both[0].notes)
    assert note == f"--chunk 3 holds if samples stay apart, which is not proven: {why}"
    one, several = (exact(c.model, {"x": data(2, 4, 5, dtype=F64)})["relevance"] for c in both)
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-13 * np.abs(one).max())


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad"])
@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_change_nothing(rule: str, chunk: int) -> None:
    model = made("a residual network")
    feed = feed_of(model)
    usual, asked = (exact(compiled(model, rule, **more), feed)["relevance"] for more in ({}, {"chunk": chunk}))
    np.testing.assert_allclose(asked, usual, rtol=0, atol=1e-13 * np.abs(usual).max())


@pytest.mark.parametrize("rule", ["hessian-x-input", "integrated-hessians"])
def test_sizes_of_the_hessians_rows_are_known_to_agree(rule: str) -> None:
    made = compile_model(network_of_sums(), rule, chunk=2, parameters={} if rule[0] == "h" else {"steps": 2}).model
    loops = [a.g for n in made.graph.node for a in n.attribute if n.op_type == "Scan"]
    assert loops
    nodes = [*made.graph.node, *(n for g in loops for n in g.node)]
    nodes += [n for node in nodes for a in node.attribute for n in a.g.node]
    assert not any(n.op_type == "NonZero" for n in nodes)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_what_the_model_says_of_sizes_holds_in_a_step(chunk: int) -> None:
    """Behind a Reshape by sizes only that says that two tensors agree; an axis is open, and another input has N too."""
    body = (
        "a = Tanh(x) \n d = Shape<start=0,end=2>(x) \n g = Concat<axis=0>(d, five) \n r = Reshape(a, g) \n"
        "t = Sin(r) \n s = Add(t, r) \n k = Add(s, a) \n m = MatMul(k, w) \n y = ReduceMean<keepdims=0>(m, one) \n"
        "other = Neg(o)"
    )
    weights = {"w": held()["w"], "five": held()["five"], "one": np.array([1])}
    model = net("(double[N,T,5] x, double[3,N] o) => (double[N,3] y, double[3,N] other)", body, **weights)
    made = compiled(model, chunk=chunk, explain_output="y")
    step = next(n for n in made.graph.node if n.op_type == "Scan").attribute[0].g
    assert "NonZero" not in {n.op_type for n in step.node}
    feed = {"x": data(2, 4, 5, dtype=F64), "o": data(3, 2, dtype=F64)}
    whole = compiled(model, chunk=6, explain_output="y")
    expected, found = (exact(m, feed)["relevance"] for m in (whole, made))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def network_of_sums() -> onnx.ModelProto:
    """A table's residual network."""
    body = "q = Tanh(x) \n z = MatMul(q, s) \n t = Tanh(z) \n m = Add(t, q) \n f = Tanh(m) \n y = Gemm(f, w, b)"
    weights = {"s": weight(4, 4, dtype=F64), "w": weight(4, 3, seed=1, dtype=F64), "b": weight(3, dtype=F64)}
    return net("(double[N,4] x) => (double[N,3] y)", body, **weights)


@pytest.mark.parametrize("chunk", [None, 3])
def test_sizes_of_a_chunk_are_known_to_agree(chunk: int | None) -> None:
    """No step finds out at run time over which axes a sum was broadcast."""
    step = next(n for n in compiled(made("a residual network"), chunk=chunk).graph.node if n.op_type == "Scan")
    assert not {"NonZero", "ReduceSum"} & {n.op_type for n in step.attribute[0].g.node}


def test_the_runtime_takes_it_in_half_precision() -> None:
    """Weights come before the sum there, which else might overflow: here the gradients' sum is 6 times 60000."""
    half = net("(float16[N,2] x) => (float16[N,2] y)", "y = Mul(x, k)", k=np.full((1, 2), 60000, np.float16))
    x = np.full((2, 2), 0.5, np.float16)
    found = run(compile_model(half, "integrated-gradients", parameters={"steps": 6}).model, {"x": x})["relevance"]
    np.testing.assert_allclose(found.max(1), 30000, rtol=2e-3)
