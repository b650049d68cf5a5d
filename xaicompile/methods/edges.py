"""Relevance that goes through each edge of a graph, wherever an op passes messages along the edges.

An edge that brings lam_kj h_j to node k takes lam_kj <c_k, h_j> with it, of the cotangent c behind the op. So all that
leaves a sender through edges is the sum over its receivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xaicompile.backward import Flow, Tap
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Builder, Tensor
from xaicompile.methods.structure import Interaction, Mix
from xaicompile.vjp.einsum import terms_of


def watching(b: Builder, mixes: Sequence[Mix], found: dict[str, Tensor], several: bool) -> dict[str, Tap]:
    """Taps that keep the relevance of the edges of each op, by the op's name."""

    def tap(mix: Mix) -> Tap:
        def kept(y: Tensor, flow: Flow) -> Flow:
            found[mix.view.name] = of_edges(b, mix, y, flow, int(several))
            return flow

        return kept

    return {mix.view.out().name: tap(mix) for mix in mixes}


def passing(facts: Facts, layers: Sequence[Interaction]) -> list[Mix]:
    """The ops that have edges, in order: products with a matrix, or gathers; none if not all have the same edges."""
    mixes = [mix for layer in layers for mix in layer.mixes if not mix.view.op.startswith("Scatter")]
    kinds = {mix.view.op == "Gather" for mix in mixes}
    structures, numbers = [mix.view.inp(mix.at) for mix in mixes], dict[Any, int]()
    sizes = {(t.shape or (None,))[-2:] for t in structures}
    formulas = {formula(facts, t, numbers) for t in structures}
    same = len(formulas) == 1 or (len(sizes) == 1 and None not in next(iter(sizes)))
    return mixes if len(kinds) == 1 and same else []


def formula(facts: Facts, t: Tensor, numbers: dict[Any, int]) -> int:
    """The same number for tensors that are made of the same inputs and constants by the same ops."""
    if t.name not in numbers:
        view = facts.producer(t)
        key: tuple[Any, ...] = (t.name,)
        if view is not None:
            parts = [None if x is None else formula(facts, x, numbers) for x in (*view.x, *view.captures)]
            attrs = sorted((k, str(v)) for k, v in view.attrs.items())
            key = (view.op, [y is not None and y.name for y in view.y].index(t.name), tuple(attrs), tuple(parts))
        numbers[t.name] = numbers.setdefault(key, len(numbers))
    return numbers[t.name]


def of_edges(b: Builder, mix: Mix, y: Tensor, flow: Flow, batch: int) -> Tensor:
    """Relevance of the edges of one op.

    Args:
        y: The op's output, with the cotangent or relevance that arrived in `flow`.
        batch: 1 if axis 0 is one of graphs.

    Returns:
        [receivers, senders] for a matrix, [edges] for a list; with [N, ...] in front for several graphs.
    """
    view, rank = mix.view, y.rank or 2
    if view.op == "Gather":
        return held(b, b.sum_axes(flow.relevance(b, y), [a for a in range(batch, rank) if a != rank + mix.axis]))
    c = flow.cotangent(b, y)
    if view.op == "Einsum":
        found = of_einsum(b, mix, c, batch)
    elif mix.at:  # nodes as columns: H A^T, and what is found is that of A^T
        h, structure = view.inp(0), view.inp(1)
        found = b.MatMul(turned(b, c), h) * turned(b, structure)
    else:
        structure, h = view.inp(0), view.inp(1)
        matrix = turned(b, structure) if view.attr("transA") else structure
        found = b.MatMul(c, turned(b, h)) * matrix
        found = found * float(view.attr("alpha", 1.0)) if view.op == "Gemm" else found
    return held(b, b.sum_axes(found, list(range(batch, (found.rank or 2) - 2))))


def of_einsum(b: Builder, mix: Mix, c: Tensor, batch: int) -> Tensor:
    """The same of an Einsum of structure and data."""
    terms, result = terms_of(mix.view.attr("equation"))
    structure, data = terms[mix.at], terms[1 - mix.at]
    receiver = result[mix.axis]
    sender = next(s for s in data if s in structure and s not in result)
    equation = f"{result},{structure},{data}->{result[:batch]}{receiver}{sender}"
    return b.Einsum(c, mix.view.inp(mix.at), mix.view.inp(1 - mix.at), equation=equation)


def turned(b: Builder, t: Tensor) -> Tensor:
    """With its last two axes swapped."""
    rank = t.rank or 2
    return b.Transpose(t, perm=[*range(rank - 2), rank - 1, rank - 2])


def stacked(b: Builder, mixes: Sequence[Mix], found: dict[str, Tensor], several: bool) -> Tensor:
    """Relevance of the edges of all ops, [ops, ...], or [N, ops, ...] for several graphs."""
    rows = [b.Unsqueeze(found[mix.view.name], [int(several)]) for mix in mixes]
    return rows[0] if len(rows) == 1 else b.Concat(*rows, axis=int(several))
