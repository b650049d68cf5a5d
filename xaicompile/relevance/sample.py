"""Ops that read an image at points, or a signal through a window, which may be data too.

How they look is detached, what they see carries all.
"""

from __future__ import annotations

from dataclasses import replace

from xaicompile.registry import Context, Messages, relevance
from xaicompile.relevance.default import as_it_is
from xaicompile.vjp.norms import channels


@relevance("GridSample", "DeformConv", "STFT")
def sampled(ctx: Context) -> Messages:
    """The transpose for the image or signal alone; the bias absorbs its share."""
    if not ctx.need[0]:
        return as_it_is(ctx)
    if ctx.node.op == "DeformConv" and ctx.node.has(3):
        ctx.absorb(lambda: ctx.c * channels(ctx, ctx.node.inp(3)))
    first_only = [i == 0 for i in range(len(ctx.need))]
    return ctx.only(0, replace(ctx, need=first_only, ledger=None).vjp()[0])
