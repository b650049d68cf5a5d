"""Classifiers and pipelines as networks, against scikit-learn."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, NuSVC, OneClassSVM

import xaicompile
from tests.estimators import DATA, behind, close, data, far_away, limit, metadata, run

both = pytest.mark.parametrize("dtype", ("float64", "float32"))
scaled = pytest.mark.parametrize("standardised", [True, False], ids=["standardised", "raw"])
every_set = pytest.mark.parametrize("name", DATA)


def fitted(e: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return e.fit(x, y)


def expit(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def same_labels(e: Any, got: np.ndarray, x: np.ndarray) -> None:
    assert got.dtype == np.int64
    np.testing.assert_array_equal(e.classes_[got], e.predict(x))
    assert len(np.unique(got)) > 1


# --- classes with a probability each (spec 9.5) -------------------------------------------------------------------


@both
@scaled
@every_set
@pytest.mark.parametrize("intercept", [True, False])
def test_logistic_regression(intercept: bool, name: str, standardised: bool, dtype: str) -> None:
    points, y, x = data(name, standardised)
    e = fitted(LogisticRegression(fit_intercept=intercept), points, y)
    model = xaicompile.neuralize(e, dtype=dtype)
    assert metadata(model)["xaicompile.neuralize"] == "log-ratio"
    assert json.loads(metadata(model)["xaicompile.classes"]) == e.classes_.tolist()
    got = run(behind(model, "Sigmoid" if len(e.classes_) == 2 else "Softmax"), x)
    close(got["probabilities"], e.predict_proba(x), limit(dtype))
    same_labels(e, got["label"], x)
    scores = e.decision_function(x)
    if dtype == "float64" or standardised:  # raw terms cancel in float32
        close(got["scores"], scores if scores.ndim > 1 else np.stack([-scores, scores], axis=1), limit(dtype))


@both
@every_set
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_perceptron(activation: str, name: str, dtype: str) -> None:
    points, y, x = data(name)
    e = MLPClassifier((12, 7), activation=activation, max_iter=60, learning_rate_init=0.01, random_state=0)
    fitted(e, points, y)
    model = xaicompile.neuralize(e, dtype=dtype)
    assert metadata(model)["xaicompile.neuralize"] == "log-ratio"
    got = run(behind(model, "Sigmoid" if name == "breast_cancer" else "Softmax"), x)
    close(got["probabilities"], e.predict_proba(x), limit(dtype))
    same_labels(e, got["label"], x)
    if name == "breast_cancer":
        p = np.clip(e.predict_proba(x), 1e-6, 1)
        inside = (p < 1 - 1e-6).all(1) & (p > 1e-6).all(1)
        wanted = np.log(p[inside, 1] / p[inside, 0])
        close(got["scores"][inside, 1], wanted, 1e-9 if dtype == "float64" else 1e-5)
        np.testing.assert_array_equal(got["scores"][:, 0], -got["scores"][:, 1])


@both
def test_perceptron_of_several_labels(dtype: str) -> None:
    points, y, x = data("wine")
    several = np.stack([y == 0, y > 0, points[:, 0] > 0, points[:, 1] > 0], axis=1).astype(int)
    e = fitted(MLPClassifier((12,), max_iter=60, random_state=0), points, several)
    got = run(xaicompile.neuralize(e, dtype=dtype), x)
    close(got["probabilities"], e.predict_proba(x), limit(dtype))
    np.testing.assert_array_equal(got["label"], e.predict(x))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the reference evaluator's Sigmoid
def test_no_probability_saturates_before_its_score() -> None:
    points, y, _ = data("breast_cancer")
    e = fitted(LogisticRegression(C=1e3), points, y)
    x = far_away(points)
    got = run(behind(xaicompile.neuralize(e, dtype="float64"), "Sigmoid"), x)
    scores = e.decision_function(x)
    assert abs(scores).max() > 1e3
    close(got["scores"], np.stack([-scores, scores], axis=1), 1e-10)


@both
def test_one_vs_rest_of_older_scikit_learn(dtype: str) -> None:
    points, y, x = data("wine")
    e = fitted(LogisticRegression(), points, y)
    e.multi_class = "ovr"
    p = expit(e.decision_function(x))
    got = run(xaicompile.neuralize(e, dtype=dtype), x)
    close(got["probabilities"], p / p.sum(1, keepdims=True), limit(dtype))
    same_labels(e, got["label"], x)


def test_two_classes_as_softmax_of_older_scikit_learn() -> None:
    points, y, x = data("breast_cancer")
    e = fitted(LogisticRegression(C=1e-3), points, y)
    e.multi_class = "multinomial"
    p = expit(2 * e.decision_function(x))
    got = run(xaicompile.neuralize(e, dtype="float64"), x)
    close(got["probabilities"], np.stack([1 - p, p], axis=1), 1e-10)


def test_classes_of_text() -> None:
    points, y, x = data("wine")
    e = fitted(LogisticRegression(), points, np.array(["c", "a", "b"])[y])
    model = xaicompile.neuralize(e)
    assert json.loads(metadata(model)["xaicompile.classes"]) == ["a", "b", "c"]
    same_labels(e, run(model, x)["label"], x)


# --- support vector machines --------------------------------------------------------------------------------------


@both
@scaled
@every_set
@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("kind", [SVC(), NuSVC(nu=0.1)], ids=["c", "nu"])
def test_support_vector_classifier(kind: SVC, shape: str, name: str, standardised: bool, dtype: str) -> None:
    points, y, x = data(name, standardised)
    e = clone(kind).set_params(decision_function_shape=shape).fit(points, y)
    model = xaicompile.neuralize(e, dtype=dtype)
    assert metadata(model)["xaicompile.neuralize"] == "distances"
    got = run(model, x)
    pairs = e.set_params(decision_function_shape="ovo").decision_function(x).reshape(len(x), -1)
    e.set_params(decision_function_shape=shape)
    # a decision is a sum of large terms that cancel, and a vote of a pair that is undecided may be either
    terms = 0.0 if dtype == "float64" else 1e-6 * abs(e.dual_coef_).sum()
    sure = abs(pairs).min(1) > limit(dtype) + terms
    assert sure.mean() > 0.9
    close(got["decision_function"][sure], e.decision_function(x)[sure], limit(dtype), terms)
    same_labels(e, got["label"][sure], x[sure])
    if "pairs" in got:
        close(got["pairs"], pairs, limit(dtype), terms)
    assert np.isfinite(run(model, far_away(points))["decision_function"]).all()


@pytest.mark.parametrize("break_ties", [True, False])
def test_ties_between_classes(break_ties: bool) -> None:
    numbers = np.random.default_rng(0)
    points, y, x = numbers.standard_normal((60, 2)), numbers.integers(0, 5, 60), numbers.standard_normal((500, 2))
    e = SVC(break_ties=break_ties, gamma=3.0).fit(points, y)
    got = run(xaicompile.neuralize(e, dtype="float64"), x)
    same_labels(e, got["label"], x)
    close(got["decision_function"], e.decision_function(x), 1e-10)
    assert (e.predict(x) != clone(e).set_params(break_ties=not break_ties).fit(points, y).predict(x)).any()


# --- pipelines --------------------------------------------------------------------------------------------------

STEPS = {
    "standard": [StandardScaler()],
    "mean": [StandardScaler(with_std=False)],
    "deviation": [StandardScaler(with_mean=False)],
    "neither": [StandardScaler(with_mean=False, with_std=False)],
    "range": [MinMaxScaler((-1, 3))],
    "clipped": [MinMaxScaler(clip=True)],
    "components": [StandardScaler(), PCA(5)],
    "whitened": [PCA(4, whiten=True)],
    "nothing": ["passthrough", None, StandardScaler()],
}


@both
@pytest.mark.parametrize("steps", STEPS)
def test_pipeline(steps: str, dtype: str) -> None:
    points, y, x = data("wine", standardised=False)
    before = [clone(s) if hasattr(s, "fit") else s for s in STEPS[steps]]
    raw = dtype == "float32" and steps in ("mean", "neither", "whitened", "deviation")  # far from the origin, or wide
    tolerance = limit(dtype) * (100 if raw else 10)
    e = make_pipeline(*before, KernelDensity(bandwidth=20.0 if raw else 2.0, leaf_size=len(points))).fit(points)
    got = run(xaicompile.neuralize(e, dtype=dtype), x)
    close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), tolerance)
    e = make_pipeline(*before, OneClassSVM(nu=0.2)).fit(points)
    model = xaicompile.neuralize(e, dtype=dtype)
    got = run(model, x)
    assert metadata(model)["xaicompile.neuralize"] == "one-class-svm"
    assert model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 13
    close(got["outlierness"] + got["outlierness_bias"], -np.log(e.score_samples(x)), tolerance)
    np.testing.assert_array_equal(got["label"], e.predict(x))
    e = make_pipeline(*before, KMeans(3, n_init=1, random_state=0)).fit(points)
    np.testing.assert_array_equal(run(xaicompile.neuralize(e, dtype=dtype), x)["label"], e.predict(x))
    e = fitted(make_pipeline(*before, LogisticRegression()), points, y)
    close(run(xaicompile.neuralize(e, dtype=dtype), x)["probabilities"], e.predict_proba(x), tolerance)


def test_values_beyond_the_range_are_cut_off_only_if_asked() -> None:
    points, _, _ = data("wine", standardised=False)
    for clip in (True, False):
        e = make_pipeline(MinMaxScaler(clip=clip), KernelDensity(leaf_size=len(points))).fit(points)
        got = run(xaicompile.neuralize(e, dtype="float64"), x := far_away(points))
        close(got["outlierness"] + got["outlierness_bias"], -e.score_samples(x), 1e-10)
