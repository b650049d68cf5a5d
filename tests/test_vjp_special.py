"""Gradients where a central difference says nothing: ties, zeros, kinks, changes of type, missing shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import xaicompile
from tests.reference_ops import evaluator
from xaicompile.errors import UnsupportedError

Array = np.ndarray


def gradient_of(text: str, *inputs: Array, order: Sequence[str] = ("x", "y", "z")) -> list[Array]:
    """The gradient of the sum of all outputs ``s`` of a model in ONNX text, in its own type."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> graph {text}')
    return gradient_of_model(model, dict(zip(order, inputs, strict=False)))


def gradient_of_model(model: onnx.ModelProto, feed: dict[str, Array]) -> list[Array]:
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    names = [o.name for o in emitted.graph.output if o.name.startswith("relevance")]
    return [np.asarray(v) for v in evaluator(emitted).run(names, feed)]


def doubles(values: Any) -> Array:
    return np.asarray(values, np.float64)


def test_max_pool_gives_ties_to_the_first() -> None:
    text = "(double[1,1,4,4] x) => (double[1,1,2,2] s) { s = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }"
    got = gradient_of(text, np.zeros((1, 1, 4, 4)))[0]
    assert np.array_equal(got[0, 0], np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))


def test_overlapping_max_pool_windows_add_up() -> None:
    text = "(double[1,1,5] x) => (double[1,1,3] s) { s = MaxPool <kernel_shape=[3]> (x) }"
    assert np.array_equal(gradient_of(text, doubles([[[0, 0, 9, 0, 0]]]))[0], [[[0, 0, 3, 0, 0]]])


def test_global_max_pool_gives_ties_to_the_first() -> None:
    text = "(double[2,1,3] x) => (double[2,1,1] s) { s = GlobalMaxPool (x) }"
    assert np.array_equal(gradient_of(text, doubles([[[1, 1, 0]], [[0, 2, 2]]]))[0], [[[1, 0, 0]], [[0, 1, 0]]])


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_reduced_extrema_share_ties(op: str) -> None:
    text = f"(double[2,3] x) => (double[2,1] s) <int64[1] axes = {{1}}> {{ s = {op} (x, axes) }}"
    sign = 1 if op == "ReduceMax" else -1
    got = gradient_of(text, sign * doubles([[1, 1, 0], [0, 2, 0]]))[0]
    assert np.array_equal(got, [[0.5, 0.5, 0], [0, 1, 0]])


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_elementwise_extrema_give_ties_to_one_input(op: str) -> None:
    got = gradient_of(
        f"(double[3] x, double[3] y) => (double[3] s) {{ s = {op} (x, y) }}", doubles([1, 1, 1]), doubles([1, 1, 1])
    )
    assert np.array_equal(got[0] + got[1], np.ones(3))


def test_scatter_max_shares_ties() -> None:
    text = """(double[3] x, double[3] y) => (double[3] s) <int64[3] i = {0, 0, 2}>
        { s = ScatterElements <reduction="max"> (x, i, y) }"""
    got = gradient_of(text, doubles([1, 1, 1]), doubles([1, 0, 2]))
    assert np.array_equal(got[0], [0.5, 1, 0])
    assert np.array_equal(got[1], [0.5, 0, 1])


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("ReduceL2 (x)", "1,1,1"),
        ("ReduceL1 (x)", "1,1,1"),
        ("ReduceSumSquare (x)", "1,1,1"),
        ("GlobalLpPool (x)", "1,2,1"),
        ("LpPool <kernel_shape=[2]> (x)", "1,2,3"),
        ("LpPool <kernel_shape=[2], p=3> (x)", "1,2,3"),
        ("Abs (x)", "1,2,4"),
        ("Relu (x)", "1,2,4"),
        ("Softsign (x)", "1,2,4"),
        ("Mul (x, x)", "1,2,4"),
    ],
)
def test_zero_input_gives_a_finite_gradient(node: str, shape: str) -> None:
    text = f"(double[1,2,4] x) => (double[{shape}] s) {{ s = {node} }}"
    got = gradient_of(text, np.zeros((1, 2, 4)))[0]
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1.0


