"""Reductions and softmax."""

from __future__ import annotations

from tests.cases import Arg, Case, case, given, ints, positive, real, spread


def _rows(op: str, make: object, order2: bool = False, opset: int = 20) -> list[Case]:
    def data(*shape: int) -> Arg:
        return make(*shape)  # type: ignore[operator,no-any-return]

    return [
        case(op, "all", data(2, 3, 4), keepdims=0, order2=order2, opset=opset),
        case(op, "all, kept", data(2, 3), opset=opset),
        case(op, "last", data(2, 3, 4), ints(-1), keepdims=0, order2=order2, opset=opset),
        case(op, "last, kept", data(2, 3, 4), ints(2), keepdims=1, opset=opset),
        case(op, "two axes, unordered", data(2, 3, 4), ints(2, 0), keepdims=0, opset=opset),
        case(op, "spatial", data(2, 3, 2, 3), ints(2, 3), keepdims=1, order2=order2, opset=opset),
        case(op, "spatial, dropped", data(2, 3, 2, 3), ints(-1, -2), keepdims=0, opset=opset),
        case(op, "axis of one", data(2, 1, 3), ints(1), keepdims=0, opset=opset),
        case(op, "no axes, no reduction", data(2, 3), noop_with_empty_axes=1, opset=opset),
    ]


def _off_zero(*shape: int) -> Arg:
    return real(*shape, avoid=[0])


REDUCTIONS = [
    *_rows("ReduceSum", real, order2=True),
    *_rows("ReduceMean", real, order2=True),
    *_rows("ReduceMax", spread),
    *_rows("ReduceMin", spread),
    *_rows("ReduceL2", _off_zero, order2=True),
    *_rows("ReduceL1", _off_zero),
    *_rows("ReduceSumSquare", real, order2=True),
    *_rows("ReduceLogSumExp", real, order2=True),
    *_rows("ReduceLogSum", positive, order2=True),
    *_rows("ReduceProd", _off_zero, order2=True),
    case("ReduceProd", "zeros", given([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), ints(1), keepdims=0),
    case("ReduceSum", "empty axes", real(2, 3), ints(), keepdims=0, order2=True),
    case("ReduceSum", "empty axes, no reduction", real(2, 3), ints(), keepdims=0, noop_with_empty_axes=1),
    case("ReduceMean", "empty axes", real(2, 3), ints(), keepdims=0),
    case("ReduceMax", "empty axes, no reduction", spread(2, 3), ints(), noop_with_empty_axes=1),
    case("ReduceMean", "attribute", real(2, 3, 4), axes=[1], keepdims=0, opset=13),
    case("ReduceSum", "attribute", real(2, 3, 4), axes=[1, 2], keepdims=0, opset=11),
]

SOFTMAX = [
    case(op, note, real(*shape, low=low, high=high), order2=True, **attrs)
    for op in ("Softmax", "LogSoftmax")
    for note, shape, low, high, attrs in [
        ("last", (2, 3, 4), -2, 2, {}),
        ("channels", (2, 3, 2, 2), -2, 2, {"axis": 1}),
        ("axis 0", (3, 2), -2, 2, {"axis": 0}),
        ("wide range", (2, 5), -9, 9, {"axis": -1}),
    ]
]

CASES = [*REDUCTIONS, *SOFTMAX]
