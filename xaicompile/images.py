"""Photos and arrays in, model inputs out: reading, resizing, cropping and normalising as the model was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, RuleError, RuntimeMissingError

ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes a model's input: `(pixel - mean) / std` per channel, after resizing and cropping.

    Attributes:
        mean: Subtracted from each channel; one value serves all channels; 0 if empty.
        std: Divides each channel; one value serves all channels; 1 if empty.
        span: Largest pixel value before normalisation: 255, or 1 if the pixels are scaled to 0..1 first. `mean` and
            `std` are in the same units. If it isn't given, it is 255 where a mean or std is above 1, else 1.
        resize: Length of the photo's short side before cropping; None takes the smallest that covers the crop.
        crop: Height and width of the middle part that the model sees; None takes the model's own input size.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    span: float | None = None
    resize: int | None = None
    crop: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len({1, len(self.shift), len(self.scale)}) > 2:
            counts = f"mean has {len(self.mean)} values and std {len(self.std)}"
            raise RuleError(f"{counts}; give one each, or one a channel")
        if not all(np.isfinite(self.shift)) or not all(np.isfinite(value) and value > 0 for value in self.scale):
            raise RuleError("mean must be finite, and std must be finite and positive")

    @property
    def shift(self) -> tuple[float, ...]:
        """The mean in force."""
        return self.mean or (0.0,)

    @property
    def scale(self) -> tuple[float, ...]:
        """The standard deviation in force."""
        return self.std or (1.0,)

    @property
    def largest(self) -> float:
        """The span in force."""
        return self.span or (255.0 if max(*self.shift, *self.scale) > 1 else 1.0)

    def box(self) -> tuple[list[float], list[float]]:
        """Lowest and highest value that each channel of a normalised photo can have."""
        count = max(len(self.shift), len(self.scale))
        mean, std = np.broadcast_to(self.shift, count), np.broadcast_to(self.scale, count)
        return ((0 - mean) / std).tolist(), ((self.largest - mean) / std).tolist()

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H, W, C] from 0 to 255 in the model's units, float32.

        Raises:
            RuleError: There are more means than channels.
        """
        mean, std = np.asarray(self.shift, np.float32), np.asarray(self.scale, np.float32)
        if max(mean.size, std.size) not in (1, pixels.shape[2]):
            raise RuleError(
                f"mean and std have {max(mean.size, std.size)} values, the model has {pixels.shape[2]} channels"
            )
        return np.asarray((pixels * np.float32(self.largest / 255) - mean) / std, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """What goes into a model's metadata: what was given, and the range where mean or std need it."""
        needed = self.largest if self.mean or self.std else self.span
        crop = None if self.crop is None else list(self.crop)
        values = {"mean": list(self.mean), "std": list(self.std), "range": needed, "resize": self.resize, "crop": crop}
        return {key: value for key, value in values.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read what `to_dict` wrote, or what a user gives: numbers, or lists of one number a channel."""
        unknown = set(values) - {"mean", "std", "range", "resize", "crop"}
        if unknown:
            raise RuleError(f"preprocess takes mean, std, range, resize and crop, not {', '.join(sorted(unknown))}")
        crop = values.get("crop")
        return cls(
            mean=tuple(np.atleast_1d(values.get("mean", ())).tolist()),
            std=tuple(np.atleast_1d(values.get("std", ())).tolist()),
            span=values.get("range"),
            resize=values.get("resize"),
            crop=None if crop is None else (int(crop[0]), int(crop[1])),
        )

    @classmethod
    def from_options(
        cls, mean: str | None, std: str | None, size: str | None, span: float | None = None
    ) -> Preprocess | None:
        """Read the options of the command line; None if none of them is given.

        Args:
            mean: One number, or one a channel with commas between.
            std: As `mean`.
            size: `RESIZE`, `RESIZE,CROP` or `RESIZE,HEIGHTxWIDTH`.
            span: 1 or 255, see the class.
        """
        if mean is None and std is None and size is None and span is None:
            return None
        resize, crop = (None, None) if size is None else _size(size)
        return cls(_numbers("--mean", mean), _numbers("--std", std), span, resize, crop)


def bounds(preprocess: Mapping[str, Any] | None) -> dict[str, float | list[float]]:
    """The rule parameters `low` and `high` that a preprocessing gives; none where it doesn't say how pixels scale."""
    if not preprocess or not {"mean", "std", "range"} & set(preprocess):
        return {}
    low, high = Preprocess.from_dict(preprocess).box()
    return {"low": low, "high": high} if len(low) > 1 else {"low": low[0], "high": high[0]}


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RuleError(f"{option} {text}: expected one number, or one a channel, such as 0.485,0.456,0.406") from None


def _size(text: str) -> tuple[int, tuple[int, int] | None]:
    resize, comma, crop = text.partition(",")
    height, _, width = crop.partition("x")
    try:
        values = [int(resize), int(height), int(width or height)] if comma else [int(resize)]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise RuleError(f"--size {text}: expected RESIZE, RESIZE,CROP or RESIZE,HEIGHTxWIDTH, such as 256,224")
    return values[0], (values[1], values[2]) if comma else None


@dataclass(frozen=True)
class Photo:
    """A photo made ready: the model's input with a batch axis, and the pixels that it was made of."""

    values: np.ndarray
    pixels: np.ndarray


def layout(shape: Sequence[int | str | None]) -> str:
    """Say whether an image input is `NCHW` or `NHWC`, by where the 1, 3 or 4 channels are."""
    if len(shape) != 4:
        raise ModelError(f"the model's input has the shape {list(shape)}, which is no image; give a .npy array instead")
    if shape[1] in (1, 3, 4):
        return "NCHW"
    if shape[3] in (1, 3, 4):
        return "NHWC"
    raise ModelError(f"no axis of the model's input {list(shape)} has 1, 3 or 4 channels; give a .npy array instead")


def channels_last(shape: Sequence[int | str | None] | None) -> bool:
    """Say whether a tensor is a batch of images whose 1, 3 or 4 channels stand behind, as TensorFlow has them."""
    if shape is None or len(shape) != 4 or shape[3] not in (1, 3, 4):
        return False
    return all(not isinstance(d, int) or d > 4 for d in shape[1:3])


def channel_axis(shape: Sequence[int | str | None] | None) -> int | None:
    """Axis of the channels of a batch of images or signals: 1, or 3 where they stand behind; None for tables."""
    return None if len(shape or ()) < 3 else 3 if channels_last(shape) else 1


def read_photo(
    path: str | os.PathLike[str], shape: Sequence[int | str | None], dtype: Any, preprocess: Preprocess | None
) -> Photo:
    """Read a photo as the input of a model.

    Args:
        path: Any picture that Pillow reads.
        shape: The model's input shape, with the batch axis; symbolic dimensions are strings or None.
        dtype: The model's input type.
        preprocess: How to resize, crop and normalise; without it, pixels from 0 to 1 at the model's own size.
    """
    preprocess = preprocess or Preprocess()
    order = layout(shape)
    channels = shape[1] if order == "NCHW" else shape[3]
    own = shape[2:] if order == "NCHW" else shape[1:3]
    pixels = read_picture(path, int(channels or 3))
    pixels = fit(pixels, preprocess, own)
    values = np.asarray(pixels, np.float32).reshape(pixels.height, pixels.width, -1)
    values = preprocess.normalised(values)
    values = values.transpose(2, 0, 1) if order == "NCHW" else values
    return Photo(np.ascontiguousarray(values[None], dtype=dtype), np.asarray(pixels))


def read_picture(path: str | os.PathLike[str], channels: int) -> Any:
    """A photo as Pillow's image, turned as its camera says, with 1, 3 or 4 channels."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise RuntimeMissingError('reading a photo needs Pillow; run `pip install "xaicompile[report]"`') from error
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except FileNotFoundError:
        raise ModelError(f"no such file: '{os.fspath(path)}'") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ModelError(f"'{os.fspath(path)}' is not a picture that can be read: {error}") from error


def fit(picture: Any, preprocess: Preprocess, own: Sequence[int | str | None]) -> Any:
    """Resize the short side and cut out the middle."""
    from PIL import Image

    crop = preprocess.crop
    if isinstance(own[0], int) and isinstance(own[1], int):
        if crop is not None and crop != (own[0], own[1]):
            raise RuleError(f"the crop is {crop[0]}x{crop[1]}, but the model takes {own[0]}x{own[1]}")
        crop = (own[0], own[1])
    resize = preprocess.resize
    if crop is None and resize is not None:
        crop = (resize, resize)
    if crop is None:
        return picture
    cover = max(crop[0] / picture.height, crop[1] / picture.width)
    scale = cover if resize is None else resize / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    if picture.height < crop[0] or picture.width < crop[1]:
        raise RuleError(f"a short side of {resize} is too small for a crop of {crop[0]}x{crop[1]}")
    left, top = (picture.width - crop[1]) // 2, (picture.height - crop[0]) // 2
    return picture.crop((left, top, left + crop[1], top + crop[0]))


def is_array(path: str | os.PathLike[str]) -> bool:
    """Say whether a path names a numpy array rather than a picture."""
    return Path(path).suffix.lower() in ARRAYS


def read_arrays(path: str | os.PathLike[str]) -> np.ndarray | dict[str, np.ndarray]:
    """Read a `.npy` array, or the named arrays of a `.npz` file; nothing is done to their values."""
    try:
        data = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ModelError(f"no such file: '{os.fspath(path)}'") from None
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"'{os.fspath(path)}' is not a numpy array that can be read: {error}") from error
    if isinstance(data, np.ndarray):
        return data
    with data:
        return {name: data[name] for name in data.files}


def remembered(metadata: Mapping[str, str]) -> Preprocess | None:
    """The preprocessing that a compiled model's metadata holds, if any."""
    text = metadata.get("xaicompile.preprocess")
    values = json.loads(text) if text else None
    return Preprocess.from_dict(values) if values else None
