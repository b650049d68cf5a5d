"""The epsilon rule for ops without a weight."""

from __future__ import annotations

from dataclasses import replace

from xaicompile.errors import RuleError
from xaicompile.registry import Context, Messages, info, rule
from xaicompile.relevance.default import homogeneous
from xaicompile.relevance.layer import tiny
from xaicompile.relevance.reading import recomputed


@rule("norm", epsilon=1e-6)
def norm(ctx: Context) -> Messages:
    """Relevance in proportion to the inputs of a sum or an average, with a stabiliser: zennit's Norm.

    Without the stabiliser this is the exact transpose, which is what LRP does with these ops by default, and with the
    addition of a constant.

    Raises:
        RuleError: The op is neither a sum nor an average.
    """
    row = info(ctx.node)
    if row.degree != 1 or row.layout or row.derivative is not None or (row.linear and row.linear.weight is not None):
        raise RuleError(f"rule 'norm' is for sums and averages and can't be applied to {ctx.node}")
    if ctx.node.op in ("Add", "Sum", "Sub") and sum(ctx.need) < 2:
        return homogeneous(ctx)
    eps, c = float(ctx.parameters["epsilon"]), ctx.c
    after = ctx.facts.activation.get(ctx.y.name)
    y = recomputed(ctx, ctx.y) if after is None else after
    size = ctx.b.Abs(y) if after is None else after
    s = c * (size / (size + max(eps, tiny(y))))
    ctx.absorb(lambda: ctx.product(c - s, y), "stabiliser")
    return homogeneous(replace(ctx, g=[s]))
