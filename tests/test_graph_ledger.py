"""Where samples can be told apart, each has a ledger; where they can't, as the nodes of a graph, all have one."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from xaicompile.checks import check
from xaicompile.compiler import compile_model

RULES = ["lrp-0", "lrp-epsilon", "lrp-gamma", "gradient-x-input"]
EDGES = np.asarray([[0, 1, 1, 2, 3, 4, 5, 4, 6], [1, 0, 2, 1, 4, 3, 4, 5, 3]])  # two graphs: nodes 0 to 2, and 3 to 6
TOGETHER = "one ledger for all samples together"
WEIGHTS = {
    "w": weight(4, 5), "v": weight(5, 3, seed=1), "b": weight(5, seed=2), "d": weight(3, seed=3),
    "scale": 1 + weight(5, seed=5), "fixed": np.abs(data(5, 5, seed=4)), "zero": np.asarray([0]),
    "one": np.asarray([1]), "end": np.asarray([5]),
}  # fmt: skip
LAYER = "h = Gemm(x, w, b)\nr = Relu(h)\n"
PASS = """
    source, sink = Split<axis=0, num_outputs=2>(edges)
    from = Squeeze(source, zero)
    to = Transpose<perm=[1,0]>(sink)
    sent = Gather<axis=0>(r, from)
    size = Shape(r)
    none = ConstantOfShape<value = double[1] {0.0}>(size)
    got = ScatterND<reduction="add">(none, to, sent)
    g = Add(got, r)
