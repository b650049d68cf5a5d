"""Runs a model that compares two inputs, and draws which regions make them similar: the picture of BiLRP."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile import heatmap, images, report
from xaicompile.errors import ModelError
from xaicompile.runtime import Port, Session, adapt

LINES = 100  # how many of the strongest connections are drawn
GAP = 0.08  # between the two images, in widths of the wider one
NAMED = 40  # rows and columns up to which each has its number beside it


def explain_pair(
    model: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    preprocess: images.Preprocess | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Compare two photos or arrays with a compiled model.

    Args:
        model: The compiled model, of a rule set that compares two inputs.
        sources: Two photos, or two `.npy` or `.npz` files (of which the first samples are drawn). The second `.npz`
            file names its arrays as the first, or as the model names its second inputs.
        output: A picture (the ending says which format), or `.npy` or `.npz` for the numbers of all samples.
        preprocess: How to read photos; None takes what the model's metadata remembers.
        device: `cpu` or `cuda`.

    Returns:
        `similarity`, `relevance_sum`, `title` and `output`.

    Raises:
        ModelError: The model compares no two inputs, or the sources don't fit it.
        RuntimeMissingError: A library for running or drawing isn't installed.
        OutputError: The output can't be written there.
    """
    session = Session(model, device=device)
    pairs = json.loads(session.metadata.get("xaicompile.pairs", "null"))
    if not pairs:
        raise ModelError(f"{os.fspath(model)} compares no two inputs; give one photo or array")
    feed: dict[str, np.ndarray] = {}
    pixels = []
    for source, names in zip(sources, ({x: x for x in pairs}, pairs), strict=True):
        given, picture = fed(session, source, names, preprocess)
        feed |= given
        pixels.append(picture)
    missing = [name for name in (*pairs, *pairs.values()) if name not in feed]
    if missing:
        raise ModelError(f"input '{missing[0]}' is missing (the model compares {in_words(pairs)})")
    result = session.run(adapt(session, feed))
    name = next(iter(json.loads(session.metadata.get("xaicompile.relevance", "{}")).values()), "relevance")
    outputs = [port.name for port in session.outputs]
    similarity = result[outputs[outputs.index(name) - 1]]
    relevance = np.asarray(result[name][0], np.float64)
    title = f"similarity {float(similarity[0]):.4g}"
    if Path(output).suffix.lower() in images.ARRAYS:
        many = {"similarity": similarity} if Path(output).suffix.lower() == ".npz" else {}
        heatmap.save(output, {"relevance": result[name], **many})
    else:
        draw_pair(output, relevance, session, title, pairs, feed, pixels)
    facts = {"similarity": float(similarity[0]), "relevance_sum": float(relevance.sum()), "title": title}
    return {"output": os.fspath(output), **facts}


def in_words(pairs: dict[str, str]) -> str:
    """Which inputs are compared with which."""
    return ", ".join(f"'{x}' with '{y}'" for x, y in pairs.items())


