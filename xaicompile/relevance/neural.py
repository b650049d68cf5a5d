"""Rules for neuralized models: the distance layer and soft pooling (spec sections 9.2, 9.3 and 9.6)."""

from __future__ import annotations

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, Relevance, relevance, rule
from xaicompile.relevance.reading import absorb_difference
from xaicompile.vjp.neural import squared_differences
from xaicompile.vjp.reduce import kept

POOLS = ("SoftMin", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ClusterEvidence")


@relevance("SquaredDistance")
def squared_distance(ctx: Context) -> Messages:
    """R_i = sum_j c_j (x - u_j)_i^2: each distance's relevance c_j d_j in proportion to the squared differences.

    Every Taylor root on the way from x to u_j, and the midpoint rule for a difference of two distances, give the same
    (Kauffmann et al. 2020, 2022).
    """
    return ctx.only(0, Relevance(squared_differences(ctx.b, ctx.c, ctx.x, ctx.node.inp(1))))


@relevance("SoftMin")
def soft_min(ctx: Context) -> Messages:
    """All h are >= 0, as they are for distances with normed weights: V-out."""
    return v_out(ctx)


@rule("v-out", stiffness=None)
def v_out(ctx: Context) -> Messages:
    """R_j = p_j R with the pool's soft weights p (Kauffmann et al. 2022): conserves; for pools of one sign.

    For a hard minimum or maximum `stiffness` says how soft p is, in units of one over its inputs.
    """
    if ctx.node.op == "ClusterEvidence":
        return pairs(ctx, outwards=True)
    return ctx.only(0, Relevance(weights(ctx, "v-out") * kept_as(ctx, ctx.c * ctx.y)))


@rule("v-act", stiffness=None)
def v_act(ctx: Context) -> Messages:
    """R_j = p_j h_j: the gradient times the pool's input; the entropy of p goes to the ledger (spec 9.2)."""
    if ctx.node.op == "ClusterEvidence":
        return pairs(ctx, outwards=False)
    c = -ctx.c if ctx.node.op == "SoftMin" else ctx.c
    return absorb_difference(ctx, ctx.only(0, weights(ctx, "v-act") * kept_as(ctx, c)))


def winner_takes_all(ctx: Context) -> Messages:
    """All of the relevance to the largest term of the pool; ties share."""
    if ctx.node.op not in ("SoftMin", "ReduceLogSumExp"):
        return ctx.vjp()
    b, axes = ctx.b, ctx.node.x[1] if ctx.node.has(1) else own_axes(ctx)
    wins = b.CastLike(b.Equal(ctx.x, b.op("ReduceMax", ctx.x, axes, keepdims=1)), ctx.c)
    share = wins / b.op("ReduceSum", wins, axes, keepdims=1)
    return ctx.only(0, Relevance(share * kept_as(ctx, ctx.c * ctx.y)))


def own_axes(ctx: Context) -> Tensor | list[int] | None:
    """The pool's axes: the last of a SoftMin, all of a reduction that names none."""
    return [1] if ctx.node.op == "SoftMin" else None


def kept_as(ctx: Context, t: Tensor) -> Tensor:
    """What belongs to the pool's output, with the axes that it reduces."""
    return t if ctx.node.op == "SoftMin" else kept(ctx, t)


def weights(ctx: Context, name: str) -> Tensor:
    """The soft weights p of the pool's inputs, which sum to 1.

    Raises:
        RuleError: The op is no pool, or a hard one without a stiffness.
    """
    b, op = ctx.b, ctx.node.op
    if op not in POOLS:
        raise RuleError(f"rule '{name}' is for {', '.join(POOLS)} and can't be applied to {ctx.node}")
    if op == "SoftMin":
        return b.Softmax(ctx.x, axis=1)
    axes, scaled = ctx.node.x[1] if ctx.node.has(1) else None, ctx.x
    if op != "ReduceLogSumExp":
        scaled = scaled * (stiffness(ctx, name) * (1.0 if op == "ReduceMax" else -1.0))
    e = b.Exp(scaled - b.op("ReduceMax", scaled, axes, keepdims=1))
    return e / b.op("ReduceSum", e, axes, keepdims=1)


def stiffness(ctx: Context, name: str) -> float:
    """The stiffness that the user gives.

    Raises:
        RuleError: There is none.
    """
    given = ctx.parameters.get("stiffness")
    if given is None:
        raise RuleError(
            f"rule '{name}' on {ctx.node}, which is a hard minimum, needs its stiffness: --set stiffness=BETA, for "
            "instance one over the mean of the explained score; or take the rule 'winner'"
        )
    return float(given)


def pairs(ctx: Context, outwards: bool) -> Messages:
    """Evidence for a cluster, softly shared among its rivals k: over h_k = d_k - d_c, [N,K,K] numbers (spec 9.6).

    V-out: c_k = p_k f_c / h_k, which the distance layer turns into the midpoint rule; V-act: c_k = p_k.
    """
    b, d, f = ctx.b, ctx.x, ctx.y
    beta = stiffness(ctx, "v-out" if outwards else "v-act")
    h = b.Unsqueeze(d, [1]) - b.Unsqueeze(d, [2])  # [N, c, k]
    clusters = (d.shape or (None, None))[1]
    assert isinstance(clusters, int)
    same = b.const(np.eye(clusters, dtype=np.bool_))
    a = b.where(same, float(np.finfo(d.dtype or np.float32).min), h * -beta, like=d)
    p = b.Softmax(a, axis=2)
    signal = p * b.Unsqueeze(ctx.c, [2])
    if outwards:
        st = h + b.where(h < 0.0, -1e-9, 1e-9, like=h)
        signal = signal * b.Unsqueeze(f, [2]) / st
    to_rivals = b.sum_axes(signal, [1])
    message = to_rivals - b.sum_axes(signal, [2])
    return absorb_difference(ctx, ctx.only(0, message))
