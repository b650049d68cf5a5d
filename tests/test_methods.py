"""Explanations at many points (paths, noise, occlusion) against loops in numpy over gradient or prediction."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, exact, net, run, weight
from tests.nets import cnn

F64 = np.float64
QUADRATURES = ("midpoint", "gauss-legendre", "riemann-right", "riemann-left", "trapezoid")
METHODS = ("integrated-gradients", "smooth-integrated-gradients", "smoothgrad", "gradient-squared", "vargrad")
SHORT = {"steps": 3, "samples": 4}
W1, B1, W2, B2 = (weight(*s, seed=i, dtype=F64) for i, s in enumerate([(4, 9), (9,), (9, 3), (3,)]))
X = data(3, 4, dtype=F64)
TARGET = np.array([2, 0, 1])


def mlp(act: str = "Tanh", bias: bool = True, batch: str = "N") -> onnx.ModelProto:
    """Two layers in float64."""
    first, last = ("Gemm(x, w1, b1)", "Gemm(a, w2, b2)") if bias else ("MatMul(x, w1)", "MatMul(a, w2)")
    body = f"z = {first} a = {act}(z) y = {last}"
    weights = {"w1": W1, "w2": W2, **({"b1": B1, "b2": B2} if bias else {})}
    return net(f"(double[{batch},4] x) => (double[{batch},3] y)", body, **weights)


def f(x: np.ndarray, act: str = "Tanh", bias: float = 1.0) -> np.ndarray:
    """The explained outputs of the same layers, in numpy."""
    z = x @ W1 + bias * B1
    y = (np.tanh(z) if act == "Tanh" else np.maximum(z, 0)) @ W2 + bias * B2
    return y[np.arange(len(x)), TARGET[: len(x)]]


def slope(x: np.ndarray, act: str = "Tanh", bias: float = 1.0) -> np.ndarray:
    """Their gradient, in numpy."""
    z = x @ W1 + bias * B1
    inner = 1 - np.tanh(z) ** 2 if act == "Tanh" else (z > 0) * 1.0
    return (inner * W2.T[TARGET[: len(x)]]) @ W1.T


def relevance(model: onnx.ModelProto, rule: str, x: np.ndarray = X, feed: Any = None, **options: Any) -> np.ndarray:
    """In float64, of the chosen targets."""
    made = xaicompile.compile(model, rule, **options)
    return exact(made, {"x": x, "target": TARGET[: len(x)], **(feed or {})})["relevance"]


def points(name: str, n: int) -> list[tuple[float, float]]:
    """A rule of quadrature, once more: exact on polynomials where Gauss and Legendre are meant."""
    if name == "gauss-legendre":
        roots = np.sort(np.polynomial.legendre.Legendre.basis(n).roots())
        power = np.vander(roots, n, increasing=True).T
        w = np.linalg.solve(power, [(1 - (-1) ** (k + 1)) / (k + 1) for k in range(n)])
        return [((t + 1) / 2, v / 2) for t, v in zip(roots, w, strict=True)]
    if name == "trapezoid":
        return [(i / (n - 1), (0.5 if i in (0, n - 1) else 1) / (n - 1)) for i in range(n)]
    shift = {"midpoint": 0.5, "riemann-left": 0.0, "riemann-right": 1.0}[name]
    return [((i + shift) / n, 1 / n) for i in range(n)]


def path(x: np.ndarray, base: np.ndarray | float, name: str = "midpoint", n: int = 32, **which: Any) -> np.ndarray:
    """Integrated gradients as a loop."""
    return (x - base) * sum(w * slope(base + t * (x - base), **which) for t, w in points(name, n))


def close(found: np.ndarray, expected: np.ndarray, rtol: float = 1e-10) -> None:
    """Equal up to the largest value's rounding."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("name", QUADRATURES)
@pytest.mark.parametrize("act", ["Tanh", "Relu"])
def test_integrated_gradients_are_a_loop(act: str, name: str, n: int) -> None:
    found = relevance(mlp(act), "integrated-gradients", parameters={"steps": n, "quadrature": name})
    close(found, path(X, 0.0, name, n, act=act))


