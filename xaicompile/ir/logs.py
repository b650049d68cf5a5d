"""Sums of exponentials that stay finite."""

from __future__ import annotations

from xaicompile.ir.build import Builder
from xaicompile.ir.graph import Tensor


def log_sum_exp(b: Builder, a: Tensor) -> Tensor:
    """log sum exp over the last axis of [N,M], kept as [N,1], with the largest taken out first."""
    largest = b.op("ReduceMax", a, [1], keepdims=1)
    return b.Log(b.sum_axes(b.Exp(a - largest), [1], keepdims=True)) + largest
