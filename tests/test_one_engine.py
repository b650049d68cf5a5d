"""One engine: the same reverse loop gives gradients, guided backprop, LRP, mixtures of rules and second order.

Every oracle is independent of the loop: differences in float64, and LRP with every layer as an explicit matrix and
relevance itself, not cotangents, passed down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, exact, net, weight
from tests.source import functions_that_call
from xaicompile import direct, registry
from xaicompile.registry import Context, Messages, Relevance

SIDE = 5
PLACES = SIDE * SIDE
TARGET = 2


def param(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return weight(*shape, seed=seed, dtype=np.float64) * scale


WEIGHTS = {
    "w1": param(6, 2, 3, 3, scale=2), "b1": param(6, scale=0.2), "w2": param(6, 6, 3, 3, seed=1, scale=2),
    "b2": param(6, seed=1, scale=0.2), "w3": param(4, 6 * PLACES, seed=2), "b3": param(4, seed=3, scale=0.2),
    "parts": np.asarray([3, 3]),
}  # fmt: skip
X = data(1, 2, SIDE, SIDE, dtype=np.float64)


def model() -> onnx.ModelProto:
    return net(
        f"(double[N,2,{SIDE},{SIDE}] x) => (double[N,4] y)",
        """
        [conv1] z1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        a1 = Relu(z1)
        s1, s2 = Split<axis=1>(a1, parts)
        m = Mul(s1, s2)
        j = Concat<axis=1>(m, s1)
        [conv2] z2 = Conv<pads=[1,1,1,1]>(j, w2, b2)
        r = Add(z2, a1)
        a2 = Relu(r)
        f = Flatten(a2)
        [fc] y = Gemm<transB=1>(f, w3, b3)
        """,
        **WEIGHTS,
    )


def emitted(rule: str | Path, **options: Any) -> dict[str, np.ndarray]:
    made = xaicompile.compile(model(), rule, target=TARGET, **options)
    return exact(made, {"x": X})


# --- the oracle: every layer as a matrix ------------------------------------------------------------------------------


def conv_matrix(w: np.ndarray) -> np.ndarray:
    """The convolution with padding 1 as a matrix [out, in]."""
    out, into = w.shape[:2]
    matrix = np.zeros((out, SIDE, SIDE, into, SIDE, SIDE))
    for row in range(SIDE):
        for column in range(SIDE):
            for dy in range(3):
                for dx in range(3):
                    y, x = row + dy - 1, column + dx - 1
                    if 0 <= y < SIDE and 0 <= x < SIDE:
                        matrix[:, row, column, :, y, x] = w[:, :, dy, dx]
    return matrix.reshape(out * PLACES, into * PLACES)


M1, M2, M3 = conv_matrix(WEIGHTS["w1"]), conv_matrix(WEIGHTS["w2"]), WEIGHTS["w3"]
B1, B2, B3 = np.repeat(WEIGHTS["b1"], PLACES), np.repeat(WEIGHTS["b2"], PLACES), WEIGHTS["b3"]
HALF = 3 * PLACES


class Forward:
    """All activations, as vectors."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x.reshape(-1)
        self.z1 = M1 @ self.x + B1
        self.a1 = np.maximum(self.z1, 0)
        self.s1, self.s2 = self.a1[:HALF], self.a1[HALF:]
        self.j = np.concatenate([self.s1 * self.s2, self.s1])
        self.z2 = M2 @ self.j + B2
        self.r = self.z2 + self.a1
        self.a2 = np.maximum(self.r, 0)
        self.y = M3 @ self.a2 + B3


Share = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # a, M, b, z -> shares [out, in]


def epsilon_share(epsilon: float) -> Share:
    return lambda a, m, b, z: (a * m) / (z + epsilon * np.where(z < 0, -1, 1))[:, None]


def gamma_share(gamma: float) -> Share:
    """Contributions of the sign of z count 1 + gamma times."""

    def share(a: np.ndarray, m: np.ndarray, b: np.ndarray, z: np.ndarray) -> np.ndarray:
        sign = np.sign(z)[:, None]
        parts, bias = a * m, b[:, None]
        parts = parts + gamma * np.where(parts * sign > 0, parts, 0)
        bias = bias + gamma * np.where(bias * sign > 0, bias, 0)
        return parts / (parts.sum(1, keepdims=True) + bias)

    return share


def box_share(low: float, high: float, epsilon: float = 1e-6) -> Share:
    def share(a: np.ndarray, m: np.ndarray, b: np.ndarray, z: np.ndarray) -> np.ndarray:
        parts = a * m - low * np.maximum(m, 0) - high * np.minimum(m, 0)
        return parts / (parts.sum(1, keepdims=True) + epsilon)

    return share


