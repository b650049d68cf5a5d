"""Kernel machines and clusterings of scikit-learn as networks (spec sections 9.4 and 9.6)."""

from __future__ import annotations

from itertools import combinations
from math import lgamma, log, pi

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.neuralization import forms
from xaicompile.neuralization.fitted import Fitted

Outputs = dict[str, Tensor]


def kernel_density(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """KernelDensity: o' = -log of the normed kernel sum, and what is left of -score_samples (spec 9.4).

    Returns:
        `outlierness` [N] >= 0 and `outlierness_bias` [1]; their sum is -score_samples (with its atol and rtol at 0).

    Raises:
        UnsupportedError: The kernel or the metric is another one.
    """
    kernel = e.param("kernel")
    if kernel not in ("gaussian", "exponential"):
        raise UnsupportedError(
            f"{e.called} has the kernel {kernel!r}, whose density is 0 far away, or no density of distances: "
            "only gaussian and exponential kernels have an outlierness everywhere"
        )
    metric, power = e.param("metric"), (e.param("metric_params") or {}).get("p", 2)
    if metric not in ("euclidean", "l2") and (metric, power) != ("minkowski", 2):
        raise UnsupportedError(f"{e.called} has the metric {metric!r}: only euclidean distances can be explained")
    tree = e.learned("tree_")
    points, width = e.dense("tree_.data", np.asarray(tree.data)), float(e.exact("bandwidth_"))
    weights = np.ones(len(points)) if tree.sample_weight is None else e.dense("sample_weight", tree.sample_weight)
    points, weights = points[weights > 0], weights[weights > 0]
    d = points.shape[1]
    distances = forms.squared_distances(b, x, e.const(b, points))
    if kernel == "gaussian":
        gamma, bias = 1 / (2 * width**2), d / 2 * log(2 * pi) + d * log(width)
    else:  # the area of the unit sphere in d dimensions times Gamma(d) h^d
        gamma = 1 / width
        bias = log(2) + d / 2 * log(pi) - lgamma(d / 2) + lgamma(d) + d * log(width)
    score = forms.outlierness(b, distances, gamma, weights, root=kernel == "exponential")
    return {"outlierness": score, "outlierness_bias": e.const(b, np.asarray([bias]))}


def radial(e: Fitted) -> float:
    """gamma of a support vector machine with an rbf kernel.

    Raises:
        UnsupportedError: The kernel is another one.
    """
    if e.param("kernel") != "rbf":
        raise UnsupportedError(f"{e.called} has the kernel {e.param('kernel')!r}: only rbf kernels can be explained")
    e.learned("support_vectors_")
    return float(e.exact("_gamma"))


def one_class_svm(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """OneClassSVM: o' = -log(f / sum alpha) of f = sum alpha_j k(x, u_j), and its threshold (spec 9.4).

    Returns:
        `outlierness` [N] >= 0; `outlierness_bias` [1], with which it is -log f; `outlierness_threshold` [1], above
        which `label` is -1, else 1 ([N], int64), as predict gives. A machine with rho <= 0 has no outliers: the
        threshold is left out, and `label` is 1.

    Raises:
        UnsupportedError: The kernel is another one.
    """
    gamma, weights = radial(e), e.exact("dual_coef_")[0]
    points = e.exact("support_vectors_")[weights > 0]
    weights = weights[weights > 0]
    rho, total = float(e.exact("offset_")[0]), float(weights.sum())
    score = forms.outlierness(b, forms.squared_distances(b, x, e.const(b, points)), gamma, weights)
    inlier = b.const(np.asarray(1, np.int64))
    outputs = {"outlierness": score, "outlierness_bias": e.const(b, np.asarray([-log(total)]))}
    if rho <= 0:
        return {**outputs, "label": b.Expand(inlier, b.shape_of(score))}
    threshold = e.const(b, np.asarray([-log(rho / total)]))
    label = b.Where(b.Less(score, threshold), inlier, b.const(np.asarray(-1, np.int64)))
    return {**outputs, "outlierness_threshold": threshold, "label": label}


def k_means(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """KMeans, MiniBatchKMeans and BisectingKMeans: how much nearer each centre is than any other (spec 9.6).

    BisectingKMeans predicts by walking down a tree, whose leaf need not be the nearest centre; here it is.

    Returns:
        `cluster_evidence` [N,K], positive for the nearest centre alone, and `label` [N], its index.

    Raises:
        UnsupportedError: There is but one cluster.
    """
    centres = e.exact("cluster_centers_")
    if len(centres) < 2:
        raise UnsupportedError(f"{e.called} has one cluster, and evidence for it is against no other")
    distances = forms.squared_distances(b, x, e.const(b, centres))
    return {"cluster_evidence": forms.cluster_evidence(b, distances), "label": b.ArgMin(distances, axis=1, keepdims=0)}


def support_vector_classifier(b: Builder, x: Tensor, e: Fitted) -> Outputs:
    """SVC and NuSVC: sum_j alpha_j exp(-gamma |x - u_j|^2) + b for each pair of classes.

    Returns:
        `decision_function` as scikit-learn gives it: [N] for two classes; else [N, K(K-1)/2] (ovo), or [N,K] (ovr),
        votes with the pairs' decisions to break ties. `pairs` [N, K(K-1)/2] for ovr, since votes have no gradient;
        `label` [N], the index into classes_ that predict gives.

    Raises:
        UnsupportedError: The kernel is another one.
    """
    gamma, points = radial(e), e.exact("support_vectors_")
    dual, bias, count = e.exact("dual_coef_"), e.exact("intercept_"), len(e.classes())
    kernels = b.Exp(forms.squared_distances(b, x, e.const(b, points)) * -gamma)
    if count == 2:
        decision = b.Gemm(kernels, e.const(b, dual.T), e.const(b, bias))
        label = b.Cast(b.op("Squeeze", b.GreaterOrEqual(decision, 0.0), [1]), to=7)
        return {"decision_function": b.op("Squeeze", decision, [1]), "label": label}
    pairs = list(combinations(range(count), 2))
    decision = b.Gemm(kernels, e.const(b, pair_weights(dual, e.exact("n_support_").astype(int))), e.const(b, bias))
    first = np.array([[k == i for k in range(count)] for i, _ in pairs])
    second = np.array([[k == j for k in range(count)] for _, j in pairs])
    signs = e.const(b, first.astype(float) - second)
    votes = b.MatMul(b.Where(b.Greater(decision, 0.0), e.const(b, np.ones(1)), e.const(b, np.zeros(1))), signs)
    votes = votes + e.const(b, second.sum(0))
    confidence = b.MatMul(decision, signs)
    with_ties = votes + confidence / ((b.Abs(confidence) + 1.0) * 3.0)
    label = b.ArgMax(with_ties if e.param("break_ties") else votes, axis=1, keepdims=0)
    if e.param("decision_function_shape") == "ovo":
        return {"decision_function": decision, "label": label}
    return {"decision_function": with_ties, "pairs": decision, "label": label}


def pair_weights(dual: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of each support vector in the decision between each two classes, [M, K(K-1)/2].

    Args:
        dual: [K-1, M]: a support vector of class i has its weight against class j in row j - (j > i).
        counts: [K], how many support vectors each class has; they stand in the order of classes.
    """
    ends = np.cumsum(counts)
    of = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
    pairs = list(combinations(range(len(counts)), 2))
    weights = np.zeros((dual.shape[1], len(pairs)))
    for column, (i, j) in enumerate(pairs):
        weights[of[i], column] = dual[j - 1, of[i]]
        weights[of[j], column] = dual[i, of[j]]
    return weights
