"""The gradient differentiated once more, by the same reverse loop: products of the Hessian with a vector.

The nodes that a backward pass emits are recorded as views; they follow those of the forward pass, and a second pass
starts at the gradient with the vector as its cotangent. The Hessian is symmetric, so what arrives at the input is its
product with the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xaicompile.backward import backward
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.loops import with_loops
from xaicompile.ir.steps import StepBuilder, adopted, replayed
from xaicompile.methods.chunks import check_chunks, several
from xaicompile.methods.curvature import is_flat, rounded
from xaicompile.methods.groups import Groups
from xaicompile.methods.job import Job, between, program
from xaicompile.ruled import ruled

FLAT = (
    "the Hessian of a piecewise linear network is zero almost everywhere: use --rule bilrp for similarities, or "
    "--set softplus=BETA"
)


@dataclass(frozen=True)
class Place:
    """A point, and what is emitted of the explained scalar there.

    Attributes:
        start: The point, [N, ...].
        views: Forward pass and gradient; nodes that were asked for twice stand there twice, which does no harm.
        gradient: Of the start's shape.
        flat: Whether the network is piecewise linear.
    """

    start: Tensor
    views: Sequence[View]
    gradient: Tensor
    flat: bool


def expanded(job: Job, b: Builder, at: Tensor, copies: int = 1) -> Place:
    """The forward pass and the gradient at a point.

    Args:
        b: Where they are emitted; at the input itself the prediction's own nodes are read.
        at: The point, of the explained input's shape, that many times behind each other.

    Raises:
        RuleError: The sharpness of the softplus is 0.
    """
    start, end = job.starts[0], job.end.tensor
    views, beta = between(job.p, [start], end), sharpness(job)
    at = Tensor(at.var, at.builder, at.dtype, start.shape if copies == 1 else at.shape)  # data, even if it is constant
    if beta is not None or at.name != start.name or at.builder is not b:
        known = {start.name: at}
        with b.scope("point"):
            views = replayed(b, views, known) if beta is None else rounded(b, views, known, beta)
        end = known.get(end.name) or adopted(b, end)
    seed = adopted(b, job.seed.cotangent)
    cotangent = seed if copies == 1 else tiled(job, b, seed)
    p = program(job.p, b, [view.varied(bodies=()) for view in views], [at], end)
    facts, before = Facts(p, [at.name]), len(b.nodes)
    with b.recorded() as record:  # also of what subgraphs make of the input alone, which stands before their loops
        job.ruled = ruled(p, facts, job.rules, end)
        flows = backward(p, facts, {end.name: cotangent}, [at.name], job.ruled.pick)
        gradient = flows[at.name].cotangent(b, at)
    flat = is_flat(job.ruled.views, facts)
    if flat and FLAT not in job.notes:
        job.notes.append(FLAT)
    made = with_loops(b, before, record, {**job.p.tensors, **p.tensors})
    return Place(at, [*views, *made], gradient, flat)


def times(job: Job, b: Builder, place: Place, v: Tensor) -> Tensor:
    """The Hessian's product with v, of the start's shape; exactly 0 for a piecewise linear network."""
    start = adopted(b, place.start)
    if place.flat:
        return b.zeros_like(start)
    views = [named(b, view, i) for i, view in enumerate(place.views)]
    gradient = adopted(b, place.gradient)
    p = program(job.p, b, views, [start], gradient)
    facts = Facts(p, [start.name])
    chosen = ruled(p, facts, job.rules, gradient)
    return backward(p, facts, {gradient.name: v}, [start.name], chosen.pick)[start.name].cotangent(b, start)


def interactions(job: Job, b: Builder, at: Tensor, delta: Tensor, groups: Groups) -> Tensor:
    """H_ij delta_i delta_j, summed over the values of each two groups: [N, groups, groups].

    One Scan over the groups; the row of one is the product with its part of delta.

    Raises:
        RuleError: So many rows can't be done at a time.
    """
    k, count = job.chunk, groups.count
    if k > 1:
        check_chunks(job, between(job.p, job.starts, job.end.tensor))
        if count % k:
            raise RuleError(f"--chunk {k}: {count} rows of the Hessian can't be done {k} at a time")
        at = tiled(job, b, at)
    place = expanded(job, b, at, k)
    inner = StepBuilder(b)
    with inner.scope("row"):
        rows = inner.input("rows", np.dtype(np.int64), (k,))
        own = inner.Unsqueeze(inner.adopt(delta), [0])  # [1, N, ...]
        chosen = inner.Equal(inner.Unsqueeze(rows, [1]), np.arange(count, dtype=np.int64)[None])
        mask = groups.spread(inner, inner.CastLike(chosen, own))  # [K, ...]
        v = inner.Unsqueeze(mask, [1]) * own
        found = times(job, inner, place, inner.reshape_like(v, inner.adopt(place.start)))
        terms = inner.reshape_like(found, v) * own
        sums = groups.sums(inner, inner.reshape_like(terms, inner.adopt(place.start)))
        ends = inner.ends([inner.Reshape(sums, [k, -1, count])])
    body = inner.graph("rows", [rows], ends)
    samples = (delta.shape or (None,))[0]
    numbers = b.const(np.arange(count, dtype=np.int64).reshape(count // k, k))
    kind = [(delta.dtype, (count // k, k, samples, count))]
    (stacked,) = b.typed("Scan", [numbers], kind, body=body, num_scan_inputs=1)
    return b.op("Reshape", b.Transpose(stacked, perm=[2, 0, 1, 3]), [0, count, count], shape=(samples, count, count))


def tiled(job: Job, b: Builder, t: Tensor) -> Tensor:
    """As many copies of a batch behind each other as rows are done at a time."""
    return b.op("Tile", t, [job.chunk] + [1] * ((t.rank or 1) - 1), shape=(several(job), *(t.shape or ())[1:]))


def named(b: Builder, view: View, i: int) -> View:
    """A view for use with a builder, of a short name, its subgraphs unread."""
    x, y = ([t and adopted(b, t) for t in tensors] for tensors in (view.x, view.y))
    return view.varied(name=f"second/{view.op}_{i}", x=x, y=y, bodies=())


def sharpness(job: Job) -> float | None:
    """Of the softplus that stands for each ReLU, None if none does.

    Raises:
        RuleError: It is 0.
    """
    beta = job.parameter("softplus")
    if beta is not None and beta <= 0:
        raise RuleError(f"parameter 'softplus' is {beta}; the sharpness must be larger than 0")
    return None if beta is None else float(beta)
