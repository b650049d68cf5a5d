"""Rules for activations: deconvnet, guided backprop, the identity rule and the secant rule."""

from __future__ import annotations

from xaicompile.registry import Context, Messages, info, rule


@rule("deconvnet")
def deconvnet(ctx: Context) -> Messages:
    """max(c, 0), whatever the forward pass did (Zeiler and Fergus 2014; spec section 4)."""
    return ctx.absorb_difference(ctx.only(0, ctx.b.Relu(ctx.c)))


@rule("guided")
def guided(ctx: Context) -> Messages:
    """max(c, 0) where the unit was active (Springenberg et al. 2015; spec section 4)."""
    return ctx.absorb_difference(ctx.vjp(g=[ctx.b.Relu(ctx.c)]))


@rule("identity")
def identity(ctx: Context) -> Messages:
    """R_in = R_out for f(0) = 0: c f(x)/x, f'(x) near x = 0 (spec section 6)."""
    x, y, row = ctx.x, ctx.y, info(ctx.node)
    assert row.derivative is not None
    near = ctx.b.Abs(x) < 1e-3 if x.dtype is not None and x.dtype.itemsize == 2 else ctx.b.Abs(x) < 1e-6
    ratio = y / ctx.where(near, 1.0, x)
    return ctx.only(0, ctx.c * ctx.where(near, row.derivative(ctx, x, y), ratio))


@rule("secant")
def secant(ctx: Context) -> Messages:
    """c (f(x) - f(0)) / x for f(0) != 0; f(0) c is absorbed (spec section 6)."""
    row = info(ctx.node)
    assert row.derivative is not None
    start = float(ctx.attr("beta", 0.5)) if ctx.node.op == "HardSigmoid" else row.at_zero
    near = ctx.b.Abs(ctx.x) < 1e-4
    ratio = (ctx.y - float(start or 0.0)) / ctx.where(near, 1.0, ctx.x)
    ctx.absorb(lambda: ctx.c * float(start or 0.0))
    return ctx.only(0, ctx.c * ctx.where(near, row.derivative(ctx, ctx.x, ctx.y), ratio))
