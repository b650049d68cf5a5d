"""A model from nothing: inputs, and what a builder makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from xaicompile.ir.build import Builder
from xaicompile.ir.graph import Shape, Tensor, live
from xaicompile.ir.model import OPSET_FLOOR, check

IR_VERSION = 8


def new_model(
    inputs: Mapping[str, tuple[np.dtype[Any], Shape]],
    make: Callable[[Builder, Sequence[Tensor]], Mapping[str, Tensor]],
    metadata: Mapping[str, str],
    name: str = "model",
) -> onnx.ModelProto:
    """Builds a model.

    Args:
        inputs: dtype and shape by name.
        make: Emits the nodes and returns the outputs by name.
        metadata: Properties that the model carries.
        name: The graph's name, with which the names of nodes begin.
    """
    b = Builder(OPSET_FLOOR, inputs)
    b.method = name
    given = [b.outside(n, np.dtype(dtype), shape) for n, (dtype, shape) in inputs.items()]
    outputs = dict(make(b, given))
    for n, t in outputs.items():
        if t.name not in b.made or t.name in b.outputs:  # an input, a constant, or an output already
            (outputs[n],) = b.typed("Identity", [t], [(t.dtype, t.shape)])
        b.rename(outputs[n], b.unique(n))
    nodes = live(b.nodes, {t.name for t in outputs.values()})
    graph = gs.Graph(
        nodes=nodes,
        inputs=[t.var for t in given],
        outputs=[t.var for t in outputs.values()],
        opset=OPSET_FLOOR,
        name=name,
    )
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = IR_VERSION
    model.producer_name = "xaicompile"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    check(model)
    return model
