"""Tensors, views and programs: what passes and rules see of a graph."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from xaicompile.errors import Gap, ModelError

if TYPE_CHECKING:
    from xaicompile.ir.build import Builder
    from xaicompile.ir.model import Source
    from xaicompile.passes.control import Body

Dim = int | str | None
Shape = tuple[Dim, ...]


class Tensor:
    """A value in the graph: a name, a dtype, a shape and, for small constants, its numbers.

    Arithmetic on tensors emits nodes through the program's builder, so a derivative reads like its formula:
    `1 - y * y`.

    Attributes:
        var: The graph library's tensor; its name is unique in the program.
        dtype: numpy dtype, or None where inference found none.
        shape: One entry per axis (number, symbol, or None for unknown); None if the rank is unknown.
        value: The numbers of a small constant (at most 4096 elements), else None.
        constant: True if no graph input reaches this tensor.
    """

    __slots__ = ("builder", "constant", "dtype", "shape", "value", "var")

    def __init__(
        self,
        var: gs.Tensor,
        builder: Builder,
        dtype: np.dtype[Any] | None,
        shape: Shape | None,
        value: np.ndarray | None = None,
        constant: bool = False,
    ) -> None:
        self.var, self.builder, self.dtype, self.shape = var, builder, dtype, shape
        self.value, self.constant = value, constant or value is not None

    @property
    def name(self) -> str:
        """The tensor's unique name."""
        return str(self.var.name)

    @property
    def rank(self) -> int | None:
        """Number of axes, None if unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape where every axis is a number, else None."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def is_float(self) -> bool:
        """True for float16, float32 and float64 (and bfloat16, which numpy does not know)."""
        return self.dtype is not None and (self.dtype.kind == "f" or "float" in str(self.dtype))

    def __repr__(self) -> str:
        dims = "?" if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"

    def __add__(self, other: Operand) -> Tensor:
        return self.builder.op("Add", self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return self.builder.op("Add", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return self.builder.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return self.builder.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return self.builder.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return self.builder.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return self.builder.op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return self.builder.op("Div", other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return self.builder.op("Pow", self, other)

    def __neg__(self) -> Tensor:
        return self.builder.op("Neg", self)

    def __gt__(self, other: Operand) -> Tensor:
        return self.builder.op("Greater", self, other)

    def __lt__(self, other: Operand) -> Tensor:
        return self.builder.op("Less", self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return self.builder.op("GreaterOrEqual", self, other)

    def __le__(self, other: Operand) -> Tensor:
        return self.builder.op("LessOrEqual", self, other)


Operand = Tensor | float | int | bool | np.ndarray | Sequence[int]


@dataclass(eq=False)
class View:
    """A node, a pattern of nodes read as one op, or a variation of either that is in no graph.

    Attributes:
        op: Operator name; patterns carry the name of the standard op that they compute.
        x: Inputs; None where an optional input is left out.
        y: Outputs; None where an optional output is left out.
        nodes: Names of the forward nodes that this view reads.
        captures: Outer tensors that subgraphs of the node read. Those of If, Loop and Scan are inputs of the view, the
            last ones, since messages pass through them.
        captured: The names by which those subgraphs know the captured inputs.
        bodies: The subgraphs read as programs of their own, once the node is known to be explained.
        gaps: What in it can't be explained, where it is not just its operator.
    """

    op: str
    x: list[Tensor | None]
    y: list[Tensor | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    since: int = 18
    nodes: tuple[str, ...] = ()
    captures: tuple[Tensor, ...] = ()
    captured: tuple[str, ...] = ()
    bodies: tuple[Body, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def own(self) -> int:
        """How many of the inputs are the node's own, not captured."""
        return len(self.x) - len(self.captured)

    def attr(self, key: str, default: Any = None) -> Any:
        """The attribute's value, else `default`, else the default that the op's schema states."""
        if key in self.attrs:
            return self.attrs[key]
        if default is not None:
            return default
        schema = schema_of(self.op, self.domain, self.since)
        if schema is not None and key in schema.attributes:
            stated = schema.attributes[key].default_value
            if stated.type:
                value = onnx.helper.get_attribute_value(stated)
                return value.decode() if isinstance(value, bytes) else value
        return None

    def varied(self, **changes: Any) -> View:
        """A copy with other inputs, outputs or attributes, for rules: it is in no graph."""
        return replace(self, **changes)

    def out(self, i: int = 0) -> Tensor:
        """Output `i`, which must be there."""
        y = self.y[i]
        assert y is not None, f"{self.name} has no output {i}"
        return y

    def inp(self, i: int = 0) -> Tensor:
        """Input `i`, which must be there."""
        x = self.x[i]
        assert x is not None, f"{self.name} has no input {i}"
        return x

    def has(self, i: int) -> bool:
        """True if the optional input `i` is given."""
        return i < len(self.x) and self.x[i] is not None

    def __repr__(self) -> str:
        return f"{self.op} '{self.name}'"