def fed(
    session: Session, source: str | os.PathLike[str], names: dict[str, str], preprocess: images.Preprocess | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """One side's inputs, and the pixels if they were a photo.

    Args:
        names: What the arrays of a file are called in the model.
    """
    port = port_of(session, next(iter(names.values())))
    if not images.is_array(source):
        if len(names) > 1:
            raise ModelError("the model has several inputs; give them by name in a .npz file")
        known = preprocess or images.remembered(session.metadata)
        photo = images.read_photo(source, port.shape, port.dtype, known)
        return {port.name: photo.values}, photo.pixels
    arrays = images.read_arrays(source)
    if isinstance(arrays, np.ndarray):
        return {port.name: arrays[None] if arrays.ndim == len(port.shape) - 1 else arrays}, None
    return {names.get(name, name): values for name, values in arrays.items()}, None


def port_of(session: Session, name: str) -> Port:
    """An input by name."""
    return next(port for port in (*session.inputs, *session.overridable) if port.name == name)


def draw_pair(
    path: str | os.PathLike[str],
    relevance: np.ndarray,
    session: Session,
    title: str,
    pairs: dict[str, str],
    feed: dict[str, np.ndarray],
    pixels: Sequence[np.ndarray | None],
) -> None:
    """The connections of two images, or the matrix of any other two inputs."""
    explained = json.loads(session.metadata.get("xaicompile.relevance", "{}"))
    first = next(iter(explained), next(iter(pairs)))
    ports = [port_of(session, name) for name in (first, pairs[first])]
    values = [feed[port.name][0] for port in ports]
    if ports[0].dtype is not None and ports[0].dtype.kind in "iu":
        draw_matrix(path, relevance, title, "token", [[str(v) for v in ids.ravel()] for ids in values])
        return
    channels = heatmap.channels_of(ports[0])
    if len(ports[0].shape) != 4 or channels is None:
        draw_matrix(path, relevance, title, "feature", [[str(i) for i in range(size)] for size in relevance.shape])
        return
    pool = int(json.loads(session.metadata["xaicompile.parameters"])["pool"])
    pictures = [heatmap.as_image(v, channels) if seen is None else seen for v, seen in zip(values, pixels, strict=True)]
    draw_lines(path, relevance, title, pictures, pool)


def draw_lines(
    path: str | os.PathLike[str], relevance: np.ndarray, title: str, pictures: Sequence[np.ndarray], pool: int
) -> None:
    """Two images side by side, and the strongest connections between their regions as lines.

    Red lines make the images similar, blue ones unlike; the stronger, the more opaque.

    Args:
        path: Where to write; the ending says the format.
        relevance: Of pairs of regions, [P, P'].
        title: Line above the picture.
        pictures: [H, W] or [H, W, channels] each.
        pool: Side of the regions, in pixels.
    """
    figure = report.new_figure(10.0, 5.4)
    from matplotlib.collections import LineCollection

    axis = figure.subplots()
    left = pictures[0].shape[1] + round(GAP * max(p.shape[1] for p in pictures))
    for picture, x in zip(pictures, (0, left), strict=True):
        height, width = picture.shape[:2]
        shown = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
        axis.imshow(shown, extent=(x, x + width, height, 0), alpha=0.75)
    strongest = np.argsort(-np.abs(relevance), axis=None, kind="stable")[:LINES][::-1]
    i, j = np.unravel_index(strongest, relevance.shape)
    values = relevance[i, j]
    starts, ends = centres(pictures[0], pool)[i], centres(pictures[1], pool)[j] + [left, 0]
    colours = np.zeros((len(values), 4))
    colours[:, 0], colours[:, 2] = values > 0, values < 0
    colours[:, 3] = np.abs(values) / (np.abs(values).max(initial=0.0) or 1.0)
    axis.add_collection(LineCollection(list(np.stack([starts, ends], 1)), colors=colours, linewidths=1.5))
    axis.set_xlim(0, left + pictures[1].shape[1])
    axis.set_ylim(max(p.shape[0] for p in pictures), 0)
    axis.axis("off")
    axis.set_title(f"{title}; the {len(values)} strongest connections (red: for, blue: against)")
    report.write(figure, path)


def centres(picture: np.ndarray, pool: int) -> np.ndarray:
    """The middle of each region, [P, 2] as x and y; regions at the edge may be cut off."""
    middles = [(np.arange(0, n, pool) + np.minimum(np.arange(0, n, pool) + pool, n)) / 2 for n in picture.shape[:2]]
    y, x = np.meshgrid(*middles, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def draw_matrix(
    path: str | os.PathLike[str], relevance: np.ndarray, title: str, kind: str, names: Sequence[Sequence[str]]
) -> None:
    """A matrix of pairs: rows for the first input's tokens or features, columns for the second's."""
    figure = report.new_figure(7.0, 6.0)
    axis = figure.subplots()
    report.draw_map(figure, axis, relevance)
    axis.axis("on")
    axis.set_title(title)
    for place, which, labels in ((axis.yaxis, "first", names[0]), (axis.xaxis, "second", names[1])):
        place.set_label_text(f"{kind}s of the {which} input")
        if len(labels) <= NAMED:
            turned = 90 if which == "second" and len(labels) > NAMED // 4 else 0
            place.set_ticks(np.arange(len(labels)), labels, fontsize="small", rotation=turned)
        else:
            place.get_major_locator().set_params(integer=True)
    report.write(figure, path)
