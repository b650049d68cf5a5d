"""BiLRP: which pairs of regions make two inputs similar (Eberle et al. 2022; spec 10.2).

The similarity is the dot product of two embeddings. Each unit of the embedding is explained for either input, and the
products of the two maps are summed over the units: one Scan over the units, of which only the cotangents differ, so
that the forward pass and the denominators of the rules stand outside it and are worked out once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile import composite
from xaicompile.backward import Ledger
from xaicompile.errors import RuleError
from xaicompile.explained import total_per_sample
from xaicompile.grid import Grid
from xaicompile.half import held
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.graph import Operand, Shape
from xaicompile.ir.steps import StepBuilder, adopted, replayed
from xaicompile.methods import branches
from xaicompile.methods.job import Job, Result, as_it_stands, between, explained_in
from xaicompile.registry import METHOD_PARAMETERS, method

PAIRING = ("bilrp", "second-order-lrp")  # rule sets that take regions, and rules for the pass that pairs them
MOST = 20_000_000  # pairs of regions
OTHER = "other"  # an encoder's second input, and what a job keeps of which input is compared with which


@dataclass(frozen=True)
class Side:
    """One of the two inputs.

    Attributes:
        views: The forward pass from what is given to the embedding.
        starts: The tensors in which the explained input begins.
        end: The embedding, [N, ...].
        tokens: Whether the starts hold embedded tokens.
    """

    views: Sequence[View]
    starts: Sequence[Tensor]
    end: Tensor
    tokens: bool


class UnitBuilder(StepBuilder):
    """Multiplies first what does not change with the units: (c mask) share becomes c (mask share), with one product."""

    def __init__(self, parent: Builder) -> None:
        super().__init__(parent)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}  # of products: what changes, and what does not

    def many(
        self, op: str, outputs: int, *x: Operand | None, shape: Shape | None = None, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """Emits a node, or one in place of two."""
        pair = [self.adopt(t) for t in x if isinstance(t, Tensor)]
        changing = [t for t in pair if self.inside(t) and not t.constant]
        if op != "Mul" or len(pair) != 2 or len(changing) != 1:
            return super().many(op, outputs, *x, shape=shape, **attrs)
        c, fixed = changing[0], pair[1 - pair.index(changing[0])]
        before, factor = self._factors.get(c.name, (c, fixed))
        if before is not c and factor.shape == fixed.shape:
            c, fixed = before, super().many("Mul", 1, factor, fixed)[0]
        made = super().many(op, outputs, c, fixed, shape=shape, **attrs)
        self._factors[made[0].name] = c, fixed
        return made


@method("bilrp", pool=16, project=0, similarity="dot", seed=0)
def bilrp(job: Job) -> Result:
    """R_ii' = sum over units m of LRP(phi_m, x)_i LRP(phi_m, x')_i', with LRP started at phi_m itself.

    Gives `similarity` [N] and `relevance` [N, regions of the first, regions of the second], and with a ledger
    `explained` (the similarity once more) and `ledger` [N].

    An encoder gets a second input of each kind, `other`. A model that compares two inputs by itself, at its end, keeps
    its inputs and its similarity.

    Raises:
        RuleError: Not one explained input with a batch, or a size that is not known.
    """
    b = job.p.builder
    first, second, similarity, scale = compared_by_itself(job) if len(job.inputs) == 2 else encoded_twice(job)
    if job.chunk > 1:
        first, second = (repeated(job, side) for side in (first, second))
    relevance, missing = over_units(job, (first, second))
    job.outputs |= {"similarity": similarity, "relevance": relevance * b.Unsqueeze(scale, [1, 2])}
    if job.books:
        job.outputs |= {"explained": similarity, "ledger": missing * scale}
    return {}


def adjust(
    rules: composite.Composite,
    pool: str | int | None = None,
    inner: str | os.PathLike[str] | None = None,
    project: int | None = None,
) -> None:
    """Applies the options that this method alone takes, and refuses them for others.

    Args:
        pool: Side of the regions; text is for neuralized models.
        inner: The rule set that explains each unit.
        project: How many random projections of the embedding take its units' place.

    Raises:
        RuleError: The rule set takes no such option, or the inner one is no set of rules for one pass.
    """
    options = {"pool": None if isinstance(pool, str) else pool, "inner": inner, "project": project}
    asked = {option: value for option, value in options.items() if value is not None}
    if rules.method not in PAIRING:
        for option, value in asked.items():
            raise RuleError(f"--{option} {value} is for --rule bilrp; rule '{rules.name}' compares no two inputs")
        return
    if isinstance(pool, str):
        raise RuleError(f"--pool {pool} is for neuralized models; rule '{rules.name}' takes the side of its regions")
    if asked.pop("inner", None) is not None:
        found = composite.load(Path(inner) if isinstance(inner, os.PathLike) else str(inner))
        if found.method or found.output != "relevance" or found.neuralize:
            raise RuleError(f"--inner {inner}: it explains each unit in one pass, so it must be LRP rules")
        own = {key: value for key, value in rules.parameters.items() if key in METHOD_PARAMETERS[rules.method]}
        rules.entries, rules.parameters = found.entries, {**found.parameters, **own}
        rules.name, rules.text = f"{rules.name}-{found.name}", f"{rules.text}\n# inner:\n{found.text}"
    rules.set(asked)


def encoded_twice(job: Job) -> tuple[Side, Side, Tensor, Tensor]:
    """An encoder's two sides, the similarity of their embeddings and of what dot product it is which multiple.

    Raises:
        RuleError: Several inputs are explained, or samples can't be told apart.
    """
    if len(job.inputs) != 1 or not job.seed.batched:
        raise RuleError(
            "bilrp compares one explained input that has a batch axis (--explain-input names it), or two inputs in a "
            "model that ends in a dot product of them"
        )
    given, p = job.inputs[0], job.p
    asked = [t for t in p.inputs if t.name in p.required]
    first = Side(between(p, asked, job.end.tensor), given.starts, job.end.tensor, given.tokens)
    fed = {t.name: another(job, t, OTHER if len(asked) == 1 else f"{OTHER}_{t.name}") for t in asked}
    second = again(job, first, fed)
    job.fed |= {(OTHER, name): t for name, t in fed.items()}
    job.notes.append(f"compares two inputs: the second is fed as {', '.join(repr(t.name) for t in fed.values())}")
    return first, second, *compared(p.builder, job, first.end, second.end)


def another(job: Job, t: Tensor, name: str) -> Tensor:
    """A second input of the kind of one of the model's own; zero unless it is fed.

    Raises:
        RuleError: Its rank is not known.
    """
    if t.shape is None:
        raise RuleError(f"bilrp feeds a second input beside '{t.name}', so the rank of that must be known")
    p, name = job.p, job.p.builder.unique(name)
    sizes = tuple(d if isinstance(d, int) else f"{OTHER}_{d or f'{t.name}_{i}'}" for i, d in enumerate(t.shape))
    job.extra[name] = np.zeros([d if isinstance(d, int) else 1 for d in sizes], t.dtype)
    assert t.dtype is not None
    p.tensors[name] = p.builder.outside(name, t.dtype, sizes)
    return p.tensors[name]


def compared_by_itself(job: Job) -> tuple[Side, Side, Tensor, Tensor]:
    """The same of a model whose output is a multiple of the dot product of two branches.

    Raises:
        RuleError: It is not, or a branch reads no explained input.
    """
    p, b, end = job.p, job.p.builder, job.end.tensor
    names = [given.tensor.name for given in job.inputs]
    found = branches.find(p, end)
    if found is not None and names[0] in found.reads[1]:
        found = found.swapped()
    if found is None or not job.seed.batched or any(n not in r for n, r in zip(names, found.reads, strict=True)):
        raise RuleError(
            f"bilrp: '{end.name}' is no dot product or cosine of what is made of '{names[0]}' and of '{names[1]}'; "
            "name one input of an encoder with --explain-input"
        )
    if job.parameter("project") or job.parameter("similarity") != "dot":
        raise RuleError(f"bilrp: '{end.name}' is a similarity as it is; 'project' and 'similarity' are for encoders")
    sides = []
    for given, embedding, read in zip(job.inputs, found.embeddings, found.reads, strict=True):
        views = between(p, [t for t in p.inputs if t.name in read], embedding)
        sides.append(Side(views, given.starts, embedding, given.tokens))
    job.fed[OTHER, names[0]] = job.inputs[1].tensor
    similarity = b.Reshape(end, [-1])
    return sides[0], sides[1], similarity, found.scale(b, similarity)


def again(job: Job, side: Side, known: dict[str, Tensor]) -> Side:
    """The same forward pass on other inputs."""
    known = dict(known)
    with job.p.builder.scope(OTHER):
        views = replayed(job.p.builder, side.views, known)
    return Side(views, [known.get(t.name, t) for t in side.starts], known[side.end.name], side.tokens)


def repeated(job: Job, side: Side) -> Side:
    """The forward pass on as many copies of the batch as units are done at once, one behind the other."""
    b, made = job.p.builder, {y.name for v in side.views for y in v.y if y is not None}
    read = {t.name: t for v in side.views for t in (*v.x, *v.captures) if t and t.name not in made and not t.constant}
    if any(t.shape is None or isinstance(t.shape[0], int) for t in (*read.values(), *side.starts)):
        raise RuleError(f"--chunk {job.chunk}: the model's batch is fixed, so the units are done one by one")
    batch = b.unique(f"{job.chunk}_{side.starts[0].name}")  # one symbol, so that sizes are known to agree
    known = {
        name: b.op("Tile", t, [job.chunk] + [1] * ((t.rank or 1) - 1), shape=(batch, *(t.shape or ())[1:]))
        for name, t in read.items()
    }
    return again(job, side, known)


def compared(b: Builder, job: Job, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The similarity of two embeddings, and by what it is the dot product's multiple, [N] each.

    A random projection P [K, M] of normal numbers over sqrt(K) changes it to <P phi, P phi'>.
    """
    x, y = (b.Flatten(t, axis=1) for t in (x, y))
    projection = projected(job, x)
    if projection is not None:
        x, y = (b.MatMul(t, b.Transpose(b.const(projection))) for t in (x, y))
    dot = b.sum_axes(x * y, [1])
    if job.parameter("similarity") == "dot":
        return dot, b.expand_like(b.const(np.ones((), x.dtype)), dot)
    norms = b.Sqrt(b.sum_axes(x * x, [1])) * b.Sqrt(b.sum_axes(y * y, [1]))
    nothing = b.Equal(norms, 0.0)
    scale = b.where(nothing, 0.0, 1.0 / b.where(nothing, 1.0, norms, like=norms), like=norms)
    return dot * scale, scale


