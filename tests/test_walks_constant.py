"""GNN-LRP of a graph that the model holds: the same as of one that is fed (W1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graphs import Arrays, net, weight
from tests.test_walks import F64, ORDERS, explained, feed, gcn, walks
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

GIVEN = ("relevance", "node_relevance", "edge_relevance", "walk_relevance", "subgraph_relevance")


def baked(model: onnx.ModelProto, fed: Arrays, node: bool = False) -> onnx.ModelProto:
    """The model with all inputs but the features in it: as initializers, or as outputs of Constant nodes."""
    held = [i for i in model.graph.input if i.name != "x"]
    for i in held:
        model.graph.input.remove(i)
        value = numpy_helper.from_array(fed[i.name], i.name)
        if node:
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [i.name], value=value))
        else:
            model.graph.initializer.append(value)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("biases", [False, True])
def test_a_graph_in_the_model_is_as_one_that_is_fed(order: str, biases: bool) -> None:
    fed, every = feed(order), walks(2)[::3]
    options: dict[str, Any] = {"walks": every, "parameters": {"epsilon": 0.0, "gamma": 0.7}}
    want = explained(gcn(2, order, biases), fed, **options)
    structure = ["edges", "lam"] if "edges" in order else ["a"]
    for node in (False, True):
        model = baked(gcn(2, order, biases), fed, node)
        found = explained(model, {"x": fed["x"]}, structure=structure, **options)
        for key in GIVEN:
            np.testing.assert_allclose(found[key], want[key], rtol=0, atol=1e-12)


def test_a_graph_in_the_model_is_no_weight_that_takes_in_a_scale() -> None:
    """As a weight would that a scale by degrees follows."""
    body = """
        across = Transpose(x)
        sent = MatMul(across, a)
        scaled = Mul(sent, degrees)
        m = Transpose(scaled)
        z = MatMul(m, w)
        h = Relu(z)
        y = MatMul(h, v)
    """
    held: dict[str, Any] = {"w": weight(3, 4, dtype=F64), "v": weight(4, 2, seed=1, dtype=F64)}
    held["degrees"] = np.array([0.5, 1, 2, 0.25, 1], F64)
    model, every = net("(double[5,3] x, double[5,5] a) => (double[5,2] y)", body, **held), walks(1)
    want = explained(model, feed(), 0.7, walks=every)
    found = explained(baked(model, feed()), {"x": feed()["x"]}, 0.7, structure="a", walks=every)
    for key in GIVEN:
        np.testing.assert_allclose(found[key], want[key], rtol=0, atol=1e-12)
    assert np.abs(want["edge_relevance"]).max() > 1e-3


@pytest.mark.parametrize(
    ("structure", "told"),
    [
        ((), r"name the input or constant that holds the graph with --structure \(x, a, w1\)"),
        ("aa", "unknown structure input or constant 'aa'; did you mean 'a'?"),
        ("z0", "no interaction layer of 'z0'"),
        ("w0", "nodes can't be told apart"),
    ],
)
def test_errors_name_what_may_be_structure(structure: Any, told: str) -> None:
    model = baked(gcn(2), feed())
    with pytest.raises(RuleError, match=told) as caught:
        compile_model(model, "gnn-lrp", structure=structure)
    assert "\n" not in str(caught.value)
