"""Exact transposes, one per op, by family. Importing this package fills the registry."""

from xaicompile.vjp import (
    control,
    einsum,
    elementwise,
    index,
    linear,
    moves,
    norm,
    norms,
    pool,
    reduce,
    regions,
    resize,
    sample,
    shape,
    transforms,
    trig,
)

__all__ = [
    "control",
    "einsum",
    "elementwise",
    "index",
    "linear",
    "moves",
    "norm",
    "norms",
    "pool",
    "reduce",
    "regions",
    "resize",
    "sample",
    "shape",
    "transforms",
    "trig",
]
