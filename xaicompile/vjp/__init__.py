"""Exact transposes, one per op, by family. Importing this package fills the registry."""

from xaicompile.vjp import elementwise, index, linear, norm, pool, reduce, shape

__all__ = ["elementwise", "index", "linear", "norm", "pool", "reduce", "shape"]
