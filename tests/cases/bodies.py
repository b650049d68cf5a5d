"""Operators without a row of their own: read through the function body of their schema."""

from __future__ import annotations

from tests.cases import Case, case, real, weight

CASES: list[Case] = [
    case("Shrink", "soft", real(2, 3, 4, avoid=[-0.5, 0.5]), lambd=0.5, bias=0.2),
    case("Attention", "with a mask", real(2, 2, 3, 4), real(2, 2, 5, 4), real(2, 2, 5, 4), weight(3, 5), opset=23,
         runtime=False, dynamic=False),
    case("Attention", "query groups", real(2, 12, 8), real(2, 5, 4), real(2, 5, 4), q_num_heads=4, kv_num_heads=2,
         opset=23, runtime=False, dynamic=False, is_causal=1),
]  # fmt: skip
