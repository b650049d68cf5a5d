"""k-means and kernel k-means, read from a graph (spec sections 9.6 and 9.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaicompile.ir import Tensor, View
from xaicompile.neuralization.kernels import Kernels, exponent, some_in_logs
from xaicompile.neuralization.reading import CLOSE, RESHAPED, Differs, Distances, Reader

PICKS = {"ArgMin", "ArgMax", "TopK"}


@dataclass(frozen=True)
class KernelClusters:
    """Softmax of beta/gamma log sum_j m_jk exp(-gamma d_j).

    Attributes:
        members: [M,K], a point's share in the sum of each cluster.
    """

    distances: Distances
    gamma: float
    beta: float
    members: np.ndarray


def k_means(reader: Reader, t: Tensor) -> Distances:
    """Distances to cluster centres, two at least.

    Raises:
        Differs: There are none.
    """
    found = centres(reader, t)
    if found.count < 2:
        raise Differs(f"{reader.at(t)} knows one cluster only, and no rival")
    return found


def centres(reader: Reader, t: Tensor) -> Distances:
    """Distances behind an ArgMin or a root, or in the linear scores 2 x mu - |mu|^2."""
    view = reader.maker(t, RESHAPED)
    while view is not None and not view.domain and view.op in PICKS:
        t = view.inp(0)
        view = reader.maker(t, RESHAPED)
    if view is not None and view.op in ("Where", "Sub") and not view.domain:
        evidence = evidence_of(reader, view)
        if evidence is not None:
            return evidence
    core = reader.source(t, RESHAPED)
    try:
        view = reader.maker(core)
        negative = view is not None and view.op == "Neg" and not view.domain
        return reader.distances(view.inp(0) if view is not None and negative else core)
    except Differs as why:
        linear = reader.maker(t, RESHAPED)
        if linear is None or linear.op not in ("Gemm", "Add", "Sub", "MatMul"):
            raise
        return of_scores(reader, t, why)


def evidence_of(reader: Reader, view: View) -> Distances | None:
    """Distances of cluster evidence as `neuralize` writes it: Where(nearest, second, first) - d."""
    if view.op != "Sub" or (rivals := reader.maker(view.x[0])) is None or rivals.op != "Where":
        return None
    return reader.distances(view.inp(1))


def of_scores(reader: Reader, t: Tensor, why: Differs) -> Distances:
    """Distances of linear scores s (2 x mu - |mu|^2)."""
    product, offset = None, np.zeros(())
    for part in reader.parts(t):
        if part.tensor is None and reader.scalar(part.x) is not None:
            offset = offset + part.weight[0]
        elif part.tensor is not None and product is None:
            product = part
        else:
            raise why
    if product is None or product.tensor is None:
        raise why
    w = product.weight.T
    square, offset = (w**2).sum(1), np.broadcast_to(offset.reshape(-1), len(w))
    with np.errstate(all="ignore"):
        scale = square.sum() / (-4 * offset.sum())
    if not np.isfinite(scale) or not np.allclose(offset, -square / (4 * scale), CLOSE, CLOSE * abs(offset).max()):
        raise Differs(f"the bias in {reader.at(t)} is not -|mu|^2, so its scores are none of distances to centres")
    points = reader.b.Transpose(product.tensor, perm=[1, 0]) * (product.scale / (2 * scale))
    return Distances(reader.source(product.x), points, None)


def kernel_k_means(reader: Reader, t: Tensor) -> KernelClusters:
    """The powers of kernel sums that are divided by their sum, or the logits in front of a Softmax.

    Raises:
        Differs: They are not there.
    """
    view = reader.maker(t)
    softmax = view is not None and view.op == "Softmax" and not view.domain
    if view is not None and softmax:
        t, view = view.inp(0), reader.maker(view.inp(0))
    beta_over_gamma = 1.0
    if view is not None and view.op == "Div" and not view.domain and reader.scalar(view.x[1]) is None:
        total = reader.maker(view.x[1], RESHAPED)
        if total is None or total.op != "ReduceSum" or reader.source(total.inp(0)) is not reader.source(view.inp(0)):
            raise Differs(f"{view!r} divides by no sum over clusters")
        t, view = view.inp(0), reader.maker(view.inp(0))
        if view is not None and view.op == "Pow" and (power := reader.scalar(view.x[1])) is not None:
            beta_over_gamma, t = power, view.inp(0)
        return members_of(reader, t, beta_over_gamma)
    if not softmax:
        raise Differs(f"{reader.at(t)} is neither a Softmax nor a division by the sum over clusters")
    outer = reader.affine(t)
    view = reader.maker(outer.of)
    if view is None or view.domain or view.op not in ("Log", "Concat"):
        raise Differs(f"{reader.at(outer.of)} is neither the logarithm of kernel sums nor their log-sum-exp, joined")
    logs = view.op == "Log"
    found = members_of(reader, view.inp(0), outer.scale) if logs else joined(reader, view, outer.scale)
    shares = np.exp(np.broadcast_to(np.asarray(outer.shift).reshape(-1), found.members.shape[1]) / outer.scale)
    return KernelClusters(found.distances, found.gamma, found.beta, found.members * shares)


def members_of(reader: Reader, t: Tensor, beta_over_gamma: float) -> KernelClusters:
    """exp(-gamma d) @ members, over Z if that stands behind it."""
    view, shares = reader.maker(t), np.ones(1)
    if view is not None and view.op in ("Div", "Mul") and not view.domain:
        constant = reader.numbers(view.x[1])
        if constant is not None:
            shares = 1 / constant.reshape(-1) if view.op == "Div" else constant.reshape(-1)
            view = reader.maker(view.inp(0))
    if view is None or view.domain or view.op not in ("MatMul", "Gemm"):
        raise Differs(f"{reader.at(t)} is no product of kernels with the clusters' members")
    members = reader.numbers(view.x[1])
    exp = reader.maker(view.inp(0))
    if members is None or members.ndim != 2 or (members < 0).any() or exp is None or exp.op != "Exp":
        raise Differs(f"{view!r} is no product of exp(-gamma d) with the clusters' members, which are >= 0")
    if view.op == "Gemm":
        members = (members.T if view.attr("transB") else members) * float(view.attr("alpha"))
    kernels = exponent(reader, reader.affine(exp.inp(0)), exp)
    members = members * kernels.weights[:, None] * shares
    return KernelClusters(kernels.distances, kernels.gamma, beta_over_gamma * kernels.gamma, members)


def joined(reader: Reader, concat: View, scale: float) -> KernelClusters:
    """Log-sum-exps of some of the points each, side by side."""
    found = [some_in_logs(reader, x) for x in concat.x if x is not None]
    distances, gamma = found[0].distances, found[0].gamma
    if any(k.distances.points is not distances.points or k.distances.x is not distances.x for k in found):
        return apart(concat, found, scale)
    if any(not np.isclose(k.gamma, gamma) for k in found):
        raise Differs(f"{concat!r} joins kernels of different width")
    return KernelClusters(distances, gamma, scale * gamma, np.stack([k.weights for k in found], axis=1))


def apart(concat: View, found: list[Kernels], scale: float) -> KernelClusters:
    """The same where each cluster has distances of its own."""
    first, b = found[0], concat.out().builder
    if any(k.distances.x is not first.distances.x or not np.isclose(k.gamma, first.gamma) for k in found):
        raise Differs(f"{concat!r} joins kernels of different inputs or widths")
    if any(k.distances.root for k in found):
        raise Differs(f"{concat!r} joins kernels of distances, and not of their squares")
    points = b.Concat(*(k.distances.points for k in found), axis=0)
    ends = np.cumsum([0, *(k.distances.count for k in found)])
    members = np.zeros((ends[-1], len(found)))
    for c, k in enumerate(found):
        members[ends[c] : ends[c + 1], c] = k.weights
    return KernelClusters(Distances(first.distances.x, points, None), first.gamma, scale * first.gamma, members)
