"""Every row of the operator table has a case; what the rows emit is looked at in ``test_emitted_ops.py``."""

from __future__ import annotations

from tests.cases.table import CASES
from xaicompile import registry

# Operators with a row but without one in the table of cases, and why.
ELSEWHERE = {
    "Cast": "test_vjp_special.py",
    "CastLike": "test_vjp_special.py",
}
NOTHING_TO_DIFFERENTIATE = {
    *("And", "Or", "Xor", "Not"),  # bool
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),  # integers
    *("Constant", "ConstantOfShape", "EyeLike", "Range", "Unique", "Hardmax"),  # carry nothing
    *("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"),  # random
}


def test_every_row_has_a_case() -> None:
    covered = {c.op for c in CASES} | set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE
    assert sorted({row.op for row in registry.operators() if not row.domain} - covered) == []


def test_the_exceptions_are_needed() -> None:
    assert not (set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE) & {c.op for c in CASES}
    carrying = [op for op in NOTHING_TO_DIFFERENTIATE if (row := registry.find(op)) is None or not row.zero]
    assert carrying == []