def test_each_baseline(tmp_path: Path) -> None:
    one, each = data(4, seed=3, dtype=F64), data(3, 4, seed=4, dtype=F64)
    for name, numbers in (("one", one), ("each", each)):
        np.save(tmp_path / f"{name}.npy", numbers)
    np.savez(tmp_path / "named.npz", other=one + 1, x=one)
    given = {
        "zero": 0.0,
        0.25: 0.25,
        "mean": X.mean(1, keepdims=True),
        str(tmp_path / "one.npy"): one,
        str(tmp_path / "named.npz"): one,
    }
    for baseline, base in given.items():
        found = relevance(mlp(), "integrated-gradients", parameters={"baseline": baseline})
        close(found, path(X, np.broadcast_to(base, X.shape)))
    options = {"baseline": str(tmp_path / "each.npy")}  # one each, where it is known how many there are
    close(relevance(mlp(batch="3"), "integrated-gradients", parameters=options), path(X, each))


def test_a_baseline_given_when_the_model_runs() -> None:
    model, base = mlp(), data(1, 4, seed=5, dtype=F64)
    close(relevance(model, "integrated-gradients", parameters={"baseline": "input"}), path(X, 0.0))
    for value in (base, base + X):
        found = relevance(model, "integrated-gradients", feed={"baseline": value}, parameters={"baseline": "input"})
        close(found, path(X, np.broadcast_to(value, X.shape)))


@pytest.mark.parametrize("rule", ["integrated-gradients", "deeplift"])
def test_onnx_runtime_takes_a_baseline_when_the_model_runs(rule: str) -> None:
    """One for all samples, one each, or none."""
    model, x = cnn(), data(2, 3, 12, 12)
    made = xaicompile.compile(model, rule, parameters={"baseline": "input"})
    for base in (data(1, 3, 12, 12, seed=7), data(2, 3, 12, 12, seed=8)):
        found = run(made, {"x": x, "baseline": base})["relevance"]
        close(found, np.concatenate([alone(model, rule, v, b) for v, b in zip(x, base + 0 * x, strict=True)]), 1e-5)
    close(run(made, {"x": x})["relevance"], run(xaicompile.compile(model, rule), {"x": x})["relevance"], 1e-6)


OPEN = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Tanh(c) g = GlobalAveragePool(r) y = Flatten(g)"


@pytest.mark.parametrize(
    ("rule", "key"), [("integrated-gradients", "baseline"), ("deeplift", "baseline"), ("taylor", "root")]
)
@pytest.mark.parametrize("sizes", ["N,2,H,W", "2,2,H,W", "1,2,5,7", "N,2,5,7", "N,C,H,W"])
def test_an_input_of_a_baseline_is_open_where_the_model_is(sizes: str, rule: str, key: str) -> None:
    """And nowhere else but in its samples; one sample, one each, and the default, which broadcasts, are taken."""
    model = net(f"(float[{sizes}] x) => (float[{sizes[0]},3] y)", OPEN, w=weight(3, 2, 3, 3))
    made = xaicompile.compile(model, rule, parameters={key: "input"})
    onnx.checker.check_model(made, full_check=True)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*made.graph.input, *made.graph.output)}
    declared = [d.dim_value for d in shapes[key]]
    assert declared == [0, *(int(s) if s.isdigit() else 0 for s in sizes.split(",")[1:])]
    symbols = [d.dim_param for d in shapes[key] if d.dim_param]
    assert len(set(symbols)) == declared.count(0) and not {*symbols} & {*sizes.split(",")}
    assert [d.dim_param or str(d.dim_value) for d in shapes["relevance"]] == sizes.split(",")
    batches = [int(sizes[0])] if sizes[0].isdigit() else [1, 3]
    for x in (data(n, 2, 5, 7) for n in batches):
        target = np.array([1])
        for base in (data(1, 2, 5, 7, seed=1), data(len(x), 2, 5, 7, seed=2)):
            found = run(made, {"x": x, key: base, "target": target})
            each = [alone(FIXED, rule, v, b, key, target=target) for v, b in zip(x, base + 0 * x, strict=True)]
            close(found["relevance"], np.concatenate(each), 1e-5)
            np.testing.assert_array_equal(found["y"], run(model, {"x": x})["y"])
        small = [1 if d == 0 else d for d in declared]
        for fed in ({}, {key: np.zeros(small, np.float32)}):
            found = run(made, {"x": x, "target": target, **fed})["relevance"]
            close(found, np.concatenate([alone(FIXED, rule, v, 0 * v, key, target=target) for v in x]), 1e-5)


FIXED = net("(float[1,2,5,7] x) => (float[1,3] y)", OPEN, w=weight(3, 2, 3, 3))


