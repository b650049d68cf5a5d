"""LRP rules for linear ops, all of one form: clone the op with changed parameters, scale the cotangent by z/z',
run the op's own transpose with the changed parameters (spec section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor, View
from xaicompile.registry import Context, Linear, Message, Messages, Relevance, info, rule
from xaicompile.relevance.box import as_array, bounds_at, one_sample


def linear_of(ctx: Context) -> Linear | None:
    """Which input of the node is data and which is weight, decided by facts; None if the node is not linear."""
    stated = info(ctx.node).linear
    if stated is None:
        return None
    on_path = [ctx.facts.on_path(x) for x in ctx.node.x]
    if on_path[stated.data] and not on_path[stated.weight]:
        return stated
    if on_path[stated.weight] and not on_path[stated.data] and ctx.node.op in ("Gemm", "MatMul"):
        return Linear(stated.weight, stated.data, stated.bias)
    return None


@dataclass
class Layer:
    """A linear node z = x W + b seen by a rule, with its variations."""

    ctx: Context
    at: Linear

    @property
    def x(self) -> Tensor:
        """The data input."""
        return self.ctx.node.inp(self.at.data)

    @property
    def w(self) -> Tensor:
        """The weight."""
        return self.ctx.node.inp(self.at.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias, None if there is none."""
        return self.ctx.node.inp(self.at.bias) if self.at.bias is not None and self.ctx.node.has(self.at.bias) else None

    def varied(self, x: Tensor, w: Tensor, bias: Tensor | None) -> View:
        """The node with other operands."""
        operands = list(self.ctx.node.x)
        operands[self.at.data], operands[self.at.weight] = x, w
        if self.at.bias is not None:
            operands = operands[: self.at.bias] + ([] if bias is None else [bias])
        return self.ctx.node.varied(x=operands)

    def z(self, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W + b with other operands."""
        return self.ctx.b.forward(self.varied(x, w, bias))

    def back(self, w: Tensor, s: Tensor) -> Tensor:
        """The node's own transpose with another weight, applied to s."""
        varied = self.varied(self.x, w, None)
        need = [i == self.at.data for i in range(len(varied.x))]
        ctx = Context(self.ctx.b, varied, [s], need, self.ctx.facts, self.ctx.parameters)
        message = ctx.vjp()[self.at.data]
        assert isinstance(message, Tensor)
        return message

    def result(self, message: Message) -> Messages:
        """The message for the data input."""
        return self.ctx.only(self.at.data, message)

    def output(self) -> Tensor:
        """z where the cotangent is not zero, read so that the runtime's fusions stay.

        Where only a ReLU reads z, that is the ReLU's output; where only an Add reads it, z is computed once more, in
        a form that a runtime does not merge with the prediction's own node.
        """
        z = self.ctx.y
        if z.name in self.ctx.facts.activation:
            return self.ctx.facts.activation[z.name]
        if z.name not in self.ctx.facts.fused:
            return z
        if self.bias is not None:
            return self.z(self.x, self.w) + self.broadcast_bias(self.bias)
        return self.z(self.x, self.w, self.ctx.b.const(np.zeros((self.w.static or (1,))[0], z.dtype)))

    @property
    def rectified(self) -> bool:
        """True if the cotangent is zero wherever z <= 0."""
        return self.ctx.y.name in self.ctx.facts.activation

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        """A bias shaped to broadcast over z."""
        rank = self.ctx.y.rank or 2
        if self.ctx.node.op in ("Conv", "ConvTranspose"):
            return self.ctx.b.Unsqueeze(bias, list(range(1, rank - 1)))
        return bias * float(self.ctx.attr("beta")) if self.ctx.node.op == "Gemm" else bias

    def absorb_bias(self, s: Tensor, bias: Tensor | None) -> None:
        """Enters s b, the bias's share, in the ledger."""
        if bias is not None:
            self.ctx.absorb(lambda: s * self.broadcast_bias(bias))


def layer_of(ctx: Context, rule_name: str) -> Layer:
    """The node as a linear layer.

    Raises:
        RuleError: The node is not linear in one data input.
    """
    at = linear_of(ctx)
    if at is None:
        raise RuleError(f"rule '{rule_name}' is for linear ops and can't be applied to {ctx.node}")
    return Layer(ctx, at)


def positive(layer: Layer, t: Tensor) -> Tensor:
    """max(t, 0)."""
    return layer.ctx.b.Relu(t)


def negative(layer: Layer, t: Tensor) -> Tensor:
    """min(t, 0)."""
    return layer.ctx.b.Min(t, 0.0)


def tiny(t: Tensor) -> float:
    """A number next to nothing: the smallest normal one, in half precision (6e-5) the smallest of all."""
    kind = np.finfo(t.dtype or np.float32)
    return float(kind.smallest_subnormal if kind.bits == 16 else kind.tiny)


def stabilised(layer: Layer, z: Tensor, eps: float) -> Tensor:
    """z + eps sgn(z) with sgn(0) = +1 (spec 1.3)."""
    return z + layer.ctx.where(z < 0.0, -eps, eps)


@rule("epsilon", epsilon=1e-6)
def epsilon(ctx: Context) -> Messages:
    """LRP-epsilon; epsilon = 0 is LRP-0. In c-space the rule is the factor |z| / (|z| + eps) (spec 1.3, 5.1)."""
    layer, eps, c = layer_of(ctx, "epsilon"), float(ctx.parameters["epsilon"]), ctx.c
    if eps:
        z = layer.output()
        size = z if layer.rectified else ctx.b.Abs(z)
        s = c * (size / (size + eps))
        ctx.absorb(lambda: (c - s) * z)
        c = s
    layer.absorb_bias(c, layer.bias)
    return layer.result(layer.back(layer.w, c))


@rule("gamma", gamma=0.25)
def gamma(ctx: Context) -> Messages:
    """Generalised LRP-gamma (Andeol et al.; spec 5.2): contributions of the sign of z are boosted by gamma.

    With sp = c [z>0] z/P and sn = c [z<0] z/Q, where P and Q are z with the positive or the negative contributions
    boosted: c_x = sp Wp^T + sn Wn^T where x >= 0, sp Wn^T + sn Wp^T where x < 0. What facts prove to be zero is
    left out: x >= 0 and z feeding only a ReLU leave one extra convolution.
    """
    layer, g, b = layer_of(ctx, "gamma"), float(ctx.parameters["gamma"]), ctx.b
    if g == 0:
        return epsilon(Context(b, ctx.node, ctx.g, ctx.need, ctx.facts, {"epsilon": 0.0}, ctx.ledger))
    x, w, bias = layer.x, layer.w, layer.bias
    low, high = ctx.facts.bounds(x)
    boosted = {+1: w + positive(layer, w) * g, -1: w + negative(layer, w) * g}
    signs = (+1,) if layer.rectified else (+1, -1)
    offsets, totals = {}, {}
    for sign in signs:
        offset = None if bias is None else bias + (positive if sign > 0 else negative)(layer, bias) * g
        if low >= 0:
            total = layer.z(x, boosted[sign], offset)
        elif high <= 0:
            total = layer.z(x, boosted[-sign], offset)
        else:
            total = layer.z(positive(layer, x), boosted[sign], offset) + layer.z(negative(layer, x), boosted[-sign])
        offsets[sign], totals[sign] = offset, total
    # z = (P + Q) / (2 + gamma): as nothing reads z itself, the runtime goes on fusing the prediction's Conv and Add
    z = layer.output() if layer.rectified else (totals[+1] + totals[-1]) * (1 / (2 + g))
    parts = []  # (sign of z, its scaled cotangent)
    for sign in signs:
        s = ctx.c * same_sign_ratio(layer, z, totals[sign], sign)
        layer.absorb_bias(s, offsets[sign])
        parts.append((sign, s))
    down = {
        +1: (lambda: b.add_all([layer.back(boosted[sign], s) for sign, s in parts])),
        -1: (lambda: b.add_all([layer.back(boosted[-sign], s) for sign, s in parts])),
    }
    if low >= 0 or high <= 0:
        return layer.result(down[+1 if low >= 0 else -1]())
    return layer.result(b.where(x < 0.0, down[-1](), down[+1](), like=x))


def same_sign_ratio(layer: Layer, z: Tensor, total: Tensor, sign: int) -> Tensor:
    """z/total where z has the given sign, else 0. In exact arithmetic |total| >= |z|; the guard keeps it so."""
    b, least = layer.ctx.b, tiny(z)
    if sign > 0:
        part = z if layer.rectified else positive(layer, z)
        return part / (b.Max(total, part) + least)
    part = negative(layer, z)
    return part / (b.Min(total, part) - least)


@rule("z-box", low=None, high=None, epsilon=1e-6)
def z_box(ctx: Context) -> Messages:
    """z-box rule for bounded inputs l <= x <= h (Montavon et al. 2017; spec 5.1), three passes; the bias cancels.

    R = x L'_W s - l L'_W+ s - h L'_W- s with s = R / st(L_W x - L_W+ l - L_W- h).
    """
    layer, eps = layer_of(ctx, "z-box"), float(ctx.parameters["epsilon"])
    if ctx.parameters.get("low") is None or ctx.parameters.get("high") is None:
        raise RuleError("rule 'z-box' needs the input's bounds: --set low=... --set high=..., or --mean and --std")
    w, wp, wn = layer.w, positive(layer, layer.w), negative(layer, layer.w)
    low, high = bounds_at(ctx, layer.x, ctx.parameters["low"], ctx.parameters["high"])
    offset = layer.z(low, wp) + layer.z(high, wn)
    den = layer.z(layer.x, w) - offset
    s = ctx.c * layer.output() / stabilised(layer, den, eps)
    ctx.absorb(lambda: s * (stabilised(layer, den, eps) - den))
    r = layer.x * layer.back(w, s) - low * layer.back(wp, s) - high * layer.back(wn, s)
    return layer.result(Relevance(r))


@rule("w-square", epsilon=1e-6, bias="ignore")
def w_square(ctx: Context) -> Messages:
    """w-square rule (Montavon et al. 2017): in proportion to w^2. bias = "include" puts b^2 in the denominator."""
    layer = layer_of(ctx, "w-square")
    squared = layer.w * layer.w
    bias = layer.bias if ctx.parameters["bias"] == "include" else None
    offset = None if bias is None else bias * bias
    return share(layer, squared, offset)


@rule("flat", epsilon=1e-6)
def flat(ctx: Context) -> Messages:
    """flat rule (Lapuschkin et al. 2019): every input of a unit gets the same share."""
    layer = layer_of(ctx, "flat")
    return share(layer, like_weight(layer), None)


def like_weight(layer: Layer) -> Tensor:
    """Ones of the weight's shape."""
    b, w = layer.ctx.b, layer.w
    return b.op("Expand", b.const(np.ones((), w.dtype)), b.shape_of(w), shape=w.shape)


def share(layer: Layer, weight: Tensor, offset: Tensor | None) -> Messages:
    """R passed on in proportion to a non-negative weight, whatever the input."""
    ctx, eps = layer.ctx, float(layer.ctx.parameters["epsilon"])
    ones = one_sample(ctx, layer.x, as_array(layer.x, 1.0))
    den = layer.z(ones, weight, offset)
    s = ctx.c * layer.output() / (den + eps)
    ctx.absorb(lambda: s * eps)
    layer.absorb_bias(s, offset)
    return layer.result(Relevance(layer.back(weight, s)))
