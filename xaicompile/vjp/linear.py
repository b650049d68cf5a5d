"""Linear ops: exact transposes. The transpose of a convolution stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Context, Linear, Message, Messages, vjp
from xaicompile.vjp.blocked import in_blocks, is_blocked
from xaicompile.vjp.kernels import into_kernel
from xaicompile.vjp.shape import joined, rank_of


@dataclass(frozen=True)
class Window:
    """How a kernel moves over spatial axes.

    Attributes:
        begin: Padding in front; None where auto_pad with unknown sizes leaves it to run time.
        end: Padding behind.
        lower: Whether the odd one of an uneven padding stands in front (SAME_LOWER).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...] | None
    end: tuple[int, ...] | None
    lower: bool = False

    @property
    def extent(self) -> tuple[int, ...]:
        """Number of positions that the dilated kernel spans, per axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(ctx: Context, kernel: Sequence[int], data: Tensor) -> Window:
    """The window of a Conv or a pool over `data` [N, C, spatial...], auto_pad resolved where sizes are known."""
    n = len(kernel)
    strides = tuple(ctx.attr("strides", [1] * n))
    dilations = tuple(ctx.attr("dilations", [1] * n))
    auto = ctx.attr("auto_pad", "NOTSET")
    window = Window(tuple(kernel), strides, dilations, None, None, auto == "SAME_LOWER")
    if auto == "VALID":
        begin, end = (0,) * n, (0,) * n
    elif auto in ("NOTSET", ""):
        pads = tuple(ctx.attr("pads", [0] * 2 * n))
        begin, end = pads[:n], pads[n:]
    else:
        sizes = (data.shape or (None,) * (n + 2))[2:]
        totals = []
        for size, s, span in zip(sizes, strides, window.extent, strict=True):
            if s == 1:
                totals.append(span - 1)
            elif isinstance(size, int):
                totals.append(max((-(-size // s) - 1) * s + span - size, 0))
            else:
                return window
        low = tuple(t // 2 for t in totals)
        high = tuple(t - t // 2 for t in totals)
        begin, end = (low, high) if auto == "SAME_UPPER" else (high, low)
    return Window(tuple(kernel), strides, dilations, begin, end)


def kernel_size(ctx: Context, weight: Tensor) -> list[int]:
    """Spatial size of a convolution's kernel.

    Raises:
        UnsupportedError: It is worked out at run time.
    """
    known = [d for d in (weight.shape or ())[2:] if isinstance(d, int)]
    if weight.shape is not None and len(known) == len(weight.shape) - 2:
        return known
    if ctx.attr("kernel_shape") is None:
        raise UnsupportedError(f"{ctx.node}: no gradient where the size of the kernel is not known")
    return [int(k) for k in ctx.attr("kernel_shape")]


def conv_transposed(b: Builder, c: Tensor, w: Tensor, window: Window, group: int, x: Tensor) -> Tensor:
    """The transpose of x -> Conv(x, w) applied to c; the result has the shape of x.

    With stride 1 it is a Conv with the flipped, transposed kernel, which runtimes run fastest; else a ConvTranspose.
    """
    spatial = range(len(window.kernel))
    sizes = (x.shape or ())[2:]
    if window.begin is not None and window.end is not None:
        pads = [*window.begin, *window.end]
        turned = [e - 1 - p for e, p in zip((*window.extent, *window.extent), pads, strict=True)]
        unit = all(s == 1 for s in window.strides) and w.static is not None
        if unit and min(turned, default=0) >= 0:
            return b.Conv(c, turned_kernel(b, w, group), pads=turned, dilations=list(window.dilations), group=group)
        if all(isinstance(s, int) for s in sizes) and sizes:
            rest = [
                (int(size or 0) + pb + pe - e) % s
                for size, pb, pe, e, s in zip(
                    sizes, window.begin, window.end, window.extent, window.strides, strict=True
                )
            ]
            return strided(b, c, w, window, group, x, rest)
    n = len(window.kernel)
    full = transposed(b, c, w, window, group, [0] * 2 * n, [s - 1 for s in window.strides])
    begin = start_of_padding(b, c, window, x)
    size = b.shape_of(x, 2)
    return in_blocks(b, b.op("Slice", full, begin, begin + size, [2 + i for i in spatial], shape=x.shape))


def strided(b: Builder, c: Tensor, w: Tensor, window: Window, group: int, x: Tensor, rest: list[int]) -> Tensor:
    """The transpose where the padding and the sizes are known; the last `rest` positions of x are read by no window.

    For images, convolutions are faster in two cases: c is spread apart by the strides and convolved with stride 1 where
    each channel has a kernel of its own, and what comes out is spread apart where kernels are single pixels.
    """
    assert window.begin is not None and window.end is not None
    pads = [*window.begin, *window.end]
    static = w.static if is_blocked(x) else None
    fits = all(p < e for p, e in zip(pads, (*window.extent, *window.extent), strict=True))
    if static and static[:2] == (group, 1) and fits:
        end = tuple(p - r for p, r in zip(window.end, rest, strict=True))
        dense = replace(window, strides=(1,) * len(rest), end=end)
        return conv_transposed(b, spread_apart(b, c, group, window, [0] * len(rest)), w, dense, group, x)
    if static and group == 1 and set(window.kernel) == {1} and not any(pads):
        made = conv_transposed(b, c, w, replace(window, strides=(1,) * len(rest)), group, c)
        return in_blocks(b, spread_apart(b, made, static[1], window, rest))
    return in_blocks(b, transposed(b, c, w, window, group, pads, rest))


def transposed(
    b: Builder, c: Tensor, w: Tensor, window: Window, group: int, pads: list[int], output_padding: list[int]
) -> Tensor:
    """ConvTranspose, with output_padding left out where it is zero."""
    return b.ConvTranspose(
        c,
        w,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=pads,
        output_padding=output_padding if any(output_padding) else None,
        group=group,
    )


def spread_apart(b: Builder, c: Tensor, channels: int, window: Window, behind: list[int]) -> Tensor:
    """c [N, channels, spatial...] with zeros in between, as many as the strides skip, and `behind` the last value."""
    n = len(window.kernel)
    one = b.const(np.ones((channels, 1, *[1] * n), c.dtype))
    return transposed(b, c, one, replace(window, dilations=(1,) * n), channels, [0] * 2 * n, behind)


def start_of_padding(b: Builder, c: Tensor, window: Window, x: Tensor) -> Tensor:
    """Padding in front as an int64 vector; computed at run time for SAME_* with unknown sizes."""
    if window.begin is not None:
        return ints(b, window.begin)
    covered = (b.shape_of(c, 2) - 1) * ints(b, window.strides) + ints(b, window.extent)
    total = b.Max(covered - b.shape_of(x, 2), ints(b, [0] * len(window.kernel)))
    return b.Div(total + int(window.lower), 2)


def ints(b: Builder, values: Sequence[int]) -> Tensor:
    """An int64 vector."""
    return b.const(np.asarray(list(values), np.int64))


def turned_kernel(b: Builder, w: Tensor, group: int) -> Tensor:
    """Kernel [M, C/g, k...] flipped and with in- and output channels swapped: [C, M/g, k...]."""
    assert w.static is not None
    m, per_group, *k = w.static
    axes = [i + 2 for i, n in enumerate(k) if n > 1]
    if axes:
        w = b.Slice(w, [-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))
    if group == 1:
        return b.Transpose(w, perm=[1, 0, *range(2, 2 + len(k))])
    split = b.Reshape(w, [group, m // group, per_group, *k])
    swapped = b.Transpose(split, perm=[0, 2, 1, *range(3, 3 + len(k))])
    return b.Reshape(swapped, [group * per_group, m // group, *k])


@vjp("Conv", linear=Linear())
def conv(ctx: Context) -> Messages:
    """Data: the transposed convolution; bias: c summed over batch and space; the kernel where it is data."""
    b, c, x, weight, group = ctx.b, ctx.c, ctx.x, ctx.node.inp(1), int(ctx.attr("group"))
    window = window_of(ctx, kernel_size(ctx, weight), x)
    into_x = conv_transposed(b, c, weight, window, group, x) if ctx.need[0] else None
    into_w = None
    if ctx.need[1]:
        behind = [max(e, p) for e, p in zip(window.extent, window.end or window.extent, strict=True)]
        two = ints(b, [0, 0])
        pads = joined(b, [two, start_of_padding(b, c, window, x), two, ints(b, behind)])
        steps = list(window.strides), list(window.dilations)
        into_w = into_kernel(b, b.Pad(x, pads), c, weight, steps, group)
    return [into_x, into_w, into_bias(ctx)][: len(ctx.node.x)]


def into_bias(ctx: Context, i: int = 2) -> Message:
    """c summed over batch and space, if a bias [M] wants it."""
    if len(ctx.need) <= i or not ctx.need[i]:
        return None
    return ctx.b.sum_axes(ctx.c, [0, *range(2, ctx.c.rank or 2)])


@vjp("ConvTranspose", linear=Linear())
def conv_transpose(ctx: Context) -> Messages:
    """Data: the plain convolution with the same kernel; what output_padding and odd sizes add is cut off."""
    b, c, weight = ctx.b, ctx.c, ctx.node.inp(1)
    kernel = kernel_size(ctx, weight)
    n = len(kernel)
    strides = list(ctx.attr("strides", [1] * n))
    dilations = list(ctx.attr("dilations", [1] * n))
    begin = begin_of_transpose(ctx, kernel, strides, dilations)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    # c is padded back to the full, uncropped output, of which Conv reads just as many positions as x has
    given, made = (ctx.x.shape or ())[2:], (c.shape or ())[2:]
    pads = [0] * 2 * n
    if isinstance(begin, list) and given and all(isinstance(d, int) for d in (*given, *made)):
        full_sizes = [int(xs or 0) * s + e - s for xs, e, s in zip(given, spans, strides, strict=True)]
        end = [f - int(cs or 0) - p for f, cs, p in zip(full_sizes, made, begin, strict=True)]
        padded, pads = shifted(b, c, begin, end)
    else:
        full = b.shape_of(ctx.x, 2) * ints(b, strides) + ints(b, [e - s for e, s in zip(spans, strides, strict=True)])
        front = ints(b, begin) if isinstance(begin, list) else begin
        rest = full - b.shape_of(c, 2) - front
        padded = b.Pad(c, b.Concat(ints(b, [0, 0]), front, ints(b, [0, 0]), rest, axis=0))
    group = int(ctx.attr("group"))
    into_x = b.op(
        "Conv", padded, weight, strides=strides, dilations=dilations, pads=pads, group=group, shape=ctx.x.shape
    )
    into_w = None
    if ctx.need[1]:
        whole = b.Pad(padded, [0, 0, *pads[:n], 0, 0, *pads[n:]]) if any(pads) else padded
        into_w = into_kernel(b, whole, ctx.x, weight, (strides, dilations), group)
    return [into_x if ctx.need[0] else None, into_w, into_bias(ctx)][: len(ctx.node.x)]


def shifted(b: Builder, c: Tensor, begin: Sequence[int], end: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Conv takes pads >= 0 only: negative ones are cut off c first."""
    n = len(begin)
    if min((*begin, *end), default=0) < 0:
        cut = [min(p, 0) for p in (*begin, *end)]
        c = b.Pad(c, [0, 0, *cut[:n], 0, 0, *cut[n:]])
    return c, [max(p, 0) for p in (*begin, *end)]


