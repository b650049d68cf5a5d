"""Subgraphs: emitting one, and emitting the nodes of one anew in another graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from xaicompile.errors import Gap, UnsupportedError
from xaicompile.ir.build import SMALL, Builder, listed, type_and_shape
from xaicompile.ir.graph import Dim, Operand, Shape, Tensor, View, captured_in, captured_names, live, subgraphs

RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
Type = tuple["np.dtype[Any] | None", "Shape | None"]
Body = Callable[[Builder, View], Sequence[Tensor | None] | None]
BODIES: dict[tuple[str, str], Body] = {}  # what ops stand for in standard ones: filled by `xaicompile.bodies`


class BodyBuilder(Builder):
    """Emits the nodes of a subgraph. What reads nothing from inside goes to the graph around it.

    Attributes:
        parent: The builder of the graph around.
        hoist: Whether that holds for all nodes (a loop, which runs them again and again) or only for constants (a
            branch, which may not run at all).
        outer: What the subgraph reads from outside, as the parent knows it, by name.
    """

    def __init__(self, parent: Builder, hoist: bool) -> None:
        super().__init__(parent.opset, ())
        self.parent, self.hoist, self.method, self._scope = parent, hoist, parent.method, parent._scope
        self._names, self._counter = parent._names, parent._counter
        self.outer: dict[str, Tensor] = {}
        self.formal: set[str] = set()
        self._adopted: dict[str, Tensor] = {}

    def adopt(self, t: Tensor) -> Tensor:
        """A tensor from outside, for use with this builder."""
        if t.builder is self:
            return t
        if t.name not in self._adopted:
            self.outer[t.name] = t
            self._adopted[t.name] = Tensor(t.var, self, t.dtype, t.shape, t.value, t.constant)
        return self._adopted[t.name]

    def input(self, stem: str, dtype: np.dtype[Any] | None, shape: Shape | None) -> Tensor:
        """A new input of the subgraph."""
        name = self.unique(f"{self.method}/{self._scope}/{stem}")
        self.formal.add(name)
        return Tensor(gs.Variable(name, dtype=dtype, shape=listed(shape)), self, dtype, shape)

    def define(self, t: Tensor, op: str, *x: Tensor, **attrs: Any) -> None:
        """Makes an input of the subgraph the output of a node in front of all others instead."""
        name = self.unique(f"{t.name}/{op}")
        self.nodes.insert(0, gs.Node(op, name=name, attrs=attrs, inputs=[i.var for i in x], outputs=[t.var]))

    def const(self, value: np.ndarray, name: str = "") -> Tensor:
        """A constant, held by the outermost graph."""
        return self.adopt(self.parent.const(value, name))

    def inside(self, t: Tensor) -> bool:
        """True for what the subgraph itself makes or is given."""
        return t.name in self.made or t.name in self.formal

    def many(
        self, op: str, outputs: int, *x: Operand | None, shape: Shape | None = None, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """Emits a node, here or in the graph around."""
        given = [t for t in self._operands(x) if t is not None]
        outside = bool(given) and not any(self.inside(t) for t in given)
        if outside and op not in RANDOM and (self.hoist or all(t.constant for t in given)):
            with self.parent.scope(self._scope):
                hoisted = self.parent.many(op, outputs, *x, shape=shape, **attrs)
            made = tuple(self.adopt(t) for t in hoisted)
            if self._record is not None:
                self._record.append(View(op, self._operands(x), list(made), attrs, since=self.opset))
            return made
        return super().many(op, outputs, *x, shape=shape, **attrs)

    def ends(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One node of its own for each output, since a subgraph gives out nothing twice and nothing from outside."""
        return [self._emit("Identity", 1, [t], t.shape, {})[0] for t in tensors]

    def needed(self, ends: Sequence[Tensor]) -> set[str]:
        """Names of all that the outputs depend on."""
        wanted = {t.name for t in ends}
        live(self.nodes, wanted)
        return wanted

    def graph(self, name: str, inputs: Sequence[Tensor], ends: Sequence[Tensor]) -> onnx.GraphProto:
        """The subgraph from `inputs` to `ends`, without nodes that no end needs."""
        nodes = [
            helper.make_node(n.op, [x.name for x in n.inputs], [y.name for y in n.outputs], name=n.name, **n.attrs)
            for n in live(self.nodes, {t.name for t in ends})
        ]
        return helper.make_graph(nodes, name, [described(t) for t in inputs], [described(t) for t in ends])


def described(t: Tensor, name: str = "") -> onnx.ValueInfoProto:
    """Name, type and shape of a subgraph's input or output."""
    if t.dtype is None:
        return onnx.ValueInfoProto(name=name or t.name)
    kind = helper.np_dtype_to_tensor_dtype(t.dtype)
    return helper.make_tensor_value_info(name or t.name, kind, listed(t.shape))


