"""Gathers, scatters and what turns indices into numbers."""

from __future__ import annotations

import numpy as np

from tests.cases import Arg, case, const, given, ints, real, spread


def live(values: object) -> Arg:
    """Indices that are fed at run time."""
    return given(values, np.int64)


GATHER = [
    case("Gather", "axis 0", real(4, 3), ints(2, 0, 2)),
    case("Gather", "axis 1, negative index", real(2, 4, 3), ints(-1, 1), axis=1),
    case("Gather", "negative axis", real(2, 3, 4), ints(3, 0, 0), axis=-1),
    case("Gather", "scalar index", real(2, 3, 4), const(given(1, np.int64)), axis=1),
    case("Gather", "matrix of indices", real(4, 3), ints([0, 1], [3, 0]), axis=0),
    case("Gather", "matrix without repeats", real(2, 4, 3), ints([0, 1], [3, 2]), axis=1),
    case("Gather", "matrix in the middle", real(2, 4, 3), ints([0, 1], [3, 0]), axis=1),
    case("Gather", "indices at run time", real(5, 2), live([[4, 0], [-2, 4]]), axis=0, order2=True),
    case("Gather", "int32 indices", real(5, 2), given([1, 1], np.int32)),
    case("GatherElements", "axis 0", real(3, 4), live([[0, 1, 2, 0], [2, 2, -1, 0]])),
    case(
        "GatherElements", "last axis, repeated", real(2, 3), live([[0, 0, 2, 1], [1, -1, 1, 1]]), axis=-1, order2=True
    ),
    case("GatherND", "points", real(2, 3, 4), live([[0, 1, 2], [1, 2, 3], [1, 2, 3]])),
    case("GatherND", "rows", real(2, 3, 4), live([[0, 1], [1, -1]]), order2=True),
    case("GatherND", "batch", real(2, 3, 4), live([[[1]], [[2]]]), batch_dims=1),
    case("GatherND", "two batch axes", real(2, 2, 3, 2), live([[[[1]], [[2]]], [[[0]], [[0]]]]), batch_dims=2),
]

SCATTER = [
    case("ScatterElements", "overwrite", real(3, 4), live([[0, 2, 1, 0]]), real(1, 4)),
    case("ScatterElements", "overwrite, axis 1", real(2, 5), live([[1, -1], [0, 3]]), real(2, 2), axis=1, order2=True),
    case(
        "ScatterElements",
        "add",
        real(3, 4),
        live([[0, 2, 1, 0], [0, 2, 1, 2]]),
        real(2, 4),
        reduction="add",
        half=False,
    ),
    case(
        "ScatterElements",
        "add to a constant",
        const(real(6)),
        live([1, 1, -1, 5]),
        real(4),
        reduction="add",
        half=False,
    ),
    case(
        "ScatterElements",
        "smaller than the data",
        real(3, 4),
        live([[1, 2]]),
        real(1, 2),
        reduction="add",
        half=False,
        axis=0,
    ),
    case(
        "ScatterElements",
        "max",
        spread(3, 4),
        live([[0, 2, 1, 0]]),
        spread(1, 4, low=-1.8, high=2.1),
        reduction="max",
        half=False,
    ),
    case(
        "ScatterElements", "min", spread(6), live([1, 1, 5]), spread(3, low=-1.8, high=2.1), reduction="min", half=False
    ),
    case(
        "ScatterND",
        "max",
        spread(4, 3),
        live([[2], [2], [0]]),
        spread(3, 3, low=-1.8, high=2.1),
        reduction="max",
        half=False,
    ),
    case("ScatterND", "overwrite rows", real(4, 3), live([[2], [0]]), real(2, 3), order2=True),
    case("ScatterND", "overwrite points", real(2, 3), live([[0, 1], [1, -1]]), real(2)),
    case("ScatterND", "add, repeated", real(4, 3), live([[2], [2], [0]]), real(3, 3), reduction="add", half=False),
    case("ScatterND", "add points", real(2, 3, 2), live([[0, 1], [0, 1]]), real(2, 2), reduction="add", half=False),
]

INDICES = [
    case("OneHot", "values as data", live([1, 0, -1]), const(given(4, np.int64)), real(2), axis=-1),
    case("OneHot", "axis 0, out of range", live([[1, 7], [0, -9]]), const(given(4, np.int64)), real(2), axis=0),
    case("TopK", "largest", spread(2, 6), ints(3), outputs=2),
    case("TopK", "smallest, axis 0", spread(5, 2), ints(2), axis=0, largest=0, outputs=2),
]

CASES = [*GATHER, *SCATTER, *INDICES]
