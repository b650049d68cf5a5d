"""Normalisations over one sample."""

from __future__ import annotations

from tests.cases import Case, case, real, weight

NEW = {"runtime": False, "opset": 23}

CASES: list[Case] = [
    case("InstanceNormalization", "2d", real(2, 3, 4, 4), weight(3), weight(3), order2=True, half=False),
    case("InstanceNormalization", "1d, parameters as data", real(2, 3, 5), real(3), real(3), epsilon=0.1, half=False),
    case("GroupNormalization", "by channel", real(2, 6, 3, 3), weight(6), weight(6), num_groups=3, opset=21,
         half=False, order2=True),
    case("GroupNormalization", "parameters as data", real(2, 4, 2, 2), real(4), real(4), num_groups=2, opset=21,
         epsilon=0.01, half=False),
    case("RMSNormalization", "last axis", real(2, 3, 5), weight(5), order2=True, **NEW),
    case("RMSNormalization", "two axes, scale as data", real(2, 3, 5), real(3, 5), axis=1, epsilon=0.1, **NEW),
    case("MeanVarianceNormalization", "three axes", real(2, 3, 4, 4), axes=[0, 2, 3], half=False),
    case("MeanVarianceNormalization", "two axes", real(2, 3, 4), axes=[0, 2], order2=True, half=False),
    case("LpNormalization", "p 2", real(2, 3, 4), half=False, order2=True),
    case("LpNormalization", "p 1, axis 1", real(2, 3, 4, avoid=[0]), axis=1, p=1, half=False),
]  # fmt: skip
