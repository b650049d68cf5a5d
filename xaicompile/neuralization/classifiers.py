"""Classifiers and the steps before an estimator, of scikit-learn, as networks (spec section 9.5)."""

from __future__ import annotations

import numpy as np

from xaicompile.ir import Builder, Tensor
from xaicompile.neuralization.fitted import Fitted

Outputs = dict[str, Tensor]
ACTIVATIONS = {"logistic": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}
INT64 = 7


def logistic_regression(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """LogisticRegression: two classes, softmax, or one sigmoid a class (one-vs-rest, older scikit-learn).

    Returns:
        `probabilities` [N,K], and `label` [N], the index into classes_.
    """
    weights, bias = e.exact("coef_"), e.exact("intercept_")
    z = b.Gemm(x, e.const(b, weights.T), e.const(b, np.broadcast_to(bias, len(weights))))
    scheme = e.param("multi_class", "auto")
    if len(weights) == 1:
        return two_classes(b, z, as_softmax=scheme == "multinomial")
    if scheme == "ovr" or (scheme in ("auto", "deprecated") and e.param("solver") == "liblinear"):
        p = b.Sigmoid(z)
        return {"probabilities": p / b.sum_axes(p, [1], keepdims=True), "label": b.ArgMax(z, axis=1, keepdims=0)}
    return {"probabilities": b.Softmax(z, axis=-1), "label": b.ArgMax(z, axis=1, keepdims=0)}


def perceptron(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """MLPClassifier: two classes, softmax, or several labels at once, each with a sigmoid of its own.

    Returns:
        `probabilities` [N,K], and `label`: the index into classes_ [N]; for several labels [N,K] of 0 and 1.
    """
    coefficients, intercepts = e.learned("coefs_"), e.learned("intercepts_")
    for i, (weights, bias) in enumerate(zip(coefficients, intercepts, strict=True)):
        if i and e.param("activation") != "identity":
            x = b.op(ACTIVATIONS[str(e.param("activation"))], x)
        x = b.Gemm(x, e.const(b, e.dense("coefs_", weights)), e.const(b, e.dense("intercepts_", bias)))
    if e.learned("out_activation_") == "softmax":
        return {"probabilities": b.Softmax(x, axis=-1), "label": b.ArgMax(x, axis=1, keepdims=0)}
    if e.learned("n_outputs_") == 1:
        return two_classes(b, x)
    return {"probabilities": b.Sigmoid(x), "label": b.Cast(b.Greater(x, 0.0), to=INT64)}


def two_classes(b: Builder, z: Tensor, as_softmax: bool = False) -> Outputs:
    """Probabilities 1 - p and p of one score [N,1], both as a Sigmoid, so that neither loses digits near 0."""
    both = b.Concat(-z, z, axis=1)
    p = b.Softmax(both, axis=-1) if as_softmax else b.Sigmoid(both)
    return {"probabilities": p, "label": b.ArgMax(both, axis=1, keepdims=0)}


def standard_scaler(b: Builder, x: Tensor, e: Fitted) -> Tensor:
    """(x - mean) / standard deviation, either of them if it was asked for."""
    e.learned("n_samples_seen_")
    if e.param("with_mean"):
        x = x - e.const(b, e.exact("mean_"))
    return x / e.const(b, e.exact("scale_")) if e.param("with_std") else x


def min_max_scaler(b: Builder, x: Tensor, e: Fitted) -> Tensor:
    """x scale + min, cut off at the range if that was asked for."""
    x = x * e.const(b, e.exact("scale_")) + e.const(b, e.exact("min_"))
    if not e.param("clip"):
        return x
    low, high = e.param("feature_range")
    return b.Clip(x, e.const(b, np.asarray(low)), e.const(b, np.asarray(high)))


def principal_components(b: Builder, x: Tensor, e: Fitted) -> Tensor:
    """Projection of x - mean on the components, each over its standard deviation if it whitens."""
    projection = e.exact("components_").T
    if e.param("whiten"):
        scale = np.sqrt(e.exact("explained_variance_"))
        projection = projection / np.maximum(scale, np.finfo(scale.dtype).eps)
    return b.MatMul(x - e.const(b, e.exact("mean_")), e.const(b, projection))