def test_all_maps_share_the_input_of_the_baseline() -> None:
    model, x, base = cnn(), data(2, 3, 12, 12), data(1, 3, 12, 12, seed=7)
    feed, options = {"x": x, "baseline": base}, {"baseline": "input", "steps": 3}
    made = xaicompile.compile(model, "integrated-gradients", maps=2, parameters=options)
    assert [i.name for i in made.graph.input] == ["x", "baseline", "target"]
    found = run(made, {**feed, "target": np.array([[3, 1]])})["relevance"]
    one = xaicompile.compile(model, "integrated-gradients", parameters=options)
    for i, k in enumerate((3, 1)):
        close(found[:, i], run(one, {**feed, "target": np.array([k])})["relevance"], 1e-5)


def alone(
    model: onnx.ModelProto, rule: str, x: np.ndarray, base: np.ndarray, key: str = "baseline", **feed: np.ndarray
) -> np.ndarray:
    """One sample, with the baseline that a file would give."""
    made = xaicompile.compile(model, rule, parameters={key: base.tolist()})
    return run(made, {"x": x[None], **feed})["relevance"]


def test_the_mean_of_an_image_is_that_of_each_channel() -> None:
    model = net("(double[N,2,3,3] x) => (double[N,1] y)", "g = Tanh(x) f = Flatten(g) y = MatMul(f, w)", w=LINEAR)
    x = data(2, 2, 3, 3, dtype=F64)
    found = exact(xaicompile.compile(model, "integrated-gradients", parameters={"baseline": "mean"}), {"x": x})
    base, w = np.broadcast_to(x.mean((2, 3), keepdims=True), x.shape), LINEAR.reshape(1, 2, 3, 3)
    expected = (x - base) * sum(v * w * (1 - np.tanh(base + t * (x - base)) ** 2) for t, v in points("midpoint", 32))
    close(found["relevance"], expected)


LINEAR = weight(18, 1, dtype=F64)


def test_completeness_on_a_smooth_net() -> None:
    """Spec I1: to rounding with Gauss-Legendre, 32 steps."""
    for base in (0.0, 0.5):
        found = relevance(mlp(), "integrated-gradients", parameters={"quadrature": "gauss-legendre", "baseline": base})
        assert np.abs(found.sum(1) - f(X) + f(X * 0 + base)).max() <= 1e-8


@pytest.mark.parametrize("n", [8, 32, 128, 512])
def test_completeness_on_a_relu_net_is_bounded(n: int) -> None:
    """Spec I1. The slope jumps where a unit turns on or off: half a step of the jump is lost at worst."""
    found = relevance(mlp("Relu"), "integrated-gradients", parameters={"steps": n})
    full = f(X, "Relu") - f(0 * X, "Relu")
    before, after = B1, X @ W1 + B1
    jumps = np.where(before * after < 0, np.abs((after - before) * W2.T[TARGET]), 0).sum(1)
    assert (np.abs(found.sum(1) - full) <= jumps / (2 * n) + 1e-12).all()
    assert n < 512 or np.abs(found.sum(1) - full).max() <= 1e-2 * np.abs(full).max()


TYPICAL = {8: 3e-2, 32: 1e-2, 128: 4e-3, 512: 3e-4}  # what a ReLU net misses of the difference, by steps (spec 8.1)


@pytest.mark.parametrize("n", TYPICAL)
def test_a_relu_net_is_typically_as_complete_as_specified(n: int) -> None:
    """The median over 64 inputs, and 8 outputs, of a hidden layer of 16 that is initialised as torch does it."""
    rng = np.random.default_rng(0)
    w, b, v = (rng.uniform(-1, 1, s) / np.sqrt(fan) for s, fan in (((8, 16), 8), ((16,), 8), ((16, 8), 16)))
    x, target = rng.standard_normal((64, 8)), np.arange(64) % 8
    model = net("(double[N,8] x) => (double[N,8] y)", "z = Gemm(x, w, b) a = Relu(z) y = MatMul(a, v)", w=w, b=b, v=v)
    made = xaicompile.compile(model, "integrated-gradients", parameters={"steps": n})
    found = exact(made, {"x": x, "target": target})["relevance"].sum(1)
    full = ((np.maximum(x @ w + b, 0) - np.maximum(b, 0)) @ v)[np.arange(64), target]
    gap = float(np.median(np.abs(found - full) / np.abs(full)))
    assert TYPICAL[n] / 4 <= gap <= 2 * TYPICAL[n], gap  # less: hardly a unit turns on or off on the way


