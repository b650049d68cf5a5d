"""Fitted estimators, and kernel k-means from points and labels, as ONNX models in plain ops (spec section 9).

Each model carries its kind as the property `xaicompile.neuralize`, so that compiling it explains what it computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from xaicompile.errors import ModelError, RuleError, UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.fresh import new_model
from xaicompile.neuralization import classifiers, forms, machines
from xaicompile.neuralization.fitted import Fitted, dtype_of, plain

KIND, CLASSES = "xaicompile.neuralize", "xaicompile.classes"
INPUT = "X"

Outputs = dict[str, Tensor]
ESTIMATORS: dict[str, tuple[str, Callable[[Builder, Tensor, Fitted], Outputs]]] = {
    "KernelDensity": ("kde", machines.kernel_density),
    "OneClassSVM": ("one-class-svm", machines.one_class_svm),
    "KMeans": ("kmeans", machines.k_means),
    "MiniBatchKMeans": ("kmeans", machines.k_means),
    "BisectingKMeans": ("kmeans", machines.k_means),
    "LogisticRegression": ("log-ratio", classifiers.logistic_regression),
    "MLPClassifier": ("log-ratio", classifiers.perceptron),
    "SVC": ("distances", machines.support_vector_classifier),
    "NuSVC": ("distances", machines.support_vector_classifier),
}
STEPS: dict[str, Callable[[Builder, Tensor, Fitted], Tensor]] = {
    "StandardScaler": classifiers.standard_scaler,
    "MinMaxScaler": classifiers.min_max_scaler,
    "PCA": classifiers.principal_components,
}
WITH_CLASSES = {"LogisticRegression", "MLPClassifier", "SVC", "NuSVC"}


def network(estimator: Any, dtype: str = "float32") -> onnx.ModelProto:
    """A fitted scikit-learn estimator, or a Pipeline that ends in one, as a network of plain ops.

    Args:
        estimator: KernelDensity, OneClassSVM, KMeans and its kin, LogisticRegression, MLPClassifier, SVC or NuSVC;
            a Pipeline may have StandardScaler, MinMaxScaler and PCA before it.
        dtype: "float32" or "float64", of the input, the numbers and the outputs.

    Returns:
        A model with the input `X` [N, features]; the outputs are those that the functions of `machines` and
        `classifiers` say.

    Raises:
        ModelError: It is not fitted, or holds sparse or non-finite numbers.
        UnsupportedError: There is no network for it, or for a step of the pipeline, or for its kernel.
        RuleError: The dtype is another one.
    """
    number = dtype_of(dtype)
    steps, last = taken_apart(estimator, number)
    kind, make = ESTIMATORS[last.name]
    first = steps[0] if steps else last
    metadata = {KIND: kind}
    if last.name in WITH_CLASSES:
        metadata[CLASSES] = json.dumps(last.classes())

    def body(b: Builder, inputs: Sequence[Tensor]) -> Outputs:
        x = inputs[0]
        for step in steps:
            x = STEPS[step.name](b, x, step)
        return make(b, x, last)

    return new_model({INPUT: (number, ("N", int(first.learned("n_features_in_"))))}, body, metadata, kind)


def taken_apart(estimator: Any, dtype: np.dtype[Any]) -> tuple[list[Fitted], Fitted]:
    """The steps of a Pipeline that do something, and the estimator at its end; for others, the estimator alone.

    Raises:
        UnsupportedError: A step is not among those known; the message names it.
    """
    parts = getattr(estimator, "steps", None)
    if "Pipeline" not in [kind.__name__ for kind in type(estimator).__mro__] or not parts:
        return [], Fitted(estimator, dtype, ESTIMATORS)
    *before, (name, last) = parts
    steps = []
    for step, transformer in before:
        if transformer is None or isinstance(transformer, str):  # "passthrough"
            continue
        try:
            steps.append(Fitted(transformer, dtype, STEPS, step))
        except UnsupportedError as error:
            raise UnsupportedError(
                f"step '{step}' of the pipeline is {type(transformer).__name__}, which can't be written as a network "
                f"here: known are {', '.join(sorted(STEPS))}. Apply it beforehand, and give the pipeline behind it"
            ) from error
    return steps, Fitted(last, dtype, ESTIMATORS, name)


def kernel_kmeans(
    X: Any,
    labels: Any,
    gamma: float,
    beta: float,
    normalisers: Sequence[float] | None = None,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Kernel k-means as a softmax over kernel density models of clusters (Kauffmann et al. 2022; spec 9.7).

    p_c = (sum over i in C_c of exp(-gamma |x - x_i|^2) / Z_c)^(beta/gamma), divided by the sum of these. That is no
    k-means around centroids in the kernel's feature space, which has a further term for each cluster.

    Args:
        X: [M,d], the clustered points.
        labels: [M], the cluster of each: numbers or text.
        gamma: Width of the kernel; positive.
        beta: Stiffness of the assignment; positive.
        normalisers: [K], Z of each cluster in the order of sorted labels; None: the number of its points.
        dtype: "float32" or "float64".

    Returns:
        A model with the input `X` [N,d] and the outputs `probabilities` [N,K] and `label` [N], the index into the
        sorted labels, which the property `xaicompile.classes` has.

    Raises:
        RuleError: A parameter is not as it should be.
        ModelError: The points are not.
    """
    number = dtype_of(dtype)
    points = points_of(X, number)
    for name, value in (("gamma", gamma), ("beta", beta)):
        if not isinstance(value, int | float | np.floating | np.integer) or not 0 < float(value) < np.inf:
            raise RuleError(f"{name} is {value!r}, and should be a positive number")
    if np.shape(labels) != (len(points),):
        raise ModelError(f"labels have the shape {list(np.shape(labels))} for {len(points)} points: give one a point")
    classes, of = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < 2:
        raise ModelError("all points have one label: evidence for a cluster needs another one to be against")
    counts = np.bincount(of).astype(float)
    z = counts if normalisers is None else np.asarray(normalisers, float)
    if z.shape != counts.shape or not (np.isfinite(z) & (z > 0)).all():
        raise RuleError(f"normalisers should be {len(counts)} positive numbers, one a cluster")
    members = (of[:, None] == np.arange(len(classes))) / z

    def body(b: Builder, inputs: Sequence[Tensor]) -> Outputs:
        distances = forms.squared_distances(b, inputs[0], b.const(points.astype(number)))
        logits = forms.kernel_logits(b, distances, float(gamma), float(beta), members)
        return {"probabilities": b.Softmax(logits, axis=-1), "label": b.ArgMax(logits, axis=1, keepdims=0)}

    metadata = {KIND: "kernel-kmeans", CLASSES: json.dumps(plain(classes))}
    return new_model({INPUT: (number, ("N", points.shape[1]))}, body, metadata, "kernel-kmeans")


def points_of(x: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Points [M,d] as float64.

    Raises:
        ModelError: They are sparse, no numbers, of another rank, or not finite.
    """
    if hasattr(x, "toarray"):
        raise ModelError("X is sparse: give a dense array")
    try:
        points = np.asarray(x, np.float64)
    except (TypeError, ValueError) as error:
        raise ModelError(f"X should be numbers [points, features]: {error}") from error
    if points.ndim != 2 or not points.size:
        raise ModelError(f"X should be [points, features], and has the shape {list(points.shape)}")
    with np.errstate(over="ignore"):
        if not np.isfinite(points.astype(dtype)).all():
            raise ModelError("X has NaN, infinite or too large numbers")
    return points
