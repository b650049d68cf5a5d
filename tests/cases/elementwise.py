"""Elementwise operators, unary and with broadcasting."""

from __future__ import annotations

import numpy as np

from tests.cases import Arg, Case, case, const, given, mask, positive, real, spread

SHAPE = (2, 3, 4)

SMOOTH = [
    case("Tanh", "plain", real(*SHAPE), order2=True),
    case("Sigmoid", "plain", real(*SHAPE), order2=True),
    case("Sigmoid", "saturated", real(*SHAPE, low=-30, high=30), order2=True),
    case("Softplus", "plain", real(*SHAPE), order2=True),
    case("Softplus", "saturated", real(*SHAPE, low=-30, high=30), order2=True),
    case("Softsign", "plain", real(*SHAPE, avoid=[0]), order2=True),
    case("Gelu", "erf", real(*SHAPE, low=-4, high=4), order2=True),
    case("Gelu", "tanh", real(*SHAPE, low=-4, high=4), approximate="tanh", order2=True),
    case("Mish", "plain", real(*SHAPE, low=-4, high=4), order2=True),
    case("Swish", "alpha", real(*SHAPE, low=-4, high=4), alpha=0.5, opset=24, order2=True, runtime=False),
    case("Swish", "default", real(*SHAPE, low=-4, high=4), opset=24, runtime=False),
    case("Erf", "plain", real(*SHAPE), order2=True),
    case("Exp", "plain", real(*SHAPE), order2=True),
    case("Log", "plain", positive(*SHAPE), order2=True),
    case("Sqrt", "plain", positive(*SHAPE), order2=True),
    case("Sin", "plain", real(*SHAPE), order2=True),
    case("Cos", "plain", real(*SHAPE), order2=True),
    case("Neg", "plain", real(*SHAPE), order2=True),
    case("Reciprocal", "both signs", real(*SHAPE, avoid=[0], gap=0.4), order2=True),
    case("Identity", "plain", real(*SHAPE), order2=True),
    case("Elu", "alpha", real(*SHAPE, avoid=[0]), alpha=0.7, order2=True),
    case("Elu", "default", real(*SHAPE, avoid=[0])),
    case("Selu", "default", real(*SHAPE, avoid=[0]), order2=True),
    case("Selu", "alpha and gamma", real(*SHAPE, avoid=[0]), alpha=1.25, gamma=0.5),
    case("Celu", "alpha", real(*SHAPE, avoid=[0]), alpha=0.5, order2=True, half=False),
    case("Celu", "default", real(*SHAPE, avoid=[0]), half=False),
]

PIECEWISE = [
    case("Relu", "plain", real(*SHAPE, avoid=[0])),
    case("LeakyRelu", "default", real(*SHAPE, avoid=[0])),
    case("LeakyRelu", "negative slope", real(*SHAPE, avoid=[0]), alpha=-0.25),
    case("ThresholdedRelu", "default", real(*SHAPE, avoid=[1])),
    case("ThresholdedRelu", "alpha", real(*SHAPE, avoid=[0.5]), alpha=0.5),
    case("HardSigmoid", "default", real(*SHAPE, low=-4, high=4, avoid=[-2.5, 2.5])),
    case("HardSigmoid", "alpha and beta", real(*SHAPE, low=-3, high=3, avoid=[-1, 1]), alpha=0.5, beta=0.5),
    case("HardSwish", "plain", real(*SHAPE, low=-5, high=5, avoid=[-3, 3])),
    case("Abs", "plain", real(*SHAPE, avoid=[0])),
    case("Clip", "both", real(*SHAPE, avoid=[-1, 1]), const(given(-1.0)), const(given(1.0))),
    case("Clip", "relu6", real(*SHAPE, low=-3, high=9, avoid=[0, 6]), const(given(0.0)), const(given(6.0))),
    case("Clip", "low only", real(*SHAPE, avoid=[-1]), const(given(-1.0))),
    case("Clip", "high only", real(*SHAPE, avoid=[1]), None, const(given(1.0))),
    case("Clip", "neither", real(*SHAPE)),
    case("PRelu", "one slope", real(*SHAPE, avoid=[0]), const(given([0.25]))),
    case("PRelu", "slope per channel", real(2, 3, 4, 4, avoid=[0]), real(3, 1, 1)),
    case("PRelu", "slope as data", real(*SHAPE, avoid=[0]), real(*SHAPE)),
]

