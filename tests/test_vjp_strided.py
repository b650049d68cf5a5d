"""Strided depthwise convolutions, steps and the blocked layout, against plain numpy loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import xaicompile
from xaicompile.runtime import Session

Array = np.ndarray
TINY = np.finfo(np.float32).tiny


def conv_model(x: list[int | str], w: Array, **attrs: object) -> onnx.ModelProto:
    """s = Conv(x, w), one explained number for each sample and output."""
    made = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", "C", "h", "w"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, x)
    node = helper.make_node("Conv", ["x", "w"], ["s"], **attrs)
    graph = helper.make_graph([node], "g", [given], [made], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def transposed(c: Array, w: Array, size: tuple[int, int], strides: list[int], dilations: list[int], pads: list[int],
               group: int) -> Array:  # fmt: skip
    """The definition: every output position hands c times the kernel on to the positions that it has read."""
    n, m, *out = c.shape
    per = w.shape[1]
    result = np.zeros((n, per * group, *size))
    for o, i, j, r, s in product(range(m), range(out[0]), range(out[1]), range(w.shape[2]), range(w.shape[3])):
        at = i * strides[0] + r * dilations[0] - pads[0], j * strides[1] + s * dilations[1] - pads[1]
        if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
            first = o // (m // group) * per
            result[:, first : first + per, at[0], at[1]] += c[:, o, i, j, None] * w[o, :, r, s]
    return result


CASES = {
    "3x3": {"k": (3, 3), "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "5x5, uneven pads": {"k": (5, 5), "strides": [2, 2], "pads": [1, 2, 2, 1]},
    "stride 3, not all is read": {"k": (2, 2), "strides": [3, 3], "pads": [0, 0, 0, 0]},
    "one axis": {"k": (3, 1), "strides": [2, 1], "pads": [1, 0, 1, 0]},
    "dilated": {"k": (3, 3), "strides": [2, 2], "pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "single pixels": {"k": (1, 1), "strides": [3, 2], "pads": [0, 0, 0, 0]},
    "pads wider than the kernel": {"k": (1, 1), "strides": [2, 2], "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels, group", [(8, 8), (6, 6), (8, 1), (8, 2)])
def test_strided_transpose(case: str, size: tuple[int, int], channels: int, group: int) -> None:
    options = dict(CASES[case])
    k = options.pop("k")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels, channels // group, *k)).astype(np.float32)
    x = rng.standard_normal((2, channels, *size)).astype(np.float32)
    model = conv_model(["N", channels, *size], w, group=group, **options)
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    s, got = Session(emitted).run({"x": x}).values()
    dilations = list(options.get("dilations", [1, 1]))
    wanted = transposed(np.ones_like(s), w, size, options["strides"], dilations, options["pads"], group)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_strided_depthwise_kernel_stands_in_the_file_once() -> None:
    w = np.random.default_rng(0).standard_normal((512, 1, 5, 5)).astype(np.float32)
    model = conv_model(["N", 512, 14, 14], w, group=512, strides=[2, 2], pads=[2, 2, 2, 2])
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    assert [n.op_type for n in emitted.graph.node].count("Conv") == 2
    assert emitted.ByteSize() - model.ByteSize() < 10_000 < w.nbytes


def gradient(text: str, x: Array, steps: bool = True) -> Array:
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g (float[n] x) => (float[n] s) {text}')
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    assert steps == ({"Greater", "Less"}.isdisjoint(n.op_type for n in emitted.graph.node))
    return Session(emitted).run({"x": x})["relevance"]


def near(bound: float) -> Array:
    """A bound and its neighbours in float32, and what is far from it."""
    there = np.float32(bound)
    down, up = np.nextafter(there, np.float32(-np.inf)), np.nextafter(there, np.float32(np.inf))
    far = np.asarray([-3e38, -1e10, -1, -TINY, 0, TINY, 1, 1e10, 3e38], np.float32)
    return np.asarray([there, down if bound else -TINY, up if bound else TINY, *far], np.float32)


def test_a_relu_passes_all_that_is_above_zero() -> None:
    x = near(0)
    assert np.array_equal(gradient("{ s = Relu(x) }", x), (x > 0).astype(np.float32))


@pytest.mark.parametrize("low, high", [(0.0, 6.0), (-1.0, 1.0), (0.1, 0.3), (-1e20, 1e-20), (2.0, 1e38), (-5.0, 0.0)])
def test_a_clip_passes_what_is_strictly_between(low: float, high: float) -> None:
    text = f"<float low = {{{low}}}, float high = {{{high}}}> {{ s = Clip(x, low, high) }}"
    x = np.concatenate([near(low), near(high)])
    inside = (x > np.float32(low)) & (x < np.float32(high))
    assert np.array_equal(gradient(text, x), inside.astype(np.float32))


def test_bounds_next_to_zero_are_compared() -> None:
    """No slope in float32 tells 1e-36 from its neighbour."""
    x = near(1e-36)
    got = gradient("<float low = {1e-36}> { s = Clip(x, low) }", x, steps=False)
    assert np.array_equal(got, (x > np.float32(1e-36)).astype(np.float32))


@pytest.mark.parametrize("bound", [1.0, 0.25, 100.0])
def test_a_thresholded_relu_passes_what_is_above(bound: float) -> None:
    x = near(bound)
    got = gradient(f"{{ s = ThresholdedRelu <alpha = {bound}> (x) }}", x)
    assert np.array_equal(got, (x > np.float32(bound)).astype(np.float32))


def test_nothing_flows_back_through_a_step() -> None:
    """The gradient of a gradient: that of relu(x)^2 is 2 relu(x), and that of it is 2 where x > 0."""
    text = '<ir_version: 9, opset_import: ["" : 18]> g (float[n] x) => (float[n] s) { r = Relu(x) s = Mul(r, r) }'
    once = xaicompile.compile(parser.parse_model(text), "gradient", explain_output="s", explain_reduce="sum")
    twice = xaicompile.compile(once, "gradient", explain_output="relevance", explain_reduce="sum")
    assert not {"And", "Where"} & {n.op_type for n in twice.graph.node}
    x = np.asarray([-1, -TINY, 0, TINY, 1e-30, 3], np.float32)
    got = Session(twice).run({"x": x})
    assert np.array_equal(got[next(name for name in got if name not in ("s", "relevance"))], 2.0 * (x > 0))


def test_a_residual_block_stays_in_the_blocked_layout(tmp_path: object) -> None:
    """Reorderings in what ONNX Runtime makes of the gradient: of the input and the relevance, and of c at the pool."""
    rng = np.random.default_rng(0)
    w = {f"w{i}": (rng.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32) for i in range(3)}
    text = (
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N,16,8,8] x) => (float[N,16,1,1] s) { '
        "a = Conv<pads = [1,1,1,1]>(x, w0) b = Relu(a) d = Conv<pads = [1,1,1,1]>(b, w1) e = Add(d, b) f = Relu(e) "
        "h = Conv<pads = [1,1,1,1]>(f, w2) i = Relu(h) s = GlobalAveragePool(i) }"
    )
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in w.items())
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    options.log_severity_level = 3
    session = ort.InferenceSession(emitted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
    if "ReorderInput" not in ops:
        pytest.skip("this processor has no blocked layout")
    assert ops.count("ReorderInput") <= 2 and ops.count("ReorderOutput") <= 3
    assert np.isfinite(
        session.run(["relevance"], {"x": rng.standard_normal((2, 16, 8, 8)).astype(np.float32)})[0]
    ).all()