def schema_of(op: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """The op's schema in force at an opset version, None if there is none."""
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


class Program:
    """A source model and what is being emitted beside it.

    Attributes:
        source: The source model, its path and hash.
        views: The forward graph in topological order; passes may replace runs of nodes by one view.
        tensors: Every tensor of the forward graph by name.
        inputs: The graph inputs that a user must feed.
        outputs: The graph outputs, in order.
        opset: Version of the standard domain.
        builder: Emits new nodes.
        notes: What the user should know about how the source was read.
        domains: Opset version by domain.
        skeleton: The source model without large weights, inlined, raised and typed.
        required: Names of the graph inputs without a default.
        passing: Names of views whose relevance comes from distances, and passes also where their output is 0.
        hidden: Tensors inside a view that reads several nodes as one, by name.
    """

    def __init__(self, source: Source, opset: int, names: Iterable[str]) -> None:
        from xaicompile.ir.build import Builder

        self.source, self.opset = source, opset
        self.views: list[View] = []
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.notes: list[str] = []
        self.domains: dict[str, int] = {}
        self.skeleton = onnx.ModelProto()
        self.required: list[str] = []
        self.hidden: dict[str, View] = {}
        self.passing: set[str] = set()
        self.builder: Builder = Builder(opset, names)

    def producers(self) -> dict[str, View]:
        """View by the name of a tensor that it makes."""
        return {y.name: v for v in self.views for y in v.y if y is not None}

    def consumers(self) -> Mapping[str, list[View]]:
        """Views by the name of a tensor that they read; a view that reads it twice stands there twice."""
        found: dict[str, list[View]] = defaultdict(list)
        for view in self.views:
            for x in (*view.x, *view.captures):
                if x is not None:
                    found[x.name].append(view)
        return found


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Outer names that the node's subgraphs read, at any depth, each once."""
    return list(dict.fromkeys(name for graph in subgraphs(node) for name in captured_in(graph)))


def captured_in(graph: onnx.GraphProto) -> list[str]:
    """Names that a subgraph reads from the graphs around it, each once."""
    found: dict[str, None] = {}
    inner = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    for child in graph.node:
        for name in (*child.input, *captured_names(child)):
            if name and name not in inner:
                found[name] = None
        inner.update(child.output)
    found |= {output.name: None for output in graph.output if output.name not in inner}
    return list(found)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    return [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else ()))]


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name of nodes and values in a graph and its subgraphs."""
    found = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        found.update((node.name, *node.input, *node.output))
        for inner in subgraphs(node):
            found |= names_in(inner)
    return found


def reads(node: gs.Node) -> list[str]:
    """Names that a node of the graph library reads, by its subgraphs too."""
    inside = [v for v in node.attrs.values() if isinstance(v, onnx.GraphProto)]
    return [x.name for x in node.inputs] + [name for graph in inside for name in captured_in(graph)]


def live(nodes: Sequence[gs.Node], wanted: set[str]) -> list[gs.Node]:
    """The nodes that the wanted tensors need, in the order given; `wanted` grows by all that they read."""
    kept = []
    for node in reversed(nodes):
        if any(y.name in wanted for y in node.outputs):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def sorted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The graph's nodes in topological order, kept as they stand where that is one already.

    Raises:
        ModelError: A node reads a tensor that nothing makes, or the graph has a cycle.
    """
    nodes = list(graph.node)
    reads = [{n for n in (*node.input, *captured_names(node)) if n} for node in nodes]
    known = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    known |= {i.values.name for i in graph.sparse_initializer}
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    after: dict[int, list[int]] = defaultdict(list)
    waiting = []
    for i, names in enumerate(reads):
        lost = sorted(n for n in names if n not in known and n not in maker)
        if lost:
            raise ModelError(f"{label(nodes[i])} reads '{lost[0]}', which no node, input or initializer makes")
        makers = {maker[n] for n in names if n not in known}
        waiting.append(len(makers))
        for m in makers:
            after[m].append(i)
    if all(maker.get(n, -1) < i for i, names in enumerate(reads) for n in names):
        return nodes
    ready, order = deque(i for i, n in enumerate(waiting) if n == 0), []
    while ready:
        i = ready.popleft()
        order.append(i)
        for j in after[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    if len(order) < len(nodes):
        stuck = [label(nodes[i]) for i, n in enumerate(waiting) if n > 0]
        raise ModelError(f"the graph has a cycle through {', '.join(stuck[:5])}{' ...' if len(stuck) > 5 else ''}")
    return [nodes[i] for i in order]


def label(node: onnx.NodeProto) -> str:
    """How messages name a node."""
    domain = f"{node.domain}." if node.domain else ""
    return f"{domain}{node.op_type} '{node.name or (node.output[0] if node.output else '?')}'"
