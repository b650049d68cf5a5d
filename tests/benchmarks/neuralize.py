"""Cost of explaining a kernel machine: time as a ratio to its score alone, and memory. Prints a table.

    python -m tests.benchmarks.neuralize [--vectors 10000] [--features 784] [--batch 64] [--threads 2] [--rounds 10]

Random support vectors. The score is the source model's; both take turns, the median of the ratios counts. Memory is
what a process holds at most (VmHWM) that loads a model and runs it once, less what it held with ONNX Runtime loaded and
no model (VmRSS); what the explanation adds counts. `--limits` fails where a limit is passed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from tests.kernel_machines import svm_node
from xaicompile.bench import bench
from xaicompile.compiler import compile_model
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.fresh import new_model
from xaicompile.neuralization import forms

RATIO, GIGABYTES = 4.0, 1.0


def density(vectors: np.ndarray, weights: np.ndarray, gamma: float) -> onnx.ModelProto:
    """The network that `neuralize` makes."""

    def make(b: Builder, x: list[Tensor]) -> dict[str, Tensor]:
        d = forms.squared_distances(b, x[0], b.const(vectors))
        return {"outlierness": forms.outlierness(b, d, gamma, weights)}

    kind = {"xaicompile.neuralize": "kde"}
    return new_model({"x": (np.dtype(np.float32), ("N", vectors.shape[1]))}, make, kind)  # type: ignore[arg-type]


def held(what: str) -> float:
    """Resident kilobytes of this process, now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))


def peak(path: str, shape: Sequence[int], threads: int, answer: multiprocessing.Queue[float]) -> None:
    """Puts the gigabytes that one run takes; for a process of its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    before = held("VmRSS")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})
    answer.put((held("VmHWM") - before) / 1e6)


def gigabytes(model: onnx.ModelProto, shape: Sequence[int], threads: int) -> float:
    """Peak memory of one run on an input of this shape, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        onnx.save(model, path)
        child = context.Process(target=peak, args=(path, shape, threads, answer))
        child.start()
        found = float(answer.get(timeout=900))
        child.join()
    return found


def main() -> None:
    """Print the table; with --limits exit with 1 if one is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=784)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    vectors = random.normal(size=(options.vectors, options.features)).astype(np.float32)
    weights = random.uniform(0.1, 1.0, options.vectors).astype(np.float32)
    gamma, missed = 1 / options.features, False
    print(f"{options.vectors} support vectors, {options.features} features, batch {options.batch}\n")
    print("| model | pool | score, ms | explained, ms | ratio | quartiles | score, GB | explained, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in {"SVMRegressor": partial(svm_node, rho=0.5), "made by neuralize": density}.items():
        source = make(vectors, weights, gamma)
        own = gigabytes(source, (options.batch, options.features), options.threads)
        for pool in ("v-out", "v-act"):
            made = compile_model(source, "lrp-gamma", neuralize="auto", pool=pool).model
            r = bench(made, source, threads=options.threads, rounds=options.rounds, batch=options.batch)
            most = gigabytes(made, (options.batch, options.features), options.threads)
            missed |= options.limits and (r.ratio > RATIO or most - own > GIGABYTES)
            times = f"{r.source_ms:.1f} | {r.explained_ms:.1f} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f}"
            print(f"| {name} | {pool} | {times} | {own:.2f} | {most:.2f} |", flush=True)
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
