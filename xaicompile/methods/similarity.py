"""BiLRP: which pairs of regions make two inputs similar (Eberle et al. 2022; spec 10.2).

The similarity is the dot product of two embeddings. Each unit of the embedding is explained for either input, and the
products of the two maps are summed over the units: one Scan over the units, of which only the cotangents differ, so
that the forward pass and the denominators of the rules stand outside it and are worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xaicompile.backward import Ledger
from xaicompile.errors import RuleError
from xaicompile.explained import total_per_sample
from xaicompile.grid import Grid
from xaicompile.half import held
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.ir.steps import StepBuilder, replayed
from xaicompile.methods.job import Job, Result, between, explained_in
from xaicompile.registry import method

MOST = 20_000_000  # pairs of regions


@dataclass(frozen=True)
class Side:
    """One of the two inputs.

    Attributes:
        views: The forward pass from what is given to the embedding.
        start: The explained tensor.
        end: The embedding, [N, ...].
        tokens: Whether the start holds embedded tokens.
    """

    views: Sequence[View]
    start: Tensor
    end: Tensor
    tokens: bool


@method("bilrp", pool=16, project=0, similarity="dot", seed=0)
def bilrp(job: Job) -> Result:
    """R_ii' = sum over units m of LRP(phi_m, x)_i LRP(phi_m, x')_i', with LRP started at phi_m itself.

    Gives `similarity` [N] and `relevance` [N, regions of the first, regions of the second]; a second input of each
    kind, `other`, is fed beside the first.

    Raises:
        RuleError: Not one explained input with a batch, or a size that is not known.
    """
    b, given = job.p.builder, job.inputs[0]
    if len(job.starts) > 1 or not job.seed.batched:
        raise RuleError("bilrp compares one explained input with a batch axis; name it with --explain-input")
    views = between(job.p, [t for t in job.p.inputs if t.name in job.p.required], job.end.tensor)
    first = Side(views, job.starts[0], job.end.tensor, given.tokens)
    second = again(job, first, {t.name: job.feed(other_name(job.p, t), t) for t in job.p.inputs})
    similarity, scale = compared(b, job, first.end, second.end)
    if job.chunk > 1:
        first, second = (repeated(job, side) for side in (first, second))
    relevance, missing = over_units(job, (first, second))
    job.outputs |= {"similarity": similarity, "relevance": relevance * b.Unsqueeze(scale, [1, 2])}
    if job.books:
        job.outputs["ledger"] = missing * scale
    return {}


def other_name(p: Program, t: Tensor) -> str:
    """Name of the second input of a kind."""
    return "other" if len(p.required) == 1 else f"other_{t.name}"


def again(job: Job, side: Side, known: dict[str, Tensor]) -> Side:
    """The same forward pass on other inputs."""
    with job.p.builder.scope("other"):
        views = replayed(job.p.builder, side.views, known)
    return Side(views, known.get(side.start.name, side.start), known[side.end.name], side.tokens)


def repeated(job: Job, side: Side) -> Side:
    """The forward pass on as many copies of the batch as units are done at once, one behind the other."""
    b, made = job.p.builder, {y.name for v in side.views for y in v.y if y is not None}
    read = {t.name: t for v in side.views for t in v.x if t is not None and t.name not in made and not t.constant}
    if any(t.shape is None or isinstance(t.shape[0], int) for t in (*read.values(), side.start)):
        raise RuleError(f"--chunk {job.chunk}: the model's batch is fixed, so the units are done one by one")
    known = {
        name: b.op("Tile", t, [job.chunk] + [1] * ((t.rank or 1) - 1), shape=(None, *(t.shape or ())[1:]))
        for name, t in read.items()
    }
    return again(job, side, known)


def compared(b: Builder, job: Job, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The similarity of two embeddings, and by what it is the dot product's multiple, [N] each.

    A random projection P [M, K] of normal numbers over sqrt(K) changes it to <P phi, P phi'>.
    """
    x, y = (b.Flatten(t, axis=1) for t in (x, y))
    projection = projected(job, x)
    if projection is not None:
        x, y = (b.MatMul(t, b.const(projection)) for t in (x, y))
    dot = b.sum_axes(x * y, [1])
    if job.parameter("similarity") == "dot":
        return dot, b.expand_like(b.const(np.ones((), x.dtype)), dot)
    norms = b.Sqrt(b.sum_axes(x * x, [1]) * b.sum_axes(y * y, [1]))
    nothing = b.Equal(norms, 0.0)
    scale = b.where(nothing, 0.0, 1.0 / b.where(nothing, 1.0, norms, like=norms), like=norms)
    return dot * scale, scale


def projected(job: Job, flat: Tensor) -> np.ndarray | None:
    """The random projection, None if none is asked for."""
    if not job.parameter("project"):
        return None
    count = job.count("project")
    drawn = job.rng().standard_normal((units_of(flat), count)) / np.sqrt(count)
    return np.asarray(drawn, flat.dtype)


