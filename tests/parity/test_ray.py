"""The Ray engine of `xaicompile evaluate` gives what the plain one gives, also when a worker is killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.nets import cnn
from xaicompile.evaluation.flipping import Flipping
from xaicompile.evaluation.plan import Compared, Plan
from xaicompile.evaluation.run import evaluate

pytest.importorskip("ray.data")
pytestmark = pytest.mark.parity


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Thirty blocks, one sample of which can't be read."""
    images = np.random.default_rng(0).normal(size=(120, 3, 12, 12)).astype(np.float32)
    images[7, 0, 0, 0] = np.nan
    onnx.save(cnn(), tmp_path / "cnn.onnx")
    np.save(tmp_path / "x.npy", images)
    rules = (Compared("LRP", "lrp-gamma"), Compared("IG", "integrated-gradients", {"steps": 4}))
    flipping = Flipping(steps=20)
    return Plan(str(tmp_path / "cnn.onnx"), rules, str(tmp_path / "x.npy"), flipping=flipping, batch=4, random_seeds=2)


def workers() -> list[int]:
    """Processes of Ray's actors."""
    found = subprocess.run(["pgrep", "-f", "ray::MapWorker"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="finds the worker with pgrep")
def test_a_killed_worker_loses_nothing(plan: Plan, tmp_path: Path) -> None:
    quick = {"costs": False, "checks": False, "examples": 0}
    local = evaluate(plan, tmp_path / "local", **quick)
    killed, times = [], {}

    def watched(blocks: Iterator[int], total: int) -> Iterator[int]:
        for block in blocks:
            done = list((tmp_path / "ray" / "blocks").glob("*.parquet"))
            if not killed and len(done) < total and workers():
                times.update({path: path.stat().st_mtime_ns for path in done})
                killed.append(workers()[0])
                os.kill(killed[0], signal.SIGKILL)
            yield block

    ray = evaluate(plan, tmp_path / "ray", by="ray", workers=2, progress=watched, **quick)
    assert killed and times and len(list((tmp_path / "ray" / "blocks").glob("*.parquet"))) == 30
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    for key in ("samples", "skipped", "rules", "random", "leaders", "x"):
        assert ray[key] == local[key], key
    assert ray["samples"] == 119
