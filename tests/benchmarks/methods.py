"""Methods: file size, memory and time of integrated gradients and occlusion, beside captum's. Prints tables.

    python tests/benchmarks/methods.py [--models resnet50] [--steps 32] [--many 512] [--rounds 3] [--limits]

Random weights, batch 1, ONNX Runtime and torch on the CPU. Needs Linux (a process's memory is read from /proc) and the
`parity` extra. A method's time is a ratio to that of the prediction in the same runtime, which is timed before and
after it in each round; with `--threads 1` the processor's seconds count, which hold on a busy machine too. `--limits`
fails where a limit is passed. With the defaults it takes about ten minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.speed import exported
from xaicompile.compiler import compile_model
from xaicompile.runtime import Session, version

SIZE, WINDOW, STRIDE = 224, 32, 16
WINDOWS = (1 + (SIZE - WINDOW) // STRIDE) ** 2
GROWTH_MB = 1.0
MEMORY = 4.0  # times the gradient's
SAME = 1.15  # times the memory with few steps, for many steps: what one run differs from the next
STEP = 2.2  # predictions that a step of integrated gradients may cost
PLACE = 1.05  # predictions that a window of an occlusion may cost
IG = "integrated-gradients"

Run = Callable[[], Any]


def an_input() -> np.ndarray:
    """One image of random numbers."""
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def in_torch(name: str, steps: int, threads: int) -> dict[str, Run]:
    """What the exported model was, in torch: its prediction, its gradient, and captum's explanations."""
    import torch
    import torchvision
    from captum.attr import IntegratedGradients, Occlusion

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, x = torchvision.models.get_model(name, weights=None).eval(), torch.from_numpy(an_input())
    predict = torch.no_grad()(lambda: module(x))

    def integrated(batch: int | None) -> Any:  # at the points that ours are taken at
        options = {"n_steps": steps, "method": "riemann_middle", "internal_batch_size": batch}
        return IntegratedGradients(module).attribute(x, target=int(predict().argmax()), **options)

    def occluded() -> Any:
        window, stride = (3, WINDOW, WINDOW), (3, STRIDE, STRIDE)
        return Occlusion(module).attribute(x, window, stride, target=int(predict().argmax()), perturbations_per_eval=1)

    def gradient() -> Any:
        at = x.clone().requires_grad_()
        return torch.autograd.grad(module(at).max(), at)

    return {
        "prediction": predict,
        "gradient": gradient,
        f"{IG}, internal_batch_size=1": lambda: integrated(1),
        f"{IG}, default batch (all)": lambda: integrated(None),
        "occlusion, perturbations_per_eval=1": torch.no_grad()(occluded),
    }


