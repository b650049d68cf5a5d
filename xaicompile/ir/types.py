"""Types and shapes of tensors, also behind ops whose schema infers none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

LIKE_INPUT = {"GroupNormalization"}  # ops without inference whose output has the first input's type and shape
MISREAD = {"STFT": {"onesided": 1}}  # attributes whose default ONNX's inference takes for another value
FEW = 64  # elements of a shape, or of what one is worked out from
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes that follow from its inputs; once more behind each op without inference.

    Where that leaves a rank open, arithmetic on constants (which inference does not do) is worked out beforehand.
    """
    silent = {i: unsaid(node) for i, node in enumerate(model.graph.node) if unsaid(node)}
    for i, defaults in silent.items():
        model.graph.node[i].attribute.extend(defaults)
    model = with_types(model)
    for i, defaults in silent.items():
        del model.graph.node[i].attribute[-len(defaults) :]
    return model


def unsaid(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    """The attributes to spell out for inference."""
    defaults = {} if node.domain not in ("", "ai.onnx") else MISREAD.get(node.op_type, {})
    said = {a.name for a in node.attribute}
    return [helper.make_attribute(k, v) for k, v in defaults.items() if k not in said]


def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what inference finds."""
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = model.graph
        known = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output) if v.HasField("type")}
        lacking = [
            n for n in graph.node if n.op_type in LIKE_INPUT and n.input[0] in known and n.output[0] not in known
        ]
        if not lacking:
            break
        for node in lacking:
            graph.value_info.append(onnx.ValueInfoProto(name=node.output[0], type=known[node.input[0]]))
    if any(t.HasField("tensor_type") and not t.tensor_type.HasField("shape") for t in known.values()):
        better = onnx.shape_inference.infer_shapes(folded(model), data_prop=True).graph
        names = {name for node in graph.node for name in node.output}
        del graph.value_info[:]
        graph.value_info.extend(v for v in better.value_info if v.name in names)
    return model


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which nodes on few whole-number constants are constants; without inferred types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    version = next((o.version for o in copy.opset_import if o.domain in ("", "ai.onnx")), 1)
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer if whole(i)}
    for given in graph.input:
        values.pop(given.name, None)
    for node in graph.node:
        held = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if held is not None and whole(held):
            values[node.output[0]] = numpy_helper.to_array(held)
        elif node.input and all(name in values for name in node.input) and len(node.output) == 1:
            value = run_node(node, {name: values[name] for name in node.input}, version)
            if value is not None and value.size <= FEW and value.dtype.kind in "ib":
                values[node.output[0]] = value
                tensor = numpy_helper.from_array(value)
                node.CopyFrom(helper.make_node("Constant", [], list(node.output), name=node.name, value=tensor))
    return copy


def whole(tensor: onnx.TensorProto) -> bool:
    """True for a tensor of few whole numbers or booleans that is in the file."""
    kinds = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    return tensor.data_type in kinds and not outside and int(np.prod(tensor.dims)) <= FEW


def run_node(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray], version: int) -> np.ndarray | None:
    """The first output of a standard node on these values, by the reference implementation; None where that fails."""
    if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
        return None
    try:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        graph = helper.make_graph([node], "fold", inputs, [onnx.ValueInfoProto(name=node.output[0])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        return np.asarray(ReferenceEvaluator(model).run(None, dict(feeds))[0])
    except Exception:  # a value that can't be worked out is simply not known
        return None
