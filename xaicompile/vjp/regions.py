"""RoiAlign and DeformConv: many points read an image between its pixels (`sample.py`) and are summed up; MaxRoiPool."""

from __future__ import annotations

from math import prod

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Context, Message, Messages, stop, vjp
from xaicompile.vjp.linear import Window, into_bias, ints, kernel_size, window_of
from xaicompile.vjp.sample import Taps, along_axis, flattened, into_coordinates, into_image, joint, read
from xaicompile.vjp.shape import flat_from, joined, positions, scatter_add, size_of, sized

stop("MaxRoiPool", 1)
stop("RoiAlign", 1, 2)  # boxes carry nothing, as in torchvision


@vjp("RoiAlign", degree=1)
def roi_align(ctx: Context) -> Messages:
    """c to the pixels that the samples of a box read: to all of them for avg, to the largest term for max."""
    b, x = ctx.b, ctx.x
    sizes = [b.dim(x, 2), b.dim(x, 3)]
    rows, row_lives = box_taps(ctx, 1, sizes[0])
    columns, column_lives = box_taps(ctx, 0, sizes[1])
    taps = joint(b, [across(b, rows, 2), across(b, columns, 1)], sizes)  # [boxes, height, width, taps]
    batch = b.Unsqueeze(b.Cast(ctx.node.inp(2), to=7), [1, 2, 3])
    points = Taps(as_one(b, taps.index + batch * (sizes[0] * sizes[1])), as_one(b, taps.weight))
    planes = b.Transpose(x, perm=[1, 0, 2, 3])
    image = b.Unsqueeze(b.Flatten(planes, axis=1), [0])  # [1, C, all pixels of all images]
    c = b.Unsqueeze(b.Flatten(b.Transpose(ctx.c, perm=[1, 0, 2, 3]), axis=1), [0])
    shares = None
    if ctx.attr("mode") == "max":
        terms = read(b, image, points) * b.Unsqueeze(points.weight, [1])
        both = b.And(b.Unsqueeze(row_lives, [2, 4]), b.Unsqueeze(column_lives, [1, 3]))
        live = b.Unsqueeze(as_one(b, b.Expand(flat_from(b, both, 3), b.Shape(taps.index))), [1])
        best = b.ArgMax(b.where(live, terms, -float("inf"), like=terms), axis=3, keepdims=1)
        shares = b.CastLike(b.Equal(best, positions(b, terms, 3)), terms)
    moved = b.reshape_like(into_image(b, c, points, image, shares), planes)
    return ctx.only(0, b.Transpose(moved, perm=[1, 0, 2, 3]))


def box_taps(ctx: Context, axis: int, size: Tensor) -> tuple[Taps, Tensor]:
    """Where the samples of boxes read along x (0) or y (1), [boxes, bins, taps], and which of them there are."""
    b, boxes = ctx.b, ctx.node.inp(1)
    half = ctx.attr("coordinate_transformation_mode") == "half_pixel"
    bins = int(ctx.attr("output_height" if axis else "output_width"))
    start, end = (
        b.Gather(boxes, b.const(np.asarray(i, np.int64)), axis=1) * float(ctx.attr("spatial_scale"))
        for i in (axis, axis + 2)
    )
    length = end - start if half else b.Max(end - start, 1.0)
    start = start - 0.5 if half else start
    bin_size, ratio = length / float(bins), int(ctx.attr("sampling_ratio"))
    if ratio:
        count = bin_size * 0.0 + float(ratio)
        steps = b.const(np.arange(ratio, dtype=np.int64))
    else:
        count = b.Ceil(bin_size)
        most = b.Max(b.Cast(b.op("ReduceMax", count, keepdims=0), to=7), 1)
        steps = b.Range(b.const(np.asarray(0, np.int64)), most, b.const(np.asarray(1, np.int64)))
    start, bin_size, count = (b.Unsqueeze(t, [1, 2]) for t in (start, bin_size, count))
    step = b.CastLike(steps, count)
    some = b.Max(count, 1.0)
    each_bin = b.const(np.arange(bins, dtype=start.dtype).reshape(1, bins, 1))
    at = start + bin_size * (each_bin + (step + 0.5) / some)
    limit = b.CastLike(size, at)
    read_at_all = b.And(b.And(at >= -1.0, at <= limit), step < count)
    taps = along_axis(b, b.Max(b.Min(at, limit - 1.0), 0.0), size, "linear", "border")
    weight = taps.weight * b.Unsqueeze(b.CastLike(read_at_all, at), [-1])
    if ctx.attr("mode") == "avg":
        weight = weight / b.Unsqueeze(some, [-1])
    live = b.Expand(b.Unsqueeze(step < count, [-1]), b.Shape(taps.index))
    return Taps(flattened(b, taps.index), flattened(b, weight)), flattened(b, live)


