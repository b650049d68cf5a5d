"""LRP rules for linear ops, all of one form: clone the op with changed parameters, scale the cotangent by z/z',
run the op's own transpose with the changed parameters (spec section 5)."""

from __future__ import annotations

from xaicompile.errors import RuleError
from xaicompile.half import held, narrowed, widened
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Messages, rule
from xaicompile.relevance.layer import Layer, Part, Weight, layer_of, negative, positive, tiny


@rule("epsilon", epsilon=1e-6, stabiliser="absolute", bias="absorb")
def epsilon(ctx: Context) -> Messages:
    """LRP-epsilon; epsilon = 0 is LRP-0 (Bach et al. 2015; spec 1.3 to 1.5, 5.1).

    In c-space the rule is the factor z / st(z). stabiliser = "absolute": st(z) = z + epsilon sgn(z); "relative":
    epsilon counts in units of the root mean square of z, over all but the batch axis; "clip": st(z) =
    sgn(z) max(|z|, epsilon).
    bias = "ignore": st is taken of z without the bias, which then gets nothing.
    """
    layer, eps, c = layer_of(ctx, "epsilon"), float(ctx.parameters["epsilon"]), ctx.c
    if ctx.parameters["bias"] == "ignore" and layer.bias is not None:
        bare = layer.z(layer.x, layer.w)
        assert bare is not None
        s = signal(ctx, layer.output(), bare, level(ctx, bare))
        ctx.absorb(lambda: ctx.product(c, layer.output()) - ctx.product(s, bare), "stabiliser")
        return layer.result(layer.back(layer.w, s))
    if eps:
        z = layer.output()
        eps = max(eps, tiny(z))
        size = z if layer.rectified else ctx.b.Abs(z)
        if ctx.parameters["stabiliser"] == "clip":
            s = c * ctx.b.Min(size / eps, 1.0)
        else:
            # the root mean square is that of z itself, and not of what is left of it behind a ReLU
            least = level(ctx, layer.whole()) if ctx.parameters["stabiliser"] == "relative" else eps
            s = c * (size / (size + (least + tiny(z) if isinstance(least, Tensor) else least)))
        ctx.absorb(lambda: ctx.product(c - s, z), "stabiliser")
        c = s
    layer.absorb_bias(c, layer.bias)
    return layer.result(layer.back(layer.w, c))


def level(ctx: Context, z: Tensor) -> Tensor | float:
    """Epsilon as a number, or in units of the root mean square of each sample of z (spec 1.4)."""
    eps = float(ctx.parameters["epsilon"])
    if ctx.parameters.get("stabiliser") != "relative":
        return eps
    if z.rank is None:
        raise RuleError(f'stabiliser = "relative" needs the rank of the output of {ctx.node}, which is unknown')
    axes = list(range(1, z.rank)) if z.rank > 1 else [0]
    wide = widened(ctx.b, z)  # a square may exceed 65504
    return narrowed(ctx.b, ctx.b.Sqrt(ctx.b.mean_axes(wide * wide, axes)), z) * eps


def quotient(ctx: Context, z: Tensor, den: Tensor, eps: Tensor | float, sign: int = 0) -> Tensor:
    """z / st(den), 0 where st(den) is 0: st adds eps sgn(den), or clips |den| at eps from below (spec 1.3, 1.9).

    `sign` tells that no value of den has the other one.
    """
    b, clips = ctx.b, ctx.parameters.get("stabiliser") == "clip"
    eps = max(eps, tiny(den)) if isinstance(eps, float) and eps else eps  # 1e-9 is nothing in half precision
    if clips:
        size = b.Max(b.Abs(den), eps)
        st = ctx.where(den < 0.0, -size, size)
    elif isinstance(eps, float) and eps == 0:
        st = den
    else:
        st = den + (eps * sign if sign else ctx.where(den < 0.0, -eps, eps))
    if isinstance(eps, Tensor) or eps == 0:
        none = b.Equal(st, 0.0)
        ratio = ctx.where(none, 0.0, z / ctx.where(none, 1.0, st))
    else:
        ratio = z / st
    return held(b, ratio)


def signal(ctx: Context, z: Tensor, den: Tensor, eps: Tensor | float, sign: int = 0, factor: float = 1.0) -> Tensor:
    """What is sent back through the transpose: c z / st(den), times a number."""
    s = ctx.c * quotient(ctx, z, den, eps, sign)
    return held(ctx.b, s if factor == 1 else s * factor)


