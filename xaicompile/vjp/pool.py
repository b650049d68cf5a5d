"""Pooling over windows, and local response normalisation.

Averages and p-norms sum over windows: one channel's convolution with a kernel of ones, whose transpose is the
convolution's (`linear.py`). Planes are merged into the batch for it, so that no size has to be known.
"""

from __future__ import annotations

from math import prod

import numpy as np

from xaicompile.half import narrowed, widened
from xaicompile.ir import Builder, Tensor
from xaicompile.registry import UNWEIGHTED, Context, Messages, vjp
from xaicompile.vjp.linear import Window, conv_transposed, window_of
from xaicompile.vjp.reduce import lp_derivative, lp_share
from xaicompile.vjp.shape import joined, positions, scatter_add, size_of, sized


@vjp("MaxPool", degree=1)
def max_pool(ctx: Context) -> Messages:
    """c to the first winner of each window, as in torch; windows that overlap add up."""
    b = ctx.b
    if len(ctx.node.y) > 1 and ctx.node.y[1] is not None and not ctx.attr("storage_order"):
        places = ctx.node.out(1)
    else:
        attrs = {k: v for k, v in ctx.node.attrs.items() if k != "storage_order"}
        places = b.many("MaxPool", 2, ctx.x, **attrs)[1]
    zeros = b.zeros_like(b.Reshape(ctx.x, [-1]))
    moved = scatter_add(b, zeros, b.Reshape(places, [-1]), b.Reshape(ctx.c, [-1]), axis=0)
    return [b.reshape_like(moved, ctx.x)]


@vjp("AveragePool", linear=UNWEIGHTED)
def average_pool(ctx: Context) -> Messages:
    """c over the number of elements in each window, to each of them."""
    window = pool_window(ctx)
    return [spread(ctx, over_counts(ctx, window), window)]


@vjp("LpPool", degree=1)
def lp_pool(ctx: Context) -> Messages:
    """The sum over windows of c (|x|/y)^(p-1) sign(x), 0 where y is 0."""
    return [lp_derivative(ctx, ctx.x, spread(ctx, lp_share(ctx), pool_window(ctx)))]


def pool_window(ctx: Context) -> Window:
    """The window with the padding behind that `ceil_mode` implies, where the sizes are known."""
    window = window_of(ctx, ctx.attr("kernel_shape"), ctx.x)
    if not ctx.attr("ceil_mode") or window.begin is None or window.end is None:
        return window
    end = []
    for i, extent in enumerate(window.extent):
        size, made = ((t.shape or ())[2 + i] for t in (ctx.x, ctx.y))
        if not isinstance(size, int) or not isinstance(made, int):
            return Window(window.kernel, window.strides, window.dilations, window.begin, None)
        end.append(max((made - 1) * window.strides[i] + extent - size - window.begin[i], window.end[i]))
    return Window(window.kernel, window.strides, window.dilations, window.begin, tuple(end))


def spread(ctx: Context, c: Tensor, window: Window) -> Tensor:
    """The transpose of summing over windows."""
    b, x = ctx.b, ctx.x
    if set(window.kernel) == set(window.strides) == {1} and not any((window.begin or (1,)) + (window.end or (1,))):
        return c  # what adaptive pooling to the input's own size becomes
    kernel = b.const(np.ones((1, 1, *window.kernel), c.dtype))
    planes = [b.op("Reshape", t, plane_shape(b, t), shape=(None, 1, *(t.shape or ())[2:])) for t in (c, x)]
    return b.reshape_like(conv_transposed(b, planes[0], kernel, window, 1, planes[1]), x)


def plane_shape(b: Builder, t: Tensor) -> Tensor:
    """[-1, 1, spatial...]: every plane of [N, C, spatial...] a sample of one channel."""
    return joined(b, [b.const(np.asarray([-1, 1], np.int64)), b.shape_of(t, 2)])