"""
# name: signature, body, what is fed, how many ledgers
MODELS: dict[str, tuple[str, str, Arrays, int]] = {
    "edges, a node's output": (
        "(double[n,4] x, int64[2,e] edges) => (double[n,3] y)",
        f"{LAYER}{PASS} y = Gemm(g, v, d)",
        {"x": data(7, 4), "edges": EDGES},
        1,
    ),
    "edges, a graph's output": (
        "(double[n,4] x, int64[2,e] edges, int64[n] graph, double[k] slots) => (double[k,3] y)",
        f"""{LAYER}{PASS}
        graphs = Shape(slots)
        wide = Concat<axis=0>(graphs, end)
        pool = ConstantOfShape<value = double[1] {{0.0}}>(wide)
        place = Unsqueeze(graph, one)
        all = ScatterND<reduction="add">(pool, place, g)
        y = Gemm(all, v, d)""",
        {"x": data(7, 4), "edges": EDGES, "graph": np.asarray([0, 0, 0, 1, 1, 1, 1]), "slots": np.zeros(2)},
        1,
    ),
    "neighbours as a matrix": (
        "(double[n,4] x, double[n,n] a) => (double[n,3] y)",
        f"{LAYER} g = MatMul(a, r)\ny = Gemm(g, v, d)",
        {"x": data(6, 4), "a": np.abs(data(6, 6))},
        1,
    ),
    "neighbours that are part of the model": (
        "(double[5,4] x) => (double[5,3] y)",
        f"{LAYER} g = MatMul(fixed, r)\ny = Gemm(g, v, d)",
        {"x": data(5, 4)},
        1,
    ),
    "matrices of neighbours, a batch of graphs": (
        "(double[N,6,4] x, double[N,6,6] a) => (double[N,3] y)",
        "h = MatMul(x, w)\nr = Relu(h)\ng = MatMul(a, r)\nm = ReduceMax<keepdims=0>(g, one)\ny = Gemm(m, v, d)",
        {"x": data(3, 6, 4), "a": np.abs(data(3, 6, 6))},
        3,
    ),
    "nodes that attend to each other": (
        "(double[n,4] x) => (double[n,3] y)",
        f"""{LAYER}
        heads = Constant<value_ints=[0,1,5]>()
        q1 = Reshape(r, heads)
        k1 = Transpose<perm=[1,2,0]>(q1)
        q2 = Transpose<perm=[1,0,2]>(q1)
        s = MatMul(q2, k1)
        p = Softmax(s)
        o = MatMul(p, q2)
        t = Transpose<perm=[1,0,2]>(o)
        flat = Constant<value_ints=[0,5]>()
        g = Reshape(t, flat)
        y = Gemm(g, v, d)""",
        {"x": data(6, 4)},
        1,
    ),
    "a batch of sequences, time first inside": (
        "(double[N,3,4] x) => (double[N,3] y)",
        """
        t = Transpose<perm=[1,0,2]>(x)
        h = MatMul(t, w)
        c = Add(h, b)
        r = Relu(c)
        q1 = Transpose<perm=[1,0,2]>(r)
        k1 = Transpose<perm=[1,2,0]>(r)
        s = MatMul(q1, k1)
        p = Softmax(s)
        o = MatMul(p, q1)
        f = Transpose<perm=[1,0,2]>(o)
        l = LayerNormalization(f, scale, b)
        m = ReduceSum<keepdims=0>(l, zero)
        y = Gemm(m, v, d)""",
        {"x": data(2, 3, 4)},
        2,
    ),
    "single rows": (
        "(double[5,4] x) => (double[5,3] y)",
        f"{LAYER} y = Gemm(r, v, d)",
        {"x": data(5, 4)},
        5,
    ),
    "rows and what they share": (
        "(double[N,4] x, double[1,5] shift) => (double[N,3] y)",
        f"{LAYER} g = Add(r, shift)\ny = Gemm(g, v, d)",
        {"x": data(2, 4), "shift": data(1, 5)},
        1,
    ),
    "steps of a loop": (
        "(double[T,N,5] x) => (double[N,3] y)",
        """
        sizes = Shape<start=1>(x)
        begin = ConstantOfShape<value = double[1] {0.5}>(sizes)
        last, all = Scan<num_scan_inputs=1,
            body = step (double[N,5] h, double[N,5] t) => (double[N,5] n, double[N,5] o) {
                s = Add(h, t)
                u = Add(s, b)
                n = Tanh(u)
                o = Identity(n)
            }>(begin, x)
        y = Gemm(last, v, d)""",
        {"x": data(3, 2, 5)},
        1,
    ),
    "steps of a loop in each sample": (
        "(double[N,3,5] x) => (double[N,3] y)",
        """
        sizes = Shape(x)
        outer = Constant<value_ints=[0,2]>()
        inner = Gather(sizes, outer)
        begin = ConstantOfShape<value = double[1] {0.5}>(inner)
        last, all = Scan<num_scan_inputs=1, scan_input_axes=[1],
            body = step (double[N,5] h, double[N,5] t) => (double[N,5] n, double[N,5] o) {
                s = Add(h, t)
                u = Add(s, b)
                n = Tanh(u)
                o = Identity(n)
            }>(begin, x)
        y = Gemm(last, v, d)""",
        {"x": data(2, 3, 5)},
        2,
    ),
    "steps of a loop, samples behind": (
        "(double[N,3,5] x) => (double[N,3] y)",
        """
        turned = Transpose<perm=[1,2,0]>(x)
        column = Unsqueeze(b, one)
        sizes = Shape<start=1>(turned)
        begin = ConstantOfShape<value = double[1] {0.5}>(sizes)
        last, all = Scan<num_scan_inputs=1,
            body = step (double[5,N] h, double[5,N] t) => (double[5,N] n, double[5,N] o) {
                s = Add(h, t)
                u = Add(s, column)
                n = Tanh(u)
                o = Identity(n)
            }>(begin, turned)
        y = Gemm<transA=1>(last, v, d)""",
        {"x": data(2, 3, 5)},
        1,
    ),
}  # fmt: skip


def named_in(body: str, arrays: Arrays) -> Arrays:
    """The arrays whose names the text of a model holds."""
    words = set(re.findall(r"\w+", body))
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in arrays.items() if k in words}


def model_of(name: str, double: bool = True) -> onnx.ModelProto:
    signature, body, _, _ = MODELS[name]
    used = named_in(body, WEIGHTS)
    if not double:
        signature, body = signature.replace("double", "float"), body.replace("double", "float")
        used = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in used.items()}
    return net(signature, body, **used)


def feed_of(name: str, double: bool = True) -> Arrays:
    kind = np.float64 if double else np.float32
    return {k: v.astype(kind) if v.dtype.kind == "f" else v for k, v in MODELS[name][2].items()}


def gap(out: Arrays) -> float:
    """The largest of |sum(relevance) + ledger - explained|, of the largest entry."""
    count = len(out["explained"])
    relevance = [v for k, v in out.items() if k.startswith("relevance")]
    total = sum(r.reshape(count, -1).sum(1, dtype=np.float64) for r in relevance)
    largest = max(float(np.abs(v).max()) for v in (out["explained"], out["ledger_by_node"]))
    return float(np.abs(total + out["ledger"] - out["explained"]).max()) / largest


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_the_ledger_closes_in_the_groups_that_it_is_kept_for(name: str, rule: str) -> None:
    _, _, _, ledgers = MODELS[name]
    compiled = compile_model(model_of(name), rule, ledger=True)
    out = exact(compiled.model, feed_of(name))
    assert out["explained"].shape == out["ledger"].shape == (ledgers,) == out["ledger_by_node"].shape[:1]
    assert gap(out) <= 1e-12
    assert np.abs(out["ledger"]).min() > 1e-3
    rows = out["y"].shape[0]
    assert any(note.startswith(TOGETHER) for note in compiled.notes) == (ledgers != rows)
    np.testing.assert_allclose(out["explained"].sum(), out["y"].max(1).sum(), rtol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_the_self_check_passes(name: str) -> None:
    model = model_of(name, False)
    report = check(compile_model(model, "lrp-gamma", ledger=True).model, model, inputs=feed_of(name, False))
    assert report.passed and not report.skipped, [(i.name, i.detail) for i in report.items]
    assert {"prediction", "relevance", "ledger"} <= {item.name for item in report.items}


@pytest.mark.parametrize("name", ["edges, a node's output", "single rows"])
def test_several_maps(name: str) -> None:
    """Each has a ledger of its own, of all nodes together or of each row; the books of each node are kept alike."""
    model, ledgers = model_of(name, False), MODELS[name][3]
    made = compile_model(model, "lrp-epsilon", ledger=True, maps=2, audit=True).model
    out = run(made, feed_of(name, False))
    assert out["ledger"].shape == (ledgers, 2) and out["audit_bias"].shape[:2] == (ledgers, 2)
    report = check(made, model, inputs=feed_of(name, False))
    assert report.passed and "ledger" in {item.name for item in report.items}


def test_inputs_are_found_for_a_graph_whose_edges_may_not_be_of_one_node() -> None:
    """Random edges are 0 or 1, which a graph of one node has not."""
    model = model_of("edges, a node's output", False)
    report = check(compile_model(model, "gradient").model, model)
    assert report.passed and not report.skipped


def test_relevance_is_of_each_graph_as_before() -> None:
    """A graph's relevance does not change with another beside it; the ledgers of the two sum to that of both."""
    name = "edges, a graph's output"
    made, feed = compile_model(model_of(name), "lrp-epsilon", ledger=True).model, feed_of(name)
    both = exact(made, feed)
    parts = []
    for nodes, shift in ((slice(0, 3), 0), (slice(3, 7), 3)):
        inside = (feed["edges"][0] >= shift) & (feed["edges"][0] < nodes.stop)
        alone = {
            "x": feed["x"][nodes],
            "edges": feed["edges"][:, inside] - shift,
            "graph": feed["graph"][nodes] * 0,
            "slots": np.zeros(1),
        }
        parts.append(exact(made, alone))
        np.testing.assert_allclose(both["relevance_x"][nodes], parts[-1]["relevance_x"], atol=1e-12)
    for key in ("explained", "ledger"):
        np.testing.assert_allclose(both[key], sum(part[key] for part in parts), rtol=1e-12)


