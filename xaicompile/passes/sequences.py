"""Sequences and optional values whose members are known when compiling, read as the tensors that they hold.

Exporters write them for lists of tensors (chunk, unbind, stack). A sequence whose length or positions only a run tells
stays what it is: an op without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from xaicompile.bodies.record import Recorder, infer
from xaicompile.errors import Gap, UnsupportedError
from xaicompile.facts import fold
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.ir.body import control, inlined
from xaicompile.ir.graph import captured_names
from xaicompile.vjp.shape import size_of, sized

AMBIGUOUS = "keepdims=0 beside a size: the standard ignores it, ONNX Runtime does not; leave out the size, which is 1"


@dataclass(frozen=True)
class Chunks:
    """A tensor cut along an axis into chunks of one size [1]; how many there are is not known."""

    x: Tensor
    axis: int
    size: Tensor
    squeezed: bool

    def at(self, b: Builder, i: int) -> Tensor | None:
        """One chunk, counted from the front."""
        if i < 0:
            return None
        part = b.Slice(self.x, self.size * i, self.size * (i + 1), [self.axis])
        return b.Squeeze(part, [self.axis]) if self.squeezed else part


@dataclass(frozen=True)
class Stack:
    """One tensor for each step of a loop, stacked along axis 0; how many there are is not known."""

    x: Tensor

    def at(self, b: Builder, i: int) -> Tensor:
        """One of them."""
        return b.Gather(self.x, b.const(np.asarray(i, np.int64)), axis=0)

    def joined(self, b: Builder, axis: int, new_axis: bool) -> Tensor | None:
        """All of them side by side, along an axis of theirs or a new one."""
        rank = self.x.rank
        if rank is None:
            return None
        at = axis % (rank if new_axis else rank - 1)
        moved = b.Transpose(self.x, perm=[*range(1, at + 1), 0, *range(at + 1, rank)])
        if new_axis:
            return moved
        behind = [b.shape_of(moved, at + 2)] if at + 2 < rank else []
        front = [b.shape_of(moved, 0, at)] if at else []
        return sized(b, moved, [*front, size_of(b, moved, at, at + 2), *behind])


Members = list[Tensor] | Chunks | Stack


def run(p: Program) -> bool:
    """Replaces what reads known sequences by views of their members. Returns whether there was anything."""
    if not any(view.op in SEQUENCES and not view.domain for view in p.views):
        return False
    state = Sequences(p)
    before = list(p.views)
    for view in before:
        infer(p, view)
        handler = HANDLERS.get(view.op) if not view.domain else None
        if handler is None or not handler(state, view):
            state.views.append(view)
    p.views = state.needed()
    return p.views != before


@dataclass
class Sequences:
    """The sweep over the views.

    Attributes:
        known: Members by the name of a sequence.
        optional: What optional values hold, by name; None for nothing.
        makers: The nodes that make what is known, in case something else reads it.
    """

    p: Program
    views: list[View] = field(default_factory=list)
    known: dict[str, Members] = field(default_factory=dict)
    optional: dict[str, Tensor | None] = field(default_factory=dict)
    makers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.p)

    def members(self, t: Tensor | None) -> list[Tensor] | None:
        """All members of a sequence, None if they are not known."""
        found = None if t is None else self.known.get(t.name)
        return found if isinstance(found, list) else None

    def holds(self, view: View, members: Members | None) -> bool:
        """Says what the view's output holds; the view itself stays until nothing reads it."""
        if members is not None:
            self.known[view.out().name] = members
            self.makers.add(view.out().name)
        return False

    def recorded(self, view: View, make: Callable[[Builder], Sequence[Tensor] | None]) -> list[Tensor] | None:
        """Emits tensors beside the view, as views."""
        with self.p.builder.scope(view.name), self.p.builder.recorded() as made:
            results = make(self.p.builder)
        if results is not None:
            self.views += self.recorder.views(view, made)
        return None if results is None else list(results)

    def becomes(self, view: View, make: Callable[[Builder], Tensor | None]) -> bool:
        """The view's output is what `make` emits."""
        with self.p.builder.scope(view.name), self.p.builder.recorded() as made:
            result = make(self.p.builder)
        if result is None:
            return False
        self.views += self.recorder.views(view, made, [result])
        return True

    def needed(self) -> list[View]:
        """The views without those makers of known sequences that nothing reads any more."""
        read = {t.name for t in self.p.outputs}
        kept = []
        for view in reversed(self.views):
            names = {y.name for y in view.y if y is not None}
            if not names <= self.makers or names & read:
                kept.append(view)
                read.update(t.name for t in (*view.x, *view.captures) if t is not None)
        return kept[::-1]


def position(view: View, i: int, default: int | None) -> int | None:
    """A position that is a constant; `default` where the input is left out."""
    if not view.has(i):
        return default
    value = view.inp(i).value
    return None if value is None else int(value.reshape(-1)[0])