def square_share(a: np.ndarray, m: np.ndarray, b: np.ndarray, z: np.ndarray) -> np.ndarray:
    return m**2 / ((m**2).sum(1, keepdims=True) + 1e-6)


def relevance(first: Share, second: Share, last: Share) -> np.ndarray:
    """Relevance passed down in R-space: shares at linear layers, proportions at the sum, halves at the product."""
    v = Forward(X)
    top = np.where(np.arange(4) == TARGET, v.y, 0)
    at_r = last(v.a2, M3, B3, v.y).T @ top
    nonzero = np.where(v.r == 0, 1, v.r)
    at_z2, at_a1 = at_r * v.z2 / nonzero, at_r * v.a1 / nonzero
    at_j = second(v.j, M2, B2, v.z2).T @ at_z2
    at_m, skipped = at_j[:HALF], at_j[HALF:]
    at_a1 = at_a1 + np.concatenate([at_m / 2 + skipped, at_m / 2])
    return (first(v.x, M1, B1, v.z1).T @ at_a1).reshape(X.shape)


def chain(gate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The chain rule with Jacobian matrices; `gate(z, signal)` is what a ReLU hands down."""
    v = Forward(X)
    at_r = gate(v.r, M3[TARGET])
    at_j = M2.T @ at_r
    at_m, skipped = at_j[:HALF], at_j[HALF:]
    at_a1 = at_r + np.concatenate([at_m * v.s2 + skipped, at_m * v.s1])
    return (M1.T @ gate(v.z1, at_a1)).reshape(X.shape)


def closely(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_the_oracle_computes_the_same_prediction() -> None:
    closely(Forward(X).y[None], exact(model(), {"x": X})["y"], 1e-13)


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The rules that each run of the reverse loop was given."""
    seen: list[set[str]] = []
    real = direct.backward

    def counted(p: Any, facts: Any, seeds: Any, wrt: Any, pick: Any, **more: Any) -> Any:
        names: set[str] = set()
        seen.append(names)

        def noted(view: Any) -> Any:
            picked = pick(view)
            names.update(name for name, rule in registry.RULES.items() if rule is picked.rule)
            return picked

        return real(p, facts, seeds, wrt, noted, **more)

    monkeypatch.setattr(direct, "backward", counted)
    return seen


def test_gradient(loops: list[set[str]]) -> None:
    step, want = 1e-5, np.zeros_like(X)
    for place in np.ndindex(*X.shape):
        ends = []
        for sign in (1, -1):
            moved = X.copy()
            moved[place] += sign * step
            ends.append(exact(model(), {"x": moved})["y"][0, TARGET])
        want[place] = (ends[0] - ends[1]) / (2 * step)
    closely(emitted("gradient")["relevance"], want, 1e-8)
    assert loops == [{"gradient"}]


def test_guided_backprop_and_deconvnet(loops: list[set[str]]) -> None:
    closely(emitted("guided-backprop")["relevance"], chain(lambda z, d: np.where((z > 0) & (d > 0), d, 0)), 1e-12)
    closely(emitted("deconvnet")["relevance"], chain(lambda z, d: np.maximum(d, 0)), 1e-12)
    assert loops == [{"gradient", "guided"}, {"gradient", "deconvnet"}]


@pytest.mark.parametrize("gamma", [0.25, 2.0])
def test_lrp_gamma(loops: list[set[str]], gamma: float) -> None:
    want = relevance(gamma_share(gamma), gamma_share(gamma), epsilon_share(1e-6))
    closely(emitted("lrp-gamma", parameters={"gamma": gamma})["relevance"], want, 1e-11)
    assert loops == [{"gamma", "epsilon", "default"}]


MIXTURE = """
[[rules]]
match = { name = "conv1" }
rule = "RULE"
[[rules]]
match = { op = "Conv", depth = [1, 9] }
rule = "gamma"
gamma = 0.7
[[rules]]
match = { place = "last-linear" }
rule = "epsilon"
epsilon = 0.05
[[rules]]
rule = "default"
"""


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        ('z-box"\nlow = -3.0\nhigh = 2.5#', box_share(-3.0, 2.5)),
        ("w-square", square_share),
        ("flat", lambda a, m, b, z: square_share(a, np.where(flat_support(), 1.0, 0.0), b, z)),
        ('epsilon"\nepsilon = 0.3#', epsilon_share(0.3)),
    ],
    ids=["z-box", "w-square", "flat", "epsilon"],
)
def test_a_mixture_of_rules(tmp_path: Path, loops: list[set[str]], rule: str, first: Share) -> None:
    path = tmp_path / "mixture.toml"
    path.write_text(MIXTURE.replace("RULE", rule))
    want = relevance(first, gamma_share(0.7), epsilon_share(0.05))
    closely(emitted(path)["relevance"], want, 1e-9)
    assert loops == [{rule.split('"')[0], "gamma", "epsilon", "default"}]