def test_samples_that_are_normalised_by_each_other_have_one_ledger() -> None:
    body = f"{LAYER} n, mean, var = BatchNormalization<training_mode=1>(r, scale, b, b, scale)\ny = Gemm(n, v, d)"
    weights = {k: v.astype(np.float64) for k, v in WEIGHTS.items() if k in ("w", "b", "scale", "v", "d")}
    compiled = compile_model(net("(double[N,4] x) => (double[N,3] y)", body, **weights), "lrp-0", ledger=True)
    out = exact(compiled.model, {"x": data(4, 4, dtype=np.float64)})
    assert out["ledger"].shape == (1,) and gap(out) <= 1e-12
    assert any(note.startswith(TOGETHER) for note in compiled.notes)


def test_what_reaches_no_input_is_kept() -> None:
    """All of it is in the ledger, and the user is told."""
    compiled = compile_model(net("(float[N,4] x) => (float[N,4] y)", "y = Sign(x)"), "lrp-epsilon", ledger=True)
    out = run(compiled.model, {"x": data(3, 4)})
    assert not out["relevance"].any() and any("relevance is zero" in note for note in compiled.notes)
    np.testing.assert_array_equal(out["ledger"], out["explained"])
    assert out["explained"].all()


def test_in_the_runtime_as_in_the_reference() -> None:
    for name in MODELS:
        made = [compile_model(model_of(name, double), "lrp-gamma", ledger=True).model for double in (False, True)]
        got, want = run(made[0], feed_of(name, False)), exact(made[1], feed_of(name))
        np.testing.assert_allclose(got["ledger_by_node"], want["ledger_by_node"], rtol=1e-4, atol=1e-5)


