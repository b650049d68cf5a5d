"""Small nets with what may make an explanation divide by zero or overflow: dead units, masks, constant inputs.

Every kind of operator stands in one of them. Each is made in float32 or float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from tests.graphs import net, weight
from tests.test_ledger import mixed

KINDS = {np.float32: "float", np.float16: "float16"}


@dataclass(frozen=True)
class Net:
    """One net.

    Attributes:
        make: The model in a floating-point type.
        shape: Of the input x; the first axis is the batch.
        opset: Of the model.
        masked: Tensors that hold -inf by design.
    """

    make: Callable[[type], onnx.ModelProto]
    shape: tuple[int, ...]
    masked: tuple[str, ...] = ()


def written(signature: str, body: str, opset: int = 18, **weights: np.ndarray) -> Callable[[type], onnx.ModelProto]:
    """A maker of the net in ONNX text, `T` standing for the type. Weights are cast to it, but not a Resize's scales."""

    def make(dtype: type) -> onnx.ModelProto:
        text = body.replace("Celu", "Elu") if dtype is np.float16 else body  # which the standard has in float32 alone
        typed = {k: v.astype(dtype) if v.dtype == np.float32 and k != "scales" else v for k, v in weights.items()}
        return net(signature.replace("T[", f"{KINDS[dtype]}["), text, opset=opset, ir=10, **typed)

    return make


