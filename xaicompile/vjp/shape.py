"""Ops that move, cut, join or repeat values: their transposes are such ops too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.graph import Shape
from xaicompile.registry import Context, Messages, stop, vjp

END = 2**63 - 1

stop("Reshape", 1)
stop("Squeeze", 1)
stop("Unsqueeze", 1)
stop("Split", 1)
stop("Expand", 1)
stop("Tile", 1)
stop("CumSum", 1)
stop("Trilu", 1)
stop("Dropout", 1, 2)
stop("CastLike", 1)


def known_ints(t: Tensor | None) -> list[int] | None:
    """The numbers of an integer constant, None where they are not known."""
    return None if t is None or t.value is None else [int(v) for v in t.value.reshape(-1)]


def rank_of(t: Tensor) -> int:
    """The tensor's rank.

    Raises:
        UnsupportedError: It is not known.
    """
    if t.rank is None:
        raise UnsupportedError(f"the rank of '{t.name}' is not known; state the shapes of the model's inputs")
    return t.rank


def known_axes(node: View, i: int) -> list[int]:
    """The axes that input `i` holds, counted from the front.

    Raises:
        UnsupportedError: They are worked out at run time.
    """
    axes = known_ints(node.x[i])
    if axes is None:
        raise UnsupportedError(f"{node}: no gradient for axes that are worked out at run time ('{node.inp(i).name}')")
    return [a % rank_of(node.inp(0)) for a in axes]


def with_dim(b: Builder, t: Tensor, axis: int, like: Tensor) -> Tensor:
    """t's shape with the dimension of `axis` taken from `like`, as an int64 vector."""
    parts = [b.shape_of(t, 0, axis)] if axis else []
    parts.append(b.dim(like, axis))
    if axis + 1 < rank_of(t):
        parts.append(b.shape_of(t, axis + 1))
    return joined(b, parts)


def positions(b: Builder, x: Tensor, axis: int) -> Tensor:
    """0, 1, ... along an axis of x."""
    size = (x.shape or ())[axis]
    if isinstance(size, int):
        return b.const(np.arange(size, dtype=np.int64))
    zero, one = (b.const(np.asarray(v, np.int64)) for v in (0, 1))
    return b.Range(zero, b.Squeeze(b.dim(x, axis), [0]), one)


def padded(b: Builder, c: Tensor, before: dict[int, Tensor], like: Tensor) -> Tensor:
    """c with zeros before and behind it along some axes, to the size of `like`; `before` holds [1] vectors."""
    behind: dict[int, Tensor] = {}
    for axis, front in before.items():
        sizes = [(t.shape or ())[axis] for t in (like, c)]
        if front.value is not None and all(isinstance(s, int) for s in sizes):
            behind[axis] = b.const(np.asarray([int(sizes[0] or 0) - int(sizes[1] or 0)], np.int64) - front.value)
        else:
            behind[axis] = b.dim(like, axis) - b.dim(c, axis) - front
    shape = tuple((like.shape or ())[i] if i in before else d for i, d in enumerate(c.shape or ()))
    return with_zeros(b, c, before, behind, shape)


def with_zeros(
    b: Builder, c: Tensor, front: dict[int, Tensor], behind: dict[int, Tensor], shape: Shape | None
) -> Tensor:
    """Pad with zeros (cut, where negative), the amounts given as [1] vectors by axis.

    All axes are spelled out: ONNX Runtime's transpose optimizer permutes the amounts of a Pad with an `axes` input as
    if there were one for each axis (seen in 1.32).
    """
    none = b.const(np.zeros(1, np.int64))
    amounts = joined(b, [side.get(axis, none) for side in (front, behind) for axis in range(rank_of(c))])
    if amounts.value is not None and not amounts.value.any():
        return c
    return b.op("Pad", c, amounts, shape=shape)


def size_of(b: Builder, t: Tensor, start: int, end: int | None = None) -> Tensor:
    """How many elements the axes from `start` to `end` hold together, as a [1] vector."""
    dims = (t.shape or ())[start:end]
    if t.rank is not None and all(isinstance(d, int) for d in dims):
        return b.const(np.asarray([math.prod(d for d in dims if isinstance(d, int))], np.int64))
    return b.ReduceProd(b.shape_of(t, start, end), [0], keepdims=1)


def flat_from(b: Builder, t: Tensor, axis: int) -> Tensor:
    """t with the axes from one on merged into the last."""
    last = size_of(b, t, axis)
    shape = None if t.shape is None else (*t.shape[:axis], None if last.value is None else int(last.value[0]))
    return sized(b, t, [b.shape_of(t, 0, axis), last], shape)