def flat_support() -> np.ndarray:
    """Which inputs each unit of the first convolution sees."""
    return np.asarray(conv_matrix(np.ones_like(WEIGHTS["w1"])) > 0)


def test_second_order_is_the_loop_on_its_own_output(loops: list[set[str]]) -> None:
    """A row of the Hessian; between kinks the model is quadratic, so second differences are exact."""
    row = int(np.abs(chain(lambda z, d: d * (z > 0))).argmax())
    once = xaicompile.compile(model(), "gradient", target=TARGET)
    twice = xaicompile.compile(once, "gradient", explain_output="relevance", target=row)
    got = exact(twice, {"x": X})["relevance_2"].reshape(-1)
    step, flat = 1e-4, X.reshape(-1)
    want = np.zeros_like(flat)
    for i in range(flat.size):
        for si in (1, -1):
            for sj in (1, -1):
                moved = flat.copy()
                moved[row] += si * step
                moved[i] += sj * step
                want[i] += si * sj * Forward(moved).y[TARGET] / (4 * step**2)
    assert np.count_nonzero(np.abs(want) > 1e-4) > 3
    closely(got, want, 1e-6)
    assert loops == [{"gradient"}, {"gradient"}]


# --- one transpose ----------------------------------------------------------------------------------------------------


def test_the_transpose_of_a_convolution_stands_once_in_the_code() -> None:
    assert functions_that_call("ConvTranspose") == {("vjp/linear.py", "transposed")}
    assert functions_that_call("turned_kernel") == {("vjp/linear.py", "conv_transposed")}
    forms = {("vjp/linear.py", name) for name in ("conv_transposed", "strided", "spread_apart")}
    assert functions_that_call("transposed") == forms
    callers = functions_that_call("conv_transposed")
    assert ("vjp/linear.py", "conv") in callers and all(path.startswith("vjp/") for path, _ in callers)
    assert not any(path.startswith("relevance/") for path, _ in functions_that_call("Conv", "Gemm", "MatMul"))


# --- the ledger finds faults ------------------------------------------------------------------------------------------


def imbalance(rule: str, **options: Any) -> float:
    out = emitted(rule, ledger=True, **options)
    total = out["relevance"].sum((1, 2, 3)) + out["ledger"]
    return float(np.abs(total - out["explained"]).max() / np.abs(out["explained"]).max())


def flipped(rule: registry.Rule, only: Callable[[Context], bool] = lambda ctx: True) -> registry.Rule:
    """The rule with the wrong sign."""

    def wrong(ctx: Context) -> Messages:
        messages = rule(ctx)
        if not only(ctx):
            return messages
        return [Relevance(-m.r) if isinstance(m, Relevance) else None if m is None else -m for m in messages]

    return wrong


@pytest.mark.parametrize(
    ("rule", "fault", "options"),
    [
        ("lrp-gamma", "gamma", {}),
        ("lrp-gamma", "epsilon", {}),
        ("lrp-epsilon", "epsilon", {}),
        ("z-box", "z-box", {"parameters": {"low": -3, "high": 3}}),
        ("w-square", "w-square", {}),
        ("flat", "flat", {}),
    ],
)
def test_a_wrong_sign_in_one_rule_breaks_the_closure(
    monkeypatch: pytest.MonkeyPatch, rule: str, fault: str, options: dict[str, Any]
) -> None:
    assert imbalance(rule, **options) < 1e-12
    monkeypatch.setitem(registry.RULES, fault, flipped(registry.RULES[fault]))
    assert imbalance(rule, **options) > 1e-2


@pytest.mark.parametrize("op", ["Mul", "Add", "Relu", "Split", "Concat", "Flatten"])
def test_a_wrong_sign_at_one_op_breaks_the_closure(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    wrong = flipped(registry.RULES["default"], lambda ctx: ctx.node.op == op)
    monkeypatch.setitem(registry.RULES, "default", wrong)
    assert imbalance("lrp-gamma") > 1e-2


def test_a_wrong_sign_in_the_books_breaks_the_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    from xaicompile.relevance.linear import Layer

    real = Layer.absorb_bias
    monkeypatch.setattr(Layer, "absorb_bias", lambda self, s, bias: real(self, -s, bias))
    assert imbalance("lrp-gamma") > 1e-3