def inlined(
    b: Builder,
    graph: onnx.GraphProto,
    known: dict[str, Tensor | None],
    stem: str,
    nodes: tuple[str, ...],
    results: Mapping[str, Tensor] | None = None,
    done: Callable[[View], object] = bool,
) -> list[View]:
    """Emits the nodes of a subgraph once more and returns them as views.

    Args:
        b: Where they are emitted.
        graph: The subgraph.
        known: What its inputs and captured names stand for; filled with all that it makes.
        stem: Prefix of the views' names.
        nodes: The forward nodes that the views read.
        results: Tensors that the forward graph has already and that the views shall make.
        done: Called with each view before the next node is emitted.
    """
    gaps = [g for i, node in enumerate(graph.node) if (g := gap_of(node, f"{stem}/{named(node, i)}", b.opset))]
    if gaps:
        raise UnsupportedError("; ".join(f"{g.op} '{g.node}': {g.reason}" for g in gaps), gaps)
    known[""] = None
    views: list[View] = []
    known |= {i.name: b.const(numpy_helper.to_array(i)) for i in graph.initializer}
    for i, node in enumerate(graph.node):
        name = f"{stem}/{named(node, i)}"
        if node.op_type == "Constant":
            known[node.output[0]] = b.const(constant(node))
            continue
        x, captured = [known[n] for n in node.input], captured_names(node)
        if node.domain not in ("", "ai.onnx"):
            views += written(
                b,
                View(node.op_type, x, [None] * len(node.output), attributes(node), name, node.domain, b.opset, nodes),
                node,
                known,
                results or {},
                done,
            )
            continue
        made: Sequence[Tensor]
        if subgraphs(node):
            made = control(b, node, x, {n: t for n in captured if (t := known[n]) is not None})
        else:
            made = b.many(node.op_type, len(node.output), *x, **attributes(node))
        y = [(results or {}).get(n, t) if n else None for n, t in zip(node.output, made, strict=True)]
        known |= {n: t for n, t in zip(node.output, y, strict=True) if n}
        views.append(
            View(
                node.op_type,
                [*x, *(known[n] for n in captured)],
                y,
                attributes(node),
                name,
                since=b.opset,
                nodes=nodes,
                captured=tuple(captured),
            )
        )
        done(views[-1])
    return views


def written(
    b: Builder,
    view: View,
    node: onnx.NodeProto,
    known: dict[str, Tensor | None],
    results: Mapping[str, Tensor],
    done: Callable[[View], object],
) -> list[View]:
    """Emits the standard ops that a node of another domain stands for, and returns them as views.

    Raises:
        UnsupportedError: It is not known in this form.
    """
    with b.scope(view.name), b.recorded() as recorded:
        made = BODIES[(view.domain, view.op)](b, view)
    if made is None:
        gap = Gap(view.name, view.op, view.domain, view.since, "subgraph", "not known in this form")
        raise UnsupportedError(f"{view}: {gap.reason}", [gap])
    views: dict[str, View] = {}
    for i, v in enumerate(recorded):
        v.name, v.nodes = f"{view.name}/{v.op}_{i}", view.nodes
        if v.out().name not in views:
            views[v.out().name] = v
            done(v)
    for name, t in zip(node.output, made, strict=False):
        known[name] = t
        if name in results and t is not None:
            known[name] = results[name]
            views[name] = View("Identity", [t], [results[name]], {}, f"{view.name}/{name}", nodes=view.nodes)
    return list(views.values())


def named(node: onnx.NodeProto, i: int) -> str:
    """The name of a subgraph's node, which may have none."""
    return node.name or f"{node.op_type}_{i}"


def gap_of(node: onnx.NodeProto, name: str, opset: int) -> Gap | None:
    """Why a subgraph's node can't be emitted anew, None if it can."""
    domain = "" if node.domain in ("", "ai.onnx") else node.domain
    if node.op_type == "SequenceMap":
        reason = "it holds a subgraph of its own"
    elif (domain, node.op_type) in BODIES:
        return None
    elif domain or node.op_type in RANDOM:
        reason = f"its domain is {domain}" if domain else "it is random and can't be run once more"
    else:
        return None
    return Gap(name, node.op_type, domain, opset, "subgraph", reason)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes, text as str."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: [text(i) for i in v] if isinstance(v, list) else text(v) for k, v in values.items()}


def text(value: Any) -> Any:
    """Bytes as text; anything else as it is."""
    return value.decode() if isinstance(value, bytes) else value


def constant(node: onnx.NodeProto) -> np.ndarray:
    """The value of a Constant node."""
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(numpy_helper.to_array(value))
    return np.asarray(value, np.float32 if attribute.name.startswith("value_float") else np.int64)


