"""Reading a source model into a Program, and writing a Program back as a model.

Weights are never copied: the graph library, shape inference and the opset converter see a skeleton in which large
initializers stand as typed inputs; what is emitted is added to the source model itself.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import helper, inliner, numpy_helper, version_converter
from onnx_graphsurgeon.ir.tensor import LazyValues

from xaicompile.errors import ModelError
from xaicompile.ir.apart import put_back, set_apart
from xaicompile.ir.build import SMALL, type_and_shape
from xaicompile.ir.files import external_files, tensors_of
from xaicompile.ir.graph import (
    Program,
    Tensor,
    View,
    captured_names,
    label,
    live,
    names_in,
    reads,
    schema_of,
    sorted_nodes,
)
from xaicompile.ir.opset import channel_slopes, retyped
from xaicompile.ir.types import inferred, run_node

OPSET_FLOOR = 18
STANDARD = ("", "ai.onnx")
CONTROL = ("If", "Loop", "Scan")
ModelLike: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


@dataclass
class Source:
    """The source model as read; `emit` turns `model` into the result.

    Attributes:
        model: Weights included, external data unread.
        path: Where it was read from, None for bytes and protos.
        sha256: Of the file's (or the serialised model's) bytes, external data not included.
        external: Locations of external data, relative to the folder of `path`.
    """

    model: onnx.ModelProto
    path: Path | None
    sha256: str
    external: tuple[str, ...] = ()


def load(model: ModelLike) -> Program:
    """Reads a model into a Program.

    Args:
        model: A path, the bytes of a model, or a ModelProto (which is not changed).

    Raises:
        ModelError: Not a readable, valid ONNX model.
    """
    source = read(model)
    graph = source.model.graph
    if not graph.node:
        raise ModelError(f"{named(source)} has no nodes; is it an ONNX model?")
    if source.model.ir_version < 4:  # initializers stood among the inputs and would count as overridable
        weights = {i.name for i in graph.initializer}
        kept = [i for i in graph.input if i.name not in weights]
        del graph.input[:]
        graph.input.extend(kept)
    if source.model.ir_version < 8:
        source.model.ir_version = 8
    order = sorted_nodes(graph)
    notes: list[str] = []
    skeleton = without_weights(source.model, order)
    set_apart(skeleton)
    if skeleton.functions:
        skeleton = inliner.inline_local_functions(skeleton)
    skeleton = raised(skeleton, notes)
    try:
        skeleton = inferred(skeleton)
    except Exception as error:
        raise ModelError(f"shape inference fails on {named(source)}: {first_line(error)}") from error
    program = imported(source, skeleton)
    put_back(skeleton)
    program.notes += notes
    return program


def read(model: ModelLike) -> Source:
    """Parses a model and checks its external data, without reading that data."""
    if isinstance(model, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(model)
        return Source(own, None, hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
    proto = onnx.ModelProto()
    if isinstance(model, bytes):
        parse(proto, model, "the given bytes")
        return Source(proto, None, hashlib.sha256(model).hexdigest())
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty")
    data = path.read_bytes()  # a memory map would not help: the parser copies what is not bytes
    parse(proto, data, str(path))
    digest = hashlib.sha256(data).hexdigest()
    return Source(proto, path, digest, external_files(proto, path.parent))


def parse(proto: onnx.ModelProto, data: bytes, what: str) -> None:
    """Parses, and turns the parser's complaint into one line."""
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{what} is not an ONNX model, or is cut short ({first_line(error)})") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{what} is not an ONNX model: it holds no graph")


