"""Rules for activations, products, sums and `pass`, against what they are defined to be, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import Arrays, exact, net
from tests.matrix_layers import (
    LAYERS,
    Layer,
    Rule,
    check,
    check_ledger,
    forward,
    matrix,
    placed,
    relevance_of,
    rule_set,
)
from tests.matrix_lrp import RULES, sign
from xaicompile.compiler import compile_model

Array = np.ndarray
SHAPE = (3, 4, 5)


def unary(text: str, **constants: np.ndarray) -> Layer:
    return Layer(f"z = {text}", SHAPE, opset=20, constants=constants)


# --- activations ------------------------------------------------------------------------------------------------------

THROUGH_ZERO = [
    "Relu(a)", "LeakyRelu<alpha=0.1>(a)", "Elu(a)", "Selu(a)", "Tanh(a)", "Softsign(a)",
    "HardSwish(a)", "Mish(a)", "Gelu(a)", 'Gelu<approximate="tanh">(a)', "Erf(a)", "Abs(a)", "Sin(a)",
]  # fmt: skip
ELSEWHERE = ["Sigmoid(a)", "HardSigmoid<alpha=0.3, beta=0.4>(a)", "Softplus(a)", "Exp(a)", "Cos(a)"]


@pytest.mark.parametrize("text", THROUGH_ZERO)
@pytest.mark.parametrize("before", ["mixed", "plus", "minus"])
def test_identity_hands_on_what_it_gets(tmp_path: Path, text: str, before: str) -> None:
    at = placed(unary(text), before, "alone")
    check(relevance_of(at, rule_set(tmp_path, "identity", {})), at.z * at.c)


@pytest.mark.parametrize("text", ELSEWHERE)
@pytest.mark.parametrize("before", ["mixed", "plus", "minus"])
def test_secant_hands_on_what_has_grown_from_the_value_at_zero(tmp_path: Path, text: str, before: str) -> None:
    layer = unary(text)
    at = placed(layer, before, "alone")
    start = forward(layer, layer.text, np.zeros(SHAPE), {})
    check(relevance_of(at, rule_set(tmp_path, "secant", {})), (at.z - start) * at.c)


BACKWARD: dict[str, Callable[[Array, Array, float], Array]] = {  # cotangent at x of a ReLU, from x, c and beta
    "gradient": lambda x, c, beta: c * (x > 0),
    "guided": lambda x, c, beta: np.maximum(c, 0) * (x > 0),
    "deconvnet": lambda x, c, beta: np.maximum(c, 0),
    "beta-smooth": lambda x, c, beta: c / (1 + np.exp(-beta * x)),
    "pass": lambda x, c, beta: c * (x > 0),
    "identity": lambda x, c, beta: c * (x > 0),
    "stop": lambda x, c, beta: 0 * c,
}
BETAS = {"beta-smooth": [{}, {"beta": 1.5}, {"beta": 0.0}]}
WITH_BETA = [(rule, given) for rule in BACKWARD for given in BETAS.get(rule, [{}])]


@pytest.mark.parametrize(("rule", "given"), WITH_BETA)
@pytest.mark.parametrize("before", ["mixed", "plus", "minus"])
def test_rules_of_a_relu(tmp_path: Path, rule: str, given: dict[str, float], before: str) -> None:
    at = placed(unary("Relu(a)"), before, "alone")
    check(relevance_of(at, rule_set(tmp_path, rule, given)), at.a * BACKWARD[rule](at.a, at.c, given.get("beta", 10.0)))


UNDER = {
    "epsilon": ("epsilon", {"epsilon": 0.1}),
    "relative": ("epsilon", {"epsilon": 0.1, "stabiliser": "relative"}),
    "clip": ("epsilon", {"epsilon": 0.3, "stabiliser": "clip"}),
    "ignore": ("epsilon", {"epsilon": 0.1, "bias": "ignore"}),
    "gamma": ("gamma", {}),
    "gamma-ignore": ("gamma", {"bias": "ignore"}),
    "z-plus": ("z-plus", {}),
    "alpha-beta": ("alpha-beta", {}),
    "z-box": ("z-box", {"low": -4.0, "high": 4.0}),
    "w-square": ("w-square", {}),
    "flat": ("flat", {}),
}


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize(("rule", "given"), [w for w in WITH_BETA if w[0] not in ("identity", "stop")])
def test_a_layer_knows_what_its_relu_lets_through(
    tmp_path: Path, under: str, rule: str, given: dict[str, float]
) -> None:
    """Where the ReLU's rule passes a cotangent though z <= 0, the layer's rule must read z itself."""
    layer = LAYERS["conv2"]
    at, (name, parameters) = placed(layer, "mixed", "relu"), UNDER[under]
    r = at.z * BACKWARD[rule](at.z, at.feed["c"], given.get("beta", 10.0))
    rules = rule_set(tmp_path, name, parameters, rectifier=(rule, given))
    check(relevance_of(at, rules), RULES[name](matrix(layer), at.a.ravel(), r.ravel(), **parameters))


# --- pass -------------------------------------------------------------------------------------------------------------

ONES, UP = np.ones(4), np.arange(1.0, 5.0)
PASSED = {
    **{text.split("(")[0]: unary(text) for text in THROUGH_ZERO + ELSEWHERE},
    "Softmax": unary("Softmax(a)"),
    "Neg": unary("Neg(a)"),
    "Clip": unary("Clip(a, low, high)", low=np.asarray(-0.3), high=np.asarray(0.5)),
    "Add": unary("Add(a, k)", k=np.arange(5.0)),
    "Mul": unary("Mul(k, a)", k=np.arange(5.0)),
    "BatchNormalization": unary("BatchNormalization(a, s, t, m, v)", s=-UP, t=ONES, m=-ONES, v=UP),
    "LayerNormalization": unary("LayerNormalization(a, s, t)", s=np.arange(5.0), t=np.ones(5)),
    "Sqrt": unary("Sqrt(a)"),
    "MaxPool": unary("MaxPool<kernel_shape=[3], pads=[1,1]>(a)"),
    "MatMul": Layer("z = MatMul(a, w)", SHAPE, (5, 5)),
}


@pytest.mark.parametrize("name", PASSED)
def test_pass_hands_on_what_it_gets(tmp_path: Path, name: str) -> None:
    at = placed(PASSED[name], "mixed", "alone", clip=(0.01, 3.0) if name == "Sqrt" else None)
    check(relevance_of(at, rule_set(tmp_path, "pass", {})), at.z * at.c)


# --- products and sums of two data tensors ----------------------------------------------------------------------------

U, V, W = (3, 2, 4), (3, 4, 5), (3, 2, 5)  # U @ V has the shape W
Both = tuple[Array, Array]


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def of_first(u: Array, v: Array, c: Array) -> Array:
    """u times the cotangent of u in u @ v."""
    return u * (c @ np.swapaxes(v, -1, -2))


def of_second(u: Array, v: Array, c: Array) -> Array:
    """v times the cotangent of v in u @ v."""
    return v * (np.swapaxes(u, -1, -2) @ c)


PRODUCTS: dict[str, tuple[str, str, list[tuple[int, ...]], Callable[[Array, Array, Array], Both]]] = {
    # name: (rule, nodes, shapes of u, v and z, relevance of u and v)
    "uniform-mul": ("uniform", "[layer] z = Mul(u, v)", [U, U, U], lambda u, v, c: (u * v * c / 2, u * v * c / 2)),
    "uniform-matmul": (
        "uniform", "[layer] z = MatMul(u, v)", [U, V, W],
        lambda u, v, c: (of_first(u, v, c) / 2, of_second(u, v, c) / 2),
    ),
    "uniform-einsum": (
        "uniform", '[layer] z = Einsum<equation="bik,bkj->bij">(u, v)', [U, V, W],
        lambda u, v, c: (of_first(u, v, c) / 2, of_second(u, v, c) / 2),
    ),
    "uniform-broadcast": (
        "uniform", "[layer] z = Mul(u, v)", [U, (3, 1, 4), U],
        lambda u, v, c: (u * v * c / 2, (u * v * c).sum(axis=1, keepdims=True) / 2),
    ),
    "gate-sigmoid": (
        "gate", "s = Sigmoid(u)\n[layer] z = Mul(s, v)", [U, U, U],
        lambda u, v, c: (0 * u, sigmoid(u) * v * c),
    ),
    "gate-on-the-right": (
        "gate", "s = HardSigmoid<alpha=0.25>(v)\n[layer] z = Mul(u, s)", [U, U, U],
        lambda u, v, c: (u * np.clip(v / 4 + 0.5, 0, 1) * c, 0 * v),
    ),
    "gate-softmax": (
        "gate", "s = Softmax(u)\n[layer] z = MatMul(s, v)", [U, V, W],
        lambda u, v, c: (0 * u, of_second(softmax(u), v, c)),
    ),
    "gate-without-a-gate": (
        "gate", "[layer] z = Mul(u, v)", [U, U, U], lambda u, v, c: (u * v * c / 2, u * v * c / 2),
    ),
    "detach-sigmoid": (
        "detach", "s = Sigmoid(u)\n[layer] z = Mul(s, v)", [U, U, U], lambda u, v, c: (0 * u, sigmoid(u) * v * c),
    ),
    "detach-softmax": (
        "detach", "s = Softmax(u)\n[layer] z = MatMul(s, v)", [U, V, W],
        lambda u, v, c: (0 * u, of_second(softmax(u), v, c)),
    ),
    "detach-softmax-right": (
        "detach", "s = Softmax(v)\n[layer] z = MatMul(u, s)", [U, V, W],
        lambda u, v, c: (of_first(u, softmax(v), c), 0 * v),
    ),
    "detach-through-layout": (
        "detach", "s = Softmax<axis=1>(u)\nt = Transpose<perm=[0,2,1]>(s)\n[layer] z = MatMul(t, v)", [(3, 4, 2), V, W],
        lambda u, v, c: (0 * u, of_second(softmax(np.swapaxes(u, 1, 2)), v, c)),
    ),
    "detach-activation": (
        "detach", "s = Relu(u)\n[layer] z = Mul(v, s)", [U, U, U], lambda u, v, c: (0 * u, np.maximum(u, 0) * v * c),
    ),
    "detach-the-gate-of-two": (
        "detach", "s = Sigmoid(u)\nt = Tanh(v)\n[layer] z = Mul(s, t)", [U, U, U],
        lambda u, v, c: (0 * u, sigmoid(u) * np.tanh(v) * c),
    ),
    "detach-neither": (
        "detach", "[layer] z = MatMul(u, v)", [U, V, W],
        lambda u, v, c: (of_first(u, v, c) / 2, of_second(u, v, c) / 2),
    ),
    "stop-product": ("stop", "[layer] z = Mul(u, v)", [U, U, U], lambda u, v, c: (0 * u, 0 * v)),
    "stop-softmax": (
        "stop", "[layer] s = Softmax(u)\nz = MatMul(s, v)", [U, V, W],
        lambda u, v, c: (0 * u, of_second(softmax(u), v, c) / 2),
    ),
}  # fmt: skip


def two(folder: Path, nodes: str, shapes: list[tuple[int, ...]], rule: Rule) -> tuple[Arrays, list[Array]]:
    """What an emitted model gives for inputs u and v of which `z` is made, and u, v and c, the cotangent at z."""
    rng = np.random.default_rng(4)
    given = {name: rng.standard_normal(shape) for name, shape in zip("uvc", shapes, strict=True)}
    sizes = {name: ",".join(map(str, ("N", *value.shape[1:]))) for name, value in given.items()}
    inputs = ", ".join(f"double[{size}] {name}" for name, size in sizes.items())
    made = net(f"({inputs}) => (double[{sizes['c']}] y)", f"{nodes}\ny = Mul(z, c)", opset=20)
    rules = rule_set(folder, *rule)
    compiled = compile_model(made, rules, explain_input=["u", "v"], explain_reduce="sum", ledger=True)
    out = exact(compiled.model, given)
    check_ledger(out, [out["relevance_u"], out["relevance_v"]])
    return out, list(given.values())


@pytest.mark.parametrize("name", PRODUCTS)
def test_rules_of_products(tmp_path: Path, name: str) -> None:
    rule, nodes, shapes, expected = PRODUCTS[name]
    out, given = two(tmp_path, nodes, shapes, (rule, {}))
    for found, wanted in zip((out["relevance_u"], out["relevance_v"]), expected(*given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)


SUMS: dict[str, tuple[str, tuple[int, ...], float, float]] = {  # name: (node, shape of v, factors of u and v)
    "add": ("Add(u, v)", U, 1.0, 1.0),
    "add-broadcast": ("Add(u, v)", (3, 1, 4), 1.0, 1.0),
    "sub": ("Sub(u, v)", U, 1.0, -1.0),
    "sum": ("Sum(u, v, u)", U, 2.0, 1.0),
    "mean": ("Mean(v, u)", U, 0.5, 0.5),
}


@pytest.mark.parametrize("epsilon", [1e-6, 0.3, 0.0])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_norm_of_a_sum(tmp_path: Path, name: str, relu: bool, epsilon: float) -> None:
    """R_u = u R / st(u + v)."""
    node, shape, left, right = SUMS[name]
    nodes = f"[layer] q = {node}\nz = {'Relu' if relu else 'Identity'}(q)"
    out, (u, v, c) = two(tmp_path, nodes, [U, shape, U], ("norm", {"epsilon": epsilon}))
    q = left * u + right * v
    s = q * c * (q > 0 if relu else 1) / (q + epsilon * sign(q))
    check(out["relevance_u"], left * u * s)
    check(out["relevance_v"], right * v * (s if v.shape == u.shape else s.sum(axis=1, keepdims=True)))
