"""Relevance that travels as R, no multiple of a value, where it arrives at each kind of op (design of `Relevance`).

A flat or w-square rule sits above the op. What must come out is worked out by hand: R where the op hands its input on,
nothing where it is saturated or 0, and whatever does not go on stands in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from xaicompile.compiler import compile_model

D, K = 6, 3
X = np.array([[-4.0, -1.0, 0.0, -0.5, 1.0, 7.0], [2.0, 0.0, -0.25, 8.0, 6.0, 0.75], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
ZERO, SIX = np.array(0.0), np.array(6.0)
TOP = {"flat": lambda w: np.full_like(w, 1.0 / D), "w-square": lambda w: w**2 / (w**2).sum(0)}
WEIGHT = weight(D, K, dtype=np.float64) + 0.1

Passes = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Op:
    """One op (or a few) from x [N, D] to a [N, D].

    Attributes:
        passes: From x and the relevance at a to that at x.
    """

    body: str
    passes: Passes
    weights: Arrays = field(default_factory=dict)
    rule: str = "default"


def where(holds: Callable[[np.ndarray], np.ndarray]) -> Passes:
    """All of the relevance where something holds of x, else none."""
    return lambda x, r: np.where(holds(x), r, 0.0)


def whole(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """All of it."""
    return r


def to_winners(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Windows of two, of which the output holds the larger one twice."""
    pairs = x.reshape(len(x), -1, 2)
    first = np.eye(2)[pairs.argmax(2)]
    return (r.reshape(pairs.shape).sum(2, keepdims=True) * first).reshape(x.shape)


def nonzero(x: np.ndarray) -> np.ndarray:
    return np.not_equal(x, 0)


HALF = np.where(np.arange(D) < 3, 1.0, 0.0)
OPS = {
    "Clip": Op("a = Clip(x, zero, six)", where(lambda x: (x >= 0) & (x <= 6)), {"zero": ZERO, "six": SIX}),
    "Clip from below": Op("a = Clip(x, low)", where(lambda x: x >= -1), {"low": np.array(-1.0)}),
    "Clip from above": Op("a = Clip(x, , high)", where(lambda x: x <= 1), {"high": np.array(1.0)}),
    "Clip at data": Op(
        "l = Mul(x, none)\nh = Add(l, six)\nm = ReduceMin<keepdims = 0>(l)\nn = ReduceMax<keepdims = 0>(h)\n"
        "a = Clip(x, m, n)",
        where(lambda x: (x >= 0) & (x <= 6)), {"six": SIX, "none": ZERO},
    ),
    "Clip, gradient": Op(
        "a = Clip(x, zero, six)", where(lambda x: (x >= 0) & (x <= 6)), {"zero": ZERO, "six": SIX}, "gradient"
    ),
    "Clip, pass": Op("a = Clip(x, zero, six)", whole, {"zero": ZERO, "six": SIX}, "pass"),
    "Clip, identity": Op("a = Clip(x, zero, six)", where(lambda x: x > 0), {"zero": ZERO, "six": SIX}, "identity"),
    "Clip, stop": Op("a = Clip(x, zero, six)", where(lambda x: x > np.inf), {"zero": ZERO, "six": SIX}, "stop"),
    "Max and Min": Op(
        "m = Max(x, zero)\na = Min(m, six)", where(lambda x: (x >= 0) & (x <= 6)), {"zero": ZERO, "six": SIX}
    ),
    "Relu": Op("a = Relu(x)", where(lambda x: x > 0)),
    "Relu, pass": Op("a = Relu(x)", whole, {}, "pass"),
    "HardSwish": Op("a = HardSwish(x)", where(lambda x: (x > -3) & (x != 0))),
    "LeakyRelu": Op("a = LeakyRelu(x)", where(nonzero)),
    "Tanh": Op("a = Tanh(x)", where(nonzero)),
    "MaxPool": Op(
        "r = Reshape(x, rows)\np = MaxPool<kernel_shape = [2], strides = [2]>(r)\n"
        "q = Concat<axis = 1>(p, p)\nt = Transpose<perm = [0, 2, 1]>(q)\na = Reshape(t, back)",
        to_winners, {"rows": np.array([-1, 1, D]), "back": np.array([-1, D])},
    ),
    "Add of a constant": Op("a = Add(x, k)", whole, {"k": np.array([4.0, 1.0, 0.5, -0.5, -1.0, 0.0])}),
    "Add of a constant, stop": Op("a = Add(x, k)", where(lambda x: x > np.inf), {"k": SIX}, "stop"),
    "Add of data": Op("h = Mul(x, two)\na = Add(x, h)", where(nonzero), {"two": np.array(2.0)}),
    "Sub from a constant": Op("a = Sub(six, x)", whole, {"six": SIX}),
    "Mul by a constant": Op("a = Mul(x, k)", whole, {"k": HALF}),
    "Mul of data": Op("h = Mul(x, two)\na = Mul(x, h)", where(nonzero), {"two": np.array(2.0)}),
    "Mul by a gate": Op("g = Sigmoid(x)\na = Mul(x, g)", where(nonzero)),
    "Concat with a constant": Op(
        "h = Slice(x, start, end, axis)\na = Concat<axis = 1>(h, k)", lambda x, r: r * HALF,
        {"start": np.array([0]), "end": np.array([3]), "axis": np.array([1]), "k": np.ones((3, 3))},
    ),
    "Concat": Op(
        "h, l = Split<axis = 1, num_outputs = 2>(x)\na = Concat<axis = 1>(l, h)", lambda x, r: np.roll(r, 3, axis=1)
    ),
    "Pad": Op(
        "h = Slice(x, start, end, axis)\na = Pad(h, amounts, value)", lambda x, r: r * HALF,
        {"start": np.array([0]), "end": np.array([3]), "axis": np.array([1]), "amounts": np.array([0, 0, 0, 3]),
         "value": np.array(2.0)},
    ),
    "Trilu": Op("a = Trilu<upper = 0>(x)", lambda x, r: np.tril(r)),
    "Reshape, stop": Op("a = Reshape(x, same)", where(lambda x: x > np.inf), {"same": np.array([-1, D])}, "stop"),
    "a constant over data": Op(
        "h = Add(x, k)\na = Div(six, h)", lambda x, r: -r * x / (x + 9), {"k": np.array(9.0), "six": SIX}
    ),
    "Dropout in training": Op(
        "a = Dropout(x, ratio, yes)", where(nonzero), {"ratio": np.array(0.0), "yes": np.array(True)}
    ),
}  # fmt: skip


