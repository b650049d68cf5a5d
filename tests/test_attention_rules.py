"""AttnLRP and CP-LRP on a small attention block, against relevance propagated by hand in numpy, in float64.

The oracle works on relevance itself, layer by layer, as the papers state the rules (Achtibat et al. 2024, Ali et al.
2022); xaicompile works on cotangents. Stabilisers are 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import exact, net
from xaicompile import registry
from xaicompile.compiler import compile_model
from xaicompile.relevance import product
from xaicompile.relevance.default import as_it_is

Array = np.ndarray
N, T, E, HEADS, SIZE, HIDDEN, K = 2, 5, 6, 2, 3, 7, 4
EPSILON = 2.0**-10  # a float32, as attributes are
METHODS = ("attnlrp", "cp-lrp")
MASK = np.where(np.tril(np.ones((T, T))) > 0, 0.0, -np.inf)


def weights(biased: bool) -> dict[str, Array]:
    """Weights by name; b... are biases, of zeros if they shall not be there."""
    rng = np.random.default_rng(3)
    sizes = {"wq": (E, E), "wk": (E, E), "wv": (E, E), "wo": (E, E), "wg": (E, HIDDEN), "wu": (E, HIDDEN)}
    sizes |= {"wd": (HIDDEN, E), "wy": (E, K), "bq": (E,), "bk": (E,), "bv": (E,), "bo": (E,), "bd": (E,), "bn": (E,)}
    found = {name: rng.standard_normal(size) * 0.7 for name, size in sizes.items()}
    found |= {"sn": rng.uniform(0.5, 1.5, E), "sr": rng.uniform(0.5, 1.5, E)}
    return found if biased else {k: v * 0 if k.startswith("b") else v for k, v in found.items()}


ATTENTION = {
    "matmul": """
        d = MatMul(q, kt)  e = Mul(d, scale)  m = Add(e, mask)  p = Softmax<axis = -1>(m)  o = MatMul(p, v)""",
    "einsum": """
        d = Einsum<equation = "bhid,bhdj->bhij">(q, kt)  e = Mul(d, scale)  m = Add(e, mask)
        p = Softmax<axis = -1>(m)  o = Einsum<equation = "bhij,bhjd->bhid">(p, v)""",
    "scaled and masked elsewhere": """
        qs = Mul(q, root)  ks = Div(kt, over)  d = MatMul(qs, ks)  m = Where(seen, d, low)  s = Softmax<axis = -1>(m)
        nan = IsNaN(s)  c = Where(nan, zero, s)  half = Mul(c, two)  p = Div(half, two)  o = MatMul(p, v)""",
    "one op": """
        kn = Transpose<perm = [0, 1, 3, 2]>(kt)  o = Attention<is_causal = 1>(q, kn, v)""",
}
GATED = {
    "swish": "gs = Sigmoid(g)  a = Mul(g, gs)",
    "quick gelu": "ga = Mul(g, alpha)  gs = Sigmoid(ga)  a = Mul(g, gs)",
    "relu": "a = Relu(g)",
    "gelu": "gd = Div(g, rt2)  ge = Erf(gd)  gp = Add(ge, one)  gm = Mul(g, gp)  a = Mul(gm, half_)",
}
RMS = {
    "reciprocal": "inv = Reciprocal(rt)  rn = Mul(h2, inv)  r = Mul(rn, sr)",
    "one over": "inv = Div(one, rt)  rn = Mul(inv, h2)  r = Mul(rn, sr)",
    "division": "rn = Div(h2, rt)  r = Mul(rn, sr)",
    "scaled inverse": "inv = Reciprocal(rt)  si = Mul(sr, inv)  r = Mul(h2, si)",
}


def block(biased: bool, attention: str = "matmul", gated: str = "swish", rms: str = "reciprocal") -> onnx.ModelProto:
    """Attention with a causal mask, LayerNormalization, a gated MLP and RMSNormalization; the last token is read."""
    heads = "".join(
        f"{t}0 = MatMul(x, w{t})  {t}1 = Add({t}0, b{t})  {t}2 = Reshape({t}1, apart)  "
        f"{'kt' if t == 'k' else t} = Transpose<perm = [0, 2, {'3, 1' if t == 'k' else '1, 3'}]>({t}2)\n"
        for t in "qkv"
    )
    body = f"""{heads}
        {ATTENTION[attention]}
        o1 = Transpose<perm = [0, 2, 1, 3]>(o)  o2 = Reshape(o1, merged)  o3 = MatMul(o2, wo)  o4 = Add(o3, bo)
        h = Add(x, o4)  n = LayerNormalization<epsilon = {EPSILON}>(h, sn, bn)
        g = MatMul(n, wg)  u = MatMul(n, wu)  {GATED[gated]}  z = Mul(a, u)
        d1 = MatMul(z, wd)  d2 = Add(d1, bd)  h2 = Add(h, d2)
        sq = Mul(h2, h2)  ms = ReduceMean(sq, last)  me = Add(ms, eps)  rt = Sqrt(me)  {RMS[rms]}
        t = Gather<axis = 1>(r, index)  y = MatMul(t, wy)"""
    constants: dict[str, Any] = {
        "apart": np.array([0, 0, HEADS, SIZE]), "merged": np.array([0, 0, E]), "scale": SIZE**-0.5, "mask": MASK,
        "root": SIZE**0.25, "over": SIZE**0.75, "seen": MASK == 0, "low": -np.inf, "zero": 0.0, "two": 2.0,
        "last": np.array([-1]), "eps": EPSILON, "index": np.array(T - 1), "one": 1.0, "rt2": 2**0.5, "half_": 0.5,
        "alpha": 1.702,
    }  # fmt: skip
    given = {k: np.asarray(v) for k, v in (constants | weights(biased)).items()}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    lines = body.replace(")  ", ")\n")
    opset = 23 if attention == "one op" else 20
    signature = f"(double[N, {T}, {E}] x) => (double[N, {K}] y)"
    return net(signature, lines, opset=opset, ir=10, **{k: v for k, v in given.items() if k in words})


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def erf(x: Array) -> Array:
    from math import erf as one

    return np.vectorize(one)(x)


ACTIVE: dict[str, Callable[[Array], Array]] = {
    "swish": lambda g: g * sigmoid(g),
    "quick gelu": lambda g: g * sigmoid(1.702 * g),
    "relu": lambda g: np.maximum(g, 0),
    "gelu": lambda g: g * (1 + erf(g / np.sqrt(2))) / 2,
}


def share(a: Array, w: Array, z: Array, r: Array) -> Array:
    """Of a linear layer z = a w + b: a_j sum_k w_jk R_k / z_k; the bias keeps its part."""
    return a * ((r / z) @ np.swapaxes(w, -1, -2))


def in_heads(t: Array) -> Array:
    return t.reshape(len(t), T, HEADS, SIZE).swapaxes(1, 2)


def merged(t: Array) -> Array:
    return t.swapaxes(1, 2).reshape(len(t), T, E)


def by_hand(x: Array, w: dict[str, Array], method: str, gated: str = "swish") -> tuple[Array, Array]:
    """Prediction, and relevance of its largest value, per token and feature."""
    cp = method == "cp-lrp"
    q1, k1, v1 = (x @ w[f"w{t}"] + w[f"b{t}"] for t in "qkv")
    q, k, v = (in_heads(t) for t in (q1, k1, v1))
    scores = q @ k.swapaxes(-1, -2) * SIZE**-0.5
    m = scores + MASK
    p = np.exp(m) / np.exp(m).sum(-1, keepdims=True)
    o = p @ v
    o4 = merged(o) @ w["wo"] + w["bo"]
    h = x + o4
    deviation = np.sqrt(h.var(-1, keepdims=True) + EPSILON)
    n = (h - h.mean(-1, keepdims=True)) / deviation * w["sn"] + w["bn"]
    g, u = n @ w["wg"], n @ w["wu"]
    a = ACTIVE[gated](g)
    z = a * u
    d2 = z @ w["wd"] + w["bd"]
    h2 = h + d2
    root = np.sqrt((h2 * h2).mean(-1, keepdims=True) + EPSILON)
    top = (h2 / root * w["sr"])[:, -1]
    y = top @ w["wy"]

    best = np.eye(K)[y.argmax(1)]
    r_h2 = np.zeros_like(h2)
    r_h2[:, -1] = share(top, w["wy"], y, y * best)  # RMSNormalization hands on what it gets
    r_d2, r_h = r_h2 * d2 / h2, r_h2 * h / h2
    r_z = share(z, w["wd"], d2, r_d2)
    r_u, r_g = (r_z, 0 * r_z) if cp else (r_z / 2, r_z / 2)  # an activation hands on what it gets
    r_n = share(n, w["wu"], u, r_u) + share(n, w["wg"], g, r_g)
    c = r_n / n * w["sn"] / deviation
    r_h = r_h + h * (c - c.mean(-1, keepdims=True))
    r_x, r_o4 = r_h * x / h, r_h * o4 / h
    r_o = in_heads(share(merged(o), w["wo"], o4, r_o4))
    s = r_o / o if cp else r_o / (2 * o)
    r_v = v * (p.swapaxes(-1, -2) @ s)
    r_p = 0 * p if cp else p * (s @ v.swapaxes(-1, -2))
    r_m = np.where(np.isfinite(m), m, 0) * (r_p - p * r_p.sum(-1, keepdims=True))
    s = r_m / (2 * scores)
    r_q, r_k = q * (s @ k) * SIZE**-0.5, k * (s.swapaxes(-1, -2) @ q) * SIZE**-0.5
    for t, one, r in (("q", q1, r_q), ("k", k1, r_k), ("v", v1, r_v)):
        r_x = r_x + share(x, w[f"w{t}"], one, merged(r))
    return y, r_x


def data() -> Array:
    return np.random.default_rng(8).standard_normal((N, T, E))


def explained(
    model: onnx.ModelProto, rule: str, x: Array, bound: float = 1e-9
) -> tuple[dict[str, Array], dict[str, float]]:
    """What an emitted model gives, and what the nodes of each op absorb at most, by op."""
    compiled = compile_model(model, rule, parameters={"epsilon": 0.0}, ledger=True)
    with np.errstate(invalid="ignore"):  # 0 times a mask's infinity, which the ledger leaves out
        out = exact(compiled.model, {"x": x})
    nodes = json.loads({p.key: p.value for p in compiled.model.metadata_props}["xaicompile.ledger_nodes"])
    total = out["relevance"].reshape(len(x), -1).sum(1) + out["ledger"]
    np.testing.assert_allclose(total, out["explained"], rtol=bound, atol=bound)
    ops, absorbed = {a.node: a.op for a in compiled.assignments}, dict[str, float]()
    for node, amounts in zip(nodes, out["ledger_by_node"].T, strict=True):
        if node != "none":
            absorbed[ops[node]] = max(absorbed.get(ops[node], 0.0), float(np.abs(amounts).max()))
    return out, absorbed


FORMS = [
    *(("matmul", gated, rms) for gated in GATED for rms in RMS),
    *((form, "swish", "reciprocal") for form in ATTENTION if form != "matmul"),
]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("attention", "gated", "rms"), FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_block(method: str, attention: str, gated: str, rms: str, biased: bool) -> None:
    x, bound = data(), 1e-6 if attention == "one op" else 1e-9  # the body of Attention has its softmax in float32
    y, expected = by_hand(x, weights(biased), method, gated)
    out, _ = explained(block(biased, attention, gated, rms), method, x, bound)
    np.testing.assert_allclose(out["y"], y, rtol=bound, atol=bound)
    assert np.abs(out["relevance"] - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("rule", ["lrp-0", "lrp-epsilon", "lrp-gamma"])
def test_lrp_is_attnlrp_in_a_block_without_convolutions(rule: str) -> None:
    x = data()
    _, expected = by_hand(x, weights(True), "attnlrp")
    parameters = {} if rule == "lrp-0" else {"epsilon": 0.0}
    out = exact(compile_model(block(True), rule, parameters=parameters).model, {"x": x})
    assert np.abs(out["relevance"] - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
def test_what_conserves(method: str) -> None:
    """Without biases AttnLRP loses relevance in the softmax alone (spec 1.10), CP-LRP nowhere."""
    out, absorbed = explained(block(biased=False), method, data())
    assert {op for op, amount in absorbed.items() if amount > 1e-12} == ({"Softmax"} if method == "attnlrp" else set())
    if method == "cp-lrp":
        np.testing.assert_allclose(out["relevance"].sum((1, 2)), out["explained"], rtol=1e-12)


def all_of_it(messages: Any, factor: float) -> Any:
    return messages


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the halves of products": lambda m: m.setattr(product, "scaled", all_of_it),
    "the mean of a layer norm": lambda m: m.setitem(
        registry.RELEVANCE, "LayerNormalization", lambda ctx: ctx.only(0, ctx.c)
    ),
    "the constant deviation of a layer norm": lambda m: m.setitem(registry.RELEVANCE, "LayerNormalization", as_it_is),
    "the constant root of an RMS norm": lambda m: m.setitem(registry.RELEVANCE, "RMSNormalization", as_it_is),
    "the gradient of softmax": lambda m: m.setitem(registry.RULES, "default", softmax_dropped),
    "the activation's ratio": lambda m: m.setitem(registry.RULES, "default", with_gradient_of("Swish")),
}
RIGHT = registry.RULES["default"]


def softmax_dropped(ctx: registry.Context) -> registry.Messages:
    return ctx.only(0, ctx.c) if ctx.node.op == "Softmax" else RIGHT(ctx)


def with_gradient_of(op: str) -> registry.Rule:
    return lambda ctx: ctx.vjp() if ctx.node.op == op else RIGHT(ctx)


@pytest.mark.parametrize("what", BREAKS)
def test_the_oracle_sees_what_is_dropped(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = data()
    _, expected = by_hand(x, weights(True), "attnlrp")
    BREAKS[what](monkeypatch)
    out = exact(compile_model(block(True), "attnlrp", parameters={"epsilon": 0.0}).model, {"x": x})
    assert np.abs(out["relevance"] - expected).max() > 1e-2 * np.abs(expected).max()


INVERSES = {
    "square root of a sum": "q = Mul(x, x)  s = ReduceSum(q, last)  r = Sqrt(s)  i = Reciprocal(r)  y = Mul(x, i)",
    "one over a norm": "r = ReduceL2(x, last)  i = Div(one, r)  y = Mul(i, x)",
    "a negative power": "q = Mul(x, x)  s = ReduceSum(q, last)  i = Pow(s, mhalf)  y = Mul(x, i)",
    "cast and scaled": "r = ReduceL2(x, last)  i = Reciprocal(r)  f = Cast<to = 11>(i)  k = Mul(f, w)  y = Mul(x, k)",
    "moved": "r = ReduceL2<keepdims = 0>(x, last)  i = Reciprocal(r)  f = Unsqueeze(i, last)  y = Mul(x, f)",
}
NUMBERS = {
    "one": np.array(1.0), "mhalf": np.array(-0.5), "last": np.array([-1]), "w": np.arange(1.0, 5.0),
    "start": np.array([0]), "half": np.array([2]), "end": np.array([4]), "cos": np.cos(np.arange(6.0).reshape(3, 2)),
    "sin": np.sin(np.arange(6.0).reshape(3, 2)), "place": np.array([[0, 1, 2]]),
}  # fmt: skip


def of_the_sum(rule: str, body: str, signature: str = "", opset: int = 20) -> tuple[Array, dict[str, Array]]:
    """An input, and what the nodes in `body` give on it where the sum of y is explained."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    signature, kind = signature or "(double[N, 3, 4] x) => (double[N, 3, 4] y)", np.float32 if signature else np.float64
    held = {k: v.astype(kind) if v.dtype.kind == "f" else v for k, v in NUMBERS.items() if k in words}
    model = net(signature, body.replace(")  ", ")\n"), opset=opset, ir=10, **held)
    compiled = compile_model(model, rule, parameters={"epsilon": 0.0}, explain_reduce="sum", ledger=True)
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(kind)
    out = exact(compiled.model, {"x": x[:, None] if opset > 20 else x})
    total, bound = out["relevance"].reshape(2, -1).sum(1) + out["ledger"], 1e-5 if signature else 1e-9
    np.testing.assert_allclose(total, out["explained"], rtol=bound, atol=bound)
    return x, out


