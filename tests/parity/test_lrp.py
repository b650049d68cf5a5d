"""LRP against zennit 1.0.0 and against a second implementation, and the books that every LRP rule keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import xaicompile
from xaicompile import registry
from xaicompile.ir import Tensor

from . import layer_lrp, measure, references
from .selection import cases

BOOKED = ("vgg11_bn", "resnet18")


@pytest.mark.parametrize("rule", measure.ZENNIT_RULES)
@pytest.mark.parametrize(("name", "exporter"), cases(measure.ZENNIT_MODELS))
def test_lrp_is_zennit(name: str, exporter: str, rule: str) -> None:
    """Element by element zennit's map, for what is in no composite of its own (see test_zennit_composites)."""
    exact = references.zennit_map(name, 3, rule)
    assert references.error(measure.explain64(name, exporter, 3, rule).relevance, exact) <= measure.exact_bound(rule)
    found = measure.explain32(name, exporter, 3, rule).relevance
    assert references.error(found, exact) <= measure.zennit_bound(name, 3, rule)


@pytest.mark.parametrize("rule", measure.LRP_RULES)
@pytest.mark.parametrize(("name", "exporter"), cases())
def test_books_close(name: str, exporter: str, rule: str) -> None:
    """sum(R) + ledger == explained, in ONNX Runtime and, to rounding, in float64."""
    found = measure.explain32(name, exporter, 3, rule, ledger=True)
    assert found.closure <= measure.CLOSURE
    assert np.array_equal(found.outputs["logits"], measure.prediction(name, exporter, 3))
    logits = found.outputs["logits"][np.arange(3), references.targets(name, 3).numpy()]
    assert np.array_equal(found.outputs["explained"], logits)
    assert measure.explain64(name, exporter, 3, rule, ledger=True).closure <= measure.CLOSURE64


@pytest.mark.parametrize("rule", list(layer_lrp.RULE_SETS))
@pytest.mark.parametrize(("name", "exporter"), cases(BOOKED))
def test_books_layer_by_layer(name: str, exporter: str, rule: str) -> None:
    """Map and books equal, layer by layer, those of an independent implementation in torch, in float64."""
    found = measure.explain64(name, exporter, 2, rule, ledger=True)
    books = layer_lrp.explain(name, 2, rule)
    assert references.error(found.relevance, books.relevance.numpy()) <= measure.FLOAT64
    nodes = {node.name: node for node in measure.source(name, exporter, torch.float64).graph.node}
    scale = max(float(absorbed.abs().max()) for _, absorbed in books.absorbed)
    entries = found.outputs["ledger_by_node"]
    matched = 0
    for column, node_name in enumerate(found.ledger_nodes):
        node = nodes.get(node_name)
        expected = np.zeros(2)
        if node is not None and node.op_type in ("Conv", "Gemm"):
            weight = _initializer(measure.source(name, exporter, torch.float64), node.input[1])
            expected = _absorbed(books, weight)
            matched += 1
        assert np.abs(entries[:, column] - expected).max() <= measure.FLOAT64 * scale, node_name
    assert matched == len(books.absorbed)


def _initializer(model: onnx.ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def _absorbed(books: layer_lrp.Books, weight: Any) -> Any:
    """What the layer with this folded weight absorbed."""
    for own, absorbed in books.absorbed:
        if own.shape == weight.shape and np.allclose(own.numpy(), weight, rtol=1e-10, atol=1e-12):
            return absorbed.numpy()
    raise AssertionError(f"no layer has this weight of shape {weight.shape}")


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "default"])
@pytest.mark.parity
def test_a_wrong_sign_opens_the_books(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is kept node by node, not taken as the difference: a sign wrong at one node shows."""
    right = registry.RULES[rule]
    faulted: list[str] = []

    def wrong(ctx: registry.Context) -> registry.Messages:
        messages = right(ctx)
        if faulted or ctx.node.op == "Identity":
            return messages
        faulted.append(ctx.node.name)
        return [-m if isinstance(m, Tensor) else m for m in messages]

    monkeypatch.setitem(registry.RULES, rule, wrong)
    model = xaicompile.compile(
        measure.source("resnet18", "legacy", torch.float32), ledger=True, **measure.rule_options("lrp-gamma")
    )
    assert faulted
    found = measure.run(model, "resnet18", 2)
    assert found.closure > 0.1