@rule("gamma", gamma=0.25, bias="absorb")
def gamma(ctx: Context) -> Messages:
    """Generalised LRP-gamma (Andeol et al. 2021; spec 5.2): contributions of the sign of z are boosted by gamma.

    With sp = c [z>0] z/P and sn = c [z<0] z/Q, where P and Q are z with the positive or the negative contributions
    boosted: c_x = sp Wp^T + sn Wn^T where x >= 0, sp Wn^T + sn Wp^T where x < 0. What facts prove to be zero is
    left out: x >= 0 and z feeding only a ReLU leave one extra convolution.
    """
    layer, g = layer_of(ctx, "gamma"), float(ctx.parameters["gamma"])
    ignored = ctx.parameters["bias"] == "ignore" and layer.bias is not None
    w, bias = layer.w, None if ignored else layer.bias
    up, down = boosted(w, positive(layer, w), g), boosted(w, negative(layer, w), g)
    halves = []  # sign of z, weights for x >= 0 and x < 0, offset, z with the contributions of that sign boosted
    for sign, (there, here) in ((+1, (up, down)), (-1, (down, up))):
        if sign < 0 and layer.rectified:
            continue
        own = None if bias is None else (positive if sign > 0 else negative)(layer, bias)
        offset = None if bias is None or own is None else boosted(bias, own, g)
        total = layer.total(there, here, offset if isinstance(offset, Tensor) else None)
        if total is not None:
            halves.append((sign, there, here, offset, total))
    if len(halves) == 2:  # z = (P + Q) / (2 + gamma): nothing reads z itself, and the runtime goes on fusing
        z = held(ctx.b, (halves[0][-1] + halves[1][-1]) * (1 / (2 + g)))
        z = z + layer.broadcast_bias(layer.bias) if ignored and layer.bias is not None else z
    else:
        z = layer.output()
    sent: list[Part] = []
    for sign, there, here, offset, total in halves:
        s = ctx.c * (unlike_ratio if ignored else same_sign_ratio)(layer, z, total, sign)
        layer.absorb_bias(s, offset if isinstance(offset, Tensor) else None)
        sent.append((there, here, s))
    if ignored:
        shares = [ctx.product(part[2], half[-1]) for part, half in zip(sent, halves, strict=True)]
        ctx.absorb(lambda: ctx.product(ctx.c, z) - ctx.b.add_all(shares), "stabiliser")
    return layer.sent_back(sent)


def boosted(w: Weight, part: Weight, g: float) -> Weight:
    """w + g part, where part is w's positive or negative values."""
    return w if isinstance(part, float) and part == 0 else w + part * g


def same_sign_ratio(layer: Layer, z: Tensor, total: Tensor, sign: int) -> Tensor:
    """z/total where z has the given sign, else 0. In exact arithmetic |total| >= |z|; the guard keeps it so."""
    b, least = layer.ctx.b, tiny(z)
    if sign > 0:
        part = z if layer.rectified else b.Relu(z)
        return part / (b.Max(total, part) + least)
    part = b.Min(z, 0.0)
    return part / (b.Min(total, part) - least)


def unlike_ratio(layer: Layer, z: Tensor, total: Tensor, sign: int) -> Tensor:
    """z/total where z has the given sign, else 0; total, from which the bias is left out, may have any sign."""
    b, ctx = layer.ctx.b, layer.ctx
    part = (z if layer.rectified else b.Relu(z)) if sign > 0 else b.Min(z, 0.0)
    return quotient(ctx, part, total, 0.0)


@rule("z-plus", epsilon=1e-6, bias="absorb")
def z_plus(ctx: Context) -> Messages:
    """z+ rule: positive contributions alone, for inputs of any sign (Montavon et al. 2017; alpha = 1, beta = 0)."""
    return signed_shares(layer_of(ctx, "z-plus"), 1.0, 0.0)


@rule("alpha-beta", alpha=2.0, beta=1.0, epsilon=1e-6, bias="absorb")
def alpha_beta(ctx: Context) -> Messages:
    """alpha-beta rule (Bach et al. 2015; spec 5.1): alpha times the shares of positive contributions minus beta times
    those of negative ones; alpha - beta = 1.

    Raises:
        RuleError: alpha - beta is not 1.
    """
    alpha, beta = float(ctx.parameters["alpha"]), float(ctx.parameters["beta"])
    if abs(alpha - beta - 1) > 1e-6:
        raise RuleError(f"rule 'alpha-beta' needs alpha - beta = 1, not {alpha:g} - {beta:g}")
    return signed_shares(layer_of(ctx, "alpha-beta"), alpha, beta)


def signed_shares(layer: Layer, alpha: float, beta: float) -> Messages:
    """alpha R (a w)+ / sum (a w)+ - beta R (a w)- / sum (a w)-, with the biases of those signs in the sums."""
    ctx, eps = layer.ctx, float(layer.ctx.parameters["epsilon"])
    ignored = ctx.parameters["bias"] == "ignore" or layer.bias is None
    plus, minus = positive(layer, layer.w), negative(layer, layer.w)
    sent: list[Part] = []
    z = layer.output()
    for factor, sign, there, here in ((alpha, +1, plus, minus), (-beta, -1, minus, plus)):
        if factor == 0:
            continue
        own = None if ignored or layer.bias is None else (positive if sign > 0 else negative)(layer, layer.bias)
        offset = own if isinstance(own, Tensor) else None
        total = layer.total(there, here, offset)
        if total is None:  # no contribution has this sign: its share stays here
            ctx.absorb(lambda factor=factor: ctx.product(ctx.c, z) * factor)  # type: ignore[misc]
            continue
        s = signal(ctx, z, total, eps, sign, factor)
        layer.absorb_bias(s, offset)
        rest = lambda s=s, t=total, f=factor: ctx.product(ctx.c, z) * f - ctx.product(s, t)  # noqa: E731
        ctx.absorb(rest, "stabiliser")
        sent.append((there, here, s))
    return layer.sent_back(sent)
