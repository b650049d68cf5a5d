"""Bodies of the ops that ONNX Runtime's optimiser puts in place of standard ones (its domain `com.microsoft`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from xaicompile.bodies.record import body
from xaicompile.bodies.scales import Scale
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.apart import APART
from xaicompile.ir.body import Body

DOMAIN = "com.microsoft"
PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
Outputs = Sequence[Tensor | None]


def contrib(*ops: str) -> Callable[[Body], Body]:
    """Registers the body of an op of this domain."""
    return body(DOMAIN, *ops)


def given(v: View, i: int) -> Tensor | None:
    """Input `i`, None if it is left out."""
    return v.x[i] if v.has(i) else None


def plus(t: Tensor, other: Tensor | None) -> Tensor:
    """t + other, if there is another."""
    return t if other is None else t + other


def only(v: View, *results: Tensor | None) -> Outputs:
    """The outputs that the node has."""
    return results[: len(v.y)]


# Convolutions and products with an activation or a factor


@contrib("Trilu")
def trilu(b: Builder, v: View) -> Outputs:
    """Trilu, as older exporters write it."""
    return [b.Trilu(*v.x, upper=v.attrs.get("upper"))]


def activated(b: Builder, v: View, z: Tensor, prefix: str = "activation") -> Tensor:
    """The fused activation applied to z."""
    op, numbers = v.attrs.get("activation"), list(v.attrs.get(f"{prefix}_params", []))
    if not op:
        return z
    if op == "Clip":
        return b.Clip(z, *numbers)
    return b.op(str(op), z, **dict(zip(PARAMETERS.get(str(op), ()), numbers, strict=False)))


@contrib("FusedConv")
def fused_conv(b: Builder, v: View) -> Outputs:
    """activation(Conv(x, w, b) + z)."""
    attrs = {k: a for k, a in v.attrs.items() if not k.startswith("activation")}
    return [activated(b, v, plus(b.Conv(*v.x[:3], **attrs), given(v, 3)))]


@contrib("NhwcConv", "NhwcFusedConv")
def nhwc_conv(b: Builder, v: View) -> Outputs | None:
    """The same with channels at the end; the kernel is as ever."""
    n = v.inp(0).rank
    if n is None:
        return None
    attrs = {k: a for k, a in v.attrs.items() if not k.startswith("activation")}
    x = b.Transpose(v.inp(0), perm=[0, n - 1, *range(1, n - 1)])
    y = b.Transpose(b.Conv(x, *v.x[1:3], **attrs), perm=[0, *range(2, n), 1])
    return [activated(b, v, plus(y, given(v, 3)))]


@contrib("FusedGemm")
def fused_gemm(b: Builder, v: View) -> Outputs:
    """activation(Gemm(a, b, c)), its parameters as attributes of their own."""
    attrs = {k: a for k, a in v.attrs.items() if not k.startswith("activation")}
    op, names = v.attrs.get("activation"), ("alpha", "beta", "gamma")
    numbers = {n: v.attrs[f"activation_{n}"] for n in names if f"activation_{n}" in v.attrs}
    z = b.Gemm(*v.x, **attrs)
    return [b.op(str(op), z, **numbers) if op else z]


@contrib("FusedMatMul", "TransposeMatMul")
def fused_matmul(b: Builder, v: View) -> Outputs:
    """alpha A' B'."""
    return [product(b, v)]


def product(b: Builder, v: View) -> Tensor:
    """alpha A' B', ' swapping the last two axes, or moving the first behind the others but the last for a batch."""
    sides = []
    for i, side in enumerate("AB"):
        t = v.inp(i)
        if v.attrs.get(f"transBatch{side}"):
            order = [*range(1, rank(t) - 1), 0, rank(t) - 1]
            t = b.Transpose(t, perm=order)
        sides.append(swapped(b, t) if v.attrs.get(f"trans{side}") and rank(t) > 1 else t)
    alpha = float(v.attrs.get("alpha", 1.0))
    y = b.MatMul(*sides)
    return y if alpha == 1 else y * alpha


@contrib("FusedMatMulActivation")
def fused_matmul_activation(b: Builder, v: View) -> Outputs:
    """activation(alpha A' B')."""
    z = product(b, v)
    numbers = {k: v.attrs[f"activation_{k}"] for k in ("alpha", "beta", "gamma") if f"activation_{k}" in v.attrs}
    return [b.op(str(v.attrs["activation"]), z, **numbers)]


def rank(t: Tensor) -> int:
    """The number of axes, which must be known."""
    assert t.rank is not None, f"{t!r} has no known rank"
    return t.rank


def swapped(b: Builder, t: Tensor) -> Tensor:
    """The last two axes swapped."""
    n = rank(t)
    return b.Transpose(t, perm=[*range(n - 2), n - 1, n - 2])


# Activations. Written out as the one standard op where the opset has it, which the rules know; else in its steps