def test_one_step_without_biases_is_gradient_x_input() -> None:
    """Spec I2; a rule with a point at zero, where every ReLU is off, is not."""
    plain = relevance(mlp("Relu", bias=False), "gradient-x-input")
    for name in ("midpoint", "gauss-legendre", "riemann-right"):
        options = {"steps": 1, "quadrature": name}
        close(relevance(mlp("Relu", bias=False), "integrated-gradients", parameters=options), plain)
    left = {"steps": 1, "quadrature": "riemann-left"}
    assert not relevance(mlp("Relu", bias=False), "integrated-gradients", parameters=left).any()


def test_taylor_terms_at_a_root() -> None:
    root = np.full((1, 4), 0.3)
    found = relevance(mlp(), "taylor", parameters={"root": 0.3})
    close(found, (X - root) * slope(np.broadcast_to(root, X.shape)))
    near = relevance(mlp("Relu", bias=False), "taylor", parameters={"root": "input"}, feed={"root": 1e-6 * X})
    close(near, relevance(mlp("Relu", bias=False), "gradient-x-input") * (1 - 1e-6))  # spec D1


def test_gradient_shap_is_a_loop(tmp_path: Path) -> None:
    background, samples = data(5, 4, seed=8, dtype=F64), 6
    np.save(tmp_path / "b.npy", background)
    options = {"background": str(tmp_path / "b.npy"), "samples": samples, "seed": 11}
    found = relevance(mlp(), "shap-gradient", parameters=options)
    rng = np.random.default_rng(11)
    chosen, where = rng.integers(0, 5, samples), rng.uniform(size=samples)
    bases = [np.broadcast_to(background[i], X.shape) for i in chosen]
    parts = [(X - b) * slope(b + t * (X - b)) for b, t in zip(bases, where, strict=True)]
    close(found, np.mean(parts, 0))


# --- noise ------------------------------------------------------------------------------------------------------------


def noisy(x: np.ndarray, kind: str, samples: int = 5, sigma: float = 0.2, seed: int = 3) -> list[np.ndarray]:
    """The noise, drawn once more."""
    drawn = np.random.default_rng(seed).standard_normal((samples, *x.shape[1:]))
    axes = tuple(range(1, x.ndim))
    wide = sigma * (np.ptp(x, axis=axes, keepdims=True) if kind == "relative" else 1.0)
    return [x + wide * n for n in drawn]


AVERAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "smoothgrad": lambda g: g.mean(0),
    "gradient-squared": lambda g: (g**2).mean(0),
    "vargrad": lambda g: g.var(0),
}


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize("rule", AVERAGES)
@pytest.mark.parametrize("act", ["Tanh", "Relu"])
def test_noise_is_a_loop(act: str, rule: str, kind: str) -> None:
    options = {"samples": 5, "sigma": 0.2, "seed": 3, "noise": kind}
    found = relevance(mlp(act), rule, parameters=options)
    close(found, AVERAGES[rule](np.stack([slope(x, act) for x in noisy(X, kind)])))


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_smooth_integrated_gradients_are_a_loop_and_complete(kind: str) -> None:
    """Spec 8.2: the sum is the mean of f at the noisy inputs, minus f at the baseline."""
    options = {"samples": 5, "sigma": 0.2, "seed": 3, "noise": kind, "baseline": 0.1, "quadrature": "gauss-legendre"}
    found, moved = relevance(mlp(), "smooth-integrated-gradients", parameters=options), noisy(X, kind)
    close(found, np.mean([path(x, np.full_like(X, 0.1), "gauss-legendre") for x in moved], 0))
    assert np.abs(found.sum(1) - np.mean([f(x) for x in moved], 0) + f(0 * X + 0.1)).max() <= 1e-10


@pytest.mark.parametrize("rule", ["guided-backprop", "lrp-gamma", "gradient-x-input", "lrp-epsilon"])
def test_any_rule_set_can_be_smoothed(rule: str) -> None:
    """The mean of what the rule set finds at noisy inputs: of relevance where it gives that."""
    model = mlp("Relu")
    found = relevance(model, rule, smooth=5, sigma=0.2, parameters={"seed": 3})
    close(found, np.mean([relevance(model, rule, x) for x in noisy(X, "relative")], 0), 1e-9)


def test_smooth_is_the_rule_set_smoothgrad() -> None:
    close(
        relevance(mlp(), "gradient", smooth=5, sigma=0.2),
        relevance(mlp(), "smoothgrad", parameters={"samples": 5, "sigma": 0.2}),
        1e-15,
    )
    options = {"steps": 4, "seed": 3}
    found = relevance(mlp(), "integrated-gradients", smooth=5, sigma=0.2, parameters=options)
    close(found, np.mean([path(x, 0.0 * X, n=4) for x in noisy(X, "relative")], 0))


