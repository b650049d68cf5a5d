"""Bodies of classical models (domain `ai.onnx.ml`), as ONNX Runtime computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from onnx import TensorProto

from xaicompile.bodies.record import body
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.body import Body
from xaicompile.registry import zero

DOMAIN = "ai.onnx.ml"
Outputs = Sequence[Tensor | None]

zero("Binarizer", "LabelEncoder", "CategoryMapper", "OneHotEncoder", "DictVectorizer", domain=DOMAIN)


def ml(*ops: str) -> Callable[[Body], Body]:
    """Registers the body of an op of this domain."""
    return body(DOMAIN, *ops)


def floats(v: View, key: str) -> np.ndarray:
    """A list of numbers among the attributes."""
    return np.asarray(v.attrs.get(key) or [], np.float32)


def data(b: Builder, x: Tensor) -> Tensor:
    """The input in the type that these ops compute in."""
    return x if x.dtype == np.float32 else b.Cast(x, to=TensorProto.FLOAT)


def affine(b: Builder, v: View, weights: np.ndarray, shift: np.ndarray) -> Tensor:
    """x W' + b, with one row of W for each result."""
    return b.Gemm(data(b, v.inp(0)), b.const(weights), b.const(shift), transB=1)


def transformed(b: Builder, v: View, scores: Tensor) -> Tensor | None:
    """The scores after the op's post_transform; None for those that are not to be had in standard ops."""
    kind = str(v.attrs.get("post_transform", "NONE"))
    if kind == "NONE":
        return scores
    if kind == "LOGISTIC":
        return b.Sigmoid(scores)
    return b.Softmax(scores, axis=-1) if kind == "SOFTMAX" else None


def classes(v: View) -> int:
    """Number of class labels."""
    return len(v.attrs.get("classlabels_ints") or v.attrs.get("classlabels_strings") or [])


@ml("LinearClassifier")
def linear_classifier(b: Builder, v: View) -> Outputs | None:
    """Scores x W' + b. One score for two classes is z of the second; the runtime makes 1 - z or -z the first's."""
    weights, shift = floats(v, "coefficients"), floats(v, "intercepts")
    rows = shift.size or classes(v)
    z = affine(b, v, weights.reshape(rows, -1), shift if shift.size else np.zeros(rows, np.float32))
    if rows == 1 and classes(v) == 2:
        if v.attrs.get("post_transform", "NONE") != "LOGISTIC":
            return [None, b.Concat(1.0 - z, z, axis=1)]
        z = b.Concat(-z, z, axis=1)
    y = transformed(b, v, z)
    return None if y is None else [None, y]


@ml("LinearRegressor")
def linear_regressor(b: Builder, v: View) -> Outputs | None:
    """x W' + b."""
    targets, shift = int(v.attrs.get("targets", 1)), floats(v, "intercepts")
    weights = floats(v, "coefficients").reshape(targets, -1)
    y = transformed(b, v, affine(b, v, weights, shift if shift.size else np.zeros(targets, np.float32)))
    return None if y is None else [y]


@ml("Scaler")
def scaler(b: Builder, v: View) -> Outputs:
    """(x - offset) scale."""
    return [(data(b, v.inp(0)) - b.const(floats(v, "offset"))) * b.const(floats(v, "scale"))]


@ml("Normalizer")
def normalizer(b: Builder, v: View) -> Outputs:
    """x over its norm in each row; MAX is the largest value with its sign, and rows without a norm stay."""
    x, norm = data(b, v.inp(0)), str(v.attrs.get("norm", "MAX"))
    size = {
        "MAX": lambda: b.ReduceMax(x, [-1], keepdims=1),
        "L1": lambda: b.ReduceL1(x, [-1], keepdims=1),
        "L2": lambda: b.ReduceL2(x, [-1], keepdims=1),
    }[norm]()
    return [x / b.where(b.Equal(size, 0.0), 1.0, size, like=x)]


@ml("Imputer")
def imputer(b: Builder, v: View) -> Outputs | None:
    """x with one value replaced, often NaN, which carries nothing."""
    x, values = v.inp(0), v.attrs.get("imputed_value_floats")
    if not x.is_float or not values:
        return None
    gone = float(v.attrs.get("replaced_value_float", 0.0))
    missing = b.IsNaN(x) if np.isnan(gone) else b.Equal(x, gone)
    return [b.Where(missing, b.const(np.asarray(values, x.dtype)), x)]


