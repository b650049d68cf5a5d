"""What reads images between pixels. Coordinates keep off whole pixels, where the slope jumps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.cases import Arg, Case, case, given, ints, real, spread, weight


def grid(size: tuple[int, ...], *shape: int, centres: bool = False, reach: float = 1.3, nearest: bool = False) -> Arg:
    """Points [*shape, len(size)] inside and a little outside of an image, off whole pixels or off the middles."""

    def make(rng: np.random.Generator) -> np.ndarray:
        n = np.asarray(size[::-1])
        unit = rng.uniform(-reach, reach, (*shape, len(size)))
        pixels = (unit + 1) / 2 * (n - 1) if centres else ((unit + 1) * n - 1) / 2
        whole = np.floor(pixels)
        pixels = whole + (0.1 + 0.3 * (pixels - whole) + rng.integers(0, 2, pixels.shape) * 0.5)
        return pixels * 2 / (n - 1) - 1 if centres else (pixels * 2 + 1) / n - 1

    return Arg(make)


def offsets(*shape: int) -> Arg:
    """Between pixels: a fraction of 0.1 to 0.9."""
    return Arg(lambda rng: rng.integers(-1, 2, shape) + rng.uniform(0.1, 0.9, shape))


def sampling(mode: str, padding: str, centres: int) -> Case:
    batch = 1 if mode == "cubic" else 2  # the reference is slow
    points = grid((4, 5), batch, 3, 2, centres=bool(centres))
    note = f"{mode}, {padding}{', corners' if centres else ''}"
    return case("GridSample", note, real(batch, 2, 4, 5), points, mode=mode, padding_mode=padding,
                align_corners=centres, half=False, order2=mode == "cubic" and padding == "reflection")  # fmt: skip


BOXES = given([[0.3, 0.4, 4.1, 3.7], [1.2, 0.1, 2.9, 2.2], [-2.1, 1.3, 2.4, 8.6]])


def boxes(note: str, **options: object) -> Case:
    """Three boxes in two images; none of their samples falls on a whole pixel."""
    arg = replace(BOXES, explained=False)
    batch = given([0, 1, 0], np.int64)
    return case("RoiAlign", note, spread(2, 2, 6, 5), arg, batch, output_height=2, output_width=3, half=False,
                **options)  # type: ignore[arg-type]  # fmt: skip


REGIONS = given([[0, 0.6, 0.4, 4.1, 3.7], [1, 1.5, 0, 1.5, 5.2], [0, -2.5, 1.3, 2.4, 8.6], [1, 9, 0, 12, 3]])


def regions(note: str, **options: object) -> Case:
    """Four boxes in two images: inside, one pixel wide, reaching beyond the image, outside of it."""
    boxes = replace(REGIONS, explained=False)
    return case("MaxRoiPool", note, spread(2, 2, 6, 5), boxes, half=False, **options)  # type: ignore[arg-type]


CASES: list[Case] = [
    *(
        sampling(mode, padding, centres)
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for centres in (0, 1)
    ),
    case("GridSample", "opset 16 default", real(1, 2, 3, 4), grid((3, 4), 1, 2, 3), opset=16, half=False, order2=True),
    case("GridSample", "opset 16 bicubic", real(1, 1, 3, 4), grid((3, 4), 1, 2, 2), opset=16, mode="bicubic",
         half=False),
    case("GridSample", "3d", real(1, 2, 2, 3, 3), grid((2, 3, 3), 1, 2, 2, 2), half=False),
    case("GridSample", "far outside, reflected", real(1, 1, 3, 4), grid((3, 4), 1, 3, 3, reach=4), half=False,
         padding_mode="reflection"),
    case("AffineGrid", "2d", real(2, 2, 3), ints(2, 1, 3, 4), half=False, runtime=False),
    case("AffineGrid", "3d, corners", real(1, 3, 4), ints(1, 1, 2, 3, 2), align_corners=1, half=False, runtime=False),
    boxes("adaptive"),
    boxes("not half a pixel", coordinate_transformation_mode="output_half_pixel", spatial_scale=0.7),
    boxes("sampling ratio", sampling_ratio=2),
    boxes("max", mode="max", sampling_ratio=2),
    boxes("max, adaptive", mode="max"),
    regions("two by three", pooled_shape=[2, 3]),
    regions("one bin, scaled", pooled_shape=[1, 1], spatial_scale=0.5, order2=True),
    regions("more bins than pixels", pooled_shape=[7, 3]),
    regions("opset 22", pooled_shape=[2, 2], opset=22, runtime=False),
    case("DeformConv", "plain", real(1, 2, 4, 5), weight(3, 2, 2, 2), offsets(1, 8, 3, 4), half=False, runtime=False),
    case("DeformConv", "groups, mask, bias", real(2, 4, 4, 4), weight(4, 2, 2, 2), offsets(2, 16, 2, 3), weight(4),
         real(2, 8, 2, 3), group=2, offset_group=2, strides=[2, 1], pads=[1, 0, 0, 0], half=False, runtime=False),
    case("DeformConv", "kernel and bias as data", real(1, 2, 5, 4), real(2, 2, 2, 2), offsets(1, 8, 3, 5), real(2),
         dilations=[2, 1], pads=[0, 1, 0, 1], half=False, runtime=False, dynamic=False),
]  # fmt: skip
