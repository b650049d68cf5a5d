"""What an explanation costs: is the prediction still the same, and how much file, memory and time does it take?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from xaicompile.bench import bench
from xaicompile.checks import ModelLike, _difference
from xaicompile.compiler import Compiled
from xaicompile.errors import ModelError
from xaicompile.runtime import Session, adapt


def overhead(
    explained: Compiled,
    source: ModelLike,
    feed: np.ndarray | Mapping[str, np.ndarray],
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Compares an emitted model with its source on one input.

    Args:
        explained: The emitted model.
        source: The model that it was compiled from.
        feed: The source's inputs by name, or an array for its only input.
        device: `cpu` or `cuda`.
        threads: CPU threads inside an operator; ONNX Runtime's choice if None.

    Returns:
        `identical`: whether all outputs of the source are bit-identical; `difference`: the largest difference relative
        to an output's largest value; `source_bytes` and `growth_bytes`: size of the source file (without external
        data) and by how much it grows; `peak_bytes` and `source_peak_bytes`: the most main memory that a process held
        which loaded the model and ran it twice; `library_bytes`: what it held before; `memory_ratio`: the quotient of
        the peaks, each less what the libraries hold. Memory is None where the system does not tell it.

    Raises:
        ModelError: One of the models does not run.
    """
    base = None if explained.base_dir is None else str(explained.base_dir)
    theirs = Session(source, device=device, threads=threads, base_dir=base)
    ours = Session(explained.model, device=device, threads=threads, base_dir=base)
    inputs = adapt(theirs, feed)
    expected, found = theirs.run(inputs), ours.run(inputs)
    difference = max((_difference(value, found[name]) for name, value in expected.items()), default=0.0)
    del theirs, ours
    with TemporaryDirectory() as folder:
        where = Path(folder)
        path, own = _file(source, where / "source.onnx"), _file(explained.model, where / "explained.onnx")
        np.savez(where / "feed.npz", **_plain(inputs))
        size, growth = path.stat().st_size, own.stat().st_size - path.stat().st_size
        options = ["--device", device, *([] if threads is None else ["--threads", str(threads)])]
        elsewhere = [] if base is None else ["--base-dir", base]
        before = _peaks(path, where, [*options, *([] if isinstance(source, str | os.PathLike) else elsewhere)])
        after = _peaks(own, where, [*options, *elsewhere])
    own_peak, source_peak = (
        None if found["peak"] is None else found["peak"] - (found["libraries"] or 0) for found in (after, before)
    )
    return {
        "identical": difference == 0,
        "difference": difference,
        "source_bytes": size,
        "growth_bytes": growth,
        "peak_bytes": after["peak"],
        "source_peak_bytes": before["peak"],
        "library_bytes": before["libraries"],
        "memory_ratio": own_peak / source_peak if own_peak and source_peak else None,
    }


def _file(model: ModelLike, path: Path) -> Path:
    """The model as a file: its own, or `path`."""
    if isinstance(model, str | os.PathLike):
        return Path(model)
    path.write_bytes(model.SerializeToString() if isinstance(model, onnx.ModelProto) else model)
    return path


def _plain(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Inputs that are saved without pickling: text has a type of its own."""
    return {name: value.astype(str) if value.dtype == object else value for name, value in inputs.items()}


def _peaks(model: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """What `xaicompile.evaluation.peak` prints."""
    command = [sys.executable, "-m", "xaicompile.evaluation.peak", str(model), str(folder / "feed.npz"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise ModelError(f"the process that measures memory failed: {reason}")
    peaks: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def runtime(
    explained: Compiled,
    source: ModelLike,
    *,
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    rounds: int = 20,
) -> dict[str, float]:
    """Time of an emitted model as a ratio to its source, on random inputs, in turn (see `xaicompile.bench`).

    Args:
        explained: The emitted model.
        source: The model that it was compiled from.
        device: `cpu` or `cuda`.
        threads: CPU threads inside an operator; ONNX Runtime's choice if None.
        batch: Length of the batch axis where it is free.
        rounds: How often each is timed.

    Returns:
        `ratio`: the median over the rounds, with the quartiles `low` and `high`; `source_ms` and `explained_ms`:
        medians in milliseconds.

    Raises:
        ModelError: A model does not run, or takes no random input.
    """
    found = bench(
        explained.model,
        source,
        base_dir=explained.base_dir,
        device=device,
        threads=threads,
        batch=batch,
        rounds=rounds,
    )
    return {key: getattr(found, key) for key in ("ratio", "low", "high", "source_ms", "explained_ms")}
