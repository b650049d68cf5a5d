"""Normalisations over one sample: the scale that they work out is detached (spec 7.3)."""

from __future__ import annotations

from xaicompile.registry import Context, Messages, relevance
from xaicompile.vjp.norms import channels, lp_norm, standardised
from xaicompile.vjp.reduce import over


@relevance("InstanceNormalization", "GroupNormalization", "RMSNormalization", "MeanVarianceNormalization")
def normalised(ctx: Context) -> Messages:
    """1/sd is detached: u - mean(u) with u = c scale / sd; the bias absorbs its share."""
    s = standardised(ctx)
    if ctx.node.has(2):
        ctx.absorb(lambda: ctx.c * channels(ctx, ctx.node.inp(2)))
    return ctx.only(0, s.message(ctx, s.detached(ctx, s.arriving(ctx))))


@relevance("LpNormalization")
def lp_normalization(ctx: Context) -> Messages:
    """The norm is detached: c over it, which passes all relevance."""
    return [over(ctx, ctx.c, lp_norm(ctx, [int(ctx.attr("axis"))]))]
