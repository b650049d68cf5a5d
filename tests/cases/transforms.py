"""Fourier transforms and determinants."""

from __future__ import annotations

import numpy as np

from tests.cases import Arg, Case, case, const, given, real, weight


def number(value: int) -> Arg:
    return const(given(value, np.int64))


CASES: list[Case] = [
    case("DFT", "real", real(2, 5, 1), half=False),
    case("DFT", "complex, axis 1", real(2, 4, 3, 2), None, number(1), half=False, order2=True),
    case("DFT", "one sided", real(2, 6, 1), onesided=1, half=False),
    case("DFT", "shorter", real(1, 6, 2), number(4), half=False),
    case("DFT", "longer, one sided", real(1, 5, 1), number(8), onesided=1, half=False),
    case("DFT", "inverse", real(2, 4, 2), inverse=1, half=False),
    case("DFT", "inverse, longer", real(1, 4, 2), number(6), inverse=1, half=False),
    case("DFT", "inverse to real", real(1, 4, 2), number(6), inverse=1, onesided=1, half=False, runtime=False),
    case("DFT", "inverse to real, odd", real(1, 4, 2), number(7), inverse=1, onesided=1, half=False, runtime=False),
    case("DFT", "opset 17", real(2, 3, 4, 1), axis=2, opset=17, half=False),
    case("STFT", "window", real(2, 12, 1), number(3), weight(4), onesided=1, half=False),
    case("STFT", "one sided by default", real(1, 12, 1), number(4), None, number(6), half=False),
    case("STFT", "window as data", real(1, 10, 1), number(2), real(5), number(5), onesided=1, half=False),
    case("STFT", "no window, complex", real(1, 9, 2), number(3), None, number(4), onesided=0, half=False),
    case("Det", "one", real(3, 1, 1), half=False),
    case("Det", "two", real(2, 2), half=False, order2=True),
    case("Det", "batch of four", real(2, 3, 4, 4), half=False),
    case("Det", "singular", given([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]]), half=False),
]
