"""Methods along a straight path from a baseline to the input (spec 8.1, 8.2), and Taylor terms at its start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.front import shortened
from xaicompile.methods.job import Job, Result, Step, array_of, over_steps
from xaicompile.methods.noise import drawn, noisy, width
from xaicompile.registry import method

QUADRATURES = ("midpoint", "gauss-legendre", "riemann-right", "riemann-left", "trapezoid")


def quadrature(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in [0, 1] and weights that sum to 1.

    Raises:
        RuleError: No rule of that name.
    """
    if name == "midpoint":
        return (np.arange(n) + 0.5) / n, np.full(n, 1 / n)
    if name == "riemann-right":
        return (np.arange(n) + 1.0) / n, np.full(n, 1 / n)
    if name == "riemann-left":
        return np.arange(n) / n, np.full(n, 1 / n)
    if name == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(n)
        return (points + 1) / 2, weights / 2
    if name == "trapezoid" and n > 1:
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n), weights
    raise RuleError(f"parameter 'quadrature' is {', '.join(QUADRATURES[:-1])} or {QUADRATURES[-1]}, not {name!r}")


@method("integrated-gradients", steps=32, quadrature="midpoint", baseline="zero")
def integrated_gradients(job: Job) -> Result:
    """(x - x0) times the mean gradient on the way from the baseline x0 (Sundararajan et al. 2017)."""
    t, w = quadrature(job.parameter("quadrature"), job.count("steps"))
    starts = job.starts
    bases = [job.given("baseline", s) for s in starts]
    path, begins, back = shortened(job, bases)
    even = len(set(w)) == 1 and starts[0].dtype != np.float16  # one product behind the sum, which in half may overflow

    def points(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        own = [b.adopt(base) for base in begins]
        return [base + (x - base) * b.CastLike(args[0], x) for x, base in zip(clean, own, strict=True)]

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        return list(step.found) if even else [c * b.CastLike(step.args[1], c) for c in step.found]

    scanned = [job.p.builder.const(np.asarray(v, starts[0].dtype)) for v in (t, w)]
    sums = over_steps(path, scanned, [path.zeros(s) for s in path.starts], points, summed)
    means = [c * float(w[0]) for c in sums] if even else sums
    return {s.name: job.away(s, base, c) for s, base, c in zip(starts, bases, back(means), strict=True)}


@method(
    "smooth-integrated-gradients", steps=32, quadrature="midpoint", baseline="zero", samples=25, sigma=0.1, seed=0,
    noise="relative",
)  # fmt: skip
def smooth_integrated_gradients(job: Job) -> Result:
    """The mean of integrated gradients of noisy inputs, each times its own difference to the baseline (spec 8.2)."""
    t, w = quadrature(job.parameter("quadrature"), job.count("steps"))
    samples, starts, outer = job.count("samples"), job.starts, job.p.builder
    bases = [job.given("baseline", s) for s in starts]
    noise, wide = drawn(job, samples), [width(job, s) for s in starts]

    def moved(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        return noisy(b, clean, noise, wide, args[2])

    def points(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        own = [b.adopt(base) for base in bases]
        return [base + (x - base) * args[0] for x, base in zip(moved(b, args, clean), own, strict=True)]

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        there = moved(b, step.args, step.clean)
        parts = zip(there, bases, step.found, strict=True)
        return [(x - b.adopt(base)) * c * step.args[1] for x, base, c in parts]

    kind = starts[0].dtype
    scanned = [np.tile(t, samples).astype(kind), np.tile(w / samples, samples).astype(kind)]
    scanned.append(np.repeat(np.arange(samples, dtype=np.int64), len(t)))
    sums = over_steps(job, [outer.const(v) for v in scanned], [job.zeros(s) for s in starts], points, summed)
    return {s.name: r for s, r in zip(starts, sums, strict=True)}


@method("shap-gradient", samples=25, background=None, seed=0)
def expected_gradients(job: Job) -> Result:
    """The mean of (x - b) times the gradient at random points between x and random members b of a background set.

    Gradient SHAP, expected gradients (Erion et al. 2021; Lundberg and Lee 2017).

    Raises:
        RuleError: No background is given.
    """
    samples, starts, outer, rng = job.count("samples"), job.starts, job.p.builder, job.rng()
    if job.parameter("background") is None:
        raise RuleError("rule 'shap-gradient' needs a background: --set background=FILE, a .npy or .npz of samples")
    sets = [array_of_samples(job.parameter("background"), s) for s in starts]
    chosen = rng.integers(0, min(len(v) for v in sets), samples)
    members = [outer.const(v) for v in sets]

    def member(b: StepBuilder, args: Sequence[Tensor]) -> list[Tensor]:
        return [b.Gather(b.adopt(m), args[1], axis=0) for m in members]

    def points(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        return [base + (x - base) * args[0] for x, base in zip(clean, member(b, args), strict=True)]

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        parts = zip(step.clean, member(b, step.args), step.found, strict=True)
        return [(x - base) * c * (1 / samples) for x, base, c in parts]

    scanned = [outer.const(rng.uniform(size=samples).astype(starts[0].dtype)), outer.const(chosen.astype(np.int64))]
    sums = over_steps(job, scanned, [job.zeros(s) for s in starts], points, summed)
    return {s.name: r for s, r in zip(starts, sums, strict=True)}


def array_of_samples(value: object, t: Tensor) -> np.ndarray:
    """A background set: one sample more or less along axis 0."""
    one = Tensor(t.var, t.builder, t.dtype, None if t.shape is None else (None, *t.shape[1:]))
    numbers = array_of("background", value, one, several=True)
    if numbers.ndim != (t.rank or numbers.ndim):
        raise RuleError(f"parameter 'background': an array of samples like {t!r}, not of shape {list(numbers.shape)}")
    return numbers


@method("taylor", root="zero")
def taylor(job: Job) -> Result:
    """First-order terms of the Taylor expansion at a root point: (x - root) times the gradient there (spec 3)."""
    starts = job.starts
    roots = [job.given("root", s) for s in starts]

    def points(b: StepBuilder, args: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        return [b.expand_like(b.adopt(root), x) for x, root in zip(clean, roots, strict=True)]

    def summed(b: StepBuilder, step: Step) -> list[Tensor]:
        return list(step.found)

    once = [job.p.builder.const(np.zeros(1, starts[0].dtype))]
    found = over_steps(job, once, [job.zeros(s) for s in starts], points, summed)
    return {s.name: job.away(s, root, c) for s, root, c in zip(starts, roots, found, strict=True)}
