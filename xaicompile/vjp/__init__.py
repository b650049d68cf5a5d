"""Exact transposes, one per op, by family. Importing this package fills the registry."""

from xaicompile.vjp import (
    control,
    einsum,
    elementwise,
    index,
    linear,
    norm,
    norms,
    pool,
    reduce,
    regions,
    resize,
    sample,
    shape,
    trig,
)

__all__ = [
    "control",
    "einsum",
    "elementwise",
    "index",
    "linear",
    "norm",
    "norms",
    "pool",
    "reduce",
    "regions",
    "resize",
    "sample",
    "shape",
    "trig",
]
