"""Whole models with every free dimension symbolic at once: batch, image size, sequence length.

One file, compiled once, runs at several sizes, an empty batch among them, and gives what a file compiled for that size
alone gives; its gradient is that of central differences through the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import xaicompile
from tests.graphs import Arrays, data, net, run, weight

SAME = 2e-5  # relative, between one file for all sizes and one for each
DIFFERENCES = 5e-3  # of central differences in float32
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Net:
    """A model and what to feed it.

    Attributes:
        text: Inputs and outputs, and nodes, in ONNX text.
        feed: The inputs at given sizes.
        sizes: Those to run it at, the symbols' values.
        output: Name of the explained output.
    """

    signature: str
    body: str
    weights: Callable[[], Arrays]
    feed: Callable[[Sizes], Arrays]
    sizes: tuple[Sizes, ...]
    opset: int = 18

    def model(self, sizes: Sizes | None = None) -> onnx.ModelProto:
        """The model, its symbols replaced by sizes if there are any."""
        made = net(self.signature, self.body, opset=self.opset, **self.weights())
        for value in (*made.graph.input, *made.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if sizes is not None and dim.dim_param:
                    dim.dim_value = sizes[dim.dim_param]
        return made


def images(dims: tuple[Sizes, ...]) -> tuple[Sizes, ...]:
    return tuple({**d, "K": 5} for d in dims)


IMAGES: tuple[Sizes, ...] = (
    {"N": 2, "H": 13, "W": 10},
    {"N": 1, "H": 8, "W": 17},
    {"N": 3, "H": 16, "W": 16},
    {"N": 0, "H": 13, "W": 10},
)

CONVOLUTIONS = Net(
    "(float[N,3,H,W] x) => (float[N,5] y)",
    """
    c1 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1, b1)
    n1 = BatchNormalization(c1, g, t, m, v)
    a1 = Relu(n1)
    c2 = Conv<group=6, pads=[2,2,2,2], dilations=[2,2]>(a1, w2)
    i2 = InstanceNormalization(c2, g, t)
    a2 = LeakyRelu(i2)
    r2 = Add(a2, a1)
    p2 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r2)
    c3 = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(r2, w3)
    a3 = Relu(c3)
    o3 = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r2)
    j = Concat<axis=1>(p2, a3, o3)
    u = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(j, w4, b4)
    s = Shape<start=2>(r2)
    h = Shape<end=2>(u)
    hs = Concat<axis=0>(h, s)
    z = Resize<mode="linear">(u, , , hs)
    l = LRN<size=3>(z)
    e = Mul(l, gate)
    q = GlobalAveragePool(e)
    k = GlobalMaxPool(r2)
    d = Add(q, k)
    f = Flatten(d)
    y = Gemm<transB=1>(f, w5, b5)
    """,
    lambda: {
        "w1": weight(6, 3, 3, 3) * 2, "b1": weight(6, seed=1) * 0.3, "w2": weight(6, 1, 3, 3), "w3": weight(4, 6, 3, 3),
        "w4": weight(16, 6, 3, 3) * 3, "b4": weight(6, seed=2) * 0.3, "w5": weight(5, 6), "b5": weight(5, seed=3),
        "g": 1 + weight(6, seed=4) * 0.3, "t": weight(6, seed=5) * 0.3, "m": weight(6, seed=6) * 0.3,
        "v": 1 + np.abs(weight(6, seed=7)), "gate": np.abs(weight(1, 6, 1, 1, seed=8)) + 0.5,
    },
    lambda s: {"x": data(s["N"], 3, s["H"], s["W"])},
    IMAGES,
)  # fmt: skip

SPATIAL = Net(
    "(float[N,3,H,W] x) => (float[N,4,P,Q] y)",
    """
    c1 = Conv<strides=[2,1], pads=[1,1,1,1]>(x, w1)
    a1 = Softplus(c1)
    r = Reshape(a1, flat)
    t = Transpose<perm=[0,2,1]>(r)
    n = LayerNormalization<axis=-1>(t, g, h)
    b = Transpose<perm=[0,2,1]>(n)
    s = Shape(a1)
    o = Reshape(b, s)
    p = Pad<mode="reflect">(o, pads)
    i = Slice(p, starts, ends, axes, steps)
    d = SpaceToDepth<blocksize=1>(i)
    y = Conv(d, w2)
    """,
    lambda: {
        "w1": weight(4, 3, 3, 3), "w2": weight(4, 4, 2, 2), "flat": np.array([0, 4, -1]),
        "g": 1 + weight(4) * 0.3, "h": weight(4, seed=1), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "starts": np.array([0, -1]), "ends": np.array([2**31, -(2**31)]), "axes": np.array([2, 3]),
        "steps": np.array([2, -1]),
    },
    lambda s: {"x": data(s["N"], 3, s["H"], s["W"])},
    (
        {"N": 2, "H": 7, "W": 6, "P": 2, "Q": 7},
        {"N": 1, "H": 12, "W": 5, "P": 3, "Q": 6},
        {"N": 3, "H": 9, "W": 9, "P": 3, "Q": 10},
    ),
)  # fmt: skip

TRANSFORMER = Net(
    "(int64[N,T] ids, float[N,T] mask) => (float[N,T,5] y)",
    """
    e = Gather(words, ids)
    d = Shape(ids)
    n = Gather(d, i0)
    t = Gather(d, i1)
    at = Range(i0, t, i1)
    ps = Gather(places, at)
    h = Add(e, ps)
    l = LayerNormalization<axis=-1>(h, g, b)
    q = MatMul(l, wq)
    k = MatMul(l, wk)
    v = MatMul(l, wv)
    n1 = Unsqueeze(n, ax0)
    t1 = Unsqueeze(t, ax0)
    heads = Concat<axis=0>(n1, t1, two, four)
    qh = Reshape(q, heads)
    kh = Reshape(k, heads)
    vh = Reshape(v, heads)
    qt = Transpose<perm=[0,2,1,3]>(qh)
    kt = Transpose<perm=[0,2,3,1]>(kh)
    vt = Transpose<perm=[0,2,1,3]>(vh)
    s = MatMul(qt, kt)
    sc = Div(s, root)
    hidden = Sub(one, mask)
    low = Mul(hidden, lowest)
    m4 = Unsqueeze(low, ax12)
    sm = Add(sc, m4)
    square = Concat<axis=0>(t1, t1)
    ones = Expand(one, square)
    tri = Trilu<upper=1>(ones, i1)
    up = Mul(tri, lowest)
    sw = Add(sm, up)
    a = Softmax<axis=-1>(sw)
    c = MatMul(a, vt)
    ct = Transpose<perm=[0,2,1,3]>(c)
    merged = Concat<axis=0>(n1, t1, eight)
    cm = Reshape(ct, merged)
    o = MatMul(cm, wo)
    r = Add(o, h)
    f = LayerNormalization<axis=-1>(r, g, b)
    u = MatMul(f, w1)
    ub = Add(u, b1)
    x1 = Div(ub, sq2)
    x2 = Erf(x1)
    x3 = Add(x2, one)
    x4 = Mul(ub, x3)
    x5 = Mul(x4, half)
    w = MatMul(x5, w2)
    z = Add(w, r)
    y = MatMul(z, wl)
    """,
    lambda: {
        "words": data(11, 8), "places": data(20, 8, seed=1), "g": 1 + 0.3 * data(8, seed=2), "b": data(8, seed=3),
        **{n: weight(8, 8, seed=i) * 3 for i, n in enumerate(("wq", "wk", "wv", "wo"))},
        "w1": weight(8, 16) * 2, "b1": data(16), "w2": weight(16, 8), "wl": weight(8, 5),
        **{n: np.asarray(v, np.float32) for n, v in {"root": 2.0, "one": 1.0, "sq2": 2**0.5, "half": 0.5,
                                                     "lowest": -1e4}.items()},
        "i0": np.asarray(0), "i1": np.asarray(1), "ax0": np.array([0]), "ax12": np.array([1, 2]), "two": np.array([2]),
        "four": np.array([4]), "eight": np.array([8]),
    },
    lambda s: {
        "ids": np.random.default_rng(7).integers(0, 11, (s["N"], s["T"])),
        "mask": (np.arange(s["T"]) < np.arange(s["T"], s["T"] - s["N"], -1)[:, None]).astype(np.float32),
    },
    ({"N": 2, "T": 5}, {"N": 1, "T": 1}, {"N": 3, "T": 9}, {"N": 0, "T": 4}),
)  # fmt: skip

LAYERS = Net(
    "(float[N,T,8] x) => (float[N,5] y)",
    """
    l = LayerNormalization<axis=-1>(x, g, b)
    q = MatMul(l, wq)
    y0 = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, l, l)
    n = RMSNormalization(y0, g)
    r = Add(n, x)
    m = ReduceMean<keepdims=0>(r, ax1)
    k = ReduceMax<keepdims=0>(r, ax1)
    a = Gelu(m)
    j = Add(a, k)
    y = MatMul(j, wl)
    """,
    lambda: {"g": 1 + 0.3 * data(8, seed=2), "b": data(8, seed=3), "wq": weight(8, 8) * 3, "wl": weight(8, 5),
             "ax1": np.array([1])},
    lambda s: {"x": data(s["N"], s["T"], 8)},
    ({"N": 2, "T": 5}, {"N": 1, "T": 1}, {"N": 3, "T": 7}),
    opset=23,
)  # fmt: skip

RECURRENT = Net(
    "(float[T,N,3] x, int32[N] lengths) => (float[N,5] y)",
    """
    a, ah, ac = LSTM<hidden_size=4, direction="bidirectional">(x, w1, r1, b1, lengths)
    t = Transpose<perm=[0,2,1,3]>(a)
    f = Reshape(t, wide)
    c, ch = GRU<hidden_size=3, direction="reverse", linear_before_reset=1>(f, w2, r2, b2, lengths)
    d, dh = RNN<hidden_size=3>(f, w3, r3)
    e = Add(c, d)
    s = Squeeze(e, ax1)
    m = ReduceSum<keepdims=0>(s, ax0)
    hs = Squeeze(ch, ax0)
    k = Concat<axis=-1>(m, hs)
    y = MatMul(k, wl)
    """,
    lambda: {
        "w1": data(2, 16, 3) * 0.5, "r1": data(2, 16, 4) * 0.5, "b1": data(2, 32) * 0.3, "w2": data(1, 9, 8) * 0.5,
        "r2": data(1, 9, 3) * 0.5, "b2": data(1, 18) * 0.3, "w3": data(1, 3, 8) * 0.5, "r3": data(1, 3, 3) * 0.5,
        "wl": weight(6, 5), "wide": np.array([0, 0, 8]), "ax0": np.array([0]), "ax1": np.array([1]),
    },
    lambda s: {"x": data(s["T"], s["N"], 3), "lengths": np.maximum(s["T"] - np.arange(s["N"]), 1).astype(np.int32)},
    ({"N": 2, "T": 4}, {"N": 1, "T": 1}, {"N": 3, "T": 7}),  # the runtime's LSTM and GRU abort on an empty batch
)  # fmt: skip

STEPS = Net(
    "(float[N,T,3] x) => (float[N,5] y)",
    """
    xt = Transpose<perm=[1,0,2]>(x)
    a, ah = RNN<hidden_size=4, direction="bidirectional", activations=["Tanh", "Softsign"]>(xt, w1, r1, b1)
    t = Transpose<perm=[2,0,1,3]>(a)
    m = ReduceMean<keepdims=0>(t, ax1)
    f = Flatten(m)
    y = MatMul(f, wl)
    """,
    lambda: {"w1": data(2, 4, 3) * 0.5, "r1": data(2, 4, 4) * 0.5, "b1": data(2, 8) * 0.3, "wl": weight(8, 5),
             "ax1": np.array([1])},
    lambda s: {"x": data(s["N"], s["T"], 3)},
    ({"N": 2, "T": 4}, {"N": 1, "T": 1}, {"N": 3, "T": 7}, {"N": 0, "T": 3}),
)  # fmt: skip

REGIONS = Net(
    "(float[N,2,H,W] x, float[B,4] boxes, int64[B] images) => (float[B,3] y)",
    """
    c = Conv<pads=[1,1,1,1]>(x, w1)
    a = Relu(c)
    r = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(a, boxes, images)
    bx = Cast<to=1>(images)
    bu = Unsqueeze(bx, ax1)
    b5 = Concat<axis=1>(bu, boxes)
    m = MaxRoiPool<pooled_shape=[2,2]>(a, b5)
    s = Add(r, m)
    f = Flatten(s)
    y = MatMul(f, wl)
    """,
    lambda: {"w1": weight(2, 2, 3, 3), "wl": weight(8, 3), "ax1": np.array([1])},
    lambda s: {
        "x": data(s["N"], 2, s["H"], s["W"]),
        "boxes": np.random.default_rng(3).uniform(0.2, 5.7, (s["B"], 4)).astype(np.float32).cumsum(1) / 2,
        "images": np.arange(s["B"]) % max(s["N"], 1),
    },
    ({"N": 2, "H": 7, "W": 6, "B": 3}, {"N": 1, "H": 9, "W": 12, "B": 1}, {"N": 3, "H": 5, "W": 5, "B": 0}),
)  # fmt: skip

VOLUMES = Net(
    "(float[N,2,D,H,W] x) => (float[N,4] y)",
    """
    c1 = Conv<strides=[1,2,1], pads=[1,1,1,1,1,1]>(x, w1, b1)
    a1 = Relu(c1)
    n1 = GroupNormalization<num_groups=2>(a1, g, b1)
    p1 = MaxPool<kernel_shape=[2,2,2], strides=[2,1,1]>(n1)
    p2 = AveragePool<kernel_shape=[2,2,2], strides=[2,1,1]>(n1)
    l = LpPool<kernel_shape=[2,2,2], strides=[2,1,1]>(n1)
    s = Sum(p1, p2, l)
    u = ConvTranspose<strides=[2,1,2]>(s, w2)
    t = Transpose<perm=[0,2,3,4,1]>(u)
    k = Softmax<axis=-1>(t)
    e = Mul(k, t)
    r = ReduceSum<keepdims=0>(e, axes)
    y = MatMul(r, wl)
    """,
    lambda: {"w1": weight(4, 2, 3, 3, 3) * 2, "b1": weight(4), "w2": weight(4, 3, 2, 2, 2), "wl": weight(3, 4),
             "g": 1 + weight(4, seed=1) * 0.3, "axes": np.array([1, 2, 3])},
    lambda s: {"x": data(s["N"], 2, s["D"], s["H"], s["W"])},
    ({"N": 2, "D": 4, "H": 5, "W": 3}, {"N": 1, "D": 3, "H": 4, "W": 6}),  # GroupNormalization needs a sample
    opset=21,
)  # fmt: skip

NETS = {"convolutions": CONVOLUTIONS, "spatial": SPATIAL, "transformer": TRANSFORMER, "layers": LAYERS,
        "recurrent": RECURRENT, "steps": STEPS, "regions": REGIONS, "volumes": VOLUMES}  # fmt: skip
EXPLAINED = {"transformer": "ids", "regions": "x", "recurrent": "x"}
MIXED = {"recurrent", "regions"}  # samples do not stand on axis 0 of both input and output
BOXED = {"convolutions", "spatial", "regions", "volumes"}  # whose first linear op reads the input
RULES = ["gradient", "lrp-gamma", "lrp-epsilon", "guided-backprop", "lrp-zplus", "z-box", "w-square"]


def options(name: str, rule: str) -> dict[str, object]:
    given: dict[str, object] = {"ledger": rule.startswith("lrp")}
    if name in EXPLAINED:
        given["explain_input"] = EXPLAINED[name]
    if rule == "z-box":
        given["parameters"] = {"low": -3, "high": 3}
    return given


def rows() -> list[object]:
    pairs = [(n, r) for n in NETS for r in RULES if r != "z-box" or n in BOXED]
    return [pytest.param(n, r, id=f"{n}, {r}") for n, r in pairs]


@pytest.mark.parametrize(("name", "rule"), rows())
def test_one_file_for_all_sizes(name: str, rule: str) -> None:
    """The same numbers as from a file compiled for that size alone; all outputs of the right shape."""
    for reduce in ("sum",) if name in MIXED else (None, "sum"):
        more = {**options(name, rule), "explain_reduce": reduce}
        whole = xaicompile.compile(NETS[name].model(), rule, **more)  # type: ignore[arg-type]
        for sizes in NETS[name].sizes:
            feed = NETS[name].feed(sizes)
            before = run(NETS[name].model(), feed)["y"]
            found = run(whole, feed)
            np.testing.assert_array_equal(found["y"].shape, before.shape)
            np.testing.assert_allclose(found["y"], before, rtol=1e-5, atol=1e-5)
            assert found["relevance"].shape == next(v.shape for k, v in feed.items() if k in EXPLAINED.get(name, "x"))
            assert np.isfinite(found["relevance"]).all()
            if 0 in sizes.values():
                continue
            alone = run(xaicompile.compile(NETS[name].model(sizes), rule, **more), feed)  # type: ignore[arg-type]
            for key in ("relevance", *(("ledger", "explained") if "ledger" in found else ())):
                scale = max(float(np.abs(alone["relevance"]).max()), float(np.abs(alone[key]).max()))
                np.testing.assert_allclose(found[key], alone[key], rtol=0, atol=SAME * scale, err_msg=f"{key} {sizes}")


def fixed_projection(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model with the scalar output `total`, a random linear function of `y`."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.append(numpy_helper.from_array(data(*shape, seed=9), "projection"))
    made.graph.node.append(onnx.helper.make_node("Mul", ["y", "projection"], ["product"]))
    made.graph.node.append(onnx.helper.make_node("ReduceSum", ["product"], ["total"], keepdims=0))
    made.graph.output.append(onnx.helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, []))
    return made


@pytest.mark.parametrize("name", [n for n in NETS if n != "transformer"])
def test_gradients_at_each_size(name: str) -> None:
    """Along random directions, where every element moves at once."""
    for sizes in NETS[name].sizes:
        feed = NETS[name].feed(sizes)
        if 0 in sizes.values():
            continue
        model = fixed_projection(NETS[name].model(), run(NETS[name].model(), feed)["y"].shape)
        whole = xaicompile.compile(model, "gradient", explain_output="total", explain_reduce="sum", explain_input="x")
        gradient = run(whole, feed)["relevance"].astype(np.float64)
        for seed in range(3):
            direction = data(*feed["x"].shape, seed=20 + seed)
            ends = [float(run(model, {**feed, "x": feed["x"] + sign * 1e-3 * direction})["total"]) for sign in (1, -1)]
            slope, expected = (ends[0] - ends[1]) / 2e-3, float((gradient * direction).sum())
            norm = float(np.linalg.norm(gradient) * np.linalg.norm(direction)) / np.sqrt(gradient.size)
            assert abs(slope - expected) <= DIFFERENCES * max(norm, abs(expected)), f"{sizes} {seed}"


SCALARS = {
    "elementwise": "a = Sin(x)\nb = Mul(a, x)\nc = Where(flag, b, x)\nd = Max(c, z)\ny = Add(d, z)",
    "reshaped": "a = Unsqueeze(x, ax0)\nb = Concat<axis=0>(a, a, v)\nc = Mul(b, b)\nd = Gather(c, i1)\ne = Tanh(d)\n"
                "f = ReduceSum<keepdims=0>(c)\ny = Mul(e, f)",
    "broadcast": "a = Expand(x, shape)\nb = Mul(a, v)\nc = MatMul(b, m)\nd = Div(c, x)\ne = Pow(d, z)\n"
                 "y = ReduceMean<keepdims=0>(e)",
    "in a branch": "y = If(flag) <then_branch = g () => (float a) { a = Sin(x) },"
                   " else_branch = k () => (float b) { b = Neg(x) }>",
    "in a loop": "y = Loop(n, , x) <body = step (int64 i, bool c, float u) => (bool c2, float u2)"
                 " { c2 = Identity(c)\n w = Sin(u)\n u2 = Mul(w, x) }>",
    "in steps": "y, each = Scan<num_scan_inputs=1, body = step (float u, float r) => (float u2, float e)"
                " { w = Mul(u, r)\n u2 = Sin(w)\n e = Add(u2, x) }>(x, v)",
}  # fmt: skip


@pytest.mark.parametrize("rule", ["gradient", "lrp-0", "lrp-gamma"])
@pytest.mark.parametrize("name", SCALARS)
def test_models_of_one_number(name: str, rule: str) -> None:
    """Inputs and outputs of no axes, also in subgraphs."""
    held = {
        "z": np.asarray(2, np.float32),
        "flag": np.asarray(True),
        "ax0": np.array([0]),
        "i1": np.asarray(1),
        "v": np.array([0.5, -1.5, 2], np.float32),
        "shape": np.array([2, 3]),
        "m": data(3, 2),
        "n": np.asarray(3),
    }
    body = SCALARS[name]
    used = {k: v for k, v in held.items() if f"({k}" in body or f", {k}" in body}
    model = net("(float x) => (float y)", body, **used)
    for value in (0.7, -0.4):
        feed = {"x": np.asarray(value, np.float32)}
        emitted = xaicompile.compile(model, rule, explain_output="y", explain_reduce="sum", ledger=rule != "gradient")
        found = run(emitted, feed)
        assert found["relevance"].shape == () and np.isfinite(found["relevance"])
        if rule == "gradient":
            ends = [float(run(model, {"x": np.asarray(value + s, np.float32)})["y"]) for s in (1e-3, -1e-3)]
            assert abs(found["relevance"] - (ends[0] - ends[1]) / 2e-3) < 2e-3
        else:
            assert abs(found["relevance"] + found["ledger"].sum() - found["y"]) < 1e-5 * max(abs(found["y"]), 1)


HALF = ["convolutions", "spatial", "recurrent"]  # ONNX Runtime 1.32 aborts on MatMul(Transpose(x), w) in float16


@pytest.mark.parametrize("rule", ["gradient", "lrp-gamma"])
@pytest.mark.parametrize("name", HALF)
def test_float16_at_all_sizes(name: str, rule: str) -> None:
    """Types are kept, and the numbers are those of float32 to the accuracy of float16."""
    whole = NETS[name].model()
    low = xaicompile.compile(halved(whole), rule, explain_reduce="sum", explain_input="x")
    full = xaicompile.compile(whole, rule, explain_reduce="sum", explain_input="x")
    for sizes in NETS[name].sizes:
        feed = NETS[name].feed(sizes)
        found = run(low, {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in feed.items()})
        assert found["relevance"].dtype == np.float16 and found["y"].dtype == np.float16
        want = run(full, feed)["relevance"]
        off = np.abs(found["relevance"] - want)
        assert off.size == 0 or np.quantile(off, 0.97) <= 2e-2 * np.abs(want).max()


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in (*made.graph.input, *made.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return made


EMPTY = {
    "tile": ("float[N,3] x", "y = Tile(x, two)", {"two": np.array([1, 2])}, (0, 3)),
    "short-time fourier": ("float[N,12,1] x", "y = STFT<onesided=1>(x, step, win)",
                           {"step": np.asarray(3), "win": data(4)}, (0, 12, 1)),
    "sampling": ("float[N,2,4,5] x", "g = Shape<end=1>(x)\nh = Concat<axis=0>(g, rest)\ngrid = Expand(at, h)\n"
                                     "y = GridSample(x, grid)",
                 {"rest": np.array([3, 3, 2]), "at": np.zeros((1, 1, 1, 2), np.float32)}, (0, 2, 4, 5)),
    "largest": ("float[N,2,4,5] x", "y = GlobalMaxPool(x)", {}, (0, 2, 4, 5)),
    "response": ("float[N,4,3,H] x", "y = LRN<size=3>(x)", {}, (0, 4, 3, 5)),
    "boxes": ("float[1,2,4,5] x, float[N,4] b, int64[N] i", "y = RoiAlign<mode=\"max\", sampling_ratio=2>(x, b, i)",
              {}, (1, 2, 4, 5)),
    "pooled boxes": ("float[1,2,4,5] x, float[N,5] b", "y = MaxRoiPool<pooled_shape=[2,2]>(x, b)", {}, (1, 2, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_of_one_operator(name: str) -> None:
    """Its relevance is empty, or zeros where there were no boxes; the file runs as the model does."""
    signature, body, held, shape = EMPTY[name]
    body += "\ns = ReduceSum<keepdims=0>(y)"
    model = net(f"({signature}) => (float s)", body, **held)
    feed = {"x": data(*shape), "b": np.zeros((0, 5 if "Max" in body else 4), np.float32), "i": np.zeros(0, np.int64)}
    used = {i.name: feed[i.name] for i in model.graph.input}
    assert run(model, used)["s"] == 0
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum", explain_input="x")
    found = run(emitted, used)["relevance"]
    assert found.shape == shape and not found.any()
