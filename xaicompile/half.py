"""Half precision: what its range can't hold is worked out in float32, or held at the end of the range.

Squares of values above 256 are infinite there and an epsilon of 1e-12 is nothing, and an explanation multiplies and
divides more than the prediction does. What is infinite becomes NaN at the next zero (spec 1.9).
"""

from __future__ import annotations

import numpy as np
import onnx

from xaicompile.ir import Builder, Tensor

LARGEST = float(np.finfo(np.float16).max)


def is_half(t: Tensor) -> bool:
    """True for float16."""
    return t.dtype == np.float16


def widened(b: Builder, t: Tensor) -> Tensor:
    """Half precision as float32, all else as it is."""
    return b.Cast(t, to=onnx.TensorProto.FLOAT) if is_half(t) else t


def narrowed(b: Builder, t: Tensor, like: Tensor) -> Tensor:
    """In the type of `like`; half precision is held within its range."""
    return t if t.dtype == like.dtype else held(b, b.CastLike(t, like))


def held(b: Builder, t: Tensor) -> Tensor:
    """Half precision with the largest number in place of infinity, all else as it is."""
    return b.Clip(t, -LARGEST, LARGEST) if is_half(t) else t
