"""Methods that average a rule set over noisy inputs (spec 8.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.half import held, narrowed, widened
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import Job, Result, Step, Summed, over_steps
from xaicompile.registry import method

NOISE = {"samples": 25, "sigma": 0.1, "seed": 0, "noise": "relative"}


def drawn(job: Job, samples: int) -> list[Tensor]:
    """Standard normal numbers for each start, [samples, *one sample], the same for all samples of a batch."""
    rng = job.rng()
    return [
        job.p.builder.const(rng.standard_normal((samples, *job.sample_shape(s))).astype(s.dtype)) for s in job.starts
    ]


def width(job: Job, t: Tensor) -> Tensor:
    """The standard deviation of the noise: sigma, in units of the range of each sample where noise is relative."""
    b, sigma = job.p.builder, float(job.parameter("sigma"))
    if job.parameter("noise") == "absolute":
        return b.const(np.asarray(sigma, t.dtype))
    axes = list(range(1 if job.seed.batched else 0, t.rank or 1))
    ends = [b.op(f"Reduce{end}", t, axes, keepdims=1) for end in ("Max", "Min")]
    return held(b, (ends[0] - ends[1]) * sigma)


def noisy(
    b: StepBuilder, clean: Sequence[Tensor], noise: Sequence[Tensor], wide: Sequence[Tensor], index: Tensor
) -> list[Tensor]:
    """The starts with noise number `index` on them."""
    picked = [b.Gather(b.adopt(n), index, axis=0) for n in noise]
    return [x + n * b.adopt(w) for x, n, w in zip(clean, picked, wide, strict=True)]


def over_noise(job: Job, scanned: Sequence[Tensor], sums: int, summed: Summed) -> Sequence[Tensor]:
    """The sums, so many for each start, after the rule set's results at all noisy inputs; float32 for half precision.

    Raises:
        RuleError: The noise has a negative width.
    """
    samples, starts, outer = job.count("samples"), job.starts, job.p.builder
    if job.parameter("sigma") < 0:
        raise RuleError(f"parameter 'sigma' is {job.parameter('sigma')}; it must not be negative")
    noise, wide = drawn(job, samples), [width(job, s) for s in starts]

    def points(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        return noisy(b, clean, noise, wide, args[0])

    zeros = [outer.zeros_like(widened(outer, s)) for _ in range(sums) for s in starts]
    index = outer.const(np.arange(samples, dtype=np.int64))
    return over_steps(job, [index, *scanned], zeros, points, summed, kind=job.rules.output)


def averaged(job: Job, power: int) -> Result:
    """The mean over noisy inputs of the rule set's result to a power, for each start."""
    samples = job.count("samples")

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        found = [widened(b, r) for r in step.found]
        return [(r if power == 1 else squared(b, r)) * (1 / samples) for r in found]

    means = over_noise(job, [], 1, summed)
    return {s.name: narrowed(job.p.builder, m, s) for s, m in zip(job.starts, means, strict=True)}


def squared(b: Builder, t: Tensor) -> Tensor:
    """The square, held at the largest number of its type."""
    return b.Min(t * t, float(np.finfo(t.dtype or np.float32).max))


@method("smoothgrad", **NOISE)
def smoothgrad(job: Job) -> Result:
    """The mean over noisy inputs (Smilkov et al. 2017)."""
    return averaged(job, 1)


@method("gradient-squared", **NOISE)
def gradient_squared(job: Job) -> Result:
    """The mean square over noisy inputs (Hooker et al. 2019)."""
    return averaged(job, 2)


@method("vargrad", **NOISE)
def vargrad(job: Job) -> Result:
    """The variance over noisy inputs (Adebayo et al. 2018).

    A running mean and the sum of squares about it (Welford 1962): the mean square less the square of the mean would
    cancel where the gradient hardly varies.
    """
    samples, starts, outer = job.count("samples"), job.starts, job.p.builder

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        share, weight = step.args[1:]
        moves, squares = [], []
        for r, mean in zip((widened(b, r) for r in step.found), step.sums, strict=False):
            moves.append(r * b.CastLike(share, r) - mean * b.CastLike(share, r))
            squares.append(squared(b, r - mean) * b.CastLike(weight, r))
        return [*moves, *squares]

    number = np.arange(1, samples + 1)
    kind = widened(outer, starts[0]).dtype
    shares, weights = (1 / number).astype(kind), ((number - 1) / number / samples).astype(kind)
    found = over_noise(job, [outer.const(shares), outer.const(weights)], 2, summed)
    return {s.name: narrowed(outer, v, s) for s, v in zip(starts, found[len(starts) :], strict=True)}
