"""Concept-conditional relevance: masks on channels, and the channels that matter most."""

from __future__ import annotations

import numpy as np
import pytest

import xaicompile
from tests.graphs import Arrays, data, exact, net, run, weight
from tests.nets import cnn
from xaicompile.errors import RuleError, UnsupportedError

X = data(2, 3, 12, 12)


def one_hot(n: int, k: int) -> np.ndarray:
    return np.eye(n, dtype=np.float32)[[k]]


def test_all_concepts_are_the_whole_and_each_is_a_part() -> None:
    whole = run(xaicompile.compile(cnn(), "lrp-gamma", layers=["a1"]), {"x": X})
    made = xaicompile.compile(cnn(), "lrp-gamma", concepts=["a1"])
    np.testing.assert_array_equal(run(made, {"x": X})["relevance"], whole["relevance"])
    channels = whole["relevance_a1"].shape[1]
    parts = [run(made, {"x": X, "concepts": one_hot(channels, k)})["relevance"] for k in range(channels)]
    assert sum(np.abs(part).max() > 0 for part in parts) > 1
    np.testing.assert_allclose(sum(parts), whole["relevance"], rtol=1e-4, atol=1e-6)


def test_a_concept_is_the_gradient_through_its_channel() -> None:
    """With gradient x input: x times the derivative of sum_k m_k <c_k, a_k(x)>, by central differences in float64."""
    text = "h = Conv<pads = [1, 1, 1, 1]>(x, v)\na = Tanh(h)\nf = Flatten(a)\ny = MatMul(f, w)"
    v, w = weight(4, 2, 3, 3, dtype=np.float64), weight(4 * 25, 3, dtype=np.float64)
    model = net("(double[N,2,5,5] x) => (double[N,3] y)", text, v=v, w=w)
    x, mask = data(1, 2, 5, 5, dtype=np.float64), np.array([[0.0, 1.0, 0.5, 0.0]])
    made = xaicompile.compile(model, "gradient-x-input", concepts=["a"])
    found = exact(made, {"x": x, "target": np.array([1]), "concepts": mask})["relevance"]
    inner = net("(double[N,2,5,5] x) => (double[N,4,5,5] a)", "h = Conv<pads = [1, 1, 1, 1]>(x, v)\na = Tanh(h)", v=v)
    c = w[:, 1].reshape(1, 4, 5, 5) * mask.reshape(1, 4, 1, 1)
    expected = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        ends = [float((exact(inner, {"x": x + s * step})["a"] * c).sum()) for s in (1, -1)]
        expected[place] = x[place] * (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_each_sample_may_ask_for_its_own_concepts_and_the_rest_is_in_the_ledger() -> None:
    made = xaicompile.compile(cnn(), "lrp-epsilon", concepts=["a1"], ledger=True)
    count = next(i.type.tensor_type.shape.dim[1].dim_value for i in made.graph.input if i.name == "concepts")
    masks = np.concatenate([one_hot(count, 0), one_hot(count, 1)])
    both = run(made, {"x": X, "concepts": masks})
    for i in range(2):
        alone = run(made, {"x": X, "concepts": masks[i : i + 1]})
        np.testing.assert_allclose(both["relevance"][i], alone["relevance"][i], rtol=1e-5, atol=1e-7)
    total = both["relevance"].sum((1, 2, 3)) + both["ledger"]
    np.testing.assert_allclose(total, both["explained"], rtol=1e-4, atol=1e-5)


def test_several_layers_have_an_input_each() -> None:
    made = xaicompile.compile(cnn(), "lrp-gamma", concepts=["a1", "a2"])
    names = [i.name for i in made.graph.input]
    assert "concepts_a1" in names and "concepts_a2" in names
    none = np.zeros((1, 1), np.float32)
    shape = {i.name: i.type.tensor_type.shape.dim[1].dim_value for i in made.graph.input if "concepts" in i.name}
    found = run(made, {"x": X, "concepts_a2": np.broadcast_to(none, (1, shape["concepts_a2"]))})
    assert not found["relevance"].any()


def test_the_channels_that_matter_most() -> None:
    """Sums over all but batch and channels, the largest first."""
    made = xaicompile.compile(cnn(), "lrp-gamma", layers=["a1"], concepts=["a2"], top_concepts=3)
    found = run(made, {"x": X})
    both = run(xaicompile.compile(cnn(), "lrp-gamma", layers=["a1", "a2"]), {"x": X})
    check_ranking(found, "a1", both["relevance_a1"].sum((2, 3)))
    check_ranking(found, "a2", both["relevance_a2"].sum((2, 3)))
    masked = {i.name: i.type.tensor_type.shape.dim for i in made.graph.input}["concepts"][1].dim_value
    again = run(made, {"x": X, "concepts": np.zeros((1, masked), np.float32)})
    check_ranking(again, "a2", both["relevance_a2"].sum((2, 3)))  # of what comes to the layer, before its mask
    assert not again["concept_relevance_a1"].any()


def check_ranking(found: Arrays, name: str, sums: np.ndarray) -> None:
    order = np.argsort(-sums, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found[f"concept_ids_{name}"], order)
    np.testing.assert_allclose(
        found[f"concept_relevance_{name}"], np.take_along_axis(sums, order, 1), rtol=1e-4, atol=1e-6
    )


def test_a_sequence_has_its_channels_last() -> None:
    text = "h = MatMul(x, v)\na = Relu(h)\nm = ReduceMean<axes = [1], keepdims = 0>(a)\ny = MatMul(m, w)"
    model = net("(float[N,T,4] x) => (float[N,3] y)", text, opset=17, v=weight(4, 6), w=weight(6, 3))
    made = xaicompile.compile(model, "lrp-epsilon", concepts=["a"], top_concepts=2)
    found = run(made, {"x": data(2, 5, 4)})
    assert found["concept_ids_a"].shape == (2, 2)
    one = run(made, {"x": data(2, 5, 4), "concepts": one_hot(6, 3)})
    assert one["relevance"].shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"concepts": ["nowhere"]}, RuleError, "unknown layer"),
        ({"top_concepts": 2}, RuleError, "name some with --layers or --concepts"),
        ({"concepts": ["a1"], "top_concepts": 99}, RuleError, "--top-concepts 99: 'a1' has"),
        ({"concepts": ["logits"], "explain_output": "a1"}, UnsupportedError, "not between"),
    ],
)
def test_what_has_no_concepts_is_refused(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        xaicompile.compile(cnn(), **options)  # type: ignore[arg-type]