def across(b: Builder, taps: Taps, axis: int) -> Taps:
    """Taps of one axis, to be joined with those of the other."""
    return Taps(b.Unsqueeze(taps.index, [axis]), b.Unsqueeze(taps.weight, [axis]))


def as_one(b: Builder, t: Tensor) -> Tensor:
    """[boxes, height, width, taps] as the points of one image, [1, points, taps]."""
    return b.Unsqueeze(b.Flatten(t, axis=3), [0])


@vjp("MaxRoiPool", degree=1)
def max_roi_pool(ctx: Context) -> Messages:
    """c to the first winner of each bin, as in MaxPool; nothing for bins without a pixel."""
    b, x, boxes = ctx.b, ctx.x, ctx.node.inp(1)
    height, width = b.dim(x, 2), b.dim(x, 3)
    batch = b.Cast(b.Gather(boxes, b.const(np.asarray(0, np.int64)), axis=1), to=7)
    images = b.Gather(b.Transpose(x, perm=[0, 3, 1, 2]), batch, axis=0)  # [boxes, W, C, H]
    best, column = winners(b, images, *bins(ctx, 0, width))  # [boxes, bins across, C, H]
    turned = [b.Transpose(t, perm=[0, 3, 1, 2]) for t in (best, column)]  # [boxes, H, bins across, C]
    rows = bins(ctx, 1, height)
    _, row = winners(b, turned[0], *rows)  # [boxes, bins down, bins across, C]
    row = b.Min(row, height - 1)
    column = b.Min(b.GatherElements(turned[1], row, axis=1), width - 1)
    plane = b.Unsqueeze(batch, [1, 2, 3]) * b.dim(x, 1) + positions(b, x, 1)
    place = (plane * height + row) * width + column
    filled = [b.CastLike(count > 0, ctx.c) for _, count in (rows, bins(ctx, 0, width))]
    held = b.Unsqueeze(filled[0], [2, 3]) * b.Unsqueeze(filled[1], [1, 3])
    c = b.Transpose(ctx.c, perm=[0, 2, 3, 1]) * held
    zeros = b.zeros_like(b.Reshape(x, [-1]))
    moved = scatter_add(b, zeros, b.Reshape(place, [-1]), b.Reshape(c, [-1]), axis=0)
    return ctx.only(0, b.reshape_like(moved, x))