# --- one operator at a time -------------------------------------------------------------------------------------------

# x is [N,3,4], and each line makes y, with axis 0 of N. What most need stands in front.
IN_FRONT = """
    t = Transpose<perm=[1,0,2]>(x)
    last = Transpose<perm=[2,1,0]>(x)
    f = Flatten(x)
    columns = Transpose(f)
    sizes = Shape(x)
    turned = Shape(t)
    zeros = ConstantOfShape<value = int64[1] {0}>(sizes)
"""
APART = {
    "Relu": "y = Relu(x)",
    "Add": "r = Transpose<perm=[1,0,2]>(t)\ny = Add(x, r)",
    "Mul": "s = ReduceSum(x, one)\ny = Mul(x, s)",
    "Softmax": "y = Softmax<axis=1>(x)",
    "LayerNormalization": "y = LayerNormalization(x, s4)",
    "CumSum": "y = CumSum(x, i1)",
    "ReduceMean": "y = ReduceMean<keepdims=0>(x, one)",
    "Transpose": "r = Softmax<axis=0>(last)\ny = Transpose<perm=[2,1,0]>(r)",
    "Flatten": "y = Identity(f)",
    "Reshape": "k = Constant<value_ints=[0,-1]>()\ny = Reshape(x, k)",
    "Reshape, merged": "k = Constant<value_ints=[-1,4]>()\nm = Reshape(x, k)\ns = Softmax(m)\ny = Reshape(s, sizes)",
    "Reshape, time first": """
        k = Constant<value_ints=[3,-1,2]>()
        m = Reshape(t, k)
        s = Softmax<axis=0>(m)
        r = Reshape(s, turned)
        y = Transpose<perm=[1,0,2]>(r)""",
    "Squeeze": "u = Unsqueeze(x, zero)\ns = Softmax<axis=3>(u)\ny = Squeeze(s, zero)",
    "Concat": "y = Concat<axis=1>(x, x)",
    "Split": "y, z = Split<axis=2, num_outputs=2>(x)",
    "Slice": "y = Slice(x, one, two, one)",
    "Slice, all": "e = Constant<value_ints=[2147483647]>()\ny = Slice(x, zero, e, zero)",
    "Pad": "p = Constant<value_ints=[0,1,0,0,0,1]>()\ny = Pad(x, p)",
    "Tile": "k = Constant<value_ints=[1,2,1]>()\ny = Tile(x, k)",
    "Gather": "y = Gather<axis=1>(x, pair)",
    "Gather, one": "y = Gather<axis=1>(x, i1)",
    "Gather, in front": "g = Gather<axis=0>(t, pair)\ny = Transpose<perm=[1,0,2]>(g)",
    "Gather, by shapes": "n = Gather(sizes, i0)\nr = Range(i0, n, i1)\ny = Gather<axis=0>(x, r)",
    "GatherElements": "y = GatherElements<axis=1>(x, zeros)",
    "GatherND": "y = GatherND<batch_dims=1>(x, places)",
    "TopK": "y, i = TopK<axis=1>(x, two)",
    "MatMul": "y = MatMul(x, m4)",
    "MatMul, from the left": "y = MatMul(m3, x)",
    "MatMul, in a sample": "r = Transpose<perm=[0,2,1]>(x)\ny = MatMul(x, r)",
    "MatMul, by a vector": "y = MatMul(x, v4)",
    "MatMul, columns": "s = MatMul(m12, columns)\ny = Transpose(s)",
    "Gemm": "y = Gemm<transB=1>(f, m12)",
    "Gemm, transposed": "y = Gemm<transA=1>(columns, m12)",
    "Gemm, columns": "s = Gemm<transB=1>(m12, f)\ny = Transpose(s)",
    "Einsum": 'y = Einsum<equation="nij,jk->nik">(x, m4)',
    "Einsum, in a sample": 'y = Einsum<equation="nij,nkj->nik">(x, x)',
    "Conv": "y = Conv(x, k3)",
    "InstanceNormalization": "y = InstanceNormalization(x, s3, s3)",
    "Trilu": "y = Trilu(x)",
}
MEETING = {
    "Add": "s = ReduceMax(x)\ny = Add(x, s)",
    "Mul": "s = ReduceSum(x, zero)\ny = Mul(x, s)",
    "Softmax": "y = Softmax<axis=0>(x)",
    "LayerNormalization": "y = LayerNormalization<axis=0>(x, s4)",
    "CumSum": "y = CumSum(x, i0)",
    "ReduceMean": "m = ReduceMean<keepdims=0>(x, zero)\ny = Mul(x, m)",
    "Transpose": "r = Softmax<axis=2>(last)\ny = Transpose<perm=[2,1,0]>(r)",
    "Flatten": "g = Flatten<axis=0>(x)\ns = Softmax(g)\ny = Reshape(s, sizes)",
    "Reshape": "k = Constant<value_ints=[3,-1]>()\nm = Reshape(x, k)\ns = Softmax(m)\ny = Reshape(s, sizes)",
    "Squeeze": "u = Unsqueeze(x, zero)\ns = Softmax<axis=1>(u)\ny = Squeeze(s, zero)",
    "Concat": "c = Concat<axis=0>(x, x)\ne = Constant<value_ints=[3]>()\ny = Slice(c, one, e, zero)",
    "Slice": "a = Constant<value_ints=[-1]>()\ne = Constant<value_ints=[-9]>()\ny = Slice(x, a, e, zero, a)",
    "Gather": "y = Gather<axis=0>(x, back)",
    "GatherElements": "y = GatherElements<axis=0>(x, zeros)",
    "GatherND": "y = GatherND(x, swapped)",
    "TopK": "y, i = TopK<axis=0>(x, two)",
    "MatMul": "s = MatMul(m2, t)\ny = Transpose<perm=[1,0,2]>(s)",
    "MatMul, each by each": "y = MatMul(f, columns)",
    "Gemm": "y = Gemm(m2, f)",
    "Einsum": 'y = Einsum<equation="nij,mn->mij">(x, m2)',
    "Einsum, each by each": 'y = Einsum<equation="nij,mij->nm">(x, x)',
    "Conv": "c = Conv(t, k2)\ny = Transpose<perm=[1,0,2]>(c)",
}
FIXED = {"Concat", "Gather", "GatherND", "TopK", "MatMul", "Gemm", "Einsum", "Conv"}  # need to know that N is 2
CONSTANTS = {
    "zero": np.asarray([0]), "one": np.asarray([1]), "two": np.asarray([2]), "i0": np.asarray(0), "i1": np.asarray(1),
    "pair": np.asarray([2, 0]), "back": np.asarray([1, 0]), "places": np.asarray([[1, 2], [0, 3]]),
    "swapped": np.asarray([[1], [0]]), "s4": data(4, seed=1), "s3": data(3, seed=1), "v4": data(4), "m2": data(2, 2),
    "m3": data(3, 3), "m4": data(4, 4), "m12": data(12, 12), "k3": data(5, 3, 2), "k2": data(2, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "apart"), [*((name, True) for name in APART), *((name, False) for name in MEETING)],
    ids=lambda v: {True: "apart", False: "meeting"}.get(v, v),
)  # fmt: skip
def test_an_operator(name: str, apart: bool) -> None:
    """What is said of samples is what is seen when one of them is moved."""
    body = IN_FRONT + (APART if apart else MEETING)[name]
    batch = "2" if (name in FIXED and not apart) or name == "GatherND" else "N"
    signature = f"(double[{batch},3,4] x) => (double[{batch},K] out)"
    model = net(signature, f"{body}\nout = Flatten(y)", **named_in(body, CONSTANTS))
    x = data(2, 3, 4, dtype=np.float64)
    before, seen = exact(model, {"x": x})["out"], []
    for i in range(2):
        moved = x.copy()
        moved[i] += data(3, 4, seed=9, dtype=np.float64)
        seen.append(np.array_equal(before[1 - i], exact(model, {"x": moved})["out"][1 - i]))
    assert all(seen) == apart, "the case itself"
    compiled = compile_model(model, "lrp-0", explain_reduce="sum", ledger=True)
    assert any(note.startswith(TOGETHER) for note in compiled.notes) != apart, compiled.notes
    out = exact(compiled.model, {"x": x})
    assert out["ledger"].shape == (2 if apart else 1,)
    assert gap(out) <= 1e-12