def begin_of_transpose(
    ctx: Context, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | Tensor:
    """What a ConvTranspose cuts off in front, per axis; computed at run time for output_shape with unknown sizes."""
    b, n = ctx.b, len(kernel)
    auto = ctx.attr("auto_pad", "NOTSET")
    wanted = ctx.node.attrs.get("output_shape")
    if auto in ("NOTSET", "") and not wanted:
        return list(ctx.attr("pads", [0] * 2 * n))[:n]
    if auto == "VALID" and not wanted:
        return [0] * n
    extra = ctx.attr("output_padding", [0] * n)
    more = [e + d * (k - 1) + 1 - s for e, d, k, s in zip(extra, dilations, kernel, strides, strict=True)]
    odd = int(auto != "SAME_UPPER")  # in front, unless told otherwise
    sizes = (ctx.x.shape or (None,) * (n + 2))[2:]
    if not wanted:
        totals = more
    elif all(isinstance(size, int) for size in sizes):
        covered = [s * int(size or 0) + m for s, size, m in zip(strides, sizes, more, strict=True)]
        totals = [c - w for c, w in zip(covered, list(wanted)[-n:], strict=True)]
    else:
        total = b.shape_of(ctx.x, 2) * ints(b, strides) + ints(b, more) - ints(b, list(wanted)[-n:])
        return b.Div(b.Max(total, ints(b, [0] * n)) + odd, 2)
    return [(max(total, 0) + odd) // 2 for total in totals]


@vjp("Gemm", linear=Linear(either=True))
def gemm(ctx: Context) -> Messages:
    """y = alpha A' B' + beta C, with ' the optional transposes."""
    b, c = ctx.b, ctx.c
    left, right = ctx.node.inp(0), ctx.node.inp(1)
    ta, tb, alpha = int(ctx.attr("transA")), int(ctx.attr("transB")), float(ctx.attr("alpha"))
    into_a = into_b = into_c = None
    if ctx.need[0]:
        into_a = (
            b.Gemm(right, c, transA=tb, transB=1, alpha=alpha) if ta else b.Gemm(c, right, transB=1 - tb, alpha=alpha)
        )
    if ctx.need[1]:
        into_b = (
            b.Gemm(c, left, transA=1, transB=ta, alpha=alpha) if tb else b.Gemm(left, c, transA=1 - ta, alpha=alpha)
        )
    if len(ctx.need) > 2 and ctx.need[2]:
        into_c = c * float(ctx.attr("beta"))
    return [into_a, into_b, into_c][: len(ctx.node.x)]


@vjp("MatMul", linear=Linear(either=True))
def matmul(ctx: Context) -> Messages:
    """c B^T and A^T c, vectors as in numpy; a third input, in views only, is a bias."""
    b, c = ctx.b, ctx.c
    left, right = ctx.node.inp(0), ctx.node.inp(1)
    a2 = b.Unsqueeze(left, [0]) if rank_of(left) == 1 else left
    b2 = b.Unsqueeze(right, [1]) if rank_of(right) == 1 else right
    if right.rank == 1:
        c = b.Unsqueeze(c, [-1])
    if left.rank == 1:
        c = b.Unsqueeze(c, [-2])
    into_a = into_b = None
    if ctx.need[0]:
        full = b.unbroadcast(b.MatMul(c, swapped(b, b2)), a2)
        into_a = b.reshape_like(full, left) if left.rank == 1 else full
    if ctx.need[1]:
        full = b.unbroadcast(b.MatMul(swapped(b, a2), c), b2)
        into_b = b.reshape_like(full, right) if right.rank == 1 else full
    return [into_a, into_b, ctx.c][: len(ctx.node.x)]


def swapped(b: Builder, t: Tensor) -> Tensor:
    """The last two axes swapped."""
    n = rank_of(t)
    return b.Transpose(t, perm=[*range(n - 2), n - 1, n - 2])
