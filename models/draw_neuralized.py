"""Draws the two pictures of neuralized models in the README, beside itself: log_ratio.jpg and anomaly.jpg.

    python models/fetch_demo.py && python models/draw_neuralized.py

Needs the `report` and `sklearn` extras and ONNX Runtime. The photos (coffee, by Rachel Michetti; brick, of CC0Textures)
come with scikit-image 0.26.0, which pip downloads, and are CC0; the classifier is the demo's, see README.md here.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fetch_demo import PHOTO, Source, fetch
from onnx import compose
from PIL import Image
from sklearn.neighbors import KernelDensity

import xaicompile
from xaicompile.compiler import compile_model
from xaicompile.runtime import run

HERE = Path(__file__).parent
MODEL = HERE / "efficientnet-lite0.onnx"
COFFEE = "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
BRICK = "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"
SIDE, TARGET = 224, "cup"
ROOM, NORMAL, PASTED = 56, 64, (130, 40, 190, 100)


def photo(name: str, sha256: str) -> Image.Image:
    """A photo of scikit-image."""
    source = Source(PHOTO.package, f"skimage/data/{name}", sha256)
    return Image.open(io.BytesIO(fetch(source))).convert("RGB")


def prepared(picture: Image.Image) -> np.ndarray:
    """Short side 256, the middle 224 x 224, (RGB - 127) / 128: [1,3,224,224]."""
    scale = 256 / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    return as_input(middle(picture))


def middle(picture: Image.Image) -> Image.Image:
    """The middle 224 x 224."""
    left, top = (picture.width - SIDE) // 2, (picture.height - SIDE) // 2
    return picture.crop((left, top, left + SIDE, top + SIDE))


def as_input(picture: Image.Image) -> np.ndarray:
    """A picture of the right size as the classifier's input."""
    pixels: np.ndarray = (np.asarray(picture, np.float32) - 127) / 128
    return pixels.transpose(2, 0, 1)[None]


def pooled(relevance: np.ndarray, cells: int = ROOM) -> np.ndarray:
    """Relevance [3,H,W] summed over channels and squares of pixels."""
    step = SIDE // cells
    total: np.ndarray = relevance.sum(0).reshape(cells, step, cells, step).sum((1, 3))
    return total


def draw(file: str, pictures: list[tuple[str, np.ndarray]], one_scale: bool = False) -> None:
    """Photos and maps side by side, each map from its largest value down, or all from that of all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(pictures), figsize=(3.2 * len(pictures), 3.5))
    most = max(limit(values) for _, values in pictures if values.ndim == 2)
    for axis, (title, values) in zip(axes, pictures, strict=True):
        span: dict[str, Any] = {}
        if values.ndim == 2:
            largest = most if one_scale else limit(values)
            span = {"cmap": "seismic", "vmin": -largest, "vmax": largest}
        axis.imshow(values, **span)
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(HERE / file, dpi=90, pil_kwargs={"quality": 88})


def limit(values: np.ndarray) -> float:
    """What is drawn in full colour: the largest value but for the top half per cent."""
    return float(np.percentile(np.abs(values), 99.5))


def shown(x: np.ndarray) -> np.ndarray:
    """A prepared input as a picture again."""
    return (x[0].transpose(1, 2, 0) * 128 + 127).round().clip(0, 255).astype(np.uint8)


def log_ratio() -> None:
    """What speaks for "cup", and what speaks for it rather than for the coffee in it."""
    x = prepared(photo("coffee.png", COFFEE))
    names = [p.value for p in onnx.load(MODEL, load_external_data=False).metadata_props if p.key == "classes"]
    target = np.asarray([json.loads(names[0]).index(TARGET)])
    pictures = [("photo", shown(x))]
    for rule in ("lrp-gamma", "neuralized-log-ratio"):
        out = run(compile_model(MODEL, rule).model, {"x": x, "target": target})
        value = out["log_ratio"][0] if "log_ratio" in out else out["logits"][0, target[0]]
        what = "log p/(1 - p)" if "log_ratio" in out else "logit"
        pictures.append((f'{what} of "{TARGET}": {value:.2f}', pooled(out["relevance"][0])))
        cells = pictures[-1][1]
        print(rule, value, "share of negative relevance", -np.minimum(cells, 0).sum() / np.abs(cells).sum())
    draw("log_ratio.jpg", pictures)


def anomaly() -> None:
    """A kernel density of the classifier's features of brick walls: where is what is not one?"""
    wall, random = photo("brick.png", BRICK), np.random.default_rng(0)

    def crop() -> Image.Image:
        left, top = random.integers(0, wall.width - SIDE), random.integers(0, wall.height - SIDE)
        return wall.crop((left, top, left + SIDE, top + SIDE))

    whole = onnx.shape_inference.infer_shapes(onnx.load(MODEL))
    features = onnx.utils.Extractor(whole).extract_model(["x"], ["flatten:out"])
    normal = np.concatenate([run(features, {"x": as_input(crop())})["flatten:out"] for _ in range(NORMAL)])
    squares = ((normal[:, None] - normal) ** 2).sum(-1)
    density = KernelDensity(bandwidth=float(np.sqrt(np.median(squares[squares > 0]) / 2))).fit(normal)
    head = compose.add_prefix(xaicompile.neuralize(density), "density/")
    head.ir_version = features.ir_version
    model = compose.merge_models(features, head, io_map=[("flatten:out", "density/X")])
    usual = crop()
    odd = usual.copy()
    odd.paste(photo("coffee.png", COFFEE).resize((90, 60)).crop((15, 0, 75, 60)), PASTED)
    x = np.concatenate([as_input(usual), as_input(odd)])
    out = run(compile_model(model, "neuralized-kde", ledger=True).model, {"x": x})
    pictures = []
    for i, name in enumerate(("a wall", "a wall with a cup")):
        pictures.append((name, shown(x[i : i + 1])))
        pictures.append((f"outlierness {out['outlierness'][i]:.2f}", pooled(out["relevance"][i])))
    left, top, right, bottom = PASTED
    inside = out["relevance"][1, :, top:bottom, left:right]
    print("outlierness", out["outlierness"], "share in the cup", inside.sum() / out["relevance"][1].sum())
    draw("anomaly.jpg", pictures, one_scale=True)


if __name__ == "__main__":
    log_ratio()
    anomaly()
