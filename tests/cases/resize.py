"""Resize: modes, coordinates, sizes and scales."""

from __future__ import annotations

import numpy as np

from tests.cases import Case, case, const, given, ints, real

COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def scales(*values: float) -> object:
    return const(given(values, np.float32))


def resized(note: str, *size: int, **options: object) -> Case:
    """Two images resized by scales in height and width."""
    whole = options.get("coordinate_transformation_mode") == "align_corners"  # sizes the reference does not round
    by = options.pop("by", (1.5, 0.6) if whole else (1.6, 0.7))
    return case("Resize", note, real(*size), None, scales(1, 1, *by), half=False, **options)  # type: ignore[arg-type]


CASES: list[Case] = [
    *(
        resized(f"{mode} {where}", 1, 2, 4, 5, mode=mode, coordinate_transformation_mode=where)
        for mode in ("nearest", "linear", "cubic")
        for where in COORDINATES
    ),
    *(
        resized(f"nearest {how}", 1, 1, 5, 4, by=(0.7, 2.3), nearest_mode=how)
        for how in ("floor", "ceil", "round_prefer_ceil")
    ),
    resized("doubled", 2, 2, 3, 4, by=(2, 2), mode="nearest", order2=True,
            coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    resized("antialias linear", 1, 2, 6, 7, by=(0.5, 0.4), mode="linear", antialias=1),
    resized("antialias cubic", 1, 2, 8, 7, by=(0.5, 0.6), mode="cubic", antialias=1),
    resized("cubic, exclude outside", 1, 1, 4, 5, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    case("Resize", "to a size", real(1, 2, 3, 5), None, None, ints(1, 2, 5, 4), mode="linear", half=False),
    case("Resize", "not larger", real(1, 1, 4, 6), None, None, ints(7, 9), mode="linear", axes=[2, 3],
         keep_aspect_ratio_policy="not_larger", half=False),
    case("Resize", "not smaller", real(1, 1, 2, 4), None, None, ints(1, 3), mode="nearest", axes=[2, 3],
         keep_aspect_ratio_policy="not_smaller", half=False),
    case("Resize", "axes", real(2, 3, 4, 5), None, scales(1.5, 0.8), mode="linear", axes=[2, 3], half=False),
    case("Resize", "crop", real(1, 1, 4, 5), const(given([0, 0, 0.4, -0.2, 1, 1, 0.9, 1.2], np.float32)), None,
         ints(1, 1, 3, 6), mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
         extrapolation_value=2.0, half=False),
    case("Resize", "1d", real(2, 3, 5), None, scales(1, 1, 1.7), mode="linear", half=False),
    case("Resize", "3d", real(1, 2, 2, 3, 3), None, scales(1, 1, 2, 1.5, 0.7), mode="linear", half=False),
    case("Resize", "size at run time", real(1, 2, 3, 4), None, None, given([1, 2, 6, 3], np.int64), mode="linear",
         half=False, dynamic=False),
    case("Upsample", "opset 9", real(1, 2, 3, 3), scales(1, 1, 2, 3), mode="nearest", opset=9, half=False),
]  # fmt: skip