def test_zero_to_a_power_gives_its_exponent_nothing() -> None:
    text = "(double[3] x, double[3] y) => (double[3] s) { s = Pow (x, y) }"
    got = gradient_of(text, doubles([0, 0, 2]), doubles([2, 1, 3]))
    assert np.array_equal(got[0], [0, 1, 12])
    assert np.allclose(got[1], [0, 0, 8 * np.log(2)], rtol=1e-15)


def test_masked_softmax_is_finite() -> None:
    """Attention masks are -inf: no NaN, and nothing for masked entries."""
    text = """(double[1,3] x) => (double[1,3] s) <double[1,3] mask = {0, -inf, 0}, double[3] w = {1, 5, 3}>
        { m = Add (x, mask)  p = Softmax (m)  s = Mul (p, w) }"""
    got = gradient_of(text, doubles([[0.0, 1.0, 0.0]]))[0]
    assert np.allclose(got, [[-0.5, 0.0, 0.5]], rtol=0, atol=1e-15)


def test_an_input_used_twice_gets_both_messages() -> None:
    got = gradient_of(
        "(double[2] x) => (double[2] s) { a = Exp (x)  b = Mul (a, x)  s = Add (b, x) }", doubles([0.0, 1.0])
    )[0]
    assert np.allclose(got, [2.0, 2 * np.e + 1], rtol=1e-15)


