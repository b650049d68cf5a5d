"""Lists of tensors: what exporters write for chunk, unbind, stack and loops over lists, against central differences.

Each model gives a scalar `s`, the sum of the squares of `y`.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import xaicompile
from tests.cases.build import central_difference, relative_error
from tests.graphs import data, net, run
from tests.reference_ops import evaluator
from xaicompile.checks import check
from xaicompile.errors import UnsupportedError
from xaicompile.passes.sequences import SEQUENCES

X = "float[N,6,4] x"
INTEGERS = {f"i{n}": np.asarray(n) for n in range(5)} | {"last": np.asarray(-1), "ones": np.asarray([1, 2, 3])}
INTEGERS["first"] = np.asarray([1])

CASES = {
    "chunks": (X, "q = SplitToSequence<axis=1>(x, i2)\na = SequenceAt(q, i0)\nb = SequenceAt(q, last)\ny = Mul(a, b)"),
    "chunks, the last is smaller": (X, "q = SplitToSequence<axis=1>(x, i4)\na = SequenceAt(q, i1)\nt = Sin(a)\n"
                                       "p = SequenceInsert(q, t, i0)\ny = ConcatFromSequence<axis=1>(p)"),
    "parts of given sizes": (X, "q = SplitToSequence<axis=1>(x, ones)\na = SequenceAt(q, i1)\nb = SequenceAt(q, i2)\n"
                                "y = Concat<axis=1>(a, b)"),
    "rows": (X, "q = SplitToSequence<axis=1, keepdims=0>(x)\na = SequenceAt(q, i3)\nb = SequenceAt(q, last)\n"
                "y = Mul(a, b)"),
    "rows that keep their axis": (X, "q = SplitToSequence<axis=2>(x)\na = SequenceAt(q, i3)\ny = Sin(a)"),
    "chunks of what has no known size": ("float[N,M,4] x", "q = SplitToSequence<axis=1>(x, i2)\na = SequenceAt(q, i1)\n"
                                                          "b = SequenceAt(q, i2)\ny = Mul(a, b)"),
    "rows of what has no known size": ("float[N,M,4] x", "q = SplitToSequence<axis=1, keepdims=0>(x)\n"
                                                        "a = SequenceAt(q, i1)\ny = Sin(a)"),
    "a list": (X, "t = Sin(x)\nq = SequenceConstruct(x, t, x)\n"
                  "p = SequenceErase(q)\nz = ConcatFromSequence<axis=2>(p)\n"
                  "w = ConcatFromSequence<axis=1, new_axis=1>(q)\nu = ReduceSum<keepdims=0>(w)\ny = Mul(z, u)"),
    "a list that grows": (X, "e = SequenceEmpty()\nt = Sin(x)\n"
                             "p = SequenceInsert(e, t)\nq = SequenceInsert(p, x, last)\n"
                             "n = SequenceLength(q)\nf = CastLike(n, x)\nz = ConcatFromSequence<axis=-1>(q)\n"
                             "y = Mul(z, f)"),
    "erased by position": (X, "t = Sin(x)\n"
                              "q = SequenceConstruct(x, t)\np = SequenceErase(q, i0)\na = SequenceAt(p, i0)\n"
                              "y = Mul(a, x)"),
    "a list mapped": (X, "t = Sin(x)\nq = SequenceConstruct(x, t)\nr = SequenceMap(q, t) <body = g (float[N,6,4] u, "
                         "float[N,6,4] v) => (float[N,6,4] w) { k = Mul(u, v)\n w = Add(k, v) }>\n"
                         "a = SequenceAt(r, i0)\nb = SequenceAt(r, i1)\ny = Mul(a, b)"),
    "what may be missing": (X, "o = Optional(x)\nh = OptionalHasElement(o)\nt = OptionalGetElement(o)\n"
                               "y = If(h) <then_branch = g () => (float[N,6,4] a) { a = Sin(t) }, "
                               "else_branch = k () => (float[N,6,4] b) { b = Neg(x) }>"),
    "a list that may be missing": (X, "q = SequenceConstruct(x, x)\no = Optional(q)\nt = OptionalGetElement(o)\n"
                                      "a = SequenceAt(t, i1)\ny = Sin(a)"),
    "a list of each step's, stacked": (X, """
        e = SequenceEmpty()
        h0 = ReduceSum<keepdims=0>(x, first)
        q, h = Loop (i3, , e, h0) <body = step (int64 i, bool c, seq(float[N,4]) v, float[N,4] h1)
                                          => (bool c2, seq(float[N,4]) v2, float[N,4] h2) {
            c2 = Identity(c)
            r = Gather<axis=1>(x, i)
            t = Mul(r, h1)
            h2 = Sin(t)
            v2 = SequenceInsert(v, h2)
        }>
        a = ConcatFromSequence<axis=1, new_axis=1>(q)
        b = SequenceAt(q, last)
        d = Unsqueeze(b, first)
        g = Mul(a, d)
        f = Unsqueeze(h, first)
        y = Add(g, f)"""),
    "a list of each step's, side by side": (X, """
        e = SequenceEmpty()
        q = Loop (i3, , e) <body = step (int64 i, bool c, seq(float[N,4]) v) => (bool c2, seq(float[N,4]) v2) {
            c2 = Identity(c)
            r = Gather<axis=1>(x, i)
            h = Sin(r)
            v2 = SequenceInsert(v, h)
        }>
        y = ConcatFromSequence<axis=-1>(q)"""),
    "in a branch": (f"{X}, bool flag", """
        y = If(flag) <
            then_branch = yes () => (float[N,6,4] a) {
                q = SplitToSequence<axis=1>(x, i3)
                b = SequenceAt(q, i1)
                c = SequenceAt(q, i0)
                p = SequenceConstruct(b, c)
                d = ConcatFromSequence<axis=1>(p)
                a = Mul(d, x)
            },
            else_branch = no () => (float[N,6,4] e) { e = Neg(x) }
        >"""),
}  # fmt: skip


EVALUATOR_FAILS = {"what may be missing", "a list that may be missing"}  # both are sin(x)


def model_of(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """In float64 for the evaluator, and in float32 for the runtime."""
    signature, body = CASES[name]
    body += "\nz2 = Mul(y, y)\ns = ReduceSum<keepdims=0>(z2)"
    made = []
    for kind in ("double", "float"):
        text = f"({signature}) => (float s) {{ {body} }}".replace("float", kind)
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> net {text}')
        if "SequenceEmpty" in body and kind == "double":
            empty = next(n for n in model.graph.node if n.op_type == "SequenceEmpty")
            empty.attribute.append(helper.make_attribute("dtype", onnx.TensorProto.DOUBLE))
        used = {k: v for k, v in INTEGERS.items() if k in body}
        model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in used.items())
        made.append(model)
    return made[0], made[1]


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    exact, single = model_of(name)
    feed: dict[str, np.ndarray] = {"x": data(2, 6, 4).astype(np.float64)}
    if "flag" in CASES[name][0]:
        feed["flag"] = np.asarray(True)
    want = np.sin(2 * feed["x"]) if name in EVALUATOR_FAILS else central_difference(exact, feed, "s", ["x"])["x"]
    options = {"explain_output": "s", "explain_reduce": "sum", "explain_input": "x"}
    emitted = xaicompile.compile(exact, "gradient", **options)  # type: ignore[arg-type]
    if name not in EVALUATOR_FAILS:
        assert relative_error(evaluator(emitted).run(["relevance"], feed)[0], want) <= 1e-6
    new = emitted.graph.node[len(exact.graph.node) :]
    assert not {n.op_type for n in new} & SEQUENCES
    low = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in feed.items()}
    for rule in ("gradient", "lrp-0"):
        emitted = xaicompile.compile(single, rule, ledger=rule == "lrp-0", **options)  # type: ignore[arg-type]
        assert check(emitted, single, inputs=low).passed
        if rule == "gradient":
            assert relative_error(run(emitted, low)["relevance"], want) <= 2e-5


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_chunks_of_any_size(batch: int) -> None:
    """The same file at other sizes."""
    emitted = xaicompile.compile(model_of("chunks of what has no known size")[1], "gradient", explain_output="s",
                                 explain_reduce="sum")  # fmt: skip
    x = data(batch, 7, 4)
    want = np.zeros_like(x)
    product = x[:, 2:4] * x[:, 4:6]
    want[:, 2:4], want[:, 4:6] = 2 * product * x[:, 4:6], 2 * product * x[:, 2:4]
    np.testing.assert_allclose(run(emitted, {"x": x})["relevance"], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("q = SplitToSequence<axis=1>(x, two)\ny = SequenceAt(q, where)", "SequenceAt"),
        ("q = SplitToSequence<axis=1>(x, two)\ny = ConcatFromSequence<axis=1>(q)", "ConcatFromSequence"),
        ("q = SplitToSequence<axis=1>(x, two)\ny = SequenceAt(q, last)", "SequenceAt"),
        ("q = SplitToSequence<axis=1, keepdims=0>(x, two)\ny = SequenceAt(q, where)", "SplitToSequence"),
    ],
)
def test_what_only_a_run_tells_is_refused(body: str, op: str) -> None:
    signature = "(float[N,M,4] x, int64 where) => (float[N,K,4] y)"
    model = net(signature, body, two=np.asarray(2), last=np.asarray(-1))
    with pytest.raises(UnsupportedError, match=rf"no rule for .*{op} '.*' \(no rule\)"):
        xaicompile.compile(model, explain_output="y", explain_reduce="sum")
