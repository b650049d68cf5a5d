"""Ops that read images between pixels (GridSample, and see `regions.py`), and AffineGrid, which says where.

Along each axis a point has a few taps: positions, weights, and how the weights change with the coordinate. All taps of
all points go into one scatter, whose transpose is the gather that the message for the coordinates needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Context, Messages, stop, vjp
from xaicompile.vjp.shape import flat_from, joined, positions, rank_of, scatter_add, size_of, sized

stop("AffineGrid", 1)
A = -0.75  # of the cubic kernel


@dataclass(frozen=True)
class Taps:
    """What points read: [..., points, taps].

    Attributes:
        index: Which element, int64, within bounds.
        weight: How much of it.
        slopes: d weight / d coordinate for each axis; empty where nobody asks.
    """

    index: Tensor
    weight: Tensor
    slopes: tuple[Tensor, ...] = ()


def along_axis(b: Builder, x: Tensor, size: Tensor, mode: str, padding: str, reflects_at_centres: bool = False) -> Taps:
    """The taps of coordinates x, in pixels, along an axis of a size [1].

    Args:
        mode: nearest, linear or cubic.
        padding: zeros, border or reflection: what stands outside.
        reflects_at_centres: Whether the image ends at the centres of its outer pixels.
    """
    if mode == "nearest":
        base, offsets = b.Round(x), [0]
    else:
        base, offsets = b.Floor(x), [0, 1] if mode == "linear" else [-1, 0, 1, 2]
    t = b.Unsqueeze(x - base, [-1])
    at = b.Unsqueeze(b.Cast(base, to=7), [-1]) + b.const(np.asarray(offsets, np.int64))
    weights, slopes = kernel(b, t, mode)
    if padding == "reflection":
        at = reflected(b, at, size, reflects_at_centres)
    last = size - 1
    if padding == "zeros":
        holds = b.CastLike(b.And(at >= 0, at <= last), weights)
        weights, slopes = weights * holds, slopes * holds
    return Taps(b.Max(b.Min(at, last), b.const(np.zeros(1, np.int64))), weights, (slopes,))


def kernel(b: Builder, t: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Weights of the taps at a fraction t, and their derivatives, side by side on the last axis."""
    if mode == "nearest":
        return t * 0.0 + 1.0, t * 0.0
    if mode == "linear":
        one = t * 0.0 + 1.0
        return b.Concat(1.0 - t, t, axis=-1), b.Concat(-one, one, axis=-1)

    def far(d: Tensor) -> tuple[Tensor, Tensor]:
        return ((d - 5.0) * d + 8.0) * d * A - 4 * A, ((d * 3.0 - 10.0) * d + 8.0) * A

    def near(d: Tensor) -> tuple[Tensor, Tensor]:
        return (d * (A + 2) - (A + 3)) * d * d + 1.0, (d * (3 * (A + 2)) - 2 * (A + 3)) * d

    rest = 1.0 - t
    left, right = [far(t + 1.0), near(t)], [near(rest), far(rest + 1.0)]
    weights = [w for w, _ in (*left, *right)]
    slopes = [*(s for _, s in left), *(-s for _, s in right)]
    return b.Concat(*weights, axis=-1), b.Concat(*slopes, axis=-1)


def reflected(b: Builder, at: Tensor, size: Tensor, at_centres: bool) -> Tensor:
    """Whole positions mirrored at both ends until they are inside."""
    one = b.const(np.ones(1, np.int64))
    if at_centres:
        period = b.Max((size - 1) * 2, one)
        at = b.Mod(at, period)
        return b.Min(at, period - at)
    period = size * 2
    at = b.Mod(at, period)
    return b.Min(at, period - 1 - at)


def joint(b: Builder, axes: Sequence[Taps], sizes: Sequence[Tensor]) -> Taps:
    """The taps of points in the plane or in space from those along each axis, [..., K] each, into [..., K^d]."""
    index, weight = axes[0].index, axes[0].weight
    slopes = list(axes[0].slopes)

    def outer(left: Tensor, right: Tensor) -> Tensor:
        return b.Unsqueeze(left, [-1]) * b.Unsqueeze(right, [-2])

    def flat(t: Tensor) -> Tensor:
        return flat_from(b, t, rank_of(t) - 2)

    for taps, size in zip(axes[1:], sizes[1:], strict=True):
        slopes = [flat(outer(s, taps.weight)) for s in slopes] + [flat(outer(weight, s)) for s in taps.slopes]
        index = flat(b.Unsqueeze(index * size, [-1]) + b.Unsqueeze(taps.index, [-2]))
        weight = flat(outer(weight, taps.weight))
    return Taps(index, weight, tuple(slopes))


