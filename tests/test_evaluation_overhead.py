"""What an explanation costs: the prediction's bits, file size, and the peak memory of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graphs import data, net, run, weight
from tests.nets import cnn, external
from xaicompile.compiler import Compiled, compile_model
from xaicompile.errors import ModelError
from xaicompile.evaluation import overhead as module
from xaicompile.evaluation import peak
from xaicompile.evaluation.overhead import overhead, runtime

IMAGES = data(2, 3, 12, 12)
MEGABYTE = 2**20


def changed(made: Compiled, name: str, by: float) -> Compiled:
    """The emitted model with one weight multiplied."""
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(by), name))
    return replace(made, model=model)


def test_the_same_prediction_and_the_growth_of_the_file(tmp_path: Path) -> None:
    """Sizes are those of the files; the peaks of both processes are real, and the ratio is theirs."""
    source, made = tmp_path / "cnn.onnx", tmp_path / "explained.onnx"
    onnx.save(cnn(), source)
    compiled = compile_model(source, "lrp-gamma")
    compiled.save(made)
    found = overhead(compiled, source, IMAGES, threads=1)
    assert found["identical"] is True
    assert found["difference"] == 0
    assert found["source_bytes"] == source.stat().st_size
    assert found["growth_bytes"] == made.stat().st_size - source.stat().st_size > 0
    assert 20 * MEGABYTE < found["library_bytes"] < found["source_peak_bytes"] - MEGABYTE < 400 * MEGABYTE
    ours, theirs = found["peak_bytes"] - found["library_bytes"], found["source_peak_bytes"] - found["library_bytes"]
    np.testing.assert_allclose(found["memory_ratio"], ours / theirs, rtol=0.25)  # what libraries hold varies a little


def test_another_prediction_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest difference over all outputs, relative to the output's largest value."""
    monkeypatch.setattr(module, "_peaks", lambda *_: {"libraries": 1, "peak": 2})
    two = net(
        "(float[N,4] x) => (float[N,3] y, float[N,2] z)",
        "y = MatMul(x, v) z = MatMul(x, w)",
        v=weight(4, 3),
        w=weight(4, 2),
    )
    x, made = {"x": data(2, 4)}, changed(compile_model(two, "gradient"), "w", 1.5)
    found = overhead(made, two, x, threads=1)
    assert found["identical"] is False
    before, after = (run(model, x)["z"].astype(np.float64) for model in (two, made.model))
    assert found["difference"] == pytest.approx(abs(after - before).max() / abs(before).max(), rel=1e-6)
    assert found["difference"] == pytest.approx(0.5, rel=1e-5)


def test_memory_is_that_of_the_model() -> None:
    """A model that makes 64 MB in between needs that much more, at most twice: the runtime takes powers of two."""
    small = net("(float[N,4] x) => (float[N,4] y)", "y = Relu(x)")
    large = net(
        "(float[N,4] x) => (float[N,4] y)",
        """
        many = Constant<value = int64[1] {16777216}>()
        sum = ReduceSum<keepdims = 0>(x)
        wide = Expand(sum, many)
        top = ReduceMax<keepdims = 0>(wide)
        y = Add(x, top)
        """,
    )
    found = overhead(Compiled(large), small, data(2, 4), threads=1)
    assert 60 * MEGABYTE < found["peak_bytes"] - found["source_peak_bytes"] < 160 * MEGABYTE
    assert found["source_peak_bytes"] - found["library_bytes"] < 40 * MEGABYTE


def test_external_data(tmp_path: Path) -> None:
    """Weights stay in their file, from another working directory too."""
    path = external(tmp_path)
    found = overhead(compile_model(path, "lrp-gamma"), path, IMAGES, threads=1)
    assert found["identical"]
    assert found["source_bytes"] == path.stat().st_size
    assert found["peak_bytes"] > 20 * MEGABYTE


@pytest.mark.skipif(not peak.STATUS.exists(), reason="needs /proc")
def test_the_peak_is_the_process_s_own() -> None:
    """A parent that holds 1 GB does not show in its child's peak, though it does in the child's ru_maxrss."""
    child = "import resource; from xaicompile.evaluation import peak; "
    child += "print(peak.peak_bytes(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    parent = f"""
    import subprocess, sys
    held = bytearray(10**9)
    held[::4096] = b"x" * len(held[::4096])
    print(subprocess.run([sys.executable, "-c", {child!r}], check=True, capture_output=True, text=True).stdout)
    from xaicompile.evaluation import peak
    del held
    print(peak.peak_bytes())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(parent)], check=True, capture_output=True, text=True)
    own, inherited, parents = (int(number) for number in done.stdout.split())
    assert parents > 10**9
    assert inherited > 9 * 10**8, "the reason for reading VmHWM is gone"
    assert 10 * MEGABYTE < own < 300 * MEGABYTE


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ru_maxrss elsewhere, in bytes on macOS; None without `resource`."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(peak, "STATUS", tmp_path / "none")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(peak.sys, "platform", "freebsd")
    assert peak.peak_bytes() == largest * 1024
    monkeypatch.setattr(peak.sys, "platform", "darwin")
    assert peak.peak_bytes() == largest
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak.peak_bytes() is None


def test_without_memory_there_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is told."""
    monkeypatch.setattr(module, "_peaks", lambda *_: {"libraries": None, "peak": None})
    found = overhead(compile_model(cnn(), "gradient"), cnn(), IMAGES, threads=1)
    assert found["identical"]
    assert (found["peak_bytes"], found["source_peak_bytes"], found["memory_ratio"]) == (None, None, None)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_child_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line, the child's last."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho 'no memory left' >&2\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ModelError, match=r"measures memory failed: no memory left$"):
        overhead(compile_model(cnn(), "gradient"), cnn(), IMAGES, threads=1)


def test_run_time() -> None:
    """The gradient of a network costs more than its prediction; quartiles hold the median."""
    found = runtime(compile_model(cnn(), "gradient"), cnn(), threads=1, batch=8, rounds=5)
    assert set(found) == {"ratio", "low", "high", "source_ms", "explained_ms"}
    assert 1 < found["low"] <= found["ratio"] <= found["high"]
    assert 0 < found["source_ms"] < found["explained_ms"]