def over_counts(ctx: Context, window: Window) -> Tensor:
    """c divided by how many elements each window averages."""
    rank = len(window.kernel)
    pads = ctx.attr("pads", [0] * 2 * rank)
    if ctx.attr("auto_pad") == "VALID":
        pads = [0] * 2 * rank
    padded = window.begin is None or any(window.begin) or any(pads) or ctx.attr("auto_pad").startswith("SAME")
    if not (ctx.attr("ceil_mode") or (padded and not ctx.attr("count_include_pad"))):
        return ctx.c if set(window.kernel) == {1} else ctx.c / float(prod(window.kernel))
    result = ctx.c
    for i in range(rank):
        taps = axis_counts(ctx, window, i, pads[rank + i])
        if taps.value is not None:
            taps = ctx.b.const(taps.value.astype(ctx.c.dtype).reshape(-1, *[1] * (rank - 1 - i)))
        else:
            taps = ctx.b.CastLike(ctx.b.Reshape(taps, [-1, *[1] * (rank - 1 - i)]), ctx.c)
        result = result / taps
    return result


def axis_counts(ctx: Context, window: Window, axis: int, end: int) -> Tensor:
    """How many positions of each window count, along one spatial axis; int64."""
    b, include = ctx.b, bool(ctx.attr("count_include_pad"))
    size, made = ((t.shape or ())[2 + axis] for t in (ctx.x, ctx.y))
    stride, dilation, span = window.strides[axis], window.dilations[axis], window.extent[axis]
    steps = np.arange(window.kernel[axis], dtype=np.int64) * dilation
    known = window.begin is not None
    begin = window.begin[axis] if window.begin is not None else 0
    if known and isinstance(size, int) and isinstance(made, int):
        if include and window.end is not None and ctx.attr("auto_pad") not in ("NOTSET", ""):
            end = window.end[axis]
        places = (np.arange(made, dtype=np.int64) * stride - begin)[:, None] + steps
        low, high = (-begin, size + end) if include else (0, size)
        return b.const(((places >= low) & (places < high)).sum(1))
    length = b.dim(ctx.x, 2 + axis)
    front = b.const(np.asarray([begin], np.int64))
    if not known:
        total = b.Max((b.dim(ctx.y, 2 + axis) - 1) * stride + span - length, b.const(np.asarray([0], np.int64)))
        front = b.Div(total + (1 if ctx.attr("auto_pad") == "SAME_LOWER" else 0), 2)
    first = b.Unsqueeze(positions(b, ctx.y, 2 + axis) * stride - front, [1])
    at = first + b.const(steps)
    inside = b.And(at >= -front, at < length + end) if include else b.And(at >= 0, at < length)
    counted = b.Cast(inside, to=7)
    return b.ReduceSum(counted, [1], keepdims=0)


@vjp("LRN")
def lrn(ctx: Context) -> Messages:
    """c d^-beta - 2 alpha beta/size x W'(c x d^(-beta-1)), with d the denominator's base and W the channel window."""
    b, x, c = ctx.b, widened(ctx.b, ctx.x), widened(ctx.b, ctx.c)  # squares above 65504 are infinite in half precision
    size, alpha, beta = int(ctx.attr("size")), float(ctx.attr("alpha")), float(ctx.attr("beta"))
    before = (size - 1) // 2
    d = channel_sums(b, x * x, size, before) * (alpha / size) + float(ctx.attr("bias"))
    power = b.Pow(d, -beta)
    inner = channel_sums(b, c * x * (power / d), size, size - 1 - before)
    return [narrowed(b, c * power - x * inner * (2 * alpha * beta / size), ctx.x)]


def channel_sums(b: Builder, t: Tensor, size: int, before: int) -> Tensor:
    """Sums over a window of channels that starts `before` channels earlier."""
    one = b.const(np.asarray([1], np.int64))
    planes = sized(b, t, [b.dim(t, 0), one, b.dim(t, 1), size_of(b, t, 2)])
    pads = [before, 0, size - 1 - before, 0]
    means = b.AveragePool(planes, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    return b.reshape_like(means * float(size), t)
