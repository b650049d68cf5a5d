"""Do samples stay apart between the explained inputs and output, and which axis of each tensor holds them?

Where it is proven that they do, the ledger is kept for each sample; else for all of them together: the nodes of a
graph pass messages to each other, so that what one of them hands on does not sum to what it got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xaicompile import registry
from xaicompile.facts import Facts
from xaicompile.ir import Tensor, View
from xaicompile.ir.graph import Dim
from xaicompile.vjp.einsum import DOTS, terms_of
from xaicompile.vjp.shape import known_ints

Axes = dict[str, int]  # the samples' axis by tensor, counted from the back as broadcasting does: -1 is the last
Given = Mapping[int, int]  # the samples' axis by input of a view

ENDLESS = 10**9  # what exporters write for the end of an axis

# fmt: off
ELEMENTWISE = {
    "Add", "Cast", "CastLike", "Div", "Dropout", "Expand", "Identity", "Max", "Mean", "Min", "Mod", "Mul", "Neg",
    "PRelu", "Pow", "QuantizeLinear", "Sub", "Sum", "Where",
}
FIRST = {  # samples are axis 0 by definition
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "DepthToSpace", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "GridSample", "GroupNormalization", "InstanceNormalization", "LRN", "LpPool",
    "MaxPool", "MaxUnpool", "Resize", "SpaceToDepth",
    "ClusterEvidence", "SoftMin", "SquaredDistance",  # as which neuralized models are read
}
AXIS = {  # work along the axis that an attribute names
    "Concat", "GatherElements", "LogSoftmax", "LpNormalization", "ScatterElements", "Softmax", "Split",
    "TensorScatter", "TopK",
}
# fmt: on


class MixedError(Exception):
    """Behind some node samples can't be told apart; the text says why."""


class MetError(MixedError):
    """It is certain that samples do not stay apart: in another batch the result of each is another."""


class SteppedError(MixedError):
    """A loop goes along what was taken for the samples' axis: it is time."""


@dataclass
class Samples:
    """What is known about samples.

    Attributes:
        axes: The samples' axis in the tensors on the way, counted from the back.
        mixed: Why samples can't be told apart, "" if they are.
        views: The views on the way by name.
        stepped: Whether a loop goes along the axis.
        met: Whether it is certain that they do not stay apart.
    """

    axes: Axes = field(default_factory=dict)
    mixed: str = ""
    views: dict[str, View] = field(default_factory=dict)
    stepped: bool = False
    met: bool = False

    def axis(self, node: str, amount: Tensor) -> int:
        """The samples' axis in what a node absorbs, which is shaped like an output or input of it; 0 if unknown."""
        view = self.views.get(node)
        near = [] if view is None else [t for t in (*view.y, *view.x) if t is not None and t.rank == amount.rank]
        known = [t for t in near if t.name in self.axes]
        known.sort(key=lambda t: t.shape != amount.shape)
        return front(known[0], self.axes[known[0].name]) if known else 0


@dataclass(frozen=True)
class Known:
    """What is known besides.

    Attributes:
        size: Size or symbol of the samples' axis.
        shaped: Tensors that shapes and constants decide, the constants themselves left out.
    """

    size: Dim
    shaped: frozenset[str]


def find(views: Sequence[View], facts: Facts, starts: Iterable[Tensor], end: Tensor, axis: int = 0) -> Samples:
    """Follows the samples from where the explained inputs begin, along `axis`, to the explained tensor.

    Taken for granted is what exporters make of a model for any number of samples: a Reshape that leaves the axes in
    front as they are leaves the samples whole, and so do indices and amounts that are worked out from shapes.
    """
    found = Samples(views={v.name: v for v in views})
    starts = list(starts)
    size = (end.shape or (None,))[0] if not axis else (starts[0].shape or (None,) * (axis + 1))[axis]
    known = Known(size, shaped(facts.program.views))
    try:
        for start in starts:
            found.axes[start.name] = back(start, axis)
        follow(found.axes, views, facts, known)
        if not axis and end.name in found.axes and front(end, found.axes[end.name]):
            raise MetError(f"axis 0 of '{end.name}' is none of samples")
    except MixedError as error:
        found.mixed, found.stepped = str(error), isinstance(error, SteppedError)
        found.met = isinstance(error, MetError)
    return found


def shaped(views: Iterable[View]) -> frozenset[str]:
    """Tensors that no input's values decide, but shapes do."""
    found: set[str] = set()
    for view in views:
        reads = [t for t in (*view.x, *view.captures) if t is not None and not t.constant]
        if view.op in ("Shape", "Size") or (reads and all(t.name in found for t in reads)):
            found.update(y.name for y in view.y if y is not None)
    return frozenset(found)


