"""From a row of the table to a model, its inputs and its central differences."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.cases import Case
from tests.reference_ops import evaluator

Array = np.ndarray
Feed = dict[str, Array]

DTYPES = {"float64": TensorProto.DOUBLE, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
IR_VERSION = 10


def generator(case: Case, salt: str = "") -> np.random.Generator:
    """Returns the row's own random numbers, the same in every run."""
    return np.random.default_rng(zlib.crc32((case.id + salt).encode()))


def arguments(case: Case, dtype: str) -> list[Array | None]:
    """Returns the operator's inputs; floating-point ones rounded to float16 and held in ``dtype``.

    The rounding makes runs in all three types see the same numbers.
    """
    rng = generator(case)
    values = [None if arg is None else arg.make(rng) for arg in case.args]
    return [v.astype(np.float16).astype(dtype) if v is not None and v.dtype == np.float64 else v for v in values]


def explained_inputs(case: Case) -> list[str]:
    """Returns the names of the inputs whose gradient is checked."""
    return [f"x{i}" for i, arg in enumerate(case.args) if arg is not None and arg.explained and not arg.constant]


def _value(name: str, array: Array, dynamic: bool) -> onnx.ValueInfoProto:
    shape = [f"{name}_{i}" for i in range(array.ndim)] if dynamic else list(array.shape)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def project(model: onnx.ModelProto, tensors: Mapping[str, Array], dtype: str, salt: str) -> onnx.ModelProto:
    """Appends the output ``<salt>``: the sum over ``tensors`` of their products with fixed random numbers.

    The weights make the cotangent that reaches each tensor random.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    sums = []
    for index, (name, sample) in enumerate(tensors.items()):
        rng = np.random.default_rng([index, sample.size, *salt.encode()])
        weights = np.asarray(rng.uniform(0.5, 1.5, sample.shape) * rng.choice([-1, 1], sample.shape))
        weights = weights.astype(np.float16).astype(dtype)
        key = f"{salt}_{index}"
        graph.initializer.append(numpy_helper.from_array(weights, f"{key}_weights"))
        source = name
        if sample.dtype != np.dtype(dtype):
            source = f"{key}_cast"
            graph.node.append(helper.make_node("Cast", [name], [source], to=DTYPES[dtype]))
        graph.node.append(helper.make_node("Mul", [source, f"{key}_weights"], [f"{key}_product"]))
        graph.node.append(helper.make_node("ReduceSum", [f"{key}_product"], [f"{key}_sum"], keepdims=0))
        sums.append(f"{key}_sum")
    graph.node.append(helper.make_node("Sum", sums, [salt]))
    graph.output.append(helper.make_tensor_value_info(salt, DTYPES[dtype], []))
    return result


def build(case: Case, dtype: str = "float64", dynamic: bool = False) -> tuple[onnx.ModelProto, Feed]:
    """Returns the row as a model with the scalar output ``s``, and its inputs."""
    values = arguments(case, dtype)
    names, inputs, feed, initializers = [], [], {}, []
    for index, (arg, value) in enumerate(zip(case.args, values, strict=True)):
        names.append(f"x{index}" if value is not None else "")
        if arg is None or value is None:
            continue
        if arg.constant:
            initializers.append(numpy_helper.from_array(value, names[-1]))
        else:
            inputs.append(_value(names[-1], value, dynamic))
            feed[names[-1]] = value
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name=f"the {case.op}", **case.attrs)
    graph = helper.make_graph([node], "one_node", inputs, [onnx.ValueInfoProto(name=y) for y in outputs], initializers)
    opset = helper.make_opsetid("", case.opset)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    sample = dict(zip(outputs, evaluator(model).run(None, feed), strict=True))
    used = {name: np.asarray(sample[name]) for name in (outputs[i] for i in case.used)}
    if not case.carries:
        used |= {name: feed[name] for name in explained_inputs(case)}
    # the tensors' types are left to shape inference; only the scalar is an output
    del model.graph.output[:]
    return project(model, used, dtype, "s"), feed


def central_difference(
    model: onnx.ModelProto, feed: Mapping[str, Array], output: str, wrt: Sequence[str], step: float = 1e-5
) -> Feed:
    """Returns the gradient of a scalar output by central differences in float64, every element on its own."""
    session = evaluator(model)
    result = {}
    for name in wrt:
        gradient = np.zeros(feed[name].shape)
        for place in np.ndindex(*feed[name].shape):
            ends = []
            for sign in (1, -1):
                moved = feed[name].copy()
                moved[place] += sign * step
                ends.append(float(session.run([output], {**feed, name: moved})[0]))
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        result[name] = gradient
    return result


def relative_error(got: Array, want: Array) -> float:
    """Returns the largest error over the largest value; NaN where the shapes differ or a value is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("nan")
    if not want.size:
        return 0.0
    return float(np.abs(np.asarray(got, np.float64) - want).max() / max(float(np.abs(want).max()), 1e-12))
