"""Gradients of ops that exist only in ONNX Runtime, in float32: central differences through the runtime itself."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import xaicompile
from tests.graphs import data, run

DIFFERENCES = 4e-3  # relative, of float32 central differences
STEP = 4e-3

Inputs = dict[str, np.ndarray]


def one_node(
    op: str, inputs: Inputs, weights: Inputs, order: str, domain: str, outputs: int = 1, **attrs: object
) -> onnx.ModelProto:
    """A model of one op of another domain; `order` names its inputs, `-` what is left out."""
    names = ["" if n == "-" else n for n in order.split()]
    made = [f"y{i}" for i in range(outputs)]
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in inputs.items()}
    graph = helper.make_graph(
        [helper.make_node(op, names, made, name="node", domain=domain, **attrs)],
        "one",
        [helper.make_tensor_value_info(n, kinds[n], ["N", *a.shape[1:]]) for n, a in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in made],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 3 if domain == "ai.onnx.ml" else 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def projected(model: onnx.ModelProto, output: str, inputs: Inputs) -> onnx.ModelProto:
    """The model with one output, the scalar `s`: a random linear function of one of its tensors."""
    shape = run(model, inputs)[output].shape
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]  # their types are not known to ONNX
    made.graph.initializer.append(numpy_helper.from_array(data(*shape, seed=9), "projection"))
    made.graph.node.append(helper.make_node("Mul", [output, "projection"], ["product"]))
    made.graph.node.append(helper.make_node("ReduceSum", ["product"], ["s"], keepdims=0))
    made.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    return made


def assert_gradients(model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Compares the gradient of `s` by all float inputs with central differences; returns the emitted model."""
    names = [n for n, a in inputs.items() if a.dtype.kind == "f"]
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum", explain_input=names)
    found = run(emitted, inputs)
    for n in names:
        gradient = found["relevance" if len(names) == 1 else f"relevance_{n}"]
        expected = np.zeros_like(gradient)
        for place in np.ndindex(*gradient.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = {k: a.copy() for k, a in inputs.items()}
                moved[n][place] += step
                ends.append(float(run(model, moved)["s"]))
            expected[place] = (ends[0] - ends[1]) / (2 * STEP)
        assert np.abs(expected).max() > 1e-2, n
        off = np.abs(gradient - expected) / np.abs(expected).max()
        assert np.quantile(off, 0.97) < DIFFERENCES, n  # a step may cross the kink of a ReLU
    return emitted