def control(
    b: Builder, node: onnx.NodeProto, x: Sequence[Tensor | None], captured: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """Emits an If, Loop or Scan once more, its subgraphs reading what the captured names now stand for."""
    attrs = attributes(node)
    graphs = {k: renamed(b, v, captured) for k, v in attrs.items() if isinstance(v, onnx.GraphProto)}
    return b.typed(node.op_type, x, types_of(b, node.op_type, attrs, x, captured), **{**attrs, **graphs})


def types_of(
    b: Builder, op: str, attrs: Mapping[str, Any], x: Sequence[Tensor | None], captured: Mapping[str, Tensor]
) -> list[Type]:
    """Types of the outputs of an If, Loop or Scan."""
    if op == "If":
        either = [ends_of(b, attrs[k], [], captured) for k in ("then_branch", "else_branch")]
        return [(p[0] or q[0], common(p[1], q[1])) for p, q in zip(*either, strict=True)]
    if op == "Loop":
        counters: list[Type] = [(np.dtype(np.int64), ()), (np.dtype(np.bool_), ())]
        starts = [type_at(t) for t in x[2:]]
        ends = ends_of(b, attrs["body"], [*counters, *starts], captured)
        return [*ends[1 : len(x) - 1], *(stacked(t, 0) for t in ends[len(x) - 1 :])]
    count = len(x) - int(attrs["num_scan_inputs"])
    axes = attrs.get("scan_input_axes") or [0] * (len(x) - count)
    steps = [type_at(t, axis) for t, axis in zip(x[count:], axes, strict=True)]
    ends = ends_of(b, attrs["body"], [*(type_at(t) for t in x[:count]), *steps], captured)
    axes = attrs.get("scan_output_axes") or [0] * (len(ends) - count)
    return [*ends[:count], *(stacked(t, a) for t, a in zip(ends[count:], axes, strict=True))]


def type_at(t: Tensor | None, without: int | None = None) -> Type:
    """A tensor's type, of one step along an axis if one is given."""
    if t is None or t.shape is None or without is None:
        return (None, None) if t is None else (t.dtype, t.shape)
    at = without % len(t.shape)
    return t.dtype, t.shape[:at] + t.shape[at + 1 :]


def ends_of(b: Builder, graph: onnx.GraphProto, given: Sequence[Type], captured: Mapping[str, Tensor]) -> list[Type]:
    """Types of a subgraph's outputs: as it states them, else found by emitting its nodes for nothing."""
    stated = [type_and_shape(o.type) for o in graph.output]
    if all(dtype is not None for dtype, _ in stated):
        return stated
    trial = BodyBuilder(b, hoist=False)
    known: dict[str, Tensor | None] = {name: trial.adopt(t) for name, t in captured.items()}
    known |= {i.name: trial.input("trial", *t) for i, t in zip(graph.input, given, strict=True)}
    inlined(trial, graph, known, "trial", ())
    return [(None, None) if (t := known[o.name]) is None else (t.dtype, t.shape) for o in graph.output]


def common(p: Shape | None, q: Shape | None) -> Shape | None:
    """What two shapes agree on."""
    if p is None or q is None or len(p) != len(q):
        return None
    return tuple(i if i == j else None for i, j in zip(p, q, strict=True))


def stacked(t: Type, axis: int, length: Dim = None) -> Type:
    """The type of many values of one type behind each other along a new axis."""
    dtype, shape = t
    if shape is None:
        return dtype, None
    at = axis % (len(shape) + 1)
    return dtype, (*shape[:at], length, *shape[at:])


def renamed(b: Builder, graph: onnx.GraphProto, captured: Mapping[str, Tensor]) -> onnx.GraphProto:
    """A copy of a subgraph that reads other tensors from outside, its weights among them."""
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    names = {name: t.name for name, t in captured.items() if name in captured_in(graph)}
    rename(result, {**names, **weights_taken_out(b, result)})
    for output in result.output:
        if output.name in names:  # an outer value given out as it is
            result.node.append(helper.make_node("Identity", [names[output.name]], [f"{names[output.name]}/through"]))
            output.name = result.node[-1].output[0]
    return result


def weights_taken_out(b: Builder, graph: onnx.GraphProto) -> dict[str, str]:
    """Takes large constants out of a subgraph, so that they stand in the file once; what they are called outside."""
    taken: dict[str, str] = {}
    given_out = {o.name for o in graph.output}
    for node in list(graph.node):
        for inner in subgraphs(node):
            taken |= weights_taken_out(b, inner)
        large = node.op_type == "Constant" and node.attribute[0].HasField("t") and is_large(node.attribute[0].t)
        if large and node.output[0] not in given_out:
            taken[node.output[0]] = b.const(constant(node)).name
            graph.node.remove(node)
    for tensor in list(graph.initializer):
        if is_large(tensor) and tensor.name not in given_out:
            taken[tensor.name] = b.const(numpy_helper.to_array(tensor)).name
            graph.initializer.remove(tensor)
    return taken


def is_large(tensor: onnx.TensorProto) -> bool:
    """True for constants that are worth taking out."""
    return int(np.prod(tensor.dims)) > SMALL


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames what the nodes of a graph read, at any depth."""
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        for inner in subgraphs(node):
            rename(inner, names)
