"""Trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

from tests.cases import Case, case, real

INSIDE = {"low": -0.9, "high": 0.9}

CASES: list[Case] = [
    *(case(op, "plain", real(2, 3), order2=True, half=False) for op in ("Sinh", "Cosh", "Asinh", "Atan")),
    *(case(op, "inside one", real(2, 3, **INSIDE), order2=True, half=False) for op in ("Asin", "Acos", "Atanh")),
    case("Tan", "off the poles", real(2, 3, low=-1.2, high=1.2), order2=True, half=False),
    case("Acosh", "above one", real(2, 3, low=1.2, high=3.0), order2=True, half=False),
]
