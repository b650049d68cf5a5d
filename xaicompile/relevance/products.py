"""Products of many factors, of which no degree is fixed beforehand."""

from __future__ import annotations

from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, relevance
from xaicompile.relevance.default import as_it_is, homogeneous, scaled


@relevance("ScatterElements", "ScatterND")
def scatter(ctx: Context) -> Messages:
    """The transpose; what is multiplied in conserves nothing."""
    return as_it_is(ctx) if ctx.attr("reduction") == "mul" else homogeneous(ctx)


@relevance("Det")
def det(ctx: Context) -> Messages:
    """VJP/n for n rows: a determinant has degree n (spec 1.7)."""
    rows = (ctx.x.shape or (None,))[-1]
    if isinstance(rows, int):
        return scaled(ctx.vjp(), 1 / rows)
    (message,) = ctx.vjp()
    assert isinstance(message, Tensor)
    return [message / ctx.b.CastLike(ctx.b.dim(ctx.x, -1), message)]
