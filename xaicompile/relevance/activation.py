"""Rules for activations: deconvnet, guided backprop, beta-smooth, pass, the identity rule and the secant rule."""

from __future__ import annotations

from xaicompile.errors import RuleError
from xaicompile.ir.graph import Shape
from xaicompile.registry import Context, Derivative, Messages, Relevance, info, rule
from xaicompile.relevance.reading import absorb_difference, recomputed


def elementwise(ctx: Context, name: str) -> Derivative:
    """The derivative of an activation.

    Raises:
        RuleError: The op is none.
    """
    derivative = info(ctx.node).derivative
    if derivative is None:
        raise RuleError(f"rule '{name}' is for activations and can't be applied to {ctx.node}")
    return derivative


@rule("deconvnet")
def deconvnet(ctx: Context) -> Messages:
    """max(c, 0), whatever the forward pass did (Zeiler and Fergus 2014; spec section 4)."""
    elementwise(ctx, "deconvnet")
    return absorb_difference(ctx, ctx.only(0, ctx.b.Relu(ctx.c)))


@rule("guided")
def guided(ctx: Context) -> Messages:
    """max(c, 0) where the unit was active (Springenberg et al. 2015; spec section 4)."""
    elementwise(ctx, "guided")
    return absorb_difference(ctx, ctx.vjp(g=[ctx.b.Relu(ctx.c)]))


@rule("beta-smooth", beta=10.0)
def beta_smooth(ctx: Context) -> Messages:
    """c sigmoid(beta x): the gradient as if the ReLU were a softplus (Dombrowski et al. 2019)."""
    elementwise(ctx, "beta-smooth")
    x = recomputed(ctx, ctx.x)
    return absorb_difference(ctx, ctx.only(0, ctx.c * ctx.b.Sigmoid(x * float(ctx.parameters["beta"]))))


@rule("pass")
def passed(ctx: Context) -> Messages:
    """R_in = R_out, whatever the op does to values; it must not change the shape.

    The parameters and statistics of a BatchNormalization, where they are data, get nothing and pass nothing on.

    Raises:
        RuleError: The op has several data inputs, or changes the shape.
    """
    row, wanted = info(ctx.node), [i for i, needed in enumerate(ctx.need) if needed]
    if ctx.node.op == "BatchNormalization" and ctx.need[0]:
        wanted = [0]
        for y, c in zip(ctx.node.y[1:], ctx.g[1:], strict=True):
            if y is not None and c is not None:
                ctx.absorb(lambda y=y, c=c: ctx.share(y, c))  # type: ignore[misc]
        if ctx.g[0] is None:
            return ctx.nothing()
    x, y = ctx.node.inp(wanted[0]), ctx.y
    moved = info(ctx.node).layout and ctx.node.op not in ("Cast", "CastLike", "Identity", "Dropout")
    if len(wanted) > 1 or moved or differ(x.shape, y.shape):
        raise RuleError(f"rule 'pass' is for ops with one data input that keep its shape, which {ctx.node} is not")
    if starts_at_zero(ctx):
        return identity(ctx) if row.degree is None else ctx.vjp()
    return ctx.only(wanted[0], Relevance(ctx.c * y))


def differ(a: Shape | None, b: Shape | None) -> bool:
    """True unless two shapes may be the same."""
    if a is None or b is None or len(a) != len(b):
        return a is not b
    return any(p != q and p is not None and q is not None for p, q in zip(a, b, strict=True))


def starts_at_zero(ctx: Context) -> bool:
    """True for an elementwise op with f(0) = 0."""
    if ctx.node.op == "Clip" and not ctx.node.domain:
        low, high = (ctx.facts.bounds(x) if x is not None else (0.0, 0.0) for x in (*ctx.node.x, None, None)[1:3])
        return low[1] <= 0 <= high[0]
    row = info(ctx.node)
    return row.derivative is not None and row.at_zero == 0


@rule("identity")
def identity(ctx: Context) -> Messages:
    """R_in = R_out for f(0) = 0: c f(x)/x, f'(x) near x = 0 (spec section 6)."""
    derivative = elementwise(ctx, "identity")
    x, y = recomputed(ctx, ctx.x), ctx.y
    near = ctx.b.Abs(x) < 1e-3 if x.dtype is not None and x.dtype.itemsize == 2 else ctx.b.Abs(x) < 1e-6
    ratio = y / ctx.where(near, 1.0, x)
    return ctx.only(0, ctx.c * ctx.where(near, derivative(ctx, x, y), ratio))


@rule("secant")
def secant(ctx: Context) -> Messages:
    """c (f(x) - f(0)) / x for f(0) != 0; f(0) c is absorbed (spec section 6)."""
    derivative = elementwise(ctx, "secant")
    start = float(ctx.attr("beta", 0.5)) if ctx.node.op == "HardSigmoid" else info(ctx.node).at_zero
    near = ctx.b.Abs(ctx.x) < 1e-4
    ratio = (ctx.y - float(start or 0.0)) / ctx.where(near, 1.0, ctx.x)
    ctx.absorb(lambda: ctx.c * float(start or 0.0))
    return ctx.only(0, ctx.c * ctx.where(near, derivative(ctx, ctx.x, ctx.y), ratio))
