"""What the opset converter leaves wrong."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FIRST_VALUE = {"Clip": 1, "Pad": 2}  # the first input that used to be a float attribute


def retyped(model: onnx.ModelProto) -> None:
    """Gives bounds and padding values the type of the data; the converter makes them float32 whatever that is."""
    types = {i.name: i.data_type for i in model.graph.initializer}
    typed = onnx.shape_inference.infer_shapes(model).graph
    types |= {v.name: v.type.tensor_type.elem_type for v in (*typed.input, *typed.value_info, *typed.output)}
    constants = {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant" and n.attribute}
    for node in model.graph.node:
        wanted = types.get(node.input[0]) if node.op_type in FIRST_VALUE else None
        if wanted not in (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            continue
        for name in node.input[FIRST_VALUE[node.op_type] :]:
            held = constants.get(name)
            if held is not None and held.data_type == TensorProto.FLOAT:
                value = numpy_helper.to_array(held).astype(helper.tensor_dtype_to_np_dtype(wanted))
                held.CopyFrom(numpy_helper.from_array(value, held.name))


def channel_slopes(model: onnx.ModelProto) -> None:
    """Gives one slope a channel the axes of space: before opset 7, PRelu had no broadcasting from the last axis.

    The converter leaves them as they are.
    """
    typed = onnx.shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*typed.input, *typed.value_info, *typed.output)}
    single = {i.name for i in model.graph.initializer if len(i.dims) == 1 and i.dims[0] > 1}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        rank = ranks.get(node.input[0], 0) if node.op_type == "PRelu" and node.input[1] in single else 0
        if rank > 2:
            slope, axes = f"{node.output[0]}/slope", f"{node.output[0]}/axes"
            value = numpy_helper.from_array(np.arange(1, rank - 1), axes)
            nodes.append(helper.make_node("Constant", [], [axes], name=axes, value=value))
            nodes.append(helper.make_node("Unsqueeze", [node.input[1], axes], [slope], name=slope))
            node.input[1] = slope
        nodes.append(copy.deepcopy(node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
