"""Reductions, softmax."""

from __future__ import annotations

from math import prod

from xaicompile.ir import Builder, Tensor
from xaicompile.registry import UNWEIGHTED, Context, Messages, stop, vjp
from xaicompile.vjp.blocked import in_blocks
from xaicompile.vjp.shape import flat_from, known_ints, positions

REDUCTIONS = ("Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "LogSum", "Prod")
for _name in REDUCTIONS:
    stop(f"Reduce{_name}", 1)


def kept(ctx: Context, t: Tensor) -> Tensor:
    """A tensor of the output's shape, with the reduced axes as axes of size 1, so that it broadcasts over the input."""
    if int(ctx.attr("keepdims")) or reduces_nothing(ctx):
        return t
    if ctx.node.has(1):
        return ctx.b.Unsqueeze(t, ctx.node.inp(1))
    axes = ctx.attr("axes")
    return ctx.b.Unsqueeze(t, list(axes)) if axes else t


def reduces_nothing(ctx: Context) -> bool:
    """True for a reduction without axes that is told to do nothing then."""
    empty = not ctx.node.has(1) or known_ints(ctx.node.x[1]) == []
    return empty and bool(ctx.attr("noop_with_empty_axes")) and not ctx.attr("axes")


def reduced_axes(ctx: Context) -> list[int] | None:
    """The reduced axes, counted from the front; None where they or the rank are known only at run time."""
    if reduces_nothing(ctx):
        return []
    if ctx.x.rank is None:
        return None
    axes = known_ints(ctx.node.x[1]) if ctx.node.has(1) else list(ctx.attr("axes") or range(ctx.x.rank))
    return None if axes is None else [a % ctx.x.rank for a in axes or range(ctx.x.rank)]


def count(ctx: Context) -> float | Tensor:
    """How many elements each output element sums: a number, or a scalar computed at run time."""
    b, axes = ctx.b, reduced_axes(ctx)
    sizes = None if axes is None else [(ctx.x.shape or ())[a] for a in axes]
    if sizes is not None and all(isinstance(s, int) for s in sizes):
        return float(prod(int(s or 0) for s in sizes))
    if axes is None:
        return b.CastLike(b.Div(b.Size(ctx.x), b.Size(ctx.y)), ctx.c)
    dims = b.Gather(b.Shape(ctx.x), axes)
    return b.CastLike(b.ReduceProd(dims, keepdims=0), ctx.c)


@vjp("ReduceSum", linear=UNWEIGHTED)
def reduce_sum(ctx: Context) -> Messages:
    """c to each element."""
    return ctx.only(0, ctx.b.expand_like(kept(ctx, ctx.c), ctx.x))


@vjp("ReduceMean", linear=UNWEIGHTED)
def reduce_mean(ctx: Context) -> Messages:
    """c/n to each element."""
    spread = ctx.b.expand_like(kept(ctx, ctx.c / count(ctx)), ctx.x)
    return ctx.only(0, in_blocks(ctx.b, spread) if reduced_axes(ctx) == [2, 3] else spread)


@vjp("ReduceMax", degree=1)
@vjp("ReduceMin", degree=1)
def reduce_extremum(ctx: Context) -> Messages:
    """c to the winners, in equal shares, as torch's amax has it."""
    b = ctx.b
    wins = b.CastLike(b.Equal(ctx.x, kept(ctx, ctx.y)), ctx.c)
    attrs = {"keepdims": 1, "noop_with_empty_axes": int(ctx.attr("noop_with_empty_axes"))}
    ties = b.ReduceSum(wins, ctx.node.x[1] if ctx.node.has(1) else None, **attrs)
    return ctx.only(0, wins * (kept(ctx, ctx.c) / ties))


@vjp("ReduceL1", degree=1)
def reduce_l1(ctx: Context) -> Messages:
    """c sign(x)."""
    return ctx.only(0, kept(ctx, ctx.c) * ctx.b.Sign(ctx.x))


@vjp("ReduceL2", degree=1)
def reduce_l2(ctx: Context) -> Messages:
    """c x/y, 0 where y is 0."""
    return ctx.only(0, ctx.x * kept(ctx, over(ctx, ctx.c, ctx.y)))


def over(ctx: Context, a: Tensor, y: Tensor) -> Tensor:
    """a/y, 0 where y is 0."""
    is_zero = ctx.b.Equal(y, 0.0)
    return ctx.where(is_zero, 0.0, a / ctx.where(is_zero, 1.0, y))


@vjp("ReduceSumSquare", degree=2)
def reduce_sum_square(ctx: Context) -> Messages:
    """2 c x."""
    return ctx.only(0, ctx.x * kept(ctx, ctx.c * 2.0))


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(ctx: Context) -> Messages:
    """c exp(x - y)."""
    return ctx.only(0, kept(ctx, ctx.c) * ctx.b.Exp(ctx.x - kept(ctx, ctx.y)))


@vjp("ReduceLogSum")
def reduce_log_sum(ctx: Context) -> Messages:
    """c exp(-y)."""
    return ctx.only(0, ctx.b.expand_like(kept(ctx, ctx.c * ctx.b.Exp(-ctx.y)), ctx.x))


@vjp("ReduceProd")
def reduce_prod(ctx: Context) -> Messages:
    """c times the product of the others: y/x where no factor is 0; one zero gets the product of the rest."""
    axes = ctx.node.x[1] if ctx.node.has(1) else None
    others = others_product(ctx.b, ctx.x, axes, int(ctx.attr("noop_with_empty_axes")))
    return ctx.only(0, kept(ctx, ctx.c) * others)


def others_product(b: Builder, x: Tensor, axes: Tensor | None, noop: int = 0) -> Tensor:
    """For each element the product of all others along the axes, right where some are 0."""
    is_zero = b.Equal(x, 0.0)
    factors = b.where(is_zero, 1.0, x, like=x)
    product = b.ReduceProd(factors, axes, keepdims=1, noop_with_empty_axes=noop)
    zeros = b.CastLike(is_zero, x)
    others = b.ReduceSum(zeros, axes, keepdims=1, noop_with_empty_axes=noop) - zeros
    return b.where(b.Equal(others, 0.0), product / factors, 0.0, like=x)


@vjp("Softmax")
def softmax(ctx: Context) -> Messages:
    """y (c - sum(c y)); where a Where replaces rows that are masked as a whole, nothing for those, which are NaN."""
    b, y, axis = ctx.b, ctx.y, [int(ctx.attr("axis"))]
    if is_replaced(ctx):
        y = ctx.where(b.IsNaN(y), 0.0, y)
    return [y * (ctx.c - b.sum_axes(ctx.c * y, axis, keepdims=True))]


def is_replaced(ctx: Context) -> bool:
    """True if a Where chooses between the output and something else."""
    names = {ctx.y.name}
    for view in ctx.facts.program.views:
        if any(x is not None and x.name in names for x in view.x[:3]):
            if view.op == "Where":
                return True
            if view.op == "Cast":
                names.add(view.out(0).name)
    return False


@vjp("LogSoftmax")
def log_softmax(ctx: Context) -> Messages:
    """c - exp(y) sum(c)."""
    axis = [int(ctx.attr("axis"))]
    return [ctx.c - ctx.b.Exp(ctx.y) * ctx.b.sum_axes(ctx.c, axis, keepdims=True)]


@vjp("GlobalAveragePool", linear=UNWEIGHTED)
def global_average(ctx: Context) -> Messages:
    """c/n to each element."""
    return [in_blocks(ctx.b, ctx.b.expand_like(ctx.c / spatial_count(ctx), ctx.x))]


def spatial_count(ctx: Context) -> float | Tensor:
    """Number of elements of the spatial axes."""
    sizes = (ctx.x.shape or (None, None, None))[2:]
    if all(isinstance(s, int) for s in sizes):
        return float(prod(int(s or 0) for s in sizes))
    return ctx.b.CastLike(ctx.b.ReduceProd(ctx.b.shape_of(ctx.x, 2), keepdims=0), ctx.c)


@vjp("GlobalMaxPool", degree=1)
def global_max(ctx: Context) -> Messages:
    """c to the first winner of each plane, as in torch."""
    b = ctx.b
    flat = flat_from(b, ctx.x, 2)
    first = b.ArgMax(flat, axis=2, keepdims=1)
    wins = b.Equal(first, positions(b, flat, 2))
    return [b.reshape_like(ctx.where(wins, b.Reshape(ctx.c, [0, 0, 1]), 0.0), ctx.x)]


@vjp("GlobalLpPool", degree=1)
def global_lp(ctx: Context) -> Messages:
    """c (|x|/y)^(p-1) sign(x), 0 where y is 0."""
    return [lp_derivative(ctx, ctx.x, lp_share(ctx))]


def lp_share(ctx: Context) -> Tensor:
    """c y^(1-p), 0 where y is 0."""
    p = int(ctx.attr("p"))
    if p == 1:
        return ctx.c
    is_zero = ctx.b.Equal(ctx.y, 0.0)
    return ctx.where(is_zero, 0.0, ctx.c / raised(ctx, ctx.where(is_zero, 1.0, ctx.y), p - 1))


def lp_derivative(ctx: Context, x: Tensor, share: Tensor) -> Tensor:
    """share |x|^(p-1) sign(x)."""
    p = int(ctx.attr("p"))
    if p % 2:
        return share * ctx.b.Sign(x) if p == 1 else share * (ctx.b.Sign(x) * raised(ctx, x, p - 1))
    return share * raised(ctx, x, p - 1)


def raised(ctx: Context, x: Tensor, exponent: int) -> Tensor:
    """x to a positive whole power."""
    return x if exponent == 1 else x * x if exponent == 2 else ctx.b.Pow(x, float(exponent))
