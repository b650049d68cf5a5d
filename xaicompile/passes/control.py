"""If, Loop and Scan: their subgraphs read as programs of their own, explained by the same reverse loop.

The nodes of a subgraph are emitted anew inside the subgraph that holds its backward part, so the prediction's own node
stays as it is. A branch whose condition is known is read as if its nodes stood in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from xaicompile.backward import Picked
from xaicompile.errors import Gap, UnsupportedError
from xaicompile.facts import Facts, find_constants, fold
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.body import BodyBuilder, common, inlined
from xaicompile.ir.build import merged, type_and_shape
from xaicompile.ir.model import CONTROL
from xaicompile.passes import canonical, expand, sequences
from xaicompile.registry import info, stops

# Ops whose result is of the size of an input
ALIKE = {"Identity", "Cast", "Add", "Sub", "Mul", "Div", "Where", "Sum", "Transpose"}


def unpicked(view: View) -> Picked:
    """The rule of a view for which none has been chosen."""
    raise AssertionError(f"no rule was chosen for {view}")


@dataclass
class Body:
    """A subgraph as a program.

    Attributes:
        inputs: What stands for the subgraph's own inputs.
        outputs: Its outputs.
        views: Those through which a message can pass, in graph order.
        pick: The rule for each of them, set once rules are chosen.
    """

    program: Program
    inputs: list[Tensor]
    outputs: list[Tensor]
    facts: Facts
    views: list[View]
    pick: Callable[[View], Picked] = unpicked

    @property
    def builder(self) -> BodyBuilder:
        """Emits into the subgraph of the backward part."""
        assert isinstance(self.program.builder, BodyBuilder)
        return self.program.builder


def is_control(view: View) -> bool:
    """True for If, Loop and Scan."""
    return not view.domain and view.op in CONTROL


def take_branches(p: Program) -> bool:
    """Replaces every If whose condition is known by the nodes of the branch that is taken."""
    changed, again = False, True
    for view in p.views:
        if is_control(view) and view.op == "Loop":
            know_states(view)
    while again:
        changed |= sequences.run(p)
        views: list[View] = []
        for view in p.views:
            views += taken(p, view) or [view]
        again = views != p.views
        changed, p.views = changed or again, views
        if again:
            find_constants(p)
    return changed


def know_states(view: View) -> None:
    """Gives the final states of a Loop, of which shape inference says nothing, what start and body agree on."""
    for start, end, y in zip(view.x[2 : view.own], view.attrs["body"].output[1:], view.y, strict=False):
        if start is not None and y is not None and y.shape is None:
            y.shape = common(start.shape, type_and_shape(end.type)[1])


def taken(p: Program, view: View) -> list[View] | None:
    """The views of the branch that is always taken; None for any other node."""
    condition = view.x[0].value if view.op == "If" and is_control(view) and view.x[0] is not None else None
    if condition is None:
        return None
    graph = view.attrs["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
    known: dict[str, Tensor | None] = dict(zip(view.captured, view.x[view.own :], strict=True))
    results = {o.name: y for o, y in zip(graph.output, view.y, strict=True) if y is not None}
    with p.builder.scope(view.name):
        try:
            views = inlined(p.builder, graph, known, view.name, view.nodes, results, done=fold)
        except UnsupportedError:  # left to be reported with all others, if it has to be explained at all
            return None
        for name, y in results.items():
            if known[name] is not y:  # a constant, or a value from outside
                views.append(View("Identity", [known[name]], [y], {}, f"{view.name}/Identity", nodes=view.nodes))
    return views


def open_bodies(p: Program, facts: Facts, views: Sequence[View]) -> None:
    """Reads the subgraphs of every If, Loop and Scan among the views, at any depth."""
    for view in views:
        if is_control(view) and not view.bodies:
            branch = view.op == "If"
            graphs = [view.attrs[k] for k in (("then_branch", "else_branch") if branch else ("body",))]
            bodies = [attempted(p, facts, view, graph) for graph in graphs]
            view.bodies = tuple(body for body in bodies if body is not None)
            for body in view.bodies:
                open_bodies(body.program, body.facts, body.views)


def attempted(p: Program, facts: Facts, view: View, graph: onnx.GraphProto) -> Body | None:
    """One subgraph as a program, or None where it can't be read; the view then says why."""
    try:
        return opened(p, facts, view, graph)
    except UnsupportedError as error:
        gaps = error.gaps or (Gap(view.name, view.op, view.domain, view.since, "subgraph", str(error)),)
        view.gaps = (*view.gaps, *gaps)
        return None


def inside(views: Sequence[View]) -> list[View]:
    """The views, and behind each those of its subgraphs."""
    return [v for view in views for v in (view, *(inner for body in view.bodies for inner in inside(body.views)))]


def inside_facts(views: Sequence[View], facts: Facts) -> list[tuple[View, Facts]]:
    """The same, each with the facts of its graph."""
    found: list[tuple[View, Facts]] = []
    for view in views:
        found += [(view, facts), *(pair for body in view.bodies for pair in inside_facts(body.views, body.facts))]
    return found


def each_body(views: Sequence[View]) -> list[tuple[View, Body]]:
    """Every body at any depth, with the view that holds it, outer ones first."""
    return [pair for view in views for body in view.bodies for pair in ((view, body), *each_body(body.views))]