def units_of(flat: Tensor) -> int:
    """How many units an embedding has.

    Raises:
        RuleError: That is not known.
    """
    count = (flat.shape or (None, None))[1]
    if not isinstance(count, int):
        raise RuleError(f"bilrp goes over the units of the embedding {flat!r}, so its size must be known")
    return count


def over_units(job: Job, sides: Sequence[Side]) -> tuple[Tensor, Tensor]:
    """The sum over the units, [N, P, P'], and what it lacks of the dot product, [N]."""
    outer, k = job.p.builder, job.chunk
    flat = outer.Flatten(job.end.tensor, axis=1)
    weights = projected(job, flat)
    units = units_of(flat) if weights is None else weights.shape[1]
    if units % k:
        raise RuleError(f"--chunk {k}: {units} units can't be done {k} at a time")
    numbers = np.arange(units, dtype=np.int64) if weights is None else weights.T
    scanned = outer.const(numbers.reshape(units // k, k, *numbers.shape[1:]))
    b = StepBuilder(outer)
    patch = 1 if sides[0].tokens or (sides[0].start.rank or 0) < 3 else job.count("pool")
    sizes = [Grid(outer, s.start, s.start, patch, s.tokens).count for s in sides]
    if sizes[0] * sizes[1] > MOST:
        raise RuleError(f"bilrp: {sizes[0]} x {sizes[1]} pairs of regions are too many; pool more of them (--pool 32)")
    sums = [zeros(outer, flat, sizes), zeros(outer, flat, [])]
    with b.scope("unit"):
        before = [b.input("sum", t.dtype, t.shape) for t in sums]
        chosen = b.input("unit", scanned.dtype, (scanned.shape or ())[1:])
        rows = chosen
        if weights is None:
            rows = b.CastLike(b.Equal(b.Unsqueeze(chosen, [1]), np.arange(units)[None]), b.adopt(flat))
        maps, totals = [], []
        for side in sides:
            r, total = of_side(job, b, side, rows, patch)
            maps.append(b.Reshape(r, [k, -1, (r.shape or (0, 0))[1]]))
            totals.append(b.Reshape(total, [k, -1]))
        first, second = b.Transpose(maps[0], perm=[1, 2, 0]), b.Transpose(maps[1], perm=[1, 0, 2])
        products = b.MatMul(first, second)
        shares = [b.sum_axes(r, [2]) for r in maps]
        lacking = b.sum_axes(totals[0] * totals[1] - shares[0] * shares[1], [0])
        ends = b.ends([before[0] + products, before[1] + lacking])
    body = b.graph("units", [*before, chosen], ends)
    types = [(t.dtype, t.shape) for t in sums]
    relevance, missing = outer.typed("Scan", [*sums, scanned], types, body=body, num_scan_inputs=1)
    return relevance, missing


def zeros(b: Builder, flat: Tensor, sizes: Sequence[int]) -> Tensor:
    """[N, sizes...], for as many samples as there are."""
    shape = ((flat.shape or (None,))[0], *sizes)
    sized = b.Concat(b.dim(flat, 0), list(sizes), axis=0) if sizes else b.dim(flat, 0)
    return b.op("Expand", b.const(np.zeros((), flat.dtype)), sized, shape=shape)


def of_side(job: Job, b: StepBuilder, side: Side, weights: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Relevance of the regions, [K N, P], and what relevance and ledger sum to, [K N].

    Args:
        weights: Of the embedding's units, [K, M]: where the backward pass starts.
    """
    sub = Program(job.p.source, job.p.opset, ())
    sub.builder, sub.domains = b, job.p.domains
    sub.views = [v.varied(x=[t and b.adopt(t) for t in v.x], y=[t and b.adopt(t) for t in v.y]) for v in side.views]
    start, end = b.adopt(side.start), b.adopt(side.end)
    sub.tensors = {t.name: t for v in sub.views for t in (*v.x, *v.y) if t is not None} | {start.name: start}
    sub.outputs = [end]
    flat = b.Flatten(end, axis=1)
    ones = b.Reshape(b.expand_like(b.const(np.ones((), end.dtype)), flat), [job.chunk, -1, units_of(flat)])
    cotangent = b.reshape_like(ones * b.Unsqueeze(weights, [1]), end)
    kept: Ledger | None = {} if job.books else None
    (r,) = explained_in(job, sub, [start], end, "relevance", cotangent, kept)
    units = held(b, Grid(b, start, r, patch, side.tokens).units())
    total = b.sum_axes(units, [1])
    each = replace(job.seed, value=total, batch=None)
    for absorbed in (a for amounts in (kept or {}).values() for a in amounts):
        total = total + total_per_sample(b, absorbed.amount, each, 0)
    return units, total
