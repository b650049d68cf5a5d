"""Elementwise ops: the derivative from the input x and the output y, or a short transpose for several data inputs.

Where either will do, derivatives read the output: reading the input of an activation keeps a runtime from fusing
the activation with the op before it. `at_zero` is f(0), `degree` the degree of positive homogeneity.
"""

from __future__ import annotations

import math

from xaicompile.half import held
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, OpInfo, elementwise, register, stop, vjp, zero
from xaicompile.vjp.blocked import above, below, is_step


def over_nonzero(ctx: Context, a: float, y: Tensor) -> Tensor:
    """a/y, and 0 where y is 0: nothing infinite flows (spec 1.9)."""
    is_zero = ctx.b.Equal(y, 0.0)
    return ctx.where(is_zero, 0.0, a / ctx.where(is_zero, 1.0, y))


elementwise("Relu", lambda ctx, x, y: above(ctx.b, y), at_zero=0.0, degree=1)
elementwise("ThresholdedRelu", lambda ctx, x, y: above(ctx.b, x, ctx.attr("alpha")), at_zero=0.0, degree=1)  # x f' = f
elementwise("LeakyRelu", lambda ctx, x, y: ctx.where(x > 0.0, 1.0, ctx.attr("alpha")), at_zero=0.0, degree=1)
elementwise("Elu", lambda ctx, x, y: ctx.where(x > 0.0, 1.0, y + ctx.attr("alpha")), at_zero=0.0)
elementwise(
    "Selu",
    lambda ctx, x, y: ctx.where(x > 0.0, ctx.attr("gamma"), y + ctx.attr("gamma") * ctx.attr("alpha")),
    at_zero=0.0,
)
elementwise("Celu", lambda ctx, x, y: ctx.b.Exp(ctx.b.Min(x, 0.0) * (1 / ctx.attr("alpha"))), at_zero=0.0)
elementwise("Sigmoid", lambda ctx, x, y: y * (1.0 - y), at_zero=0.5)
elementwise("Tanh", lambda ctx, x, y: 1.0 - y * y, at_zero=0.0)
elementwise("Erf", lambda ctx, x, y: ctx.b.Exp(-(x * x)) * (2 / math.sqrt(math.pi)), at_zero=0.0)
elementwise("Softplus", lambda ctx, x, y: ctx.b.Sigmoid(x), at_zero=math.log(2))
elementwise("Exp", lambda ctx, x, y: y, at_zero=1.0)
elementwise("Log", lambda ctx, x, y: held(ctx.b, 1.0 / x))
elementwise("Sqrt", lambda ctx, x, y: over_nonzero(ctx, 0.5, y), degree=0.5)
elementwise("Abs", lambda ctx, x, y: ctx.b.Sign(x), at_zero=0.0, degree=1)
elementwise("Sin", lambda ctx, x, y: ctx.b.Cos(x), at_zero=0.0)
elementwise("Cos", lambda ctx, x, y: -ctx.b.Sin(x), at_zero=1.0)
elementwise("Reciprocal", lambda ctx, x, y: held(ctx.b, -(y * y)))
zero("Floor", "Ceil", "Round", "Sign", "Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Not", "And", "Or", "Xor")
zero("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "EyeLike", "MelWeightMatrix")
zero("Constant", "ConstantOfShape", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
zero("BitwiseAnd", "BitwiseOr", "BitwiseNot", "BitwiseXor", "BitShift", "Hardmax")
stop("Clip", 1, 2)
stop("Where", 0)


def inside(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """1 where Clip passes its input on, strictly between the bounds, read off the output; else 0."""
    low, high = (ctx.node.inp(i) if ctx.node.has(i) else None for i in (1, 2))
    if low is None:
        return below(ctx.b, y, math.inf if high is None else high)
    return above(ctx.b, y, low) if high is None else above(ctx.b, y, low) * below(ctx.b, y, high)


elementwise("Clip", inside)


def softsign(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """1 / (1 + |x|)^2."""
    d = ctx.b.Abs(x) + 1.0
    return 1.0 / (d * d)


def hard_sigmoid(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """alpha on the slope, 0 on the plateaus."""
    return ctx.where(ctx.b.And(y > 0.0, y < 1.0), ctx.attr("alpha"), 0.0)


def through_hard_sigmoid(ctx: Context) -> Messages:
    """c times the derivative; nothing through a step."""
    return ctx.nothing() if is_step(ctx.attr("alpha")) else ctx.only(0, ctx.c * hard_sigmoid(ctx, ctx.x, ctx.y))


def hard_swish(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """0 below -3, (2x + 3)/6 between, 1 above 3."""
    between = ctx.where(x < 3.0, x * (1 / 3) + 0.5, 1.0)
    return ctx.where(x > -3.0, between, 0.0)


def mish(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """t + x (1 - t^2) sigmoid(x) with t = tanh(softplus(x))."""
    t = ctx.b.Tanh(ctx.b.Softplus(x))
    return t + x * (1.0 - t * t) * ctx.b.Sigmoid(x)


def swish(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """s + a x s (1 - s) with s = sigmoid(a x)."""
    a = float(ctx.attr("alpha", 1.0))
    s = ctx.b.Sigmoid(x if a == 1 else x * a)
    return s + (x * a) * (s * (1.0 - s))


def gelu(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    """Phi(x) + x phi(x), or the derivative of the tanh approximation."""
    b = ctx.b
    if ctx.attr("approximate", "none") == "tanh":
        k, a = math.sqrt(2 / math.pi), 0.044715
        x = b.Clip(x, -10.0, 10.0)  # beyond, the derivative is 0 or 1, and powers may be infinite
        t = b.Tanh((x + (x * x * x) * a) * k)
        return (t + 1.0) * 0.5 + x * (1.0 - t * t) * ((x * x) * (3 * a) + 1.0) * (0.5 * k)
    phi = b.Exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (b.Erf(x * math.sqrt(0.5)) + 1.0) * 0.5 + x * phi


elementwise("Softsign", softsign, at_zero=0.0)
register(OpInfo("HardSigmoid", vjp=through_hard_sigmoid, derivative=hard_sigmoid, at_zero=0.5))
elementwise("HardSwish", hard_swish, at_zero=0.0)
elementwise("Mish", mish, at_zero=0.0)
elementwise("Swish", swish, at_zero=0.0)
elementwise("Gelu", gelu, at_zero=0.0)


# Several data inputs. Broadcast axes are summed by the backward loop.


@vjp("Neg", degree=1)
def neg(ctx: Context) -> Messages:
    """-c."""
    return [-ctx.c]


@vjp("Add", degree=1)
def add(ctx: Context) -> Messages:
    """c to both."""
    return [ctx.c, ctx.c]


@vjp("Sub", degree=1)
def sub(ctx: Context) -> Messages:
    """c, -c."""
    return [ctx.c, -ctx.c if ctx.need[1] else None]


@vjp("Sum", degree=1)
def total(ctx: Context) -> Messages:
    """c to all."""
    return [ctx.c] * len(ctx.node.x)


@vjp("Mean", degree=1)
def mean(ctx: Context) -> Messages:
    """c/n to all."""
    return [ctx.c * (1 / len(ctx.node.x))] * len(ctx.node.x)


@vjp("Mul", degree=2)
def mul(ctx: Context) -> Messages:
    """c b, c a."""
    a, b = ctx.node.inp(0), ctx.node.inp(1)
    return [ctx.c * b if ctx.need[0] else None, ctx.c * a if ctx.need[1] else None]


@vjp("Div")
def div(ctx: Context) -> Messages:
    """c/b, -c y/b."""
    share = held(ctx.b, ctx.c / ctx.node.inp(1))
    return [share, -(share * ctx.y) if ctx.need[1] else None]


@vjp("Mod")
def mod(ctx: Context) -> Messages:
    """c, and -c times the whole quotient (a - y)/b."""
    a, b = ctx.node.inp(0), ctx.node.inp(1)
    return [ctx.c, -(ctx.c * ((a - ctx.y) / b)) if ctx.need[1] else None]


def power_slope(ctx: Context, x: Tensor, p: float) -> Tensor:
    """p x^(p-1); 0 at x = 0 where that is infinite (spec 1.9)."""
    if p >= 1:
        return ctx.b.Pow(x, p - 1.0) * p
    is_zero = ctx.b.Equal(x, 0.0)
    return ctx.where(is_zero, 0.0, ctx.b.Pow(ctx.where(is_zero, 1.0, x), p - 1.0) * p)


@vjp("Pow")
def power(ctx: Context) -> Messages:
    """c e x^(e-1), c y log(x)."""
    x, e = ctx.node.inp(0), ctx.node.inp(1)
    exponent = e if e.dtype == x.dtype else ctx.b.CastLike(e, x)
    if e.value is not None and e.value.size == 1:
        p = float(e.value.reshape(-1)[0])
        slope = x * 2.0 if p == 2 else power_slope(ctx, x, p)
    else:
        slope = exponent * ctx.b.Pow(x, exponent - 1.0)
    message = ctx.c * slope
    if not (e.value is not None and (e.value % 1 == 0).all()) and not ctx.facts.nonnegative(x):
        message = ctx.where(ctx.b.Equal(ctx.c, 0.0), 0.0, message)  # a branch not taken, of roots of negative numbers
    into_exponent = None
    if ctx.need[1]:  # 0 log(0) = 0
        into_exponent = ctx.c * ctx.y * ctx.b.Log(ctx.where(ctx.b.Equal(x, 0.0), 1.0, x))
    return [message, into_exponent]


@vjp("PRelu", degree=1)
def prelu(ctx: Context) -> Messages:
    """c or c slope; the slope gets c x where x < 0."""
    x, slope = ctx.node.inp(0), ctx.node.inp(1)
    into_slope = ctx.where(x < 0.0, ctx.c * x, 0.0) if ctx.need[1] else None
    return [ctx.where(x > 0.0, ctx.c, ctx.c * slope), into_slope]


@vjp("Max", degree=1)
@vjp("Min", degree=1)
def extremum(ctx: Context) -> Messages:
    """c to the first input that equals the result."""
    messages, free = [], None
    for t, needed in zip(ctx.node.x, ctx.need, strict=True):
        assert t is not None
        hit = ctx.b.Equal(t, ctx.y)
        wins = hit if free is None else ctx.b.And(free, hit)
        lost = ctx.b.Not(hit)
        free = lost if free is None else ctx.b.And(free, lost)
        messages.append(ctx.where(wins, ctx.c, 0.0) if needed else None)
    return messages


@vjp("Where", degree=1)
def where(ctx: Context) -> Messages:
    """c to the branch that was taken."""
    taken = ctx.node.inp(0)
    return [
        None,
        ctx.where(taken, ctx.c, 0.0) if ctx.need[1] else None,
        ctx.where(taken, 0.0, ctx.c) if ctx.need[2] else None,
    ]
