"""Reading a forward tensor without breaking the fusion in which a runtime computes it.

Runtimes compute Conv + Relu and Conv + Add + Relu as one node each, as long as nothing else reads what lies between. A
rule that needs such a tensor gets it computed once more, in a form that a runtime does not merge with the prediction's
own node: so the prediction keeps its bits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages


def recomputed(ctx: Context, t: Tensor) -> Tensor:
    """The tensor itself, or a copy of its computation where reading it would break a fusion."""
    view, b = ctx.facts.producer(t), ctx.b
    if view is None or t.name not in ctx.facts.between:
        return t
    if view.op != "Conv":  # an Add whose operands are read so
        return b.forward(view.varied(x=[None if x is None else recomputed(ctx, x) for x in view.x]))
    if view.has(2):
        product = b.forward(view.varied(x=view.x[:2]))
        return product + b.Unsqueeze(view.inp(2), list(range(1, (t.rank or 3) - 1)))
    channels = (view.inp(1).static or (1,))[0]
    return b.forward(view.varied(x=[*view.x[:2], b.const(np.zeros(channels, t.dtype))]))


def absorb_difference(ctx: Context, messages: Messages) -> Messages:
    """Enters in the ledger what the messages hand on less than they got; reads no tensor inside a fusion."""
    if ctx.ledger is not None:
        x, y = ([None if t is None else recomputed(ctx, t) for t in ts] for ts in (ctx.node.x, ctx.node.y))
        replace(ctx, node=ctx.node.varied(x=x, y=y)).absorb_difference(messages)
    return messages
