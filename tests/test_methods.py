"""Explanations at many points (paths, noise, occlusion) against loops in numpy over gradient or prediction."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import xaicompile
from tests.graphs import data, exact, net, run, weight
from tests.nets import cnn
from xaicompile.errors import RuleError, XaiCompileError

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
        str(tmp_path / "each.npy"): each,
        str(tmp_path / "named.npz"): one,
    }
    for baseline, base in given.items():
        found = relevance(mlp(), "integrated-gradients", parameters={"baseline": baseline})
        close(found, path(X, np.broadcast_to(base, X.shape)))


def test_a_baseline_given_when_the_model_runs() -> None:
    model, base = mlp(), data(1, 4, seed=5, dtype=F64)
    close(relevance(model, "integrated-gradients", parameters={"baseline": "input"}), path(X, 0.0))
    for value in (base, base + X):
        found = relevance(model, "integrated-gradients", feed={"baseline": value}, parameters={"baseline": "input"})
        close(found, path(X, np.broadcast_to(value, X.shape)))


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


@pytest.mark.parametrize(
    ("window", "stride", "fill"), [(4, 4, 0.0), (5, 3, 0.5), (3, 2, -1.0), (20, 1, 0.0), (2, 5, 0.0)]
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


# --- with everything else ---------------------------------------------------------------------------------------------

ALL = [*METHODS, "taylor", "occlusion", "random", "shap-gradient"]


def settings(rule: str, folder: Path) -> dict[str, Any]:
    """Few points, and what must be given."""
    if rule == "shap-gradient":
        np.save(folder / "background.npy", data(2, 3, 12, 12, seed=9))
        return {"background": str(folder / "background.npy"), "samples": 3}
    accepted = {"integrated-gradients": ("steps",), "smooth-integrated-gradients": ("steps", "samples")}
    names = accepted.get(rule, ("samples",) if rule in METHODS else ())
    return {**{name: SHORT[name] for name in names}, **({"window": 5} if rule == "occlusion" else {})}


@pytest.mark.parametrize("rule", ALL)
def test_prediction_is_bit_identical_and_samples_are_apart(rule: str, tmp_path: Path) -> None:
    x, target, options = data(3, 3, 12, 12), np.array([0, 4, 2]), settings(rule, tmp_path)
    made = xaicompile.compile(cnn(), rule, parameters=options)
    found = run(made, {"x": x, "target": target})
    assert made.opset_import[0].version == 18 and {o.domain for o in made.opset_import} <= {"", "ai.onnx"}
    np.testing.assert_array_equal(found["logits"], run(cnn(), {"x": x})["logits"])
    assert found["relevance"].dtype == np.float32 and np.isfinite(found["relevance"]).all()
    for i in range(3):
        one = run(made, {"x": x[i : i + 1], "target": target[i : i + 1]})["relevance"]
        close(found["relevance"][i : i + 1], one, 1e-5)
    fixed = xaicompile.compile(cnn(batch=3), rule, parameters=options)
    close(run(fixed, {"x": x, "target": target})["relevance"], found["relevance"], 1e-5)


@pytest.mark.parametrize("rule", ALL)
def test_maps_and_contrast(rule: str, tmp_path: Path) -> None:
    """Several maps are those of several runs; a contrast is the difference of two where the method is linear."""
    x, options = data(2, 3, 12, 12), settings(rule, tmp_path)
    single = [
        run(xaicompile.compile(cnn(), rule, target=k, parameters=options), {"x": x})["relevance"] for k in range(5)
    ]
    chosen = np.array([[3, 1], [0, 2]])
    maps = run(xaicompile.compile(cnn(), rule, maps=2, parameters=options), {"x": x, "target": chosen})["relevance"]
    assert maps.shape == (2, 2, *x.shape[1:])
    for i, k in np.ndindex(2, 2):
        close(maps[i, k], single[chosen[i, k]][i], 1e-5)
    found = run(
        xaicompile.compile(cnn(), rule, contrast="runner-up", parameters=options), {"x": x, "target": np.array([3])}
    )
    if rule in ("gradient-squared", "vargrad", "random"):
        assert np.isfinite(found["relevance"]).all()
        return
    others = np.where(np.arange(5) == 3, -np.inf, found["logits"]).argmax(1)
    for i in range(2):
        expected = single[3][i] - single[others[i]][i]
        close(found["relevance"][i], expected, 1e-4)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "vargrad", "taylor"])
def test_two_inputs_move_together(rule: str) -> None:
    body = "s = Mul(x, z) t = Concat<axis = 1>(s, x) y = MatMul(t, w)"
    model = net("(double[N,4] x, double[N,4] z) => (double[N,2] y)", body, w=weight(8, 2, dtype=F64))
    x, z, w = data(3, 4, dtype=F64), data(3, 4, seed=1, dtype=F64), weight(8, 2, dtype=F64)[:, 1]
    options = {"integrated-gradients": {"steps": 3, "quadrature": "trapezoid"}, "taylor": {"root": 0.5}}
    given = options.get(rule, {"samples": 5, "sigma": 0.2, "noise": "absolute"})
    found = exact(xaicompile.compile(model, rule, parameters=given), {"x": x, "z": z, "target": np.array([1])})
    grad = lambda x, z: (z * w[:4] + w[4:], x * w[:4])  # noqa: E731
    if rule == "integrated-gradients":
        parts = [[v * g for g in grad(t * x, t * z)] for t, v in points("trapezoid", 3)]
        expected = [s * sum(g) for s, g in zip((x, z), zip(*parts, strict=True), strict=True)]
    elif rule == "taylor":
        expected = [(s - 0.5) * g for s, g in zip((x, z), grad(0 * x + 0.5, 0 * z + 0.5), strict=True)]
    else:
        rng = np.random.default_rng(0)
        n, m = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
        each = [grad(x + 0.2 * a, z + 0.2 * b) for a, b in zip(n, m, strict=True)]
        expected = [AVERAGES[rule](np.stack(g)) for g in zip(*each, strict=True)]
    close(found["relevance_x"], expected[0])
    close(found["relevance_z"], expected[1] + 0 * z, 1e-9)


def test_token_ids_start_at_their_embeddings() -> None:
    table, w, ids = weight(9, 4, dtype=F64), weight(4, 2, dtype=F64), np.array([[1, 5, 5], [0, 8, 2]])
    body = "e = Gather(table, input_ids) a = Tanh(e) s = ReduceSum<keepdims = 0>(a, axes) y = MatMul(s, w)"
    model = net("(int64[N,3] input_ids) => (double[N,2] y)", body, table=table, w=w, axes=np.array([1]))
    made = xaicompile.compile(model, "integrated-gradients", parameters={"quadrature": "gauss-legendre"})
    found = exact(made, {"input_ids": ids, "target": np.array([1])})["relevance"]
    assert np.abs(found - np.tanh(table[ids]) @ w[:, 1]).max() <= 1e-8  # a sum of functions of one token each
    window = xaicompile.compile(model, "occlusion", parameters={"window": 1, "stride": 1})
    lost = exact(window, {"input_ids": ids, "target": np.array([1])})["relevance"]
    assert lost.shape == ids.shape


def test_sizes_that_are_not_known() -> None:
    """No numbers are drawn for a path, so height and width may stay open."""
    body = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) g = GlobalAveragePool(r) y = Flatten(g)"
    model = net("(float[N,2,H,W] x) => (float[N,3] y)", body, w=weight(3, 2, 3, 3))
    for rule in ("integrated-gradients", "taylor"):
        made = xaicompile.compile(model, rule)
        for size in ((5, 7), (8, 4)):
            x, target = data(2, 2, *size), np.array([1])
            fixed = net(f"(float[2,2,{size[0]},{size[1]}] x) => (float[2,3] y)", body, w=weight(3, 2, 3, 3))
            found = run(made, {"x": x, "target": target})["relevance"]
            expected = run(xaicompile.compile(fixed, rule), {"x": x, "target": target})["relevance"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    for rule in ("smoothgrad", "occlusion", "random"):
        with pytest.raises(RuleError, match="sizes"):
            xaicompile.compile(model, rule)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "taylor", "occlusion", "random"])
def test_half_precision(rule: str) -> None:
    signature, body = "(float16[N,4] x) => (float16[N,3] y)", "z = Gemm(x, w1, b1) a = Tanh(z) y = Gemm(a, w2, b2)"
    half = {k: v.astype(np.float16) for k, v in {"w1": W1, "w2": W2, "b1": B1, "b2": B2}.items()}
    made = xaicompile.compile(net(signature, body, **half), rule)
    found = run(made, {"x": X.astype(np.float16), "target": TARGET})["relevance"]
    assert found.dtype == np.float16
    full = net(signature.replace("16", ""), body, **{k: v.astype(np.float32) for k, v in half.items()})
    expected = run(xaicompile.compile(full, rule), {"x": X.astype(np.float16).astype(np.float32), "target": TARGET})[
        "relevance"
    ]
    close(found.astype(np.float32), expected, 2e-2)


def test_steps_do_not_grow_the_file() -> None:
    """But for the numbers of each step: a point and a weight."""
    sizes = [xaicompile.compile(cnn(), "integrated-gradients", parameters={"steps": n}).ByteSize() for n in (32, 512)]
    assert sizes[1] - cnn().ByteSize() < 1e6
    assert 0 <= sizes[1] - sizes[0] - 480 * 2 * 4 < 200


# --- models with subgraphs, quantised ones, trees ---------------------------------------------------------------------

LSTM = (
    "(float[5,N,3] x) => (float[N,2] y)",
    "s, h, c = LSTM<hidden_size = 4>(x, w, r) q = Squeeze(h, zero) y = MatMul(q, v)",
)


def test_a_recurrent_layer_in_each_step() -> None:
    model = net(*LSTM, w=weight(1, 16, 3), r=weight(1, 16, 4), v=weight(4, 2), zero=np.array([0]))
    x = data(5, 2, 3)
    feed = {"x": x, "target": np.array([1])}
    steps = {"steps": 16, "quadrature": "gauss-legendre"}
    found = run(xaicompile.compile(model, "integrated-gradients", parameters=steps), feed)
    lost = run(model, {"x": x})["y"] - run(model, {"x": 0 * x})["y"]
    np.testing.assert_allclose(found["relevance"].sum(), lost[0, 1], rtol=1e-4)  # axis 0 is time: one sample


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_subgraphs_in_each_step(op: str) -> None:
    """A branch and a loop that hold products: f(x) = (x * x) w, whose gradient is 2 x w."""
    w = weight(4, 2)
    square = helper.make_node("Mul", ["x", "x"], ["q"])
    if op == "If":
        out = helper.make_tensor_value_info("q", 1, ["N", 4])
        other = helper.make_node("Mul", ["x", "x"], ["q2"])
        bodies = {
            "then_branch": helper.make_graph([square], "a", [], [out]),
            "else_branch": helper.make_graph([other], "b", [], [helper.make_tensor_value_info("q2", 1, ["N", 4])]),
        }
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "o"], ["on"]),
            helper.make_node("If", ["on"], ["t"], **bodies),
        ]
        weights = {"w": w, "o": np.float32(0)}
    else:
        scalar = [helper.make_tensor_value_info(n, k, []) for n, k in (("i", 7), ("c", 9), ("c2", 9))]
        state = [helper.make_tensor_value_info(n, 1, ["N", 4]) for n in ("a", "a2")]
        inside = [helper.make_node("Identity", ["c"], ["c2"]), square, helper.make_node("Add", ["a", "q"], ["a2"])]
        body = helper.make_graph(inside, "body", [*scalar[:2], state[0]], [scalar[2], state[1]])
        nodes = [helper.make_node("Mul", ["x", "o"], ["z"]), helper.make_node("Loop", ["m", "", "z"], ["t"], body=body)]
        weights = {"w": w, "o": np.float32(0), "m": np.array(1)}
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["t", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = X.astype(np.float32)
    feed = {"x": x, "target": np.array([1])}
    found = run(xaicompile.compile(model, "integrated-gradients"), feed)["relevance"]
    close(found, x * x * w[:, 1], 1e-5)
    moved = [x + 0.1 * np.ptp(x, axis=1, keepdims=True) * n for n in np.random.default_rng(0).standard_normal((25, 4))]
    found = run(xaicompile.compile(model, "smoothgrad"), feed)["relevance"]
    close(found, (2 * np.mean(moved, 0) * w[:, 1]).astype(np.float32), 1e-5)
    lost = run(xaicompile.compile(model, "occlusion", parameters={"window": 1, "stride": 1}), feed)["relevance"]
    close(lost, x * x * w[:, 1], 1e-5)


BAD = {
    "steps must be whole": ("integrated-gradients", {"steps": 2.5}, "whole number"),
    "steps at least 1": ("integrated-gradients", {"steps": 0}, "whole number"),
    "quadrature": ("integrated-gradients", {"quadrature": "simpson"}, "quadrature"),
    "one trapezoid": ("integrated-gradients", {"quadrature": "trapezoid", "steps": 1}, "quadrature"),
    "no file": ("integrated-gradients", {"baseline": "none.npy"}, "file"),
    "samples": ("smoothgrad", {"samples": 0}, "whole number"),
    "sigma": ("smoothgrad", {"sigma": -1}, "negative"),
    "noise": ("smoothgrad", {"noise": "pink"}, "noise"),
    "window": ("occlusion", {"window": 0}, "whole number"),
    "stride": ("occlusion", {"stride": 0}, "whole number"),
    "no background": ("shap-gradient", {}, "background"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_refused_in_one_line(case: str) -> None:
    rule, given, said = BAD[case]
    with pytest.raises(RuleError, match=said) as caught:
        xaicompile.compile(cnn(), rule, parameters=given)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", data(5, 7))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name, key, rule in (
        ("odd", "baseline", "integrated-gradients"),
        ("odd", "root", "taylor"),
        ("odd", "background", "shap-gradient"),
        ("words", "baseline", "integrated-gradients"),
    ):
        with pytest.raises(XaiCompileError, match=key) as caught:
            xaicompile.compile(cnn(), rule, parameters={key: str(tmp_path / f"{name}.npy")})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "occlusion", "random"])
def test_what_a_method_does_not_give_is_refused(rule: str) -> None:
    for options in ({"ledger": True}, {"layers": ["a1"]}, {"concepts": ["a1"]}):
        with pytest.raises(RuleError) as caught:
            xaicompile.compile(cnn(), rule, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(RuleError, match="--smooth N"):
        xaicompile.compile(cnn(), "gradient", sigma=0.1)
