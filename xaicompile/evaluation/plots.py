"""Plots of an evaluation: the curves of pixel flipping with their bands, areas, sanity checks, and heatmaps."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import OutputError, RuntimeMissingError
from xaicompile.report import flatten, symmetric_range

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
STYLES = ("solid", "dashdot", "dotted")  # of the first seven rules, the next seven, ...; random is dashed
GREY = "#767676"
FIRST = 0.1  # share of the units that `zoom` shows
SIDE = 192  # pixels that a drawn map's longer side has at least
MISSING = 'writing the report needs matplotlib and Jinja2; run `pip install "xaicompile[report]"`'
SCORES = {
    "logit": "mean logit of the class",
    "probability": "mean probability of the class",
    "output": "mean output of the model for the class",
}


def draw_all(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Draw every plot that the report has numbers for.

    Args:
        report: What `report.json` holds.
        folder: Where the PNG files go; it must exist.

    Returns:
        The files written, by what they show: `curves`, `zoom`, `lerf`, `areas`, `sanity`.
    """
    plots: dict[str, tuple[str, Callable[[Path], bool]]] = {
        "curves": ("curves.png", lambda path: curves(report, path)),
        "zoom": ("curves-first.png", lambda path: zoom(report, path)),
        "lerf": ("curves-lerf.png", lambda path: curves(report, path, order="lerf")),
        "areas": ("areas.png", lambda path: areas(report, path)),
        "sanity": ("sanity.png", lambda path: sanity(report, path)),
    }
    return {key: Path(folder) / name for key, (name, plot) in plots.items() if plot(Path(folder) / name)}


def curves(report: Mapping[str, Any], path: str | os.PathLike[str], *, order: str = "morf", until: float = 1.0) -> bool:
    """Draw the mean score against the share of units flipped, one line a rule, with 95 % bands (Samek et al. 2017).

    Args:
        report: What `report.json` holds.
        path: The picture to write.
        order: Most relevant first ("morf") or least ("lerf"). The random baseline is the same for both.
        until: The largest share of units shown, in (0, 1].

    Returns:
        Whether there was anything to draw.
    """
    x = 100 * numbers(report.get("x"))
    shown = x <= 100 * until + 1e-9
    rules = report.get("rules") or {}
    lines = {name: (rule.get("fidelity") or {}).get(order) for name, rule in rules.items()}
    if not any(lines.values()) or np.count_nonzero(shown) < 3:
        return False
    figure, axis = axes()
    handles = []
    random = (report.get("random") or {}).get("morf")
    for name, line in [*lines.items(), ("random order", random)]:
        if not line:
            continue
        style = {"color": GREY, "linestyle": "dashed"} if line is random else style_of(list(lines).index(name))
        low, mean, high = (numbers(line.get(end))[shown] for end in ("low", "mean", "high"))
        axis.fill_between(x[shown], low, high, color=style["color"], alpha=0.13, linewidth=0)
        handles.append((axis.plot(x[shown], mean, linewidth=1.8, **style)[0], name))
    axis.set_xlim(0, x[shown][-1])
    axis.set_xlabel(f"% of {units(report)} flipped, {'most' if order == 'morf' else 'least'} relevant first")
    axis.set_ylabel(score(report))
    _legend(figure, handles)
    _save(figure, path)
    return True


