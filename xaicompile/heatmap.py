"""Runs a compiled model on one photo or array, and writes its relevance as a picture or as numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from xaicompile import images, report
from xaicompile.checks import proto_of
from xaicompile.errors import ModelError, OutputError, RuleError
from xaicompile.runtime import Port, Session, adapt

ARGMAX = -1  # the target that stands for the largest output


def explain_file(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str | None = None,
    classes: str | os.PathLike[str] | None = None,
    preprocess: images.Preprocess | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Explain one photo or array with a compiled model.

    Args:
        model: The compiled model.
        source: A photo, or a `.npy` or `.npz` file (of which the first sample is drawn).
        output: A picture (the ending says which format), or `.npy` or `.npz` for the numbers of all samples.
        target: A class index, or a class name; None takes the model's default. For a model that gives several maps,
            as many with commas between.
        classes: Text file with the class names; None takes those in the model's metadata.
        preprocess: How to read a photo; None takes what the model's metadata remembers.
        device: `cpu` or `cuda`.

    Returns:
        What was explained: `target`, `class`, `score`, `softmax` (None where it makes no sense), `relevance_sum`,
        `title` and `output`; the first four and a title of their own under `maps`, if there are several.
    """
    session = Session(model, device=device)
    relevance = json.loads(session.metadata.get("xaicompile.relevance") or "{}")
    if session.metadata.get("xaicompile.pairs"):
        raise ModelError(f"{os.fspath(model)} compares two inputs; give two photos or arrays, one behind the other")
    if not relevance:
        raise ModelError(f"{os.fspath(model)} was not compiled by xaicompile: it has no relevance output")
    names = report.read_classes(classes, session.metadata)
    feed, pixels = feed_of(session, source, preprocess)
    maps = json.loads(session.metadata.get("xaicompile.maps", "null"))
    wanted = choose_targets(session, model, target, names, feed)
    result = session.run(feed)
    found = {key: np.asarray(result[value]) for key, value in relevance.items()}
    scores = [score(session, result, set(relevance.values()), t, names) for t in wanted or [ARGMAX]]
    facts = scores[0] if not maps else {"maps": scores, "title": "; ".join(s["title"] for s in scores)}
    explained, values = next(iter(found.items()))
    port = next(port for port in session.inputs if port.name == explained)
    sample, image = values[0], pixels
    if image is None and len(port.shape) == 4 and port.shape[1] in (1, 3, 4):
        image = as_image(feed[explained][0], 0)
    if Path(output).suffix.lower() in images.ARRAYS:
        save(output, found)
    else:
        drawn = [report.flatten(r, channels_of(port)) for r in (sample if maps else [sample])]
        report.draw(output, drawn, title=[str(s["title"]) for s in scores], image=image)
    return {"output": os.fspath(output), "relevance_sum": float(sample.sum(dtype=np.float64)), **facts}


