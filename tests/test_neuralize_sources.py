"""Density estimates, one-class SVMs and clusterings as networks, against scikit-learn and numpy."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.cluster import BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.neighbors import KernelDensity
from sklearn.svm import OneClassSVM

import xaicompile
from tests.estimators import DATA, SINGLE, close, data, distances, far_away, limit, metadata, rounding, run
from xaicompile.ir.fresh import new_model
from xaicompile.neuralization import forms

DTYPES = ("float64", "float32")
both = pytest.mark.parametrize("dtype", DTYPES)
scaled = pytest.mark.parametrize("standardised", [True, False], ids=["standardised", "raw"])
every_set = pytest.mark.parametrize("name", DATA)


# --- soft minima (spec 9.1) ---------------------------------------------------------------------------------------


def smin_model(s: float) -> onnx.ModelProto:
    inputs = {"X": (np.dtype(np.float64), ("N", "M"))}
    return new_model(inputs, lambda b, x: {"y": forms.soft_min(b, x[0] * -s) * (1 / s)}, {}, "smin")


def smin(h: np.ndarray, s: float) -> np.ndarray:
    return run(smin_model(s), h)["y"][:, 0]


@pytest.fixture
def h() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 40, (30, 12))


@pytest.mark.parametrize("s", [0.05, 1.0, 30.0])
def test_a_soft_minimum_lies_below_the_minimum_and_its_mean_above(h: np.ndarray, s: float) -> None:
    soft, gap = smin(h, s), np.log(h.shape[1]) / s
    close(soft, -logsumexp(-s * h, axis=1) / s, 1e-12)
    assert (h.min(1) - gap <= soft + 1e-10).all() and (soft <= h.min(1) + 1e-10).all()
    assert (h.min(1) <= soft + gap + 1e-10).all() and (soft + gap <= h.mean(1) + 1e-10).all()


@pytest.mark.parametrize("s", [0.05, 1.0, 30.0])
def test_soft_minima_shift_scale_and_nest(h: np.ndarray, s: float) -> None:
    close(smin(h + 1e4, s), smin(h, s) + 1e4, 1e-12)
    close(s * smin(h, s), smin(s * h, 1.0), 1e-12)
    close(smin(np.stack([smin(h[:, :3], s), smin(h[:, 3:], s)], axis=1), s), smin(h, s), 1e-12)


@pytest.mark.parametrize("s", [0.05, 1.0, 30.0])
def test_a_soft_minimum_of_soft_maxima_of_differences_factorises(h: np.ndarray, s: float) -> None:
    one, other = h[:, :5], h[:, 5:]
    of_each = [-smin(-(one[:, j : j + 1] - other), s) for j in range(5)]
    close(smin(np.stack(of_each, axis=1), s), smin(one, s) - smin(other, s), 1e-12)


@pytest.mark.parametrize("s", [0.05, 1.0, 30.0])
def test_the_gradient_of_a_soft_minimum_is_the_softmin(h: np.ndarray, s: float) -> None:
    p = run(xaicompile.compile(smin_model(s), "gradient"), h)["relevance"]
    close(p, softmax(-s * h, axis=1), 1e-12)
    entropy = -(p * log_softmax(-s * h, axis=1)).sum(1)
    close((p * h).sum(1) - entropy / s, smin(h, s), 1e-12)


# --- kernel density (spec 9.4) --------------------------------------------------------------------------------------


def density(x: np.ndarray, e: KernelDensity, points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """-log of the normed kernel sum, and what -score_samples has besides; the latter at a point, from scikit-learn."""
    d = distances(x, points)
    a = -d / (2 * e.bandwidth_**2) if e.kernel == "gaussian" else -np.sqrt(d) / e.bandwidth_
    one = KernelDensity(kernel=e.kernel, bandwidth=e.bandwidth_).fit(points[:1])
    return -logsumexp(a, b=weights / weights.sum(), axis=1), -float(one.score_samples(points[:1])[0])


@both
@scaled
@every_set
@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_kernel_density(kernel: str, name: str, standardised: bool, dtype: str) -> None:
    points, _, x = data(name, standardised)
    # With one leaf: a tree of several loses digits as it adds and subtracts bounds (see the test below).
    e = KernelDensity(kernel=kernel, bandwidth=2.0, leaf_size=len(points)).fit(points)
    model = xaicompile.neuralize(e, dtype=dtype)
    got = run(model, x)
    assert metadata(model)["xaicompile.neuralize"] == "kde" and got["outlierness_bias"].shape == (1,)
    if dtype == "float64":
        lost = np.zeros(len(x))
    else:  # of a root, where gaussian kernels have the square itself
        lost = rounding(x, points, 1 / 8 if kernel == "gaussian" else 1 / np.sqrt(distances(x, points).min(1)) / 4)
    close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), limit(dtype), lost)
    outlierness, bias = density(x, e, points, np.ones(len(points)))
    close(got["outlierness"], outlierness, limit(dtype), lost)
    close(got["outlierness_bias"], np.array([bias]), limit(dtype))


@both
@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_outlierness_is_never_negative_and_stays_finite(kernel: str, dtype: str) -> None:
    points, _, x = data("wine")
    for width in (1e-2, 1.0, 50.0):
        e = KernelDensity(kernel=kernel, bandwidth=width, leaf_size=len(points)).fit(points)
        for at in (points, x, far_away(points), points[:1]):
            o = run(xaicompile.neuralize(e, dtype=dtype), at)["outlierness"]
            assert (o >= -(1e-12 if dtype == "float64" else 1e-6)).all()
        at = far_away(points)
        o = run(xaicompile.neuralize(e, dtype=dtype), at)["outlierness"]
        close(o, density(at, e, points, np.ones(len(points)))[0], limit(dtype))
        assert o.min() > 1


@pytest.mark.filterwarnings("ignore:divide by zero")  # scikit-learn takes the logarithm of a weight of 0
@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.7])
@pytest.mark.parametrize("metric", ["euclidean", "l2", "minkowski"])
def test_weighted_kernel_density(bandwidth: str | float, metric: str) -> None:
    points, _, x = data("wine")
    weights = np.random.default_rng(0).integers(0, 4, len(points)).astype(float)
    e = KernelDensity(bandwidth=bandwidth, metric=metric, leaf_size=len(points)).fit(points, sample_weight=weights)
    model = xaicompile.neuralize(e, dtype="float64")
    got = run(model, x)
    close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), 1e-10)
    close(got["outlierness"], density(x, e, points[weights > 0], weights[weights > 0])[0], 1e-10)
    assert any(len(points[weights > 0]) in t.dims for t in model.graph.initializer), "points without weight were kept"


def test_kernel_density_of_many_points() -> None:
    points = np.random.default_rng(0).standard_normal((20_000, 50)).astype(np.float32).astype(float)
    x = np.random.default_rng(1).standard_normal((100, 50)).astype(np.float32).astype(float)
    e = KernelDensity(bandwidth=1.5, leaf_size=20_000).fit(points)
    for dtype in DTYPES:
        got = run(xaicompile.neuralize(e, dtype=dtype), x)
        close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), limit(dtype))


def test_scikit_learn_s_own_tree_is_less_exact() -> None:
    """Why the comparisons above are with a tree of one leaf; once this fails they need not be."""
    points, _, x = data("digits")
    e = KernelDensity(bandwidth=1.0).fit(points)
    outlierness, bias = density(x, e, points, np.ones(len(points)))
    got = run(xaicompile.neuralize(e, dtype="float64"), x)
    close(got["outlierness"] + got["outlierness_bias"], outlierness + bias, 1e-10)
    assert abs(e.score_samples(x) + outlierness + bias).max() > 1


# --- one-class SVM ----------------------------------------------------------------------------------------------


@both
@scaled
@every_set
def test_one_class_svm(name: str, standardised: bool, dtype: str) -> None:
    points, _, x = data(name, standardised)
    e = OneClassSVM(nu=0.2, gamma="scale").fit(points)
    model = xaicompile.neuralize(e, dtype=dtype)
    assert metadata(model)["xaicompile.neuralize"] == "one-class-svm"
    for at in (points, x):
        got = run(model, at)
        close(got["outlierness"] + got["outlierness_bias"], -np.log(e.score_samples(at)), limit(dtype))
        close(np.exp(-got["outlierness_bias"]), e.dual_coef_.sum(1), limit(dtype))
        assert got["outlierness"].min() >= 0
        margin = got["outlierness"] - got["outlierness_threshold"]
        sure = abs(margin) > 10 * limit(dtype)  # support vectors lie on the threshold itself
        assert sure.mean() > 0.5
        np.testing.assert_array_equal(np.where(margin > 0, -1, 1)[sure], e.predict(at)[sure])
        np.testing.assert_array_equal(got["label"][sure], e.predict(at)[sure])
        assert got["label"].dtype == np.int64
        assert set(np.unique(got["label"])) == {-1, 1}


@both
def test_one_class_svm_far_away(dtype: str) -> None:
    points, _, _ = data("wine")
    e = OneClassSVM(nu=0.2).fit(points)
    x = far_away(points)
    assert not e.score_samples(x).any(), "the kernels do not underflow"
    got = run(xaicompile.neuralize(e, dtype=dtype), x)
    alpha = e.dual_coef_[0]
    wanted = -logsumexp(-e._gamma * distances(x, e.support_vectors_), b=alpha / alpha.sum(), axis=1)
    close(got["outlierness"], wanted, limit(dtype))
    np.testing.assert_array_equal(got["label"], e.predict(x))


def test_a_one_class_svm_without_a_threshold_has_no_outliers() -> None:
    points, _, x = data("wine")
    e = OneClassSVM(nu=0.2).fit(points)
    e.offset_ = np.array([-0.5])
    model = xaicompile.neuralize(e)
    assert [o.name for o in model.graph.output] == ["outlierness", "outlierness_bias", "label"]
    np.testing.assert_array_equal(run(model, x)["label"], np.ones(len(x)))


def test_two_outputs_may_be_one_number() -> None:
    points, _, x = data("wine")
    e = OneClassSVM(nu=0.2).fit(points)
    e.offset_ = e.dual_coef_.sum(1) ** 2  # so that the threshold is the bias
    model = xaicompile.neuralize(e)
    assert [o.name for o in model.graph.output] == ["outlierness", "outlierness_bias", "outlierness_threshold", "label"]
    got = run(model, x)
    np.testing.assert_array_equal(got["outlierness_bias"], got["outlierness_threshold"])


# --- k-means (spec 9.6) -----------------------------------------------------------------------------------------


def evidence(d: np.ndarray) -> np.ndarray:
    return np.stack([np.delete(d, c, axis=1).min(1) - d[:, c] for c in range(d.shape[1])], axis=1)


@both
@scaled
@every_set
@pytest.mark.parametrize("kind", [KMeans, MiniBatchKMeans])
@pytest.mark.parametrize("clusters", [2, 7])
def test_k_means(kind: Callable[..., KMeans], clusters: int, name: str, standardised: bool, dtype: str) -> None:
    points, _, x = data(name, standardised)
    e = kind(clusters, n_init=1, random_state=0).fit(points)
    model = xaicompile.neuralize(e, dtype=dtype)
    assert metadata(model)["xaicompile.neuralize"] == "kmeans"
    centres = e.cluster_centers_
    for at in (x, far_away(points)):
        got = run(model, at)
        lost = np.zeros(len(at)) if dtype == "float64" else rounding(at, centres, 1.0)
        wanted = evidence(distances(at, centres))
        close(got["cluster_evidence"], wanted, limit(dtype), lost[:, None])
        np.testing.assert_array_equal(got["label"], got["cluster_evidence"].argmax(1))
        sure = wanted.max(1) > 2 * lost
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(got["label"][sure], e.predict(at.astype(dtype).astype(float))[sure])


def test_bisecting_k_means_is_given_the_nearest_centre() -> None:
    points, _, x = data("wine")
    e = BisectingKMeans(4, n_init=1, random_state=0).fit(points)
    got = run(xaicompile.neuralize(e, dtype="float64"), x)
    d = distances(x, e.cluster_centers_)
    close(got["cluster_evidence"], evidence(d), 1e-10)
    np.testing.assert_array_equal(got["label"], d.argmin(1))
    assert 0.8 < (got["label"] == e.predict(x)).mean() < 1, "its tree leads to the nearest centre"


# --- kernel k-means (spec 9.7) ------------------------------------------------------------------------------------


def by_pairs(x: np.ndarray, groups: list[np.ndarray], gamma: float, beta: float, z: np.ndarray) -> np.ndarray:
    """log p/(1-p) of each cluster by the explicit network over all pairs of points."""
    found = []
    for c, mine in enumerate(groups):
        outer = []
        for k, theirs in enumerate(groups):
            if k == c:
                continue
            w = 2 * (mine[None] - theirs[:, None])  # [j, i, d]
            bias = (theirs**2).sum(1)[:, None] - (mine**2).sum(1)[None] + (np.log(z[k]) - np.log(z[c])) / gamma
            h = np.einsum("nd,jid->nji", x, w) + bias
            inner = logsumexp(gamma * h, axis=2) / gamma
            outer.append(-logsumexp(-gamma * inner, axis=1) / gamma)
        found.append(-logsumexp(-beta * np.stack(outer, axis=1), axis=1))
    return np.stack(found, axis=1)


@both
@pytest.mark.parametrize("normalised", [False, True])
def test_kernel_k_means(normalised: bool, dtype: str) -> None:
    points, labels, x = data("wine")
    names = np.array(["red", "blue", "green"])[labels]
    gamma, beta, at = 0.2, 0.05, x[:30]
    groups = [points[names == name] for name in ("blue", "green", "red")]
    z = np.array([1.0, 4.0, 30.0]) if normalised else np.array([len(g) for g in groups], float)
    model = xaicompile.neuralize.kernel_kmeans(
        points, names, gamma, beta, normalisers=z if normalised else None, dtype=dtype
    )
    assert metadata(model)["xaicompile.neuralize"] == "kernel-kmeans"
    assert json.loads(metadata(model)["xaicompile.classes"]) == ["blue", "green", "red"]
    sums = np.stack([logsumexp(-gamma * distances(at, g), axis=1) for g in groups], axis=1) - np.log(z)
    wanted = softmax(beta / gamma * sums, axis=1)
    got = run(model, at)
    close(got["probabilities"], wanted, limit(dtype))
    np.testing.assert_array_equal(got["label"], wanted.argmax(1))
    assert len(np.unique(got["label"])) > 1 and got["label"].dtype == np.int64
    ratio = np.log(got["probabilities"]) - np.log1p(-got["probabilities"])
    close(ratio, by_pairs(at, groups, gamma, beta, z), 1e-10 if dtype == "float64" else 10 * SINGLE)
    assert np.isfinite(run(model, far_away(points))["probabilities"]).all()
