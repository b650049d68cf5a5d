"""Both engines of `xaicompile evaluate` on the same images; one of Ray's workers is killed on the way. Prints a table.

    python -m tests.benchmarks.engines --data fashion.npz [--model models/fashion.onnx] [--samples 10000]

`python models/fashion_data.py --count 10000 fashion.npz` makes the images. What has to be: the same report, number
by number, every block once, and no block done again that was finished when the worker died.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RULES = ("lrp-gamma", "integrated-gradients:steps=8", "random")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="models/fashion.onnx")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    reports = {}
    print("| engine | samples | blocks | s | worker killed after | blocks done again |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("local", "ray"):
            output = Path(folder) / name
            start = time.perf_counter()
            process = subprocess.Popen(command(options, name, output), stdout=subprocess.DEVNULL)
            done = killed(process, output / "blocks") if name == "ray" else {}
            if process.wait():
                raise SystemExit(f"{name}: exit code {process.returncode}")
            seconds = time.perf_counter() - start
            again = sum(path.stat().st_mtime_ns != then for path, then in done.items())
            reports[name] = json.loads((output / "report.json").read_text())
            blocks = len(list((output / "blocks").glob("*.parquet")))
            print(f"| {name} | {reports[name]['samples']} | {blocks} | {seconds:.0f} | {len(done) or ''} | {again} |")
    same = [
        reports["local"][key] == reports["ray"][key] for key in ("samples", "rules", "random", "leaders", "accuracy")
    ]
    print(f"\nThe same numbers: {'yes' if all(same) else 'no'}")


def command(options: argparse.Namespace, engine: str, output: Path) -> list[str]:
    """The command line of one engine."""
    rules = [part for rule in RULES for part in ("--rule", rule)]
    few = ["--set", f"steps={options.steps}", "--samples", str(options.samples), "--batch", str(options.batch)]
    quiet = [
        "--random-seeds",
        "2",
        "--no-costs",
        "--no-sanity",
        "--threads",
        "1",
        "--engine",
        engine,
        "-o",
        str(output),
    ]
    return [sys.executable, "-m", "xaicompile", "evaluate", options.model, "--data", options.data, *rules, *few, *quiet]


def killed(process: subprocess.Popen[bytes], blocks: Path) -> dict[Path, int]:
    """Kills a worker once blocks are there; the blocks that were done, and when."""
    while process.poll() is None:
        done = {path: path.stat().st_mtime_ns for path in blocks.glob("*.parquet")} if blocks.is_dir() else {}
        workers = subprocess.run(["pgrep", "-f", "ray::MapWorker"], capture_output=True, text=True).stdout.split()
        if len(done) >= 10 and workers:
            os.kill(int(workers[0]), signal.SIGKILL)
            return done
        time.sleep(0.2)
    return {}


if __name__ == "__main__":
    main()
