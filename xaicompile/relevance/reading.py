"""Forward tensors as rules read them: so that no fusion of the runtime breaks (see `unfused`)."""

from __future__ import annotations

from dataclasses import replace

from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages
from xaicompile.unfused import unfused


def recomputed(ctx: Context, t: Tensor) -> Tensor:
    """The tensor itself, or a copy of its computation where reading it would break a fusion."""
    return unfused(ctx.b, ctx.facts, t)


def absorb_difference(ctx: Context, messages: Messages) -> Messages:
    """Enters in the ledger what the messages hand on less than they got; reads no tensor inside a fusion."""
    if ctx.ledger is not None:
        x, y = ([None if t is None else recomputed(ctx, t) for t in ts] for ts in (ctx.node.x, ctx.node.y))
        replace(ctx, node=ctx.node.varied(x=x, y=y)).absorb_difference(messages)
    return messages