def projected(job: Job, flat: Tensor) -> np.ndarray | None:
    """The random projection [K, M], None if none is asked for."""
    if not job.parameter("project"):
        return None
    count = job.count("project")
    drawn = job.rng().standard_normal((units_of(flat), count)) / np.sqrt(count)
    return np.asarray(drawn.T, flat.dtype)


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
    flat = outer.Flatten(sides[0].end, axis=1)
    weights = projected(job, flat)
    units = units_of(flat) if weights is None else len(weights)
    if units % k:
        raise RuleError(f"--chunk {k}: {units} units can't be done {k} at a time")
    numbers = outer.const(np.arange(units) if weights is None else weights)
    scanned = outer.Reshape(numbers, [units // k, k, *(numbers.shape or ())[1:]])
    b = UnitBuilder(outer)
    sums = nothing(job, sides)
    with b.scope("unit"):
        before = [b.input("sum", t.dtype, t.shape) for t in sums]
        chosen = b.input("unit", scanned.dtype, (scanned.shape or ())[1:])
        rows = chosen
        if weights is None:
            rows = b.CastLike(b.Equal(b.Unsqueeze(chosen, [1]), np.arange(units)[None]), b.adopt(flat))
        maps, totals = [], []
        for side in sides:
            r, total = of_side(job, b, side, rows)
            count = (r.shape or (None, None))[1]
            maps.append(
                b.Reshape(r, [k, -1, count] if isinstance(count, int) else b.Concat([k, -1], b.dim(r, 1), axis=0))
            )
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


def nothing(job: Job, sides: Sequence[Side]) -> list[Tensor]:
    """Where the sums start: zeros [N, P, P'] and [N].

    Raises:
        RuleError: There are too many pairs of regions.
    """
    b, first = job.p.builder, sides[0].end
    maps = [regions(b, job, side, side.starts) for side in sides]
    counts = [(t.shape or (None, None))[1] for t in maps]
    if all(isinstance(c, int) for c in counts) and np.prod(counts) > MOST:  # type: ignore[arg-type]
        raise RuleError(
            f"bilrp: {counts[0]} x {counts[1]} pairs of regions are too many; pool more of them (--pool 32)"
        )
    samples = b.dim(first, 0) if job.chunk == 1 else b.Div(b.dim(first, 0), [job.chunk])
    zero, batch = b.const(np.zeros((), first.dtype)), (first.shape or (None,))[0] if job.chunk == 1 else None
    pairs = b.op("Expand", zero, b.Concat(samples, *(b.dim(t, 1) for t in maps), axis=0), shape=(batch, *counts))
    return [pairs, b.op("Expand", zero, samples, shape=(batch,))]


def regions(b: Builder, job: Job, side: Side, found: Sequence[Tensor]) -> Tensor:
    """Numbers of the starts' shapes summed over each region, [N, P]: over a token's features, an image's squares.

    Raises:
        RuleError: The rank of the input is not known.
    """
    start = side.starts[0]
    if start.rank is None:
        raise RuleError(f"bilrp tells the regions of {start!r} apart, so its rank must be known")
    if side.tokens:
        each = None if start.rank != 3 else (None, (start.shape or ())[1])
        rows = b.Concat(b.dim(adopted(b, side.end), 0), [-1], axis=0)
        return b.add_all([b.op("Reshape", b.sum_axes(t, [-1]), rows, shape=each) for t in found])
    pool = job.count("pool")
    grid = Grid(b, start, found[0], pool, tokens=False)
    t = found[0] if grid.channels is None else b.sum_axes(found[0], [grid.channels])
    rank = start.rank - int(grid.channels is not None)
    for _ in range(rank - 1 if grid.channels is not None and pool > 1 else 0):  # each axis is the last in turn
        t = b.sum_axes(b.Reshape(filled(b, t, pool), [0] * (rank - 1) + [-1, pool]), [rank])
        t = b.Transpose(t, perm=[0, rank - 1, *range(1, rank - 1)])
    return b.Flatten(t, axis=1)


def filled(b: Builder, t: Tensor, multiple: int) -> Tensor:
    """A tensor with zeros behind along its last axis, up to a multiple of a size."""
    size, before = (t.shape or (None,))[-1], [0] * (2 * (t.rank or 1) - 1)
    if isinstance(size, int):
        return b.Pad(t, [*before, -size % multiple]) if size % multiple else t
    return b.Pad(t, b.Concat(before, b.Mod(b.Neg(b.dim(t, -1)), [multiple]), axis=0))


def of_side(job: Job, b: StepBuilder, side: Side, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the regions, [K N, P], and what relevance and ledger sum to, [K N].

    Args:
        weights: Of the embedding's units, [K, M]: where the backward pass starts.
    """
    sub = as_it_stands(job.p, b, side.views, side.starts, side.end)
    starts, end = [b.adopt(t) for t in side.starts], b.adopt(side.end)
    flat = b.Flatten(end, axis=1)
    ones = b.Reshape(b.expand_like(b.const(np.ones((), end.dtype)), flat), [job.chunk, -1, units_of(flat)])
    cotangent = b.reshape_like(ones * b.Unsqueeze(weights, [1]), end)
    kept: Ledger | None = {} if job.books else None
    found = explained_in(job, sub, starts, end, "relevance", cotangent, kept)
    units = held(b, regions(b, job, side, found))
    total = b.sum_axes(units, [1])
    each = replace(job.seed, value=total, batch=None)
    for absorbed in (a for amounts in (kept or {}).values() for a in amounts):
        total = total + total_per_sample(b, absorbed.amount, each, 0)
    return units, total
