"""Ops in the standard domain that ONNX's own tools refuse: written there by ONNX Runtime's optimiser, or withdrawn."""

from __future__ import annotations

import onnx
from onnx import helper

STANDARD = ("", "ai.onnx")
NOT_STANDARD = {"SimplifiedLayerNormalization": 10**6, "GroupNormalization": 21}  # below which opset
APART = "runtime"  # where they stand while ONNX's own tools look at the model


def set_apart(model: onnx.ModelProto) -> None:
    """Gives these ops a domain of their own: shape inference, opset converter and checker refuse them otherwise."""
    opset = next((o.version for o in model.opset_import if o.domain in STANDARD), 1)
    nodes = (n for n in model.graph.node if n.domain in STANDARD)
    found = [n for n in nodes if opset < NOT_STANDARD.get(n.op_type, 0)]
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
