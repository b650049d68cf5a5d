"""Reading a graph as mathematics: sums of terms, constants as numbers, squared distances in any of their writings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from xaicompile.bodies.record import PLAIN
from xaicompile.facts import constant_value
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.model import stored
from xaicompile.ir.types import run_node

SEEN_THROUGH = {"Identity", "Dropout", "Cast"}
RESHAPED = {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}
MOST_TERMS = 64  # of a sum that may be a distance
CLOSE = 1e-4  # relative; constants may be of float32


class Differs(Exception):
    """The graph is not what was looked for; the text says at which node, and in what."""


@dataclass(frozen=True)
class Affine:
    """scale * of + shift, with numbers that broadcast over the last axis."""

    of: Tensor
    scale: float = 1.0
    shift: np.ndarray | float = 0.0


@dataclass(frozen=True)
class Distances:
    """|x - u_j|^2, or their roots.

    Attributes:
        x: [N,d].
        points: [M,d], a constant.
        value: Where the graph has the squares, [N,M], precisely enough to go on with; None to work them out anew.
        root: Whether what was read is the root of them.
        excess: [M], what was read beyond them, where that was allowed.
    """

    x: Tensor
    points: Tensor
    value: Tensor | None
    root: bool = False
    excess: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of points."""
        n = (self.points.shape or (None,))[0]
        if not isinstance(n, int):
            raise Differs(f"the number of points in '{self.points.name}' is not known")
        return n


@dataclass(frozen=True)
class Factor:
    """x times constant weights.

    Attributes:
        weight: [width of x, M], or broadcasting to it.
        tensor: The same in the graph, less a factor of `scale`; None where the weight is a number.
    """

    x: Tensor
    weight: np.ndarray
    tensor: Tensor | None = None
    scale: float = 1.0

    def times(self, factor: float) -> Factor:
        """The same with another weight."""
        return Factor(self.x, self.weight * factor, self.tensor, self.scale * factor)


