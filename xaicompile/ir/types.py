"""Types and shapes of tensors, also behind ops whose schema infers none."""

from __future__ import annotations

import onnx

LIKE_INPUT = {"GroupNormalization"}  # ops without inference whose output has the first input's type and shape


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes that follow from its inputs; once more behind each op without inference."""
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = model.graph
        known = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output) if v.HasField("type")}
        lacking = [
            n for n in graph.node if n.op_type in LIKE_INPUT and n.input[0] in known and n.output[0] not in known
        ]
        if not lacking:
            return model
        for node in lacking:
            graph.value_info.append(onnx.ValueInfoProto(name=node.output[0], type=known[node.input[0]]))
