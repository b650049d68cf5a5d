"""Rules of which the message is relevance itself, made for the first layer: z-box, w-square, flat (spec 5.1)."""

from __future__ import annotations

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.half import held
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, Relevance, rule
from xaicompile.relevance.box import as_array, bounds_at, one_sample
from xaicompile.relevance.layer import Layer, Weight, layer_of, negative, positive
from xaicompile.relevance.linear import signal


@rule("z-box", low=None, high=None, epsilon=1e-6)
def z_box(ctx: Context) -> Messages:
    """z-box rule for bounded inputs l <= x <= h (Montavon et al. 2017), three passes; the bias cancels.

    R = x L'_W s - l L'_W+ s - h L'_W- s with s = R / st(L_W x - L_W+ l - L_W- h).

    Raises:
        RuleError: The bounds are not given.
    """
    layer, eps = layer_of(ctx, "z-box"), float(ctx.parameters["epsilon"])
    if ctx.parameters.get("low") is None or ctx.parameters.get("high") is None:
        raise RuleError("rule 'z-box' needs the input's bounds: --set low=... --set high=..., or --mean and --std")
    low, high = bounds_at(ctx, layer.x, ctx.parameters["low"], ctx.parameters["high"])
    terms = [(layer.x, layer.w), (low, positive(layer, layer.w)), (high, negative(layer, layer.w))]
    den, r = None, None
    for x, w in terms:
        z = layer.z(x, w)
        den = z if den is None else den if z is None else den - z
    assert den is not None
    s = signal(ctx, layer.output(), den, eps)
    ctx.absorb(lambda: ctx.product(ctx.c, layer.output()) - ctx.product(s, den), "stabiliser")
    for x, w in terms:
        back = layer.back(w, s)
        part = None if back is None else held(ctx.b, x * back)
        r = r if part is None else part if r is None else r - part
    assert r is not None
    return layer.result(Relevance(r))


@rule("w-square", epsilon=1e-6, bias="ignore")
def w_square(ctx: Context) -> Messages:
    """w-square rule (Montavon et al. 2017): in proportion to w^2. bias = "absorb" puts b^2 in the denominator.

    Raises:
        RuleError: The op interpolates, with weights that it does not show.
    """
    layer = layer_of(ctx, "w-square")
    if ctx.node.op == "Resize":
        raise RuleError(f"rule 'w-square' needs the squares of weights that {ctx.node} does not show; 'flat' does not")
    squared = layer.w * layer.w  # an average's weights are all equal, and its squares share like itself
    bias = layer.bias if ctx.parameters["bias"] == "absorb" else None
    return share(layer, squared, None if bias is None else bias * bias)


@rule("flat", epsilon=1e-6)
def flat(ctx: Context) -> Messages:
    """flat rule (Lapuschkin et al. 2019): every input of a unit gets the same share."""
    layer = layer_of(ctx, "flat")
    return share(layer, like_weight(layer), None)


def like_weight(layer: Layer) -> Weight:
    """Ones of the weight's shape."""
    b, w = layer.ctx.b, layer.w
    if isinstance(w, float):
        return w
    return b.op("Expand", b.const(np.ones((), w.dtype)), b.shape_of(w), shape=w.shape)


def share(layer: Layer, weight: Weight, offset: Tensor | None) -> Messages:
    """R passed on in proportion to a non-negative weight, whatever the input."""
    ctx, eps = layer.ctx, float(layer.ctx.parameters["epsilon"])
    den = layer.z(one_sample(ctx, layer.x, as_array(layer.x, 1.0)), weight, offset)
    assert den is not None
    s = signal(ctx, layer.output(), den, eps, +1)
    ctx.absorb(lambda: ctx.product(ctx.c, layer.output()) - ctx.product(s, den), "stabiliser")
    layer.absorb_bias(s, offset)
    back = layer.back(weight, s)
    return layer.result(None if back is None else Relevance(back))
