"""Ops written out in several nodes, read as the one op that they compute.

A pattern is a tree over tensors: `Op` matches the node that makes a tensor, `X` binds the data, `C` a constant.
Operands of Add and Mul match in either order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from xaicompile.ir import Program, Tensor, View

COMMUTATIVE = {"Add", "Mul"}


@dataclass(frozen=True)
class Any:
    """Binds any tensor; the same name must bind the same tensor."""

    name: str


@dataclass(frozen=True)
class C:
    """A constant with one known number, or, without one, any constant, bound by name."""

    value: float | None = None
    name: str = ""


@dataclass(frozen=True, init=False)
class Op:
    """The node that makes a tensor."""

    op: str
    x: tuple[Pattern, ...]

    def __init__(self, op: str, *x: Pattern) -> None:
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "x", x)


Pattern = Any | C | Op


@dataclass
class Match:
    """What a pattern bound, and the nodes that it covers."""

    bound: dict[str, Tensor]
    views: tuple[View, ...] = ()


def found(pattern: Pattern, t: Tensor | None, made_by: dict[str, View], match: Match) -> Iterator[Match]:
    """Every way in which the pattern matches the tensor."""
    if t is None:
        return
    if isinstance(pattern, Any):
        if match.bound.get(pattern.name, t) is t:
            yield Match({**match.bound, pattern.name: t}, match.views)
    elif isinstance(pattern, C):
        if pattern.value is None:
            if t.constant and match.bound.get(pattern.name, t) is t:
                yield Match({**match.bound, pattern.name: t}, match.views)
        elif t.value is not None and t.value.size == 1 and t.value.dtype.kind in "iuf":
            number = float(t.value.reshape(-1)[0])
            if math.isclose(number, pattern.value, rel_tol=2e-3 if t.value.dtype.itemsize == 2 else 1e-5):
                yield match
    else:
        view = made_by.get(t.name)
        if view is None or view.domain or view.op != pattern.op or len(view.x) < len(pattern.x):
            return
        covered = Match(match.bound, (*match.views, view) if view not in match.views else match.views)
        orders = [pattern.x, pattern.x[::-1]] if view.op in COMMUTATIVE else [pattern.x]
        for operands in orders:
            yield from all_found(operands, view.x, made_by, covered)


def all_found(
    patterns: tuple[Pattern, ...], x: list[Tensor | None], made_by: dict[str, View], match: Match
) -> Iterator[Match]:
    """Every way in which the patterns match the operands, one by one."""
    if not patterns:
        yield match
        return
    for first in found(patterns[0], x[0], made_by, match):
        yield from all_found(patterns[1:], x[1:], made_by, first)


X = Any("x")
HALF, ONE = C(0.5), C(1.0)
ERF = [Op("Erf", Op("Div", X, C(math.sqrt(2)))), Op("Erf", Op("Mul", X, C(math.sqrt(0.5))))]
CUBES = [Op("Pow", X, C(3.0)), Op("Mul", X, Op("Mul", X, X)), Op("Mul", Op("Mul", X, X), X)]
INNER = [Op("Mul", Op("Add", X, Op("Mul", cube, C(0.044715))), C(math.sqrt(2 / math.pi))) for cube in CUBES]
SQUARES = [Op("Mul", Op("Mul", X, C(0.044715)), X), Op("Mul", C(0.044715), Op("Mul", X, X))]
INNER += [Op("Mul", Op("Mul", X, C(math.sqrt(2 / math.pi))), Op("Add", ONE, square)) for square in SQUARES]
SIX = [Op("Clip", Op("Add", X, C(3.0)), C(0.0), C(6.0)), Op("Min", Op("Max", Op("Add", X, C(3.0)), C(0.0)), C(6.0))]
SIXTH = [Op("Div", s, C(6.0)) for s in SIX] + [Op("Mul", s, C(1 / 6)) for s in SIX]


def halved_product(factors: list[Op]) -> list[Op]:
    """x (1 + f) / 2, with the half in any place."""
    plus = [Op("Add", f, ONE) for f in factors]
    return [
        shape
        for p in plus
        for shape in (
            Op("Mul", Op("Mul", X, p), HALF),
            Op("Mul", Op("Mul", X, HALF), p),
            Op("Mul", X, Op("Mul", p, HALF)),
        )
    ]


Make = Callable[[Match, Tensor], View | None]


def activation(op: str, **attrs: float | str) -> Make:
    """A view of one data input."""
    return lambda match, y: View(op, [match.bound["x"]], [y], attrs=dict(attrs))


def swish(match: Match, y: Tensor) -> View | None:
    """x Sigmoid(alpha x), which is also known as quick GELU for alpha = 1.702, if alpha is one number."""
    alpha = match.bound["alpha"].value
    if alpha is None or alpha.size != 1:
        return None
    return View("Swish", [match.bound["x"]], [y], attrs={"alpha": float(alpha.reshape(-1)[0])})


def softmax(match: Match, y: Tensor) -> View | None:
    """Softmax, if sum and maximum run over the same axis."""
    x = match.bound["x"]
    reductions = [v for v in match.views if v.op in ("ReduceSum", "ReduceMax")]
    axes = {reduced_axes(v, x.rank) for v in reductions}
    (over,) = axes if len(axes) == 1 else (None,)
    if over is None or len(over) != 1 or not all(v.attr("keepdims") for v in reductions):
        return None
    return View("Softmax", [x], [y], attrs={"axis": over[0]})


def hard_sigmoid_check(match: Match, y: Tensor) -> View | None:
    """x HardSigmoid(x) with slope 1/6 and offset 1/2 is HardSwish."""
    gate = next(v for v in match.views if v.op == "HardSigmoid")
    if math.isclose(gate.attr("alpha"), 1 / 6, rel_tol=1e-4) and math.isclose(gate.attr("beta"), 0.5):
        return View("HardSwish", [match.bound["x"]], [y])
    return None


def over_root(t: Pattern, u: Pattern) -> list[Op]:
    """t / sqrt(u)."""
    root = Op("Sqrt", u)
    inverses = [Op("Reciprocal", root), Op("Div", ONE, root), Op("Pow", u, C(-0.5))]
    return [Op("Div", t, root), *(Op("Mul", t, inverse) for inverse in inverses)]


def over_deviation(t: Pattern) -> list[Op]:
    """t / sqrt(mean(t^2) + epsilon)."""
    means = [Op("ReduceMean", square) for square in (Op("Pow", t, C(2.0)), Op("Mul", t, t))]
    return [n for mean in means for n in over_root(t, Op("Add", mean, C(name="epsilon")))]


def scaled(forms: list[Op]) -> list[Op]:
    """Each times a constant."""
    return [Op("Mul", form, C(name="scale")) for form in forms]


CENTRED = Op("Sub", X, Op("ReduceMean", X))
NORMED, RMS_NORMED = over_deviation(CENTRED), over_deviation(X)


def normalisation(op: str) -> Make:
    """A LayerNormalization or an RMSNormalization, if the means run over the last axes and the constants fit them."""

    def make(match: Match, y: Tensor) -> View | None:
        x, rank = match.bound["x"], match.bound["x"].rank
        epsilon = match.bound["epsilon"].value
        means = [v for v in match.views if v.op == "ReduceMean"]
        axes = {reduced_axes(v, rank) for v in means}
        if (
            rank is None
            or epsilon is None
            or epsilon.size != 1
            or len(axes) != 1
            or not all(m.attr("keepdims") for m in means)
        ):
            return None
        (over,) = axes
        if over is None or list(over) != list(range(over[0], rank)):
            return None
        sizes = x.shape[over[0] :] if x.shape is not None else (None,)
        dims = [d for d in sizes if isinstance(d, int)]
        if len(dims) != len(over):
            return None
        scale = match.bound.get("scale") or x.builder.const(np.ones(dims, x.dtype))
        bias = match.bound.get("bias")
        for t in (scale, bias):
            if t is not None and not fits(t, dims, rank):
                return None
        attrs = {"axis": over[0] - rank, "epsilon": float(epsilon.reshape(-1)[0])}
        return View(op, [x, scale, bias] if op == "LayerNormalization" else [x, scale], [y], attrs=attrs)

    return make


def fits(t: Tensor, dims: list[int], rank: int) -> bool:
    """True for a constant with one value per normalised element, the same for all groups."""
    if t.static is None or not t.static or len(t.static) > rank:
        return False
    before, own = list(t.static)[: -len(dims)], list(t.static)[-len(dims) :]
    return own == dims[-len(own) :] and all(n == 1 for n in before)


def reduced_axes(view: View, rank: int | None) -> tuple[int, ...] | None:
    """Axes of a reduction, counted from the front; None if not known."""
    if not view.has(1) or view.inp(1).value is None or rank is None:
        return None
    return tuple(sorted(int(a) % rank for a in view.inp(1).value.reshape(-1)))  # type: ignore[union-attr]


EXPONENTIALS = [Op("Exp", Op("Sub", X, Op("ReduceMax", X))), Op("Exp", X)]
SHIFTED = [Op("Add", s, C(name="bias")) for s in scaled(NORMED)]

# Larger patterns stand before those that they contain.
PATTERNS: list[tuple[Pattern, Make]] = [
    *((t, activation("Gelu", approximate="none")) for t in halved_product(ERF)),
    *((t, activation("Gelu", approximate="tanh")) for t in halved_product([Op("Tanh", i) for i in INNER])),
    (Op("Mul", X, Op("Sigmoid", X)), activation("Swish", alpha=1.0)),
    (Op("Mul", X, Op("Sigmoid", Op("Mul", X, C(name="alpha")))), swish),
    (Op("Mul", X, Op("Tanh", Op("Softplus", X))), activation("Mish")),
    (Op("Mul", X, Op("HardSigmoid", X)), hard_sigmoid_check),
    *((Op("Mul", X, s), activation("HardSwish")) for s in SIXTH),
    *((Op("Div", Op("Mul", X, s), C(6.0)), activation("HardSwish")) for s in SIX),
    *((Op("Mul", Op("Mul", X, s), C(1 / 6)), activation("HardSwish")) for s in SIX),
    *((s, activation("HardSigmoid", alpha=1 / 6, beta=0.5)) for s in SIXTH),
    *((Op("Div", e, Op("ReduceSum", e)), softmax) for e in EXPONENTIALS),
    *((t, normalisation("LayerNormalization")) for t in (*SHIFTED, *scaled(NORMED), *NORMED)),
    *((t, normalisation("RMSNormalization")) for t in (*scaled(RMS_NORMED), *RMS_NORMED)),
]
ROOTS: dict[str, list[tuple[Pattern, Make]]] = {}
for _pattern, _make in PATTERNS:
    assert isinstance(_pattern, Op)
    ROOTS.setdefault(_pattern.op, []).append((_pattern, _make))


def run(p: Program, keep: Collection[str]) -> bool:
    """Replaces every run of nodes that a pattern covers, and that nothing else reads into, by one view."""
    made_by, readers = p.producers(), p.consumers()
    gone: set[View] = set()
    made: dict[View, View] = {}
    for view in reversed(p.views):
        if view in gone or view.domain or view.op not in ROOTS:
            continue
        result = first_match(view, made_by, readers, keep, gone)
        if result is not None:
            match, replacement = result
            order = sorted(match.views, key=p.views.index) if len(match.views) > 1 else match.views
            replacement.name, replacement.since = view.name, p.opset
            replacement.nodes = tuple(n for v in order for n in v.nodes)
            gone.update(match.views)
            made[view] = replacement
    p.views = [made.get(v, v) for v in p.views if v in made or v not in gone]
    return bool(made)


def first_match(
    view: View,
    made_by: dict[str, View],
    readers: Mapping[str, list[View]],
    keep: Collection[str],
    gone: set[View],
) -> tuple[Match, View] | None:
    """The first pattern that fits the node and hides no tensor that somebody else reads."""
    for pattern, make in ROOTS[view.op]:
        for match in found(pattern, view.out(), made_by, Match({})):
            if any(v in gone for v in match.views) or not closed(view, match, readers, keep):
                continue
            replacement = make(match, view.out())
            if replacement is not None:
                return match, replacement
    return None


def closed(root: View, match: Match, readers: Mapping[str, list[View]], keep: Collection[str]) -> bool:
    """True if what the covered nodes make, apart from the result, is read by them alone."""
    for view in match.views:
        for y in view.y:
            if y is None or view is root:
                continue
            if y.name in keep or any(r not in match.views for r in readers[y.name]):
                return False
    return True