def without_weights(model: onnx.ModelProto, order: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with its large initializers turned into typed inputs."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph, into = model.graph, skeleton.graph
    into.name = graph.name or "graph"
    into.node.extend(order)
    into.input.extend(graph.input)
    into.output.extend(graph.output)
    into.value_info.extend(graph.value_info)
    into.sparse_initializer.extend(graph.sparse_initializer)
    given = {i.name for i in graph.input}
    for tensor in graph.initializer:
        if is_large(tensor):
            if tensor.name not in given:
                into.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            into.initializer.append(tensor)
    return skeleton


def is_large(tensor: onnx.TensorProto) -> bool:
    """True for initializers that stay unread."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(tensor.dims)) > SMALL


def raised(skeleton: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """The model at the lowest opset that xaicompile emits; newer ones stay."""
    version = next((o.version for o in skeleton.opset_import if o.domain in STANDARD), None)
    if version is None:
        skeleton.opset_import.append(helper.make_opsetid("", OPSET_FLOOR))
        version = OPSET_FLOOR
    unknown = [label(n) for n in skeleton.graph.node if n.domain in STANDARD and not schema_of(n.op_type, "", version)]
    if unknown:
        raise ModelError(f"not in opset {version} of ONNX: {', '.join(unknown)}")
    if version >= OPSET_FLOOR:
        return skeleton
    before = [n.op_type for n in skeleton.graph.node]
    try:
        converted = version_converter.convert_version(skeleton, OPSET_FLOOR)
    except Exception as error:
        raise ModelError(
            f"the model uses opset {version} and can't be raised to {OPSET_FLOOR}: {first_line(error)}"
        ) from error
    after = [n.op_type for n in converted.graph.node]
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    change = f" ({', '.join(gone)} became {', '.join(new)})" if gone or new else ""
    notes.append(f"opset raised from {version} to {OPSET_FLOOR}{change}")
    for old, made in zip(skeleton.graph.node, converted.graph.node, strict=False):  # the converter drops these
        if old.output and made.output and old.output[0] == made.output[0]:
            made.doc_string, made.name = old.doc_string, old.name
            if old.op_type == made.op_type and not made.metadata_props:
                made.metadata_props.extend(old.metadata_props)
    converted.ir_version = skeleton.ir_version
    retyped(converted)
    if version < 7:
        channel_slopes(converted)
    return converted


def imported(source: Source, skeleton: onnx.ModelProto) -> Program:
    """Views and tensors of a typed skeleton."""
    try:
        graph = gs.import_onnx(skeleton)
    except Exception as error:
        raise ModelError(f"the graph can't be read: {first_line(error)}") from error
    names = set(graph.tensors()) | names_in(skeleton.graph)
    domains = {o.domain or "": o.version for o in skeleton.opset_import}
    program = Program(source, domains.get("", domains.get("ai.onnx", OPSET_FLOOR)), names)
    program.domains = domains
    program.skeleton = skeleton
    weights = {i.name for i in source.model.graph.initializer}
    graph_inputs = {i.name for i in source.model.graph.input}
    types = {v.name: v.type for v in (*skeleton.graph.input, *skeleton.graph.value_info, *skeleton.graph.output)}
    for name, var in {**captured_by(skeleton), **graph.tensors()}.items():
        value, dtype, shape = None, None, None
        if isinstance(var, gs.Constant):
            proto = next_value(var)
            dtype, shape = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type)), tuple(proto.dims)
            value = numpy_helper.to_array(proto) if readable(proto) and name not in graph_inputs else None
        elif name in types:
            dtype, shape = type_and_shape(types[name])
        constant = name in weights and name not in graph_inputs
        program.tensors[name] = Tensor(var, program.builder, dtype, shape, value, constant)
    program.views = [
        view_of(program, node, proto, i)
        for i, (node, proto) in enumerate(zip(graph.nodes, skeleton.graph.node, strict=True))
    ]
    program.inputs = [program.tensors[i.name] for i in source.model.graph.input]
    program.required = [i.name for i in source.model.graph.input if i.name not in weights]
    program.outputs = [program.tensors[o.name] for o in skeleton.graph.output]
    return program


def captured_by(skeleton: onnx.ModelProto) -> dict[str, gs.Tensor]:
    """Initializers and inputs that nothing but subgraphs reads."""
    names = {name for node in skeleton.graph.node for name in captured_names(node)}
    held: dict[str, gs.Tensor] = {}
    held |= {i.name: gs.Variable(i.name) for i in skeleton.graph.input if i.name in names}
    for i in skeleton.graph.initializer:
        if i.name in names:
            held[i.name] = gs.Constant(i.name, LazyValues(i))
    return held


def next_value(var: gs.Constant) -> onnx.TensorProto:
    """The proto behind a constant of the graph library, unread."""
    return var._values.tensor if hasattr(var._values, "tensor") else numpy_helper.from_array(var.values)


def stored(program: Program, t: Tensor) -> np.ndarray | None:
    """The numbers of an initializer, or of the builder's constant, however many; None for all else."""
    if isinstance(t.var, gs.Constant):
        proto = next_value(t.var)
    elif t.name in program.builder.made:
        return worked_out(t.var, program.opset)
    else:
        held = (i for i in program.source.model.graph.initializer if i.name == t.name and t.constant)
        found = next(held, None)
        if found is None:
            return None
        proto = found
    path = program.source.path
    if not readable(proto) or (proto.data_location == onnx.TensorProto.EXTERNAL and path is None):
        return None
    values: np.ndarray = numpy_helper.to_array(proto, str(path.parent) if path else "")
    return values


def worked_out(var: gs.Tensor, opset: int) -> np.ndarray | None:
    """The numbers of a constant that the builder's nodes make of other constants."""
    if isinstance(var, gs.Constant):
        values: np.ndarray = var.values
        return values
    node = var.inputs[0] if var.inputs else None
    found = None if node is None else [worked_out(x, opset) for x in node.inputs]
    if node is None or not found or any(v is None for v in found):
        return None
    names = [x.name for x in node.inputs]
    feeds = {n: v for n, v in zip(names, found, strict=True) if v is not None}
    return run_node(helper.make_node(node.op, names, [var.name], **node.attrs), feeds, opset)


def readable(proto: onnx.TensorProto) -> bool:
    """True where numpy has the dtype; 4-bit and 8-bit float types are never read."""
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type))
    return kind.kind in "biuf" and kind.isbuiltin == 1 and proto.data_type != onnx.TensorProto.BFLOAT16


