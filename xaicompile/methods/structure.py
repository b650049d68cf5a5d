"""Where a graph network passes messages between nodes: its interaction layers (spec section 11).

A tensor is structure if it is named as such (an input, a constant, weights of attention) or made of structure alone. An
op mixes nodes if it multiplies data by structure (a dense adjacency), or gathers data at its places and adds it up at
others (lists of edges). Behind each interaction stands a tensor that all relevance passes through: there walks are told
apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir import Program, Tensor, View
from xaicompile.passes import control
from xaicompile.registry import nearest
from xaicompile.samples import Known, MixedError, back, follow, shaped
from xaicompile.vjp.einsum import DOTS, terms_of

ATTENTION = "attention"  # names all weights of attention
MOST = 8  # constants that an error names
MIXING = ("MatMul", "Gemm", "Einsum", "Gather", "ScatterElements", "ScatterND")  # what may pass messages by structure


@dataclass(frozen=True)
class Mix:
    """An op that passes messages.

    Attributes:
        at: Which of its inputs is structure.
        axis: The nodes' or edges' axis in its output, counted from the back.
    """

    view: View
    at: int
    axis: int


@dataclass(frozen=True)
class Interaction:
    """One interaction layer.

    Attributes:
        mixes: The ops that pass messages.
        state: The tensor behind them that all relevance passes through.
        axis: The nodes' axis in it, counted from the back.
    """

    mixes: Sequence[Mix]
    state: Tensor
    axis: int


def names_of(p: Program, names: str) -> list[str]:
    """The structure, written with commas between: inputs, what no input changes, inner tensors, `attention`.

    Raises:
        RuleError: None is named, or there is no such tensor.
    """
    found, inputs = [name for name in names.split(",") if name], [t.name for t in p.inputs if t.name in p.required]
    fixed = {t.name: t for t in constants(p, inputs)}
    held = [t.name for t in fixed.values() if may_be_structure(t)]
    if not found:
        known = [*inputs, *held[:MOST], *(["..."] if len(held) > MOST else [])]
        raise RuleError(
            f"gnn-lrp: name the input or constant that holds the graph with --structure ({', '.join(known)})"
        )
    inner = {y.name for view in p.views for y in view.y if y is not None and y.is_float}
    for name in found:
        if name not in inputs and name not in fixed and name not in inner and name != ATTENTION:
            raise nearest(name, [*inputs, *held[:MOST]], "structure input or constant")
    return found


def taken_as_given(p: Program, names: Sequence[str]) -> list[str]:
    """Lets the ops read a copy of inner tensors that are structure, through which nothing flows back.

    Returns:
        The structure, with the copies in place of such tensors and of the word `attention`.

    Raises:
        RuleError: No output of a Softmax multiplies values.
    """
    b, made = p.builder, {y.name: y for view in p.views for y in view.y if y is not None and not y.constant}
    soft = {view.out().name: b.Identity(view.out()) for view in p.views if view.op == "Softmax"}
    left = {view.inp(0).name for view in p.views if view.op == "MatMul"}
    weights = [name for name, copy in soft.items() if left & {name, copy.name}]
    if ATTENTION in names and ATTENTION not in p.tensors and not weights:
        raise RuleError(
            f"gnn-lrp: --structure {ATTENTION} is the Softmax whose outputs multiply values, and there is none"
        )
    every = [n for name in names for n in (weights if name == ATTENTION and name not in p.tensors else [name])]
    copies = {name: b.Identity(made[name]) for name in every if name in made}
    for i, view in enumerate(p.views):
        if any(x is not None and x.name in copies for x in view.x):
            p.views[i] = view.varied(x=[x and copies.get(x.name, x) for x in view.x])
    return [copies[name].name if name in copies else name for name in every]


def constants(p: Program, inputs: Sequence[str]) -> list[Tensor]:
    """What the ops read that no input changes."""
    changed, found = set(inputs), dict[str, Tensor]()
    for view in p.views:
        reads = [t for t in (*view.x, *view.captures) if t is not None]
        if any(t.name in changed for t in reads):
            changed.update(y.name for y in view.y if y is not None)
        found |= {t.name: t for t in reads if t.name not in changed}
    return list(found.values())


def may_be_structure(t: Tensor) -> bool:
    """True for square matrices, and for lists of whole numbers."""
    sizes = t.static or ()
    whole = t.dtype is not None and t.dtype.kind in "iu"
    return (len(sizes) in (1, 2) and whole and sizes[-1] > 1) or (len(sizes) == 2 and sizes[0] == sizes[1] > 1)


def as_if_fed(p: Program, names: Sequence[str]) -> None:
    """Takes constants that are structure for inputs, so that no op takes them for its weights."""
    fed = set(names)
    for view in p.views:
        reads = [t for t in (*view.x, *view.captures) if t is not None]
        if view.op not in ("Shape", "Size") and any(t.name in fed for t in reads):
            fed.update(y.name for y in view.y if y is not None and y.constant)
        for t in (*reads, *(y for y in view.y if y is not None)):
            if t.name in fed:
                t.constant, t.value = False, None


def made_of(p: Program, facts: Facts, names: Sequence[str]) -> set[str]:
    """Names of tensors that depend on structure, and not on the nodes' features."""
    found = set(names)
    for view in p.views:
        reads = [t for t in (*view.x, *view.captures) if t is not None]
        made = [y.name for y in view.y if y is not None and not facts.on_path(y)]
        if any(t.name in found for t in reads):
            found.update(made)
    return found


