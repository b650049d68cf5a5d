"""Pooling and local normalisation."""

from __future__ import annotations

from typing import Any

from tests.cases import Case, case, real, spread

MAX = [
    case("MaxPool", "non-overlapping", spread(2, 3, 4, 6), kernel_shape=[2, 2], strides=[2, 2]),
    case("MaxPool", "non-overlapping, remainder", spread(1, 2, 5, 7), kernel_shape=[2, 3], strides=[2, 3]),
    case("MaxPool", "overlapping", spread(1, 2, 7, 6), kernel_shape=[3, 3], strides=[2, 2]),
    case("MaxPool", "overlapping, padded", spread(2, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", "stride 1", spread(1, 1, 4, 5), kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
    case("MaxPool", "stride over kernel", spread(1, 2, 7, 8), kernel_shape=[2, 2], strides=[3, 4]),
    case("MaxPool", "ceil_mode", spread(1, 2, 6, 7), kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    case(
        "MaxPool", "ceil_mode, padded", spread(1, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
        pads=[0, 1, 1, 0],
    ),
    case("MaxPool", "dilated", spread(1, 2, 7, 8), kernel_shape=[2, 3], dilations=[3, 2], strides=[2, 1]),
    case("MaxPool", "same upper", spread(1, 2, 5, 6), kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", "same lower", spread(1, 2, 5, 5), kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    case("MaxPool", "1d", spread(2, 3, 8), kernel_shape=[3], strides=[2]),
    case("MaxPool", "1d non-overlapping", spread(2, 3, 8), kernel_shape=[2], strides=[2]),
    case("MaxPool", "3d", spread(1, 2, 4, 3, 4), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    case("MaxPool", "with indices", spread(1, 2, 4, 4), kernel_shape=[2, 2], strides=[2, 2], outputs=2),
    case("MaxPool", "negative, padded", spread(1, 1, 4, 4, low=-5, high=-1), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("MaxPool", "window of one", spread(1, 1, 4, 4), kernel_shape=[1, 1], strides=[2, 2]),
]  # fmt: skip


def _average(op: str) -> list[Case]:
    rows: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("plain", (1, 2, 4, 6), {"kernel_shape": [2, 3], "strides": [2, 3]}),
        ("overlapping", (1, 2, 5, 6), {"kernel_shape": [3, 3], "strides": [2, 1]}),
        ("padded", (2, 2, 5, 5), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("padded strided", (1, 2, 6, 5), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
        ("ceil_mode", (1, 2, 6, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("dilated", (1, 1, 7, 6), {"kernel_shape": [3, 2], "dilations": [2, 3]}),
        ("same upper", (1, 2, 5, 6), {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("same lower", (1, 2, 6, 5), {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "SAME_LOWER"}),
        ("same lower, no padding", (1, 1, 4, 6), {"kernel_shape": [2, 2], "strides": [2, 3], "auto_pad": "SAME_LOWER"}),
        ("valid", (1, 1, 6, 5), {"kernel_shape": [4, 3], "strides": [3, 2], "auto_pad": "VALID"}),
        ("1d", (2, 2, 7), {"kernel_shape": [3], "strides": [2]}),
        ("3d", (1, 1, 3, 4, 3), {"kernel_shape": [2, 2, 2]}),
        ("window of one", (1, 2, 3, 3), {"kernel_shape": [1, 1]}),
    ]
    make = real if op == "AveragePool" else lambda *shape: real(*shape, avoid=[0])
    return [case(op, note, make(*shape), **attrs) for note, shape, attrs in rows]


AVERAGE = [
    *_average("AveragePool"),
    case(
        "AveragePool", "padded, padding counts", real(2, 2, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1],
        count_include_pad=1, order2=True,
    ),
    case(
        "AveragePool", "padded strided, padding counts", real(1, 2, 6, 5), kernel_shape=[3, 2], strides=[2, 2],
        pads=[1, 0, 0, 1], count_include_pad=1,
    ),
    case(
        "AveragePool", "same upper, padding counts", real(1, 2, 5, 6), kernel_shape=[2, 3], strides=[2, 2],
        auto_pad="SAME_UPPER", count_include_pad=1,
    ),
    case(
        "AveragePool", "ceil_mode, padded", real(1, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
        pads=[1, 0, 0, 1], order2=True,
    ),
    case(
        "AveragePool", "ceil_mode, padding counts", real(1, 2, 6, 6), kernel_shape=[3, 3], strides=[2, 2],
        ceil_mode=1, pads=[1, 0, 0, 1], count_include_pad=1,
    ),
    case("GlobalAveragePool", "2d", real(2, 3, 4, 5), order2=True),
    case("GlobalAveragePool", "1d", real(2, 3, 4)),
    case("GlobalAveragePool", "3d", real(1, 2, 2, 3, 2)),
    case("GlobalMaxPool", "2d", spread(2, 3, 4, 5)),
    case("GlobalMaxPool", "1d", spread(2, 3, 4)),
]  # fmt: skip

NORM = [
    *_average("LpPool"),
    case("LpPool", "p 1", real(1, 2, 5, 5, avoid=[0]), kernel_shape=[2, 2], p=1),
    case("LpPool", "p 3", real(1, 2, 5, 5, avoid=[0]), kernel_shape=[3, 2], strides=[2, 1], p=3, order2=True),
    case("LpPool", "p 2", real(1, 1, 4, 4, avoid=[0]), kernel_shape=[2, 2], order2=True),
    case("GlobalLpPool", "p 2", real(2, 3, 4, 5, avoid=[0]), order2=True),
    case("GlobalLpPool", "p 1", real(2, 3, 4, avoid=[0]), p=1),
    case("GlobalLpPool", "p 3", real(2, 3, 4, avoid=[0]), p=3),
    case("LRN", "odd", real(2, 5, 3, 3), size=3, alpha=0.5, beta=0.75, bias=1.5, order2=True),
    case("LRN", "even", real(2, 6, 2, 2), size=4, alpha=0.8, beta=0.5, bias=1.0, runtime=False),
    case("LRN", "window over the channels", real(1, 3, 2, 2), size=7, alpha=0.8),
]

CASES = [*MAX, *AVERAGE, *NORM]
