"""Finds the two embeddings in a model that compares them itself: a dot product at its end, over norms perhaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from xaicompile.ir import Builder, Program, Tensor, View

SAME = ("Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity")


@dataclass(frozen=True)
class Compared:
    """A similarity as a multiple of a dot product.

    Attributes:
        embeddings: [N, ...] each, of the same size.
        reads: The inputs that each depends on.
        factors: Op and operand of each node that scales the dot product, and the product that it makes.
    """

    embeddings: tuple[Tensor, Tensor]
    reads: tuple[frozenset[str], frozenset[str]]
    factors: tuple[tuple[str, Tensor, Tensor], ...] = ()

    def swapped(self) -> Compared:
        """The same with the sides exchanged."""
        return replace(self, embeddings=self.embeddings[::-1], reads=self.reads[::-1])

    def scale(self, b: Builder, dot: Tensor) -> Tensor:
        """What the dot product [N] is multiplied with, [N]."""
        scale = b.expand_like(b.const(np.ones((), dot.dtype)), dot)
        for op, by, product in self.factors:
            by = b.Reshape(b.expand_like(by, product), [-1])
            scale = scale * by if op == "Mul" else scale / by
        return scale


def find(p: Program, end: Tensor) -> Compared | None:
    """The comparison that the end is, None if it is no multiple of a dot product of two branches.

    The branches share no input. What scales the product, as norms do, is taken as it is.
    """
    reads: dict[str, frozenset[str]] = {t.name: frozenset([t.name]) for t in p.inputs if t.name in p.required}
    for view in p.views:
        all_read = frozenset().union(*(reads.get(t.name, frozenset()) for t in (*view.x, *view.captures) if t))
        reads |= {y.name: all_read for y in view.y if y is not None and y.value is None}
    return behind(end, p.producers(), reads)


def behind(t: Tensor, producers: Mapping[str, View], reads: Mapping[str, frozenset[str]]) -> Compared | None:
    """The comparison that a tensor is, in whatever shape."""
    view = producers.get(t.name)
    if view is None or view.domain or not view.x or view.x[0] is None:
        return None
    pair = dotted(view, producers)
    if pair is not None:
        x, y = (reads.get(e.name, frozenset()) for e in pair)
        return Compared(pair, (x, y)) if x and y and not x & y else None
    if view.op in SAME:
        return behind(view.inp(0), producers, reads)
    if view.op not in ("Mul", "Div"):
        return None
    for i in range(2 if view.op == "Mul" else 1):
        found = behind(view.inp(i), producers, reads)
        if found is not None:
            return replace(found, factors=(*found.factors, (view.op, view.inp(1 - i), view.out())))
    return None


def dotted(view: View, producers: Mapping[str, View]) -> tuple[Tensor, Tensor] | None:
    """The two operands of a dot product of each row with the same row of the other."""
    if view.op == "ReduceSum":
        product = producers.get(view.inp(0).name)
        if product is None or product.op != "Mul" or (rank := view.inp(0).rank) is None:
            return None
        axes = view.inp(1).value if view.has(1) else np.asarray(view.attr("axes") or [])
        whole = axes is not None and sorted(int(a) % rank for a in axes) == list(range(1, rank))
        pair = product.inp(0), product.inp(1)
        return pair if whole and all(t.rank == rank for t in pair) else None
    if view.op == "Einsum" and len(view.x) == 2:
        left, _, right = str(view.attr("equation")).replace(" ", "").partition("->")
        x, _, y = left.partition(",")
        rows = x == y and len(set(x)) == len(x) > 1 and right == x[0] and x.isalpha()
        return (view.inp(0), view.inp(1)) if rows else None
    if view.op == "MatMul":
        row, column = (view.inp(i).shape or () for i in (0, 1))
        rows = len(row) == len(column) == 3 and row[1] == 1 and column[2] == 1
        return (view.inp(0), view.inp(1)) if rows else None
    return None
