"""Operators that move values about: layout, slicing, padding, repetition."""

from __future__ import annotations

import numpy as np

from tests.cases import case, const, given, ints, real

LAYOUT = [
    case("Flatten", "default", real(2, 3, 2, 2)),
    case("Flatten", "axis 0", real(2, 3, 2), axis=0),
    case("Flatten", "axis 2", real(2, 3, 2, 2), axis=2),
    case("Flatten", "negative axis", real(2, 3, 4), axis=-1),
    case("Flatten", "axis is the rank", real(2, 3), axis=2),
    case("Reshape", "plain", real(2, 3, 4), ints(4, 6)),
    case("Reshape", "minus one", real(2, 3, 4), ints(2, -1)),
    case("Reshape", "zero copies", real(2, 3, 4), ints(0, 4, -1)),
    case("Reshape", "to a vector", real(2, 3), ints(-1)),
    case("Reshape", "allowzero", real(2, 3, 4), ints(3, 8), allowzero=1),
    case("Reshape", "from a scalar", real(), ints(1, 1)),
    case("Transpose", "reversed", real(2, 3, 4)),
    case("Transpose", "perm", real(2, 3, 4), perm=[1, 2, 0]),
    case("Transpose", "nhwc", real(1, 2, 3, 4), perm=[0, 2, 3, 1]),
    case("Squeeze", "axes", real(2, 1, 3, 1), ints(1, 3)),
    case("Squeeze", "negative axes", real(1, 3, 1), ints(-1)),
    case("Squeeze", "all", real(1, 3, 1, 2), dynamic=False),
    case("Squeeze", "attribute", real(2, 1, 3), axes=[1], opset=11),
    case("Unsqueeze", "axes", real(2, 3), ints(1, 3)),
    case("Unsqueeze", "negative and unordered", real(2, 3), ints(-1, 0)),
    case("Unsqueeze", "a scalar", real(), ints(0)),
    case("Unsqueeze", "attribute", real(2, 3), axes=[0, 2], opset=11),
    case("DepthToSpace", "dcr", real(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", "crd", real(2, 8, 2, 2), blocksize=2, mode="CRD"),
    case("SpaceToDepth", "plain", real(2, 2, 4, 6), blocksize=2),
    case("Identity", "scalar", real()),
    case("Dropout", "one output", real(2, 3)),
    case("Dropout", "two outputs", real(2, 3), const(given(0.5)), outputs=2),
    case("CumSum", "plain", real(2, 3, 4), const(given(1, np.int64)), order2=True),
    case("CumSum", "exclusive", real(2, 3), const(given(0, np.int64)), exclusive=1),
    case("CumSum", "reverse, negative axis", real(2, 3), const(given(-1, np.int64)), reverse=1),
    case("CumSum", "exclusive reverse", real(2, 3), const(given(1, np.int64)), exclusive=1, reverse=1),
    case("Trilu", "upper", real(2, 3, 3)),
    case("Trilu", "lower with offset", real(3, 4), const(given(1, np.int64)), upper=0),
]

PARTS = [
    case("Concat", "two", real(2, 3), real(2, 4), axis=1),
    case("Concat", "three, negative axis", real(2, 1, 3), real(2, 1, 2), real(2, 1, 1), axis=-1),
    case("Concat", "one", real(2, 3), axis=0),
    case("Concat", "with a constant", real(2, 3), const(real(1, 3)), real(3, 3), axis=0),
    case("Concat", "to a class token", const(real(2, 1, 3)), real(2, 4, 3), axis=1, order2=True),
    case("Concat", "between constants", const(real(2, 1)), const(real(2, 2)), real(2, 4), const(real(2, 1)), axis=-1),
    case("Split", "equal", real(2, 6), axis=1, num_outputs=3, outputs=3, used=(0, 1, 2)),
    case("Split", "uneven last", real(2, 7), axis=-1, num_outputs=3, outputs=3, used=(0, 1, 2)),
    case("Split", "sizes", real(7, 2), ints(2, 4, 1), outputs=3, used=(0, 1, 2)),
    case("Split", "one unused", real(2, 6), ints(1, 2, 3), axis=1, outputs=3, used=(0, 2)),
    case("Split", "only one used", real(2, 6), axis=1, num_outputs=2, outputs=2, used=(1,)),
    case("Split", "opset 13", real(6, 2), opset=13, outputs=2, used=(0, 1)),
    case("Slice", "plain", real(4, 5), ints(1, 0), ints(3, 4)),
    case("Slice", "one axis", real(4, 5), ints(1), ints(4), ints(1)),
    case("Slice", "negative and open ends", real(4, 5), ints(-3, 1), ints(2**62, -1), ints(-1, 0)),
    case("Slice", "steps", real(7, 6), ints(0, 1), ints(7, 6), ints(0, 1), ints(2, 3)),
    case("Slice", "steps that do not reach the end", real(8), ints(1), ints(7), ints(0), ints(4)),
    case("Slice", "backwards", real(5, 3), ints(-1), ints(-(2**62)), ints(0), ints(-1)),
    case("Slice", "backwards, two kept", real(5, 3), ints(2), ints(0), ints(0), ints(-1)),
    case("Slice", "steps, two kept", real(5, 3), ints(1), ints(5), ints(0), ints(3)),
    case("Slice", "one kept by a step", real(5, 3), ints(3), ints(1), ints(0), ints(-2)),
    case("Slice", "nothing kept", real(5, 3), ints(3), ints(1), ints(0)),
    case("Slice", "backwards by two", real(6, 3), ints(4), ints(0), ints(0), ints(-2)),
    case("Slice", "past the end", real(4, 3), ints(2), ints(99), ints(0)),
    case("Slice", "shuffle stride", real(1, 4, 3, 3), ints(1), ints(2**31 - 1), ints(1), ints(2)),
]

PAD = [
    case("Pad", "constant", real(2, 3), ints(1, 0, 2, 1), const(given(0.7))),
    case("Pad", "constant zero", real(2, 3, 2), ints(0, 1, 0, 0, 2, 1)),
    case("Pad", "negative pads crop", real(3, 5), ints(-1, 1, 0, -2)),
    case("Pad", "axes", real(2, 3, 4), ints(2, 1), None, ints(-1)),
    case("Pad", "reflect", real(1, 2, 4, 5), ints(0, 0, 2, 1, 0, 0, 3, 4), mode="reflect"),
    case("Pad", "reflect one axis", real(3, 4), ints(0, 2, 0, 3), mode="reflect"),
    case("Pad", "edge", real(1, 2, 3, 3), ints(0, 0, 1, 2, 0, 0, 2, 0), mode="edge"),
    case("Pad", "wrap", real(2, 4), ints(0, 1, 0, 3), mode="wrap"),
    case("Pad", "value as data", real(2, 3), ints(1, 0, 2, 1), given(-1.0), order2=True),
]

REPEAT = [
    case("Expand", "plain", real(3, 1), ints(2, 3, 4), order2=True),
    case("Expand", "smaller shape than input", real(2, 3), ints(1)),
    case("Expand", "ones in the shape", real(2, 1, 3), ints(1, 4, 1)),
    case("Expand", "scalar", real(), ints(2, 3)),
    case("Tile", "plain", real(2, 3), ints(2, 1), order2=True),
    case("Tile", "all axes", real(1, 2, 3), ints(2, 3, 2)),
    case("Tile", "a vector", real(3), ints(4)),
]

CASES = [*LAYOUT, *PARTS, *PAD, *REPEAT]