def test_no_noise_is_the_rule_set_itself() -> None:
    close(relevance(mlp(), "smoothgrad", parameters={"sigma": 0.0}), slope(X))


# --- occlusion and random ---------------------------------------------------------------------------------------------


def occluded(model: onnx.ModelProto, x: np.ndarray, window: int, stride: int, fill: float, first: int) -> np.ndarray:
    """One run a window; positions have the mean over the windows that cover them."""
    total, counts = np.zeros_like(x), np.zeros_like(x)
    score = lambda v: run(model, {"x": v})[model.graph.output[0].name][:, 1]  # noqa: E731
    spans = []
    for size in x.shape[first:]:
        starts, at = [], 0
        while not starts or starts[-1] + min(window, size) < size:
            starts.append(at)
            at += stride
        spans.append([slice(s, s + window) for s in starts])
    for place in product(*spans):
        here = (slice(None),) * first + place
        filled = x.copy()
        filled[here] = fill
        total[here] += (score(x) - score(filled)).reshape(-1, *[1] * (x.ndim - 1))
        counts[here] += 1
    return total / np.maximum(counts, 1)


@pytest.mark.parametrize("chunk", [1, 5])
def test_the_variance_does_not_cancel(chunk: int) -> None:
    """Noise so small that in float32 the mean square and the square of the mean agree but for a digit or two."""
    given = {"samples": 20, "sigma": 2e-4, "noise": "absolute"}
    weights = {k: v.astype(np.float32) for k, v in {"w1": W1, "w2": W2, "b1": B1, "b2": B2}.items()}
    body = "z = Gemm(x, w1, b1) a = Tanh(z) y = Gemm(a, w2, b2)"
    made = xaicompile.compile(
        net("(float[N,4] x) => (float[N,3] y)", body, **weights), "vargrad", parameters=given, chunk=chunk
    )
    x = X.astype(np.float32)
    found = run(made, {"x": x, "target": TARGET})["relevance"]
    moved = x.astype(F64) + 2e-4 * np.random.default_rng(0).standard_normal((20, 1, 4))
    expected = np.stack([slope(v) for v in moved]).var(0)
    close(found, expected, 2e-2)
    assert found.min() >= 0


@pytest.mark.parametrize(
    ("window", "stride", "fill"), [(4, 4, 0.0), (5, 3, 0.5), (3, 2, -1.0), (12, 1, 0.0), (2, 5, 0.0)]
)
def test_occlusion_is_a_loop(window: int, stride: int, fill: float) -> None:
    model, x = cnn(), data(2, 3, 12, 12)
    made = xaicompile.compile(model, "occlusion", parameters={"window": window, "stride": stride, "fill": fill})
    found = run(made, {"x": x, "target": np.array([1])})["relevance"]
    close(found, occluded(model, x, window, stride, fill, 2), 1e-5)


def test_occlusion_of_rows_and_of_signals() -> None:
    for shape, first in (((3, 8), 1), ((2, 2, 9), 2), ((2, 1, 4, 4, 4), 2)):
        size = int(np.prod(shape[1:]))
        sizes = ",".join(map(str, shape[1:]))
        body = "f = Flatten(x) h = MatMul(f, w1) a = Tanh(h) y = MatMul(a, w2)"
        model = net(f"(float[N,{sizes}] x) => (float[N,2] y)", body, w1=weight(size, 6), w2=weight(6, 2))
        made = xaicompile.compile(model, "occlusion", parameters={"window": 3, "stride": 2})
        x = data(*shape)
        found = run(made, {"x": x, "target": np.array([1])})["relevance"]
        close(found, occluded(model, x, 3, 2, 0.0, first), 1e-5)


def test_occlusion_of_a_linear_function_is_gradient_x_input() -> None:
    model = net("(double[N,4] x) => (double[N,3] y)", "y = Gemm(x, w, b)", w=weight(4, 3, dtype=F64), b=B2)
    found = relevance(model, "occlusion", parameters={"window": 1, "stride": 1})
    close(found, relevance(model, "gradient-x-input"))


def test_random_numbers_are_the_same_whenever_drawn() -> None:
    x = data(3, 3, 12, 12)
    first, second, other = (
        run(xaicompile.compile(cnn(), "random", parameters={"seed": seed}), {"x": x})["relevance"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == x.shape and (first == first[:1, :1]).all() and not (first == other).any()
    drawn = np.random.default_rng(0).standard_normal((1, 1, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(first[:1, :1], drawn)
