"""Normalisations: exact transposes."""

from __future__ import annotations

from xaicompile.ir import Builder, Tensor, View
from xaicompile.registry import Context, Messages, stop, vjp
from xaicompile.vjp.shape import rank_of

stop("BatchNormalization", 1, 2, 3, 4)


def batch_norm_affine(b: Builder, view: View) -> tuple[Tensor, Tensor]:
    """Scale s and shift t of an inference BatchNormalization y = s x + t, both [C]."""
    gamma, beta, mean, var = (view.inp(i) for i in range(1, 5))
    s = gamma / b.Sqrt(var + float(view.attr("epsilon")))
    return s, beta - mean * s


def per_channel(b: Builder, v: Tensor, x: Tensor) -> Tensor:
    """A [C] vector shaped to broadcast over x [N, C, ...]."""
    spatial = (x.rank or 2) - 2
    return v if spatial == 0 else b.Unsqueeze(v, list(range(1, spatial + 1)))


@vjp("BatchNormalization")
def batch_norm(ctx: Context) -> Messages:
    """c s, with s = gamma / sqrt(var + eps)."""
    s, _ = batch_norm_affine(ctx.b, ctx.node)
    return ctx.only(0, ctx.c * per_channel(ctx.b, s, ctx.x))


def layer_norm_parts(ctx: Context) -> tuple[list[int], Tensor, Tensor]:
    """Normalised axes, x - mean and 1/sd of a LayerNormalization, recomputed from its input."""
    b, x = ctx.b, ctx.x
    rank = rank_of(x)
    axes = list(range(int(ctx.attr("axis")) % rank, rank))
    centred = x - b.mean_axes(x, axes)
    variance = b.mean_axes(centred * centred, axes)
    return axes, centred, 1.0 / b.Sqrt(variance + float(ctx.attr("epsilon")))


@vjp("LayerNormalization")
def layer_norm(ctx: Context) -> Messages:
    """(u - mean(u) - n mean(u n)) / sd with u = c w and n the normalised input (axes as in the op)."""
    b = ctx.b
    axes, centred, inverse = layer_norm_parts(ctx)
    n = centred * inverse
    into_scale = ctx.c * n if ctx.need[1] else None
    into_bias = ctx.c if len(ctx.need) > 2 and ctx.need[2] else None
    u = ctx.c * ctx.node.inp(1)
    into_x = (u - b.mean_axes(u, axes) - n * b.mean_axes(u * n, axes)) * inverse
    return [into_x, into_scale, into_bias][: len(ctx.node.x)]