def empty(state: Sequences, view: View) -> bool:
    """Nothing."""
    return state.holds(view, [])


def construct(state: Sequences, view: View) -> bool:
    """The inputs."""
    return state.holds(view, [x for x in view.x if x is not None])


def insert(state: Sequences, view: View) -> bool:
    """One more, at the end unless a position is given."""
    before = state.members(view.x[0])
    at = None if before is None else position(view, 2, len(before))
    if before is None or at is None:
        return False
    at += len(before) if at < 0 else 0
    return state.holds(view, [*before[:at], view.inp(1), *before[at:]])


def erase(state: Sequences, view: View) -> bool:
    """One less, the last unless a position is given."""
    before, at = state.members(view.x[0]), position(view, 1, -1)
    if not before or at is None:
        return False
    return state.holds(view, [t for i, t in enumerate(before) if i != at % len(before)])


def split(state: Sequences, view: View) -> bool:
    """Parts of given sizes, or of one size, 1 unless given; these lose the axis unless it is kept."""
    x, axis, sizes = view.inp(0), int(view.attr("axis")), view.x[1] if view.has(1) else None
    squeezed = sizes is None and not view.attr("keepdims", 1)
    if sizes is not None and sizes.rank == 0 and not view.attr("keepdims", 1):
        view.gaps = (Gap(view.name, view.op, "", view.since, "no rule", AMBIGUOUS),)
        return False
    length = x.shape[axis] if x.shape is not None else None
    step = 1 if sizes is None else int(sizes.value) if sizes.value is not None and sizes.value.ndim == 0 else None
    lengths: list[int] | Tensor | None = None
    if step and isinstance(length, int):
        lengths = [min(step, length - i) for i in range(0, length, step)]
        count = len(lengths)
    elif sizes is not None and sizes.rank == 1 and sizes.static:
        lengths, count = sizes, sizes.static[0]
    if lengths is not None:

        def parts(b: Builder) -> list[Tensor]:
            made = b.many("Split", count, x, lengths, axis=axis) if count else ()
            return [b.Squeeze(t, [axis]) for t in made] if squeezed else list(made)

        return state.holds(view, state.recorded(view, parts))
    if sizes is not None and sizes.rank != 0:
        return False
    b = state.p.builder
    with b.scope(view.name):
        size = b.const(np.ones(1, np.int64)) if sizes is None else b.Reshape(b.Cast(sizes, to=7), [1])
    return state.holds(view, Chunks(x, axis, size, squeezed))


def mapped(state: Sequences, view: View) -> bool:
    """The subgraph once for each member."""
    lists = [state.members(x) for x in view.x]
    first, graph, b = lists[0], view.attrs["body"], state.p.builder
    if first is None or any(
        x is not None and x.dtype is None and m is None for x, m in zip(view.x, lists, strict=True)
    ):
        return False
    results: list[list[Tensor]] = [[] for _ in view.y]
    views: list[View] = []
    for i in range(len(first)):
        given = [x if m is None else m[i] for x, m in zip(view.x, lists, strict=True)]
        known: dict[str, Tensor | None] = {t.name: t for t in view.captures}
        known |= {formal.name: t for formal, t in zip(graph.input, given, strict=True)}
        with b.scope(f"{view.name}/{i}"):
            try:
                views += inlined(b, graph, known, f"{view.name}/{i}", view.nodes, done=fold)
            except UnsupportedError as error:
                view.gaps = error.gaps
                return False
        for found, o in zip(results, graph.output, strict=True):
            t = known[o.name]
            assert t is not None
            found.append(t)
    state.views += views
    for y, found in zip(view.y, results, strict=True):
        if y is not None:
            state.known[y.name] = found
            state.makers.add(y.name)
    return False


def at(state: Sequences, view: View) -> bool:
    """One member."""
    i, found = position(view, 1, None), state.known.get(view.inp(0).name)
    if i is None or found is None:
        return False
    if isinstance(found, Chunks | Stack):
        cut = found
        return state.becomes(view, lambda b: cut.at(b, i))
    return -len(found) <= i < len(found) and state.becomes(view, lambda _: found[i])


def concat(state: Sequences, view: View) -> bool:
    """All members side by side, along an axis of theirs or a new one."""
    found, axis, new = state.members(view.x[0]), int(view.attr("axis")), bool(view.attr("new_axis"))
    stack = state.known.get(view.inp(0).name)
    if isinstance(stack, Stack):
        return state.becomes(view, lambda b: stack.joined(b, axis, new))
    if not found:
        return False

    def make(b: Builder) -> Tensor:
        parts = [b.Unsqueeze(t, [axis]) for t in found] if new else found
        return b.Concat(*parts, axis=axis)

    return state.becomes(view, make)