def bins(ctx: Context, axis: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Where the bins of the boxes begin along x (0) or y (1), and how many pixels they have, [boxes, bins]."""
    b, boxes, count = ctx.b, ctx.node.inp(1), int(ctx.attr("pooled_shape")[1 - axis])
    ends = []
    for i in (axis + 1, axis + 3):
        at = b.Gather(boxes, b.const(np.asarray([i], np.int64)), axis=1) * float(ctx.attr("spatial_scale"))
        whole = b.Floor(b.Abs(at))  # C rounds a half away from zero
        ends.append(b.Sign(at) * (whole + b.CastLike(b.Abs(at) - whole >= 0.5, at)))
    step = b.Max(ends[1] - ends[0] + 1.0, 1.0) / float(count)
    number = b.const(np.arange(count, dtype=boxes.dtype))
    none = b.const(np.zeros(1, np.int64))
    edges = [b.Floor(number * step), b.Ceil((number + 1.0) * step)]
    first, last = (b.Max(b.Min(b.Cast(e + ends[0], to=7), size), none) for e in edges)
    return first, b.Max(last - first, none)


def winners(b: Builder, x: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each bin along axis 1 of x [boxes, size, ...], and where it stands first, [boxes, bins, ...]."""
    one = b.const(np.ones(1, np.int64))
    most = b.op("ReduceMax", b.Concat(b.Reshape(count, [-1]), one, axis=0), keepdims=0)
    steps = b.Range(b.const(np.asarray(0, np.int64)), most, b.const(np.asarray(1, np.int64)))
    at = b.Min(b.Unsqueeze(first, [2]) + steps, b.dim(x, 1) - 1)  # [boxes, bins, steps]
    inside = b.Unsqueeze(steps < b.Unsqueeze(count, [2]), [3, 4])
    read = b.GatherND(x, b.Unsqueeze(at, [3]), batch_dims=1)
    seen = b.where(inside, read, -float("inf"), like=x)
    step = b.ArgMax(seen, axis=2, keepdims=0)
    return b.ReduceMax(seen, [2], keepdims=0), b.Unsqueeze(first, [2, 3]) + step


@vjp("DeformConv")
def deform_conv(ctx: Context) -> Messages:
    """The transposed kernel at each tap, then as for sampling: image, offsets and mask."""
    b, node = ctx.b, ctx.node
    weight, mask = node.inp(1), node.inp(4) if node.has(4) else None
    if weight.static is None:
        raise UnsupportedError(f"{node}: no gradient where the size of the kernel is not known")
    kernel, group = kernel_size(ctx, weight), int(ctx.attr("group"))
    made, per_group = weight.static[:2]
    per_offset = per_group * group // int(ctx.attr("offset_group"))
    taps = deformed_taps(ctx, window_of(ctx, kernel, ctx.x), prod(kernel))
    points = b.dim(taps.index, 1)
    flat = flattened(b, ctx.x)
    image = b.Reshape(flat, joined(b, [ints(b, [-1, per_offset]), b.dim(flat, 2)]))
    c = sized(b, ctx.c, [b.dim(ctx.c, 0), ints(b, [group, made // group]), size_of(b, ctx.c, 2)])
    kernels = b.Reshape(weight, [group, made // group, per_group * prod(kernel)])
    columns = b.MatMul(b.Transpose(kernels, perm=[0, 2, 1]), c)
    into_columns = b.Reshape(columns, joined(b, [ints(b, [-1, per_offset]), points]))
    factor = None if mask is None else b.Reshape(mask, joined(b, [ints(b, [-1, 1]), points]))
    into_seen = into_columns if factor is None else into_columns * factor
    messages: list[Message] = [None] * len(node.x)
    if ctx.need[0]:
        messages[0] = b.reshape_like(into_image(b, into_seen, taps, image), ctx.x)
    if ctx.need[2]:
        shape = joined(b, [ints(b, [-1, prod(kernel), 1]), b.shape_of(ctx.c, 2)])
        each = [b.Reshape(m, shape) for m in into_coordinates(b, into_seen, taps, image)]
        messages[2] = b.reshape_like(b.Concat(*each, axis=2), node.inp(2))
    if ctx.need[1] or (mask is not None and ctx.need[4]):
        seen = b.ReduceSum(read(b, image, taps) * b.Unsqueeze(taps.weight, [1]), [3], keepdims=0)
        if mask is not None and ctx.need[4]:
            messages[4] = b.reshape_like(b.ReduceSum(into_columns * seen, [1], keepdims=0), mask)
        if ctx.need[1]:
            used = seen if factor is None else seen * factor
            by_group = [b.dim(ctx.c, 0), ints(b, [group, per_group * prod(kernel)]), size_of(b, ctx.c, 2)]
            products = b.MatMul(c, b.Transpose(sized(b, used, by_group), perm=[0, 1, 3, 2]))
            messages[1] = b.reshape_like(b.ReduceSum(products, [0], keepdims=0), weight)
    if node.has(3):
        messages[3] = into_bias(ctx, 3)
    return messages


def deformed_taps(ctx: Context, window: Window, count: int) -> Taps:
    """Where each tap of the kernel reads for each output, [batch * offset groups, kernel * outputs, 4]."""
    b, x, offset = ctx.b, ctx.x, ctx.node.inp(2)
    assert window.begin is not None
    offsets = b.Reshape(offset, joined(b, [ints(b, [-1, count, 2]), b.shape_of(ctx.c, 2)]))
    grid = np.stack(np.meshgrid(*(np.arange(k) for k in window.kernel), indexing="ij")).reshape(2, count, 1, 1)
    taps, sizes = [], [b.dim(x, 2), b.dim(x, 3)]
    for axis in range(2):
        starts = positions(b, ctx.c, 2 + axis) * window.strides[axis] - window.begin[axis]
        place = b.CastLike(b.Unsqueeze(starts, [1]) if axis == 0 else starts, offset)
        moved = b.Gather(offsets, b.const(np.asarray(axis, np.int64)), axis=2)
        at = moved + b.const((grid[axis] * window.dilations[axis]).astype(offset.dtype)) + place
        taps.append(along_axis(b, b.Flatten(at, axis=1), sizes[axis], "linear", "zeros"))
    return joint(b, taps, sizes)
