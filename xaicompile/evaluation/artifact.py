"""Counterfactual artifact: a known mark is planted into each sample, and relevance has to find it.

A model that has learnt to use the mark ("Clever Hans", Lapuschkin et al. 2019) changes its score by it; an explanation
from which a user could tell puts its relevance there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, RuleError
from xaicompile.images import Preprocess, channels_last, is_array, read_arrays, read_picture
from xaicompile.runtime import Port


@dataclass(frozen=True)
class Planted:
    """A mark.

    Attributes:
        values: As the model reads them, [C, H, W] with zeros around the mark (or [H, W, C], as the model's input).
        weight: How much of the mark is seen, of the same shape or one that broadcasts: 0 around it, else the blend.
        mask: Where it is, [H, W].
        target: What is explained; None: as without the mark.
    """

    values: np.ndarray
    weight: np.ndarray
    mask: np.ndarray
    target: int | None

    def put(self, x: np.ndarray) -> np.ndarray:
        """Samples [N, ...] with the mark in them."""
        return np.asarray(x * (1 - self.weight) + self.values * self.weight, x.dtype)


def planted(how: Mapping[str, Any], port: Port, preprocess: Preprocess | None) -> Planted:
    """Read a mark.

    Args:
        how: `path` of a picture (normalised as photos are, not resized) or a `.npy` array in the model's units;
            `at` [x, y] of its upper left corner, negative ones from the right and from below; `blend` in (0, 1];
            `target` or None.
        port: The explained input, images of known size.

    Raises:
        ModelError: The mark can't be read.
        RuleError: The input is no image, or the mark does not fit into it.
    """
    last = channels_last(port.shape)
    sizes = [d for d in port.shape[1:] if isinstance(d, int)]
    if len(port.shape) != 4 or len(sizes) != 3:
        raise RuleError(f"--artifact is for images of known size; input '{port.name}' is {list(port.shape)}")
    height, width, channels = sizes if last else (*sizes[1:], sizes[0])
    mark = read_mark(Path(how["path"]), channels, preprocess or Preprocess())
    x, y = (int(v) for v in how.get("at", (0, 0)))
    x, y = x + (width if x < 0 else 0), y + (height if y < 0 else 0)
    h, w = mark.shape[1:]
    if not (0 <= x <= width - w and 0 <= y <= height - h) or mark.shape[0] not in (1, channels):
        raise RuleError(
            f"--artifact: {how['path']}, {w} x {h} pixels of {mark.shape[0]} channels at {x},{y}, does not fit into "
            f"'{port.name}', {width} x {height} of {channels}"
        )
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    values = np.zeros((channels, height, width), np.float32)
    values[:, y : y + h, x : x + w] = mark
    weight = np.where(mask, np.float32(how.get("blend", 1.0)), np.float32(0))[None]
    if last:
        values, weight = np.moveaxis(values, 0, -1), np.moveaxis(weight, 0, -1)
    return Planted(values, weight, mask, how.get("target"))


def read_mark(path: Path, channels: int, preprocess: Preprocess) -> np.ndarray:
    """A mark [C, h, w] in the model's units.

    Raises:
        ModelError: It is no picture and no array of two or three axes.
    """
    if not is_array(path):
        pixels = np.asarray(read_picture(path, channels), np.float32)
        return np.moveaxis(preprocess.normalised(pixels.reshape(*pixels.shape[:2], channels)), -1, 0)
    values = read_arrays(path)
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3) or not np.isfinite(values).all():
        raise ModelError(f"'{path}' is no array [h, w] or [channels, h, w] of finite numbers")
    return np.asarray(values if values.ndim == 3 else values[None], np.float32)