def into_image(b: Builder, c: Tensor, taps: Taps, image: Tensor, shares: Tensor | None = None) -> Tensor:
    """c [B, C, points] brought to the pixels of an image [B, C, pixels]; `shares` of each tap if not all of it."""
    spread = b.Unsqueeze(c, [-1]) * b.Unsqueeze(taps.weight, [1])
    spread = spread if shares is None else spread * shares
    index = b.Expand(b.Unsqueeze(taps.index, [1]), b.Shape(spread))
    return scatter_add(b, b.zeros_like(image), flattened(b, index), flattened(b, spread), axis=2, shape=image.shape)


def flattened(b: Builder, t: Tensor) -> Tensor:
    """The first two axes, and the rest as one."""
    return flat_from(b, t, 2)


def as_points(b: Builder, t: Tensor) -> Tensor:
    """[N, ..., d] as [N, points, d]."""
    last = rank_of(t) - 1
    return sized(b, t, [b.dim(t, 0), size_of(b, t, 1, last), b.dim(t, last)])


def read(b: Builder, image: Tensor, taps: Taps) -> Tensor:
    """The pixels that the taps name, [B, C, points, taps]."""
    shape = joined(b, [b.shape_of(image, 0, 2), b.Shape(taps.index, start=1)])
    index = b.Expand(b.Unsqueeze(taps.index, [1]), shape)
    return b.Reshape(b.GatherElements(image, flattened(b, index), axis=2), shape)


def into_coordinates(b: Builder, c: Tensor, taps: Taps, image: Tensor) -> list[Tensor]:
    """The messages for the points' coordinates, [B, points] for each axis."""
    seen = b.ReduceSum(b.Unsqueeze(c, [-1]) * read(b, image, taps), [1], keepdims=0)
    return [b.ReduceSum(seen * slope, [-1], keepdims=0) for slope in taps.slopes]


@vjp("GridSample")
def grid_sample(ctx: Context) -> Messages:
    """The image by a scatter, the grid by the slopes of the taps."""
    b, x, grid = ctx.b, ctx.x, ctx.node.inp(1)
    spatial, mode = rank_of(x) - 2, str(ctx.attr("mode")).removeprefix("bi")
    centres = bool(ctx.attr("align_corners"))
    points = as_points(b, grid)
    sizes = [b.dim(x, 2 + axis) for axis in range(spatial)]
    taps, stretch = [], []
    for axis, size in enumerate(sizes):
        at = b.Gather(points, b.const(np.asarray(spatial - 1 - axis, np.int64)), axis=2) + 1.0
        length = b.CastLike(size, grid)
        stretch.append(((length - 1.0) if centres else length) * 0.5)
        where = at * stretch[-1] if centres else at * stretch[-1] - 0.5
        taps.append(along_axis(b, where, size, mode, str(ctx.attr("padding_mode")), centres))
    all_taps, image, c = joint(b, taps, sizes), flattened(b, x), flattened(b, ctx.c)
    into_x = b.reshape_like(into_image(b, c, all_taps, image), x) if ctx.need[0] else None
    if not ctx.need[1] or mode == "nearest":
        return [into_x, None]
    messages = [m * s for m, s in zip(into_coordinates(b, c, all_taps, image), stretch, strict=True)]
    return [into_x, b.reshape_like(b.Concat(*(b.Unsqueeze(m, [-1]) for m in messages[::-1]), axis=-1), grid)]


@vjp("AffineGrid")
def affine_grid(ctx: Context) -> Messages:
    """c^T times the points of the plain grid, 1 behind them."""
    b, c = ctx.b, ctx.c
    spatial = rank_of(c) - 2
    columns = []
    for axis in range(spatial, 0, -1):
        at, size = b.CastLike(positions(b, c, axis), c), b.CastLike(b.dim(c, axis), c)
        at = at * 2.0 / (size - 1.0) - 1.0 if ctx.attr("align_corners") else (at * 2.0 + 1.0) / size - 1.0
        shape = b.shape_of(c, 1, 1 + spatial)
        others = [i for i in range(spatial) if i != axis - 1]
        columns.append(b.Reshape(b.Expand(b.Unsqueeze(at, others) if others else at, shape), [-1, 1]))
    base = b.Concat(*columns, columns[0] * 0.0 + 1.0, axis=1)
    turned = b.Transpose(as_points(b, c), perm=[0, 2, 1])
    return ctx.only(0, b.op("MatMul", turned, base, shape=ctx.x.shape))
