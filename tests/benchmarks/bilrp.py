"""Cost of BiLRP on VGG-11's features: time in predictions, against a loop of LRP passes, and memory. Prints a table.

    python -m tests.benchmarks.bilrp [--units 64] [--chunks 1,4,16] [--size 224] [--threads 2] [--rounds 3]

Random weights, features averaged over all positions (512 units, of which --units random projections are explained).
Needs torch and torchvision (the `parity` extra). A prediction is one of the encoder for one image. The loop runs a
model that explains one unit once for each unit and image; four of its passes are timed and the rest reckoned. Memory
is what a process holds at most that runs the model, less what it holds with ONNX Runtime loaded and no model.
`--limits` fails where a limit is passed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from xaicompile.compiler import compile_model
from xaicompile.runtime import Session

COST, LOOP, GROWTH = 1.3, 2.0, 1e6  # times 2 M + 4 predictions; times faster than the loop; bytes


def encoder(size: int) -> bytes:
    """VGG-11's features, averaged over positions, [N, 512], with seeded random weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    features = torchvision.models.vgg11(weights=None).features
    module = torch.nn.Sequential(features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, size, size),), file, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return file.getvalue()


def seconds(session: Session, feed: dict[str, np.ndarray], rounds: int) -> float:
    """Median time of one run, behind one that does not count."""
    session.run(feed)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        session.run(feed)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gigabytes(model: bytes, feed: dict[str, np.ndarray], threads: int) -> float:
    """Peak memory of a process that runs the model, beside that of the libraries."""
    with TemporaryDirectory() as folder:
        path, values = Path(folder) / "model.onnx", Path(folder) / "feed.npz"
        path.write_bytes(model)
        np.savez(values, **feed)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "xaicompile.evaluation.peak", str(path), str(values)]
        done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return float(found["peak"] - found["libraries"]) / 1e9


def main() -> None:
    """Print the table; with --limits exit with 1 if one is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--chunks", default="1,4,16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pool", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    units, source, missed = options.units, encoder(options.size), False
    x, other = np.random.default_rng(0).standard_normal((2, 1, 3, options.size, options.size)).astype(np.float32)
    prediction = Session(source, threads=options.threads)
    single = Session(compile_model(source, "lrp-gamma").model, threads=options.threads)
    one = seconds(prediction, {"x": x}, 10)
    loop = seconds(single, {"x": x, "target": np.array([7])}, 4) * 2 * units
    limit = COST * (2 * units + 4)
    print(f"VGG-11, {units} units, {options.size} pixels, prediction {one * 1e3:.1f} ms")
    print(
        f"loop of {2 * units} LRP passes: {loop:.2f} s, {loop / one:.0f} predictions; limit {limit:.0f} predictions\n"
    )
    print("| chunk | seconds | predictions | against the loop | memory, GB | growth, kB |")
    print("|---|---|---|---|---|---|")
    for chunk in (int(part) for part in options.chunks.split(",")):
        made = compile_model(source, "bilrp", pool=options.pool, project=units, chunk=chunk).model.SerializeToString()
        feed, growth = {"x": x, "other": other}, len(made) - len(source)
        session = Session(made, threads=options.threads)
        ours, again = seconds(session, feed, options.rounds), seconds(prediction, {"x": x}, 5)
        del session
        ratio = ours / statistics.mean([one, again])
        missed |= growth > GROWTH or (chunk == 1 and (ratio > limit or ours * LOOP > loop))
        memory = gigabytes(made, feed, options.threads)
        print(
            f"| {chunk} | {ours:.2f} | {ratio:.0f} | {loop / ours:.2f} | {memory:.2f} | {growth / 1e3:.0f} |",
            flush=True,
        )
    raise SystemExit(int(missed and options.limits))


if __name__ == "__main__":
    main()