def follow(axes: Axes, views: Iterable[View], facts: Facts, known: Known) -> None:
    """Finds the samples' axis in every output of the views.

    Raises:
        MixedError: Samples meet.
    """
    for view in views:
        stopped = registry.stops(view)
        given = {
            i: axes[x.name]
            for i, x in enumerate(view.x)
            if x is not None and i not in stopped and facts.on_path(x) and x.name in axes
        }
        if view.bodies:
            inside(axes, view, known)
        elif given:
            through(axes, view, given, known)


def through(axes: Axes, view: View, given: Given, known: Known) -> None:
    """One view without subgraphs."""
    row = registry.info(view)
    if view.op in PRODUCTS and not view.domain:
        axis = PRODUCTS[view.op](view, given)
    else:
        axis = agreed(view, given.values())
        if view.domain or not (row.derivative or view.op in ELEMENTWISE):
            axis = moved(view, axis, known)
    axes.update({y.name: axis for y in view.y if y is not None})


def agreed(view: View, axes: Iterable[int]) -> int:
    """The one axis that all have."""
    first, *others = set(axes)
    if others:
        raise MixedError(f"{view} joins the samples' axis with another")
    return first


def front(t: Tensor, axis: int) -> int:
    """An axis counted from the back, counted from the front."""
    if t.rank is None:
        raise MixedError(f"the rank of '{t.name}' is not known")
    return t.rank + axis


def back(t: Tensor, axis: int) -> int:
    """An axis counted from the front, counted from the back."""
    return axis - front(t, 0)


# --- operators --------------------------------------------------------------------------------------------------------


def moved(view: View, axis: int, known: Known) -> int:
    """The samples' axis behind an operator that works along axes, or moves them."""
    x, y = view.inp(0), view.out(0)
    at = front(x, axis)
    if view.op in FIRST:
        if view.op == "BatchNormalization" and view.attr("training_mode"):
            raise MetError(f"{view} takes its mean over samples")
        if at:
            raise MixedError(f"{view} takes another axis for that of the samples")
        return back(y, 0)
    if view.op in ("Reshape", "Flatten"):
        return reshaped(view, at, known.size)
    if view.op == "Transpose":
        perm = view.attrs.get("perm") or range(front(x, 0))[::-1]
        return back(y, list(perm).index(at))
    worked = along(view)
    if (worked is None or at in worked) and view.op in ("Gather", "Pad", "Slice") and by_shapes(view, known):
        return axis if view.op != "Gather" else back(y, at)
    if worked is None:
        raise MixedError(f"what {view} does with samples is not known")
    if view.op == "Unsqueeze":
        return back(y, [i for i in range(front(y, 0)) if i not in worked][at])
    if at in worked:
        put_back = registry.info(view).layout  # what it moved may be where it was behind another op
        raise (MixedError if put_back else MetError)(f"{view} works along the samples' axis")
    if view.op == "GatherND":
        return back(y, at)
    if view.op == "Gather":
        added = front(view.inp(1), 0) - 1
        return axis if at > min(worked) else axis - added
    removed = view.op == "Squeeze" or (view.op.startswith("Reduce") and not view.attr("keepdims"))
    return axis + sum(i > at for i in worked) if removed else axis


def by_shapes(view: View, known: Known) -> bool:
    """True if indices or amounts are worked out from shapes."""
    given = [t for t in view.x[1:] if t is not None and not t.constant]
    return bool(given) and all(t.name in known.shaped for t in given)


def along(view: View) -> set[int] | None:
    """The axes along which an operator works, from the front; those that it adds or removes; None if unknown."""
    x, op = view.inp(0), view.op
    rank = front(x, 0)
    if view.domain:
        return None
    if op in AXIS or op == "Gather":
        return {int(view.attr("axis")) % rank}
    if op in ("LayerNormalization", "RMSNormalization"):
        return set(range(int(view.attr("axis")) % rank, rank))
    if op == "GatherND":
        return set(range(int(view.attr("batch_dims")), rank))
    if op == "Trilu":
        return {rank - 2, rank - 1}
    if op in ("CumSum", "CumProd", "Squeeze", "Unsqueeze") or op.startswith("Reduce"):
        axes = known_ints(view.x[1]) if view.has(1) else None
        total = front(view.out(0), 0) if op == "Unsqueeze" else rank
        return None if axes is None else {a % total for a in axes}
    if op == "Slice":
        return cut(view, rank)
    if op in ("Pad", "Tile"):
        amounts = known_ints(view.x[1])
        if amounts is None or view.has(3):
            return None
        return {i % rank for i, n in enumerate(amounts) if n != (op == "Tile")}
    return None