@pytest.mark.parametrize("to", ["float16", "float", "double"])
@pytest.mark.parametrize("source", ["float16", "float", "double"])
def test_casts_keep_the_inputs_type(source: str, to: str) -> None:
    codes = {"float16": TensorProto.FLOAT16, "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}
    kinds = {"float16": np.float16, "float": np.float32, "double": np.float64}
    weights = np.asarray([0.5, -2.0, 4.0], kinds[to])
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=codes[to]), helper.make_node("Mul", ["y", "w"], ["s"])],
        "cast",
        [helper.make_tensor_value_info("x", codes[source], ["n"])],
        [helper.make_tensor_value_info("s", codes[to], ["n"])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    got = gradient_of_model(model, {"x": np.zeros(3, kinds[source])})[0]
    assert got.dtype == kinds[source]
    assert np.array_equal(got, weights.astype(kinds[source]))


def test_cast_like_carries_to_its_first_input_only() -> None:
    text = "(double[2] x, float[2] y) => (float[2] s) { a = CastLike (x, y)  s = Add (a, y) }"
    got = gradient_of(text, doubles([1, 2]), np.zeros(2, np.float32))
    assert [g.dtype for g in got] == [np.float64, np.float32]
    assert all(np.array_equal(g, np.ones(2)) for g in got)


def test_a_detour_through_integers_carries_nothing() -> None:
    got = gradient_of(
        "(double[2] x) => (double[2] s) { i = Cast <to=7> (x)  f = Cast <to=11> (i)  s = Add (f, x) }",
        doubles([1.5, 2.5]),
    )[0]
    assert np.array_equal(got, np.ones(2))


def test_shape_arithmetic_carries_nothing() -> None:
    """The exporters' Flatten: Shape, Gather, Concat, Reshape."""
    text = """(double[n,2,3] x) => (double[n,6] s) <int64 zero = {0}, int64[1] rest = {-1}, int64[1] axes = {0}>
        { d = Shape (x)  b = Gather (d, zero)  u = Unsqueeze (b, axes)  t = Concat <axis=0> (u, rest)
          s = Reshape (x, t) }"""
    assert np.array_equal(gradient_of(text, np.zeros((4, 2, 3)))[0], np.ones((4, 2, 3)))


@pytest.mark.parametrize(
    ("node", "made", "expected"),
    [
        ("Slice (x, one, two, one)", "4,1", {"Pad"}),
        ("Slice (x, zero, minus, one, two)", "4,2", {"Pad", "Gather"}),
        ("Gather <axis=1> (x, mixed)", "4,3", {"Gather"}),
        ("Gather <axis=1> (x, one)", "4,1", {"Pad", "Gather"}),
        ("Pad (x, pads)", "5,5", {"Slice"}),
        ("AveragePool <kernel_shape=[1]> (y)", "2,2,3", set()),
    ],
)
def test_known_sizes_need_no_scatter_and_no_shape_arithmetic(node: str, made: str, expected: set[str]) -> None:
    text = f"""(double[4,3] x) => (double[{made}] s) <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
        int64[1] minus = {{99}}, int64[3] mixed = {{2, 0, 1}}, int64[4] pads = {{1, 0, 0, 2}}, int64[3] r = {{2, 2, 3}}>
        {{ y = Reshape (x, r)  s = {node} }}"""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> graph {text}')
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum")
    scoped = {n.op_type for n in emitted.graph.node if n.name.split("/")[1:2] == [f"{node.split()[0]}_1"]}
    assert scoped == expected


def test_slices_with_bounds_known_at_run_time() -> None:
    text = """(double[5,3] x, int64[2] first, int64[2] last, int64[2] step) => (double[a,b] s) <int64[2] axes = {0, 1}>
        { s = Slice (x, first, last, axes, step) }"""
    names = ("x", "first", "last", "step")
    bounds = [np.asarray(v) for v in ([3, -3], [-6, 99], [-2, 1])]
    got = gradient_of(text, np.zeros((5, 3)), *bounds, order=names)[0]
    want = np.zeros((5, 3))
    want[3::-2] = 1
    assert np.array_equal(got, want)


def test_pads_known_at_run_time() -> None:
    text = """(double[2,4] x, int64[4] pads) => (double[a,b] s) { y = Pad <mode="reflect"> (x, pads)  z = Pad (y, pads)
        s = Mul (z, z) }"""
    x = doubles([[1, 2, 3, 4], [5, 6, 7, 8]])
    got = gradient_of(text, x, np.asarray([0, 2, 0, 1]), order=("x", "pads"))[0]
    assert np.array_equal(got, 2 * x * [1, 2, 3, 1])


def test_tiles_known_at_run_time() -> None:
    text = "(double[n,2] x, int64[2] times) => (double[a,b] s) { s = Tile (x, times) }"
    assert np.array_equal(
        gradient_of(text, np.zeros((3, 2)), np.asarray([2, 3]), order=("x", "times"))[0], np.full((3, 2), 6)
    )


def test_the_statistics_of_a_layer_norm() -> None:
    """Its mean and 1/sd are outputs that stay float32 whatever the data is."""
    text = """(double[2,3] x) => (double[2,1] s) <double[3] w = {1, 2, 3}>
        { y, mean, inverse = LayerNormalization <epsilon=0.1> (x, w)  a = CastLike (mean, x)  b = CastLike (inverse, x)
          s = Mul (a, b) }"""
    x = doubles([[1, 2, 4], [0.5, -1, 3]])
    mean, centred = x.mean(1, keepdims=True), x - x.mean(1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 0.1)
    assert np.allclose(gradient_of(text, x)[0], inverse / 3 - mean * inverse**3 * centred / 3, rtol=1e-6)


def test_axes_known_at_run_time() -> None:
    text = (
        """(double[n,m] x, int64[k] axes) => (double[?] s) { y = ReduceMean <keepdims=0> (x, axes) s = Mul (y, y) }"""
    )
    x = doubles([[1, 2, 3], [4, 5, 6]])
    got = gradient_of(text, x, np.asarray([1]), order=("x", "axes"))[0]
    assert np.allclose(got, 2 / 3 * x.mean(1, keepdims=True) * np.ones(3), rtol=1e-15)


def test_unknown_rank_is_one_clear_line() -> None:
    text = """(double[2,3] x, int64[k] shape) => (double s)
        { y = Reshape (x, shape)  t = Tile (y, shape)  s = ReduceSum (t) }"""
    with pytest.raises(UnsupportedError, match="rank of 'y' is not known"):
        gradient_of(text, np.zeros((2, 3)), np.asarray([3, 2]), order=("x", "shape"))


def test_products_of_scatter_with_zeros_among_the_factors() -> None:
    text = """(double[3] x, double[4] y) => (double[3] s) <int64[4] i = {0, 1, 0, 2}>
        { s = ScatterElements <reduction="mul"> (x, i, y) }"""
    got = gradient_of(text, doubles([0, 2, 3]), doubles([5, 0, 4, 0]))
    assert np.array_equal(got[0], [20, 0, 0])
    assert np.array_equal(got[1], [0, 2, 0, 3])


@pytest.mark.parametrize("body", ["y = Sqrt(x)", "y = Pow(x, half)", "y = ReduceL2<keepdims=0>(x, last)"])
def test_nothing_infinite_flows_where_a_root_is_zero(body: str) -> None:
    """Spec 1.9: 0 times infinity must not occur; torch gives inf for the gradient, which times 0 is NaN."""
    out = "double[N]" if "Reduce" in body else "double[N, 3]"
    graph = onnx.parser.parse_graph(f"g (double[N, 3] x) => ({out} y) {{ {body} }}")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5), "half"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    x = np.array([[0.0, 0.0, 0.0], [0.0, 4.0, 9.0]])
    for rule in ("gradient", "gradient-x-input", "lrp-0"):
        emitted = xaicompile.compile(model, rule, explain_reduce="sum")
        assert np.isfinite(evaluator(emitted).run(["relevance"], {"x": x})[0]).all()


