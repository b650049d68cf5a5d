"""Less common ops that move, repeat or drop values, and running products."""

from __future__ import annotations

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Context, Message, Messages, stop, vjp
from xaicompile.vjp.linear import ints
from xaicompile.vjp.reduce import others_product
from xaicompile.vjp.shape import along, known_ints, positions, rank_of, scatter_add

stop("Col2Im", 1, 2)
stop("MaxUnpool", 1, 2)
stop("ReverseSequence", 1)
stop("Compress", 1)
stop("TensorScatter", 2)
stop("CumProd", 1)
stop("Range", 1)


@vjp("OptionalGetElement", layout=True)
def optional_get_element(ctx: Context) -> Messages:
    """c."""
    return [ctx.c]


@vjp("Range")
def range_(ctx: Context) -> Messages:
    """The start gets all of c, the step gets c times how often it was taken."""
    b, c = ctx.b, ctx.c
    steps = b.CastLike(positions(b, c, 0), c)
    return [b.sum_axes(c, [0]), None, b.sum_axes(c * steps, [0])]


@vjp("Unique", layout=True)
def unique(ctx: Context) -> Messages:
    """c to the first of each value, where the indices are an output of the node."""
    b, axis = ctx.b, ctx.attr("axis")
    if len(ctx.node.y) < 2 or ctx.node.y[1] is None:
        raise UnsupportedError(f"{ctx.node}: no gradient without its indices; make them an output of the node")
    x, first = ctx.x if axis is not None else b.Reshape(ctx.x, [-1]), ctx.node.out(1)
    at = int(axis or 0) % rank_of(x)
    return [b.reshape_like(scatter_add(b, b.zeros_like(x), along(b, first, ctx.c, at), ctx.c, at), ctx.x)]


@vjp("ReverseSequence", layout=True)
def reverse_sequence(ctx: Context) -> Messages:
    """The same again."""
    axes = {key: int(ctx.attr(key)) for key in ("batch_axis", "time_axis")}
    return ctx.only(0, ctx.b.ReverseSequence(ctx.c, ctx.node.inp(1), **axes))


@vjp("Compress", layout=True)
def compress(ctx: Context) -> Messages:
    """c back to the places that were kept."""
    b, x = ctx.b, ctx.x
    places = b.Squeeze(b.NonZero(ctx.node.inp(1)), [0])
    axis = ctx.attr("axis")
    if axis is None:
        return ctx.only(0, b.reshape_like(scatter_add(b, b.zeros_like(b.Reshape(x, [-1])), places, ctx.c, 0), x))
    axis = int(axis) % rank_of(x)
    return ctx.only(0, scatter_add(b, b.zeros_like(x), along(b, places, ctx.c, axis), ctx.c, axis, x.shape))


@vjp("MaxUnpool", layout=True)
def max_unpool(ctx: Context) -> Messages:
    """c gathered where the values went."""
    flat = [ctx.b.Reshape(t, [-1]) for t in (ctx.c, ctx.node.inp(1))]
    return ctx.only(0, ctx.b.reshape_like(ctx.b.GatherElements(*flat, axis=0), ctx.x))


@vjp("Col2Im", layout=True)
def col_to_im(ctx: Context) -> Messages:
    """c cut into the blocks that were added up."""
    b, c, block = ctx.b, ctx.c, known_ints(ctx.node.x[2])
    if block is None:
        raise UnsupportedError(f"{ctx.node}: no gradient where the shape of the blocks is worked out at run time")
    n = len(block)
    strides, dilations = (list(ctx.attr(key) or [1] * n) for key in ("strides", "dilations"))
    pads = list(ctx.attr("pads") or [0] * 2 * n)
    if any(pads):
        c = b.Pad(c, [0, 0, *pads[:n], 0, 0, *pads[n:]])
    for i in range(n):  # each spatial axis becomes two: the place in the block, and which block
        axis, extent = 2 + 2 * i, dilations[i] * (block[i] - 1) + 1
        starts = every(b, positions(b, c, axis), extent, strides[i])
        inside = b.const(np.arange(block[i], dtype=np.int64)[:, None] * dilations[i])
        c = b.Gather(c, inside + b.Unsqueeze(starts, [0]), axis=axis)
    order = [0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2)]
    return ctx.only(0, b.reshape_like(b.Transpose(c, perm=order), ctx.x))


def every(b: Builder, places: Tensor, extent: int, stride: int) -> Tensor:
    """The places at which a window of some extent begins."""
    if places.value is not None:
        return b.const(places.value[: len(places.value) - extent + 1 : stride])
    return b.Slice(places, [0], [1 - extent] if extent > 1 else [2**63 - 1], [0], [stride])


@vjp("TensorScatter", degree=1)
def tensor_scatter(ctx: Context) -> Messages:
    """The update gathers c; the past gets c where it was not overwritten."""
    b, node, update = ctx.b, ctx.node, ctx.node.inp(1)
    rank = rank_of(update)
    axis = int(ctx.attr("axis")) % rank
    at = b.Unsqueeze(positions(b, update, axis), [0])
    if node.has(2):
        at = at + b.Unsqueeze(node.inp(2), [1])
    if ctx.attr("mode") == "circular":
        at = b.Mod(at, b.dim(ctx.x, axis))
    others = [i for i in range(1, rank) if i != axis]
    indices = b.Expand(b.Unsqueeze(at, others) if others else at, b.shape_of(update))
    messages: list[Message] = [None] * len(node.x)
    if ctx.need[0]:
        messages[0] = b.op("ScatterElements", ctx.c, indices, b.zeros_like(update), axis=axis, shape=ctx.x.shape)
    if ctx.need[1]:
        messages[1] = b.op("GatherElements", ctx.c, indices, axis=axis, shape=update.shape)
    return messages


@vjp("CumProd")
def cumprod(ctx: Context) -> Messages:
    """Each factor of each product gets c times the product of the others, zeros included."""
    b, x = ctx.b, ctx.x
    axes = known_ints(ctx.node.x[1])
    if axes is None:
        raise UnsupportedError(f"{ctx.node}: no gradient for an axis that is worked out at run time")
    rank = rank_of(x)
    axis = axes[0] % rank
    at = positions(b, x, axis)
    product, factor = b.Unsqueeze(at, [1]), b.Unsqueeze(at, [0])
    first, second = (factor, product) if not ctx.attr("reverse") else (product, factor)
    used = first < second if ctx.attr("exclusive") else first <= second
    behind = list(range(2, 2 + rank - 1 - axis))
    used = b.Unsqueeze(used, behind) if behind else used
    factors = b.where(used, b.Unsqueeze(x, [axis]), 1.0, like=x)
    slopes = others_product(b, factors, ints(b, [axis + 1])) * b.CastLike(used, x)
    return ctx.only(0, b.op("ReduceSum", b.Unsqueeze(ctx.c, [axis + 1]) * slopes, [axis], keepdims=0, shape=x.shape))