def sized(b: Builder, t: Tensor, sizes: Sequence[Tensor], shape: Shape | None = None) -> Tensor:
    """t reshaped to sizes that are all said, in vectors, since nothing is inferred where the batch is empty.

    ONNX Runtime's optimizer would put a -1 for a size that a run tells, but for `allowzero`.
    """
    if all(s.value is not None for s in sizes):
        return b.op("Reshape", t, joined(b, sizes), shape=shape)
    return b.op("Reshape", t, joined(b, sizes), shape=shape, allowzero=1)


def in_groups(b: Builder, t: Tensor, groups: int) -> Tensor:
    """[N, ...] as [N, groups, rest]."""
    rest = size_of(b, t, 1)
    each = b.Div(rest, groups) if rest.value is None else b.const(rest.value // groups)
    return sized(b, t, [b.dim(t, 0), b.const(np.asarray([groups], np.int64)), each])


def joined(b: Builder, vectors: Sequence[Tensor]) -> Tensor:
    """Int64 vectors one after the other; a constant where all are known."""
    if all(v.value is not None for v in vectors):
        return b.const(np.concatenate([np.asarray(v.value).reshape(-1) for v in vectors]))
    return vectors[0] if len(vectors) == 1 else b.Concat(*vectors, axis=0)


@vjp("Dropout", layout=True)
def dropout(ctx: Context) -> Messages:
    """c; where it may be in training, c y/x, which says what was kept."""
    training = known_ints(ctx.node.x[2]) if ctx.node.has(2) else [0]
    if training == [0]:
        return ctx.only(0, ctx.c)
    is_zero = ctx.b.Equal(ctx.x, 0.0)
    return ctx.only(0, ctx.c * (ctx.y / ctx.where(is_zero, 1.0, ctx.x)))


@vjp("Identity", layout=True)
@vjp("Expand", layout=True)
def unchanged(ctx: Context) -> Messages:
    """c; what Expand added is summed by the backward loop."""
    return ctx.only(0, ctx.c)


@vjp("Cast", layout=True)
@vjp("CastLike", layout=True)
def cast(ctx: Context) -> Messages:
    """c in the input's type."""
    return ctx.only(0, ctx.c if ctx.c.dtype == ctx.x.dtype else ctx.b.CastLike(ctx.c, ctx.x))


@vjp("Reshape", layout=True)
@vjp("Flatten", layout=True)
@vjp("Squeeze", layout=True)
@vjp("Unsqueeze", layout=True)
def reshaped(ctx: Context) -> Messages:
    """c in the input's shape."""
    return ctx.only(0, ctx.b.reshape_like(ctx.c, ctx.x))


@vjp("Transpose", layout=True)
def transpose(ctx: Context) -> Messages:
    """The inverse permutation."""
    perm = ctx.attr("perm")
    if perm is None:
        return [ctx.b.Transpose(ctx.c)]
    return [ctx.b.Transpose(ctx.c, perm=[int(i) for i in np.argsort(perm)])]


@vjp("DepthToSpace", layout=True)
def depth_to_space(ctx: Context) -> Messages:
    """SpaceToDepth, or for CRD (of which there is no inverse op) reshape, transpose, reshape."""
    b, size = ctx.b, int(ctx.attr("blocksize"))
    if ctx.attr("mode") == "DCR":
        return [b.SpaceToDepth(ctx.c, blocksize=size)]
    block = b.const(np.asarray([size], np.int64))
    shape = joined(b, [b.shape_of(ctx.c, 0, 2), b.dim(ctx.x, 2), block, b.dim(ctx.x, 3), block])
    split = b.Transpose(b.Reshape(ctx.c, shape), perm=[0, 1, 3, 5, 2, 4])
    return [b.reshape_like(split, ctx.x)]


@vjp("SpaceToDepth", layout=True)
def space_to_depth(ctx: Context) -> Messages:
    """DepthToSpace."""
    return [ctx.b.DepthToSpace(ctx.c, blocksize=int(ctx.attr("blocksize")), mode=ctx.attr("mode", "DCR"))]


@vjp("CumSum", degree=1)
def cumsum(ctx: Context) -> Messages:
    """The sum from the other end."""
    flags = {"reverse": 1 - int(ctx.attr("reverse")), "exclusive": int(ctx.attr("exclusive"))}
    return ctx.only(0, ctx.b.CumSum(ctx.c, ctx.node.inp(1), **flags))


@vjp("Trilu", layout=True)
def trilu(ctx: Context) -> Messages:
    """The same triangle of c."""
    return ctx.only(0, ctx.b.Trilu(ctx.c, *ctx.node.x[1:], upper=int(ctx.attr("upper"))))


@vjp("Concat", layout=True)
def concat(ctx: Context) -> Messages:
    """Each input's part of c."""
    b, axis, inputs = ctx.b, int(ctx.attr("axis")), [ctx.node.inp(i) for i in range(len(ctx.node.x))]
    if len(inputs) == 1:
        return [ctx.c]
    axis %= rank_of(ctx.c)
    sizes = [b.dim(t, axis) for t in inputs]
    if sum(ctx.need) == 1:
        i = list(ctx.need).index(True)
        start = total(b, sizes[:i])
        return ctx.only(i, b.op("Slice", ctx.c, start, total(b, [start, sizes[i]]), [axis], shape=inputs[i].shape))
    return list(b.many("Split", len(inputs), ctx.c, joined(b, sizes), axis=axis))


def total(b: Builder, sizes: Sequence[Tensor]) -> Tensor:
    """The sum of [1] vectors; 0 of none."""
    if all(s.value is not None for s in sizes):
        return b.const(np.asarray([sum(int(np.asarray(s.value)[0]) for s in sizes)], np.int64))
    result = sizes[0]
    for size in sizes[1:]:
        result = result + size
    return result


@vjp("Split", layout=True)
def split(ctx: Context) -> Messages:
    """The parts of c side by side, zeros where an output carries nothing."""
    b, axis = ctx.b, int(ctx.attr("axis"))
    parts = [g if g is not None else b.zeros_like(ctx.node.out(i)) for i, g in enumerate(ctx.g)]
    return ctx.only(0, b.op("Concat", *parts, axis=axis, shape=ctx.x.shape) if len(parts) > 1 else parts[0])


def ranked(b: Builder, t: Tensor, rank: int) -> Tensor:
    """t as a tensor of known rank."""
    return t if t.rank is not None else b.op("Identity", t, shape=(None,) * rank)


def reverse(b: Builder, c: Tensor, axis: int) -> Tensor:
    """c back to front along an axis."""
    return b.op("Slice", c, [-1], [-END], [axis], [-1], shape=c.shape)


def spread_back(b: Builder, c: Tensor, places: np.ndarray, axis: int, size: int) -> Tensor:
    """An array of `size` along the axis with c at `places` (each at most once) and zeros elsewhere."""
    source = np.full(size, len(places), np.int64)
    source[places] = np.arange(len(places))
    if (source == len(places)).any():
        c = with_zeros(b, c, {}, {axis: b.const(np.ones(1, np.int64))}, None)
    return b.Gather(c, source, axis=axis)


def zeros_with_dim(b: Builder, c: Tensor, axis: int, like: Tensor) -> Tensor:
    """Zeros of c's type and shape, but with the dimension of `axis` as in `like`."""
    shape = None if c.shape is None else (*c.shape[:axis], (like.shape or ())[axis], *c.shape[axis + 1 :])
    zero = b.const(np.zeros((), c.dtype))
    return b.op("Expand", zero, with_dim(b, c, axis, like), shape=shape)


def scatter_add(
    b: Builder, zeros: Tensor, indices: Tensor, c: Tensor, axis: int | None = None, shape: Shape | None = None
) -> Tensor:
    """c added up at indices: along an axis, or at points. In float32 for float16, which runtimes refuse to add up."""
    wide = c.dtype == np.float16
    if wide:
        zeros, c = b.Cast(zeros, to=1), b.Cast(c, to=1)
    if axis is None:
        moved = b.op("ScatterND", zeros, indices, c, reduction="add", shape=shape)
    else:
        moved = b.op("ScatterElements", zeros, indices, c, axis=axis, reduction="add", shape=shape)
    return b.Cast(moved, to=10) if wide else moved


def along(b: Builder, vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """A vector that runs along one axis, expanded to the shape of `like`."""
    rank = rank_of(like)
    others = [i for i in range(rank) if i != axis]
    return b.Expand(b.Unsqueeze(vector, others) if others else vector, b.shape_of(like))


@vjp("Tile", layout=True)
def tile(ctx: Context) -> Messages:
    """The sum over the copies."""
    b, x, repeats = ctx.b, ctx.x, ctx.node.inp(1)
    rank = rank_of(x)
    counts = known_ints(repeats)
    parts: list[Tensor] = []
    summed: list[int] = []
    for axis in range(rank):
        if counts is None or counts[axis] != 1:
            summed.append(len(parts))
            parts.append(
                b.Slice(repeats, [axis], [axis + 1]) if counts is None else b.const(np.asarray([counts[axis]]))
            )
        parts.append(b.dim(x, axis))
    if not summed:
        return ctx.only(0, ctx.c)
    return ctx.only(0, b.op("ReduceSum", sized(b, ctx.c, parts), summed, keepdims=0, shape=x.shape))