def gelu(b: Builder, x: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), or its approximation by tanh."""
    if b.opset >= 20:
        return b.Gelu(x, approximate=approximate)
    if approximate == "tanh":
        inner = (x + b.Pow(x, 3.0) * 0.044715) * math.sqrt(2 / math.pi)
        return x * (b.Tanh(inner) + 1.0) * 0.5
    return x * (b.Erf(x / math.sqrt(2)) + 1.0) * 0.5


@contrib("Gelu", "BiasGelu")
def exact_gelu(b: Builder, v: View) -> Outputs:
    """Gelu(x + bias)."""
    return [gelu(b, plus(v.inp(0), given(v, 1)))]


@contrib("FastGelu")
def fast_gelu(b: Builder, v: View) -> Outputs:
    """Gelu(x + bias) by tanh."""
    return [gelu(b, plus(v.inp(0), given(v, 1)), "tanh")]


@contrib("GemmFastGelu")
def gemm_fast_gelu(b: Builder, v: View) -> Outputs:
    """Gelu(x W + bias) by tanh."""
    return [gelu(b, plus(b.MatMul(v.inp(0), v.inp(1)), given(v, 2)), "tanh")]


@contrib("BiasSplitGelu")
def bias_split_gelu(b: Builder, v: View) -> Outputs:
    """The left half of x + bias times Gelu of the right half."""
    left, right = b.many("Split", 2, v.inp(0) + v.inp(1), axis=-1, num_outputs=2)
    return [left * gelu(b, right)]


@contrib("BiasAdd")
def bias_add(b: Builder, v: View) -> Outputs:
    """x + bias + skip."""
    return [v.inp(0) + v.inp(1) + v.inp(2)]


@contrib("BiasSoftmax")
def bias_softmax(b: Builder, v: View) -> Outputs | None:
    """Softmax(x + bias) over all axes from one on."""
    z, axis = v.inp(0) + v.inp(1), int(v.attrs.get("axis", 1))
    if z.rank is None:
        return None
    if axis % z.rank == z.rank - 1:
        return [b.Softmax(z, axis=-1)]
    return [b.reshape_like(b.Softmax(b.Flatten(z, axis=axis % z.rank), axis=1), z)]


@contrib("QuickGelu")
def quick_gelu(b: Builder, v: View) -> Outputs:
    """x sigmoid(alpha x)."""
    x, alpha = v.inp(0), float(v.attrs.get("alpha", 1.702))
    return [x * b.Sigmoid(x if alpha == 1 else x * alpha)]


# Normalisations


def simplified(b: Builder, x: Tensor, scale: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) times scale over the last axis, and 1/rms."""
    inverse = 1.0 / b.Sqrt(b.mean_axes(x * x, [-1]) + epsilon)
    return x * inverse * scale, inverse


@contrib("SkipLayerNormalization")
def skip_layer_norm(b: Builder, v: View) -> Outputs:
    """LayerNormalization(input + skip + bias), and that sum as the fourth output."""
    total = plus(v.inp(0) + v.inp(1), given(v, 4))
    y = b.LayerNormalization(total, v.inp(2), given(v, 3), axis=-1, epsilon=epsilon_of(v))
    return only(v, y, None, None, total)


@contrib("SkipSimplifiedLayerNormalization")
def skip_simplified(b: Builder, v: View) -> Outputs:
    """The same without mean and shift."""
    total = plus(v.inp(0) + v.inp(1), given(v, 3))
    y, _ = simplified(b, total, v.inp(2), epsilon_of(v))
    return only(v, y, None, None, total)


@contrib("EmbedLayerNormalization")
def embed_layer_norm(b: Builder, v: View) -> Outputs:
    """LayerNormalization of word, position and segment embeddings; the mask's lengths; the sum of embeddings."""
    ids, segments, words, positions, kinds = v.inp(0), given(v, 1), v.inp(2), v.inp(3), given(v, 4)
    word = b.Gather(words, ids, axis=0)
    place = given(v, 8)
    if place is None:
        count = b.Squeeze(b.dim(ids, 1), [0])
        place = b.Range(b.const(np.asarray(0, np.int64)), count, b.const(np.asarray(1, np.int64)))
    total = word + b.Gather(positions, place, axis=0)
    if segments is not None and kinds is not None:
        total = total + b.Gather(kinds, segments, axis=0)
    scale, shift, shape = v.inp(5), v.inp(6), word.shape
    y = b.op("LayerNormalization", total, scale, shift, shape=shape, axis=-1, epsilon=epsilon_of(v))
    counted = v.inp(7) if v.has(7) else v.inp(0) * 0
    return only(v, y, b.Cast(b.sum_axes(counted, [1]), to=TensorProto.INT32), total)


@contrib("QEmbedLayerNormalization")
def quantised_embed_layer_norm(b: Builder, v: View) -> Outputs | None:
    """The same with tables, scale and shift in integers, one scale each."""
    x = [*v.x[:8], None, None][:9]
    for place, i in enumerate((2, 3, 4, 5, 6)):
        if v.has(i):
            x[i] = Scale(v.inp(8 + place), given(v, 13 + place)).dequantised(b, v.inp(i))
    return embed_layer_norm(b, v.varied(x=x))


def epsilon_of(v: View) -> float:
    """What these ops add to the variance; this default is theirs."""
    return float(v.attrs.get("epsilon", 1e-12))


@body(APART, "SimplifiedLayerNormalization")
@contrib("SimplifiedLayerNormalization")
def simplified_layer_norm(b: Builder, v: View) -> Outputs | None:
    """x / rms(x) times scale, which the runtime writes into the standard domain without its being standard there."""
    if int(v.attrs.get("axis", -1)) % rank(v.inp(0)) != rank(v.inp(0)) - 1:
        return None
    y, inverse = simplified(b, v.inp(0), v.inp(1), float(v.attrs.get("epsilon", 1e-5)))
    return only(v, y, inverse)
