"""Transposes of what neuralized models are read as: distances, soft minima, evidence for clusters (spec section 9)."""

from __future__ import annotations

from xaicompile.ir import Builder, Tensor
from xaicompile.registry import OWN, Context, Messages, vjp


def squared_differences(b: Builder, c: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """sum_j c_j (x - u_j)^2 by feature, [N,d], as x^2 sum(c) - 2 x (c u) + c u^2: never a [N,points,features]."""
    total = b.sum_axes(c, [1], keepdims=True)
    return x * x * total - x * b.MatMul(c, u) * 2.0 + b.MatMul(c, u * u)


@vjp("SquaredDistance", domain=OWN)
def squared_distance(ctx: Context) -> Messages:
    """2 (x sum(c) - c u) of |x - u|^2 with points u [M,d]."""
    total = ctx.b.sum_axes(ctx.c, [1], keepdims=True)
    return ctx.only(0, (ctx.x * total - ctx.b.MatMul(ctx.c, ctx.node.inp(1))) * 2.0)


@vjp("SoftMin", domain=OWN)
def soft_min(ctx: Context) -> Messages:
    """-c p of y = -log sum exp(x), with p the softmax of x."""
    return ctx.only(0, -ctx.c * ctx.b.Softmax(ctx.x, axis=1))


@vjp("ClusterEvidence", domain=OWN, degree=1)
def cluster_evidence(ctx: Context) -> Messages:
    """Of y_c = min over k != c of d_k - d_c: c to the nearest of the others, -c to d_c."""
    from xaicompile.neuralization.forms import two_nearest

    b, c, d = ctx.b, ctx.c, ctx.x
    _, second, is_nearest = two_nearest(b, d)
    nearest = b.CastLike(is_nearest, c)
    runner_up = b.CastLike(b.And(b.Not(is_nearest), b.Equal(d, second)), c)
    runner_up = runner_up / b.Max(b.sum_axes(runner_up, [1], keepdims=True), 1.0)  # ties share
    own = b.sum_axes(c * nearest, [1], keepdims=True)
    rest = b.sum_axes(c, [1], keepdims=True) - own
    return ctx.only(0, nearest * rest + runner_up * own - c)
