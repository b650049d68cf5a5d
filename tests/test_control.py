"""If, Loop and Scan: gradients and relevance through subgraphs, in ONNX text, against central differences in float64.

Each model gives a scalar `s`; `double` runs it in the reference, `run` in ONNX Runtime in float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import xaicompile
from tests.cases.build import central_difference, relative_error
from tests.graphs import data, net, run
from tests.reference_ops import evaluator
from xaicompile.compiler import compile_model
from xaicompile.errors import UnsupportedError

FIRST_ORDER = 1e-6
FLOAT32 = 2e-5

BRANCHES = """
    h = Tanh(x)
    y, z = If (flag) <
        then_branch = yes () => (float[N,3] a, float[N,3] b) { t = MatMul(h, w)  a = Sin(t)  b = Mul(a, h) },
        else_branch = no () => (float[N,3] c, float[N,3] d) { c = Mul(h, x)  sh = Shape(x)  d = Expand(k, sh) }
    >
    q = Mul(z, m)
    p = Add(y, q)
    s = ReduceSum<keepdims=0>(p)"""

NESTED = """
    y = If (flag) <
        then_branch = yes () => (float[N,3] a) {
            t = MatMul(x, w)
            a = If (deep) <
                then_branch = in_yes () => (float[N,3] a1) { a1 = Mul(t, x) },
                else_branch = in_no () => (float[N,3] a2) {
                    zero = Constant<value = float {0.0}> ()
                    one = Constant<value = int64 {3}> ()
                    on = Constant<value = bool {1}> ()
                    a2 = Loop (one, on, t) <body = twice (int64 i, bool c, float[N,3] v) => (bool c2, float[N,3] v2) {
                        c2 = Identity(c)
                        u = Sin(v)
                        r = Mul(u, x)
                        v2 = Add(r, t)
                    }>
                }
            >
        },
        else_branch = no () => (float[N,3] b) { b = Identity(x) }
    >
    s = ReduceSum<keepdims=0>(y)"""

COUNTED = """
    last, each = Loop (count, , x) <
        body = step (int64 i, bool c, float[N,3] v) => (bool c2, float[N,3] v2, float[N,3] e) {
        c2 = Identity(c)
        n = Cast<to = 1>(i)
        u = MatMul(v, w)
        g = Sin(u)
        f = Add(g, n)
        r = Mul(f, m)
        v2 = Mul(r, x)
        e = Tanh(v)
    }>
    a = ReduceSum<keepdims=0>(last)
    q = Mul(each, each)
    b = ReduceSum<keepdims=0>(q)
    s = Add(a, b)"""

CHOOSING = """
    last, each = Loop (count, , x) <
        body = step (int64 i, bool c, float[N,3] v) => (bool c2, float[N,3] v2, float[N,3] e) {
            c2 = Identity(c)
            one = Constant<value = int64 {1}> ()
            early = Less(i, one)
            u = MatMul(v, w)
            v2 = If (early) <
                then_branch = yes () => (float[N,3] a) { t = Sin(u)  a = Mul(t, x) },
                else_branch = no () => (float[N,3] b) { t2 = Mul(u, m)  b = Tanh(t2) }
            >
            e = Identity(u)
        }
    >
    p = Mul(last, last)
    a2 = ReduceSum<keepdims=0>(p)
    q = Mul(each, each)
    b2 = ReduceSum<keepdims=0>(q)
    s = Add(a2, b2)"""

TWO_NAMES = """
    h = Tanh(x)
    g = Identity(h)
    y = If (flag) <
        then_branch = yes () => (float[N,3] a) { a = Mul(h, g) },
        else_branch = no () => (float[N,3] b) { b = Sub(g, m) }
    >
    e = Scan <num_scan_inputs = 1, body = step (float[3] row) => (float[N,3] o) {
        t = Mul(h, row)
        o = Mul(t, g)
    }> (x)
    p = Mul(e, e)
    q = ReduceSum<keepdims=0>(p)
    r = ReduceSum<keepdims=0>(y)
    s = Add(q, r)"""

UNTIL = """
    last, k2 = Loop (, on, x, k) <body = step (int64 i, bool c, float[N,3] v, float[3] kk)
                                         => (bool c2, float[N,3] v2, float[3] k3) {
        half = Constant<value = float {0.5}> ()
        u = Mul(v, half)
        t = Sin(v)
        v2 = Add(u, t)
        k3 = Add(kk, k)
        total = ReduceMax<keepdims=0>(v2)
        c2 = Less(total, m)
    }>
    q = Mul(last, k2)
    s = ReduceSum<keepdims=0>(q)"""

SCANNED = """
    state, along, across = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [1, 0],
                                 scan_output_axes = [1, 0], scan_output_directions = [0, 1],
        body = step (float[N] st, float[N] col, float[2] row) => (float[N] st2, float[N] out, float[2] out2) {
            two = Constant<value = int64[1] {0}> ()
            r = ReduceSum<keepdims=1>(row, two)
            u = Mul(st, col)
            st2 = Add(u, r)
            out = Sin(st2)
            out2 = Mul(row, m)
        }> (start, x, rows)
    a = ReduceSum<keepdims=0>(state)
    b = MatMul(along, w)
    b2 = Mul(b, b)
    c = ReduceSum<keepdims=0>(b2)
    e = Mul(across, across)
    f = ReduceSum<keepdims=0>(e)
    s = Sum(a, c, f)"""

X = "float[N,3] x"
CASES: dict[str, tuple[str, str, dict[str, np.ndarray], list[str]]] = {
    "then": (f"{X}, bool flag, float m", BRANCHES, {"flag": np.asarray(True)}, ["x", "m"]),
    "else": (f"{X}, bool flag, float m", BRANCHES, {"flag": np.asarray(False)}, ["x", "m"]),
    "nested, then": (f"{X}, bool flag, bool deep", NESTED, {"flag": np.asarray(True), "deep": np.asarray(True)}, ["x"]),
    "nested loop": (f"{X}, bool flag, bool deep", NESTED, {"flag": np.asarray(True), "deep": np.asarray(False)}, ["x"]),
    "nested, else": (
        f"{X}, bool flag, bool deep",
        NESTED,
        {"flag": np.asarray(False), "deep": np.asarray(True)},
        ["x"],
    ),
    "loop, counted": (f"{X}, int64 count, float m", COUNTED, {"count": np.asarray(3)}, ["x", "m"]),
    "loop, once": (f"{X}, int64 count, float m", COUNTED, {"count": np.asarray(1)}, ["x", "m"]),
    "loop, until": (f"{X}, bool on, float m", UNTIL, {"on": np.asarray(True)}, ["x"]),
    "loop, never": (f"{X}, bool on, float m", UNTIL, {"on": np.asarray(False)}, ["x"]),
    "branch in a loop": (f"{X}, int64 count, float m", CHOOSING, {"count": np.asarray(3)}, ["x", "m"]),
    "two names, then": (f"{X}, bool flag, float m", TWO_NAMES, {"flag": np.asarray(True)}, ["x", "m"]),
    "two names, else": (f"{X}, bool flag, float m", TWO_NAMES, {"flag": np.asarray(False)}, ["x"]),
    "scan": (f"{X}, float[N] start, float[T,2] rows, float m", SCANNED, {}, ["x", "start", "rows", "m"]),
}
SHAPES = {"x": (2, 3), "m": (), "start": (2,), "rows": (3, 2)}


def model_of(name: str, double: bool) -> onnx.ModelProto:
    """The model in float64 or float32."""
    signature, body, _, _ = CASES[name]
    kind = np.float64 if double else np.float32
    weights = {"w": data(3, 3, seed=1), "k": np.asarray([1.0, -2.0, 0.5])}
    used = {k: v.astype(kind) for k, v in weights.items() if re.search(rf"\b{k}\b", body)}
    text = f"({signature}) => (float s)"
    if double:
        text, body = text.replace("float", "double"), body.replace("float", "double").replace("to = 1>", "to = 11>")
    return net(text, body, **used)


def feed_of(name: str, double: bool) -> dict[str, np.ndarray]:
    """Numbers for the inputs, the same in both types."""
    signature, _, given, _ = CASES[name]
    kind = np.float64 if double else np.float32
    numbers = {k: np.asarray(data(*shape, seed=3) if shape else 1.25) for k, shape in SHAPES.items()}
    return {k: v.astype(kind) for k, v in numbers.items() if re.search(rf"\b{k}\b", signature)} | given


def relevance_of(outputs: Mapping[str, np.ndarray], inputs: list[str]) -> dict[str, np.ndarray]:
    """The relevance by input."""
    if len(inputs) == 1:
        return {inputs[0]: np.asarray(outputs["relevance"])}
    return {name: np.asarray(outputs[f"relevance_{name}"]) for name in inputs}


def in_reference(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every output by name."""
    return dict(zip([o.name for o in model.graph.output], evaluator(model).run(None, dict(feed)), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str) -> None:
    inputs = CASES[name][3]
    model, feed = model_of(name, True), feed_of(name, True)
    made = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum", explain_input=inputs)
    onnx.checker.check_model(made, full_check=True)
    want = central_difference(model, feed, "s", inputs)
    for key, value in relevance_of(in_reference(made, feed), inputs).items():
        assert relative_error(value, want[key]) <= FIRST_ORDER, key
    single = xaicompile.compile(
        model_of(name, False), "gradient", explain_output="s", explain_reduce="sum", explain_input=inputs
    )
    found = run(single, feed_of(name, False))
    for key, value in relevance_of(found, inputs).items():
        assert relative_error(value, want[key]) <= FLOAT32, key
    np.testing.assert_array_equal(found["s"], run(model_of(name, False), feed_of(name, False))["s"])


@pytest.mark.parametrize("name", ["then", "else", "nested loop", "loop, counted", "scan"])
def test_second_order(name: str) -> None:
    """The gradient's subgraphs are subgraphs like any other: compiled again, they give the second derivative."""
    model, feed = model_of(name, True), feed_of(name, True)
    once = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum", explain_input="x")
    twice = xaicompile.compile(once, "gradient", explain_output="relevance", explain_reduce="sum", explain_input="x")
    onnx.checker.check_model(twice, full_check=True)
    want = np.zeros(feed["x"].shape)
    session = evaluator(once)
    for place in np.ndindex(*want.shape):
        ends = []
        for sign in (1, -1):
            moved = feed["x"].copy()
            moved[place] += sign * 1e-5
            ends.append(session.run(["relevance"], {**feed, "x": moved})[0].sum())
        want[place] = (ends[0] - ends[1]) / 2e-5
    assert relative_error(in_reference(twice, feed)["relevance_2"], want) <= FIRST_ORDER


@pytest.mark.parametrize("rule", ["lrp-0", "lrp-epsilon", "lrp-gamma", "gradient-x-input"])
@pytest.mark.parametrize("name", [n for n in CASES if n != "loop, never"])
def test_the_ledger_closes(name: str, rule: str) -> None:
    inputs = CASES[name][3]
    model, feed = model_of(name, True), feed_of(name, True)
    made = xaicompile.compile(model, rule, explain_output="s", explain_reduce="sum", explain_input=inputs, ledger=True)
    got = in_reference(made, feed)
    relevance = relevance_of(got, inputs)
    explained, absorbed = float(got["explained"].sum()), float(got["ledger"].sum())
    scale = max(abs(explained), abs(absorbed), *(float(np.abs(r).sum()) for r in relevance.values()))
    assert abs(sum(float(r.sum()) for r in relevance.values()) + absorbed - explained) <= 1e-9 * scale


def test_a_branch_that_is_always_taken_is_read_as_part_of_the_graph() -> None:
    body = """
        y = If (on) <
            then_branch = yes () => (float[N,3] a) { a = Relu(x) },
            else_branch = no () => (float[N,3] b) { b = Sin(x) }
        >"""
    model = net(f"({X}) => (float[N,3] y)", body, on=np.asarray(True))
    compiled = compile_model(model, "gradient")
    assert [a.op for a in compiled.assignments] == ["Relu"]
    assert [n.op_type for n in compiled.model.graph.node].count("If") == 1
    x = data(2, 3)
    first = {"x": x, "target": np.asarray([0])}
    np.testing.assert_array_equal(run(compiled.model, first)["relevance"][:, 0], (x[:, 0] > 0).astype(np.float32))


def test_rules_inside_a_subgraph_are_chosen_like_any_other() -> None:
    assigned = {
        a.node.rsplit("/", 1)[1]: a.rule for a in compile_model(model_of("then", False)).assignments if "/" in a.node
    }
    assert assigned["MatMul_0"] == "epsilon"


def test_a_box_reaches_the_first_layer_inside_a_branch_but_not_inside_a_loop() -> None:
    body = """
        y = If (flag) <
            then_branch = yes () => (float[N,2] a) { a = MatMul(x, w) },
            else_branch = no () => (float[N,2] b) { t = MatMul(x, w)  b = Neg(t) }
        >
        s = ReduceSum<keepdims=0>(y)"""
    w = data(3, 2, seed=1)
    model = net(f"({X}, bool flag) => (float s)", body, w=w)
    options = {"explain_output": "y", "explain_input": "x", "parameters": {"low": -1.0, "high": 1.0}}
    made = compile_model(model, "lrp-gamma", target=0, **options)  # type: ignore[arg-type]
    assert [a.rule for a in made.assignments if a.op == "MatMul"] == ["z-box", "z-box"]
    x = np.clip(data(2, 3), -1, 1)
    column = w[:, 0]
    for flag in (True, False):
        share = x * column + np.maximum(column, 0) - np.minimum(column, 0)
        want = share / share.sum(1, keepdims=True) * (x @ column)[:, None] * (1 if flag else -1)
        got = run(made.model, {"x": x, "flag": np.asarray(flag)})["relevance"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    steps = compile_model(model_of("loop, counted", False), "lrp-gamma", parameters={"low": -1.0, "high": 1.0})
    assert {a.rule for a in steps.assignments if a.op == "MatMul"} == {"epsilon"}


def test_a_state_that_grows_is_refused() -> None:
    body = """
        y = Loop (count, , x) <body = step (int64 i, bool c, float[2,3] v) => (bool c2, float[K,3] v2) {
            c2 = Identity(c)
            v2 = Concat<axis=0>(v, v)
        }>
        s = ReduceSum<keepdims=0>(y)"""
    model = net("(float[2,3] x, int64 count) => (float s)", body)
    with pytest.raises(UnsupportedError, match="no gradient where the shape changes from step to step"):
        compile_model(model, "gradient", explain_output="s", explain_reduce="sum")


def test_a_state_to_which_something_is_appended_is_refused() -> None:
    """Of its shape inference only says that it is unknown; the steps could not be stacked at run time."""
    body = """
        y = Loop (n, , x) <body = step (int64 i, bool c, float[M,3] v) => (bool c2, float[K,3] v2) {
            c2 = Identity(c)
            u = Concat<axis = 0>(v, x)
            v2 = Sin(u)
        }>
        s = ReduceSum<keepdims=0>(y)"""
    model = net(f"({X}, int64 n) => (float s)", body)
    with pytest.raises(UnsupportedError, match="no gradient where the shape changes from step to step"):
        compile_model(model, "gradient", explain_output="s", explain_reduce="sum")
    cell = body.replace("v2 = Sin(u)", "w = Slice(u, from, to)  v2 = Sin(w)")
    window = net(f"({X}, int64 n) => (float s)", cell, **{"from": np.array([1]), "to": np.array([3])})
    feed = {"x": data(2, 3), "n": np.asarray(2)}
    emitted = xaicompile.compile(window, "gradient", explain_output="s", explain_reduce="sum")
    assert run(emitted, feed)["relevance"].shape == (2, 3)


def test_what_has_no_gradient_inside_a_subgraph_is_named() -> None:
    body = """
        y = If (flag) <
            then_branch = yes () => (float[N,3] a) { a = Bernoulli(x) },
            else_branch = no () => (float[N,3] b) { b = Sin(x) }
        >"""
    with pytest.raises(UnsupportedError, match=r"Bernoulli '.*' \(subgraph\): it is random"):
        compile_model(net(f"({X}, bool flag) => (float[N,3] y)", body), "gradient")


def test_steps_written_as_a_loop_are_the_recurrent_operator() -> None:
    """As converters from TensorFlow write them: each step gathers its row by the step's number."""
    w, r, b = data(4, 3, seed=1), data(4, 4, seed=2), data(4, seed=4)
    one = net(
        "(float[T,N,3] x) => (float[1,N,4] h)",
        "y, h = RNN<hidden_size = 4>(x, W, R, B)",
        W=w[None],
        R=r[None],
        B=np.concatenate([b, 0 * b])[None],
    )
    body = """
        shape = Shape(x)
        steps = Gather(shape, first)
        size = Slice(shape, at1, at2)
        wide = Concat<axis=0>(size, units)
        start = Expand(nothing, wide)
        last = Loop (steps, , start) <body = step (int64 i, bool c, float[N,4] v) => (bool c2, float[N,4] v2) {
            c2 = Identity(c)
            now = Gather<axis=0>(x, i)
            both = Concat<axis=1>(now, v)
            z = MatMul(both, WR)
            z2 = Add(z, b)
            v2 = Tanh(z2)
        }>
        h = Unsqueeze(last, at0)"""
    numbers = {"at0": [0], "at1": [1], "at2": [2], "units": [4], "first": 0}
    integers = {k: np.asarray(v, np.int64) for k, v in numbers.items()}
    weights = {"WR": np.concatenate([w, r], 1).T.copy(), "b": b, "nothing": np.zeros(1, np.float32)}
    loop = net("(float[T,N,3] x) => (float[1,N,4] h)", body, **weights, **integers)
    feed = {"x": data(5, 2, 3, seed=5)}
    for rule in ("gradient", "lrp-0"):
        left, right = (
            run(xaicompile.compile(m, rule, explain_output="h", explain_reduce="sum"), feed)["relevance"]
            for m in (one, loop)
        )
        assert relative_error(left, np.asarray(right, np.float64)) <= FLOAT32


def test_what_is_no_tensor_inside_a_loop_is_refused_by_name() -> None:
    body = """
        none = SequenceEmpty()
        all = Loop (count, , none) <body = step (int64 i, bool c, seq(float[N,3]) v) => (bool c2, seq(float[N,3]) v2) {
            c2 = Identity(c)
            v2 = SequenceInsert(v, x, i)
        }>
        y = ConcatFromSequence<axis=0>(all)"""
    with pytest.raises(UnsupportedError, match=r"no rule for .* nodes.*: .*SequenceInsert"):
        compile_model(net(f"({X}, int64 count) => (float[M,3] y)", body), "gradient")


def test_what_does_not_change_from_step_to_step_is_computed_once() -> None:
    """In a loop everything that reads nothing from inside; in a branch, which may not run, constants alone."""
    loop = xaicompile.compile(model_of("loop, counted", False), "lrp-gamma", explain_output="s", explain_reduce="sum")
    assert not {"Transpose", "Shape", "ConstantOfShape"} & inner_ops(loop, "Loop")
    branch = xaicompile.compile(model_of("then", False), "gradient", explain_output="s", explain_reduce="sum")
    assert "Transpose" not in inner_ops(branch, "If") and {"MatMul", "Cos"} <= inner_ops(branch, "If")


def inner_ops(model: onnx.ModelProto, op: str) -> set[str]:
    """Operators in the subgraphs of the last node of that kind."""
    node = [n for n in model.graph.node if n.op_type == op][-1]
    return {child.op_type for a in node.attribute if a.HasField("g") for child in a.g.node}


def test_weights_inside_subgraphs_are_held_once_more_however_deep() -> None:
    """The prediction's own stay where they are; all that explains them reads one copy."""
    body = """
        y = If (flag) <
            then_branch = yes () => (float[N,3] a) {
                t = If (deep) <
                    then_branch = in_yes () => (float[N,3] a1) { w = Constant() u = MatMul(x, w)  a1 = Sin(u) },
                    else_branch = in_no () => (float[N,3] a2) { a2 = Neg(x) }
                >
                a = Mul(t, t)
            },
            else_branch = no () => (float[N,3] b) { b = Identity(x) }
        >"""
    text = body.replace("float[N,3]", "float[N,70]").replace("Constant()", "Constant<value = float[1] {1.0}>()")
    signature = "net (float[N,70] x, bool flag, bool deep) => (float[N,70] y)"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {signature} {{ {text} }}')
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    inner = next(a.g for a in branch.node[0].attribute if a.name == "then_branch")
    inner.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(data(70, 70)))
    made = xaicompile.compile(model, "gradient")
    assert 2 * data(70, 70).nbytes < made.ByteSize() < 2.5 * data(70, 70).nbytes
    feed = {"x": data(2, 70, seed=1), "flag": np.asarray(True), "deep": np.asarray(True), "target": np.asarray([1])}
    u = feed["x"] @ data(70, 70)
    want = np.outer(np.sin(2 * u[:, 1]), data(70, 70)[:, 1]).reshape(2, 70)
    np.testing.assert_allclose(run(made, feed)["relevance"], want, rtol=1e-3, atol=1e-3)


def test_a_recurrent_node_inside_a_branch() -> None:
    weights = {"W": data(1, 4, 3, seed=1), "R": data(1, 4, 4, seed=2)}
    node = 'RNN<hidden_size = 4, activations = ["Softsign"]>(x, W, R)'
    plain = net("(float[T,N,3] x) => (float[1,N,4] h)", f"y, h = {node}", **weights)
    body = f"""
        h = If (flag) <
            then_branch = yes () => (float[1,N,4] h1) {{ y, h1 = {node} }},
            else_branch = no () => (float[1,N,4] h2) {{ y2, h2 = RNN<hidden_size = 4>(x, W, R) }}
        >"""
    branch = net("(float[T,N,3] x, bool flag) => (float[1,N,4] h)", body, **weights)
    feed = {"x": data(5, 2, 3, seed=5)}
    options = {"explain_output": "h", "explain_reduce": "sum"}
    for rule in ("gradient", "lrp-epsilon"):
        left = run(xaicompile.compile(plain, rule, **options), feed)["relevance"]  # type: ignore[arg-type]
        right = run(xaicompile.compile(branch, rule, **options), {**feed, "flag": np.asarray(True)})["relevance"]  # type: ignore[arg-type]
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


def test_what_the_runtime_fuses_inside_a_branch(tmp_path: Path) -> None:
    """Its optimiser works on subgraphs too, and writes its own ops there."""
    body = """
        y = If (flag) <
            then_branch = yes () => (float[N,3] a) {
                u = MatMul(x, w)  v = Add(u, b)  g = Relu(v)  h = Gemm(g, w, b)  k = Relu(h)  a = Mul(k, x)
            },
            else_branch = no () => (float[N,3] c) {
                p = MatMul(x, w)  q = Mul(p, half)  e = Div(q, root)  f = Erf(e)  o = Add(f, one)  m = Mul(q, o)
                c = Mul(m, half)
            }
        >
        s = ReduceSum<keepdims=0>(y)"""
    numbers = {"half": 0.5, "one": 1.0, "root": 2**0.5}
    weights = {"w": data(3, 3, seed=1), "b": data(3, seed=2)} | {k: np.float32(v) for k, v in numbers.items()}
    model = net(f"({X}, bool flag) => (float s)", body, **{k: np.asarray(v) for k, v in weights.items()})
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    after = onnx.load(tmp_path / "optimised.onnx")
    fused = {n.op_type for g in after.graph.node for a in g.attribute for n in a.g.node if n.domain}
    assert {"FusedGemm", "Gelu"} <= fused
    for flag in (True, False):
        feed = {"x": data(4, 3), "flag": np.asarray(flag)}
        for rule in ("gradient", "lrp-gamma"):
            arguments = {"explain_output": "s", "explain_reduce": "sum", "ledger": rule != "gradient"}
            want, got = (run(xaicompile.compile(m, rule, **arguments), feed) for m in (model, after))  # type: ignore[arg-type]
            assert np.abs(want["relevance"]).max() > 1e-2
            np.testing.assert_allclose(got["relevance"], want["relevance"], rtol=1e-4, atol=1e-6)


def test_what_the_runtime_has_inside_a_loop() -> None:
    """An op of the runtime's that reads nothing from inside is still one that a message passes through."""
    body = """
        y = Loop (n, , x) <body = step (int64 i, bool c, float[N,3] v) => (bool c2, float[N,3] v2) {
            c2 = Identity(c)
            g = com.microsoft.QuickGelu <alpha = 1.5> (x)
            q = com.microsoft.QuickGelu <alpha = 1.5> (v)
            v2 = Mul(q, g)
        }>
        s = ReduceSum<keepdims=0>(y)"""
    text = f'<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> net ({X}) => (float s) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(2), "n"))
    x = data(2, 3)
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    found = run(emitted, {"x": x})["relevance"]
    for place in np.ndindex(*x.shape):
        ends = []
        for step in (4e-3, -4e-3):
            moved = x.copy()
            moved[place] += step
            ends.append(float(run(model, {"x": moved})["s"]))
        assert abs(found[place] - (ends[0] - ends[1]) / 8e-3) < 2e-3
