"""Backward passes in which only some nodes let relevance pass behind each interaction layer: one for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xaicompile.backward import Flow, Tap
from xaicompile.half import held
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import Job, as_it_stands, explained_in
from xaicompile.methods.structure import Interaction

Masks = Callable[[StepBuilder, Tensor], Sequence[Tensor | None]]


def passes(job: Job, layers: Sequence[Interaction], scanned: Tensor, masks_of: Masks, place: int = 0) -> Tensor:
    """One backward pass for each row of what is scanned, and what it brings to the nodes of the first mask.

    Args:
        masks_of: The masks [nodes], or [N, nodes] for several graphs, of a row: at `place`, then behind each layer
            after it. None for the first: what each node gets is told apart.
        place: The number of layers in front of where the passes end: 0 for the features.

    Returns:
        [rows], or [rows, N] for several graphs; with [nodes] behind where the nodes are told apart.
    """
    outer, start = job.p.builder, job.starts[0]
    several, here, axis = start.rank == 3, start, -2
    if place:
        here, axis = layers[place - 1].state, layers[place - 1].axis
    b = StepBuilder(outer)
    with b.scope("walk"):
        row = b.input("row", scanned.dtype, (scanned.shape or ())[1:])
        first, *others = masks_of(b, row)
        taps = {layer.state.name: tap(b, layer, m) for layer, m in zip(layers[place:], others, strict=True) if m}
        sub = as_it_stands(job.p, b, job.p.views, [start], job.end.tensor)
        seed, at = b.adopt(job.seed.cotangent), b.adopt(here)
        (found,) = explained_in(
            job, sub, [b.adopt(start)], b.adopt(job.end.tensor), "relevance", seed, None, taps, [at]
        )
        brought = by_node(b, found, axis, several)
        ends = b.ends([brought if first is None else b.sum_axes(brought * first, [-1])])
    body = b.graph("walks", [row], ends)
    shape = None if ends[0].shape is None else ((scanned.shape or (None,))[0], *ends[0].shape)
    (stacked,) = outer.typed("Scan", [scanned], [(start.dtype, shape)], body=body, num_scan_inputs=1)
    return held(outer, stacked)


def by_node(b: Builder, found: Tensor, axis: int, several: bool) -> Tensor:
    """Relevance summed over all axes but that of the nodes (and, first, that of graphs)."""
    rank = found.rank or 2
    return b.sum_axes(found, [a for a in range(int(several), rank) if a != rank + axis])


def tap(b: StepBuilder, layer: Interaction, mask: Tensor) -> Tap:
    """Lets pass what arrives at the nodes of a mask."""

    def masked(t: Tensor, flow: Flow) -> Flow:
        several, rank = (mask.rank or 1) - 1, max(t.rank or 0, -layer.axis)
        at = rank + layer.axis
        more = [a for a in range(1 if several else at, rank) if a != at]
        more = more if several else [a - at for a in more]
        passing = b.Unsqueeze(mask, more) if more else mask
        return Flow(*(None if part is None else part * passing for part in (flow.c, flow.r)))

    return masked


def only(b: StepBuilder, nodes: Tensor, walk: Tensor, like: Tensor) -> list[Tensor]:
    """The masks that let pass the nodes of a walk alone, -1 for any.

    Args:
        nodes: The numbers of all nodes, [nodes].
        walk: [steps], or [N, steps] for several graphs.

    Returns:
        One a step, [nodes] or [N, nodes].
    """
    here, steps = b.Unsqueeze(walk, [-1]), (walk.shape or (None,))[-1]
    assert isinstance(steps, int)
    hot = b.CastLike(b.Or(b.Equal(here, b.adopt(nodes)), b.Equal(here, [-1])), b.adopt(like))
    return [b.Gather(hot, b.const(np.asarray(t)), axis=-2) for t in range(steps)]
