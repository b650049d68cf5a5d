"""Occlusion: what the explained value loses where a window of the input is filled (spec 8.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.images import channels_last
from xaicompile.ir import Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import Job, Result, Step, over_steps, score
from xaicompile.registry import method

WINDOW = 16  # by default; on a smaller input it is cut down


@method("occlusion", window=WINDOW, stride=8, fill=0.0)
def occlusion(job: Job) -> Result:
    """f(x) - f(x with a window filled), averaged over the windows that cover a position (Zeiler and Fergus 2014).

    Windows cover all channels; the last ones are cut off at the border, as captum does.

    Raises:
        RuleError: Several inputs, or sizes that are not known.
    """
    if len(job.starts) > 1:
        raise RuleError("rule 'occlusion' fills windows of one input; name it with --explain-input")
    (start,), b = job.starts, job.p.builder
    places, axes = windows(job, start)
    fill, rank = float(job.parameter("fill")), start.rank or 0

    def mask(i: StepBuilder, args: Sequence[Tensor]) -> Tensor:
        inside: Tensor | None = None
        for k, axis in enumerate(axes):
            at = i.const(np.arange(dim(start, axis), dtype=np.int64).reshape([-1] + [1] * (rank - 1 - axis)))
            first, last = (i.Gather(args[0], i.const(np.asarray([2 * k + end], np.int64))) for end in (0, 1))
            here = i.And(at >= first, at < last)
            inside = here if inside is None else i.And(inside, here)
        assert inside is not None
        return i.CastLike(inside, start)

    def points(i: StepBuilder, args: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        filled = mask(i, args)
        return [given[0] * (1.0 - filled) + filled * fill]

    def summed(i: StepBuilder, step: Step) -> list[Tensor]:
        lost = i.adopt(job.seed.value) - score(i, job, step.end)
        return [i.expand_like(i.Unsqueeze(lost, list(range(1, rank))) * mask(i, step.args), step.clean[0])]

    covered = np.zeros([dim(start, a) for a in axes])
    for place in places:
        covered[tuple(slice(lo, hi) for lo, hi in place.reshape(-1, 2))] += 1
    shape = [dim(start, a) if a in axes else 1 for a in range(rank)]
    counts = b.const(np.maximum(covered, 1).reshape(shape).astype(start.dtype))
    (total,) = over_steps(job, [b.const(places)], [job.zeros(start)], points, summed, kind=None)
    return {start.name: total / counts}


def windows(job: Job, t: Tensor) -> tuple[np.ndarray, list[int]]:
    """First and last position of each window along each of its axes, [windows, 2 axes], and the axes.

    Raises:
        RuleError: The window that is asked for is larger than the input.
    """
    rank = t.rank or 0
    first = {2: 1, 3: 1 if job.inputs[0].tokens else 2}.get(rank, 2)
    axes = [1, 2] if channels_last(t.shape) else list(range(first, rank)) if rank > 1 else [0]
    if job.inputs[0].tokens:
        axes = [1]
    spans, wanted, stride = [], job.count("window"), job.count("stride")
    if wanted > max(dim(t, axis) for axis in axes) and wanted != WINDOW:
        raise RuleError(f"parameter 'window' is {wanted}, larger than {t!r}")
    for axis in axes:
        size = dim(t, axis)
        window = min(wanted, size)
        steps = 1 + -(-(size - window) // stride)
        spans.append([(i * stride, min(i * stride + window, size)) for i in range(steps)])
    return np.asarray([np.ravel(place) for place in product(*spans)], np.int64), axes


def dim(t: Tensor, axis: int) -> int:
    """A dimension that must be known.

    Raises:
        RuleError: It is not.
    """
    size = (t.shape or ())[axis] if t.rank is not None and t.rank > axis else None
    if not isinstance(size, int):
        raise RuleError(f"rule 'occlusion' needs the sizes of {t!r} to be known")
    return size
