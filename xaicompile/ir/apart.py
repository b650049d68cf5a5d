"""Ops that ONNX Runtime's optimiser writes into the standard domain, though the standard does not have them."""

from __future__ import annotations

import onnx
from onnx import helper

NOT_STANDARD = ("SimplifiedLayerNormalization",)
APART = "runtime"  # where they stand while ONNX's own tools look at the model


def set_apart(model: onnx.ModelProto) -> None:
    """Gives these ops a domain of their own: shape inference, opset converter and checker refuse them otherwise."""
    found = [n for n in model.graph.node if n.domain in ("", "ai.onnx") and n.op_type in NOT_STANDARD]
    for node in found:
        node.domain = APART
    if found:
        model.opset_import.append(helper.make_opsetid(APART, 1))


def put_back(model: onnx.ModelProto) -> None:
    """Gives them back the domain that the runtime knows them by."""
    for node in model.graph.node:
        if node.domain == APART:
            node.domain = ""
    kept = [o for o in model.opset_import if o.domain != APART]
    del model.opset_import[:]
    model.opset_import.extend(kept)
