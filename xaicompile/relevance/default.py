"""How LRP treats an op where a composite says nothing else: by its kind (spec sections 1.7 and 6)."""

from __future__ import annotations

from dataclasses import replace

from xaicompile.half import narrowed, widened
from xaicompile.ir import Tensor
from xaicompile.registry import OWN, RELEVANCE, Context, Messages, info, relevance, rule, stops
from xaicompile.relevance.activation import identity, secant
from xaicompile.relevance.layer import Layer, linear_of
from xaicompile.relevance.reading import absorb_difference
from xaicompile.vjp.norm import batch_norm_affine, layer_norm_parts, per_channel


@rule("gradient")
def gradient(ctx: Context) -> Messages:
    """The exact transpose."""
    if ctx.ledger is None:
        return ctx.vjp()
    row, at = info(ctx.node), linear_of(ctx)
    if at is not None and at.weight is not None and sum(ctx.need) == 1:
        layer = Layer(ctx, at)
        layer.absorb_bias(ctx.c, layer.bias)
        return ctx.vjp()
    weighted = row.linear is not None and row.linear.weight is not None
    if row.degree == 1 and not weighted and ctx.node.op not in RELEVANCE:
        return homogeneous(ctx)
    return as_it_is(ctx)


@rule("default")
def default(ctx: Context) -> Messages:
    """What LRP does with an op of this kind: the op's own rule, identity, secant, or the transpose by degree."""
    row = info(ctx.node)
    if ctx.node.op in RELEVANCE and ctx.node.domain in ("", OWN):
        return RELEVANCE[ctx.node.op](ctx)
    if row.zero:
        return ctx.nothing()
    at = linear_of(ctx)
    if at is not None and at.weight is not None:
        return lrp_zero(ctx)
    if row.degree == 1:
        return homogeneous(ctx)
    if row.degree is not None:
        return scaled(ctx.vjp(), 1 / row.degree)
    if row.at_zero is not None:
        return identity(ctx) if row.at_zero == 0 else secant(ctx)
    return as_it_is(ctx)


def scaled(messages: Messages, factor: float) -> Messages:
    """All messages times a number."""
    return [m * factor if isinstance(m, Tensor) else m for m in messages]


def lrp_zero(ctx: Context) -> Messages:
    """The transpose; the bias's share is absorbed."""
    at = linear_of(ctx)
    assert at is not None
    layer = Layer(ctx, at)
    layer.absorb_bias(ctx.c, layer.bias)
    return layer.result(layer.back(layer.w, ctx.c))


def homogeneous(ctx: Context) -> Messages:
    """The transpose of an op of degree 1 in all its float inputs; the shares of constants are absorbed."""
    if ctx.ledger is None or all(ctx.need):
        return ctx.vjp()
    stopped = stops(ctx.node)
    wanted = [x is not None and x.is_float and i not in stopped for i, x in enumerate(ctx.node.x)]
    messages = replace(ctx, need=wanted, ledger=None).vjp()
    for x, m, needed in zip(ctx.node.x, messages, ctx.need, strict=False):
        if x is not None and isinstance(m, Tensor) and not needed:
            ctx.absorb(lambda x=x, m=m: ctx.share(x, m))  # type: ignore[misc]
    return messages


def as_it_is(ctx: Context) -> Messages:
    """The transpose of an op that conserves nothing; what it loses or adds is absorbed."""
    return absorb_difference(ctx, ctx.vjp())


@relevance("Clip")
def clip(ctx: Context) -> Messages:
    """The gradient; where it saturates, the output is bias-like (spec section 6)."""
    messages = ctx.vjp()
    passed = info(ctx.node).derivative
    assert passed is not None
    ctx.absorb(lambda: ctx.c * ctx.y * (1.0 - passed(ctx, ctx.x, ctx.y)))
    return messages


@relevance("Pad")
def pad(ctx: Context) -> Messages:
    """The transpose; a constant other than zero that was padded is bias-like."""
    padded_zero = not ctx.node.has(2) or ctx.facts.bounds(ctx.node.x[2]) == (0.0, 0.0)
    return ctx.vjp() if padded_zero or ctx.attr("mode") != "constant" else as_it_is(ctx)


@relevance("Div")
def div(ctx: Context) -> Messages:
    """A data denominator is detached: c/b to the numerator (spec section 6)."""
    if not ctx.need[0]:
        return as_it_is(ctx)
    return ctx.only(0, ctx.c / ctx.node.inp(1))


@relevance("Pow")
def power(ctx: Context) -> Messages:
    """VJP/p for a constant exponent p."""
    p = ctx.node.inp(1).value
    if ctx.need[1] or p is None or p.size != 1 or not float(p.reshape(-1)[0]):
        return as_it_is(ctx)
    return scaled(ctx.vjp(), 1 / float(p.reshape(-1)[0]))


@relevance("PRelu")
def prelu(ctx: Context) -> Messages:
    """All to the data; the slope is a factor that carries nothing, data or not."""
    return ctx.only(0, ctx.vjp()[0]) if ctx.need[0] else as_it_is(ctx)


@relevance("BatchNormalization")
def batch_norm(ctx: Context) -> Messages:
    """One that no linear op precedes: elementwise s x + t; t is bias."""
    if ctx.attr("training_mode") or not ctx.need[0]:
        return as_it_is(ctx)
    _, t = batch_norm_affine(ctx.b, ctx.node)
    ctx.absorb(lambda: ctx.c * per_channel(ctx.b, t, ctx.x))
    return ctx.only(0, ctx.vjp()[0])


@relevance("LayerNormalization")
def layer_norm(ctx: Context) -> Messages:
    """1/sd is detached: u - mean(u) with u = c w / sd; the bias absorbs its share (spec 7.3)."""
    if any(g is not None for g in ctx.g[1:]) or ctx.g[0] is None:
        return as_it_is(ctx)
    axes, _, inverse = layer_norm_parts(ctx)
    u = widened(ctx.b, ctx.c) * widened(ctx.b, ctx.node.inp(1)) * inverse
    if ctx.node.has(2):
        bias = ctx.node.inp(2)
        ctx.absorb(lambda: ctx.c * bias)
    return ctx.only(0, narrowed(ctx.b, u - ctx.b.mean_axes(u, axes), ctx.x))


@relevance("LRN")
def lrn(ctx: Context) -> Messages:
    """The denominator is detached: c y/x."""
    return identity_ratio(ctx)


def identity_ratio(ctx: Context) -> Messages:
    """c y/x, which passes all relevance; nothing where x = 0, where y is 0 too."""
    is_zero = ctx.b.Equal(ctx.x, 0.0)
    return ctx.only(0, ctx.c * (ctx.y / ctx.where(is_zero, 1.0, ctx.x)))
