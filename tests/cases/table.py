"""The whole table."""

from __future__ import annotations

from tests.cases import Case, bodies, elementwise, index, linear, old, pool, reduce, shape

CASES: list[Case] = [
    *elementwise.CASES,
    *linear.CASES,
    *pool.CASES,
    *reduce.CASES,
    *shape.CASES,
    *index.CASES,
    *old.CASES,
    *bodies.CASES,
]
