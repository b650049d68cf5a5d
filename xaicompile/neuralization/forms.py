"""Neuralized models in plain ops (spec section 9): distances, soft minima over them, evidence for clusters.

Each form is emitted as standard ops and recorded as one operator of our own, so that rules see what it computes:
`SquaredDistance` [N,d] -> [N,M], `SoftMin` [N,M] -> [N,1], `ClusterEvidence` [N,K] -> [N,K]. Nothing of the size
batch x points x features is ever made.
"""

from __future__ import annotations

import numpy as np

from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.logs import log_sum_exp
from xaicompile.registry import OWN

ROUNDING = 8.0  # digits that |v|^2 - 2 v w + |w|^2 may lose, in units of the last place


def squared_distances(b: Builder, x: Tensor, points: Tensor) -> Tensor:
    """|x - u|^2 from each row of x [N,d] to each point [M,d]: [N,M]."""
    v, w = from_centre(b, x, points)
    return b.read_as(View("SquaredDistance", [v, w], [], domain=OWN), lambda: expanded(b, v, w))


def from_centre(b: Builder, x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the points' mean: what is far from the origin keeps its digits."""
    centre = b.mean_axes(points, [0])
    return x - centre, points - centre


def expanded(b: Builder, v: Tensor, w: Tensor) -> Tensor:
    """|v|^2 + |w|^2 - 2 v w; what rounding leaves of a point's distance to itself is 0."""
    square = b.op("ReduceSumSquare", v, [1], keepdims=1)
    lengths = square + b.Transpose(b.op("ReduceSumSquare", w, [1], keepdims=1), perm=[1, 0])
    found = lengths - b.MatMul(v, b.Transpose(w * 2.0, perm=[1, 0]))
    return b.keep(found, found > lengths * (ROUNDING * float(np.finfo(v.dtype or np.float32).eps)))


def soft_min(b: Builder, a: Tensor) -> Tensor:
    """-log sum exp(a) of [N,M] as [N,1]: a soft minimum of the h = -a >= 0 that distances and normed weights make."""
    return b.read_as(View("SoftMin", [a], [], domain=OWN), lambda: -log_sum_exp(b, a))


def outlierness(b: Builder, distances: Tensor, gamma: float, weights: np.ndarray | None, root: bool = False) -> Tensor:
    """o' = -log sum_j w_j exp(-gamma h_j) [N] >= 0, of squared distances [N,M] or their roots (spec 9.4).

    Args:
        weights: [M], positive; they are divided by their sum. None: all equal.
        root: Exponential kernel: h is the distance, not its square.
    """
    count = distances.shape[1] if distances.shape else None
    assert isinstance(count, int)
    share = np.full(count, 1 / count) if weights is None else weights / weights.sum()
    log_share = b.const(np.log(share).astype(distances.dtype or np.float32))
    a = (b.Sqrt(distances) if root else distances) * -gamma + log_share
    return b.Squeeze(soft_min(b, a), [1])


def cluster_evidence(b: Builder, distances: Tensor) -> Tensor:
    """min over k != c of (d_k - d_c) for each cluster c: [N,K] (spec 9.6); positive for the nearest alone."""

    def make() -> Tensor:
        nearest, second, is_nearest = two_nearest(b, distances)
        return b.Where(is_nearest, second, nearest) - distances

    return b.read_as(View("ClusterEvidence", [distances], [], domain=OWN), make)


def two_nearest(b: Builder, distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest and the second smallest distance, [N,1] each, and which of [N,K] is the (first) smallest."""
    values, places = b.many("TopK", 2, distances, [2], axis=1, largest=0)
    first = b.op("Slice", places, [0], [1], [1])
    count = distances.shape[1] if distances.shape else None
    assert isinstance(count, int)
    is_nearest = b.Equal(b.const(np.arange(count, dtype=np.int64)), first)
    return b.op("Slice", values, [0], [1], [1]), b.op("Slice", values, [1], [2], [1]), is_nearest


def kernel_logits(b: Builder, distances: Tensor, gamma: float, beta: float, members: np.ndarray) -> Tensor:
    """Logits of kernel k-means, [N,K]: beta/gamma log sum_j m_jk exp(-gamma d_j) (spec 9.7).

    Args:
        members: [M,K], the share of a point in the kernel sum of a cluster: 1/Z_k, and 0 for points of others.
    """
    columns = []
    for weights in members.T:
        mine = np.flatnonzero(weights > 0)
        log_share = b.const(np.log(weights[mine]).astype(distances.dtype or np.float32))
        a = b.op("Gather", distances, b.const(mine), axis=1) * -gamma + log_share
        pool = View("ReduceLogSumExp", [a, b.const(np.asarray([1], np.int64))], [], since=b.opset)
        columns.append(b.read_as(pool, lambda a=a: log_sum_exp(b, a)))  # type: ignore[misc]
    return b.Concat(*columns, axis=1) * (beta / gamma)
