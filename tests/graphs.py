"""Models written as ONNX text, and two ways to run a model: ONNX Runtime, and the float64 oracle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from tests.reference_ops import evaluator

Arrays = dict[str, np.ndarray]


def net(signature: str, body: str, *, opset: int = 18, ir: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """A checked model from ONNX text, such as `net("(float[N,2] x) => (float[N,2] y)", "y = Relu(x)")`.

    Args:
        signature: Inputs and outputs of the graph.
        body: Its nodes, one a line.
        opset: Version of the standard operators.
        ir: Version of the file format.
        weights: Initializers by name.
    """
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> net {signature} {{ {body} }}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def weight(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal numbers that keep the scale of what they multiply."""
    rng = np.random.default_rng((seed, *shape))
    return (rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(dtype)


def data(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal numbers as an input."""
    return np.random.default_rng((seed, *shape, 7)).standard_normal(shape).astype(dtype)


def run(model: onnx.ModelProto | str, feed: Mapping[str, np.ndarray], optimise: bool = True) -> Arrays:
    """Every output by name, from ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feed)), strict=True))


def exact(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Arrays:
    """Every output by name, from the tests' own float64 operators."""
    names = [o.name for o in model.graph.output]
    return dict(zip(names, evaluator(model).run(None, dict(feed)), strict=True))