def dead(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights of which the first third of the outputs is negative throughout and the second all zero."""
    w = weight(*shape, seed=seed)
    third = max(shape[0] // 3, 1)
    w[:third] = -np.abs(w[:third])
    w[third : 2 * third] = 0
    return w


def low(n: int) -> np.ndarray:
    """Biases: the first third negative, the second zero, the rest of both signs."""
    bias = 0.1 * weight(n, seed=5)
    third = max(n // 3, 1)
    bias[:third] = -0.5
    bias[third : 2 * third] = 0
    return bias.astype(np.float32)


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


CONVOLUTIONS = written(
    "(T[N,3,8,8] x) => (T[N,4] y)",
    """
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv<pads=[1,1,1,1]>(r2, w3)
    s3 = Add(c3, r1)
    r3 = Relu(s3)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r3)
    a = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r2)
    j = Concat<axis=1>(m, a)
    c4 = Conv<group=2, strides=[2,2], pads=[1,1,1,1]>(j, w4, b4)
    k = Clip(c4, zero, six)
    d4 = ConvTranspose<strides=[2,2]>(k, w5, b5)
    l = LeakyRelu(d4)
    g = GlobalMaxPool(l)
    f = Flatten(g)
    h = Gemm<transB=1>(f, w6, b6)
    q = Relu(h)
    y = Gemm<transB=1>(q, w7)
    """,
    w1=dead(6, 3, 3, 3, seed=1), b1=low(6), w2=-np.abs(weight(6, 6, 3, 3, seed=2)), b2=low(6) - 1,
    w3=weight(6, 6, 3, 3, seed=3), w4=dead(6, 6, 3, 3, seed=4), b4=low(6), w5=weight(6, 4, 2, 2, seed=5), b5=low(4),
    w6=dead(6, 4, seed=6), b6=low(6), w7=weight(4, 6, seed=7), zero=scalar(0), six=scalar(6),
)  # fmt: skip

UNBIASED = written(
    "(T[N,3,8,8] x) => (T[N,4] y)",
    """
    c1 = Conv<pads=[1,1,1,1]>(x, w1)
    n1 = BatchNormalization<epsilon=0.001>(c1, g1, zeros, zeros, flat)
    r1 = Relu(n1)
    n2 = BatchNormalization<epsilon=0.001>(r1, g1, b1, zeros, flat)
    c2 = Conv<strides=[2,2]>(n2, w2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = MatMul(f, w3)
    """,
    w1=weight(6, 3, 3, 3, seed=1), w2=dead(6, 6, 3, 3, seed=2), w3=weight(6, 4, seed=3),
    g1=np.asarray([1, -1, 0, 1, 0, 2], np.float32), b1=low(6), zeros=np.zeros(6, np.float32),
    flat=np.asarray([1, 0, 1, 0, 1, 2], np.float32),
)  # fmt: skip

ACTIVATIONS = written(
    "(T[N,6] x) => (T[N,4] y)",
    """
    h = Gemm<transB=1>(x, w1, b1)
    a0, a1, a2, a3, a4, a5 = Split<axis=1, num_outputs=6>(h)
    e0 = Gelu(a0)
    e1 = Gelu<approximate="tanh">(a0)
    e2 = Sigmoid(a1)
    e3 = Mul(e2, a1)
    e4 = Tanh(a1)
    e5 = Softplus(a1)
    e6 = Elu(a2)
    e7 = Selu(a2)
    e8 = Celu(a2)
    e9 = Mish(a3)
    f0 = HardSigmoid(a3)
    f1 = HardSwish(a3)
    f2 = Softsign(a3)
    f3 = Erf(a4)
    f4 = LeakyRelu(a4)
    f5 = PRelu(a4, slope)
    f6 = ThresholdedRelu<alpha=0.5>(a4)
    f7 = Abs(a5)
    f8 = Sin(a5)
    f9 = Cos(a5)
    g0 = Sqrt(f7)
    g1 = Neg(f9)
    j = Concat<axis=1>(e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, f0, f1, f2, f3, f4, f5, f6, f8, g0, g1)
    y = MatMul(j, w2)
    """,
    opset=20, w1=0.3 * weight(12, 6, seed=1), b1=low(12), slope=scalar(0.1), w2=0.1 * weight(40, 4, seed=2),
)  # fmt: skip

ATTENTION = """
    n1 = LayerNormalization<epsilon=0.00001>(x, s1, t1)
    q = MatMul(n1, wq)
    k0 = MatMul(n1, wk)
    k = Transpose<perm=[0,2,1]>(k0)
    v = MatMul(n1, wv)
    z0 = MatMul(q, k)
    z1 = Mul(z0, scale)
    z2 = MASK
    p = Softmax<axis=-1>(z2)
    o = MatMul(p, v)
    o2 = MatMul(o, wo)
    r1 = Add(x, o2)
    n2 = LayerNormalization<epsilon=0.00001>(r1, s1, t1)
    u = MatMul(n2, wu)
    u1 = Add(u, bu)
    u2 = Gelu(u1)
    d = MatMul(u2, wd)
    r2 = Add(r1, d)
    m = ReduceMean<keepdims=0>(r2, one)
    y = MatMul(m, wh)
"""
BLOCK = {
    "s1": np.ones(6, np.float32), "t1": low(6), "wq": weight(6, 6, seed=1), "wk": weight(6, 6, seed=2),
    "wv": weight(6, 6, seed=3), "wo": weight(6, 6, seed=4), "wu": 0.2 * weight(6, 12, seed=5), "bu": low(12),
    "wd": 0.2 * weight(12, 6, seed=6), "wh": weight(6, 4, seed=7), "scale": scalar(0.4), "one": np.asarray([1]),
}  # fmt: skip
CAUSAL = np.triu(np.ones((4, 4), bool), 1)


def attention(masking: str, **more: np.ndarray) -> Callable[[type], onnx.ModelProto]:
    """A block of a transformer with its scores z1 masked."""
    return written("(T[N,4,6] x) => (T[N,4] y)", ATTENTION.replace("MASK", masking), opset=20, **BLOCK, **more)


GATED = written(
    "(T[N,4,6] x) => (T[N,4] y)",
    """
    e = Pow(x, two)
    m = ReduceMean<keepdims=1>(e, last)
    me = Add(m, eps)
    sq = Sqrt(me)
    n = Div(x, sq)
    ns = Mul(n, s)
    u = MatMul(ns, wu)
    g = MatMul(ns, wg)
    sg = Sigmoid(g)
    act = Mul(g, sg)
    h = Mul(act, u)
    d = MatMul(h, wd)
    r = Add(x, d)
    n2 = RMSNormalization<axis=-1, epsilon=0.000001>(r, s)
    p = ReduceMean<keepdims=0>(n2, one)
    y = MatMul(p, wh)
    """,
    opset=23, two=scalar(2), eps=scalar(1e-6), last=np.asarray([-1]), one=np.asarray([1]),
    s=np.asarray([1, -1, 0, 2, 1, 1], np.float32), wu=weight(6, 8, seed=1), wg=weight(6, 8, seed=2),
    wd=weight(8, 6, seed=3), wh=weight(6, 4, seed=4),
)  # fmt: skip

NORMS = written(
    "(T[N,4,6,6] x) => (T[N,4] y)",
    """
    i = InstanceNormalization(x, s, t)
    r1 = Relu(i)
    c = Conv<pads=[1,1,1,1]>(r1, w1, t)
    l = LRN<size=3>(c)
    n = LpNormalization<axis=1>(l)
    n1 = LpNormalization<axis=1, p=1>(x)
    j = Add(n, n1)
    g = GroupNormalization<num_groups=2, epsilon=0.00001>(j, s, t)
    u = Resize<mode="linear">(g, , scales)
    lp = LpPool<kernel_shape=[2,2], strides=[2,2]>(u)
    q = GlobalLpPool<p=2>(lp)
    f = Flatten(q)
    y = MatMul(f, w2)
    """,
    opset=21, s=np.asarray([1, 0, -1, 2], np.float32), t=low(4), w1=dead(4, 4, 3, 3), w2=weight(4, 4),
    scales=np.asarray([1, 1, 2, 2], np.float32),
)  # fmt: skip

DIVISIONS = written(
    "(T[N,6] x) => (T[N,4] y)",
    """
    a = MatMul(x, w1)
    s = Abs(a)
    t = ReduceSum<keepdims=1>(s, last)
    d0 = Add(t, one)
    d = Div(a, d0)
    l2 = ReduceL2<keepdims=1>(a, last)
    l2c = Max(l2, tiny)
    n = Div(a, l2c)
    top = ReduceMax<keepdims=1>(a, last)
    low = Sub(a, top)
    e = Exp(low)
    z = ReduceSum<keepdims=1>(e, last)
    sm = Div(e, z)
    rc = Reciprocal(d0)
    lg = Log(d0)
    lse = ReduceLogSumExp<keepdims=1>(low, last)
    l1 = ReduceL1<keepdims=1>(n, last)
    ss = ReduceSumSquare<keepdims=1>(n, last)
    mn = Min(n, d)
    mx = Max(n, d)
    wc = Greater(n, d)
    wh = Where(wc, n, d)
    pw = Pow(s, half)
    ex = Einsum<equation="ni,ni->n">(n, sm)
    ex1 = Unsqueeze(ex, last)
    j = Concat<axis=1>(d, n, sm, rc, lg, lse, l1, ss, mn, mx, wh, pw, ex1)
    y = MatMul(j, w2)
    """,
    w1=weight(6, 5, seed=1), w2=0.1 * weight(41, 4, seed=2), last=np.asarray([-1]), one=scalar(1), tiny=scalar(1e-5),
    half=scalar(0.5),
)  # fmt: skip

# The Mul keeps ONNX Runtime from a crash on Transpose + MatMul in half precision (microsoft/onnxruntime issue 28392).
RECURRENT = written(
    "(T[N,2,6] x) => (T[N,4] y)",
    """
    t0 = Transpose<perm=[1,0,2]>(x)
    t = Mul(t0, most)
    o, h, c = LSTM<hidden_size=4>(t, w, r, b)
    o2, h2 = GRU<hidden_size=4, linear_before_reset=1>(t, wg, rg, bg)
    s = Add(h, h2)
    q = Squeeze(s, zero)
    y = MatMul(q, wh)
    """,
    most=scalar(0.9), w=weight(1, 16, 6, seed=1),
    r=weight(1, 16, 4, seed=2), b=0.1 * weight(1, 32, seed=3), wg=weight(1, 12, 6, seed=4),
    rg=weight(1, 12, 4, seed=5), bg=0.1 * weight(1, 24, seed=6), zero=np.asarray([0]), wh=weight(4, 4, seed=7),
)  # fmt: skip

NETS = {
    "convolutions": Net(CONVOLUTIONS, (3, 8, 8)),
    "unbiased": Net(UNBIASED, (3, 8, 8)),
    "mixed": Net(mixed, (3, 12, 12)),
    "mixed, no bias": Net(lambda dtype: mixed(dtype, bias=0.0), (3, 12, 12)),
    "activations": Net(ACTIVATIONS, (6,)),
    "attention, -inf": Net(
        attention("Add(z1, mask)", mask=np.where(CAUSAL, -np.inf, 0).astype(np.float32)), (4, 6), ("z2",)
    ),
    "attention, -1e4": Net(attention("Where(mask, least, z1)", mask=CAUSAL, least=scalar(-1e4)), (4, 6)),
    "gated": Net(GATED, (4, 6)),
    "norms": Net(NORMS, (4, 6, 6)),
    "divisions": Net(DIVISIONS, (6,)),
    "recurrent": Net(RECURRENT, (2, 6)),
}