@pytest.mark.parametrize("name", INVERSES)
@pytest.mark.parametrize("rule", [*METHODS, "lrp-gamma"])
def test_a_factor_that_is_an_inverse_is_held_constant(rule: str, name: str) -> None:
    _, out = of_the_sum(rule, INVERSES[name])
    np.testing.assert_allclose(out["relevance"], out["y"], rtol=1e-12)


SEEN_THROUGH = {
    "at once": "y = Mul(x, s)",
    "scaled": "k = Mul(s, w)  y = Mul(x, k)",
    "moved": "f = Squeeze(s, last)  e = Unsqueeze(f, last)  y = Mul(e, x)",
    "cast": "e = Cast<to = 11>(s)  y = Mul(e, x)",
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
@pytest.mark.parametrize("rule", ["cp-lrp", "lrp-gamma"])
def test_a_gate_is_known_behind_what_moves_or_scales_it(rule: str, name: str) -> None:
    """Squeeze-and-excitation: all relevance to the signal."""
    _, out = of_the_sum(rule, f"m = ReduceMean(x, last)  s = Sigmoid(m)  {SEEN_THROUGH[name]}")
    np.testing.assert_allclose(out["relevance"], out["y"], rtol=1e-12)


def test_a_sigmoid_gate_in_attnlrp_gets_half() -> None:
    """What has grown from sigmoid(0) goes on to what the gate looked at; sigmoid(0) itself is absorbed."""
    x, out = of_the_sum("attnlrp", "m = ReduceMean(x, last)  s = Sigmoid(m)  y = Mul(x, s)")
    m = x.mean(-1, keepdims=True)
    share = x.sum(-1, keepdims=True) / 2 * (sigmoid(m) - 0.5)
    np.testing.assert_allclose(out["relevance"], out["y"] / 2 + share * x / (4 * m), rtol=1e-10)
    np.testing.assert_allclose(out["ledger"], x.sum((1, 2)) / 4, rtol=1e-10)


ROTARY = {
    "written out": (
        "a = Slice(x, start, half, last)  b = Slice(x, half, end, last)  n = Neg(b)  r = Concat<axis = -1>(n, a)  "
        "cc = Concat<axis = -1>(cos, cos)  ss = Concat<axis = -1>(sin, sin)  p = Mul(x, cc)  q = Mul(r, ss)  "
        "y = Add(p, q)",
        "",
        20,
    ),
    "one op of unknown batch and length": (
        "n = Shape<start = 0, end = 1>(x)  t = Shape<start = 2, end = 3>(x)  size = Concat<axis = 0>(n, t)  "
        "ids = Expand(place, size)  y = RotaryEmbedding(x, cos, sin, ids)",
        "(float[N, 1, T, 4] x) => (float[N, 1, T, 4] y)",  # the op knows no float64
        23,
    ),
}


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("rule", [*METHODS, "lrp-gamma"])
def test_rotary_positions_hand_on_what_they_get(rule: str, name: str) -> None:
    """A rotation is linear: x times its transpose, and nothing is absorbed."""
    x, out = of_the_sum(rule, *ROTARY[name])
    c, s = NUMBERS["cos"], NUMBERS["sin"]
    expected = x * np.concatenate([c + s, c - s], -1)
    np.testing.assert_allclose(out["relevance"].reshape(x.shape), expected, rtol=1e-5 if ROTARY[name][1] else 1e-12)
    np.testing.assert_array_equal(out["ledger"], 0)
