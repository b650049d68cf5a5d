"""Bounds of an explained input, carried forward to the linear op that the z-box rule is applied to.

The bounds are the explained input's own. Between it and the first linear op real models have layout changes and
normalisation (Transpose, Sub, Div, ...): the same nodes are applied to the bounds.
"""

from __future__ import annotations

import numpy as np

from xaicompile.carry import affine_in
from xaicompile.errors import RuleError
from xaicompile.ir import Tensor, View
from xaicompile.registry import Context, info

Bound = float | list[float]


def bounds_at(ctx: Context, x: Tensor, low: Bound, high: Bound) -> tuple[Tensor, Tensor]:
    """The bounds of x, broadcast to one sample of x (to all of x behind other nodes).

    Raises:
        RuleError: x is not an elementwise affine function of one explained input, or a bound does not fit the input.
    """
    steps = steps_to(ctx, x)
    if not steps:
        return one_sample(ctx, x, as_array(x, low)), one_sample(ctx, x, as_array(x, high))
    start = next(t for t in steps[0].x if ctx.facts.on_path(t) and t is not None)
    ends = []
    for bound in (low, high):
        t = ctx.b.expand_like(ctx.b.const(as_array(start, bound)), start)
        for step in [s for s in steps if s.op != "QuantizeLinear"]:
            t = ctx.b.op(step.op, *[t if ctx.facts.on_path(i) else i for i in step.x], **step.attrs)
        ends.append(t)
    return ctx.b.Min(*ends), ctx.b.Max(*ends)  # a negative factor on the way swaps them


def steps_to(ctx: Context, x: Tensor) -> list[View]:
    """The views between an explained input and x, in graph order."""
    steps: list[View] = []
    while x.name not in ctx.facts.explained:
        view = ctx.facts.producer(x)
        at = [] if view is None else [i for i, t in enumerate(view.x) if ctx.facts.on_path(t)]
        passes = (
            view is not None and len(at) == 1 and (info(view).layout or view.op == "Clip" or affine_in(view, at[0]))
        )
        if view is None or not passes or len(view.y) != 1:
            raise RuleError(
                f"rule 'z-box' on {ctx.node}: its input is not an affine function of the explained input "
                f"({view} is between); choose another rule for it"
            )
        steps.insert(0, view)
        x = view.inp(at[0])
    return steps


def as_array(x: Tensor, value: Bound) -> np.ndarray:
    """A scalar, or one number per channel, shaped to broadcast over x: channels are axis 1 or the last axis."""
    numbers, rank = np.asarray(value, x.dtype), x.rank or 2
    if numbers.size == 1:
        return numbers.reshape([1] * rank)
    axis = next((i for i in (1, rank - 1) if x.shape and x.shape[i] in (numbers.size, None)), None)
    if numbers.ndim != 1 or axis is None:
        raise RuleError(f"a bound has {numbers.size} values, but neither axis 1 nor the last axis of {x!r} has")
    return numbers.reshape([-1 if i == axis else 1 for i in range(rank)])


def one_sample(ctx: Context, x: Tensor, numbers: np.ndarray) -> Tensor:
    """Numbers expanded to x's shape, with 1 for axis 0 where the op maps axis 0 sample by sample."""
    if not by_sample(ctx, x):
        return ctx.b.expand_like(ctx.b.const(numbers), x)
    dims = None if x.shape is None else (1, *x.shape[1:])
    size = ctx.b.Concat([1], ctx.b.shape_of(x, 1), axis=0)
    if dims is not None and all(isinstance(d, int) for d in dims):
        size = ctx.b.const(np.asarray(dims, np.int64))
    return ctx.b.op("Expand", ctx.b.const(numbers), size, shape=dims)


def by_sample(ctx: Context, x: Tensor) -> bool:
    """True if the op is known not to sum over axis 0 of x."""
    on_the_left, rank = x is ctx.node.x[0], x.rank or 2
    if ctx.node.op == "MatMul":
        return rank > 2 or (rank == 2 and on_the_left)
    if ctx.node.op == "Gemm":
        return on_the_left and not ctx.attr("transA")
    return ctx.node.op in ("Conv", "ConvTranspose")
