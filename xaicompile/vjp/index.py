"""Gathers, scatters, and what turns indices into numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Context, Messages, stop, vjp, zero
from xaicompile.vjp.shape import positions, rank_of, scatter_add, spread_back

stop("Gather", 1)
stop("GatherElements", 1)
stop("GatherND", 1)
stop("ScatterElements", 1)
stop("ScatterND", 1)
stop("OneHot", 0, 1)
stop("TopK", 1)
zero("SequenceLength", "OptionalHasElement")


@vjp("Gather", layout=True)
def gather(ctx: Context) -> Messages:
    """c added up where it was gathered; without a scatter where constant indices name each place at most once."""
    b, c, x, indices = ctx.b, ctx.c, ctx.x, ctx.node.inp(1)
    rank, axis = rank_of(x), int(ctx.attr("axis")) % rank_of(x)
    size = (x.shape or ())[axis]
    if indices.value is not None and isinstance(size, int):
        places = indices.value.reshape(-1).astype(np.int64) % size
        if len(set(places.tolist())) == len(places) and indices.rank in (0, 1):
            flat = b.Unsqueeze(c, [axis]) if indices.rank == 0 else c
            return ctx.only(0, spread_back(b, flat, places, axis, size))
    taken = rank_of(indices)
    if axis:  # the gathered axis in front, the axes of the indices before the rest
        order = [*range(axis, axis + taken), *range(axis), *range(axis + taken, taken + rank - 1)]
        c = b.Transpose(c, perm=order)
        x = b.Transpose(x, perm=[axis, *range(axis), *range(axis + 1, rank)])
    points = b.Unsqueeze(as_int64(b, indices), [-1])
    moved = scatter_add(b, b.zeros_like(x), points, c)
    return ctx.only(0, b.Transpose(moved, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank)]) if axis else moved)


def as_int64(b: Builder, indices: Tensor) -> Tensor:
    """Indices in the type that the N-dimensional scatters ask for."""
    return indices if indices.dtype == np.int64 else b.Cast(indices, to=7)


@vjp("GatherElements", layout=True)
def gather_elements(ctx: Context) -> Messages:
    """c added up where it was gathered."""
    axis = int(ctx.attr("axis"))
    zeros = ctx.b.zeros_like(ctx.x)
    return ctx.only(0, scatter_add(ctx.b, zeros, ctx.node.inp(1), ctx.c, axis))


@vjp("GatherND", layout=True)
def gather_nd(ctx: Context) -> Messages:
    """c added up where it was gathered."""
    b, indices, batch = ctx.b, ctx.node.inp(1), int(ctx.attr("batch_dims"))
    if batch:  # say the batch axes' positions in the indices
        rank = rank_of(indices)
        ones = b.const(np.ones(1, np.int64))
        shape = b.Concat(b.shape_of(indices, 0, rank - 1), ones, axis=0)
        grid = []
        for axis in range(batch):
            others = [i for i in range(rank) if i != axis]
            grid.append(b.Expand(b.Unsqueeze(positions(b, indices, axis), others), shape))
        indices = b.Concat(*grid, indices, axis=-1)
    return ctx.only(0, scatter_add(b, b.zeros_like(ctx.x), indices, ctx.c))


@vjp("ScatterElements", degree=1)
def scatter_elements(ctx: Context) -> Messages:
    """Updates gather c; the data gets c where it was not overwritten."""
    axis = int(ctx.attr("axis"))
    return scattered(ctx, ("ScatterElements", "GatherElements"), {"axis": axis})


@vjp("ScatterND", degree=1)
def scatter_nd(ctx: Context) -> Messages:
    """Updates gather c; the data gets c where it was not overwritten."""
    return scattered(ctx, ("ScatterND", "GatherND"), {})


def scattered(ctx: Context, ops: tuple[str, str], attrs: dict[str, Any]) -> Messages:
    """Both scatters; under max and min the winners share c, as with the reductions."""
    b, (data, indices, updates) = ctx.b, (ctx.node.inp(i) for i in range(3))
    scatter, gather = ops
    reduction = ctx.attr("reduction")
    if reduction in ("none", "add"):
        into_data = ctx.c
        if reduction == "none" and ctx.need[0]:
            into_data = b.op(scatter, ctx.c, indices, b.zeros_like(updates), **attrs)
        return [into_data, None, b.op(gather, ctx.c, indices, **attrs) if ctx.need[2] else None]
    if reduction == "mul":
        return multiplied_in(ctx, ops, attrs)
    kept = b.CastLike(b.Equal(data, ctx.y), ctx.c)
    won = b.CastLike(b.Equal(updates, b.op(gather, ctx.y, indices, **attrs)), ctx.c)
    ties = scatter_add(b, kept, indices, won, **attrs)
    share = ctx.c / b.Max(ties, 1.0)
    return [kept * share, None, won * b.op(gather, share, indices, **attrs) if ctx.need[2] else None]


def multiplied_in(ctx: Context, ops: tuple[str, str], attrs: dict[str, Any]) -> Messages:
    """Each factor gets c times the product of the others at its place, right where some are 0."""
    b, (data, indices, updates) = ctx.b, (ctx.node.inp(i) for i in range(3))
    scatter, gather = ops
    flags = [b.Equal(t, 0.0) for t in (data, updates)]
    zeros = [b.CastLike(f, data) for f in flags]
    factors = [ctx.where(f, 1.0, t) for f, t in zip(flags, (data, updates), strict=True)]
    product = b.op(scatter, factors[0], indices, factors[1], reduction="mul", **attrs)
    count = scatter_add(b, zeros[0], indices, zeros[1], **attrs)
    into_data = ctx.c * ctx.where(b.Equal(count, zeros[0]), product / factors[0], 0.0)
    at = [b.op(gather, t, indices, **attrs) for t in (ctx.c, product, count)]
    into_updates = at[0] * ctx.where(b.Equal(at[2], zeros[1]), at[1] / factors[1], 0.0)
    return [into_data, None, into_updates]


@vjp("OneHot")
def one_hot(ctx: Context) -> Messages:
    """The on-value gets the sum of c where it stands, the off-value the rest."""
    b, c = ctx.b, ctx.c
    axes = list(range(rank_of(c)))
    hot = b.OneHot(ctx.node.inp(0), ctx.node.inp(1), b.const(np.asarray([0, 1], c.dtype)), axis=int(ctx.attr("axis")))
    on = b.Unsqueeze(b.sum_axes(c * hot, axes), [0])
    off = b.Unsqueeze(b.sum_axes(c, axes), [0]) - on
    return ctx.only(2, b.Concat(off, on, axis=0))


@vjp("TopK", layout=True)
def top_k(ctx: Context) -> Messages:
    """c put back where the values were."""
    b, indices = ctx.b, ctx.node.y[1] if len(ctx.node.y) > 1 else None
    if indices is None:
        indices = b.many("TopK", 2, ctx.x, ctx.node.x[1], **ctx.node.attrs)[1]
    return ctx.only(0, scatter_add(b, b.zeros_like(ctx.x), indices, ctx.c, int(ctx.attr("axis"))))
