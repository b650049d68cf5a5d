"""Resize: along each axis a matrix, which is what the op itself makes of an identity matrix.

So each runtime's gradient fits its own rounding, and every mode is covered: coordinates, nearest, cubic, antialias.
Where sizes are known the matrices are constants that runtimes work out when they load the model.
"""

from __future__ import annotations

import numpy as np

from xaicompile.ir import Builder, Tensor
from xaicompile.registry import UNWEIGHTED, Context, Messages, stop, vjp
from xaicompile.vjp.shape import joined, positions, rank_of

stop("Resize", 1, 2, 3)

PASSED_ON = (
    "mode",
    "coordinate_transformation_mode",
    "nearest_mode",
    "antialias",
    "cubic_coeff_a",
    "exclude_outside",
)


@vjp("Resize", linear=UNWEIGHTED)
def resize(ctx: Context) -> Messages:
    """The transposed matrix along each resized axis."""
    c = ctx.c
    for i, axis in enumerate(resized_axes(ctx)):
        if not keeps(ctx, i, axis):
            c = multiplied(ctx.b, c, matrix(ctx, i, axis), axis, ctx.x)
    return ctx.only(0, c)


def resized_axes(ctx: Context) -> list[int]:
    """The axes that scales or sizes speak of."""
    rank = rank_of(ctx.x)
    return [a % rank for a in ctx.attr("axes") or range(rank)]


def policy(ctx: Context) -> bool:
    """True where the sizes are bounds within which the aspect ratio is kept."""
    return ctx.node.has(3) and ctx.attr("keep_aspect_ratio_policy", "stretch") != "stretch"


def keeps(ctx: Context, i: int, axis: int) -> bool:
    """True where an axis is known to stay as it is."""
    if ctx.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        roi = ctx.node.x[1] if ctx.node.has(1) else None
        n = len(resized_axes(ctx))
        if roi is None or roi.value is None or list(roi.value[[i, i + n]]) != [0, 1]:
            return False
    if ctx.node.has(2):
        scales = ctx.node.inp(2).value
        return scales is not None and scales.size > i and float(scales[i]) == 1
    before, after = (None if t.shape is None else t.shape[axis] for t in (ctx.x, ctx.y))
    return before is not None and before == after


def matrix(ctx: Context, i: int, axis: int) -> Tensor:
    """[in, out]: row j is what becomes of the j-th unit vector along the axis.

    Where the aspect ratio is kept the scale depends on the other axes too, which then have to be there.
    """
    b, x = ctx.b, ctx.x
    axes = resized_axes(ctx)
    rank = rank_of(x)
    attrs = {key: ctx.attr(key) for key in PASSED_ON}
    eye = identity(b, x, axis)
    if policy(ctx):
        ones = b.const(np.ones(rank, np.int64))
        lengths = [b.dim(x, a) if a in axes else b.Slice(ones, [a], [a + 1]) for a in range(rank)]
        flat = b.Unsqueeze(eye, [1 + a for a in range(rank) if a != axis])
        units = b.Expand(flat, joined(b, [b.dim(x, axis), *lengths]))
        attrs["keep_aspect_ratio_policy"] = ctx.attr("keep_aspect_ratio_policy")
        made = b.Resize(units, None, None, ctx.node.inp(3), axes=[a + 1 for a in axes], **attrs)
        for a in range(rank, 0, -1):
            if a - 1 != axis:
                made = b.Gather(made, b.const(np.asarray(0, np.int64)), axis=a)
        return made
    units = b.Unsqueeze(eye, [0, 3])  # the outer axes and the last as all runtimes' kernels want them
    part = [None if not ctx.node.has(k) else ctx.node.inp(k) for k in (1, 2, 3)]
    roi, scales, sizes = part
    if roi is not None:
        n = len(axes)
        roi = b.Concat(piece(b, roi, i), piece(b, roi, i + n), axis=0) if roi.shape != (0,) else None
    made = b.Resize(
        units,
        roi,
        None if scales is None else piece(b, scales, i),
        None if sizes is None else piece(b, sizes, i),
        axes=[2],
        **attrs,
    )
    return b.Squeeze(made, [0, 3])


def piece(b: Builder, vector: Tensor, i: int) -> Tensor:
    """One element as a vector of length 1."""
    if vector.value is not None:
        return b.const(vector.value[i : i + 1])
    return b.op("Slice", vector, [i], [i + 1], shape=(1,))


def identity(b: Builder, x: Tensor, axis: int) -> Tensor:
    """The identity matrix of the size of an axis, in x's type."""
    at = positions(b, x, axis)
    return b.CastLike(b.Equal(b.Unsqueeze(at, [1]), b.Unsqueeze(at, [0])), x)


def multiplied(b: Builder, c: Tensor, m: Tensor, axis: int, like: Tensor) -> Tensor:
    """c times a matrix [new, old] along an axis, where `like` has the new size."""
    rank = rank_of(like)
    shape = None if c.shape is None else (*c.shape[:axis], (like.shape or ())[axis], *c.shape[axis + 1 :])
    if axis == rank - 2:
        return b.op("MatMul", m, c, shape=shape)
    turned = b.Transpose(m, perm=[1, 0])
    if axis == rank - 1:
        return b.op("MatMul", c, turned, shape=shape)
    order = [*range(axis), *range(axis + 1, rank), axis]
    back = [int(k) for k in np.argsort(order)]
    return b.op("Transpose", b.MatMul(b.Transpose(c, perm=order), turned), perm=back, shape=shape)
