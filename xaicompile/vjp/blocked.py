"""What lets ONNX Runtime keep a backward pass of images in its blocked layout, on the CPU.

Between convolutions, pools, sums, products and some activations its tensors stay in blocks of channels (NCHWc). Any
other op in between, such as a comparison or a Cast, costs a reordering before it and one behind. Other runtimes run
what is written here as any other node.
"""

from __future__ import annotations

import math

import numpy as np

from xaicompile.ir import Builder, Tensor

STEEPEST = 2.0**127
BLOCK = 8  # channels in a block, or a divisor of their number


def above(b: Builder, y: Tensor, bound: Tensor | float = 0.0) -> Tensor:
    """1 where y > bound, 0 elsewhere, of y's shape and dtype.

    In float32 it is min(max(alpha (y - bound), 0), 1), a HardSigmoid so steep that it is a step. With alpha a power of
    two the products are exact, and a difference of two numbers never rounds to another sign: what is above the bound
    by the least that float32 can tell gives 1. (Above 0 that least is 2^-127, below the smallest normal number.)
    """
    return step(b, y, bound, 1.0)


def below(b: Builder, y: Tensor, bound: Tensor | float) -> Tensor:
    """1 where y < bound, 0 elsewhere, of y's shape and dtype."""
    return step(b, y, bound, -1.0)


def step(b: Builder, y: Tensor, bound: Tensor | float, sign: float) -> Tensor:
    """1 where y lies beyond the bound in the direction of `sign`, 0 elsewhere."""
    number = bound if not isinstance(bound, Tensor) else math.nan if bound.value is None else float(bound.value)
    exponent = math.frexp(number)[1]
    if y.dtype != np.float32 or not math.isfinite(number) or (number and exponent < -90):
        return b.CastLike(y > bound if sign > 0 else y < bound, y)
    alpha = sign * (min(STEEPEST, 2.0 ** (120 - exponent)) if number else STEEPEST)
    return b.HardSigmoid(y, alpha=alpha, beta=-alpha * number)


def is_step(alpha: float) -> bool:
    """True for the slope of a HardSigmoid that is a step: nothing flows back through it."""
    return abs(alpha) >= 2.0**90


def is_blocked(t: Tensor) -> bool:
    """True for images that ONNX Runtime keeps in its blocked layout."""
    channels = (t.shape or ())[1:2]
    return t.dtype == np.float32 and t.rank == 4 and isinstance(channels[0], int) and channels[0] % BLOCK == 0


def in_blocks(b: Builder, t: Tensor) -> Tensor:
    """t as it is, through a pool of single pixels, which takes an image from any op into the blocked layout."""
    return b.AveragePool(t, kernel_shape=[1, 1]) if is_blocked(t) else t