def cut(view: View, rank: int) -> set[int] | None:
    """The axes along which a Slice takes less than all."""
    starts, ends, axes, steps = (known_ints(view.x[i]) if view.has(i) else None for i in range(1, 5))
    count = (view.inp(1).static or (rank,))[0]
    axes = None if view.has(3) and axes is None else (axes or list(range(count)))
    if axes is None or starts is None or ends is None:
        return None if axes is None else {a % rank for a in axes}
    parts = zip(axes, starts, ends, steps or [1] * count, strict=True)
    return {a % rank for a, start, end, by in parts if (start, by) != (0, 1) or end < ENDLESS}


def reshaped(view: View, at: int, size: Dim) -> int:
    """The axis that begins with the samples, after as many elements as before."""
    x, y = view.inp(0), view.out(0)
    before, after = (x.shape or ())[:at], (y.shape or ())[:at]
    length = (y.shape or ())[at] if at < front(y, 0) else 1
    whole = not isinstance(length, int) or (isinstance(size, int) and length % size == 0 and length > 0)
    if before != after or None in before or not whole:
        raise MixedError(f"{view} does not keep the samples' axis apart")
    return back(y, at)


def product(view: View, given: Given) -> int:
    """A matrix product: samples may be rows on the left, columns on the right, or outer axes."""
    left, right = view.inp(0), view.inp(1)
    places = dict(given)
    if view.op == "Gemm":
        for i, key in enumerate(("transA", "transB")):
            if i in given and view.attr(key):
                places[i] = -3 - given[i]
    if places.get(0) == -1 or places.get(1) == (-1 if right.rank == 1 else -2):
        raise MetError(f"{view} sums over samples")
    if 0 in places and 1 in places and max(places[0], places[1]) >= -2:
        raise MetError(f"{view} multiplies samples with each other")
    if 0 in places and right.rank == 1:
        places[0] += 1
    if 1 in places and left.rank == 1 and places[1] < -2:
        places[1] += 1
    return agreed(view, places.values())


def einsum(view: View, given: Given) -> int:
    """The samples' letter, which must be one of the result's."""
    terms, result = terms_of(view.attr("equation"))
    if DOTS in "".join((*terms, result)):
        raise MixedError(f"what {view} does with samples is not known")
    letters = {terms[i][axis] for i, axis in given.items()}
    if len(letters) > 1 or not letters <= set(result):
        raise MetError(f"{view} sums over samples or multiplies them with each other")
    return result.index(letters.pop()) - len(result)


PRODUCTS: dict[str, Callable[[View, Given], int]] = {"MatMul": product, "Gemm": product, "Einsum": einsum}


# --- subgraphs --------------------------------------------------------------------------------------------------------


def inside(axes: Axes, view: View, known: Known) -> None:
    """If, Loop and Scan: their views in turn, states from step to step."""
    first = {"If": 0, "Loop": 2, "Scan": 0}[view.op]
    scanned = int(view.attrs.get("num_scan_inputs", 0))
    states = 0 if view.op == "If" else view.own - first - scanned
    for body in view.bodies:
        for x, t in zip(view.x[first : view.own], body.inputs[first:], strict=False):
            if x is not None and x.name in axes and body.facts.on_path(t):
                axes[t.name] = axes[x.name]
        for j, t in enumerate(body.inputs[first + states :] if scanned else ()):
            if t.name in axes:
                axes[t.name] = step(view, view.inp(first + states + j), axes[t.name], j)
        ends = body.outputs[1:] if view.op == "Loop" else body.outputs
        for _ in range(2):  # the second time with states that only a step put on the path
            follow(axes, body.views, body.facts, known)
            for t, end in zip(body.inputs[first : first + states], ends, strict=False):
                if end.name in axes:
                    agreed(view, (axes.setdefault(t.name, axes[end.name]), axes[end.name]))
        if view.op != "If" and any(t.name in axes and front(t, axes[t.name]) for v in body.views for t in v.y if t):
            raise MixedError(f"samples are not axis 0 in {view}")
        for j, (y, end) in enumerate(zip(view.y, ends, strict=False)):
            if y is not None and end.name in axes:
                axis = axes[end.name]
                if j >= states and (view.attrs.get("scan_output_axes") or [0] * len(ends))[j - states]:
                    raise MixedError(f"{view} does not put its steps first")
                agreed(view, (axes.setdefault(y.name, axis), axis))


def step(view: View, x: Tensor, axis: int, j: int) -> int:
    """The samples' axis in what one step reads of a scan input."""
    steps = (view.attrs.get("scan_input_axes") or [0] * (j + 1))[j] % front(x, 0)
    at = front(x, axis)
    if at == steps:
        raise SteppedError(f"{view} goes from sample to sample")
    return axis if at > steps else axis + 1