def zoom(report: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Draw the first 10 % of the curves: who is ahead where only the most relevant is gone. Else as `curves`."""
    x = numbers(report.get("x"))
    return bool(x.size) and bool(x[-1] > FIRST + 1e-9) and curves(report, path, until=FIRST)


def areas(report: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Draw each rule's AOPC, most and least relevant first, with 95 % intervals. Else as `curves`."""
    rules = report.get("rules") or {}
    found = [{key: (rule.get("fidelity") or {}).get(key) for key in ("aopc", "aopc_lerf")} for rule in rules.values()]
    if not any(any(pair.values()) for pair in found):
        return False
    figure, axis = axes(height=1.6 + 0.5 * len(rules))
    handles = []
    random = (report.get("random") or {}).get("aopc")
    if random:
        low, mean, high = (number(random.get(end)) for end in ("low", "mean", "high"))
        axis.axvspan(low, high, color=GREY, alpha=0.13, linewidth=0)
        handles.append((axis.axvline(mean, color=GREY, linestyle="dashed", linewidth=1.5), "random order"))
    for key, shift, fill in (("aopc", -0.13, True), ("aopc_lerf", 0.13, False)):
        for place, pair in enumerate(found):
            colour, interval = style_of(place)["color"], pair[key]
            if interval:
                low, mean, high = (number(interval.get(end)) for end in ("low", "mean", "high"))
                axis.hlines(place + shift, low, high, color=colour, linewidth=2)
                axis.plot(mean, place + shift, "o", markersize=7, color=colour, mfc=colour if fill else "white")
        sign = axis.plot([], [], "o", markersize=7, color="#333333", mfc="#333333" if fill else "white")[0]
        handles.append((sign, "most relevant first:\nhigh is good" if fill else "least relevant first:\nlow is good"))
    axis.set_yticks(range(len(rules)), [label(name) for name in rules])
    axis.set_ylim(len(rules) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"AOPC: loss of the {score(report)}, averaged over the curve")
    _legend(figure, handles)
    _save(figure, path)
    return True


def sanity(report: Mapping[str, Any], path: str | os.PathLike[str]) -> bool:
    """Draw how similar maps stay while weights are randomised from the output down (Adebayo et al. 2018).

    Else as `curves`.
    """
    rules = report.get("rules") or {}
    found = {name: (rule.get("sanity") or {}).get("layers") or [] for name, rule in rules.items()}
    layers = list(dict.fromkeys(entry["layer"] for entries in found.values() for entry in entries))
    if not layers:
        return False
    figure, axis = axes(height=5.2)
    handles = []
    for place, (name, entries) in enumerate(found.items()):
        if entries:
            x = np.array([layers.index(entry["layer"]) for entry in entries])
            similar = [entry.get("similarity") or {} for entry in entries]
            low, mean, high = (np.array([number(s.get(end)) for s in similar]) for end in ("low", "mean", "high"))
            style = style_of(place)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
            handles.append((axis.plot(x, mean, marker="o", markersize=5, linewidth=1.8, **style)[0], name))
    axis.axhline(0, color="#333333", linewidth=0.8)
    every = -(-len(layers) // 16)
    names = [layer if len(layer) <= 26 else f"…{layer[-25:]}" for layer in layers[::every]]
    axis.set_xticks(range(0, len(layers), every), [_plain(name) for name in names], rotation=40, ha="right")
    axis.set_xlabel("weights randomised from the output down to this layer")
    axis.set_ylabel("|rank correlation| with the map\nof the trained model")
    _legend(figure, handles)
    _save(figure, path)
    return True


def example_maps(
    directory: str | os.PathLike[str], index: int, image: np.ndarray | None, maps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Draw one sample and its maps, each as a picture of its own, for an entry of the report's `examples`.

    Heatmaps are red for the class and blue against it, white at 0, at full colour from the 99.5 % quantile of |R| on,
    and grey where relevance is not finite; all have one size. Rows of values become bars.

    Args:
        directory: The report's folder; the pictures go to `maps/` in it.
        index: Number of the sample, for the names of the files.
        image: The sample: [H, W] or [H, W, 1 | 3 | 4], bytes or numbers, or a row of feature values; None draws none.
            Of volumes, the mean over the axes in front.
        maps: By rule, relevance [H, W], or [features]; of volumes, the sum over the axes in front.

    Returns:
        `picture` (None without an image) and `maps`, by rule: paths relative to the directory, with forward slashes.

    Raises:
        RuntimeMissingError: matplotlib or Pillow isn't installed.
        OutputError: A picture can't be written.
    """
    maps = {rule: flatten(r, None) for rule, r in maps.items()}
    folder = Path(directory) / "maps"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder '{folder}': {error.strerror or error}") from error
    found: dict[str, Any] = {"picture": None, "maps": {}}
    size = next((r.shape for r in maps.values() if not _is_row(r)), None)
    if image is not None:
        while image.ndim > 3:
            image = image.mean(axis=0)
        name = f"{index:03d}-input.png"
        if _is_row(image):
            _bars(folder / name, image, signed=False)
        else:
            _picture(folder / name, _bytes(image), size or image.shape[:2])
        found["picture"] = f"maps/{name}"
    taken = {f"{index:03d}-input"}
    for rule, relevance in maps.items():
        stem = f"{index:03d}-{re.sub(r'[^A-Za-z0-9._=-]+', '_', rule)[:80]}"
        while stem.lower() in taken:
            stem += "_"
        taken.add(stem.lower())
        if _is_row(relevance):
            _bars(folder / f"{stem}.png", relevance)
        else:
            _picture(folder / f"{stem}.png", relevance, size or relevance.shape, heat=True)
        found["maps"][rule] = f"maps/{stem}.png"
    return found


def number(value: Any) -> float:
    """A number of the report; NaN where it was not measured."""
    return float("nan") if value is None else float(value)


def numbers(values: Sequence[float | None] | None) -> np.ndarray:
    """A list of them."""
    return np.array([] if values is None else values, np.float64)


def units(report: Mapping[str, Any]) -> str:
    """What is flipped, in words: pixels, squares of them, features or tokens."""
    flipping = report.get("flipping") or {}
    patch, unit = flipping.get("patch") or 1, flipping.get("unit") or "pixels"
    return f"{patch} × {patch} patches" if patch > 1 and unit == "pixels" else str(unit)


def score(report: Mapping[str, Any]) -> str:
    """What the curves show, in words."""
    return SCORES.get((report.get("flipping") or {}).get("score", ""), "mean score of the class")


def style_of(place: int) -> dict[str, str]:
    """Colour and line style of a rule, by its place among the rules; the same in every plot."""
    row, column = divmod(place, len(COLOURS))
    return {"color": COLOURS[column], "linestyle": STYLES[row % len(STYLES)]}


def label(name: str) -> str:
    """A rule's name in lines that are short enough for a legend."""
    lines = textwrap.wrap(name, 26, max_lines=3, placeholder="…") or [name]
    return _plain("\n".join(lines))


def _plain(text: str) -> str:
    """Text that matplotlib takes neither for formulas nor for a hidden label."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def axes(height: float = 4.4) -> tuple[Any, Any]:
    """A figure with one pair of axes.

    Args:
        height: In inches; the width is 9.

    Raises:
        RuntimeMissingError: matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeMissingError(MISSING) from error
    figure = Figure(figsize=(9, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    return figure, axis


def _legend(figure: Any, handles: Sequence[tuple[Any, str]]) -> None:
    names = [name if "\n" in name else label(name) for _, name in handles]
    figure.legend([handle for handle, _ in handles], names, loc="outside right upper", frameon=False, labelspacing=0.7)


def _is_row(values: np.ndarray) -> bool:
    return values.ndim < 2 or (values.ndim == 2 and 1 in values.shape)


def _bytes(image: np.ndarray) -> np.ndarray:
    """Pixels as bytes; numbers from 0 to 1 as they are, others with their own range stretched over it."""
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if image.dtype == np.uint8:
        return image
    values = np.nan_to_num(np.asarray(image, np.float64))
    if values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / (float(np.ptp(values)) or 1.0)
    return np.asarray(np.round(255 * values), np.uint8)


def _picture(path: Path, values: np.ndarray, size: Sequence[int], *, heat: bool = False) -> None:
    """Pixels, or relevance in colours, with pixels repeated so that small ones can be seen."""
    try:
        from matplotlib import colormaps
        from PIL import Image
    except ImportError as error:
        raise RuntimeMissingError(MISSING) from error
    if heat:
        finite = np.isfinite(values)
        scaled = np.clip(np.where(finite, values, 0) / symmetric_range(values), -1, 1)
        picture = Image.fromarray(np.where(finite, np.round(127 * scaled + 127), 255).astype(np.uint8)).convert("P")
        colours = np.round(255 * colormaps["bwr"].resampled(255)(np.arange(255))[:, :3]).astype(np.uint8)
        picture.putpalette([*colours.ravel().tolist(), 128, 128, 128])
    else:
        picture = Image.fromarray(values)
    times = -(-SIDE // max(size))
    picture = picture.resize((size[1] * times, size[0] * times), Image.Resampling.NEAREST)
    write(path, lambda part: picture.save(part, optimize=True))


def _bars(path: Path, values: np.ndarray, *, signed: bool = True) -> None:
    """Values as bars with the numbers of their features."""
    figure, axis = axes(2.6)
    figure.set_figwidth(3.4)
    row = np.nan_to_num(np.asarray(values, np.float64).ravel())
    colours: Any = np.where(row >= 0, "tab:red", "tab:blue") if signed else GREY
    axis.bar(np.arange(row.size), row, width=0.9, color=colours)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.grid(axis="x", visible=False)
    if row.size <= 13:
        axis.set_xticks(range(row.size))
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)
    if signed:
        limit = 1.05 * (float(np.abs(row).max(initial=0)) or 1.0)
        axis.set_ylim(-limit, limit)
    axis.set_xlabel("feature")
    axis.set_ylabel("relevance" if signed else "value")
    _save(figure, path)


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    write(path, lambda part: figure.savefig(part, dpi=150))


def write(path: str | os.PathLike[str], save: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file.
        save: Writes to the path that it is given, in the same folder and with the same ending.

    Raises:
        OutputError: It can't be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    try:
        save(part)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"can't write '{target}': {error.strerror or error}") from error
