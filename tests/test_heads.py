"""Softmax written out at the end: the logits in front of it are explained, as in front of a Softmax."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graphs import data, net, run, weight
from xaicompile.compiler import compile_model

ENDS = {
    "op": "p = Softmax(z)",
    "plain": "e = Exp(z)\nt = ReduceSum<keepdims=1>(e, last)\np = Div(e, t)",
    "shifted": "m = ReduceMax<keepdims=1>(z, last)\nd = Sub(z, m)\ne = Exp(d)\nt = ReduceSum<keepdims=1>(e, last)\n"
    "p = Div(e, t)",
    "spread": "m = ReduceMax<keepdims=0>(z, last)\nu = Unsqueeze(m, last)\nd = Sub(z, u)\ne = Exp(d)\n"
    "t = ReduceSum<keepdims=0>(e, last)\nv = Unsqueeze(t, last)\ns = Shape(z)\nw2 = Expand(v, s)\np = Div(e, w2)",
    "by the log": "l = ReduceLogSumExp<keepdims=0>(z, last)\nu = Unsqueeze(l, last)\nd = Sub(z, u)\np = Exp(d)",
}
OTHERS = {
    "the log of another sum": "o = Neg(z)\nl = ReduceLogSumExp(o, last)\nd = Sub(z, l)\np = Exp(d)",
    "the log over another axis": "l = ReduceLogSumExp(z, first)\nd = Sub(z, l)\np = Exp(d)",
    "another sum": "e = Exp(z)\no = Neg(z)\ne2 = Exp(o)\nt = ReduceSum<keepdims=1>(e2, last)\np = Div(e, t)",
    "another axis": "e = Exp(z)\nt = ReduceSum<keepdims=1>(e, first)\np = Div(e, t)",
    "shifted by class": "d = Sub(z, z)\ne = Exp(d)\nt = ReduceSum<keepdims=1>(e, last)\np = Div(e, t)",
}


def model(end: str) -> onnx.ModelProto:
    body = f"z = MatMul(x, w)\n{end}"
    axes = {"last": np.asarray([1]), "first": np.asarray([0])}
    used = {k: v for k, v in axes.items() if k in end}
    return net("(float[N,4] x) => (float[N,3] p)", body, w=weight(4, 3), **used)


@pytest.mark.parametrize("name", ENDS)
def test_the_logits_are_explained(name: str) -> None:
    compiled = compile_model(model(ENDS[name]), "gradient", target=1)
    assert len(compiled.cut) == 1 and "Softmax" in compiled.cut[0]
    x = data(2, 4)
    np.testing.assert_allclose(run(compiled.model, {"x": x})["relevance"], [weight(4, 3)[:, 1]] * 2, rtol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_softmax_is_not_cut(name: str) -> None:
    assert compile_model(model(OTHERS[name]), "gradient").cut == []


@pytest.mark.parametrize("batch", [2, "N"])
def test_a_softmax_of_before_opset_13(batch: int | str) -> None:
    """It flattens, so that raised to opset 18 it stands between a Flatten and a Reshape."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node
    nodes = [node("Conv", ["x", "w"], ["z"], "conv"), node("Softmax", ["z"], ["p"], "end")]
    kind = onnx.TensorProto.FLOAT
    ends = [value("x", kind, [batch, 4, 1, 1]), value("p", kind, [batch, 3, 1, 1])]
    held = [onnx.numpy_helper.from_array(weight(3, 4, 1, 1), "w")]
    graph = onnx.helper.make_graph(nodes, "old", ends[:1], ends[1:], held)
    old = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)], ir_version=8)
    compiled = compile_model(old, "gradient", target=1)
    assert len(compiled.cut) == 1 and "Softmax" in compiled.cut[0]
    out = run(compiled.model, {"x": data(2, 4, 1, 1)})
    np.testing.assert_allclose(out["relevance"], [weight(3, 4, 1, 1)[1]] * 2, rtol=1e-6)


def test_a_softmax_over_more_than_a_sample_s_values_is_explained_as_it_is() -> None:
    """Reshaped, the rows of a sample are its own again: cut, each would be explained by itself."""
    body = "z = MatMul(x, w)\nr = Reshape(z, rows)\ns = Softmax(r)\np = Reshape(s, parts)"
    shapes = {"rows": np.asarray([6, 3]), "parts": np.asarray([2, 3, 3])}
    model = net("(float[2,3,4] x) => (float[2,3,3] p)", body, w=weight(4, 3), **shapes)
    assert compile_model(model, "gradient").cut == []
