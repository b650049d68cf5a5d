"""Less common ops that move, repeat or multiply values; axes that are fed at run time."""

from __future__ import annotations

import numpy as np

from tests.cases import Arg, Case, case, const, given, ints, real, weight


def live(values: object, dtype: object = np.int64) -> Arg:
    """Numbers that are fed at run time."""
    return given(values, dtype)


def places(*values: object) -> Arg:
    return const(given(values, np.int64))


NEW = {"half": False, "runtime": False, "dynamic": False}

CASES: list[Case] = [
    case("ReverseSequence", "time first", real(4, 2, 3), live([2, 4]), time_axis=0, batch_axis=1, half=False),
    case("ReverseSequence", "batch first", real(2, 4), live([3, 1]), time_axis=1, batch_axis=0, half=False),
    case("Compress", "axis 1", real(2, 4, 2), live([True, False, True], np.bool_), axis=1, half=False),
    case("Compress", "flat", real(2, 3), live([False, True, True, False, True], np.bool_), half=False),
    case("MaxUnpool", "plain", real(1, 2, 2, 2), places([[[0, 2], [10, 15]], [[16, 18], [25, 31]]]),
         kernel_shape=[2, 2], strides=[2, 2], half=False),
    case("MaxUnpool", "to a size", real(1, 1, 2, 2), places([[[5, 7], [13, 15]]]), ints(1, 1, 5, 5),
         kernel_shape=[2, 2], strides=[2, 2], half=False),
    case("Col2Im", "plain", real(2, 8, 4), ints(3, 3), ints(2, 2), half=False),
    case("Col2Im", "everything", real(1, 12, 6), ints(4, 5), ints(2, 3), dilations=[2, 1], strides=[1, 2],
         pads=[0, 1, 0, 1], half=False),
    case("Col2Im", "1d", real(1, 4, 3), ints(6), ints(2), strides=[2], half=False),
    case("TensorScatter", "linear", real(2, 4, 3), real(2, 2, 3), live([1, 2]), axis=1, opset=24, **NEW),
    case("TensorScatter", "circular", real(2, 3, 4, 2), real(2, 3, 2, 2), live([3, 0]), mode="circular", opset=24,
         **NEW),
    case("CumProd", "plain", real(2, 4), const(given(1, np.int64)), opset=26, order2=True, **NEW),
    case("CumProd", "exclusive, axis 0", real(3, 2, 2), const(given(0, np.int64)), exclusive=1, opset=26, **NEW),
    case("CumProd", "with a zero", given([[0.5, 0.0, 2.0, 3.0]]), const(given(-1, np.int64)), reverse=1, opset=26,
         **NEW),
    case("OptionalGetElement", "of a tensor", real(2, 3), half=False, runtime=False),
    case("ScatterElements", "multiply", real(3, 4), live([[0, 2, 1, 0], [0, 1, 1, 2]]), real(2, 4), reduction="mul",
         half=False),
    case("ScatterND", "multiply", real(4, 3), live([[2], [2], [0]]), real(3, 3), reduction="mul", half=False),
    case("Slice", "axes at run time", real(4, 5, 3), live([1, 2]), live([4, 0]), live([0, -2]), live([2, -1])),
    case("Slice", "axes at run time, no steps", real(4, 5), live([1]), live([3]), live([1])),
    case("Pad", "axes at run time", real(3, 4), live([1, 2]), None, live([-1]), mode="reflect"),
    case("Conv", "kernel as data", real(2, 4, 5, 4), real(4, 2, 2, 3), real(4), group=2, strides=[2, 1],
         pads=[1, 0, 0, 1], dilations=[1, 2], half=False, dynamic=False, order2=True),
    case("Conv", "kernel as data, same", real(1, 2, 5), real(2, 2, 3), auto_pad="SAME_LOWER", strides=[2], half=False,
         dynamic=False),
    case("ConvTranspose", "kernel as data", real(2, 4, 3, 3), real(4, 2, 2, 3), real(4), group=2, strides=[2, 1],
         pads=[1, 0, 0, 1], output_padding=[1, 0], half=False, dynamic=False),
    case("Range", "numbers as data", given(0.5), const(given(3.0)), given(0.7), half=False, runtime=False),
    case("Unique", "flat", real(2, 3), outputs=4, half=False, dynamic=False),
    case("Unique", "axis 1", real(2, 4), outputs=4, axis=1, half=False, dynamic=False),
    case("SpaceToDepth", "CRD", real(1, 2, 4, 4), blocksize=2, mode="CRD", opset=28, **NEW),
    case("Einsum", "diagonal", real(2, 3, 3), equation="bii->bi", order2=True),
    case("Einsum", "trace", real(3, 3), equation="ii->", half=False),
    case("Einsum", "diagonals behind dots", real(2, 3, 3), real(3, 2), equation="...ii,ij->...j"),
    case("Einsum", "diagonal and an axis of its own", real(2, 3, 2), weight(2), equation="iji,i->i"),
    case("BatchNormalization", "parameters as data", real(2, 3, 2, 2), real(3), real(3), real(3),
         given([0.5, 1.2, 2.0]), half=False, epsilon=0.1, order2=True),
    case("BatchNormalization", "in training", real(3, 2, 2), weight(2), weight(2), weight(2), weight(2), outputs=3,
         used=(0, 1, 2), training_mode=1, epsilon=0.1, momentum=0.7, half=False),
]  # fmt: skip
