"""Striped textures with a square of another colour pasted in, and a density of a classifier's features of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import compose

import xaicompile
from tests.kernel_machines import Array
from xaicompile.runtime import Session

MODEL = Path(__file__).parents[2] / "models" / "efficientnet-lite0.onnx"
SIDE, NORMAL, BATCH = 224, 24, 8
SQUARE = (slice(None), slice(40, 104), slice(128, 192))


@dataclass(frozen=True)
class Texture:
    """Stripes around one colour, with noise, and the colour of the square.

    Attributes:
        contrast: Of the stripes, in levels of 255.
        least: What share of the positive relevance should lie in the square, which has 8% of the pixels. It depends
            on the colours: the classifier finds a red square much stranger than a blue or a yellow one.
    """

    colour: tuple[int, int, int]
    contrast: float
    noise: float
    square: tuple[int, int, int]
    least: float


TEXTURES = {
    "red on faint stripes": Texture((120, 130, 140), 15, 6, (230, 40, 30), 0.7),
    "blue on bold stripes": Texture((150, 110, 80), 60, 12, (40, 70, 190), 0.2),
}


def crop(t: Texture, random: np.random.Generator) -> Array:
    """A piece of the texture: phase, width and slope of the stripes vary. [3,H,W], 0 to 255."""
    y, x = np.mgrid[:SIDE, :SIDE]
    phase, width, slope = random.uniform(0, 2 * np.pi), random.uniform(14, 18), random.uniform(-0.1, 0.1)
    wave = np.sin(2 * np.pi * (x + slope * y) / width + phase)
    pixels: Array = np.asarray(t.colour)[:, None, None] + t.contrast * wave
    return pixels + random.normal(0, t.noise, pixels.shape)


def samples(t: Texture) -> tuple[Array, Array]:
    """Crops as the classifier takes them [NORMAL,3,H,W], and another one with the square [1,3,H,W]."""
    random = np.random.default_rng(0)
    crops = [crop(t, random) for _ in range(NORMAL + 1)]
    size = crops[-1][SQUARE].shape
    crops[-1][SQUARE] = np.asarray(t.square)[:, None, None] + random.normal(0, t.noise, size)
    x = ((np.clip(crops, 0, 255) - 127) / 128).astype(np.float32)
    return x[:-1], x[-1:]


def backbone() -> onnx.ModelProto:
    """The classifier up to its features."""
    whole = onnx.shape_inference.infer_shapes(onnx.load(MODEL))
    part: onnx.ModelProto = onnx.utils.Extractor(whole).extract_model(["x"], ["flatten:out"])
    return part


def in_batches(model: onnx.ModelProto, x: Array, name: str) -> Array:
    """One output for all samples."""
    session = Session(model)
    return np.concatenate([session.run({"x": x[i : i + BATCH]})[name] for i in range(0, len(x), BATCH)])


def with_head(features: onnx.ModelProto, estimator: Any) -> onnx.ModelProto:
    """An estimator behind the features, its outputs `head/...`."""
    head = compose.add_prefix(xaicompile.neuralize(estimator), "head/")
    head.ir_version = features.ir_version
    merged: onnx.ModelProto = compose.merge_models(features, head, io_map=[("flatten:out", "head/X")])
    return merged
