"""z-box: the bounds belong to the explained input, also where layout and normalisation lie before the first layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([60.0, -50.0, 70.0])  # a negative one swaps the bounds
TAIL = "c = Conv<pads=[1,1,1,1]>(n, w, b) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)"
HEADS = {
    "planar, normalised": ("N, 3, 6, 6", "s = Sub(x, mean) n = Div(s, std)"),
    "interleaved": ("N, 6, 6, 3", "t = Transpose<perm=[0,3,1,2]>(x) s = Sub(t, mean) n = Div(s, std)"),
    "minus the input": ("N, 3, 6, 6", "s = Sub(mean, x) m = Neg(s) n = Div(m, std)"),
    "scaled first": ("N, 3, 6, 6", "k = Mul(x, one) i = Identity(k) s = Sub(i, mean) n = Div(s, std)"),
}


def model(shape: str, body: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {"mean": MEAN.reshape(3, 1, 1), "std": STD.reshape(3, 1, 1), "one": np.array(1.0)}
    arrays |= {"w": rng.standard_normal((4, 3, 3, 3)), "b": rng.standard_normal(4)}
    text = "\n".join(f"{body} {TAIL}".replace(") ", ")\n").split("\n"))
    graph = onnx.parser.parse_graph(f"g (double[{shape}] x) => (double[N, 4] y) {{ {text} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in arrays.items() if k in body + TAIL)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def z_box(proto: onnx.ModelProto, x: np.ndarray, low: object, high: object) -> dict[str, np.ndarray]:
    emitted = compile_model(proto, "z-box", parameters={"low": low, "high": high}, ledger=True, target=2).model
    names = [o.name for o in emitted.graph.output]
    return dict(zip(names, ReferenceEvaluator(emitted).run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("low, high", [(0.0, 255.0), ([0.0, 5.0, 9.0], [255.0, 250.0, 240.0])])
def test_bounds_of_pixels_equal_bounds_of_the_normalised_input(head: str, low: object, high: object) -> None:
    """The oracle is the same net without the head, fed with normalised pixels and normalised bounds."""
    shape, body = HEADS[head]
    pixels = np.random.default_rng(1).uniform(20, 230, (2, 3, 6, 6))
    given = pixels.transpose(0, 2, 3, 1) if head == "interleaved" else pixels
    found = z_box(model(shape, body), given, low, high)
    normalised = (pixels - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    ends = [(np.broadcast_to(np.asarray(v), 3) - MEAN) / STD for v in (low, high)]
    plain = model("N, 3, 6, 6", "n = Identity(x)")
    expected = z_box(plain, normalised, np.min(ends, 0).tolist(), np.max(ends, 0).tolist())
    relevance = found["relevance"].transpose(0, 3, 1, 2) if head == "interleaved" else found["relevance"]
    np.testing.assert_allclose(relevance, expected["relevance"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(relevance.sum((1, 2, 3)) + found["ledger"], found["explained"], rtol=1e-9)


def test_a_first_layer_behind_a_pool_is_refused() -> None:
    pooled = model("N, 3, 12, 12", "n = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)")
    with pytest.raises(RuleError, match="not an affine function of the explained input"):
        compile_model(pooled, "z-box", parameters={"low": 0.0, "high": 1.0})


def test_a_first_layer_behind_a_constant_over_data_is_refused() -> None:
    """It falls where its input grows, and has no bounds where that may be 0."""
    inverse = model("N, 3, 6, 6", "n = Div(std, x)")
    with pytest.raises(RuleError, match="not an affine function of the explained input"):
        compile_model(inverse, "z-box", parameters={"low": 0.0, "high": 1.0})


def test_a_bound_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(RuleError, match="a bound has 5 values"):
        compile_model(model("N, 3, 6, 6", "n = Identity(x)"), "z-box", parameters={"low": [0.0] * 5, "high": 1.0})