def interactions(
    p: Program, facts: Facts, start: Tensor, end: Tensor, names: Sequence[str], called: str
) -> list[Interaction]:
    """The interaction layers in order.

    Args:
        called: How errors call the structure.

    Raises:
        RuleError: There are none, or nodes can't be told apart in front of the last of them.
    """
    structure, views = made_of(p, facts, names), control.on_the_way(p, facts, [end])
    narrow = bottlenecks(views, facts, start, end)
    axes, edges = {start.name: -2}, set[str]()
    known = Known((start.shape or (None, None))[-2], shaped(p.views))
    found: list[Interaction] = []
    mixes: list[Mix] = []
    mixed = ""
    for view in views:
        data = [x.name for x in view.x if x is not None and facts.on_path(x)]
        axis = mixed_axis(view, facts, structure, axes)
        if axis is None:
            if mixed and view.op in MIXING and not any(name in axes for name in data) and reads(view, structure):
                raise RuleError(f"gnn-lrp: in front of {view} nodes can't be told apart: {mixed}")
            try:
                follow(axes, [view], facts, known)
            except MixedError as error:
                mixed = mixed or str(error)
            if any(name in edges for name in data):
                edges.update(y.name for y in view.y if y is not None)
        else:
            at = next(i for i, x in enumerate(view.x) if x is not None and x.name in structure)
            mixes.append(Mix(view, at, axis))
            axes[view.out().name] = axis
            if view.op.startswith("Gather"):
                edges.add(view.out().name)
        y = narrow.get(view.name)
        if y is not None and mixes and y.name in axes and y.name not in edges:
            found.append(Interaction(mixes, y, axes[y.name]))
            mixes = []
    if not found or mixes:
        where = (
            f"behind {mixes[0].view} no tensor holds all that goes on" if mixes else mixed or "no op mixes nodes by it"
        )
        raise RuleError(f"gnn-lrp: no interaction layer of '{called}': {where}")
    return found


def reads(view: View, structure: set[str]) -> bool:
    """True if the view reads structure."""
    return any(x is not None and x.name in structure for x in view.x)


def mixed_axis(view: View, facts: Facts, structure: set[str], axes: dict[str, int]) -> int | None:
    """The nodes' (or edges') axis in the output of an op that mixes nodes; None for one that does not."""
    x = [t for t in view.x if t is not None]
    given, data = [t.name in structure for t in x], [facts.on_path(t) for t in x]
    if view.domain or len(x) < 2 or not any(given) or not any(data):
        return None
    at = [axes.get(t.name) for t in x]
    if view.op in ("MatMul", "Gemm") and given[0] and at[1] == -2 and not view.attr("transB"):
        return -2
    if view.op == "MatMul" and given[1] and at[0] == -1:  # nodes as columns
        return -1
    if view.op == "Einsum" and len(x) == 2:
        terms, result = terms_of(view.attr("equation"))
        i = data.index(True)
        axis = at[i]
        if axis is None or DOTS in "".join((*terms, result)) or terms[i][axis] in result:
            return None
        receiver = [c for c in terms[1 - i] if c in result and c not in terms[i]]
        return result.index(receiver[0]) - len(result) if len(receiver) == 1 else None
    if view.op == "Gather" and given[1] and at[0] is not None and x[1].rank == 1:
        axis = int(view.attr("axis"))
        return at[0] if (axis if axis < 0 else back(x[0], axis)) == at[0] else None
    if view.op.startswith("Scatter") and len(x) == 3 and given[1] and at[2] is not None:
        return at[2]
    return None


def bottlenecks(views: Sequence[View], facts: Facts, start: Tensor, end: Tensor) -> dict[str, Tensor]:
    """By view, the tensor that all relevance passes through once the view is behind; most views have none."""
    last: dict[str, int] = {end.name: len(views)}
    for i, view in enumerate(views):
        last |= {x.name: max(i, last.get(x.name, i)) for x in view.x if x is not None and facts.on_path(x)}
    live, found = {start.name: start}, {}
    for i, view in enumerate(views):
        live |= {y.name: y for y in view.y if y is not None and facts.on_path(y)}
        live = {name: t for name, t in live.items() if last.get(name, -1) > i}
        if len(live) == 1:
            found[view.name] = next(iter(live.values()))
    return found
