"""All classifiers of torchvision, both exporters: the emitted gradient against torch autograd.

    python -m tests.parity.classifiers [--only NAME ...] [--table tests/parity/CLASSIFIERS.md]

Random weights (as in the zoo), images of 224 x 224, the largest logit. A row is right if its error against torch's
float64 gradient is at most 1e-5, or at most ten times torch's own float32 error and never above 3e-2 (all of
max|gradient|). A ReLU or max-pool winner that flips by rounding costs 1e-3 even between torch and torch; where one
flips here and not there, the next of at most five images is taken, and the table says how many it took. (The zoo's
sixteen are compared on ONNX Runtime's side of every kink, see kinks.py.) Rows that the table has are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision

from xaicompile import ir
from xaicompile.compiler import compile_model

from . import zoo

EXACT, FACTOR, NEVER = 1e-5, 10.0, 3e-2
IMAGES = 5
EXPORTERS = {"legacy": zoo._legacy, "dynamo": zoo._dynamo}


@dataclass
class Row:
    """One classifier from one exporter."""

    name: str
    exporter: str
    nodes: int = 0
    compile_ms_per_node: float = 0.0
    read_ms: float = 0.0
    error: float = float("nan")
    own: float = float("nan")
    same: str = ""
    images: int = 0
    verdict: str = ""


def classifiers() -> list[str]:
    """The 80 architectures, small ones first."""
    names = torchvision.models.list_models(module=torchvision.models)
    weights = {n: torchvision.models.get_model_weights(n).DEFAULT.meta["num_params"] for n in names}
    return sorted(names, key=lambda n: weights[n])


def build(name: str) -> torch.nn.Module:
    """The architecture with the zoo's random parameters."""
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    zoo.randomise(model, 224, seed=1)
    head = getattr(getattr(model, "heads", None), "head", None)
    if head is not None:  # zero by default: output and gradient would be exactly 0
        torch.nn.init.normal_(head.weight, 0, 0.02, generator=torch.Generator().manual_seed(2))
    return model


def gradient(model: torch.nn.Module, x: torch.Tensor) -> tuple[np.ndarray, int]:
    """The gradient of the largest logit, and which it is."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    target = int(logits.argmax(1))
    logits[0, target].backward()
    assert leaf.grad is not None
    return leaf.grad.numpy(), target


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error over the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def measured(name: str, exporter: str) -> Row:
    """Exports, compiles, runs and compares one classifier."""
    row = Row(name, exporter)
    model: Any = build(name)
    generator = torch.Generator().manual_seed(3)
    images = [zoo.pixels_to_input(torch.rand(1, 3, 224, 224, generator=generator)) for _ in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            EXPORTERS[exporter](model, torch.cat(images[:2]), path)
        except Exception as error:  # the exporter's own limits are reported, not ours
            row.verdict = f"exporter fails: {type(error).__name__}"
            return row
        row.nodes, row.compile_ms_per_node, row.read_ms = compile_time(path)
        compile_model(path, "gradient").save(Path(folder) / "explained.onnx")
        for row.images, x in enumerate(images, 1):  # one copy of the weights at a time: the largest have 2.5 GB
            model = (model or build(name)).requires_grad_(False)  # not before: the exporters would see other ops
            ours, (true, target) = gradient(model, x)[0], gradient(model.double(), x.double())
            model = None
            predicted = session(path).run(None, {"x": x.numpy()})[0]
            feed = {"x": x.numpy(), "target": np.array([target])}
            logits, found = session(Path(folder) / "explained.onnx").run(None, feed)[:2]
            row.same = "yes" if np.array_equal(predicted, logits) else "no"
            row.error, row.own = relative(found, true), relative(ours, true)
            if row.error <= EXACT or row.error <= min(FACTOR * row.own, NEVER):
                row.verdict = "right"
                return row
    row.verdict = "WRONG"
    return row


def compile_time(path: Path) -> tuple[int, float, float]:
    """Nodes of a file; milliseconds to compile it per node, and to read and hash its weights in all: best of three.

    Processor time, because a busy machine stretches the other. Reading grows with the weights and not with the nodes,
    and is therefore told apart.
    """
    nodes, whole, reading = len(onnx.load(path, load_external_data=False).graph.node), [], []
    for _ in range(3):
        start = time.process_time()
        ir.model.read(path)
        middle = time.process_time()
        compile_model(path, "gradient")
        reading.append(middle - start)
        whole.append(time.process_time() - middle)
    return nodes, 1e3 * (min(whole) - min(reading)) / nodes, 1e3 * min(reading)


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "# All torchvision classifiers: gradient against torch autograd",
        "",
        "Made by `python -m tests.parity.classifiers`; errors over max|gradient| against torch in float64.",
        "",
        "Compile time is processor time; reading and hashing the file, which grows with its weights, stands beside it.",
        "",
        "| classifier | exporter | nodes | compile ms/node | reading ms | error | torch float32's own "
        "| prediction identical | images | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.exporter} | {r.nodes} | {r.compile_ms_per_node:.2f} | {r.read_ms:.0f} | {r.error:.1e} "
            f"| {r.own:.1e} | {r.same} | {r.images} | {r.verdict} |"
        )
    right = sum(r.verdict == "right" for r in rows)
    return "\n".join([*lines, "", f"{right} of {len(rows)} right."]) + "\n"


def main() -> None:
    """Measures what the table lacks and writes it after each row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS))
    parser.add_argument("--again", action="store_true", help="measure rows that the table has, too")
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "CLASSIFIERS.md")
    args = parser.parse_args()
    store = args.table.with_suffix(".json")
    stored = [Row(**r) for r in json.loads(store.read_text())] if store.exists() else []
    rows = {(r.name, r.exporter): r for r in stored}
    for name in args.only or classifiers():
        for exporter in args.exporters:
            if (name, exporter) in rows and not args.again:
                continue
            rows[name, exporter] = row = measured(name, exporter)
            print(markdown([row]).splitlines()[8], flush=True)
            store.write_text(json.dumps([asdict(r) for r in rows.values()], indent=1))
            args.table.write_text(markdown(list(rows.values())))


if __name__ == "__main__":
    main()