def feed_of(
    session: Session, source: str | os.PathLike[str], preprocess: images.Preprocess | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The model's inputs, and the pixels if they were a photo."""
    if not images.is_array(source):
        if len(session.inputs) != 1:
            raise ModelError("the model has several inputs; give them by name in a .npz file")
        port = session.inputs[0]
        photo = images.read_photo(source, port.shape, port.dtype, preprocess or images.remembered(session.metadata))
        return {port.name: photo.values}, photo.pixels
    arrays = images.read_arrays(source)
    if isinstance(arrays, np.ndarray):
        port = session.inputs[0]
        arrays = arrays[None] if arrays.ndim == len(port.shape) - 1 else arrays
    return adapt(session, arrays), None


def choose_targets(
    session: Session,
    model: str | os.PathLike[str],
    target: str | None,
    names: Sequence[str] | None,
    feed: dict[str, np.ndarray],
) -> list[int] | None:
    """The targets of the first sample, one for each map, and fed if they were given; None where there is no such input.

    Raises:
        RuleError: No such class, another number of targets than of maps, or nothing to choose.
    """
    name = session.metadata.get("xaicompile.target", "")
    maps = json.loads(session.metadata.get("xaicompile.maps", "null"))
    if target is None:
        return default_targets(model, name) if name else None
    wanted = [class_index(part, names) for part in (target.split(",") if maps else [target])]
    if not name:
        raise RuleError("--target: this model explains a reduction of its output, not one element")
    if len(wanted) != (maps or 1):
        raise RuleError(f"--target: {len(wanted)} given, but the model gives {maps} maps a sample")
    feed[name] = np.array([wanted] if maps else wanted, np.int64)
    return wanted


def class_index(target: str, names: Sequence[str] | None) -> int:
    """A target given as an index or as a class name."""
    try:
        return int(target)
    except ValueError:
        pass
    if names is None:
        raise RuleError(f"--target {target}: the model has no class names; give an index, or the names with --classes")
    places = [i for i, name in enumerate(names) if name.lower() == target.lower()]
    if not places:
        import difflib

        near = difflib.get_close_matches(target, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RuleError(f"--target {target}: no such class{hint}")
    return places[0]


def default_targets(model: str | os.PathLike[str], name: str) -> list[int] | None:
    """The targets of the first sample that were chosen when the model was compiled."""
    for tensor in proto_of(model).graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor)
            return [int(v) for v in (values[0] if values.ndim > 1 else values[:1])]
    return None


def score(
    session: Session, result: dict[str, Any], ours: set[str], chosen: int, names: Sequence[str] | None
) -> dict[str, Any]:
    """Which class is explained (-1: the largest output, -2: the second largest), and how the model scores it."""
    explained = session.metadata.get("xaicompile.explain_output", "")
    floats = [
        port.name
        for port in session.outputs
        if port.name not in ours and port.dtype is not None and np.issubdtype(port.dtype, np.floating)
    ]
    name = explained if explained in floats else (floats[0] if floats else "")
    if not name or not session.metadata.get("xaicompile.target"):
        title = f"{explained or name}, reduced to one number"
        return {"target": None, "class": None, "score": None, "softmax": None, "title": title}
    values = np.asarray(result[name], np.float64)
    values = (values[0] if values.ndim > 1 else values).reshape(-1)
    index = int(np.argsort(-values, kind="stable")[-1 - chosen]) if -values.size <= chosen < 0 else chosen
    if not 0 <= index < values.size:
        raise RuleError(f"--target {index}: '{name}' has {values.size} values, so the target is 0 to {values.size - 1}")
    called = names[index] if names is not None and len(names) == values.size else None
    title = f"{called or name} ({index}), score {values[index]:.3g}"
    rewritten = session.metadata.get("xaicompile.neuralized", "")
    if rewritten in result:
        rewritten_values = np.asarray(result[rewritten])
        value = f"{rewritten} {rewritten_values[(0, index)[: rewritten_values.ndim]]:.3g}"
        title = value if values.size == 1 else f"{called or name} ({index}), {value}"
    probability = None
    if values.size > 1 and not (values.min() >= 0 and abs(values.sum() - 1) < 1e-3):
        powers = np.exp(values - values.max())
        probability = float(powers[index] / powers.sum())
        title += f", softmax {probability:.2f}"
    return {
        "target": index,
        "class": called,
        "score": float(values[index]),
        "softmax": probability,
        "title": title,
    }


def channels_of(port: Port) -> int | None:
    """Axis of the channels in one sample, None if there is none."""
    rank = len(port.shape)
    if rank == 4:
        try:
            return 0 if images.layout(port.shape) == "NCHW" else 2
        except ModelError:
            return 0
    return 0 if rank > 4 else None


def as_image(values: np.ndarray, channels: int) -> np.ndarray:
    """An input as grey or coloured pixels, its own range stretched to 0..1."""
    picture: np.ndarray = np.moveaxis(np.asarray(values, np.float64), channels, -1)
    span = float(np.ptp(picture)) or 1.0
    picture = (picture - picture.min()) / span
    return np.asarray(picture[..., 0] if picture.shape[-1] == 1 else picture[..., :3])


def save(path: str | os.PathLike[str], found: dict[str, np.ndarray]) -> None:
    """All samples' relevance, as numbers."""
    target = Path(path)
    if target.suffix.lower() == ".npy" and len(found) > 1:
        raise OutputError(f"{target}: there is relevance for {len(found)} inputs; write a .npz file")
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    try:
        if target.suffix.lower() == ".npy":
            np.save(part, next(iter(found.values())))
        else:
            np.savez_compressed(part, **dict(found))  # type: ignore[arg-type]
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"can't write {target}: {error.strerror or error}") from error
