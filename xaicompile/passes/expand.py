"""Ops without a rule of their own are read through the function body that their schema states.

The node itself stays for the prediction; what its body computes on the way is emitted beside it where the backward
pass needs it.
"""

from __future__ import annotations

import onnx
from onnx import helper, inliner

from xaicompile.errors import Gap, UnsupportedError
from xaicompile.facts import fold
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.body import inlined
from xaicompile.ir.build import listed
from xaicompile.ir.graph import schema_of
from xaicompile.passes import recurrent
from xaicompile.registry import info

DEPTH = 4  # bodies within bodies


def run(p: Program) -> bool:
    """Replaces every view without a vjp by the views of its body. Returns whether there was any."""
    changed = False
    for _ in range(DEPTH):
        lacking = {v for v in p.views if info(v).vjp is None}
        views: list[View] = []
        for view in p.views:
            body = attempted(p, view) if view in lacking else None
            views += [view] if body is None else body
        if len(views) == len(p.views):
            break
        p.views, changed = views, True
    return changed


def attempted(p: Program, view: View) -> list[View] | None:
    """The same, or None where it can't be written out; the view then says why."""
    try:
        return expanded(p, view)
    except UnsupportedError as error:
        view.gaps = error.gaps or (Gap(view.name, view.op, view.domain, view.since, "no rule", str(error)),)
        return None


def expanded(p: Program, view: View) -> list[View] | None:
    """The views of a node's body; None if its schema states none."""
    if not view.domain and view.op in recurrent.CELLS:
        return recurrent.written_out(p, view)
    schema = schema_of(view.op, view.domain, view.since)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function) or view.domain:
        return None
    body = body_of(p, view)
    if body is None:
        return None
    known: dict[str, Tensor | None] = {f"x{i}": x for i, x in enumerate(view.x) if x is not None}
    results = {f"y{i}": y for i, y in enumerate(view.y) if y is not None}
    with p.builder.scope(view.name):
        return inlined(p.builder, body, known, view.name, view.nodes, results, done=fold)


def body_of(p: Program, view: View) -> onnx.GraphProto | None:
    """The node's body with its attributes filled in, for inputs x0, x1, ... and outputs y0, y1, ..."""
    if any(x is not None and x.dtype is None for x in view.x):
        return None
    schema = schema_of(view.op, view.domain, view.since)
    assert schema is not None
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(view.x)]
    outputs = [f"y{i}" if y is not None else "" for i, y in enumerate(view.y)]
    stated = {k: view.attr(k) for k in schema.attributes}  # bodies refer to attributes that were left to their defaults
    attrs = {k: v for k, v in stated.items() if v is not None}
    node = helper.make_node(view.op, names, outputs, **attrs)
    function = function_of(schema, node, [type_of(x) for x in view.x], p.opset)
    if function is None:
        return None
    function.domain, function.name = "body", "body"
    del function.attribute[:], function.attribute_proto[:]
    function.attribute.extend(attrs)
    call = helper.make_node("body", names, outputs, domain="body", **attrs)
    inputs = [onnx.ValueInfoProto(name=n) for n in names if n]
    graph = helper.make_graph([call], "body", inputs, [onnx.ValueInfoProto(name=n) for n in outputs if n])
    opsets = [helper.make_opsetid("", p.opset), helper.make_opsetid("body", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    try:
        return inliner.inline_local_functions(model, convert_version=True).graph
    except Exception:  # a body in an opset that can't be raised is as good as none
        return None


def function_of(
    schema: onnx.defs.OpSchema, node: onnx.NodeProto, types: list[onnx.TypeProto], opset: int
) -> onnx.FunctionProto | None:
    """The body that a schema states for an opset, which may depend on the node's inputs and attributes."""
    serialised = [t.SerializeToString() for t in types]
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if not versions:
            return None
        data = schema.get_context_dependent_function_with_opset_version(
            max(versions), node.SerializeToString(), serialised
        )
    else:
        versions = [v for v in schema.function_opset_versions if v <= opset]
        if not versions:
            return None
        data = schema.get_function_with_opset_version(max(versions))
    return onnx.FunctionProto.FromString(data) if data else None


def type_of(x: Tensor | None) -> onnx.TypeProto:
    """A tensor's type; an empty one for an input that is left out."""
    if x is None or x.dtype is None:
        return onnx.TypeProto()
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(x.dtype), listed(x.shape))
