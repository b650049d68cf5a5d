"""Products of two data tensors (spec sections 6 and 7.2)."""

from __future__ import annotations

from xaicompile.registry import Context, Message, Messages, relevance, rule
from xaicompile.relevance.default import lrp_zero, scaled
from xaicompile.relevance.linear import linear_of

GATES = {"Sigmoid", "HardSigmoid", "Softmax"}


@rule("uniform")
def uniform(ctx: Context) -> Messages:
    """Half of the relevance to each factor: VJP/2."""
    return scaled(ctx.vjp(), 0.5)


@rule("gate")
def gate(ctx: Context) -> Messages:
    """All of the relevance to the factor that is not a gate; a gate is an output of Sigmoid, HardSigmoid or Softmax.

    A product without a gate, or of two gates, is split in half.
    """
    is_gate = [ctx.facts.made_by(x) in GATES for x in ctx.node.x]
    if sum(is_gate) != 1:
        return uniform(ctx)
    signal = is_gate.index(False)
    return ctx.only(signal, ctx.c * ctx.node.inp(1 - signal))


@relevance("Mul")
def mul(ctx: Context) -> Messages:
    """A factor off the path is a constant; two data factors follow the gate rule."""
    return gate(ctx) if ctx.need[0] and ctx.need[1] else ctx.vjp()


@relevance("MatMul", "Gemm", "Conv", "ConvTranspose")
def matmul(ctx: Context) -> Messages:
    """LRP-0 with one constant side, else half to each operand (AttnLRP)."""
    if linear_of(ctx) is not None:
        return lrp_zero(ctx)
    messages: list[Message] = list(scaled(ctx.vjp(), 0.5))
    if len(messages) > 2 and messages[2] is not None:  # the addend C of a Gemm gets all of its share
        messages[2] = ctx.vjp()[2]
    return messages
