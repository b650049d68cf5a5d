"""Max-pooling: the winner takes all, or its relevance is shared as an average pool in its place would (spec 6)."""

from __future__ import annotations

from xaicompile.errors import RuleError
from xaicompile.ir import Tensor
from xaicompile.registry import UNWEIGHTED, Context, Messages, rule
from xaicompile.relevance.layer import Layer
from xaicompile.relevance.linear import level, signal
from xaicompile.relevance.neural import POOLS, winner_takes_all

AVERAGES = {"MaxPool": "AveragePool", "GlobalMaxPool": "GlobalAveragePool", "ReduceMax": "ReduceMean"}


@rule("winner")
def winner(ctx: Context) -> Messages:
    """All to the first winner of each window: the exact transpose. Of a soft pool, all to the largest term.

    Raises:
        RuleError: The op takes no maximum.
    """
    if ctx.node.op in POOLS:
        return winner_takes_all(ctx)
    in_place(ctx, "winner")
    return ctx.vjp()


@rule("average", epsilon=1e-6, stabiliser="absolute")
def average(ctx: Context) -> Messages:
    """LRP-epsilon of an average pool in place of the max-pool: in proportion to the inputs of a window.

    So does the tutorial of the LRP overview (Montavon et al. 2019) for VGG-16. `stabiliser` as in the epsilon rule.

    Raises:
        RuleError: The op takes no maximum.
    """
    layer = in_place(ctx, "average")
    return shared(layer, layer.z(layer.x, 1.0), 1.0)


@rule("proportional", epsilon=1e-6)
def proportional(ctx: Context) -> Messages:
    """The z+ rule of an average pool in place of the max-pool: in proportion to the positive inputs of a window.

    Raises:
        RuleError: The op takes no maximum.
    """
    layer = in_place(ctx, "proportional")
    return shared(layer, layer.z(layer.parts[0], 1.0), 0.0)


def shared(layer: Layer, mean: Tensor | None, down: float) -> Messages:
    """Relevance in proportion to what the mean is of; negative inputs count with weight `down`."""
    ctx = layer.ctx
    if mean is None:  # no input is positive
        ctx.absorb(lambda: ctx.product(ctx.c, ctx.y))
        return ctx.nothing()
    s = signal(ctx, ctx.y, mean, level(ctx, mean))
    ctx.absorb(lambda: ctx.product(ctx.c, ctx.y) - ctx.product(s, mean), "stabiliser")
    return layer.sent_back([(1.0, down, s)])


def in_place(ctx: Context, name: str) -> Layer:
    """The average that stands in place of a maximum, as a linear layer."""
    view = ctx.node
    if view.op not in AVERAGES or view.domain:
        raise RuleError(f"rule '{name}' is for max-pooling and can't be applied to {view}")
    attrs = {k: v for k, v in view.attrs.items() if k != "storage_order"}
    if ctx.b.opset < 19 and any(d != 1 for d in attrs.pop("dilations", [1])) and name != "winner":
        raise RuleError(f"rule '{name}': opset {ctx.b.opset} has no average pool with dilations, as {view} has")
    return Layer(ctx, UNWEIGHTED, view.varied(op=AVERAGES[view.op], y=[ctx.y], attrs=attrs))
