"""DeepLIFT's rules: multipliers from differences to a reference (Shrikumar et al. 2017)."""

from __future__ import annotations

from dataclasses import replace

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, rule
from xaicompile.relevance.pool import AVERAGES
from xaicompile.relevance.reading import recomputed

NEAR, NEAR_IN_HALF = 1e-6, 1e-3  # of a difference; below it the gradient stands for the multiplier


@rule("rescale")
def rescale(ctx: Context) -> Messages:
    """c (y - y0) / (x - x0) for an elementwise op of one data input; the gradient where x is next to x0.

    Raises:
        RuleError: The op has several data inputs.
    """
    if sum(ctx.need) != 1:
        raise RuleError(f"rule 'rescale' is for elementwise ops with one data input, which {ctx.node} is not")
    i = list(ctx.need).index(True)
    x = ctx.node.inp(i)
    change = ctx.y - reference(ctx, ctx.y)
    return ctx.only(i, multiplied(ctx, i, recomputed(ctx, x) - reference(ctx, x), ctx.c * change))


@rule("rescale-product")
def rescale_product(ctx: Context) -> Messages:
    """Of a product of two data tensors: each factor gets the transpose at the mean of the other and its reference.

    So the factors' shares add up to the change of the product: a b - a0 b0 = (a - a0)(b + b0)/2 + (b - b0)(a + a0)/2.
    """
    means = [
        (t + reference(ctx, t)) * 0.5 if needed and t is not None else t
        for t, needed in zip(ctx.node.x, ctx.need, strict=True)
    ]
    return ctx.vjp(ctx.node.varied(x=means))


@rule("rescale-max")
def rescale_max(ctx: Context) -> Messages:
    """Of a maximum: max(y, y0) - y0 goes to the winner at x, y - max(y, y0) to the winner at x0, over x - x0.

    Raises:
        RuleError: The op takes no maximum.
    """
    if ctx.node.op not in AVERAGES or ctx.node.domain:
        raise RuleError(f"rule 'rescale-max' is for max-pooling and can't be applied to {ctx.node}")
    x, y, x0, y0 = ctx.x, ctx.y, reference(ctx, ctx.x), reference(ctx, ctx.y)
    most, before = ctx.b.Max(y, y0), ctx.node.varied(x=[x0, *ctx.node.x[1:]], y=[y0])
    shares = [
        replace(ctx, g=[ctx.c * (most - y0)]).vjp()[0],
        replace(ctx, node=before, g=[ctx.c * (y - most)]).vjp()[0],
    ]
    return ctx.only(0, multiplied(ctx, 0, x - x0, ctx.b.add_all([s for s in shares if isinstance(s, Tensor)])))


def multiplied(ctx: Context, i: int, delta: Tensor, change: Tensor) -> Tensor:
    """change / delta, or the gradient for input i where delta is next to nothing."""
    slope = ctx.vjp()[i]
    assert isinstance(slope, Tensor)
    half = delta.dtype is not None and delta.dtype.itemsize == 2
    near = ctx.b.Abs(delta) < (NEAR_IN_HALF if half else NEAR)
    return ctx.where(near, slope, change / ctx.where(near, 1.0, delta))


def reference(ctx: Context, t: Tensor) -> Tensor:
    """A tensor's value at the reference; its own where it does not depend on the explained inputs.

    Raises:
        RuleError: There is no reference.
    """
    if not ctx.facts.reference:
        raise RuleError("DeepLIFT's rules need a reference, which the method 'deeplift' gives: --rule deeplift")
    return ctx.facts.reference.get(t.name, t)
