"""Second-order explanations: which pairs of values act together (spec 10.1)."""

from __future__ import annotations

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.half import held
from xaicompile.ir import Tensor
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.groups import groups_of
from xaicompile.methods.hessian import expanded, interactions, times
from xaicompile.methods.job import Job, Result
from xaicompile.outputs import Outputs, relevance_outputs
from xaicompile.registry import method

LONGEST = 128  # points on a way


@method("hessian-x-input", group=1, root=None, softplus=None)
def hessian_x_input(job: Job) -> Result:
    """R_ij = 1/2 H_ij x_i x_j at the input, or 1/2 H_ij (x - r)_i (x - r)_j at a root r (spec 10.1).

    Gives `interaction` [N, groups, groups] and, as relevance, the first-order terms there.
    """
    b, start = job.p.builder, only_start(job)
    at, delta = point(job, start)
    relevance = delta * expanded(job, b, at).gradient
    interaction = interactions(job, b, at, delta, groups_of(job)) * 0.5
    job.outputs |= maps(job, relevance) | {"interaction": held(b, interaction)}
    return {}


@method("hessian-vector-product", root=None, softplus=None)
def hessian_vector_product(job: Job) -> Result:
    """H v, of the input's shape, for a v that is fed beside the input; at the input itself, or at a root.

    Gives `hvp` and, as relevance, the first-order terms there.
    """
    b, start = job.p.builder, only_start(job)
    if ("v", start.name) not in job.fed:
        job.fed["v", start.name] = job.feed("v", start)
    v = b.expand_like(job.fed["v", start.name], start)
    at, delta = point(job, start)
    place = expanded(job, b, at)
    job.outputs |= maps(job, delta * place.gradient) | {"hvp": held(b, times(job, b, place, v))}
    return {}


@method("integrated-hessians", steps=16, group=1, baseline="zero", softplus=None)
def integrated_hessians(job: Job) -> Result:
    """Integrated gradients of integrated gradients (Janizek et al. 2021): rows sum to these, all to f(x) - f(x0).

    For i and j, (x - x0)_i (x - x0)_j times the integral over a and b in [0, 1] of a b H_ij(x0 + a b (x - x0)); on the
    diagonal also (x - x0)_i times that of the gradient there. With u = a b both are integrals over u alone, of density
    -log u: as few points do as for integrated gradients.

    Raises:
        RuleError: Too many points.
    """
    b, start = job.p.builder, only_start(job)
    base, groups = job.given("baseline", start), groups_of(job)
    delta = b.op("Sub", start, base, shape=start.shape)
    nothing, sizes = b.const(np.zeros((), start.dtype)), b.Concat(b.dim(start, 0), [groups.count] * 2, axis=0)
    pairs = b.op("Expand", nothing, sizes, shape=((start.shape or (None,))[0], groups.count, groups.count))
    steps = job.count("steps")
    if steps > LONGEST:
        raise RuleError(f"parameter 'steps' is {steps}; {LONGEST} points are as many as are worked out")
    scanned = [b.const(np.asarray(v, start.dtype)) for v in log_quadrature(steps)]
    body = StepBuilder(b)
    with body.scope("step"):
        before = [body.input("sum", t.dtype, t.shape) for t in (delta, delta, pairs)]
        u, w = (body.input("arg", t.dtype, ()) for t in scanned)
        way = body.adopt(delta)
        at = body.adopt(base) + way * u
        place = expanded(job, body, at)
        first = way * place.gradient
        both = first + way * times(job, body, place, way) * u
        second = interactions(job, body, at, way, groups) * u
        ends = body.ends([s + t * w for s, t in zip(before, (first, both, second), strict=True)])
    graph = body.graph("steps", [*before, u, w], ends)
    sums, kinds = [job.zeros(start), job.zeros(start), pairs], [(t.dtype, t.shape) for t in before]
    diagonal, relevance, interaction = b.typed("Scan", [*sums, *scanned], kinds, body=graph, num_scan_inputs=2)
    same = b.const(np.eye(groups.count, dtype=start.dtype))
    interaction = interaction + b.Unsqueeze(groups.sums(b, diagonal), [1]) * same
    job.outputs |= maps(job, relevance) | {"interaction": held(b, interaction)}
    return {}


def log_quadrature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in [0, 1] and weights of Gauss's rule for the density -log u: exact for polynomials below degree 2 n.

    By Stieltjes' procedure on a fine rule for the same density, and the eigenvalues of the Jacobi matrix (Golub and
    Welsch 1969).
    """
    t, w = np.polynomial.legendre.leggauss(4 * n + 200)
    t, w = (t + 1) / 2, w / 2
    u, fine = t**4, w * 4 * t**3 * -4 * np.log(t)  # u = t^4 smooths the logarithm at 0
    before, here = np.zeros_like(u), np.full_like(u, 1 / np.sqrt(fine.sum()))
    diagonal, beside = [], [0.0]
    for _ in range(n):
        diagonal.append(float((fine * u * here * here).sum()))
        following = (u - diagonal[-1]) * here - beside[-1] * before
        beside.append(float(np.sqrt((fine * following * following).sum())))
        before, here = here, following / beside[-1]
    points, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside[1:n], 1) + np.diag(beside[1:n], -1))
    return points, vectors[0] ** 2


def only_start(job: Job) -> Tensor:
    """The one tensor whose values are paired.

    Raises:
        RuleError: There are several, or it has no batch.
    """
    name, starts = job.rules.name, job.starts
    if len(starts) > 1:
        names = ", ".join(f"'{t.name}'" for t in starts)
        raise RuleError(f"rule '{name}' pairs the values of one input, not of {names}; name one with --explain-input")
    if not job.seed.batched or (starts[0].rank or 0) < 2:
        raise RuleError(f"rule '{name}' needs a batch along axis 0 of '{job.end.tensor.name}' and of {starts[0]!r}")
    return starts[0]


def point(job: Job, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where the second derivative is taken, and the input's difference to it; the input for both without a root."""
    if job.parameter("root") is None:
        return start, start
    root = job.given("root", start)
    return job.p.builder.expand_like(root, start), job.p.builder.op("Sub", start, root, shape=start.shape)


def maps(job: Job, relevance: Tensor) -> Outputs:
    """The first-order part, of the input's shape."""
    found = {job.starts[0].name: held(job.p.builder, relevance)}
    return relevance_outputs(job.p.builder, job.inputs, [], found)