def opened(p: Program, facts: Facts, view: View, graph: onnx.GraphProto) -> Body:
    """One subgraph as a program."""
    b = BodyBuilder(p.builder, hoist=view.op != "If")
    sub = Program(p.source, p.opset, ())
    sub.builder, sub.domains = b, p.domains
    known: dict[str, Tensor | None] = {
        name: b.adopt(t) for name, t in zip(view.captured, view.x[view.own :], strict=True) if t is not None
    }
    adopted = [t for t in known.values() if t is not None]
    with b.scope(view.name):
        inputs = [formal(b, view, i, graph.input[i]) for i in range(len(graph.input))]
        known |= {i.name: t for i, t in zip(graph.input, inputs, strict=True)}
        sub.views = inlined(b, graph, known, view.name, view.nodes, done=fold)
    outputs = [t for o in graph.output if (t := known[o.name]) is not None]
    sub.tensors = {t.name: t for t in (*adopted, *inputs, *outputs)}
    sub.tensors |= {t.name: t for v in sub.views for t in (*v.x, *v.y) if t is not None}
    sub.outputs = outputs
    prepare(sub, {t.name for t in outputs})
    sub.tensors |= {t.name: t for v in sub.views for t in (*v.x, *v.y) if t is not None}
    inner = inner_facts(sub, facts, view, inputs, outputs, adopted)
    return Body(sub, inputs, outputs, inner, on_the_way(sub, inner, outputs))


def prepare(p: Program, keep: set[str]) -> None:
    """The passes over a program's views."""
    find_constants(p)
    take_branches(p)
    expand.run(p)
    canonical.run(p, keep)


def formal(b: BodyBuilder, view: View, i: int, stated: onnx.ValueInfoProto) -> Tensor:
    """What stands for input i of a subgraph, typed by what the node is given.

    A state keeps its shape from step to step: the steps' values are stacked for the way back.
    """
    dtype, shape = type_and_shape(stated.type)
    given = view.x[i] if i < view.own else None
    if given is not None:
        dtype, start = dtype or given.dtype, given.shape
        scanned = i - (view.own - int(view.attrs["num_scan_inputs"])) if view.op == "Scan" else -1
        if scanned >= 0 and start is not None:
            axis = (view.attrs.get("scan_input_axes") or [0] * (scanned + 1))[scanned] % len(start)
            start = start[:axis] + start[axis + 1 :]
        shape = merged(shape, start)
    if view.op == "Loop" and i < 2:
        dtype, shape = np.dtype(np.int64 if i == 0 else np.bool_), ()
    return b.input(f"input_{i}", dtype, shape)


def inner_facts(
    sub: Program, facts: Facts, view: View, inputs: list[Tensor], outputs: list[Tensor], adopted: list[Tensor]
) -> Facts:
    """Facts inside: a state is on the path if it is so at the start or after any step."""
    known = {t.name: facts.bounds(t) for t in adopted}
    first = 2 if view.op == "Loop" else 0
    path = {t.name for t in adopted if facts.on_path(t)}
    for i, t in enumerate(inputs):
        if i >= first and facts.on_path(view.x[i]):
            path.add(t.name)
    states = 0 if view.op == "If" else view.own - first - int(view.attrs.get("num_scan_inputs", 0))
    ends = outputs[1:] if view.op == "Loop" else outputs
    while True:
        found = Facts(sub, sorted(path), known=known)
        late = {
            s.name
            for s, e in zip(inputs[first : first + states], ends, strict=False)
            if found.on_path(e) and s.is_float and s.name not in path
        }
        if not late:
            break
        path |= late
    found.explained = facts.explained & path
    for s, e in zip(inputs[first : first + states], ends, strict=False):
        if s.name in path and (changes_shape(s, e) or grows(sub, s, e)):
            raise UnsupportedError(
                f"{view}: state {s!r} becomes {e!r}: no gradient where the shape changes from step to step"
            )
    return found


def changes_shape(before: Tensor, after: Tensor) -> bool:
    """True if two shapes can't be the same."""
    if before.shape is None or after.shape is None:
        return False
    pairs = zip(before.shape, after.shape, strict=False)
    return before.rank != after.rank or any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in pairs)


def grows(sub: Program, before: Tensor, after: Tensor) -> bool:
    """True if something is appended to a state in each step; of such a shape inference only says that it is unknown."""
    longer = {before.name: False}
    for view in sub.views:
        found = [longer[x.name] for x in view.x if x is not None and x.name in longer]
        if found and not view.domain:
            appended = view.op == "Concat" and len(view.x) > 1
            kept = view.op in ALIKE or info(view).derivative is not None
            longer |= {y.name: appended or (kept and any(found)) for y in view.y if y is not None}
    return longer.get(after.name, False)


def on_the_way(p: Program, facts: Facts, ends: Sequence[Tensor]) -> list[View]:
    """Views through which a message from the ends can reach an explained input, in graph order."""
    reached, found = {t.name for t in ends}, []
    for view in reversed(p.views):
        if any(y is not None and y.name in reached and facts.on_path(y) for y in view.y):
            found.append(view)
            stopped = stops(view)
            reached.update(x.name for i, x in enumerate(view.x) if x is not None and i not in stopped)
            reached.update(t.name for t in view.captures)
    return found[::-1]
