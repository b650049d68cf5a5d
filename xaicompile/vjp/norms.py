"""Normalisations over one sample: exact transposes, and what LRP needs of them.

Each standardises groups of values: n = (x - mean) / sd, or n = x / rms, after which scale and bias may follow. For
half precision this is done in float32, as runtimes do: squares of values above 256 would be infinite there, and an
epsilon of 1e-12 nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xaicompile.half import narrowed, widened
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Message, Messages, vjp
from xaicompile.vjp.reduce import over
from xaicompile.vjp.shape import in_groups, rank_of


@dataclass(frozen=True)
class Standardised:
    """What is standardised, recomputed from the input; all in float32 at least.

    Attributes:
        x: The data, groups brought together on `axes`.
        axes: The axes that one group spans.
        centred: x less its mean, or x itself.
        inverse: 1/sd or 1/rms.
        scale: What multiplies the result, of a shape that broadcasts over the op's own input; None for nothing.
        has_mean: Whether the mean is taken off.
    """

    x: Tensor
    axes: list[int]
    centred: Tensor
    inverse: Tensor
    scale: Tensor | None
    has_mean: bool

    def into(self, ctx: Context, u: Tensor) -> Tensor:
        """The exact message for x from u, what arrives at n."""
        b, n = ctx.b, self.centred * self.inverse
        rest = u - b.mean_axes(u, self.axes) if self.has_mean else u
        return (rest - n * b.mean_axes(u * n, self.axes)) * self.inverse

    def detached(self, ctx: Context, u: Tensor) -> Tensor:
        """The message for x with 1/sd taken as a constant (spec 7.3)."""
        u = u * self.inverse
        return u - ctx.b.mean_axes(u, self.axes) if self.has_mean else u

    def arriving(self, ctx: Context) -> Tensor:
        """What arrives at n, in the shape of x here."""
        c = widened(ctx.b, ctx.c)
        return ctx.b.reshape_like(c if self.scale is None else c * self.scale, self.x)

    def message(self, ctx: Context, m: Tensor) -> Tensor:
        """A message for x in its own shape and type."""
        return narrowed(ctx.b, ctx.b.reshape_like(m, ctx.x), ctx.x)


def standardised(ctx: Context) -> Standardised:
    """Reads a normalisation."""
    b, x, op = ctx.b, widened(ctx.b, ctx.x), ctx.node.op
    rank = rank_of(x)
    scale: Tensor | None = None
    if op == "GroupNormalization":
        x, scale = grouped(ctx, x), channels(ctx, ctx.node.inp(1))
        axes = [2]
    elif op == "BatchNormalization":  # in training mode
        axes, scale = [0, *range(2, rank)], channels(ctx, ctx.node.inp(1))
    elif op == "InstanceNormalization":
        axes, scale = list(range(2, rank)), channels(ctx, ctx.node.inp(1))
    elif op == "RMSNormalization":
        axes, scale = list(range(int(ctx.attr("axis")) % rank, rank)), ctx.node.inp(1)
    else:
        axes = [a % rank for a in ctx.attr("axes", [0, 2, 3])]
    has_mean = op != "RMSNormalization"
    centred = x - b.mean_axes(x, axes) if has_mean else x
    squares = b.mean_axes(centred * centred, axes)
    if op == "MeanVarianceNormalization":
        inverse = 1.0 / (b.Sqrt(squares) + 1e-9)
    else:
        inverse = 1.0 / b.Sqrt(squares + float(ctx.attr("epsilon")))
    return Standardised(x, axes, centred, inverse, None if scale is None else widened(b, scale), has_mean)


def grouped(ctx: Context, x: Tensor) -> Tensor:
    """[N, groups, rest]."""
    return in_groups(ctx.b, x, int(ctx.attr("num_groups")))


def channels(ctx: Context, v: Tensor) -> Tensor:
    """A [C] vector shaped to broadcast over [N, C, ...]."""
    spatial = rank_of(ctx.x) - 2
    return ctx.b.Unsqueeze(v, list(range(1, spatial + 1))) if spatial else v


@vjp("InstanceNormalization")
@vjp("GroupNormalization")
@vjp("RMSNormalization")
@vjp("MeanVarianceNormalization")
def normalised(ctx: Context) -> Messages:
    """(u - mean(u) - n mean(u n)) / sd with u = c scale; scale gets c n, bias c, each summed over all else."""
    s = standardised(ctx)
    messages: list[Message] = [s.message(ctx, s.into(ctx, s.arriving(ctx)))]
    if len(ctx.need) > 1:
        messages += [into_scale(ctx, s) if ctx.need[1] else None]
    if len(ctx.need) > 2:
        messages += [of_channels(ctx, ctx.c) if ctx.need[2] else None]
    return messages


def into_scale(ctx: Context, s: Standardised) -> Tensor:
    """c n, summed by channel; where the scale broadcasts by itself, the loop sums."""
    product = ctx.c * s.message(ctx, s.centred * s.inverse)
    return product if ctx.node.op == "RMSNormalization" else of_channels(ctx, product)


def of_channels(ctx: Context, t: Tensor) -> Tensor:
    """t summed over all but the channels."""
    return ctx.b.sum_axes(t, [0, *range(2, rank_of(ctx.x))])


@vjp("LpNormalization")
def lp_normalization(ctx: Context) -> Messages:
    """(c - d sum(c y)) / norm, d the derivative of the norm: y for p 2, sign(x) for p 1; 0 where the norm is 0."""
    b, axes = ctx.b, [int(ctx.attr("axis"))]
    direction = b.Sign(ctx.x) if int(ctx.attr("p")) == 1 else ctx.y
    share = b.sum_axes(ctx.c * ctx.y, axes, keepdims=True)
    return [over(ctx, ctx.c - direction * share, lp_norm(ctx, axes))]


def lp_norm(ctx: Context, axes: Sequence[int]) -> Tensor:
    """The norm along the axis, kept as an axis of size 1."""
    op = "ReduceL1" if int(ctx.attr("p")) == 1 else "ReduceL2"
    return ctx.b.op(op, ctx.x, list(axes), keepdims=1)
