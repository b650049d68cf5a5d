"""Weighted sums of kernels: density estimates and one-class SVMs, read from a graph (spec section 9.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaicompile.ir import Tensor, View
from xaicompile.neuralization.reading import RESHAPED, Affine, Differs, Distances, Reader
from xaicompile.passes.patterns import Any, Match, Op, found

X = Any("x")
LARGEST = Op("ReduceMax", X)
STABLE = Op("Add", Op("Log", Op("ReduceSum", Op("Exp", Op("Sub", X, LARGEST)))), LARGEST)
SIGNS = {"Sign", "Where"}


@dataclass(frozen=True)
class Kernels:
    """f = sum_j w_j exp(-gamma h_j), with h the squared distances or their roots.

    Attributes:
        gamma: [1], or what multiplies h.
        weights: [M], positive; points without weight have 0.
    """

    distances: Distances
    gamma: float
    weights: np.ndarray


@dataclass(frozen=True)
class Scored:
    """What a model makes of a sum of kernels: the sum itself less a threshold, its logarithm, or a sign.

    Attributes:
        threshold: rho of f - rho; 0 where nothing is subtracted.
    """

    kernels: Kernels
    threshold: float = 0.0


def scored(reader: Reader, t: Tensor) -> Scored:
    """A sum of kernels behind a score.

    Raises:
        Differs: There is none.
    """
    t = unsigned(reader, t)
    outer = reader.affine(reader.source(t, RESHAPED))
    core = reader.source(outer.of, RESHAPED)
    inner = reader.affine(core)  # behind a reshape
    scale, offset = outer.scale * inner.scale, outer.shift + outer.scale * np.asarray(inner.shift)
    core = reader.source(inner.of, RESHAPED)
    view = reader.maker(core)
    logs = log_sum(reader, core)
    if logs is not None:
        return Scored(logs)
    if view is not None and view.op == "Log" and not view.domain:
        return Scored(kernel_sum(reader, view.inp(0)))
    if view is not None and view.op == "Gemm" and view.has(2):
        bias = reader.numbers(view.x[2])
        offset = offset + scale * float(view.attr("beta")) * np.asarray(0.0 if bias is None else bias)
    kernels = kernel_sum(reader, core)
    if np.size(offset) != 1:
        raise Differs(f"what is added to {reader.at(core)} is not one number")
    negative = (kernels.weights < 0).any()
    if negative and (kernels.weights > 0).any():
        raise Differs(f"the weights in {reader.at(core)} have both signs: a classifier, and no density")
    sign = -scale if negative else scale
    if sign <= 0:
        offset, sign = -np.asarray(offset), abs(scale)
    weights = np.abs(kernels.weights)
    threshold = -float(np.reshape(offset, -1)[0]) / sign
    return Scored(Kernels(kernels.distances, kernels.gamma, weights), threshold)


def unsigned(reader: Reader, t: Tensor) -> Tensor:
    """The score in front of a sign: Sign(y), or Where(y > 0, 1, -1)."""
    view = reader.maker(t, RESHAPED)
    if view is None or view.domain or view.op not in SIGNS:
        return t
    if view.op == "Sign":
        return view.inp(0)
    asked = reader.maker(view.x[0])
    numbers = [reader.scalar(x) for x in view.x[1:3]]
    compares = asked is not None and asked.op in ("Greater", "GreaterOrEqual")
    return asked.inp(0) if asked is not None and compares and numbers == [1.0, -1.0] else t


def log_sum(reader: Reader, t: Tensor) -> Kernels | None:
    """log sum_j exp(-gamma h_j + log w_j), written as ReduceLogSumExp or with the largest term taken out."""
    a = summed_in_logs(reader, t)
    return None if a is None else exponent(reader, reader.affine(a[0]), a[1])


def summed_in_logs(reader: Reader, t: Tensor) -> tuple[Tensor, View] | None:
    """a of log sum exp(a), and the node that ends it."""
    view = reader.maker(t, RESHAPED)
    if view is None or view.domain:
        return None
    if view.op == "ReduceLogSumExp":
        return view.inp(0), view
    match = next(found(STABLE, view.out(), reader.producers, Match({})), None)
    return None if match is None else (match.bound["x"], view)


def some_in_logs(reader: Reader, t: Tensor) -> Kernels:
    """log sum over some of the points, picked by Gather or Slice; the weights of all others are 0.

    Raises:
        Differs: t is no such sum.
    """
    outer = reader.affine(reader.source(t, RESHAPED))
    found_sum = summed_in_logs(reader, outer.of)
    if found_sum is None or not np.isclose(outer.scale, 1.0):
        raise Differs(f"{reader.at(t)} is no log-sum-exp of kernels")
    a = reader.affine(found_sum[0])
    pick = reader.maker(a.of)
    if pick is None or pick.domain or pick.op not in ("Gather", "Slice", "Split"):
        kernels = exponent(reader, a, found_sum[1])
        return Kernels(kernels.distances, kernels.gamma, kernels.weights * np.exp(outer.shift))
    inner = reader.affine(pick.inp(0))
    all_of = exponent(reader, Affine(inner.of, a.scale * inner.scale, a.scale * np.asarray(inner.shift)), found_sum[1])
    places = picked(reader, pick, a.of, all_of.distances.count)
    weights = np.zeros(all_of.distances.count)
    shift = np.asarray(a.shift).reshape(-1) + np.asarray(outer.shift).reshape(-1)
    weights[places] = all_of.weights[places] * np.exp(shift)
    return Kernels(all_of.distances, all_of.gamma, weights)


def picked(reader: Reader, pick: View, t: Tensor, count: int) -> np.ndarray:
    """The columns that a node picks."""
    columns = np.arange(count)
    if pick.op == "Split":
        sizes = reader.numbers(pick.x[1]) if pick.has(1) else np.full(len(pick.y), count // len(pick.y))
        place = next((i for i, y in enumerate(pick.y) if y is t), None)
        if sizes is None or place is None or pick.attr("axis") not in (1, -1):
            raise Differs(f"{pick!r} does not split points into clusters of known size")
        part: np.ndarray = np.split(columns, np.cumsum(sizes)[:-1].astype(int))[place]
        return part
    if pick.op == "Gather":
        places = reader.numbers(pick.x[1])
        if places is None or pick.attr("axis") not in (1, -1):
            raise Differs(f"{pick!r} does not pick known points")
        part = columns[places.reshape(-1).astype(int)]
        return part
    given = [reader.numbers(x) for x in pick.x[1:]]
    if any(g is None or g.size != 1 for g in given) or int(given[2][0] if len(given) > 2 else 0) not in (1, -1):  # type: ignore[index]
        raise Differs(f"{pick!r} does not take a known part of the points")
    start, end, step = (int(given[i][0]) if i < len(given) else 1 for i in (0, 1, 3))  # type: ignore[index]
    part = columns[start:end:step]
    return part


def exponent(reader: Reader, a: Affine, view: View) -> Kernels:
    """exp(scale h + shift), with h squared distances or their roots."""
    distances = reader.distances(a.of, exact=False)
    if a.scale >= 0:
        raise Differs(f"{view!r} grows with the distance")
    shift = np.asarray(a.shift, np.float64)
    if distances.excess is not None:
        shift = shift + a.scale * distances.excess
    weights = np.broadcast_to(np.exp(shift).reshape(-1), (distances.count,))
    return Kernels(distances, -a.scale, weights)


def kernel_sum(reader: Reader, t: Tensor) -> Kernels:
    """sum_j w_j exp(...) as MatMul, Gemm, ReduceSum or ReduceMean.

    Raises:
        Differs: t is no such sum.
    """
    outer = reader.affine(reader.source(t, RESHAPED))
    view = reader.maker(outer.of, RESHAPED)
    if view is None or view.domain or view.op not in ("MatMul", "Gemm", "ReduceSum", "ReduceMean"):
        raise Differs(f"{reader.at(t)} is no sum over kernels (MatMul, Gemm, ReduceSum or ReduceMean of exp(-gamma h))")
    factor: np.ndarray | float = outer.scale
    inner = view.inp(0)
    if view.op in ("MatMul", "Gemm"):
        weights = reader.numbers(view.x[1])
        if weights is None:
            raise Differs(f"{view!r} multiplies with no constant weights")
        if weights.size != max(weights.shape):
            raise Differs(f"{view!r} makes more than one sum")
        factor = factor * weights.reshape(-1) * (float(view.attr("alpha")) if view.op == "Gemm" else 1.0)
    exp = reader.maker(inner)
    if exp is not None and exp.op == "Mul" and not exp.domain:
        constant = [reader.numbers(x) for x in exp.x]
        side = next((i for i, c in enumerate(constant) if c is not None), None)
        if side is not None:
            factor = factor * np.asarray(constant[side]).reshape(-1)
            exp = reader.maker(exp.inp(1 - side))
    if exp is None or exp.op != "Exp" or exp.domain:
        raise Differs(f"{view!r} sums no exponentials, but {reader.at(inner)}")
    kernels = exponent(reader, reader.affine(exp.inp(0)), exp)
    share = 1 / kernels.distances.count if view.op == "ReduceMean" else 1.0
    return Kernels(kernels.distances, kernels.gamma, kernels.weights * factor * share)
