"""Products of two data tensors, and the softmax that makes a factor of one (spec sections 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor, View
from xaicompile.registry import Context, Messages, info, relevance, rule
from xaicompile.relevance.default import default, lrp_zero, scaled
from xaicompile.relevance.layer import linear_of
from xaicompile.relevance.reading import absorb_difference

GATES = {"Sigmoid", "HardSigmoid", "Softmax"}


@rule("uniform")
def uniform(ctx: Context) -> Messages:
    """Half of the relevance to each of two data factors: VJP/2 (AttnLRP, Achtibat et al. 2024).

    Raises:
        RuleError: The op is no product.
    """
    return product(ctx) if factors(ctx, "uniform") > 1 else default(ctx)


@rule("gate")
def gate(ctx: Context) -> Messages:
    """All of the relevance to the factor that is not a gate; a gate is an output of Sigmoid, HardSigmoid or Softmax.

    A product without a gate, or of two gates, is split in half (Arras et al. 2017).

    Raises:
        RuleError: The op is no product.
    """
    if factors(ctx, "gate") < 2:
        return default(ctx)
    is_gate = [view is not None and view.op in GATES for view in makers(ctx)]
    return held_constant(ctx, is_gate) if sum(is_gate) == 1 else product(ctx)


@rule("detach")
def detach(ctx: Context) -> Messages:
    """One factor is held constant, and the other gets all: CP-LRP (Ali et al. 2022).

    Held constant is the factor that comes from a gate (Sigmoid, HardSigmoid, Softmax: attention weights, too), or else
    the one that comes from another activation, as in gated MLPs. A product with no such factor, or two, is split in
    half.

    Raises:
        RuleError: The op is no product.
    """
    if factors(ctx, "detach") < 2:
        return default(ctx)
    made_by = makers(ctx)
    gates = [v is not None and v.op in GATES for v in made_by]
    active = [v is not None and info(v).derivative is not None for v in made_by]
    held = next((h for h in (gates, active) if sum(h) == 1), None)
    return product(ctx) if held is None else held_constant(ctx, held)


def factors(ctx: Context, name: str) -> int:
    """How many factors of a product are data.

    Raises:
        RuleError: The op is no product.
    """
    if ctx.node.op not in ("Mul", "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose") or ctx.node.domain:
        raise RuleError(f"rule '{name}' is for products and can't be applied to {ctx.node}")
    return sum(ctx.need if ctx.node.op == "Einsum" else ctx.need[:2])


def held_constant(ctx: Context, held: Sequence[bool]) -> Messages:
    """All to the one of two factors that is not held constant; a bias that is data gets its share."""
    return [None if i < 2 and held[i] else m for i, m in enumerate(ctx.vjp())]


def makers(ctx: Context) -> list[View | None]:
    """The view that makes each of two factors, seen through what only moves, casts, masks or scales it."""
    return [maker(ctx, x) for x in ctx.node.x[:2]]


def maker(ctx: Context, t: Tensor | None) -> View | None:
    """The view that makes a tensor, seen through what only moves, casts, masks or scales it."""
    while (view := ctx.facts.producer(t)) is not None and not view.domain:
        data = [i for i, x in enumerate(view.x) if ctx.facts.on_path(x)]
        scales = view.op in ("Mul", "Neg") or (view.op == "Div" and data == [0])
        if len(data) != 1 or not (info(view).layout or scales or view.op in ("Where", "Dropout")):
            break
        t = view.x[data[0]]
    return view


def is_inverse(ctx: Context, view: View | None) -> bool:
    """True for a constant over data, as which normalisations are written."""
    if view is None or view.domain:
        return False
    if view.op == "Pow":
        exponent = view.inp(1).value
        return exponent is not None and bool((exponent < 0).all())
    return view.op == "Reciprocal" or (view.op == "Div" and not ctx.facts.on_path(view.x[0]))


@rule("stop")
def stop(ctx: Context) -> Messages:
    """Passes nothing on: what comes from here is held constant, as attention weights are in CP-LRP."""
    return absorb_difference(ctx, ctx.nothing())


def product(ctx: Context) -> Messages:
    """VJP/n for n data factors (spec 1.7, 7.2); a bias that is data gets all of its share.

    A factor that is an inverse is a denominator, and is held constant as that of Div is.
    """
    if ctx.node.op == "Mul" and ctx.need[0] and ctx.need[1]:
        inverses = [is_inverse(ctx, view) for view in makers(ctx)]
        if sum(inverses) == 1:
            return held_constant(ctx, inverses)
    bias = 2 if ctx.node.op in ("Gemm", "MatMul", "Conv", "ConvTranspose") else None
    exact, n = ctx.vjp(), sum(needed for i, needed in enumerate(ctx.need) if i != bias)
    return [m if i == bias else scaled([m], 1 / max(n, 1))[0] for i, m in enumerate(exact)]


@relevance("Mul")
def mul(ctx: Context) -> Messages:
    """A factor off the path is a constant; two data factors follow the gate rule."""
    return gate(ctx) if ctx.need[0] and ctx.need[1] else ctx.vjp()


@relevance("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
def matmul(ctx: Context) -> Messages:
    """LRP-0 with one constant side, else half to each operand (AttnLRP)."""
    return product(ctx) if linear_of(ctx) is None else lrp_zero(ctx)
