"""scikit-learn pipelines on its own data sets, with what each computes in float64 in front of the probabilities.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sklearn import (
    calibration,
    cluster,
    cross_decomposition,
    datasets,
    decomposition,
    discriminant_analysis,
    ensemble,
    gaussian_process,
    linear_model,
    multiclass,
    naive_bayes,
    neighbors,
    neural_network,
    preprocessing,
    svm,
    tree,
)
from sklearn.pipeline import make_pipeline, make_union

Array = np.ndarray
STEP = 1e-5
standard = preprocessing.StandardScaler


@dataclass(frozen=True)
class Pipeline:
    """One model.

    Attributes:
        data: The data set.
        make: The pipeline, before it is fitted.
        scores: What is explained, [N, K], from the fitted pipeline and inputs in float64; None where the compiler has
            nothing to give: a constant almost everywhere, or an operator that it refuses.
    """

    data: str
    make: Callable[[], Any]
    scores: Callable[[Any, Array], Array] | None


def two(scores: Array) -> Array:
    """One score for each of two classes."""
    return np.stack([-scores, scores], 1)


def decided(model: Any, x: Array) -> Array:
    """The decision function."""
    y = model.decision_function(x)
    return two(y) if y.ndim == 1 else y


def turned(model: Any, x: Array) -> Array:
    """The decision function of a machine for two classes, the other way round as ONNX Runtime gives it."""
    return two(-model.decision_function(x))


def one(model: Any, x: Array) -> Array:
    """A single score, or a predicted number."""
    y = model.decision_function(x) if hasattr(model, "decision_function") else model.predict(x)
    return y.reshape(len(x), -1)


def log_odds(model: Any, x: Array) -> Array:
    """The log-odds of the second class, and their negative; `predict_proba` iterates to half a percent from there."""
    machine = model[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they will be gone in a later version than the one that is asked for
        a, b = machine.probA_[0], machine.probB_[0]
    odds = -a * model.decision_function(x) + b
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), model.predict_proba(x)[:, 1], atol=5e-3)
    return two(odds)


def probabilities(model: Any, x: Array) -> Array:
    """Probabilities, where no logits stand in front of them in the graph."""
    return model.predict_proba(x)


def likelihoods(model: Any, x: Array) -> Array:
    """The joint log-likelihood of naive Bayes."""
    return model[-1]._joint_log_likelihood(model[:-1].transform(x) if len(model) > 1 else x)


def hidden(model: Any, x: Array) -> Array:
    """The last layer of a perceptron, before Softmax."""
    x, net = model[:-1].transform(x), model[-1]
    f = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[net.activation]
    for i, (w, b) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
        x = (f(x) if i else x) @ w + b
    return x


def perceptron(kind: str = "classifier", **options: Any) -> Any:
    """A small network."""
    made = neural_network.MLPRegressor if kind == "regressor" else neural_network.MLPClassifier
    return made(hidden_layer_sizes=(16, 8), random_state=0, max_iter=300, **options)


def logistic(**options: Any) -> Any:
    """Logistic regression."""
    return linear_model.LogisticRegression(max_iter=500, **options)


PIPELINES: dict[str, Pipeline] = {
    "scaler, logistic regression (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), logistic()), decided),
    "largest value, perceptron (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        preprocessing.MaxAbsScaler(), linear_model.Perceptron(random_state=0)), decided),
    "quantiles, machine rbf (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        preprocessing.RobustScaler(), svm.SVC()), turned),
    "scaler, machine poly (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), svm.SVC(kernel="poly")), turned),
    "scaler, machine sigmoid (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), svm.SVC(kernel="sigmoid")), turned),
    "scaler, machine with probabilities (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), svm.SVC(probability=True, random_state=0)), log_odds),
    "scaler, one class": Pipeline("breast_cancer", lambda: make_pipeline(standard(), svm.OneClassSVM()), one),
    "scaler, ridge classifier (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), linear_model.RidgeClassifier()), one),
    "scaler, stochastic gradient, log loss (2)": Pipeline("breast_cancer", lambda: make_pipeline(
        standard(), linear_model.SGDClassifier(loss="log_loss", random_state=0)), probabilities),
    "scaler, network (2)": Pipeline("breast_cancer", lambda: make_pipeline(standard(), perceptron()), probabilities),
    "scaler, logistic regression (3)": Pipeline("wine", lambda: make_pipeline(standard(), logistic()), decided),
    "scaler, principal components, logistic regression (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), decomposition.PCA(5), logistic()), decided),
    "unit length, machine linear (3)": Pipeline("wine", lambda: make_pipeline(
        preprocessing.Normalizer(), svm.SVC(kernel="linear")), decided),
    "scaler, machine rbf (3)": Pipeline("wine", lambda: make_pipeline(standard(), svm.SVC()), decided),
    "scaler, linear discriminants (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), discriminant_analysis.LinearDiscriminantAnalysis()), decided),
    "scaler, quadratic discriminants (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), discriminant_analysis.QuadraticDiscriminantAnalysis()), decided),
    "scaler, one against the rest (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), multiclass.OneVsRestClassifier(logistic())), probabilities),
    "scaler, Gaussian naive Bayes (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), naive_bayes.GaussianNB()), likelihoods),
    "logistic regression (3)": Pipeline("iris", lambda: make_pipeline(logistic()), decided),
    "scaler, network of tanh (3)": Pipeline("iris", lambda: make_pipeline(
        standard(), perceptron(activation="tanh")), hidden),
    "squares, scaler, logistic regression (3)": Pipeline("iris", lambda: make_pipeline(
        preprocessing.PolynomialFeatures(2), standard(), logistic()), decided),
    "powers, logistic regression (3)": Pipeline("iris", lambda: make_pipeline(
        preprocessing.PowerTransformer(), logistic()), decided),
    "k means (3)": Pipeline("iris", lambda: cluster.KMeans(3, random_state=0), lambda m, x: m.transform(x)),
    "bagged logistic regressions (3)": Pipeline("iris", lambda: ensemble.BaggingClassifier(
        logistic(), 3, random_state=0), probabilities),
    "calibrated machine (3)": Pipeline("iris", lambda: calibration.CalibratedClassifierCV(
        svm.LinearSVC(), method="sigmoid"), probabilities),
    "range, network (10)": Pipeline("digits", lambda: make_pipeline(
        preprocessing.MinMaxScaler(), perceptron()), hidden),
    "scaler, principal components, machine rbf (10)": Pipeline("digits", lambda: make_pipeline(
        standard(), decomposition.PCA(20), svm.SVC()), decided),
    "singular values, logistic regression (10)": Pipeline("digits", lambda: make_pipeline(
        decomposition.TruncatedSVD(20, random_state=0), logistic()), decided),
    "multinomial naive Bayes (10)": Pipeline("digits", lambda: make_pipeline(naive_bayes.MultinomialNB()), likelihoods),
    "linear regression": Pipeline("diabetes", linear_model.LinearRegression, one),
    "squares, ridge": Pipeline("diabetes", lambda: make_pipeline(
        preprocessing.PolynomialFeatures(2), linear_model.Ridge()), one),
    "lasso": Pipeline("diabetes", lambda: linear_model.Lasso(0.1), one),
    "scaler, machine rbf for numbers": Pipeline("diabetes", lambda: make_pipeline(standard(), svm.SVR(C=100)), one),
    "scaler, nu machine linear": Pipeline("diabetes", lambda: make_pipeline(
        standard(), svm.NuSVR(kernel="linear")), one),
    "scaler, network for numbers": Pipeline("diabetes", lambda: make_pipeline(
        standard(), perceptron("regressor")), one),
    "scaler, Poisson": Pipeline("diabetes", lambda: make_pipeline(standard(), linear_model.PoissonRegressor()), one),
    "partial least squares": Pipeline("diabetes", lambda: cross_decomposition.PLSRegression(3), one),
    "scaler beside components, ridge": Pipeline("diabetes", lambda: make_pipeline(
        make_union(standard(), decomposition.PCA(3)), linear_model.Ridge()), one),
    "stacked ridge and machine": Pipeline("diabetes", lambda: ensemble.StackingRegressor(
        [("a", linear_model.Ridge()), ("b", svm.SVR())]), one),
    "scaler, Gaussian process": Pipeline("diabetes", lambda: make_pipeline(
        standard(), gaussian_process.GaussianProcessRegressor(gaussian_process.kernels.RBF(3.0), alpha=1.0)), one),
    "scaler, nearest neighbours (3)": Pipeline("wine", lambda: make_pipeline(
        standard(), neighbors.KNeighborsClassifier()), None),
    "nearest neighbours for numbers": Pipeline("diabetes", neighbors.KNeighborsRegressor, None),
    "Bernoulli naive Bayes (10)": Pipeline("digits", lambda: make_pipeline(naive_bayes.BernoulliNB(binarize=8)), None),
    "decision tree (3)": Pipeline("iris", lambda: tree.DecisionTreeClassifier(random_state=0), None),
    "random forest (3)": Pipeline("wine", lambda: ensemble.RandomForestClassifier(
        n_estimators=10, random_state=0), None),
    "boosted trees (2)": Pipeline("breast_cancer", lambda: ensemble.GradientBoostingClassifier(
        n_estimators=10, random_state=0), None),
    "forest for numbers": Pipeline("diabetes", lambda: ensemble.RandomForestRegressor(
        n_estimators=10, random_state=0), None),
}  # fmt: skip


@cache
def data(name: str) -> tuple[Array, Array]:
    """A data set in float32, and its labels."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x.astype(np.float32), y


@cache
def fitted(name: str) -> tuple[Any, Array]:
    """A fitted pipeline, and the three samples of its data that it is least sure of."""
    given = PIPELINES[name]
    x, y = data(given.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = given.make().fit(x, y)
    if hasattr(model, "predict_proba"):  # where probabilities are near 0 and 1, so are their slopes to 0
        sure = model.predict_proba(x).max(1)
        return model, x[np.argsort(sure, kind="stable")[:3]]
    return model, x[[0, len(x) // 2, -1]]


def gradient(name: str, targets: Array) -> Array:
    """The slopes of one score of each sample, by central differences in float64."""
    model, x = fitted(name)
    scores = PIPELINES[name].scores
    assert scores is not None
    wide, rows = x.astype(np.float64), np.arange(len(x))
    steps = STEP * np.maximum(data(PIPELINES[name].data)[0].std(0), 1e-3)
    found = np.empty(wide.shape)
    for i, size in enumerate(steps):
        step = size * (np.arange(len(steps)) == i)
        ends = [scores(model, wide + sign * step)[rows, targets] for sign in (1, -1)]
        found[:, i] = (ends[0] - ends[1]) / (2 * size)
    return found
