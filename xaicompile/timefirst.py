"""Models that read time first: a recurrent op goes along axis 0 of the explained inputs, and samples lie along axis 1.

Each sample is explained by itself all the same. Which axis of the explained tensor holds the samples is proven by
following them through the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.explained import End, Given
from xaicompile.facts import Facts
from xaicompile.ir import Program, Tensor, View
from xaicompile.samples import Samples, find, front
from xaicompile.seeds import Question, Seeds, seeds_of


def behind_time(views: Sequence[View], facts: Facts, inputs: Sequence[Given], end: Tensor) -> Samples | None:
    """Where the samples are, if a loop goes along axis 0 of the inputs and axis 1 reaches `end` unmixed; else None."""
    starts = [t for given in inputs for t in given.starts]
    if not any(v.op == "Scan" and not v.domain for v in views) or any(t.rank is None or t.rank < 2 for t in starts):
        return None
    if not find(views, facts, starts, end).stepped:
        return None
    found = find(views, facts, starts, end, axis=1)
    return None if found.mixed or end.name not in found.axes else found


def seeds_behind_time(
    p: Program, end: End, data: Tensor, asked: Question, pool: str | None, samples: Samples, by_axis_0: bool
) -> Seeds:
    """The same as `seeds_of`, for samples along another axis than 0.

    Args:
        by_axis_0: Whether something is asked for that counts samples along axis 0 of inner tensors.

    Raises:
        RuleError: That, or several maps.
    """
    if asked.maps is not None or by_axis_0:
        option = "--maps" if asked.maps is not None else "--concepts and --top-concepts"
        raise RuleError(f"{option}: axis 0 of '{data.name}' is time here; this is for models whose axis 0 is the batch")
    b, t = p.builder, end.tensor
    at = front(t, samples.axes[t.name])
    order = [at, *(i for i in range(t.rank or 0) if i != at)]
    with b.scope("seed"):
        moved = b.Transpose(t, perm=order) if at else t
    seeds = seeds_of(p, replace(end, tensor=moved), moved, asked, pool)
    with b.scope("seed"):
        if at:
            turned = [int(i) for i in np.argsort(order)]
            seeds.each = [replace(s, cotangent=b.Transpose(s.cotangent, perm=turned)) for s in seeds.each]
    seeds.notes.append(
        f"axis 0 of '{data.name}' is time: samples lie along its axis 1, and along axis {at} of '{t.name}'"
    )
    return seeds
