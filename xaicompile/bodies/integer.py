"""Ops that compute with integers, read as the float ops that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xaicompile.bodies.attention import self_attention
from xaicompile.bodies.contrib import DOMAIN, plus
from xaicompile.bodies.quantised import Quantised, given, integer
from xaicompile.bodies.scales import Scale
from xaicompile.ir import Builder, Tensor, View

Make = Callable[[], Tensor]


def operand(s: Quantised, v: View, i: int, axis: int = 1) -> Tensor:
    """What input `i` stands for; its scale and zero point follow it."""
    return s.as_read(v, v.inp(i), Scale(v.inp(i + 1), given(v, i + 2), axis))


def rounded(s: Quantised, v: View, make: Make, i: int) -> None:
    """The output is what `make` emits, rounded with the scale at input `i` and the zero point behind it."""
    s.land(v, s.recorded(v, make), Scale(v.inp(i), given(v, i + 1)))


def channels_first(b: Builder, x: Tensor, channels_last: bool, back: bool = False) -> Tensor:
    """Channels moved to axis 1, or back to the end."""
    n = x.rank
    if not channels_last or n is None:
        return x
    return b.Transpose(x, perm=[0, *range(2, n), 1] if back else [0, n - 1, *range(1, n - 1)])


@integer("QLinearConv", "", DOMAIN)
def conv(s: Quantised, v: View) -> None:
    """Conv."""
    x, w = operand(s, v, 0), operand(s, v, 3, axis=0)
    bias = None
    if v.has(8):
        bias = Scale(s.b.Reshape(v.inp(1), [1]) * v.inp(4), None, 0).dequantised(s.b, v.inp(8))
    attrs = {k: a for k, a in v.attrs.items() if k != "channels_last"}
    last = bool(v.attrs.get("channels_last", 0))

    def make() -> Tensor:
        return channels_first(s.b, s.b.Conv(channels_first(s.b, x, last), w, bias, **attrs), last, back=True)

    rounded(s, v, make, 6)


@integer("QLinearMatMul")
def matmul(s: Quantised, v: View) -> None:
    """MatMul; a scale of several numbers is one a row on the left, one a column on the right."""
    a, w = operand(s, v, 0, axis=-2), operand(s, v, 3, axis=-1)
    rounded(s, v, lambda: s.b.MatMul(a, w), 6)


@integer("QGemm", DOMAIN)
def gemm(s: Quantised, v: View) -> None:
    """Gemm, in float where no scale of the output is given."""
    ta, tb, alpha = int(v.attrs.get("transA", 0)), int(v.attrs.get("transB", 0)), float(v.attrs.get("alpha", 1.0))
    a, w = operand(s, v, 0), operand(s, v, 3, axis=0 if tb else 1)
    addend = Scale(v.inp(1) * v.inp(4) * alpha, None, -1).dequantised(s.b, v.inp(6)) if v.has(6) else None

    def make() -> Tensor:
        return s.b.Gemm(a, w, addend, transA=ta, transB=tb, alpha=alpha)

    if v.has(7):
        rounded(s, v, make, 7)
    else:
        s.recorded(v, make, own=True)


@integer("QLinearAdd", DOMAIN)
def add(s: Quantised, v: View) -> None:
    """Add."""
    left, right = operand(s, v, 0), operand(s, v, 3)
    rounded(s, v, lambda: left + right, 6)


@integer("QLinearMul", DOMAIN)
def mul(s: Quantised, v: View) -> None:
    """Mul."""
    left, right = operand(s, v, 0), operand(s, v, 3)
    rounded(s, v, lambda: left * right, 6)


@integer("QLinearWhere", DOMAIN)
def where(s: Quantised, v: View) -> None:
    """Where."""
    yes, no = operand(s, v, 1), operand(s, v, 4)
    rounded(s, v, lambda: s.b.Where(v.inp(0), yes, no), 7)


@integer("QLinearConcat", DOMAIN)
def concat(s: Quantised, v: View) -> None:
    """Concat."""
    parts = [operand(s, v, i) for i in range(2, len(v.x), 3)]
    rounded(s, v, lambda: s.b.Concat(*parts, axis=int(v.attrs["axis"])), 0)


@integer("QLinearSigmoid", DOMAIN)
def sigmoid(s: Quantised, v: View) -> None:
    """Sigmoid."""
    x = operand(s, v, 0)
    rounded(s, v, lambda: s.b.Sigmoid(x), 3)


@integer("QLinearLeakyRelu", DOMAIN)
def leaky_relu(s: Quantised, v: View) -> None:
    """LeakyRelu."""
    x = operand(s, v, 0)
    rounded(s, v, lambda: s.b.LeakyRelu(x, alpha=v.attrs.get("alpha")), 3)


@integer("QLinearSoftmax", DOMAIN)
def softmax(s: Quantised, v: View) -> None:
    """Softmax along an axis, or, below opset 13, over all axes from it on."""
    x, axis = operand(s, v, 0), int(v.attrs.get("axis", -1))

    def make() -> Tensor:
        if int(v.attrs.get("opset", 13)) >= 13:
            return s.b.Softmax(x, axis=axis)
        return s.b.reshape_like(s.b.Softmax(s.b.Flatten(x, axis=axis), axis=1), x)

    rounded(s, v, make, 3)


@integer("QLinearGlobalAveragePool", DOMAIN)
def global_average(s: Quantised, v: View) -> None:
    """GlobalAveragePool."""
    x, last = operand(s, v, 0), bool(v.attrs.get("channels_last", 0))
    rounded(s, v, lambda: channels_first(s.b, s.b.GlobalAveragePool(channels_first(s.b, x, last)), last, back=True), 3)


@integer("QLinearAveragePool", DOMAIN)
def average(s: Quantised, v: View) -> None:
    """AveragePool."""
    x, last = operand(s, v, 0), bool(v.attrs.get("channels_last", 0))
    attrs = {k: a for k, a in v.attrs.items() if k != "channels_last"}
    rounded(
        s, v, lambda: channels_first(s.b, s.b.AveragePool(channels_first(s.b, x, last), **attrs), last, back=True), 3
    )


# Dynamic quantisation: scales come from the data, and products stay integers until they are cast and scaled


@integer("DynamicQuantizeLinear")
def dynamic(s: Quantised, v: View) -> None:
    """Rounding to a range that covers all values: nothing is clipped, and scale and zero point carry nothing."""
    x = s.reading(v.x[0])
    assert x is not None
    s.land(v, x, Scale(v.out(1), v.out(2)), clips=False)


def raw(s: Quantised, v: View, i: int, zero: int, axis: int) -> tuple[Tensor, Tensor | None]:
    """What operand `i` of an integer product stands for, and its scale if it has one; else it counts as it is."""
    q, known = v.inp(i), s.scales.get(v.inp(i).name)
    if known is None or not known.per_tensor:
        return s.as_read(v, q, Scale(s.b.const(np.ones((), np.float32)), given(v, zero), axis)), None
    return s.as_read(v, q, Scale(known.scale, given(v, zero), axis)), known.scale


def accumulated(s: Quantised, v: View, op: str, axes: tuple[int, int]) -> None:
    """A product of integers in 32 bits: it stands for the product of floats, its scale is the product of scales."""
    left, right = raw(s, v, 0, 2, axes[0]), raw(s, v, 1, 3, axes[1])
    scales = [t for t in (left[1], right[1]) if t is not None]
    if not scales:
        s.add(v)
        return
    q = v.out()
    scale = Scale(scales[0] if len(scales) == 1 else scales[0] * scales[1])
    y = scale.dequantised(s.b, q)
    s.scales[q.name], s.read[q.name] = scale, y
    s.add(View(op, [left[0], right[0]], [y], dict(v.attrs), v.name, since=s.p.opset, nodes=v.nodes))


@integer("MatMulInteger")
def matmul_integer(s: Quantised, v: View) -> None:
    """MatMul."""
    accumulated(s, v, "MatMul", (-2, -1))


@integer("ConvInteger")
def conv_integer(s: Quantised, v: View) -> None:
    """Conv."""
    accumulated(s, v, "Conv", (1, 0))


@integer("MatMulIntegerToFloat", DOMAIN)
def matmul_to_float(s: Quantised, v: View) -> None:
    """MatMul with a bias."""
    a = s.as_read(v, v.inp(0), Scale(v.inp(2), given(v, 4), -2))
    w = s.as_read(v, v.inp(1), Scale(v.inp(3), given(v, 5), -1))
    s.recorded(v, lambda: plus(s.b.MatMul(a, w), given(v, 6)), own=True)


@integer("QAttention", DOMAIN)
def attention(s: Quantised, v: View) -> None:
    """Self-attention whose merged projection is one of integers, one scale a column of the weight or one for all."""
    x = s.as_read(v, v.inp(0), Scale(v.inp(3), given(v, 6)))
    w = Scale(v.inp(4), given(v, 7), -1).dequantised(s.b, v.inp(1))
    with s.b.recorded() as made:
        projected = plus(s.b.MatMul(x, w), given(v, 2))
        results = self_attention(s.b, v, projected, given(v, 5), given(v, 8), None)
    if results is None:
        s.add(v)
    else:
        s.add(*s.recorder.views(v, made, results))


@integer("DynamicQuantizeLSTM", DOMAIN)
def dynamic_lstm(s: Quantised, v: View) -> None:
    """LSTM whose weights are integers that lie the other way round; its data is rounded inside."""
    b, x = s.b, [s.reading(t) for t in v.x[:8]]
    for i, at in ((1, 8), (2, 10)):
        scale, zero = v.inp(at), given(v, at + 1)
        behind = [1] if scale.rank == 2 else [1, 2]  # one a column, or one for all, of each direction
        whole = b.CastLike(v.inp(i), scale)
        whole = whole if zero is None else whole - b.CastLike(b.Unsqueeze(zero, behind), scale)
        x[i] = b.Transpose(whole * b.Unsqueeze(scale, behind), perm=[0, 2, 1])
    s.add(View("LSTM", x, v.y, v.attrs, v.name, since=s.p.opset, nodes=v.nodes))


@integer("DynamicQuantizeMatMul", DOMAIN)
def dynamic_matmul(s: Quantised, v: View) -> None:
    """MatMul with a bias; the data is rounded inside, which the result's view takes as its own rounding."""
    x, y = s.reading(v.x[0]), v.out()
    assert x is not None
    w = Scale(v.inp(2), given(v, 3), -1).dequantised(s.b, v.inp(1))
    z = s.recorded(v, lambda: plus(s.b.MatMul(x, w), given(v, 4)))
    y.dtype, y.shape = y.dtype or z.dtype, y.shape or z.shape
    s.add(View("QuantizeLinear", [z], [y], name=f"{v.name}/rounded", since=s.p.opset, nodes=v.nodes))
