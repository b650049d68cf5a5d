"""Slice and Pad: what cuts and what adds at the ends of axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor, View
from xaicompile.registry import Context, Messages, stop, vjp
from xaicompile.vjp.shape import (
    along,
    joined,
    known_axes,
    known_ints,
    padded,
    positions,
    rank_of,
    ranked,
    reverse,
    scatter_add,
    spread_back,
    with_zeros,
    zeros_with_dim,
)

END = 2**63 - 1

stop("Slice", 1, 2, 3, 4)
stop("Pad", 1, 3)


@vjp("Slice", layout=True)
def slice_(ctx: Context) -> Messages:
    """c padded with zeros where steps are 1 or -1, else c gathered among zeros."""
    b, c, node = ctx.b, ctx.c, ctx.node
    if node.has(3) and known_ints(node.x[3]) is None:
        node, c = on_all_axes(b, node), ranked(b, c, rank_of(ctx.x))
    axes = sliced_axes(node)
    steps = known_ints(node.x[4]) if node.has(4) else [1] * len(axes)
    before: dict[int, Tensor] = {}
    for i, axis in enumerate(axes):
        size, step = (ctx.x.shape or ())[axis], None if steps is None else steps[i]
        bounds = [known_ints(node.x[k]) for k in (1, 2)]
        if isinstance(size, int) and bounds[0] is not None and bounds[1] is not None and step is not None:
            kept = range(size)[slice(bounds[0][i], bounds[1][i], step)]  # Python clamps as ONNX does
            if abs(step) != 1 and len(kept) > 1:
                c = spread_back(b, c, np.asarray(kept, np.int64), axis, size)
                continue
            if step < 0 and len(kept) > 1:
                c = reverse(b, c, axis)
            before[axis] = b.const(np.asarray([min(kept, default=0)], np.int64))
            continue
        chosen = b.Slice(positions(b, ctx.x, axis), *(b.Slice(v, [i], [i + 1]) for v in slice_inputs(b, node)))
        if step == 1:
            before[axis] = first_or_zero(b, chosen)
        else:
            c = scatter_add(b, zeros_with_dim(b, c, axis, ctx.x), along(b, chosen, c, axis), c, axis)
    return ctx.only(0, padded(b, c, before, ctx.x) if before else c)


def on_all_axes(b: Builder, node: View) -> View:
    """A Slice or a Pad of axes that are worked out at run time, as one of all axes that leaves the others alone."""
    x, last = node.inp(0), len(node.x) - 1
    rank = rank_of(x)
    axes = b.Mod(b.Cast(node.inp(3), to=7), [rank])
    every = list(node.x)
    if node.op == "Pad":
        zeros = b.const(np.zeros(2 * rank, np.int64))
        every[1] = b.ScatterElements(zeros, b.Concat(axes, axes + rank, axis=0), node.inp(1))
        every[3] = b.const(np.arange(rank, dtype=np.int64))
        return replace(node, x=every)
    for i, idle in ((1, 0), (2, END), (4, 1)):
        if i <= last and node.has(i):
            full = b.const(np.full(rank, idle, np.int64))
            every[i] = b.ScatterElements(full, axes, b.Cast(node.inp(i), to=7))
    every[3] = b.const(np.arange(rank, dtype=np.int64))
    return replace(node, x=every)


def sliced_axes(node: View) -> list[int]:
    """The axes that a Slice cuts, counted from the front."""
    if node.has(3):
        return known_axes(node, 3)
    count = (node.inp(1).shape or (None,))[0]
    if not isinstance(count, int):
        raise UnsupportedError(f"{node}: no gradient where the number of cut axes is not known")
    return list(range(count))


def slice_inputs(b: Builder, node: View) -> list[Tensor]:
    """Starts, ends, axes (all 0: for a vector) and steps."""
    count = len(sliced_axes(node))
    steps = node.inp(4) if node.has(4) else b.const(np.ones(count, np.int64))
    return [node.inp(1), node.inp(2), b.const(np.zeros(count, steps.dtype)), steps]


def first_or_zero(b: Builder, chosen: Tensor) -> Tensor:
    """The first of a vector of positions as a [1] vector, 0 if it is empty."""
    return b.Slice(b.Concat(chosen, b.const(np.zeros(1, np.int64)), axis=0), [0], [1])


@vjp("Pad", layout=True)
def pad(ctx: Context) -> Messages:
    """Constant padding is cut off, and summed for the value; reflected and repeated values go back to their origin."""
    b, c, x, node = ctx.b, ctx.c, ctx.x, ctx.node
    if node.has(3) and known_ints(node.x[3]) is None:
        node, c = on_all_axes(b, node), ranked(b, c, rank_of(x))
    pads, mode = known_ints(node.inp(1)), ctx.attr("mode")
    axes = known_axes(node, 3) if node.has(3) else list(range(rank_of(x)))
    if mode == "constant":
        into_x = cropped(b, c, node.inp(1), pads, axes, x)
        into_value = b.sum_axes(c, list(range(rank_of(x)))) - b.sum_axes(into_x, list(range(rank_of(x))))
        return [into_x, None, into_value][: len(node.x)] + [None] * (len(node.x) - 3)
    for i, axis in enumerate(axes):
        if pads is not None and pads[i] == pads[i + len(axes)] == 0:
            continue
        size, n = (x.shape or ())[axis], len(axes)
        if isinstance(size, int) and pads is not None and min(pads[i], pads[i + n]) >= 0:
            source = b.const(np.pad(np.arange(size, dtype=np.int64), (pads[i], pads[i + n]), mode=mode))
        else:
            ends = joined(b, [b.Slice(node.inp(1), [i], [i + 1]), b.Slice(node.inp(1), [i + n], [i + n + 1])])
            source = b.Pad(positions(b, x, axis), ends, mode=mode)
        c = scatter_add(b, zeros_with_dim(b, c, axis, x), along(b, source, c, axis), c, axis)
    return ctx.only(0, c)


def cropped(b: Builder, c: Tensor, amounts: Tensor, pads: list[int] | None, axes: list[int], x: Tensor) -> Tensor:
    """c without its padding; where padding was negative, with zeros instead of what had been cut off."""
    n = len(axes)
    if pads is None:
        parts = [b.Neg(b.Slice(amounts, [i], [i + 1])) for i in range(2 * n)]
        sides = dict(zip(axes, parts[:n], strict=True)), dict(zip(axes, parts[n:], strict=True))
        return with_zeros(b, c, *sides, x.shape)
    cut = [i for i in range(n) if pads[i] > 0 or pads[i + n] > 0]
    if cut:
        starts = [max(pads[i], 0) for i in cut]
        ends = [-pads[i + n] if pads[i + n] > 0 else END for i in cut]
        c = b.Slice(c, starts, ends, [axes[i] for i in cut])
    back = [b.const(np.asarray([max(-p, 0)], np.int64)) for p in pads]
    return with_zeros(b, c, dict(zip(axes, back[:n], strict=True)), dict(zip(axes, back[n:], strict=True)), x.shape)