@pytest.mark.parametrize(
    "body", ["y = Slice(x, one, two, one)", "y = Gather<axis=1>(x, one)", "p = Pad(x, pads, , one) y = Mul(p, p)"]
)
def test_padding_spells_out_all_axes(body: str) -> None:
    """ONNX Runtime's transpose optimizer takes the amounts of a Pad with an `axes` input for those of all axes."""
    text = "\n".join(body.replace(") ", ")\n").split("\n"))
    graph = onnx.parser.parse_graph(f"g (float[N, 5, 4] x) => (float[N, M, 4] y) {{ t = Identity(x)\n{text} }}")
    for name, value in {"one": [1], "two": [3], "pads": [1, 2]}.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    emitted = xaicompile.compile(model, "gradient", explain_reduce="sum")
    pads = [n for n in emitted.graph.node if n.op_type == "Pad" and n.name.startswith("gradient/")]
    assert all(len(n.input) <= 3 for n in pads) and (pads or "Pad(" in body)


def test_max_roi_pool_gives_ties_to_the_first_and_empty_bins_nothing() -> None:
    text = """(double[1,1,4,4] x, double[r,5] y) => (double[r,1,2,2] s)
        { s = MaxRoiPool <pooled_shape=[2,2]> (x, y) }"""
    boxes = doubles([[0, 0, 0, 3, 3], [0, 2, 2, 5, 5]])
    got = gradient_of(text, np.zeros((1, 1, 4, 4)), boxes)[0]
    want = np.kron(np.ones((2, 2)), [[1, 0], [0, 0]])
    want[2, 2] += 1
    assert np.array_equal(got[0, 0], want)


def test_a_kernel_of_unknown_size_is_one_clear_line() -> None:
    text = "(double[N,2,H,W] x, double[3,2,K,L] w) => (double[N,3,P,Q] s) { s = Conv (x, w) }"
    with pytest.raises(UnsupportedError, match="where the size of the kernel is not known"):
        gradient_of(text, np.zeros((1, 2, 4, 4)), np.zeros((3, 2, 2, 2)), order=("x", "w"))
    text = "(double[N,2,H,W] x, double[M,2,2,2] w) => (double[N,M,P,Q] s) { s = Conv (x, w) }"
    with pytest.raises(UnsupportedError, match="kernel whose size is not known"):
        gradient_of(text, np.zeros((1, 2, 4, 4)), np.zeros((3, 2, 2, 2)), order=("x", "w"))


def test_a_power_that_is_no_number_on_the_branch_not_taken() -> None:
    """As in scikit-learn's PowerTransformer: both branches are computed, and a mask takes one."""
    text = """(double[3,2] x) => (double[3,2] s) <double[2] e = {0.5, 1.5}, double[1] none = {0}> {
        root = Pow(x, e)
        negative = Less(x, none)
        t = Neg(x)
        other = Pow(t, e)
        s = Where(negative, other, root)
    }"""
    x = doubles([[-2.0, 3.0], [0.5, -0.25], [-1.0, 4.0]])
    e = np.asarray([0.5, 1.5])
    np.testing.assert_allclose(gradient_of(text, x)[0], np.sign(x) * e * np.abs(x) ** (e - 1), rtol=1e-12)
