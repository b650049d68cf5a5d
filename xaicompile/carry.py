"""Relevance that is no multiple of a value travels as R (design of `Relevance`): through which ops, and what they keep.

It passes what only moves values, what is affine in each of them, and, where they hand their input on, ops that pick or
clip values. Anything else gets a cotangent, R over the value. All this holds under rules that leave such ops alone:
one that says otherwise gets its say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaicompile import registry
from xaicompile.half import is_half
from xaicompile.ir import Builder, Tensor, View
from xaicompile.registry import Context, Rule
from xaicompile.unfused import unfused

AFFINE = {"Add", "Sub", "Mul", "Div", "BatchNormalization", "Neg", "Sum", "QuantizeLinear"}
WINNERS = {"MaxPool", "GlobalMaxPool", "ReduceMax"}  # their outputs are some of their inputs, as these are
CLIPPING = {"Clip", "Max", "Min"}  # with one data input: their outputs are that input, or bounds
FILLED = {"Pad", "Trilu", "MaxUnpool"}  # layout ops that put constants beside the values
PLAIN = ("default", "gradient")
HUGE, HUGE_IN_HALF = 1e30, 3e4  # of a cotangent
HANDS_ON = (*PLAIN, "pass", "norm", "uniform", "gate", "detach")  # they all do the same with one data input


def carries(ctx: Context, rule: Rule) -> bool:
    """True where R passes as R; the context's cotangents are R."""
    view, row = ctx.node, registry.info(ctx.node)
    if view.op == "Col2Im" or (view.op == "Dropout" and trains(view)):  # a sum, and a scale
        return False
    if row.layout:
        return is_one_of(rule, HANDS_ON)
    if view.domain or sum(ctx.need) != 1:
        return False
    if view.op in WINNERS:
        return is_one_of(rule, (*PLAIN, "winner"))
    if view.op in CLIPPING and is_one_of(rule, PLAIN):
        return True
    if affine_in(view, list(ctx.need).index(True)):
        return is_one_of(rule, HANDS_ON)
    return row.derivative is not None and is_one_of(rule, ("pass",))


def is_one_of(rule: Rule, names: Sequence[str]) -> bool:
    """True for a rule of one of these names."""
    return any(rule is registry.RULES[name] for name in names)


def affine_in(view: View, i: int) -> bool:
    """True for ops that are affine in each value of input `i`, the others held constant."""
    if view.op == "BatchNormalization" and view.attr("training_mode"):
        return False
    return view.op in AFFINE and not view.domain and (i == 0 or view.op not in ("Div", "BatchNormalization"))


def trains(view: View) -> bool:
    """True for a Dropout that may drop values."""
    flag = view.x[2].value if view.has(2) and view.x[2] is not None else None
    return view.has(2) and (flag is None or bool(flag.any()))


def carried(ctx: Context, rule: Rule) -> list[Tensor | None]:
    """R moved by the transpose of a layout op or a maximum, or kept as it is by another op."""
    view = ctx.node
    if view.op in WINNERS:
        return [m if isinstance(m, Tensor) else None for m in ctx.on(view).vjp()]
    if registry.info(view).layout:
        return moved(ctx)
    if view.op not in CLIPPING or is_one_of(rule, ("pass",)):
        return [ctx.c if n else None for n in ctx.need]
    passes = handed_on(ctx, list(ctx.need).index(True))
    ctx.absorb(lambda: ctx.b.keep(ctx.c, ctx.b.Not(passes)))
    return [ctx.b.keep(ctx.c, passes) if n else None for n in ctx.need]


def moved(ctx: Context) -> list[Tensor | None]:
    """R moved by a layout op; what belongs to constants is kept there."""
    view, stopped = ctx.node, registry.stops(ctx.node)
    if view.op in FILLED and view.attr("mode", "constant") == "constant":
        ctx.absorb(lambda: ctx.c * (1.0 - filled(ctx)))
    wanted = list(ctx.need)
    if ctx.ledger is not None and view.op == "Concat":
        wanted = [x is not None and i not in stopped for i, x in enumerate(view.x)]
    messages = Context(ctx.b, view, ctx.g, wanted, ctx.facts).vjp()
    for m, needed, asked in zip(messages, ctx.need, wanted, strict=False):
        if isinstance(m, Tensor) and asked and not needed:
            ctx.absorb(lambda m=m: m)  # type: ignore[misc]
    return [m if isinstance(m, Tensor) and n else None for m, n in zip(messages, ctx.need, strict=False)]


def filled(ctx: Context) -> Tensor:
    """1 where the output of an op of `FILLED` is a value of its input, else 0."""
    b, view = ctx.b, ctx.node
    ones = b.expand_like(b.const(np.ones((), ctx.x.dtype)), ctx.x)
    others = [None if view.op == "Pad" and i == 2 else x for i, x in enumerate(view.x)]
    return b.forward(view.varied(x=[ones, *others[1:]]))


def handed_on(ctx: Context, i: int) -> Tensor:
    """Where the output is input `i`.

    At a bound that is so as well; but where reading the input would break a fusion, Clip is read off its output alone.
    """
    x = ctx.node.inp(i)
    if ctx.node.op == "Clip" and x.name in ctx.facts.between:
        derivative = registry.info(ctx.node).derivative
        assert derivative is not None
        return derivative(ctx, x, ctx.y) > 0.0
    return ctx.b.Equal(unfused(ctx.b, ctx.facts, x), ctx.y)


def value(ctx: Context, i: int) -> Tensor:
    """Output `i` wherever R is not zero, read so that the runtime's fusions stay."""
    y = ctx.node.out(i)
    after = ctx.facts.activation.get(y.name)
    return unfused(ctx.b, ctx.facts, y) if after is None else after


def as_cotangent(b: Builder, x: Tensor, r: Tensor) -> Tensor:
    """R/x, 0 where x is 0 or so near to it that the quotient would not be finite (spec 1.9)."""
    ends = no_multiple(b, x, r)
    return b.where(ends, 0.0, r / b.where(ends, 1.0, x, like=x), like=x)


def ended(b: Builder, x: Tensor, r: Tensor) -> Tensor:
    """What `as_cotangent` leaves behind."""
    return b.where(no_multiple(b, x, r), r, 0.0, like=r)


def no_multiple(b: Builder, x: Tensor, r: Tensor) -> Tensor:
    """Where R is no multiple of x by a number that can be computed with: at 0, and next to it."""
    return b.LessOrEqual(b.Abs(x) * (HUGE_IN_HALF if is_half(x) else HUGE), b.Abs(r))
