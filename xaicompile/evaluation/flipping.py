"""Pixel flipping in the graph: what a score loses as values are replaced, the most relevant first (spec 12).

Samek et al. 2017. One Scan: the forward pass stands in the file once more, whatever the number of steps, and reads the
weights that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from xaicompile.composite import Composite
from xaicompile.errors import RuleError
from xaicompile.explained import End, Explained, Given
from xaicompile.grid import Grid
from xaicompile.ir import Builder, Program, Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import MOST, Job, Step, over_steps, score
from xaicompile.outputs import Outputs
from xaicompile.registry import nearest

WORDS = {
    "order": ("morf", "lerf"),
    "replacement": ("zero", "mean", "blur", "noise", "inpaint"),
    "score": ("logit", "probability", "output"),
}
WHOLE = ("steps", "patch", "seed")
BLUR = 5.0  # standard deviation of the blur in pixels; it reaches three of them


@dataclass(frozen=True)
class Flipping:
    """How values are flipped.

    Attributes:
        steps: L; the curve has L + 1 points, the first of which is the score as it is.
        fraction: How much of the input is flipped in the end, in (0, 1].
        patch: Side of the squares of pixels that are flipped together.
        order: Most relevant first ("morf"), or least ("lerf").
        replacement: 0, the mean of each sample and channel, the sample blurred, seeded uniform noise in its range, or
            the mean of what is left in the neighbourhood ("inpaint").
        score: The explained value itself, the class's probability under a softmax of the explained tensor, or the
            model's own output of that class.
    """

    steps: int = 100
    fraction: float = 1.0
    patch: int = 1
    order: str = "morf"
    replacement: str = "zero"
    score: str = "logit"
    seed: int = 0


def settings(given: Mapping[str, Any]) -> tuple[Flipping, dict[str, Any]]:
    """What is set for the flipping, and what is left for the rule set; `rule.KEY` is the rule set's where both have it.

    Raises:
        RuleError: A value that does not fit.
    """
    known = {f.name for f in fields(Flipping)}
    left = {k.removeprefix("rule."): v for k, v in given.items() if k not in known}
    found = {k: v for k, v in given.items() if k in known}
    for key, value in found.items():
        if key in WORDS:
            if value not in WORDS[key]:
                raise nearest(str(value), WORDS[key], f"value of pixel-flipping's '{key}':")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise RuleError(f"pixel-flipping: '{key}' is a number, not {value!r}")
        elif key in WHOLE and (value != int(value) or not (key != "seed") <= value <= MOST):
            raise RuleError(f"pixel-flipping: '{key}' is {value}; it must be a whole number of at least 1")
        elif key == "fraction" and not 0 < value <= 1:
            raise RuleError(f"pixel-flipping: 'fraction' is {value}; it must be above 0 and at most 1")
    return Flipping(**found), left


def flipped(
    p: Program,
    rules: Composite,
    end: End,
    given: Given,
    seed: Explained,
    relevance: Tensor,
    how: Flipping,
    chunk: int | None,
) -> Outputs:
    """The curve of each sample and its areas.

    Args:
        given: The input that is flipped; of token ids the embeddings are.
        seed: The explained scalar of each sample; the target stays what it is for the clean input.
        relevance: Of the input, one number a value, or one a token.

    Returns:
        `flipping_curve` [N, steps + 1]; `aopc` = mean(y_0 - y_k) over all its points, `aoc` = aopc / y_0, and `auc` =
        mean(y_k), [N] each, so that aopc + auc = y_0.

    Raises:
        RuleError: The input's sizes are not known, or it has no batch.
    """
    b, (start, *more) = p.builder, given.starts
    if more or not seed.batched:
        raise RuleError("pixel-flipping replaces values of one input with a batch axis; name it with --explain-input")
    grid = Grid(b, start, relevance, 1 if given.tokens else how.patch, given.tokens)
    ranks = grid.spread(ranked(b, grid.units(), how.order))
    new = None if how.replacement == "inpaint" else replacement(b, grid, how)
    if how.score == "output":
        end = End(own_output(p, end.tensor))
    counts = np.round(np.arange(how.steps + 1) * grid.count * how.fraction / how.steps).astype(np.int64)

    def points(i: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        gone = i.CastLike(i.Less(i.adopt(ranks), args[0]), clean[0])
        fresh = grid.as_image(i, inpainted, clean[0], gone) if new is None else i.adopt(new)
        return [clean[0] + gone * (fresh - clean[0])]

    def summed(i: StepBuilder, step: Step) -> list[Tensor]:
        value = probability(i, job, step.end) if how.score == "probability" else score(i, job, step.end)
        here = i.CastLike(i.Equal(i.const(np.arange(how.steps + 1, dtype=np.int64)), step.args[1]), value)
        return [i.Unsqueeze(value, [1]) * i.Unsqueeze(here, [0])]

    job = Job(p, rules, end, [given], seed, chunk=chunk or 1)
    zeros = b.expand_like(
        b.const(np.zeros((1, how.steps + 1), start.dtype)),
        b.op("Tile", b.Unsqueeze(seed.value, [1]), [1, how.steps + 1]),
    )
    scanned = [b.const(counts), b.const(np.arange(how.steps + 1, dtype=np.int64))]
    (curve,) = over_steps(job, scanned, [zeros], points, summed, kind=None)
    clean = b.Squeeze(b.op("Slice", curve, [0], [1], [1]), [1])
    auc = b.mean_axes(curve, [1], keepdims=False)
    aopc, nothing = clean - auc, b.Equal(clean, 0.0)
    aoc = b.where(nothing, 0.0, aopc / b.where(nothing, 1.0, clean, like=clean), like=clean)
    return {"flipping_curve": curve, "aopc": aopc, "aoc": aoc, "auc": auc}


def ranked(b: Builder, units: Tensor, order: str) -> Tensor:
    """When each unit is flipped, [N, units] int64; ties in the order of their places."""
    count = (units.static or units.shape or (None, None))[1]
    assert isinstance(count, int)
    _, places = b.many("TopK", 2, units, [count], axis=1, largest=int(order == "morf"))
    turns = b.op("Expand", b.const(np.arange(count, dtype=np.int64)[None]), b.shape_of(places), shape=places.shape)
    return b.op("ScatterElements", turns, places, turns, axis=1)


def replacement(b: Builder, grid: Grid, how: Flipping) -> Tensor:
    """What takes the place of flipped values, of a shape that broadcasts over the start."""
    t = grid.start
    rank = t.rank or 2
    if how.replacement == "zero":
        return b.const(np.zeros((), t.dtype))
    if how.replacement == "mean":
        return b.mean_axes(t, grid.axes)
    if how.replacement == "noise":
        sample = [d for d in (t.shape or ())[1:] if isinstance(d, int)]
        if len(sample) != rank - 1:
            raise RuleError(f"pixel-flipping draws noise for each value of {t!r}, whose sizes must be known")
        drawn = b.const(np.random.default_rng(how.seed).uniform(size=[1, *sample]).astype(t.dtype))
        axes = list(range(1, rank))
        low, high = (b.op(f"Reduce{end}", t, axes, keepdims=1) for end in ("Min", "Max"))
        return low + drawn * (high - low)
    return grid.as_image(b, blurred, t)


def blurred(b: Builder, t: Tensor) -> Tensor:
    """An image or a signal, each channel under a Gaussian, the border mirrored.

    Raises:
        RuleError: t has no positions, or is smaller than the blur reaches.
    """
    rank, channels = t.rank or 0, (t.shape or (None, None))[1]
    sizes = [d for d in (t.shape or ())[2:] if isinstance(d, int)]
    reach = int(3 * BLUR)
    if rank < 3 or not isinstance(channels, int) or len(sizes) != rank - 2 or min(sizes) <= reach:
        raise RuleError(f"pixel-flipping: replacement=blur is for images of more than {reach} pixels, not {t!r}")
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / BLUR) ** 2)
    bell /= bell.sum()
    t = b.Pad(t, [0, 0, *[reach] * len(sizes)] * 2, mode="reflect")
    for axis in range(len(sizes)):
        shape = [channels, 1] + [len(bell) if i == axis else 1 for i in range(len(sizes))]
        kernel = np.broadcast_to(bell.reshape([1, 1, *shape[2:]]), shape)
        t = b.Conv(t, b.const(kernel.astype(t.dtype)), group=channels)
    return t


def inpainted(b: Builder, x: Tensor, gone: Tensor) -> Tensor:
    """Each flipped pixel as the mean of what is left in the smallest square around it, of side 2, 4, 8, ...

    The squares are those of a grid, so that a pyramid of averages finds them all; 0 where nothing is left.

    Raises:
        RuleError: x is no image or signal of known size.
    """
    rank = x.rank or 0
    sizes = [d for d in (x.shape or ())[2:] if isinstance(d, int)]
    if rank < 3 or len(sizes) != rank - 2:
        raise RuleError(f"pixel-flipping: replacement=inpaint is for images of known size, not {x!r}")
    levels = int(np.ceil(np.log2(max(sizes))))
    wide = [-(-d // 2**levels) * 2**levels - d for d in sizes]
    left = b.Pad(1.0 - gone, [0] * (2 + len(sizes)) + [0, 0, *wide])
    kept = b.Pad(x, [0] * (2 + len(sizes)) + [0, 0, *wide]) * left
    pyramid = [(kept, left)]
    for _ in range(levels):
        two = {"kernel_shape": [2] * len(sizes), "strides": [2] * len(sizes)}
        pyramid.append((b.AveragePool(pyramid[-1][0], **two), b.AveragePool(pyramid[-1][1], **two)))
    filled: Tensor | None = None
    for values, share in reversed(pyramid):
        known = share > 0.0
        mean = values / b.where(known, share, 1.0, like=share)
        if filled is not None:
            scales = b.const(np.asarray([1.0, 1.0, *[2.0] * len(sizes)], np.float32))
            wider = b.op(
                "Resize",
                filled,
                None,
                scales,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            mean = b.Where(known, mean, wider)
        filled = mean
    assert filled is not None
    return b.op("Slice", filled, [0] * len(sizes), sizes, list(range(2, rank)), shape=x.shape)


def own_output(p: Program, explained: Tensor) -> Tensor:
    """The model's output that has a value for each of the explained tensor's.

    Raises:
        RuleError: There is none.
    """
    found = next((t for t in p.outputs if t.is_float and t.shape == explained.shape), None)
    if found is None:
        raise RuleError(f"pixel-flipping: no output of the model is shaped like {explained!r}; leave score=output out")
    return found


def probability(b: StepBuilder, job: Job, end: Tensor) -> Tensor:
    """The explained class's probability under a softmax over a sample's values, [N]."""
    flat = b.Flatten(end, axis=1)
    chosen = b.Flatten(b.adopt(job.seed.cotangent), axis=1)
    return b.sum_axes(b.Softmax(flat, axis=1) * chosen, [1])
