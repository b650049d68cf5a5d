"""The standard's own test models of single nodes, made ready for central differences in float64.

Every floating-point type becomes float64. Inputs that are not explained become initializers, as exporters write them.
The explained ones move up a little, at random, off kinks and ties.
"""

from __future__ import annotations

import functools
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

import xaicompile
from tests.cases.build import Feed, project
from tests.reference_ops import evaluator
from xaicompile import registry
from xaicompile.ir import View
from xaicompile.ir.graph import captured_names

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
STEP = 1e-6
SCALAR = "projection"
TYPES = {"to", "dtype", "stash_type", "softmax_precision"}  # attributes that name a type


@dataclass(frozen=True)
class NodeModel:
    """A model of one node in float64.

    Attributes:
        name: The standard's name of the test.
        explained: Its inputs whose gradient is checked.
        stopped: Its floating-point inputs that carry no message, by position.
        outputs: Its floating-point outputs.
    """

    name: str
    op: str
    domain: str
    model: onnx.ModelProto
    feed: Feed
    explained: tuple[str, ...]
    stopped: tuple[int, ...]
    outputs: tuple[str, ...]


def is_float(value: onnx.ValueInfoProto) -> bool:
    """True for tensors of the three usual floating-point types."""
    return value.type.tensor_type.elem_type in FLOATS


@functools.cache
def tests() -> dict[str, TestCase]:
    """The standard's tests of nodes by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {test.name: test for test in load_model_tests(kind="node")}


@functools.cache
def models() -> tuple[NodeModel, ...]:
    """Every test model of a single node with floating-point numbers in and out."""
    found = []
    for test in tests().values():
        graph = test.model.graph
        if len(graph.node) == 1 and any(map(is_float, graph.input)) and any(map(is_float, graph.output)):
            found.append(read(test.name, test.model, test.data_sets[0][0]))
    return tuple(found)


def widened(graph: onnx.GraphProto) -> None:
    """Makes every floating-point type of a graph and its subgraphs float64."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if is_float(value):
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in TYPES and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                value = np.asarray(helper.get_attribute_value(attribute), np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
            if attribute.HasField("g"):
                widened(attribute.g)
            if attribute.HasField("t"):
                widen(attribute.t)


def widen(tensor: onnx.TensorProto) -> None:
    """Makes a floating-point tensor float64."""
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def read(name: str, source: onnx.ModelProto, data: list[Any]) -> NodeModel:
    """One of the standard's tests in float64."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph, node = model.graph, model.graph.node[0]
    if all(o.domain for o in model.opset_import):  # the projection needs it
        model.opset_import.append(helper.make_opsetid("", 20))
    singles = single_inputs(node, model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    widened(graph)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    stops = registry.stops(View(node.op_type, [], [], domain=node.domain))
    stopped_names = {n for i, n in enumerate(node.input) if i in stops or i in singles}
    used = {*node.input, *captured_names(node)}
    feed: Feed = {}
    explained, stopped = [], []
    for value, given in zip(list(graph.input), data, strict=False):
        if not value.type.HasField("tensor_type") or isinstance(given, list):
            continue
        array = numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)
        if is_float(value) and value.name not in stopped_names and value.name in used:
            x = np.where(np.isfinite(np.asarray(array, np.float64)), array, 0.25).astype(np.float64)
            nearby = rng.uniform(0.5e-3, 2e-3, x.shape) * (1 + np.abs(x))
            feed[value.name] = np.asarray(x + nearby)
            explained.append(value.name)
            continue
        if is_float(value):
            place = list(node.input).index(value.name) if value.name in node.input else -1
            if place >= 0:
                stopped.append(place)
            array = array if place in singles else array.astype(np.float64)
        held = given if isinstance(given, onnx.TensorProto) and not is_float(value) else None
        tensor = numpy_helper.from_array(array, value.name) if held is None else onnx.TensorProto()
        if held is not None:
            tensor.CopyFrom(held)
            tensor.name = value.name
        elif not is_float(value):
            tensor.data_type = kinds[value.name]
        graph.initializer.append(tensor)
        graph.input.remove(value)
    outputs = tuple(o.name for o in graph.output if is_float(o))
    return NodeModel(name, node.op_type, node.domain, model, feed, tuple(explained), tuple(stopped), outputs)


def single_inputs(node: onnx.NodeProto, model: onnx.ModelProto) -> set[int]:
    """The inputs that the standard has in float32 alone."""
    version = next(o.version for o in model.opset_import if (o.domain or "") == node.domain)
    stated = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
    return {i for i, x in enumerate(stated) if x.type_str == "tensor(float)"}


def twin(case: NodeModel) -> onnx.ModelProto | None:
    """The function body of the node as a model of its own, which the standard has under a name of its own."""
    source = tests().get(f"{case.name}_expanded")
    if source is None:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    widened(model.graph)
    held = {tensor.name for tensor in case.model.graph.initializer}
    for value in [v for v in model.graph.input if v.name in held]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(case.model.graph.initializer)
    return model


def scalar_of(case: NodeModel, output: str, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The model, or another with the same outputs, with a random projection of one output as its output."""
    sample = evaluator(case.model).run([output], case.feed)[0]
    return project(model or case.model, {output: np.asarray(sample)}, "float64", SCALAR)


def gradients(model: onnx.ModelProto, case: NodeModel) -> Feed:
    """The gradient that the compiler emits, by the reference."""
    made = xaicompile.compile(
        model, "gradient", explain_output=SCALAR, explain_reduce="sum", explain_input=list(case.explained)
    )
    names = [o.name for o in made.graph.output][-len(case.explained) :]
    return dict(zip(case.explained, map(np.asarray, evaluator(made).run(names, case.feed)), strict=True))


def disagreement(case: NodeModel, output: str) -> float:
    """The error of the gradient along two random directions, against central differences."""
    model = scalar_of(case, output)
    got = gradients(model, case)
    reference, worst = evaluator(model), 0.0
    rng = np.random.default_rng(7)
    for _ in range(2):
        step = {k: rng.choice([-1.0, 1.0], case.feed[k].shape) * rng.uniform(0.5, 1, case.feed[k].shape) for k in got}
        ends = []
        for sign in (1, -1):
            moved = {k: case.feed[k] + sign * STEP * d for k, d in step.items()}
            ends.append(float(reference.run([SCALAR], {**case.feed, **moved})[0]))
        want = (ends[0] - ends[1]) / (2 * STEP)
        parts = [got[k] * d for k, d in step.items()]
        noise = 1e-15 * max(abs(e) for e in ends) / STEP
        along = float(sum(p.sum() for p in parts))
        size = max(abs(want), float(np.sqrt(sum((p**2).sum() for p in parts))))
        error = max(abs(along - want) - noise, 0.0) / max(size, 1e-6)
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst
