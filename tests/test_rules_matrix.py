"""Every LRP rule, for every kind of linear layer, against a matrix form that was written separately, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import exact, net
from tests.matrix_layers import (
    AVERAGES,
    CONVOLUTIONS,
    DENSE,
    LAYERS,
    MAXIMA,
    PATTERNS,
    RESIZES,
    Layer,
    check,
    check_ledger,
    forward,
    matrix,
    placed,
    pool,
    relevance_of,
    rule_set,
)  # fmt: skip
from tests.matrix_lrp import RULES, Matrix
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

WEIGHTED = [*CONVOLUTIONS, *DENSE, *PATTERNS]
LINEAR = [*WEIGHTED, *AVERAGES, *RESIZES]
VARIANTS: dict[str, tuple[list[str], str, dict[str, Any]]] = {  # name: (layers, rule, parameters)
    "epsilon": (LINEAR, "epsilon", {}),
    "epsilon-large": (LINEAR, "epsilon", {"epsilon": 0.25}),
    "epsilon-zero": (LINEAR, "epsilon", {"epsilon": 0.0}),
    "epsilon-relative": (LINEAR, "epsilon", {"epsilon": 0.3, "stabiliser": "relative"}),
    "epsilon-clip": (LINEAR, "epsilon", {"epsilon": 0.4, "stabiliser": "clip"}),
    "epsilon-ignore": (WEIGHTED, "epsilon", {"epsilon": 0.2, "bias": "ignore"}),
    "epsilon-relative-ignore": (WEIGHTED, "epsilon", {"epsilon": 0.3, "stabiliser": "relative", "bias": "ignore"}),
    "epsilon-clip-ignore": (WEIGHTED, "epsilon", {"epsilon": 0.4, "stabiliser": "clip", "bias": "ignore"}),
    "epsilon-zero-ignore": (WEIGHTED, "epsilon", {"epsilon": 0.0, "bias": "ignore"}),
    "gamma": (LINEAR, "gamma", {}),
    "gamma-large": (LINEAR, "gamma", {"gamma": 3.0}),
    "gamma-zero": (LINEAR, "gamma", {"gamma": 0.0}),
    "gamma-ignore": (WEIGHTED, "gamma", {"gamma": 1.0, "bias": "ignore"}),
    "z-plus": (LINEAR, "z-plus", {}),
    "z-plus-ignore": (WEIGHTED, "z-plus", {"epsilon": 0.1, "bias": "ignore"}),
    "z-plus-zero": (LINEAR, "z-plus", {"epsilon": 0.0}),
    "alpha-beta": (LINEAR, "alpha-beta", {}),
    "alpha-beta-large": (LINEAR, "alpha-beta", {"alpha": 1.5, "beta": 0.5, "epsilon": 0.1}),
    "alpha-beta-ignore": (WEIGHTED, "alpha-beta", {"alpha": 3.0, "beta": 2.0, "epsilon": 0.01, "bias": "ignore"}),
    "alpha-one": (LINEAR, "alpha-beta", {"alpha": 1.0, "beta": 0.0, "epsilon": 0.0}),
    "z-box": (LINEAR, "z-box", {"low": -4.0, "high": 5.0}),
    "z-box-large": (LINEAR, "z-box", {"low": -5.0, "high": 4.0, "epsilon": 0.3}),
    "z-box-zero": (WEIGHTED, "z-box", {"low": -5.0, "high": 4.0, "epsilon": 0.0}),
    "w-square": (WEIGHTED, "w-square", {}),
    "w-square-absorb": (WEIGHTED, "w-square", {"bias": "absorb", "epsilon": 0.1}),
    "w-square-zero": ([*WEIGHTED, *AVERAGES], "w-square", {"epsilon": 0.0}),
    "flat": (LINEAR, "flat", {}),
    "flat-large": (LINEAR, "flat", {"epsilon": 0.3}),
    "norm": ([*AVERAGES], "norm", {}),
    "norm-large": ([*AVERAGES], "norm", {"epsilon": 0.3}),
    "winner": ([*MAXIMA], "winner", {}),
    "average": ([*MAXIMA], "average", {}),
    "average-large": ([*MAXIMA], "average", {"epsilon": 0.3}),
    "average-relative": ([*MAXIMA], "average", {"epsilon": 0.3, "stabiliser": "relative"}),
    "average-clip": ([*MAXIMA], "average", {"epsilon": 0.3, "stabiliser": "clip"}),
    "average-zero": ([*MAXIMA], "average", {"epsilon": 0.0}),
    "proportional": ([*MAXIMA], "proportional", {}),
    "proportional-large": ([*MAXIMA], "proportional", {"epsilon": 0.3}),
    "proportional-zero": ([*MAXIMA], "proportional", {"epsilon": 0.0}),
}
PLACES = [(before, after) for after in ("alone", "relu", "add") for before in ("mixed", "plus", "minus")]
THOROUGH = ("conv2", "gemm-loud-bias", "max2-overlap")  # in every place; the others in one, which take turns


def places(layer: str, variant: str) -> list[tuple[str, str]]:
    """Where the layer stands: what is known of its input, what follows it."""
    known = [p for p in PLACES if p[0] == "mixed"] if VARIANTS[variant][1] == "z-box" else PLACES
    if layer in THOROUGH:
        return known
    turn = list(LAYERS).index(layer) + 2 * list(VARIANTS).index(variant)
    return [known[turn % len(known)]]


CASES = [(layer, variant) for variant, (layers, _, _) in VARIANTS.items() for layer in layers]


@pytest.mark.parametrize(("layer", "variant"), CASES)
def test_a_rule_equals_its_matrix_form(tmp_path: Path, layer: str, variant: str) -> None:
    _, rule, parameters = VARIANTS[variant]
    rules = rule_set(tmp_path, rule, parameters)
    for before, after in places(layer, variant):
        net = placed(LAYERS[layer], before, after)
        expected = RULES[rule](matrix(LAYERS[layer]), net.a.ravel(), (net.z * net.c).ravel(), **parameters)
        check(relevance_of(net, rules, closes=after != "add"), expected)  # there the other operand has its share


OPEN = ("conv2-same-lower", "deconv2-stride-groups", "average2-padding-counts", "max2-overlap")


@pytest.mark.parametrize(("layer", "variant"), [c for c in CASES if c[0] in OPEN])
def test_a_rule_for_images_of_any_size(tmp_path: Path, layer: str, variant: str) -> None:
    _, rule, parameters = VARIANTS[variant]
    at = placed(LAYERS[layer], "mixed", "relu", free=True)
    expected = RULES[rule](matrix(LAYERS[layer]), at.a.ravel(), (at.z * at.c).ravel(), **parameters)
    check(relevance_of(at, rule_set(tmp_path, rule, parameters)), expected)


DATA_BIAS = ("epsilon", "epsilon-relative", "epsilon-clip", "gamma", "gamma-large", "z-plus", "alpha-beta-large")


@pytest.mark.parametrize("variant", DATA_BIAS)
@pytest.mark.parametrize("beta", [1.0, -0.5])
def test_a_bias_that_is_data_gets_its_share(tmp_path: Path, variant: str, beta: float) -> None:
    """The oracle counts the bias among the inputs."""
    _, rule, parameters = VARIANTS[variant]
    layer = Layer(f"z = Gemm<beta={beta}>(a, w, b)", (3, 6), (6, 5), (3, 5), 1)
    weights, x, c = layer.weights(), layer.data(), np.random.default_rng(2).standard_normal((3, 5))
    made = net(
        "(double[N,6] x, double[N,5] b, double[N,5] c) => (double[N,5] y)",
        f"[layer] z = Gemm<beta={beta}>(x, w, b)\ny = Mul(z, c)",
        w=weights["w"],
    )
    rules = rule_set(tmp_path, rule, parameters)
    compiled = compile_model(made, rules, explain_input=["x", "b"], explain_reduce="sum", ledger=True)
    out = exact(compiled.model, {"x": x, "b": weights["b"], "c": c})
    plain = matrix(layer)
    both = np.concatenate([plain.jacobian, beta * np.eye(15)], axis=1)
    inputs = np.concatenate([x.ravel(), weights["b"].ravel()])
    expected = RULES[rule](Matrix(both, np.zeros(15), both, 3), inputs, both @ inputs * c.ravel(), **parameters)
    check(np.concatenate([out["relevance_x"].ravel(), out["relevance_b"].ravel()]), expected)
    check_ledger(out, [out["relevance_x"], out["relevance_b"]])


@pytest.mark.parametrize("low, high", [(0.0, 3.0), ((-4.0, 0.0), (4.0, 5.0)), (-3.0, 0.0)])
def test_bounds_that_prove_signs_and_bounds_of_channels(tmp_path: Path, low: Any, high: Any) -> None:
    """Bounds given as parameters of the set hold for the input, so that facts know of its sign."""
    layer = LAYERS["conv2"]
    for after in ("alone", "relu"):
        net = placed(layer, "mixed", after, clip=(low, high))
        full = [np.broadcast_to(np.reshape(end, (1, -1, 1, 1)), net.a.shape).ravel() for end in (low, high)]
        for rule, given in (("z-box", {"low": full[0], "high": full[1]}), ("gamma", {}), ("z-plus", {})):
            rules = rule_set(tmp_path, rule, {}, elsewhere=("z-box", {}))
            box = "".join(f"{k} = {np.asarray(v).tolist()}\n" for k, v in (("low", low), ("high", high)))
            rules.write_text(f"[parameters]\n{box}{rules.read_text()}")
            check(relevance_of(net, rules), RULES[rule](matrix(layer), net.a.ravel(), (net.z * net.c).ravel(), **given))


@pytest.mark.parametrize("stabiliser", ["absolute", "clip", "relative"])
def test_contributions_that_cancel_count_as_positive(tmp_path: Path, stabiliser: str) -> None:
    """sgn(0) = +1 (spec 1.3): without the bias z is 0 exactly, and st(z) is +epsilon."""
    w, x, c = np.asarray([[1.0, 2.0], [1.0, -1.0]]), np.asarray([[1.0, -1.0]]), np.asarray([[3.0, 0.5]])
    made = net(
        "(double[1,2] x, double[1,2] c) => (double[1,2] y)", "[layer] z = Gemm(x, w, b)\ny = Mul(z, c)",
        w=w, b=np.asarray([0.5, 0.0]),
    )  # fmt: skip
    rules = rule_set(tmp_path, "epsilon", {"epsilon": 0.01, "bias": "ignore", "stabiliser": stabiliser})
    compiled = compile_model(made, rules, explain_input="x", explain_reduce="sum")
    z = x @ w  # [0, 3]
    level = 0.01 * np.sqrt(4.5) if stabiliser == "relative" else 0.01
    second = 3.0 if stabiliser == "clip" else 3.0 + level
    expected = (x.T * w) @ (np.asarray([0.5, z[0, 1]]) * c[0] / [level, second])
    check(exact(compiled.model, {"x": x, "c": c})["relevance"], expected)


# --- layers behind each other -----------------------------------------------------------------------------------------

UPPER = Layer("z = Gemm(a, w, b)", (3, 16), (16, 5), (5,), 1)
MIDDLE = pool("MaxPool kernel_shape=[2,2], strides=[2,2]", (3, 4, 4, 5))
CHAINS = {  # rule of the convolution, rule of the dense layer
    "epsilon": (("epsilon", {"epsilon": 0.1}), ("epsilon", {"epsilon": 0.2})),
    "relative": (("epsilon", {"epsilon": 0.1, "stabiliser": "relative"}), ("epsilon", {"stabiliser": "clip"})),
    "gamma": (("gamma", {}), ("gamma", {"gamma": 1.0})),
    "z-plus": (("z-plus", {}), ("alpha-beta", {})),
    "alpha-beta": (("alpha-beta", {}), ("z-plus", {"bias": "ignore"})),
    "z-box": (("z-box", {"low": -4.0, "high": 4.0}), ("gamma", {})),
    "w-square": (("w-square", {}), ("w-square", {})),
    "flat": (("flat", {}), ("flat", {})),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("pooling", ["winner", "average", "proportional"])
def test_layers_behind_each_other(tmp_path: Path, chain: str, pooling: str) -> None:
    """Conv, ReLU, MaxPool, Gemm: relevance handed on from matrix to matrix."""
    lower = LAYERS["conv2"]
    x = lower.data()
    z1 = forward(lower, lower.text, x, lower.weights())
    a1 = np.maximum(z1, 0)
    a2 = forward(MIDDLE, MIDDLE.text, a1, {}).reshape(3, 16)
    z3 = forward(UPPER, UPPER.text, a2, UPPER.weights())
    c = np.random.default_rng(3).standard_normal(z3.shape)
    (first, given), (last, others) = CHAINS[chain]
    r = RULES[last](matrix(UPPER), a2.ravel(), (z3 * c).ravel(), **others)
    r[a2.ravel() == 0] = 0.0  # where a pool gives 0, it has nothing to hand on to
    r = RULES[pooling](matrix(MIDDLE), a1.ravel(), r)
    expected = RULES[first](matrix(lower), x.ravel(), r, **given)
    weights = {"w1": lower.weights()["w"], "b1": lower.weights()["b"], **UPPER.weights()}
    body = f"""
        [layer] z1 = {lower.text.split("= ", 1)[1].replace("a, w, b", "x, w1, b1")}
        a1 = Relu(z1)
        [pool] a2 = {MIDDLE.text.split("= ", 1)[1].replace("(a)", "(a1)")}
        f = Flatten(a2)
        [upper] z3 = Gemm(f, w, b)
        y = Mul(z3, c)
        """
    made = net("(double[N,2,4,5] x, double[N,5] c) => (double[N,5] y)", body, **weights)
    rules = rule_set(tmp_path, first, given, upper=(last, others), pool=(pooling, {}))
    out = exact(
        compile_model(made, rules, explain_input="x", explain_reduce="sum", ledger=True).model, {"x": x, "c": c}
    )
    check(out["relevance"], expected)
    check_ledger(out, [out["relevance"]])


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = [
    ("conv2", "alpha-beta", {"alpha": 2.0, "beta": 0.5}, "alpha - beta = 1"),
    ("conv2", "alpha-beta", {"alpha": 1.0}, "alpha - beta = 1"),
    ("conv2", "epsilon", {"stabiliser": "relativ"}, "'relativ'"),
    ("conv2", "epsilon", {"bias": "keep"}, "'keep'"),
    ("conv2", "gamma", {"bias": "include"}, "'include'"),
    ("conv2", "z-plus", {"bias": 1}, "bias"),
    ("conv2", "alpha-beta", {"bias": "both"}, "'both'"),
    ("conv2", "w-square", {"bias": "include"}, "'include'"),
    *(("conv2", r, {"epsilon": -1e-6}, "negative") for r in ("epsilon", "z-plus", "alpha-beta", "w-square", "flat")),
    *(("max2", r, {"epsilon": -1e-6}, "negative") for r in ("average", "proportional", "norm")),
    ("conv2", "gamma", {"gamma": -0.25}, "negative"),
    ("conv2", "alpha-beta", {"alpha": 0.5, "beta": -0.5}, "negative"),
    ("conv2", "z-box", {}, "bounds"),
    ("conv2", "z-plus", {"gamma": 1.0}, "'gamma'"),
    ("conv2", "winner", {}, "max-pooling"),
    ("average2", "average", {}, "max-pooling"),
    ("conv2", "pass", {}, "shape"),
    ("global-average", "pass", {}, "shape"),
    ("conv2-1x1", "norm", {}, "sums and averages"),
    *(("linear", r, {}, "Resize") for r in ("w-square",)),
    *(("max2", r, {}, "linear ops") for r in ("epsilon", "gamma", "z-plus", "alpha-beta", "z-box", "w-square", "flat")),
    *(("max2", r, {}, "can't be applied") for r in ("identity", "secant", "deconvnet", "beta-smooth", "uniform")),
]


@pytest.mark.parametrize(("layer", "rule", "parameters", "message"), WRONG)
def test_one_clear_line_for_what_is_wrong(
    tmp_path: Path, layer: str, rule: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuleError) as error:
        compile_model(placed(LAYERS[layer], "mixed", "relu").model, rule_set(tmp_path, rule, parameters))
    assert message in str(error.value) and "\n" not in str(error.value)