def rules_in(folder: Path, top: str, rule: str, below: str = "default") -> Path:
    """A rule set with a rule that makes R on the layer `top` alone."""
    path = folder / "as-r.toml"
    entries = [
        ('{ name = "top" }', top, "epsilon = 0.0"),
        ('{ name = "node" }', rule, ""),
        ('{ kind = "linear" }', below, ""),
    ]
    text = "\n".join(f'[[rules]]\nmatch = {m}\nrule = "{r}"\n{more}' for m, r, more in entries)
    path.write_text(f'name = "as-r"\n{text}\n[[rules]]\nrule = "default"\n')
    return path


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The maker of a is `node`, that of y `top`."""
    for made in model.graph.node:
        made.name = {"a": "node", "y": "top"}.get(made.output[0], "") or f"n_{made.output[0]}"
    return model


def closed(found: Arrays, tolerance: float = 1e-12) -> None:
    """sum(R) + ledger = explained."""
    sums = found["relevance"].reshape(len(found["explained"]), -1).sum(1)
    np.testing.assert_allclose(sums + found["ledger"], found["explained"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("top", list(TOP))
@pytest.mark.parametrize("name", list(OPS))
def test_by_hand(tmp_path: Path, name: str, top: str) -> None:
    op = OPS[name]
    text = f"{op.body}\ny = MatMul(a, w)"
    model = named(net(f"(double[3,{D}] x) => (double[3,{K}] y)", text, **op.weights, w=WEIGHT))
    made = compile_model(model, rules_in(tmp_path, top, op.rule), target=1, ledger=True).model
    found = exact(made, {"x": X})
    arrived = found["y"][:, 1:2] * TOP[top](WEIGHT)[:, 1]
    np.testing.assert_allclose(found["relevance"], op.passes(X, arrived), rtol=1e-12, atol=1e-14)
    closed(found)


IMAGES = {
    "Relu": "a = Relu(z)",
    "Clip": "a = Clip(z, zero, six)",
    "Clip at -1": "a = Clip(z, low, six)",
    "LeakyRelu": "a = LeakyRelu(z)",
    "HardSwish": "a = HardSwish(z)",
    "MaxPool": "r = Clip(z, zero, six)\na = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)",
    "Add": "r = Clip(z, zero, six)\nu = Conv(x, w2)\na = Add(r, u)",
    "Concat": "r = Clip(z, zero, six)\nu = Relu(z)\nj = Concat<axis = 1>(u, r)\n"
    "h, a = Split<axis = 1, num_outputs = 2>(j)",
    "Mul": "r = Clip(z, zero, six)\ng = Sigmoid(z)\na = Mul(r, g)",
}


SEVERAL = ("MaxPool", "Add", "Concat", "Mul")  # of several inputs, or another shape


def image_net(body: str) -> onnx.ModelProto:
    """Conv, the op under test, Conv."""
    arrays = {"w1": weight(4, 2, 3, 3) * 4, "b1": np.array([0.2, -0.1, -60.0, 9.0]), "w2": weight(4, 2, 1, 1, seed=2)}
    arrays |= {"w3": weight(3, 4, 3, 3), "zero": ZERO, "six": np.array(3.0), "low": np.array(-1.0)}
    text = f"z = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)\n{body}\ny = Conv(a, w3)"
    signature = "(double[N,2,5,5] x) => (double[N,3,3,3] y)"
    return named(net(signature, text, **{k: v.astype(np.float64) for k, v in arrays.items()}))


@pytest.mark.parametrize("below", ["default", "epsilon", "gamma", "z-plus", "flat", "w-square"])
@pytest.mark.parametrize(
    ("name", "rule"),
    [(n, r) for n in IMAGES for r in ("default", "gradient", "pass") if r != "pass" or n not in SEVERAL],
)
def test_the_ledger_closes_above_a_convolution(tmp_path: Path, name: str, rule: str, below: str) -> None:
    """One channel of z is below 0 nearly everywhere, one above the Clip; rules below trust that a unit was off."""
    rules = rules_in(tmp_path, "flat", rule, below)
    made = compile_model(image_net(IMAGES[name]), rules, explain_reduce="sum", ledger=True).model
    found = exact(made, {"x": np.concatenate([data(2, 2, 5, 5, dtype=np.float64), np.zeros((1, 2, 5, 5))])})
    assert np.isfinite(found["relevance"]).all()
    closed(found, 1e-9)


@pytest.mark.parametrize("body", ["a = Mish(x)", "a = Gelu(x)", "a = Relu(x)", "g = Sigmoid(x)\na = Mul(x, g)"])
def test_next_to_zero_relevance_stays_finite(tmp_path: Path, body: str) -> None:
    """R over a value that is next to nothing is infinite: there it ends, as at 0."""
    model = named(
        net("(float[N,6] x) => (float[N,3] y)", f"{body}\ny = MatMul(a, w)", opset=20, w=np.ones((6, 3), "f"))
    )
    made = compile_model(model, rules_in(tmp_path, "flat", "default"), target=1, ledger=True).model
    found = run(made, {"x": np.array([[-100, -95, -90, -88, 3, 2], [-13, 1e-39, 1e-44, 0, 9, 1e-40]], np.float32)})
    assert all(np.isfinite(t).all() for t in found.values())
    closed(found, 1e-4)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("Relu", "pass"), ("Clip", "default"), ("Clip", "pass"), ("MaxPool", "default")],
)
def test_nothing_reads_what_a_runtime_fuses(tmp_path: Path, name: str, rule: str) -> None:
    """R that passes an activation becomes a cotangent of a convolution without reading what lies between the two."""
    model = image_net(IMAGES[name])
    made = compile_model(model, rules_in(tmp_path, "flat", rule, "gamma"), explain_reduce="sum", ledger=True).model
    before, after = ([n.name for n in m.graph.node if "z" in n.input] for m in (model, made))
    assert before == after


LOOPS = {
    "Loop": """
  h = Loop (n, yes, x) <body = steps (int64 i, bool c, double[N,4] s) => (bool d, double[N,4] o) {
    d = Identity(c)
    z = MatMul(s, w)
    o = Clip(z, zero, top)
  }>""",
    "Scan": """
  g = Unsqueeze(x, first)
  xs = Concat<axis = 0>(g, g)
  h = Scan<num_scan_inputs = 1, body = steps (double[N,4] s, double[N,4] t) => (double[N,4] o) {
    q = MatMul(s, w)
    a = Add(q, t)
    o = Clip(a, zero, top)
  }>(x, xs)""",
    "If": """
  q = ReduceSum<keepdims = 0>(x)
  u = Greater(q, big)
  h = If (u) <then_branch = yes () => (double[N,4] o) {
    r = Clip(x, zero, top)
    o = MatMul(r, w)
  }, else_branch = no () => (double[N,4] o2) {
    r2 = Clip(x, zero, top)
    p2 = MatMul(r2, w)
    o2 = Relu(p2)
  }>""",
}


@pytest.mark.parametrize("name", list(LOOPS))
def test_the_ledger_closes_through_subgraphs(tmp_path: Path, name: str) -> None:
    """Relevance of a state that is 0 has no way to the step before: it stands in the ledger."""
    text = f"(double[N,4] x) => (double[N,2] y) {{{LOOPS[name]}\n  y = MatMul(h, v)\n}}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> net {text}')
    arrays = {"w": weight(4, 4, dtype=np.float64), "v": weight(4, 2, dtype=np.float64), "n": np.array(2)}
    arrays |= {"yes": np.array(True), "zero": ZERO, "top": np.array(0.4), "big": np.array(9.0), "first": np.array([0])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in arrays.items())
    path = tmp_path / "all-flat.toml"
    entries = '[[rules]]\nmatch = { kind = "linear" }\nrule = "flat"\nepsilon = 0.0\n[[rules]]\nrule = "default"\n'
    path.write_text(f'name = "all-flat"\n{entries}')
    found = exact(compile_model(model, path, ledger=True).model, {"x": data(3, 4, dtype=np.float64)})
    closed({key: value.sum(keepdims=True).reshape(1) for key, value in found.items()})