class Reader:
    """What made a tensor, seen through nodes that change no value.

    Attributes:
        guess: Whether nobody said what the model is, so that scores without a softmax are no class probabilities.
    """

    def __init__(self, p: Program, guess: bool = False) -> None:
        self.p, self.b, self.guess = p, p.builder, guess
        self.producers = p.producers()
        self.data = {t.name for t in p.inputs if not t.constant}
        for view in p.views:  # one sweep: a walk back for each question would take 2^n ways through n residual blocks
            if any(x is not None and x.name in self.data for x in (*view.x, *view.captures)):
                self.data |= {y.name for y in view.y if y is not None}

    def maker(self, t: Tensor | None, also: frozenset[str] | set[str] = frozenset()) -> View | None:
        """The node that makes t, behind those that change no value (and those of `also`); None for inputs."""
        while t is not None and (view := self.producers.get(t.name)) is not None:
            if view.domain or view.op not in SEEN_THROUGH | also or not view.x:
                return view
            t = view.x[0]
        return None

    def source(self, t: Tensor, also: frozenset[str] | set[str] = frozenset()) -> Tensor:
        """The tensor that t is, seen through nodes that change no value (and those of `also`)."""
        while (view := self.producers.get(t.name)) is not None and not view.domain and view.op in SEEN_THROUGH | also:
            if view.x[0] is None or not view.x[0].is_float:
                break
            t = view.x[0]
        return t

    def at(self, t: Tensor) -> str:
        """How messages name what makes t."""
        view = self.maker(t)
        return f"'{t.name}'" if view is None else repr(view)

    def numbers(self, t: Tensor | None) -> np.ndarray | None:
        """A constant's values, worked out where nodes make them; None for data."""
        if t is None or t.value is not None or t.name in self.data:
            return None if t is None else t.value
        view = self.producers.get(t.name)
        if view is None:
            return stored(self.p, t)
        if view.op == "Constant" and not view.domain:
            return numbers_of(view.attrs["value"]) if "value" in view.attrs else constant_value(view.attrs)
        found = [self.numbers(x) for x in view.x if x is not None]
        if not found or any(value is None for value in found) or view.domain or view.captures:
            return None
        names = ["" if x is None else f"x{i}" for i, x in enumerate(view.x)]
        feeds = dict(zip([n for n in names if n], found, strict=True))
        attrs = {k: v if isinstance(v, PLAIN) else as_proto(v) for k, v in view.attrs.items()}
        return run_node(onnx.helper.make_node(view.op, names, ["y"], **attrs), feeds, view.since)  # type: ignore[arg-type]

    def scalar(self, t: Tensor | None) -> float | None:
        """A constant that is one number."""
        value = self.numbers(t)
        return None if value is None or value.size != 1 else float(value.reshape(-1)[0])

    def affine(self, t: Tensor) -> Affine:
        """t as scale * of + shift, as far back as that goes."""
        scale, shift = 1.0, np.zeros(())
        while True:
            t = self.source(t)
            view = self.maker(t)
            if view is None or view.domain or view.op not in ("Add", "Sub", "Mul", "Div", "Neg", "Sum"):
                return Affine(t, scale, shift)
            if view.op == "Neg":
                scale, t = -scale, view.inp(0)
                continue
            constant = [self.numbers(x) for x in view.x]
            data = [i for i, c in enumerate(constant) if c is None]
            if len(data) != 1 or len(view.x) != 2:
                return Affine(t, scale, shift)
            number, before = np.asarray(constant[1 - data[0]], np.float64), view.inp(data[0])
            if view.op in ("Mul", "Div"):
                if number.size != 1 or (view.op == "Div" and data[0] == 1):
                    return Affine(t, scale, shift)
                n = float(number.reshape(-1)[0])
                scale *= n if view.op == "Mul" else 1 / n
            else:
                shift = shift + scale * (-number if view.op == "Sub" and data[0] == 0 else number)
                scale *= -1 if view.op == "Sub" and data[0] == 1 else 1
            t = before

    def terms(self, t: Tensor, factor: float = 1.0) -> Iterator[tuple[float, Tensor]]:
        """t as a sum of terms with factors; a limit at 0, as distances have against rounding, is seen through.

        Raises:
            Differs: There are more terms than any writing of distances has.
        """
        todo, seen = [(factor, t)], 0
        while todo:
            f, t = todo.pop()
            seen += 1
            if seen > MOST_TERMS:
                raise Differs(f"{self.at(t)} is one of many terms, and squared distances have three")
            inner = None if self.numbers(t) is not None else self.summands(t)
            if inner is None:
                yield f, self.source(t)
            else:
                todo += [(f * g, x) for g, x in reversed(inner) if f * g]

    def summands(self, t: Tensor) -> list[tuple[float, Tensor]] | None:
        """What one node adds up, or multiplies with a number; None for other nodes."""
        view = self.maker(t)
        if view is None or view.domain:
            return None
        if view.op in ("Add", "Sum", "Sub"):
            signs = [-1.0 if view.op == "Sub" and i else 1.0 for i in range(len(view.x))]
            return [(sign, x) for sign, x in zip(signs, view.x, strict=True) if x is not None]
        if view.op == "Neg":
            return [(-1.0, view.inp(0))]
        if view.op == "Relu" or (view.op in ("Max", "Clip") and self.scalar(view.x[1]) in (0.0, 1e-30)):
            return [(1.0, view.inp(0))]
        if view.op not in ("Mul", "Div"):
            return None
        limit = self.maker(view.x[1])
        if limit is not None and limit.op == "Greater" and limit.x[0] is view.x[0]:
            return [(1.0, view.inp(0))]
        for i in (0, 1) if view.op == "Mul" else (1,):
            n = self.scalar(view.x[i])
            if n is not None and (n or view.op == "Mul"):
                return [(n if view.op == "Mul" else 1 / n, view.inp(1 - i))]
        return None

    # --- squared distances --------------------------------------------------------------------------------------------

    def distances(self, t: Tensor, exact: bool = True) -> Distances:
        """Squared distances, or their roots, to constant points; unless `exact`, with constants added to them.

        Raises:
            Differs: t holds none.
        """
        view = self.maker(t)
        if view is not None and view.op == "Sqrt" and not view.domain:
            inner = self.distances(view.inp(0))
            return Distances(inner.x, inner.points, inner.value, root=True)
        if view is not None and view.op == "Pow" and not view.domain and self.scalar(view.x[1]) in (0.5, 2.0):
            inner = self.distances(view.inp(0))
            if inner.root != (self.scalar(view.x[1]) == 2.0):
                raise Differs(f"{view!r} is of another power than a distance or its square")
            return Distances(inner.x, inner.points, inner.value, root=not inner.root)
        if view is not None and view.op == "ReduceL2" and not view.domain:
            x, points = self.difference(view)
            return Distances(x, points, None, root=True)
        squares = None if view is None else self.sum_of_squares(view)
        if squares is not None and view is not None and self.maker(squares) is not None:
            x, points = self.difference(view, squares)
            return Distances(x, points, self.source(t))
        return self.expanded(t, exact)

    def sum_of_squares(self, view: View) -> Tensor | None:
        """x of sum(x^2) over the last axis, in any writing."""
        if view.domain or view.op not in ("ReduceSum", "ReduceSumSquare"):
            return None
        axes, rank = self.numbers(view.x[1]) if view.has(1) else None, view.inp(0).rank
        if axes is None or rank is None or [int(a) % rank for a in axes.reshape(-1)] != [rank - 1]:
            return None
        if view.op == "ReduceSumSquare":
            return view.inp(0)
        square = self.maker(view.inp(0))
        if square is None or square.domain:
            return None
        if square.op == "Mul" and square.x[0] is square.x[1]:
            return square.inp(0)
        return square.inp(0) if square.op == "Pow" and self.scalar(square.x[1]) == 2 else None

    def difference(self, view: View, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [N,d] and points [M,d] of the differences [N,M,d] that a node sums over."""
        sub = self.maker(view.inp(0) if of is None else of)
        if sub is None or sub.op != "Sub" or sub.domain:
            raise Differs(f"{view!r} sums squares, but of no difference")
        constant = [self.numbers(x) for x in sub.x]
        if (constant[0] is None) == (constant[1] is None):
            raise Differs(f"{sub!r} has no constant side")
        i = 0 if constant[0] is not None else 1
        points, x = constant[i], self.source(sub.inp(1 - i), {"Unsqueeze", "Reshape", "Expand"})
        assert points is not None
        if points.ndim < 2 or points.size != points.shape[-1] * points.shape[-2] or x.rank != 2:
            raise Differs(f"{sub!r} is not between rows [N,d] and points [M,d]")
        return x, self.b.Reshape(sub.inp(i), list(points.shape[-2:])) if points.ndim != 2 else sub.inp(i)

    def expanded(self, t: Tensor, exact: bool) -> Distances:
        """|x|^2 - 2 x u + |u|^2, whatever the order and grouping of its terms."""
        square: Tensor | None = None
        product: Factor | None = None
        offset: np.ndarray | float = 0.0
        for part in self.parts(t):
            row = part.weight[0]
            one = self.scalar_like(part.x)
            squares = self.maker(part.x, RESHAPED)
            x = None if squares is None else self.sum_of_squares(squares)
            if one is not None and len(part.weight) == 1:
                offset = offset + one * row
            elif x is not None and len(part.weight) == 1 and square is None and np.allclose(row, 1.0):
                square = self.source(x)
            elif product is None and part.tensor is not None:
                product = part
            else:
                raise Differs(f"{self.at(part.x)} is no part of squared distances |x|^2 - 2 x u + |u|^2")
        if square is None or product is None:
            raise Differs(f"{self.at(t)} makes no squared distances (|x - u|^2, or |x|^2 - 2 x u + |u|^2)")
        return self.checked(t, square, product, np.asarray(offset), exact)

    def parts(self, t: Tensor) -> Iterator[Factor]:
        """t as a sum of products with constants, those of a Gemm's bias too; a Concat gives one for each part."""
        for factor, term in self.terms(t):
            number, view = self.numbers(term), self.maker(term, RESHAPED)
            if number is not None:
                yield Factor(self.b.const(np.ones(1, np.float32)), factor * number.reshape(1, -1).astype(np.float64))
            elif view is None or view.domain or view.op not in ("MatMul", "Gemm"):
                yield Factor(term, np.full((1, 1), factor))
            else:
                yield from self.factors(view, factor)
                if view.op == "Gemm" and view.has(2):
                    yield from (p.times(factor * float(view.attr("beta"))) for p in self.parts(view.inp(2)))

    def factors(self, view: View, factor: float) -> Iterator[Factor]:
        """A product with constant weights, or one for each part where its data are a Concat."""
        weight = self.numbers(view.x[1])
        if weight is None or weight.ndim != 2 or (view.op == "Gemm" and view.attr("transA")):
            raise Differs(f"{view!r} is no product with constants")
        tensor = view.inp(1)
        if view.op == "Gemm":
            factor *= float(view.attr("alpha"))
            if view.attr("transB"):
                weight, tensor = weight.T, self.b.Transpose(tensor, perm=[1, 0])
        concat = self.maker(view.x[0])
        joined = concat is not None and concat.op == "Concat" and not concat.domain and len(concat.x) > 1
        start = 0
        for x in concat.x if joined and concat is not None else [view.x[0]]:
            assert x is not None
            width = (x.shape or (None,))[-1] if joined else len(weight)
            if not isinstance(width, int):
                raise Differs(f"{concat!r} joins parts of unknown width")
            rows = weight[start : start + width].astype(np.float64)
            own = self.b.op("Slice", tensor, [start], [start + width], [0]) if joined else tensor
            inner = self.affine(x)
            if np.any(inner.shift):
                inner = Affine(self.source(x))
            yield Factor(inner.of, rows * (factor * inner.scale), own, factor * inner.scale)
            start += width

    def scalar_like(self, t: Tensor) -> float | None:
        """One number in every place, whatever the shape."""
        view = self.maker(t, RESHAPED | {"Expand"})
        if view is not None and view.op == "ConstantOfShape" and not view.domain:
            held = view.attrs.get("value")
            value = np.zeros(1) if held is None else np.asarray(numbers_of(held))
            return float(value.reshape(-1)[0])
        while view is not None or self.producers.get(t.name) is not None:
            step = self.producers.get(t.name)
            if step is None or step.op not in RESHAPED | SEEN_THROUGH | {"Expand"}:
                break
            t = step.inp(0)
        return self.scalar(t)

    def checked(self, t: Tensor, square: Tensor, product: Factor, offset: np.ndarray, exact: bool) -> Distances:
        """The distances, once their three terms are seen to belong together."""
        if product.x is not square:
            raise Differs(f"{self.at(t)} multiplies '{product.x.name}', but squares '{square.name}'")
        points = product.weight.T / -2
        own = (points**2).sum(1)
        fits = np.allclose(np.broadcast_to(offset.reshape(-1), own.shape), own, CLOSE, CLOSE * max(own.max(), 1e-9))
        if exact and not fits:
            raise Differs(f"the constant in {self.at(t)} is not the points' |u|^2")
        assert product.tensor is not None
        found = self.b.Transpose(product.tensor, perm=[1, 0])
        found = found if product.scale == -2 else found * (product.scale / -2)
        spread = points - points.mean(0)
        centred = (points.mean(0) ** 2).sum() <= 1e-6 * (spread**2).sum(1).mean()
        excess = None if fits else np.broadcast_to(offset.reshape(-1), own.shape) - own
        return Distances(square, found, self.source(t) if centred and fits else None, excess=excess)


def as_proto(held: object) -> onnx.TensorProto:
    """A tensor attribute as a proto."""
    return numpy_helper.from_array(np.asarray(numbers_of(held)))


def numbers_of(held: object) -> np.ndarray | None:
    """The numbers of a tensor attribute, as a proto or as the graph library holds it."""
    found: np.ndarray | None = getattr(held, "values", None)
    if isinstance(held, onnx.TensorProto):
        found = numpy_helper.to_array(held)
    return found
