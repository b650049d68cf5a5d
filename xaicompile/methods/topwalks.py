"""All walks of a small graph, and the walks with the most relevance by a search in the emitted graph.

A pass that lets only certain nodes through behind the last layers and anything in front of them brings to each node,
behind the layer before, the sum of all walks that go on from there by those nodes. So one pass gives as many walks as
there are nodes, and walks are found from their end: of all ends of walks that were found, the largest are kept (the
beam) and lengthened by one node in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import Job
from xaicompile.methods.masked import Masks, only, passes
from xaicompile.methods.structure import Interaction

MOST = 20_000_000  # walks


def ends_in(job: Job, nodes: Tensor) -> Masks:
    """The masks of walks whose first node is told apart and whose others a row gives."""

    def masks(inner: StepBuilder, row: Tensor) -> list[Tensor | None]:
        return [None, *only(inner, nodes, row, job.starts[0])]

    return masks


def all_walks(job: Job, layers: Sequence[Interaction], nodes: Tensor) -> Tensor:
    """Relevance of every walk, in nodes^T passes for T layers.

    Returns:
        [nodes, ..., nodes] with one axis for each node of a walk, the first first; [N, ...] for several graphs.

    Raises:
        RuleError: There are too many.
    """
    b, start, steps = job.p.builder, job.starts[0], len(layers)
    count = (start.shape or (None, None))[-2]
    if isinstance(count, int) and count ** (steps + 1) > MOST:
        raise RuleError(f"--all-walks: {count}^{steps + 1} walks are too many; take --top-walks 100")
    n = b.dim(start, -2)
    power, columns = b.const(np.ones(1, np.int64)), list[Tensor]()
    for _ in layers:
        power = power * n
    zero, one = b.const(np.asarray(0)), b.const(np.asarray(1))
    numbers = b.Range(zero, b.Squeeze(power, [0]), one)
    for _ in layers:
        power = b.Div(power, n)
        columns.append(b.Unsqueeze(b.Mod(b.Div(numbers, power), n), [1]))
    found = passes(job, layers, b.Concat(*columns, axis=1) if steps > 1 else columns[0], ends_in(job, nodes))
    several = start.rank == 3
    sizes = b.Concat(*[n] * steps, *([b.dim(start, 0)] if several else []), n, axis=0)
    known = ((start.shape or (None,))[0],) if several else ()
    shaped = b.op("Reshape", found, sizes, shape=(*[count] * steps, *known, count))
    return b.Transpose(shaped, perm=[*range(steps, (shaped.rank or 0)), *range(steps)])


def top_walks(
    job: Job, layers: Sequence[Interaction], nodes: Tensor, last: Tensor, most: int, beam: int
) -> tuple[Tensor, Tensor]:
    """The walks with the largest relevance, of either sign, the largest first.

    Args:
        last: Relevance of the nodes behind the last layer, [nodes] or [N, nodes].
        most: How many are given; if fewer are found that have any relevance, -1 and 0 stand for the others.
        beam: How many ends of walks are kept from layer to layer. With as many as there are, nothing is missed.

    Returns:
        The walks, int64 [most, T + 1], and their relevance, [most]; with [N, ...] in front for several graphs.
    """
    b, steps, several = job.p.builder, len(layers), last.rank == 2
    n, graphs = b.dim(job.starts[0], -2), (last.shape or (None,))[0] if several else 1
    scores = last if several else b.Unsqueeze(last, [0])
    _, walks = largest(b, scores, beam)
    walks = b.Unsqueeze(walks, [2])
    for place in range(steps - 1, -1, -1):
        rows = b.Transpose(walks, perm=[1, 0, 2])
        found = passes(job, layers, rows if several else b.Squeeze(rows, [1]), ends_in(job, nodes), place)
        found = b.Transpose(found, perm=[1, 0, 2]) if several else b.Unsqueeze(found, [0])
        scores = b.op("Reshape", found, [0, -1], shape=(graphs, None))
        scores, picked = largest(b, scores, beam if place else most)
        behind = b.op(
            "GatherND", walks, b.Unsqueeze(b.Div(picked, n), [2]), batch_dims=1, shape=(graphs, None, steps - place)
        )
        walks = b.Concat(b.Unsqueeze(b.Mod(picked, n), [2]), behind, axis=2)
    walks = b.where(b.Unsqueeze(b.Equal(scores, 0.0), [2]), b.const(np.asarray(-1)), walks, like=walks)
    lacking = b.Sub([most], b.Shape(scores, start=1))
    walks = b.op("Pad", walks, b.Concat([0] * 4, lacking, [0], axis=0), np.asarray(-1), shape=(graphs, most, steps + 1))
    scores = b.op("Pad", scores, b.Concat([0] * 3, lacking, axis=0), shape=(graphs, most))
    return (walks, scores) if several else (b.Squeeze(walks, [0]), b.Squeeze(scores, [0]))


def largest(b: Builder, scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest numbers of either sign in each row, and where they are; not more than any row has that are not 0."""
    some = b.sum_axes(b.Cast(b.Not(b.Equal(scores, 0.0)), to=7), [1])
    count = b.Min([most], b.Max([1], b.op("ReduceMax", some, keepdims=1)))
    shape = ((scores.shape or (None,))[0], None)
    _, at = b.many("TopK", 2, b.Abs(scores), count, axis=1)
    at.shape = shape
    return b.op("GatherElements", scores, at, axis=1, shape=shape), at
