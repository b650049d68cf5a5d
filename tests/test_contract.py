"""What the emitted model promises: how to choose what is explained, layers, outputs of any rank."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, net, run, weight
from tests.nets import cnn
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError, UnsupportedError

X = data(3, 3, 12, 12)


def dense(target: int | list[int] | None = None, rule: str = "gradient") -> onnx.ModelProto:
    """y = x W on [N, 4], four classes: the gradient is a column of W."""
    return xaicompile.compile(linear_net(), rule, target=target)


W = weight(4, 4)


def linear_net() -> onnx.ModelProto:
    return net("(float[N,4] x) => (float[N,4] y)", "y = MatMul(x, w)", w=W)


# --- the target -------------------------------------------------------------------------------------------------


def test_the_default_target_is_the_largest_output() -> None:
    x = data(5, 4)
    out = run(dense(), {"x": x})
    np.testing.assert_array_equal(out["relevance"], W.T[out["y"].argmax(1)])


def test_one_target_for_all_samples() -> None:
    out = run(dense(), {"x": data(5, 4), "target": np.asarray([2])})
    np.testing.assert_array_equal(out["relevance"], W.T[[2] * 5])


def test_one_target_for_each_sample() -> None:
    targets = np.asarray([3, 0, -1, 1, 2])
    out = run(dense(), {"x": data(5, 4), "target": targets})
    wanted = np.where(targets < 0, out["y"].argmax(1), targets)
    np.testing.assert_array_equal(out["relevance"], W.T[wanted])


@pytest.mark.parametrize("outside", [4, 1000, 2**40, -2, -5])
def test_a_target_out_of_range_explains_nothing(outside: int) -> None:
    made = xaicompile.compile(linear_net(), "lrp-epsilon", ledger=True)
    out = run(made, {"x": data(2, 4), "target": np.asarray([outside, 1])})
    for name in ("relevance", "explained", "ledger"):
        assert not out[name][0].any() and out[name][1].any(), name
    np.testing.assert_array_equal(out["y"], data(2, 4) @ W)


@pytest.mark.parametrize("target", [1, [1, 3]])
def test_the_default_target_can_be_set(target: int | list[int]) -> None:
    out = run(dense(target), {"x": data(2, 4)})
    np.testing.assert_array_equal(out["relevance"], W.T[np.broadcast_to(target, 2)])
    other = run(dense(target), {"x": data(2, 4), "target": np.asarray([0])})
    np.testing.assert_array_equal(other["relevance"], W.T[[0, 0]])


def test_the_target_is_an_optional_int64_vector() -> None:
    made = dense()
    target = made.graph.input[1]
    assert target.name == "target" and target.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert target.type.tensor_type.shape.dim[0].dim_param
    assert {t.name: list(onnx.numpy_helper.to_array(t)) for t in made.graph.initializer if t.name == "target"} == {
        "target": [-1]
    }


def test_explain_runs_at_once() -> None:
    out = xaicompile.explain(linear_net(), data(3, 4), "gradient-x-input", target=[0, 1, 2])
    np.testing.assert_array_equal(out["relevance"], data(3, 4) * W.T[:3])


# --- what is explained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "kind", "cut"),
    [
        ("y = Softmax(z)", "float[N,4]", ["Softmax"]),
        ("y = LogSoftmax(z)", "float[N,4]", ["LogSoftmax"]),
        ("y = Sigmoid(z)", "float[N,4]", ["Sigmoid"]),
        ("y = ArgMax<axis=1>(z)", "int64[N,1]", ["ArgMax"]),
        ("p = Softmax(z)\ni = Identity(p)\ny = ArgMax<axis=1>(i)", "int64[N,1]", ["ArgMax", "Softmax"]),
    ],
)
def test_relevance_starts_at_the_logits(ending: str, kind: str, cut: list[str]) -> None:
    model = net(f"(float[N,4] x) => ({kind} y)", f"z = MatMul(x, w)\n{ending}", w=W)
    compiled = compile_model(model, "gradient")
    assert [line.split(" ")[0] for line in compiled.cut] == cut
    out = run(compiled.model, {"x": data(2, 4)})
    np.testing.assert_array_equal(out["relevance"], W.T[(data(2, 4) @ W).argmax(1)])
    np.testing.assert_array_equal(out["y"], run(model, {"x": data(2, 4)})["y"])


def test_a_trailing_op_that_squashes_nothing_is_not_cut() -> None:
    compiled = compile_model(net("(float[N,4] x) => (float[N,4] y)", "z = MatMul(x, w)\ny = Identity(z)", w=W))
    assert compiled.cut == []


def test_explain_output_takes_a_tensor_as_it_is() -> None:
    model = net("(float[N,4] x) => (float[N,4] y)", "z = MatMul(x, w)\ny = Softmax(z)", w=W)
    compiled = compile_model(model, "gradient", explain_output="y")
    assert compiled.cut == []
    x = data(2, 4)
    y = run(model, {"x": x})["y"].astype(np.float64)
    best = y.argmax(1)
    want = y[[0, 1], best][:, None] * (W.T[best] - y @ W.T)
    np.testing.assert_allclose(run(compiled.model, {"x": x})["relevance"], want, atol=1e-6)
    inner = compile_model(model, "gradient", explain_output="z", target=0).model
    np.testing.assert_array_equal(run(inner, {"x": x})["relevance"], W.T[[0, 0]])


@pytest.mark.parametrize(("reduce", "row"), [("sum", W.sum(1)), ("mean", W.mean(1))])
def test_explain_reduce(reduce: str, row: np.ndarray) -> None:
    compiled = compile_model(linear_net(), "gradient-x-input", explain_reduce=reduce, ledger=True)
    assert compiled.target == "" and [i.name for i in compiled.model.graph.input] == ["x"]
    out = run(compiled.model, {"x": data(2, 4)})
    np.testing.assert_allclose(out["relevance"], row * data(2, 4), rtol=1e-6)
    np.testing.assert_allclose(out["explained"], getattr(out["y"], reduce)(1), rtol=1e-6)


def test_explain_reduce_max_follows_the_largest() -> None:
    compiled = compile_model(linear_net(), "gradient-x-input", explain_reduce="max", ledger=True)
    x = data(4, 4)
    out = run(compiled.model, {"x": x})
    assert compiled.target == ""
    np.testing.assert_array_equal(out["relevance"], x * W.T[out["y"].argmax(1)])
    np.testing.assert_array_equal(out["explained"], out["y"].max(1))


def segmentation(batch: int | str) -> onnx.ModelProto:
    """A 1x1 convolution from 3 channels to 2 classes at each of 4 x 5 places."""
    return net(f"(float[{batch},3,4,5] x) => (float[{batch},2,4,5] y)", "y = Conv(x, w)", w=weight(2, 3, 1, 1), ir=8)


@pytest.mark.parametrize("batch", ["N", 2])
def test_an_output_of_any_rank_has_a_flat_target(batch: int | str) -> None:
    compiled = compile_model(segmentation(batch), "gradient-x-input", ledger=True)
    x = data(2, 3, 4, 5)
    target = np.ravel_multi_index(([1, 0], [2, 3], [4, 1]), (2, 4, 5))
    out = run(compiled.model, {"x": x, "target": target})
    want = np.zeros_like(x)
    want[0, :, 2, 4], want[1, :, 3, 1] = weight(2, 3, 1, 1)[1, :, 0, 0], weight(2, 3, 1, 1)[0, :, 0, 0]
    np.testing.assert_array_equal(out["relevance"], want * x)
    np.testing.assert_array_equal(out["explained"], [out["y"][0, 1, 2, 4], out["y"][1, 0, 3, 1]])
    best = run(compiled.model, {"x": x})
    np.testing.assert_array_equal(best["explained"], best["y"].reshape(2, -1).max(1))


def test_an_output_of_rank_one() -> None:
    model = net("(float[N,4] x) => (float[N] y)", "z = MatMul(x, w)\ny = Squeeze(z, a)", w=W[:, :1], a=np.asarray([1]))
    out = run(xaicompile.compile(model, "gradient-x-input", ledger=True), {"x": data(3, 4)})
    np.testing.assert_array_equal(out["relevance"], W[:, 0] * data(3, 4))
    np.testing.assert_array_equal(out["explained"], out["y"])


def test_a_model_of_one_static_sample() -> None:
    compiled = compile_model(cnn(batch=1), "lrp-gamma", ledger=True)
    assert not compiled.notes
    out = run(compiled.model, {"x": X[:1]})
    np.testing.assert_allclose(out["relevance"].sum() + out["ledger"], out["explained"], rtol=1e-5)


@pytest.mark.parametrize("ending", ["y = Squeeze(z, a)", "y = ReduceSum<keepdims=0>(z, a)"])
def test_an_output_without_the_batch_is_one_sample(ending: str) -> None:
    model = net(
        "(float[N,4] x) => (float[4] y)", f"m = MatMul(x, w)\nz = ReduceMean(m, a)\n{ending}", w=W, a=np.asarray([0])
    )
    compiled = compile_model(model, "gradient-x-input", ledger=True, target=2)
    assert any("no batch axis" in note for note in compiled.notes)
    out = run(compiled.model, {"x": data(3, 4)})
    np.testing.assert_allclose(out["relevance"], data(3, 4) * W[:, 2] / 3, rtol=1e-6)
    assert out["explained"].shape == out["ledger"].shape == (1,)
    np.testing.assert_array_equal(out["explained"], out["y"][[2]])


def test_a_scalar_output() -> None:
    model = net("(float[N,4] x) => (float y)", "s = Mul(x, x)\ny = ReduceSum<keepdims=0>(s)")
    compiled = compile_model(model, "gradient")
    x = data(3, 4)
    np.testing.assert_allclose(run(compiled.model, {"x": x})["relevance"], 2 * x, rtol=1e-6)


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["lrp-0", "lrp-gamma", "gradient"])
def test_layers(rule: str) -> None:
    names = ["a1", "s", "f"]
    made = xaicompile.compile(cnn(), rule, layers=names)
    assert [o.name for o in made.graph.output] == ["logits", "relevance", *(f"relevance_{n}" for n in names)]
    feed = {"x": X}
    out = run(made, feed)
    plain = run(xaicompile.compile(cnn(), rule), feed)
    np.testing.assert_allclose(out["relevance"], plain["relevance"], atol=1e-6 * np.abs(plain["relevance"]).max())
    shapes = {"a1": (3, 6, 12, 12), "s": (3, 6, 12, 12), "f": (3, 6)}
    for name, shape in shapes.items():
        assert out[f"relevance_{name}"].shape == shape
    if rule == "lrp-0":  # at the last layer: the contributions to the winning class
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
        features = run(opened(cnn(), "f"), feed)["f"]
        want = features * weights["w3"][out["logits"].argmax(1)]
        np.testing.assert_allclose(out["relevance_f"], want, rtol=1e-5, atol=1e-7)


def opened(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with an inner tensor among its outputs."""
    model.graph.output.add(name=name)
    return model


def test_a_layer_must_be_between_input_and_output() -> None:
    with pytest.raises(RuleError, match="did you mean 'logits'"):
        compile_model(cnn(), layers=["logit"])
    with pytest.raises(UnsupportedError, match="'w1' is not between"):
        compile_model(cnn(), layers=["w1"])
