"""Estimators of scikit-learn as skl2onnx writes them, and what each computes in float64.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from scipy.special import expit, logsumexp
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from tests import estimators
from tests import kernel_machines as dense
from tests.kernel_machines import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "logistic": expit,
}


def outlierness(e: Any, x: Array) -> Array:
    """-log of the normed kernel sum, [N,1]; finite where the sum itself underflows."""
    exponents = -e._gamma * dense.squares(x, e.support_vectors_).sum(-1)
    weights = e.dual_coef_[0]
    found: Array = -logsumexp(exponents, b=weights / weights.sum(), axis=1)[:, None]
    return found


def evidence(e: Any, x: Array) -> Array:
    return dense.evidence(x, e.cluster_centers_)


def of_scores(z: Array) -> Array:
    """log p/(1-p) of each class: z and -z of two classes, never 2 z; else against all others."""
    if z.ndim == 1 or z.shape[1] == 1:
        return np.stack([-z.reshape(-1), z.reshape(-1)], 1)
    return dense.log_odds(z)


def linear(e: Any, x: Array) -> Array:
    return of_scores(e.decision_function(x))


def layers(e: Any, x: Array) -> Array:
    for i, (weight, bias) in enumerate(zip(e.coefs_, e.intercepts_, strict=True)):
        x = (ACTIVATIONS[e.activation](x) if i else x) @ weight + bias
    return of_scores(x)


@dataclass(frozen=True)
class Estimator:
    """One kind of estimator.

    Attributes:
        kind: What it should be recognised as.
        make: The estimator, before it is fitted.
        scores: What is explained, [N,K], of what the estimator itself takes.
    """

    kind: str
    make: Callable[[], Any]
    scores: Callable[[Any, Array], Array]


def perceptron(activation: str) -> Callable[[], Any]:
    return lambda: MLPClassifier((8,), activation=activation, max_iter=60, learning_rate_init=0.01, random_state=0)


ESTIMATORS: dict[str, Estimator] = {
    "OneClassSVM": Estimator("one-class-svm", lambda: OneClassSVM(nu=0.2, gamma=0.05), outlierness),
    "KMeans": Estimator("kmeans", lambda: KMeans(3, n_init=3, random_state=0), evidence),
    "MiniBatchKMeans": Estimator("kmeans", lambda: MiniBatchKMeans(4, n_init=3, random_state=0), evidence),
    "LogisticRegression": Estimator("log-ratio", LogisticRegression, linear),
    "MLPClassifier, relu": Estimator("log-ratio", perceptron("relu"), layers),
    "MLPClassifier, tanh": Estimator("log-ratio", perceptron("tanh"), layers),
}
EPS = float(np.finfo(np.float32).eps)
DATA = ("breast_cancer", "wine")  # two classes, and three


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator or pipeline.

    Attributes:
        model: As skl2onnx writes it.
        near: All samples, in float32.
        far: Samples 1000 standard deviations away in each feature.
    """

    estimator: Any
    of: Estimator
    model: onnx.ModelProto
    near: Array
    far: Array

    def before(self, x: Array) -> Array:
        """What the estimator at the end takes, in float64."""
        x = x.astype(np.float64)
        return x if self.last is self.estimator else self.estimator[:-1].transform(x)

    @property
    def last(self) -> Any:
        return self.estimator[-1] if hasattr(self.estimator, "steps") else self.estimator

    def scores(self, x: Array) -> Array:
        """[N,K], in float64."""
        return self.of.scores(self.last, self.before(x))

    def predicted(self, x: Array) -> Array:
        """The index of the class or cluster, or -1 of an outlier and 1 of others."""
        y: Array = self.estimator.predict(x.astype(np.float64))
        return np.searchsorted(self.last.classes_, y) if hasattr(self.last, "classes_") else y

    def rounding(self, x: Array) -> Array:
        """[N]: what float32 may lose, as the graph is computed, where terms cancel that are larger than the score."""
        before = self.before(x)
        if self.of.kind != "log-ratio":
            svm = self.of.kind == "one-class-svm"
            points = self.last.support_vectors_ if svm else self.last.cluster_centers_
            return estimators.rounding(before, points, self.last._gamma if svm else 1.0)
        scaler = 0.0 if self.last is self.estimator else np.abs(self.estimator[0].mean_ / self.estimator[0].scale_)
        weights = getattr(self.last, "coefs_", None) or [self.last.coef_.T]
        error, size = EPS * (np.abs(before) + scaler), np.abs(before)
        for weight in weights:  # activations have slopes of 1 at most, and give no more than they take
            error, size = (error + EPS * size) @ np.abs(weight), size @ np.abs(weight)
        lost: Array = error.max(1)
        return lost


@cache
def fitted(name: str, data: str, scaled: bool) -> Fitted:
    """An estimator fitted on half of a data set, standardised; or on raw data behind a scaler."""
    of = ESTIMATORS[name]
    points, y, rest = estimators.data(data, not scaled)
    estimator = make_pipeline(StandardScaler(), of.make()) if scaled else of.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(points, y)
    step = np.random.default_rng(0).standard_normal((20, points.shape[1]))
    far = points.mean(0) + estimators.FAR * points.std(0) * step
    near = np.concatenate([points, rest]).astype(np.float32)
    return Fitted(estimator, of, written(estimator, near), near, far.astype(np.float32))


def written(estimator: Any, x: Array, zipmap: bool = False) -> onnx.ModelProto:
    """The model that skl2onnx makes of it.

    Args:
        zipmap: Probabilities as maps from class to number, which is what skl2onnx does if nobody says otherwise.
    """
    from skl2onnx import to_onnx

    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    options = {id(last): {"zipmap": zipmap}} if hasattr(last, "classes_") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: onnx.ModelProto = to_onnx(estimator, x[:1], options=options)
    return model
