"""Normalisations: exact transposes."""

from __future__ import annotations

from xaicompile.half import narrowed, widened
from xaicompile.ir import Builder, Tensor, View
from xaicompile.registry import Context, Message, Messages, vjp
from xaicompile.vjp.norms import channels, normalised, of_channels, standardised
from xaicompile.vjp.shape import rank_of


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
    """c s, with s = gamma / sqrt(var + eps); the parameters where they are data."""
    if ctx.attr("training_mode"):
        return trained(ctx)
    b, (gamma, _, mean, var) = ctx.b, (ctx.node.inp(i) for i in range(1, 5))
    s, _ = batch_norm_affine(b, ctx.node)
    messages: list[Message] = [ctx.c * per_channel(b, s, ctx.x), None, None, None, None]
    if any(ctx.need[1:]):
        total = of_channels(ctx, ctx.c)
        stretched = of_channels(ctx, ctx.c * (ctx.x - per_channel(b, mean, ctx.x)))
        squares = var + float(ctx.attr("epsilon"))
        slope = stretched / b.Sqrt(squares)
        messages[1:] = [slope, total, -(total * s), slope * gamma / squares * -0.5]
    return messages


def trained(ctx: Context) -> Messages:
    """As in training: the batch's own statistics standardise it, and move the running ones."""
    b, parts, keep = ctx.b, standardised(ctx), float(ctx.attr("momentum"))
    g = [*ctx.g, None, None][:3]
    messages = list(normalised(ctx)) if g[0] is not None else [None] * 3
    count = b.CastLike(b.Div(b.Size(ctx.x), b.dim(ctx.x, 1)), ctx.x)
    into_x = [m for m in messages[:1] if isinstance(m, Tensor)]
    if g[1] is not None:
        into_x.append(b.expand_like(channels(ctx, g[1] / count * (1 - keep)), ctx.x))
    if g[2] is not None:
        into_x.append(parts.message(ctx, parts.centred) * channels(ctx, g[2] / count * (2 * (1 - keep))))
    into_running = [None if c is None else c * keep for c in g[1:]]
    return [b.add_all(into_x), *messages[1:], *into_running]


def layer_norm_parts(ctx: Context) -> tuple[list[int], Tensor, Tensor]:
    """Normalised axes, x - mean and 1/sd of a LayerNormalization, recomputed from its input; float32 at least."""
    b, x = ctx.b, widened(ctx.b, ctx.x)
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
    of_statistics = layer_norm_statistics(ctx, n, inverse)
    if ctx.g[0] is None:
        return ctx.only(0, None if of_statistics is None else narrowed(b, of_statistics, ctx.x))
    into_scale = ctx.c * narrowed(b, n, ctx.x) if ctx.need[1] else None
    into_bias = ctx.c if len(ctx.need) > 2 and ctx.need[2] else None
    u = widened(b, ctx.c) * widened(b, ctx.node.inp(1))
    into_x = (u - b.mean_axes(u, axes) - n * b.mean_axes(u * n, axes)) * inverse
    into_x = into_x if of_statistics is None else into_x + of_statistics
    return [narrowed(b, into_x, ctx.x), into_scale, into_bias][: len(ctx.node.x)]


def layer_norm_statistics(ctx: Context, n: Tensor, inverse: Tensor) -> Tensor | None:
    """What comes in through the mean and 1/sd, where they are outputs that somebody reads."""
    b, parts = ctx.b, []
    into_mean, into_inverse = (None if g is None else narrowed(b, g, n) for g in [*ctx.g, None, None][1:3])
    if into_mean is not None:
        parts.append(b.expand_like(into_mean / elements(ctx, into_mean), ctx.x))
    if into_inverse is not None:
        parts.append(-(n * (into_inverse * inverse * inverse / elements(ctx, into_inverse))))
    return b.add_all(parts) if parts else None


def elements(ctx: Context, of_each: Tensor) -> Tensor:
    """How many elements of the input belong to one of these."""
    return ctx.b.CastLike(ctx.b.Div(ctx.b.Size(ctx.x), ctx.b.Size(of_each)), of_each)
