"""DeepLIFT with the rescale rule: against multipliers worked out by hand, and its sum to the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, exact, net, run, weight
from tests.nets import cnn
from xaicompile.errors import RuleError

W1, W2 = weight(4, 6, dtype=np.float64), weight(6, 3, dtype=np.float64)
B1 = weight(6, dtype=np.float64, seed=3)
X, BASE = data(3, 4, dtype=np.float64), 0.3 * data(1, 4, seed=9, dtype=np.float64)


def mlp(activation: str) -> onnx.ModelProto:
    text = f"h = MatMul(x, w1)\nz = Add(h, b1)\na = {activation}(z)\ny = MatMul(a, w2)"
    return net("(double[N,4] x) => (double[N,3] y)", text, opset=20, w1=W1, w2=W2, b1=B1)


ACTIVATIONS = {"Relu": lambda z: np.maximum(z, 0), "Tanh": np.tanh, "Sigmoid": lambda z: 1 / (1 + np.exp(-z))}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_rescale_rule_by_hand(tmp_path: Path, activation: str) -> None:
    """m_z = m_a (a - a0) / (z - z0), relevance (x - x0) W m_z."""
    np.save(tmp_path / "base.npy", BASE)
    made = xaicompile.compile(mlp(activation), "deeplift", parameters={"baseline": str(tmp_path / "base.npy")})
    found = exact(made, {"x": X, "target": np.array([1])})["relevance"]
    f, z, z0 = ACTIVATIONS[activation], X @ W1 + B1, BASE @ W1 + B1
    multiplier = W2[:, 1] * (f(z) - f(z0)) / (z - z0)
    np.testing.assert_allclose(found, (X - BASE) * (multiplier @ W1.T), rtol=1e-9, atol=1e-12)


def test_where_nothing_changes_the_gradient_stands_for_the_multiplier() -> None:
    made = xaicompile.compile(mlp("Tanh"), "deeplift", parameters={"baseline": "input"}, explain_reduce="sum")
    found = exact(made, {"x": X, "baseline": X})["relevance"]
    assert np.isfinite(found).all() and not found.any()


TEXTS = {
    "max-pool": "c = Conv<pads = [1, 1, 1, 1]>(x, k)\nr = Relu(c)\n"
    "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)\n",
    "overlapping max-pool": "p = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)\n",
    "product": "a = Conv(x, k1)\nb = Tanh(x)\np = Mul(a, b)\n",
    "product of matrices": "a = Conv(x, k1)\nb = Transpose<perm = [0, 1, 3, 2]>(a)\np = MatMul(a, b)\n",
    "squeeze and excite": "m = GlobalAveragePool(x)\ng = Sigmoid(m)\np = Mul(x, g)\n",
    "square": "p = Pow(x, two)\n",
    "clip": "p = Clip(x, low, high)\n",
    "residual": "a = Conv(x, k1)\nr = Relu(a)\ns = Add(r, x)\np = Gelu(s)\n",
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_relevance_sums_to_the_difference(name: str) -> None:
    """Of any net of these ops: sum(R) = f(x) - f(x0)."""
    model = net(
        "(double[N,2,6,6] x) => (double[N,1] y)",
        TEXTS[name] + "y = ReduceSum<keepdims = 0>(p, axes)\n".replace("y = ", "s0 = ") + "y = Unsqueeze(s0, one)",
        opset=20,
        k=weight(2, 2, 3, 3, dtype=np.float64),
        k1=weight(2, 2, 1, 1, dtype=np.float64),
        two=np.array(2.0),
        low=np.array(-0.5),
        high=np.array(0.5),
        axes=np.array([1, 2, 3]),
        one=np.array([1]),
    )
    x, base = data(2, 2, 6, 6, dtype=np.float64), data(1, 2, 6, 6, seed=5, dtype=np.float64)
    made = xaicompile.compile(model, "deeplift", parameters={"baseline": "input"})
    found = exact(made, {"x": x, "baseline": base})
    before = exact(made, {"x": np.broadcast_to(base, x.shape), "baseline": base})["y"]
    np.testing.assert_allclose(found["relevance"].sum((1, 2, 3)), (found["y"] - before)[:, 0], rtol=1e-9, atol=1e-9)


def test_the_prediction_keeps_its_bits_and_batches_stay_apart() -> None:
    x = data(3, 3, 12, 12)
    made = xaicompile.compile(cnn(), "deeplift")
    found = run(made, {"x": x})
    np.testing.assert_array_equal(found["logits"], run(cnn(), {"x": x})["logits"])
    for i in range(3):
        alone = run(made, {"x": x[i : i + 1]})["relevance"]
        np.testing.assert_allclose(found["relevance"][i], alone[0], rtol=1e-4, atol=1e-7)


def test_its_rules_need_a_reference(tmp_path: Path) -> None:
    rules = tmp_path / "mine.toml"
    rules.write_text('[[rules]]\nmatch = { op = "Relu" }\nrule = "rescale"\n[[rules]]\nrule = "gradient"\n')
    with pytest.raises(RuleError, match="need a reference"):
        xaicompile.compile(mlp("Relu"), rules)


RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("op", list(RECURRENT))
def test_recurrent_ops_are_refused_by_name(op: str, named: bool) -> None:
    """One line that says which node, why, and what to use in its place; an inner node's trouble is not named."""
    size = RECURRENT[op] * 5
    text = f"s, h = {op}<hidden_size = 5>(x, w, r)\nq = Squeeze(h, zero)\ny = MatMul(q, v)"
    arrays = {"w": weight(1, size, 4), "r": weight(1, size, 5), "v": weight(5, 3)}
    model = net("(float[3,N,4] x) => (float[N,3] y)", text, zero=np.array([0]), **arrays)
    model.graph.node[0].name = "memory" if named else ""
    with pytest.raises(RuleError) as raised:
        xaicompile.compile(model, "deeplift")
    said = str(raised.value)
    assert f"rule 'deeplift' can't pass {op} '" in said and "use integrated-gradients" in said and "\n" not in said
    assert "'memory'" in said or not named
    xaicompile.compile(model, "integrated-gradients")


def test_all_subgraphs_are_refused_together() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> net (float[N,4] x) => (float[N,4] y) {
      h = Loop (n, yes, x) <body = steps (int64 i, bool c, float[N,4] s) => (bool d, float[N,4] o) {
        d = Identity(c)
        o = Tanh(s)
      }>
      q = ReduceSum<keepdims = 0>(h)
      u = Greater(q, one)
      y = If (u) <
        then_branch = a () => (float[N,4] p) { p = Tanh(h) },
        else_branch = b () => (float[N,4] m) { m = Neg(h) }
      >
    }"""
    model = onnx.parser.parse_model(text)
    for name, value in {"n": np.array(2), "yes": np.array(True), "one": np.array(1, np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.node[0].name, model.graph.node[3].name = "loop", "branch"
    with pytest.raises(RuleError, match="can't pass Loop 'loop', If 'branch': its rescale rule"):
        xaicompile.compile(model, "deeplift")