ZERO = (
    [
        case(op, "carries nothing", real(*SHAPE, avoid=[-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]), carries=False)
        for op in ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf", "Shape", "Size", "NonZero")
    ]
    + [
        case("ArgMax", "carries nothing", spread(*SHAPE), axis=1, carries=False),
        case("ArgMin", "carries nothing", spread(*SHAPE), axis=-1, keepdims=0, carries=False),
        case("Shape", "a part", real(*SHAPE), start=1, end=-1, carries=False),
    ]
    + [
        case(op, "carries nothing", spread(3, 4), spread(4, low=-1.9, high=2.1), carries=False)
        for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
    ]
)

_BROADCAST: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("same shape", (2, 3, 4), (2, 3, 4)),
    ("scalar right", (2, 3, 4), ()),
    ("scalar left", (), (2, 3)),
    ("lower rank right", (2, 3, 4), (4,)),
    ("lower rank left", (3, 1), (2, 3, 4)),
    ("both ways", (2, 1, 4), (3, 1)),
    ("ones", (1, 3, 1), (2, 1, 4)),
    ("one element", (1,), (1, 1, 1)),
]


def _pairs(op: str, left: type[Arg] | object = real, right: object = real, order2: bool = False) -> list[Case]:
    make_left, make_right = left, right
    return [
        case(op, note, make_left(*a), make_right(*b), order2=order2)  # type: ignore[operator]
        for note, a, b in _BROADCAST
    ]


def _low(*shape: int) -> Arg:
    return spread(*shape, low=-2.0, high=2.0) if shape else given(0.03)


def _high(*shape: int) -> Arg:
    return spread(*shape, low=-1.94, high=2.11) if shape else given(-0.05)


BROADCAST = [
    *_pairs("Add", order2=True),
    *_pairs("Sub", order2=True),
    *_pairs("Mul", order2=True),
    *_pairs("Div", real, positive, order2=True),
    *_pairs("Pow", positive, real, order2=True),
    *_pairs("Max", _low, _high),
    *_pairs("Min", _low, _high),
    *_pairs("Sum"),
    *_pairs("Mean"),
    *[case("Where", note, mask(*a), real(*a), real(*b), order2=True) for note, a, b in _BROADCAST],
    *[case("Where", f"{note}, condition as the second", mask(*b), real(*a), real(*b)) for note, a, b in _BROADCAST],
    case("Where", "condition is the smaller", mask(4), real(3, 4), real(2, 1, 1), order2=True),
    case("Where", "condition is the larger", mask(2, 3, 4), real(), real(1)),
    case("Sum", "one input", real(2, 3)),
    case("Sum", "three inputs", real(2, 3), real(3), real(4, 1, 1), order2=True),
    case("Mean", "one input", real(2, 3)),
    case("Mean", "three inputs", real(3), real(2, 3), real(4, 1, 1), order2=True),
    case("Max", "one input", real(2, 3)),
    case("Max", "three inputs", spread(2, 3), spread(3, low=-1.9, high=1.7), const(given(0.13))),
    case("Min", "three inputs", spread(2, 3), spread(3, low=-1.9, high=1.7), const(given(0.13))),
    case("Add", "to itself by constant", real(2, 3), const(real(3)), order2=True),
    case("Mul", "by a larger constant", real(3), const(real(2, 3)), order2=True),
    case("Sub", "from a constant", const(real(3)), real(2, 3)),
    case("Div", "of a constant", const(real(3)), positive(2, 3), order2=True),
    case("Mod", "remainder", given([[1.7, -2.2, 0.4]]), given([0.5, 0.8, 1.5]), fmod=1),
    case("Mod", "broadcast", given([[1.7], [-2.2]]), const(given(0.6)), fmod=1),
    case("Pow", "square, any sign", real(*SHAPE), const(given(2.0)), order2=True),
    case("Pow", "square at zero", given([[-1.0, 0.0, 1.5]]), const(given(2.0)), order2=True),
    case("Pow", "first power at zero", given([[-1.0, 0.0, 1.5]]), const(given(1.0))),
    case("Pow", "cube, any sign", real(*SHAPE), const(given([3.0])), order2=True),
    case("Pow", "root", positive(*SHAPE), const(given(0.5)), order2=True),
    case("Pow", "inverse", real(*SHAPE, avoid=[0], gap=0.5), const(given(-1.0)), order2=True),
    case("Pow", "integer exponent", real(*SHAPE), const(given(3, np.int64))),
    case("Pow", "exponents per channel", positive(2, 3), const(given([1.0, 2.0, -1.5])), order2=True),
    case("Pow", "constant base", const(positive(3)), real(2, 3), order2=True),
]

CASES = [*SMOOTH, *PIECEWISE, *ZERO, *BROADCAST]
