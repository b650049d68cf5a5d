"""The epsilon rule for ops without a weight."""

from __future__ import annotations

from dataclasses import replace

from xaicompile.errors import RuleError
from xaicompile.registry import Context, Messages, info, rule
from xaicompile.relevance.default import homogeneous


@rule("norm", epsilon=1e-6)
def norm(ctx: Context) -> Messages:
    """Relevance in proportion to the inputs of a sum or an average, with a stabiliser: zennit's Norm.

    Without the stabiliser this is the exact transpose, which is what LRP does with these ops by default.
    """
    if info(ctx.node).degree != 1:
        raise RuleError(f"rule 'norm' is for sums and averages and can't be applied to {ctx.node}")
    eps, c = float(ctx.parameters["epsilon"]), ctx.c
    after = ctx.facts.activation.get(ctx.y.name)
    y = ctx.y if after is None else after
    size = ctx.b.Abs(y) if after is None else after
    s = c * (size / (size + eps))
    ctx.absorb(lambda: (c - s) * y)
    return homogeneous(replace(ctx, g=[s]))