def attribute_value(held: gs.Constant) -> np.ndarray | None:
    """The numbers of a tensor attribute; None where they are many, outside the file, or of a type numpy has not."""
    proto = next_value(held)
    return None if is_large(proto) or not readable(proto) else numpy_helper.to_array(proto)


def view_of(program: Program, node: gs.Node, proto: onnx.NodeProto, index: int) -> View:
    """A node as a view."""

    def tensor(t: gs.Tensor) -> Tensor | None:
        return None if t.is_empty() else program.tensors.get(t.name)

    domain = "" if proto.domain in STANDARD else proto.domain
    attrs = {k: copy.copy(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
    attrs |= {a.name: a.g for a in proto.attribute if a.HasField("g")}
    names = [n for n in captured_names(proto) if n in program.tensors]
    control = not domain and node.op in CONTROL
    return View(
        op=node.op,
        x=[tensor(t) for t in node.inputs] + [program.tensors[n] for n in names if control],
        y=[tensor(t) for t in node.outputs],
        attrs=attrs,
        name=proto.name or f"{node.op}_{index}",
        domain=domain,
        since=program.domains.get(domain, program.opset),
        nodes=(proto.name or f"{node.op}_{index}",),
        captures=() if control else tuple(program.tensors[n] for n in names),
        captured=tuple(names) if control else (),
    )


def emit(
    program: Program,
    outputs: Sequence[Tensor],
    inputs: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """The source model with the builder's nodes, new outputs, overridable inputs and metadata added.

    Nodes that no output needs are left out. The forward nodes, their order, names and weights stay as they are.

    Args:
        outputs: New outputs, after the source model's.
        inputs: Overridable inputs by name, with the defaults that stand as initializers; axis 0 is symbolic, and all
            axes are as the program's tensor of that name has them, if there is one.
    """
    model, skeleton = program.source.model, program.skeleton
    nodes = live(program.builder.nodes, {t.name for t in outputs})
    part = gs.export_onnx(
        gs.Graph(nodes=nodes, inputs=[], outputs=[t.var for t in outputs], opset=program.opset), do_type_check=False
    )
    graph = model.graph
    had = {i.name for i in graph.initializer}
    if [n.SerializeToString() for n in graph.node] != [n.SerializeToString() for n in skeleton.graph.node]:
        del graph.node[:], graph.value_info[:], model.functions[:], model.opset_import[:]
        graph.node.extend(skeleton.graph.node)
        model.opset_import.extend(skeleton.opset_import)
        graph.initializer.extend(i for i in skeleton.graph.initializer if i.name not in had)
        had.update(i.name for i in skeleton.graph.initializer)
    graph.node.extend(part.graph.node)
    graph.initializer.extend(i for i in part.graph.initializer if i.name not in had and i.name not in inputs)
    had.update(i.name for i in part.graph.initializer)
    captured = {name for node in nodes for name in reads(node)}
    for constant in program.builder.constants():
        if constant.name in captured and constant.name not in had:
            graph.initializer.append(numpy_helper.from_array(constant.values, constant.name))
    known = {v.name for v in (*graph.value_info, *graph.input, *graph.output)} | had | {o.name for o in outputs}
    forward = set(program.tensors)
    typed = [v for v in part.graph.value_info if v.HasField("type")]
    graph.value_info.extend(v for v in typed if v.name not in known and v.name not in forward)
    graph.output.extend(part.graph.output)
    for name, default in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(default.dtype)
        given = program.tensors.get(name)
        sizes = [f"{name}s", *default.shape[1:]] if given is None or given.shape is None else given.shape
        graph.input.append(helper.make_tensor_value_info(name, kind, list(sizes)))
        graph.initializer.append(numpy_helper.from_array(default, name))
    added = dict(metadata)
    for prop in model.metadata_props:
        prop.value = added.pop(prop.key, prop.value)
    for key, value in added.items():
        model.metadata_props.add(key=key, value=value)
    check(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Runs the ONNX checker on the model without its weights.

    Raises:
        ModelError: The model breaks the standard (in the source's part, or by a fault of the compiler).
    """
    skeleton = without_weights(model, model.graph.node)
    set_apart(skeleton)
    for tensor in tensors_of(skeleton.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # the checker would look for the file
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model does not pass the ONNX checker: {first_line(error)}") from error


def named(source: Source) -> str:
    """How messages name the source."""
    return str(source.path) if source.path else "the model"


def first_line(error: Any) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
