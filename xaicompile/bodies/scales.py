"""What an integer tensor stands for: (q - zero) * scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import helper

from xaicompile.ir import Builder, Tensor
from xaicompile.ir.build import merged

SMALL_TYPES = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}


def limits(q: Tensor) -> tuple[float, float]:
    """The range of an integer type; no limits for others, such as floats of 8 bits."""
    if q.dtype is not None and q.dtype.kind in "iu":
        return float(np.iinfo(q.dtype).min), float(np.iinfo(q.dtype).max)
    return SMALL_TYPES.get(str(q.dtype), (-math.inf, math.inf))


def key(t: Tensor | None) -> object:
    """Something that equal constants have in common; a zero point that is left out is zero."""
    if t is None or (t.value is not None and not np.any(t.value)):
        return 0
    return t.name if t.value is None else tuple(np.asarray(t.value, np.float64).reshape(-1).tolist())


@dataclass(frozen=True)
class Scale:
    """Scale and zero point, per tensor, along an axis, or in blocks along it.

    What the methods emit is not recorded: no view makes it.
    """

    scale: Tensor
    zero: Tensor | None = None
    axis: int = 1
    block: int = 0

    @property
    def per_tensor(self) -> bool:
        """True if one number holds for all elements."""
        return self.scale.rank == 0 or self.scale.static == (1,)

    @property
    def numbers(self) -> tuple[float, float] | None:
        """Scale and zero point where they are single numbers that are known."""
        s, z = self.scale.value, np.zeros(1) if self.zero is None else self.zero.value
        return (float(s.flat[0]), float(z.flat[0])) if self.per_tensor and s is not None and z is not None else None

    def same(self, other: Scale) -> bool:
        """True if both are known to be equal."""
        axes = self.per_tensor or (self.axis == other.axis and self.block == other.block)
        return axes and key(self.scale) == key(other.scale) and key(self.zero) == key(other.zero)

    def step(self, b: Builder, q: Tensor) -> Tensor:
        """The scale, shaped to broadcast over q."""
        return self._spread(b, self.scale, q)

    def offset(self, b: Builder, q: Tensor, like: Tensor) -> Tensor:
        """The zero point as a float, shaped to broadcast over q."""
        if self.zero is None:
            return b.const(np.zeros((), like.dtype))
        with b.recorded():
            return b.CastLike(self._spread(b, self.zero, q), like)

    def _spread(self, b: Builder, t: Tensor, q: Tensor) -> Tensor:
        if self.per_tensor or q.rank is None or t.rank is None:
            return t
        axis = self.axis % q.rank
        with b.recorded():
            if t.rank == 1:
                behind = list(range(1, q.rank - axis))
                return b.Unsqueeze(t, behind) if behind else t
            if not self.block:
                return t
            zero, one = (b.const(np.asarray(i, np.int64)) for i in (0, 1))
            places = b.Range(zero, b.Squeeze(b.dim(q, axis), [0]), one)
            return b.op("Gather", t, b.Div(places, self.block), axis=axis, shape=q.shape)

    def dequantised(self, b: Builder, q: Tensor) -> Tensor:
        """(q - zero) * scale, in ops that a runtime folds where q is a constant."""
        with b.recorded():
            x = b.Cast(q, to=helper.np_dtype_to_tensor_dtype(self.scale.dtype))
            if key(self.zero) != 0:
                x = x - self.offset(b, q, x)
            if key(self.scale) != (1.0,):
                x = x * self.step(b, q)
        x.shape = merged(x.shape, q.shape)
        return x

    def rounded(self, b: Builder, x: Tensor, q: Tensor) -> Tensor:
        """x rounded as QuantizeLinear does it, in float."""
        low, high = limits(q)
        with b.recorded():
            step = self.step(b, q)
            if low == -math.inf:
                kind = helper.np_dtype_to_tensor_dtype(q.dtype)
                return b.CastLike(b.Cast(x / step, to=kind), x) * step
            whole, known = b.Round(x / step), self.numbers
            if known is not None:
                return b.Clip(whole, low - known[1], high - known[1]) * step
            zero = self.offset(b, q, x)
            return b.Min(b.Max(whole, low - zero), high - zero) * step

    def clipped(self, b: Builder, x: Tensor, q: Tensor, relu: bool) -> Tensor:
        """x inside the range of q, half a step added at either end. This is recorded.

        A range that begins with zero clips as a ReLU does; with `relu` it is one.
        """
        low, high = limits(q)
        known = self.numbers
        if low == -math.inf:
            return x
        if known is not None:
            step, zero = known
            top = (high - zero + 0.5) * step
            if zero != low:
                return b.Clip(x, (low - zero - 0.5) * step, top)
            return b.Clip(b.Relu(x), 0.0, top) if relu else b.Clip(x, 0.0, top)
        with b.recorded():
            size, offset = self.step(b, q), self.offset(b, q, x)
            ends = [(low - 0.5 - offset) * size, (high + 0.5 - offset) * size]
        return b.Min(b.Max(x, ends[0]), ends[1])