def length(state: Sequences, view: View) -> bool:
    """A constant."""
    found = state.members(view.x[0])
    if found is not None:
        settle(view, np.asarray(len(found), np.int64))
    return False


def settle(view: View, value: np.ndarray) -> None:
    """The view's output is a constant."""
    y = view.out()
    y.value, y.constant, y.dtype, y.shape = value, True, value.dtype, value.shape


def identity(state: Sequences, view: View) -> bool:
    """The same."""
    x = view.inp(0)
    if x.name in state.optional:
        state.optional[view.out().name] = state.optional[x.name]
    return state.holds(view, state.known.get(x.name)) if x.name in state.known else False


def optional(state: Sequences, view: View) -> bool:
    """A value that may be missing, here known to be there or not."""
    x = view.x[0] if view.x else None
    state.optional[view.out().name] = x
    state.makers.add(view.out().name)
    return state.holds(view, state.known.get(x.name)) if x is not None else False


def has_element(state: Sequences, view: View) -> bool:
    """A constant, where it is known."""
    x = view.x[0] if view.x else None
    if x is None or x.name in state.optional or x.dtype is not None or x.name in state.known:
        there = x is not None and (x.name not in state.optional or state.optional[x.name] is not None)
        settle(view, np.asarray(there))
    return False


def get_element(state: Sequences, view: View) -> bool:
    """The value."""
    x = view.inp(0)
    if x.name in state.known:
        return state.holds(view, state.known[x.name])
    held = state.optional.get(x.name)
    return held is not None and state.becomes(view, lambda _: held)


def loop(state: Sequences, view: View) -> bool:
    """A list that each step appends to is an output of every step, if it is empty before."""
    b, graph = state.p.builder, view.attrs["body"]
    lists = [k for k in range(view.own - 2) if state.members(view.x[2 + k]) == [] and appended(graph, k) is not None]
    if not lists:
        return False
    body = onnx.GraphProto()
    body.CopyFrom(graph)
    kept = [k for k in range(view.own - 2) if k not in lists]
    new = [stated(graph.output[1 + k], f"{appended(graph, k)}/each") for k in lists]
    copies = [helper.make_node("Identity", [appended(graph, k)], [o.name]) for k, o in zip(lists, new, strict=True)]
    nodes = [n for n in graph.node if n.output[0] not in {graph.output[1 + k].name for k in lists}]
    del body.node[:], body.input[:], body.output[:]
    body.node.extend([*nodes, *copies])
    body.input.extend([*graph.input[:2], *(graph.input[2 + k] for k in kept)])
    results = [graph.output[0], *(graph.output[1 + k] for k in kept), *graph.output[view.own - 1 :]]
    body.output.extend([*results, *new])
    own = [*view.x[:2], *(view.x[2 + k] for k in kept)]
    node = helper.make_node("Loop", ["" if x is None else x.name for x in own], [], body=body)
    node.output.extend(f"y{i}" for i in range(len(body.output) - 1))
    captured = {n: t for n, t in zip(view.captured, view.x[view.own :], strict=True) if t is not None}
    with b.scope(view.name):
        made = control(b, node, own, captured)
    y = [view.y[k] for k in kept] + list(view.y[view.own - 2 :])
    stacks = made[len(y) :]
    state.views.append(view.varied(x=[*own, *view.x[view.own :]], y=[*y, *stacks], attrs={**view.attrs, "body": body}))
    for k, t in zip(lists, stacks, strict=True):
        held = view.y[k]
        if held is not None:
            state.known[held.name] = Stack(t)
    return True


def appended(graph: onnx.GraphProto, k: int) -> str | None:
    """What each step appends to state k; None if it does something else to it."""
    before, after = graph.input[2 + k].name, graph.output[1 + k].name
    readers = [n for n in graph.node if before in (*n.input, *captured_names(n))]
    if len(readers) != 1 or readers[0].op_type != "SequenceInsert" or readers[0].output[0] != after:
        return None
    x = readers[0].input
    given_out = sum(o.name == after for o in graph.output) + sum(o.name == before for o in graph.output)
    elsewhere = any(after in (*n.input, *captured_names(n)) for n in graph.node)
    return x[1] if x[0] == before and not any(x[2:]) and given_out == 1 and not elsewhere else None


def stated(o: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A member of a sequence as an output of its own."""
    return onnx.ValueInfoProto(name=name, type=o.type.sequence_type.elem_type)


HANDLERS: dict[str, Callable[[Sequences, View], bool]] = {
    "ConcatFromSequence": concat,
    "Identity": identity,
    "Loop": loop,
    "Optional": optional,
    "OptionalGetElement": get_element,
    "OptionalHasElement": has_element,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SequenceMap": mapped,
    "SplitToSequence": split,
}
SEQUENCES = set(HANDLERS) - {"Identity", "Loop", "OptionalGetElement"}  # ops that nothing else covers