@ml("FeatureVectorizer")
def feature_vectorizer(b: Builder, v: View) -> Outputs | None:
    """The columns of all inputs."""
    parts, sizes = [data(b, x) for x in v.x if x is not None], list(v.attrs.get("inputdimensions") or [])
    parts = [b.Unsqueeze(t, [1]) if t.rank == 1 else t for t in parts]
    if any(t.rank != 2 or t.shape is None or t.shape[1] != n for t, n in zip(parts, sizes, strict=False)):
        return None
    return [b.Concat(*parts, axis=1)]


@ml("ArrayFeatureExtractor")
def feature_extractor(b: Builder, v: View) -> Outputs:
    """Some columns."""
    x = v.inp(0)
    picked = b.Gather(x, b.Reshape(v.inp(1), [-1]), axis=-1)
    return [b.Unsqueeze(picked, [0]) if x.rank == 1 else picked]


# Support vector machines


def kernel(b: Builder, v: View, x: Tensor, vectors: np.ndarray) -> Tensor | None:
    """k(x, s) for each support vector s, [batch, vectors]."""
    kind = str(v.attrs.get("kernel_type", "LINEAR")).upper()
    gamma, shift, degree = (*(float(k) for k in v.attrs.get("kernel_params") or []), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        from xaicompile.neuralization import forms

        return b.Exp(forms.expanded(b, *forms.from_centre(b, x, b.const(vectors))) * -gamma)
    product = b.MatMul(x, b.const(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return product
    if kind == "POLY":
        return b.Pow(product * gamma + shift, degree)
    return b.Tanh(product * gamma + shift) if kind == "SIGMOID" else None


@ml("SVMRegressor")
def svm_regressor(b: Builder, v: View) -> Outputs | None:
    """The weighted sum of kernels plus rho; its sign for one class, which carries nothing."""
    x, count = data(b, v.inp(0)), int(v.attrs.get("n_supports", 0))
    weights, rho = floats(v, "coefficients"), b.const(floats(v, "rho")[:1])
    vectors = floats(v, "support_vectors").reshape(count, -1) if count else weights.reshape(1, -1)
    k = kernel(b, v, x, vectors) if count else b.MatMul(x, b.const(weights.reshape(-1, 1)))
    if k is None:
        return None
    y = (b.MatMul(k, b.const(weights.reshape(-1, 1))) if count else k) + rho
    if int(v.attrs.get("one_class", 0)):
        y = b.where(y > 0.0, 1.0, -1.0, like=y)
    result = transformed(b, v, y)
    return None if result is None else [result]


@ml("SVMClassifier")
def svm_classifier(b: Builder, v: View) -> Outputs | None:
    """Linear scores of classes, or the decisions between pairs of classes.

    With two classes the decision is that of the first over the second, and the runtime gives it as [-d, d], or with
    calibration as the probabilities of both. The probabilities of more classes come from an iteration: no body.
    """
    x, rho = data(b, v.inp(0)), floats(v, "rho")
    sizes, count = [int(n) for n in v.attrs.get("vectors_per_class") or []], classes(v)
    weights = floats(v, "coefficients")
    if not sum(sizes):
        scores = b.MatMul(x, b.const(np.ascontiguousarray(weights.reshape(count, -1).T))) + b.const(rho[:1])
        y = transformed(b, v, scores)
        return None if y is None else [None, y]
    k = kernel(b, v, x, floats(v, "support_vectors").reshape(sum(sizes), -1))
    if k is None:
        return None
    d = b.MatMul(k, b.const(between_pairs(weights.reshape(-1, sum(sizes)), sizes))) + b.const(rho)
    calibrated = floats(v, "prob_a")
    if calibrated.size:
        if count != 2 or v.attrs.get("post_transform", "NONE") != "NONE":
            return None
        odds = d * b.const(calibrated) + b.const(floats(v, "prob_b"))
        return [None, b.Sigmoid(b.Concat(-odds, odds, axis=1))]
    if count == 2:
        if v.attrs.get("post_transform", "NONE") not in ("NONE", "LOGISTIC"):
            return [None, b.Concat(1.0 - d, d, axis=1)]
        d = b.Concat(-d, d, axis=1)
    y = transformed(b, v, d)
    return None if y is None else [None, y]


def between_pairs(weights: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """[vectors, pairs]: what each support vector adds to the decision of class i over class j, for all i < j."""
    ends = np.cumsum([0, *sizes])
    places = [slice(a, e) for a, e in pairwise(ends)]
    columns = []
    for i in range(len(sizes)):
        for j in range(i + 1, len(sizes)):
            column = np.zeros(ends[-1], np.float32)
            column[places[i]] = weights[j - 1, places[i]]
            column[places[j]] = weights[i, places[j]]
            columns.append(column)
    return np.stack(columns, axis=1)
