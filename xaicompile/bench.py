"""What does the explanation cost? The emitted model's time as a ratio to the source model's."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xaicompile.checks import ModelLike, accepted
from xaicompile.errors import ModelError
from xaicompile.runtime import Session, version


@dataclass(frozen=True)
class Bench:
    """Times in milliseconds, sizes in bytes. `low` and `high` are the quartiles of the ratio over the rounds."""

    device: str
    runtime: str
    threads: int | None
    batch: int
    rounds: int
    source_ms: float
    explained_ms: float
    ratio: float
    low: float
    high: float
    source_bytes: int
    explained_bytes: int
    source_load_ms: float
    explained_load_ms: float

    @property
    def growth(self) -> int:
        """By how many bytes the file grows."""
        return self.explained_bytes - self.source_bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"growth_bytes": self.growth}


def bench(
    explained: ModelLike,
    source: ModelLike,
    *,
    base_dir: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    rounds: int = 20,
    warmup: int = 3,
    seed: int = 0,
) -> Bench:
    """Time an emitted model against its source, in turn, so that a busy machine slows down both.

    Args:
        explained: The emitted model.
        source: The model that it was compiled from.
        base_dir: Folder of the external data, for models that are not given as paths.
        device: `cpu` or `cuda`; on `cuda`, inputs and outputs stay on the device.
        threads: CPU threads inside an operator; ONNX Runtime's choice if None.
        batch: Length of the batch axis where it is dynamic.
        rounds: How often each model is timed.
        warmup: Rounds before those that count.
        seed: Of the random inputs.
    """
    theirs, source_load = _load(source, base_dir, device, threads)
    ours, explained_load = _load(explained, base_dir, device, threads)
    feeds, _ = accepted(theirs, ours.metadata, seed, batches=(batch,))
    if not feeds:
        raise ModelError("found no random input that the model accepts")
    feed = feeds[0]
    run_theirs, run_ours = theirs.bind(feed), ours.bind(feed)
    times: list[tuple[float, float]] = []
    for number in range(warmup + rounds):
        if number % 2:
            second = _time(run_ours)
            first = _time(run_theirs)
        else:
            first = _time(run_theirs)
            second = _time(run_ours)
        times.append((first, second))
    times = times[warmup:]
    ratios = np.array([second / first for first, second in times])
    return Bench(
        device=device,
        runtime=version(),
        threads=threads,
        batch=max((len(value) for value in feed.values() if value.ndim), default=1),
        rounds=rounds,
        source_ms=statistics.median(first for first, _ in times),
        explained_ms=statistics.median(second for _, second in times),
        ratio=float(np.median(ratios)),
        low=float(np.quantile(ratios, 0.25)),
        high=float(np.quantile(ratios, 0.75)),
        source_bytes=_size(source),
        explained_bytes=_size(explained),
        source_load_ms=source_load,
        explained_load_ms=explained_load,
    )


def _time(run: Any) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _load(model: ModelLike, base_dir: Path | None, device: str, threads: int | None) -> tuple[Session, float]:
    start = time.perf_counter()
    session = Session(model, device=device, threads=threads, base_dir=base_dir)
    return session, (time.perf_counter() - start) * 1e3


def _size(model: ModelLike) -> int:
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return len(model) if isinstance(model, bytes) else Path(model).stat().st_size
