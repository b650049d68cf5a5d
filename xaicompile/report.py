"""Pictures of an explanation: a signed red-blue map beside the image."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, OutputError, RuntimeMissingError

QUANTILE = 0.995  # |R| that is drawn at full colour: a single outlier must not wash out the rest


def read_classes(path: str | os.PathLike[str] | None, metadata: Mapping[str, str]) -> list[str] | None:
    """Class names from a text file (one a line) or from a model's metadata (`classes`, a JSON list)."""
    if path is not None:
        try:
            return Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"can't read the class names in '{os.fspath(path)}': {error}") from error
    try:
        names = json.loads(metadata.get("classes", "null"))
    except ValueError:
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def flatten(relevance: np.ndarray, channels: int | None) -> np.ndarray:
    """Relevance of one sample, summed over its channels, as a map or as one value for each feature."""
    if channels is not None and relevance.ndim > 1:
        relevance = relevance.sum(axis=channels)
    while relevance.ndim > 2:
        relevance = relevance.sum(axis=0)
    return np.asarray(relevance, np.float64)


def symmetric_range(relevance: np.ndarray) -> float:
    """The `v` of the colour range -v..v: the 99.5 % quantile of |R|, or the largest |R| where that is 0."""
    size = np.abs(relevance[np.isfinite(relevance)])
    if not size.size:
        return 1.0
    return float(np.quantile(size, QUANTILE)) or float(size.max()) or 1.0


def draw(
    path: str | os.PathLike[str],
    relevance: np.ndarray | Sequence[np.ndarray],
    *,
    title: str | Sequence[str],
    image: np.ndarray | None = None,
) -> None:
    """Write a picture of one explanation, or of several of the same sample.

    Args:
        path: Where to write; the ending says the format (png, pdf, svg, jpg).
        relevance: One sample's relevance as a map `[H, W]`, or as a row of values; or a list of such.
        title: Line above the picture; or a list of lines, one above each map.
        image: The pixels that were explained, `[H, W]` or `[H, W, channels]`, drawn on the left.

    Raises:
        RuntimeMissingError: matplotlib isn't installed.
        OutputError: The picture can't be written there.
    """
    maps = [relevance] if isinstance(relevance, np.ndarray) else list(relevance)
    maps = [np.atleast_1d(np.squeeze(r)) if r.ndim != 2 else r for r in maps]
    pictured = int(image is not None and maps[0].ndim == 2)
    panels = len(maps) + pictured
    figure = new_figure(4.2 * panels + 0.8, 4.4)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    titles = [title] if isinstance(title, str) else list(title)
    if len(titles) == 1:
        figure.suptitle(titles[0])
    else:
        for axis, line in zip(axes[pictured:], titles, strict=True):
            axis.set_title(line, fontsize="medium")
    if pictured and image is not None:
        axes[0].imshow(image, cmap="gray" if image.ndim == 2 else None)
        axes[0].axis("off")
    for axis, r in zip(axes[pictured:], maps, strict=True):
        if r.ndim == 2:
            draw_map(figure, axis, r)
        else:
            _bars(axis, r)
    write(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches.

    Raises:
        RuntimeMissingError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeMissingError('drawing needs matplotlib; run `pip install "xaicompile[report]"`') from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_map(figure: Any, axis: Any, relevance: np.ndarray) -> None:
    """A map `[H, W]` in red and blue, with its scale."""
    limit = symmetric_range(relevance)
    square = max(relevance.shape) <= 8 * min(relevance.shape)
    shown = axis.imshow(
        relevance, cmap="bwr", vmin=-limit, vmax=limit, interpolation="nearest", aspect="equal" if square else "auto"
    )
    axis.axis("off")
    bar = figure.colorbar(shown, ax=axis, shrink=0.8, extend="both")
    bar.set_label("relevance (red: for, blue: against)")


def _bars(axis: Any, relevance: np.ndarray) -> None:
    values = relevance.ravel()
    axis.bar(np.arange(values.size), values, width=1.0, color=np.where(values >= 0, "tab:red", "tab:blue"))
    axis.axhline(0, color="black", linewidth=0.5)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("feature")
    axis.set_ylabel("relevance (red: for, blue: against)")


def write(figure: Any, path: str | os.PathLike[str]) -> None:
    """Saves a figure; a file that is there is replaced only once all of the new one is written.

    Raises:
        OutputError: It can't be written there.
    """
    target = Path(path)
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    try:
        figure.savefig(part, dpi=150)
        part.replace(target)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"can't write the picture '{target}': {error}") from error
