"""Operators as models below opset 18 write them: attributes that are inputs today, and meanings that have changed."""

from __future__ import annotations

from tests.cases import case, const, positive, real, spread, weight

CASES = [
    case("Softmax", "opset 11 flattens", real(2, 3, 4), opset=11, axis=1),
    case("Softmax", "opset 11 default axis", real(2, 3), opset=11),
    case("LogSoftmax", "opset 11 flattens", real(2, 3, 4), opset=11, axis=1),
    case("Clip", "opset 10", real(3, 4, avoid=[0, 1]), opset=10, min=0.0, max=1.0),
    case("Slice", "opset 9", real(4, 5), opset=9, starts=[1, -3], ends=[3, 2**31 - 1], axes=[0, 1]),
    case("Pad", "opset 10", real(2, 3), opset=10, pads=[1, 0, 0, 2], value=0.5),
    case("Pad", "opset 10 reflect", real(2, 4), opset=10, pads=[0, 2, 0, 1], mode="reflect"),
    case("Split", "opset 11", real(5, 2), opset=11, split=[2, 3], outputs=2, used=(0, 1)),
    case("ReduceMax", "opset 12", spread(2, 3, 4), opset=12, axes=[-1], keepdims=0),
    case("ReduceL2", "opset 11", positive(2, 3), opset=11, axes=[1]),
    case("Dropout", "opset 10", real(2, 3), opset=10, ratio=0.5),
    case("MaxPool", "opset 8", spread(1, 2, 4, 4), opset=8, kernel_shape=[2, 2], strides=[2, 2]),
    case("AveragePool", "opset 10", real(1, 2, 5, 5), opset=10, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("Gemm", "opset 9", real(2, 3), weight(3, 4), weight(4), opset=9),
    case(
        "BatchNormalization",
        "opset 9",
        real(2, 3, 4, 4),
        weight(3),
        weight(3),
        const(real(3)),
        const(positive(3)),
        opset=9,
    ),
    case("Squeeze", "opset 11 all", real(1, 3, 1), opset=11, dynamic=False),
]
