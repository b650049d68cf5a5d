"""The whole table."""

from __future__ import annotations

from tests.cases import (
    Case,
    bodies,
    elementwise,
    index,
    linear,
    moves,
    norms,
    old,
    pool,
    recurrent,
    reduce,
    resize,
    sample,
    shape,
    transforms,
    trig,
)

CASES: list[Case] = [
    *elementwise.CASES,
    *linear.CASES,
    *pool.CASES,
    *reduce.CASES,
    *shape.CASES,
    *index.CASES,
    *old.CASES,
    *bodies.CASES,
    *trig.CASES,
    *norms.CASES,
    *resize.CASES,
    *sample.CASES,
    *recurrent.CASES,
    *moves.CASES,
    *transforms.CASES,
]
