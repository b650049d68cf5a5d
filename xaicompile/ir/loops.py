"""Loops and branches that a builder emitted, read as views, so that they are differentiated as the model's own are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from xaicompile.ir.build import SMALL, Builder
from xaicompile.ir.graph import Tensor, View, captured_names


def with_loops(b: Builder, before: int, record: Sequence[View], known: Mapping[str, Tensor]) -> list[View]:
    """What was recorded, and among it the nodes with subgraphs, which a record leaves out; in graph order.

    Args:
        before: How many nodes the builder had when recording began.
        record: All other views, in the order in which they were asked for.
        known: Tensors of the model, which subgraphs may read.
    """
    made = [node for node in b.nodes[before:] if any(isinstance(v, onnx.GraphProto) for v in node.attrs.values())]
    if not made:
        return list(record)
    tensors = {**known, **all_made(b), **{t.name: t for v in record for t in (*v.x, *v.y) if t is not None}}
    waiting, found = [as_view(b, node, tensors) for node in made], []
    for view in record:
        read = {t.name for t in view.x if t is not None}
        while any(y is not None and y.name in read for loop in waiting for y in loop.y):
            found.append(waiting.pop(0))  # all that it reads was asked for before it
        found.append(view)
    return [*found, *waiting]


def as_view(b: Builder, node: gs.Node, tensors: Mapping[str, Tensor]) -> View:
    """A node with subgraphs; what these read from outside are its last inputs."""
    x, y = ([None if t.is_empty() else tensors[t.name] for t in ends] for ends in (node.inputs, node.outputs))
    named = helper.make_node(node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], **node.attrs)
    captured = captured_names(named)
    read = [*x, *(tensors[name] for name in captured)]
    return View(node.op, read, y, dict(node.attrs), since=b.opset, captured=tuple(captured))


def all_made(b: Builder) -> dict[str, Tensor]:
    """All constants and results of a builder and of those around it, by name."""
    found: dict[str, Tensor] = {}
    for builder in around(b):
        for var in (y for node in builder.nodes for y in node.outputs):
            found[var.name] = Tensor(var, builder, var.dtype, None if var.shape is None else tuple(var.shape))
        for var in builder.constants():
            value = var.values
            found[var.name] = Tensor(
                var, builder, value.dtype, value.shape, value if value.size <= SMALL else None, True
            )
    return found


def around(b: Builder) -> Iterable[Builder]:
    """A builder and, of one for subgraphs, those of the graphs around it."""
    builder: Builder | None = b
    while builder is not None:
        yield builder
        builder = getattr(builder, "parent", None)