def resident(key: str = "VmRSS") -> float:
    """Memory of this process in MB: VmRSS, what it holds now; VmHWM, the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024 / 1e6


def child(what: str, model: str, steps: int, threads: int) -> None:
    """In a process of its own: loads, runs once, and prints by how much its peak is above what the imports took."""
    if what == "file":
        import onnxruntime  # noqa: F401

        before = resident()
        Session(model, threads=threads).run({"x": an_input()})
    else:
        import captum.attr  # noqa: F401
        import torchvision  # noqa: F401

        before = resident()
        in_torch(model, steps, threads)[what]()
    print(resident("VmHWM") - before)


def cell(value: float, limit: float | None) -> str:
    """A number and its limit."""
    return f"{value:.2f}" if limit is None else f"{value:.2f} (<= {limit:g}{'' if value <= limit else ', MISSED'})"


def size_table(name: str, files: dict[str, Path]) -> bool:
    """Prints sizes; True if a limit is passed."""
    print("\n| model | explanation | file, MB | growth over the source, MB | growth over gradient's file, MB |")
    print("|---|---|---|---|---|")
    sizes = {what: path.stat().st_size / 1e6 for what, path in files.items()}
    for what, size in sizes.items():
        limit = GROWTH_MB if "," in what else None
        over = [cell(size - sizes[other], limit) for other in ("prediction", "gradient")]
        print(f"| {name} | {what} | {size:.2f} | {over[0]} | {over[1]} |", flush=True)
    return max(sizes.values()) - sizes["prediction"] > GROWTH_MB


def memory_table(name: str, files: dict[str, Path], steps: int, threads: int) -> bool:
    """Prints memory; True if a limit is passed."""
    print(
        "\nPeak memory: the most resident memory (VmHWM) of a process that loads the model and runs it once, minus its"
    )
    print(
        "resident memory (VmRSS) after the imports. captum takes fewer steps: one by one, memory is the same for any."
    )
    print("\n| model | runtime | explanation | peak memory, MB | ratio to the gradient in the same runtime |")
    print("|---|---|---|---|---|")
    peaks: dict[str, float] = {}
    theirs = ("prediction", "gradient", f"{IG}, internal_batch_size=1", f"{IG}, default batch (all)")
    ours = [("ONNX Runtime", what, "file", str(path)) for what, path in files.items() if "occlusion" not in what]
    for runtime, what, kind, model in [*ours, *(("torch", what, what, name) for what in theirs)]:
        arguments = ["--child", kind, "--models", model, "--steps", str(steps), "--threads", str(threads)]
        command = [sys.executable, "-W", "ignore", __file__, *arguments]
        peak = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        base = peaks.setdefault(f"{runtime} gradient", peak) if what != "prediction" else None
        mine = kind == "file" and what.startswith(IG)
        label = f"{what}, {steps} steps (captum)" if what in theirs[2:] else what
        ratio = "" if base is None else cell(peak / base, MEMORY if mine else None)
        print(f"| {name} | {runtime} | {label} | {peak:.0f} | {ratio} |", flush=True)
        if mine:
            peaks[what] = peak
    found = [p for what, p in peaks.items() if what.startswith(IG)]
    print(f"\nThe many steps need {cell(found[-1] / found[0], SAME)} times the memory of the few.")
    return max(found) / peaks["ONNX Runtime gradient"] > MEMORY or found[-1] / found[0] > SAME


def seconds(run: Run, clock: Callable[[], float]) -> float:
    """The time of one run."""
    start = clock()
    run()
    return clock() - start


@dataclass
class Timed:
    """A run, the prediction in its runtime, how many predictions it should cost, and the limit on them."""

    runtime: str
    what: str
    predict: Run
    run: Run
    worth: int
    clock: Callable[[], float]
    limit: float | None = None
    times: list[tuple[float, float]] = field(default_factory=list)

    def once(self) -> None:
        """Times a run, and predictions before and after it, each an eighth as many as the run is worth."""
        first, ran, last = self.predicted(), seconds(self.run, self.clock), self.predicted()
        self.times.append(((first + last) / 2, ran))
        print(f"{self.runtime}, {self.what}: {ran / self.times[-1][0]:.1f}", file=sys.stderr, flush=True)

    def predicted(self) -> float:
        """Mean seconds of a prediction, after one that does not count."""
        self.predict()
        return statistics.mean(seconds(self.predict, self.clock) for _ in range(max(2, self.worth // 8)))


def time_table(name: str, files: dict[str, Path], steps: int, threads: int, rounds: int) -> bool:
    """Prints times; True if a limit is passed."""
    clock, unit = (time.process_time, "processor") if threads == 1 else (time.perf_counter, "clock")
    print(f"\n{threads} threads, seconds of the {unit}, {rounds} rounds, all in turn. Predictions: the same runtime's.")
    print("\n| model | runtime | explanation | prediction, ms | explained, s | ratio, median | lowest to highest |")
    print("|---|---|---|---|---|---|---|")
    theirs, ours, timed = in_torch(name, steps, threads), f"ONNX Runtime {version()}", list[Timed]()
    predict, *runs = (
        (what, Session(path, threads=threads).bind({"x": an_input()}))
        for what, path in files.items()
        if what in ("prediction", f"{IG}, {steps} steps") or "occlusion" in what
    )
    for what, run in runs:
        worth, limit = (2 * steps, STEP * steps) if what.startswith(IG) else (WINDOWS, PLACE * WINDOWS)
        timed.append(Timed(ours, what, predict[1], run, worth, clock, limit))
        for label, other in theirs.items():
            if label.split(",")[0] == what.split(",")[0]:
                label = f"{what}, {label.split(', ')[1]}"
                timed.append(Timed("captum", label, theirs["prediction"], other, worth, clock))
    for _ in range(rounds):
        for row in timed:
            row.once()
    missed = False
    for row in timed:
        ratios = [ran / one for one, ran in row.times]
        one, ran, ratio = (statistics.median(v) for v in (*zip(*row.times, strict=True), ratios))
        missed |= row.limit is not None and ratio > row.limit
        cells = f"{one * 1e3:.0f} | {ran:.2f} | {cell(ratio, row.limit)} | {min(ratios):.1f} to {max(ratios):.1f}"
        print(f"| {name} | {row.runtime} | {row.what} | {cells} |", flush=True)
    return missed


def files_of(name: str, folder: Path, steps: int, many: int) -> dict[str, Path]:
    """Exports and compiles a model."""
    source, files = folder / f"{name}.onnx", dict[str, Path]()
    source.write_bytes(exported(name))
    wanted: dict[str, tuple[str, dict[str, Any]]] = {"gradient": ("gradient", {})}
    wanted |= {f"{IG}, {n} steps": (IG, {"steps": n}) for n in (steps, many)}
    wanted |= {f"occlusion, {WINDOWS} windows": ("occlusion", {"window": WINDOW, "stride": STRIDE})}
    for i, (what, (rule, parameters)) in enumerate(wanted.items()):
        files[what] = folder / f"{i}.onnx"
        compile_model(source, rule, parameters=parameters).save(files[what])
    return {"prediction": source, **files}


def main() -> None:
    """Print the tables; with --limits exit with 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50")
    parser.add_argument("--steps", type=int, default=32, help="of integrated gradients, to be timed")
    parser.add_argument("--many", type=int, default=512, help="steps of integrated gradients whose memory is measured")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed; 0: not at all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limits", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.models, options.steps, options.threads)
        return
    missed = False
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            files = files_of(name, Path(folder), options.steps, options.many)
            missed |= size_table(name, files)
            missed |= memory_table(name, files, options.steps, options.threads)
            missed |= options.rounds and time_table(name, files, options.steps, options.threads, options.rounds)
    raise SystemExit(int(options.limits and missed))


if __name__ == "__main__":
    main()
