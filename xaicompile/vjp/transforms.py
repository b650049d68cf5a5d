"""Fourier transforms as products with matrices of cosines and sines, and determinants.

The matrices are worked out in the graph, as constants where sizes are known: no runtime has a CUDA kernel for DFT.
"""

from __future__ import annotations

import math

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.body import BodyBuilder
from xaicompile.registry import Context, Message, Messages, stop, vjp
from xaicompile.vjp.resize import multiplied
from xaicompile.vjp.shape import along, known_ints, positions, rank_of, ranked, scatter_add, size_of, sized

stop("DFT", 1, 2)
stop("STFT", 1, 3)


def waves(b: Builder, rows: Tensor, columns: Tensor, length: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi r k / length for each row r and column k, in the type of `like`."""
    turns = b.Mod(b.Unsqueeze(rows, [1]) * b.Unsqueeze(columns, [0]), length)
    angle = b.CastLike(turns, like) * (2 * math.pi) / b.CastLike(length, like)
    return b.Cos(angle), b.Sin(angle)


def as_parts_of(b: Builder, x: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """Both parts side by side if x is complex, else the real one."""
    parts = (x.shape or (None,))[-1]
    if parts == 1:
        return real
    both = b.Concat(real, imaginary, axis=-1)
    return both if parts == 2 else b.op("Slice", both, [0], b.dim(x, rank_of(x) - 1), [-1])


def part(b: Builder, t: Tensor, i: int) -> Tensor:
    """The real (0) or the imaginary part (1), kept as an axis."""
    return b.Slice(t, [i], [i + 1], [-1])


def fourier_axis(ctx: Context) -> int:
    """The transformed axis, counted from the front."""
    if ctx.node.since < 20:
        return int(ctx.attr("axis", 1)) % rank_of(ctx.x)
    axes = known_ints(ctx.node.x[2]) if ctx.node.has(2) else [-2]
    if axes is None:
        raise UnsupportedError(f"{ctx.node}: no gradient for an axis that is worked out at run time")
    return axes[0] % rank_of(ctx.x)


@vjp("DFT", degree=1)
def dft(ctx: Context) -> Messages:
    """The transposed matrices; what the transform had cut off gets nothing."""
    b, x, c, axis = ctx.b, ctx.x, ctx.c, fourier_axis(ctx)
    inverse, onesided = bool(ctx.attr("inverse")), bool(ctx.attr("onesided"))
    real_output = inverse and onesided
    if ctx.node.has(1):
        length = b.Reshape(ctx.node.inp(1), [1])
        length = length if length.dtype == np.int64 else b.Cast(length, to=7)
    else:
        length = (b.dim(x, axis) - 1) * 2 if real_output else b.dim(x, axis)
    places = positions(b, x, axis)
    cos, sin = waves(b, places, positions(b, c, axis), length, x)
    if ctx.node.has(1) or real_output:
        counts = b.CastLike(places < length, x)
        if real_output:  # the frequencies above the middle mirror those below; the first and a middle one stand alone
            twice = b.And(places > 0, places * 2 < length)
            counts = b.CastLike(places * 2 <= length, x) * (b.CastLike(twice, x) + 1.0)
        cos, sin = (m * b.Unsqueeze(counts, [1]) for m in (cos, sin))
    sign = -1.0 if inverse else 1.0
    if inverse:
        cos, sin = (m / b.CastLike(length, x) for m in (cos, sin))
    by_cos, by_sin = multiplied(b, c, cos, axis, x), multiplied(b, c, sin, axis, x)
    if real_output:
        return ctx.only(0, b.Concat(by_cos, -by_sin, axis=-1))
    real = part(b, by_cos, 0) - part(b, by_sin, 1) * sign
    return ctx.only(0, as_parts_of(b, x, real, part(b, by_sin, 0) * sign + part(b, by_cos, 1)))


@vjp("STFT", degree=1)
def stft(ctx: Context) -> Messages:
    """The transposed transform of each frame, times the window, added up where the frames lie."""
    b, node, c = ctx.b, ctx.node, ranked(ctx.b, ctx.c, 4)
    window = node.inp(2) if node.has(2) else None
    signal = ctx.x if rank_of(ctx.x) == 3 else b.Unsqueeze(ctx.x, [2])
    length = b.Reshape(node.inp(3), [1]) if node.has(3) else b.dim(node.inp(2), 0)
    length = length if length.dtype == np.int64 else b.Cast(length, to=7)
    if window is not None:
        places = positions(b, window, 0)
    else:
        zero, one = (b.const(np.asarray(v, np.int64)) for v in (0, 1))
        places = b.Range(zero, b.Squeeze(length, [0]), one)
    cos, sin = waves(b, places, positions(b, c, 2), length, signal)
    by_cos, by_sin = b.MatMul(cos, c), b.MatMul(sin, c)
    real, imaginary = part(b, by_cos, 0) - part(b, by_sin, 1), part(b, by_sin, 0) + part(b, by_cos, 1)
    frames = as_parts_of(b, signal, real, imaginary)
    step = b.Reshape(node.inp(1), [1])
    step = step if step.dtype == np.int64 else b.Cast(step, to=7)
    at = b.Unsqueeze(positions(b, c, 1) * step, [1]) + b.Unsqueeze(places, [0])
    messages: list[Message] = [None] * len(node.x)
    if window is not None and ctx.need[2]:
        seen = b.Gather(signal, at, axis=1) * frames
        messages[2] = b.op("ReduceSum", seen, [0, 1, 3], keepdims=0, shape=window.shape)
    if ctx.need[0]:
        weighted = frames if window is None else frames * b.Unsqueeze(window, [1])
        sizes = [b.dim(c, 0), size_of(b, at, 0), b.dim(signal, 2)]
        flat = sized(b, weighted, sizes, (None, None, (signal.shape or ())[2]))
        index = along(b, b.Reshape(at, [-1]), flat, 1)
        messages[0] = b.reshape_like(scatter_add(b, b.zeros_like(signal), index, flat, 1, signal.shape), ctx.x)
    return messages


@vjp("Det")
def det(ctx: Context) -> Messages:
    """c times the cofactors, by the Faddeev-LeVerrier recursion: products only, and right for singular matrices too."""
    b, x, rank = ctx.b, ctx.x, rank_of(ctx.x)
    n = (x.shape or ())[-1]
    if isinstance(n, int):
        eye = b.const(np.eye(n, dtype=x.dtype))
        m, sign = b.expand_like(eye, x), b.const(np.asarray((-1.0) ** (n - 1), x.dtype))
        for k in range(1, n):
            m = next_power(b, x, m, eye, b.const(np.asarray(k, x.dtype)))
    else:
        size, at = b.dim(x, rank - 1), positions(b, x, rank - 1)
        eye = b.CastLike(b.Equal(b.Unsqueeze(at, [1]), b.Unsqueeze(at, [0])), x)
        m = all_powers(b, x, eye, b.Squeeze(size - 1, [0]))
        sign = 1.0 - 2.0 * b.CastLike(b.Mod(size - 1, 2), x)
    cofactors = b.Transpose(m, perm=[*range(rank - 2), rank - 1, rank - 2])
    return [b.Unsqueeze(ctx.c, [rank - 2, rank - 1]) * cofactors * sign]


def next_power(b: Builder, x: Tensor, m: Tensor, eye: Tensor, k: Tensor) -> Tensor:
    """x m less its trace over k on the diagonal."""
    product = b.MatMul(x, m)
    return product - eye * (b.sum_axes(product * eye, [-2, -1], keepdims=True) / k)


def all_powers(b: Builder, x: Tensor, eye: Tensor, count: Tensor) -> Tensor:
    """The recursion as a Loop, where the size of the matrices is not known."""
    inner, start = BodyBuilder(b, hoist=True), b.expand_like(eye, x)
    step, on = inner.input("step", np.dtype(np.int64), ()), inner.input("condition", np.dtype(np.bool_), ())
    m = inner.input("power", x.dtype, x.shape)
    following = next_power(inner, inner.adopt(x), m, inner.adopt(eye), inner.CastLike(step + 1, m))
    ends = inner.ends([inner.const(np.asarray(True)), following])
    graph = inner.graph("recursion", [step, on, m], ends)
    return b.typed("Loop", [count, b.const(np.asarray(True)), start], [(x.dtype, x.shape)], body=graph)[0]
