"""Prints the parity table as Markdown and writes it to TABLE.md beside this file.

    python -m tests.parity.table [MODEL ...]

All models take half an hour on two cores, and 5 GB for the exported files (XAICOMPILE_ZOO names the folder).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from . import golden, measure, references, zoo

FILE = Path(__file__).parent / "TABLE.md"
BATCH = 3
INTRODUCTION = f"""# Parity with torch, zennit and captum

Written by `python -m tests.parity.table`. Sixteen torchvision classifiers with random weights and random batch-norm
statistics, exported by both PyTorch exporters ("legacy": opset 17, "dynamo": opset 20) with a dynamic batch dimension;
batch {BATCH}, one target per sample, largest and smallest logits in turn. An error is the largest absolute difference
over the largest absolute reference value of the sample, of the worst sample.
float64: the emitted graph replayed in torch, both sides in float64. float32: the emitted graph in ONNX Runtime on the
CPU against the float64 reference. "torch": torch's own float32 error, with and without oneDNN, whichever is larger.
"""

Row = Sequence[str]


def show(value: float, bound: float) -> str:
    """A number, in bold if it is above its bound."""
    text = f"{value:.0e}"
    return text if value <= bound else f"**{text}**"


def each(names: Iterable[str], report: Callable[[str, str], Row]) -> list[Row]:
    """One row per model and exporter."""
    rows = []
    for name in names:
        for exporter in zoo.EXPORTERS:
            rows.append([name, exporter, *report(name, exporter)])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
            gc.collect()
    return rows


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def gradients(name: str, exporter: str) -> Row:
    """Errors of the gradient-like rules, and whether the prediction stayed bit-identical under all of them."""
    bound = measure.float32_bound(name, BATCH)
    cells = [f"{references.torch_own_error(name, BATCH):.0e}", f"{bound:.0e}"]
    same = True
    before = measure.prediction(name, exporter, BATCH)
    for rule in ("gradient", "guided-backprop", "deconvnet"):
        if rule not in measure.gradient_rules(name):
            cells += ["-", "-"]
            continue
        exact = measure.exact_gradient_like(name, BATCH, rule)
        double, single = measure.explain64(name, exporter, BATCH, rule), measure.explain32(name, exporter, BATCH, rule)
        cells.append(show(references.error(double.relevance, exact), measure.FLOAT64))
        cells.append(show(references.error(single.relevance, exact), bound))
        same = same and np.array_equal(single.outputs["logits"], before)
    return [*cells, "yes" if same else "**no**"]


def books(name: str, exporter: str) -> Row:
    """Closure of the books under each LRP rule, and LRP-0 against gradient x input."""
    cells, same = [], True
    before = measure.prediction(name, exporter, BATCH)
    for rule in measure.LRP_RULES:
        double = measure.explain64(name, exporter, BATCH, rule, ledger=True)
        single = measure.explain32(name, exporter, BATCH, rule, ledger=True)
        cells += [show(double.closure, measure.CLOSURE64), show(single.closure, measure.CLOSURE)]
        same = same and np.array_equal(single.outputs["logits"], before)
    if not zoo.ZOO[name].piecewise_linear:
        return [*cells, "-", "yes" if same else "**no**"]
    left, right = (measure.explain32(name, exporter, BATCH, rule).relevance for rule in ("lrp-0", "gradient-x-input"))
    return [*cells, show(references.error(left, right), 1e-5), "yes" if same else "**no**"]


def against_zennit(name: str, exporter: str) -> Row:
    """Errors of the LRP rule sets against zennit with its canonizers."""
    cells = []
    for rule in measure.ZENNIT_RULES:
        found = measure.explain32(name, exporter, BATCH, rule)
        cells.append(show(references.error(found.relevance, references.zennit_map(name, BATCH, rule)), measure.ZENNIT))
    return cells


def headline() -> str:
    """Native zennit, ours and the usual way round on the same ONNX file."""
    saved = np.load(golden.FILE)
    rows = []
    for rule in golden.RULES:
        native = saved[rule].astype(np.float64)
        sums = " / ".join(f"{v:.2f}" for v in native.sum((1, 2, 3)))
        around = " / ".join(f"{v:.0f}" for v in saved[f"{rule}-workaround-sum"])
        ours = "-"
        if rule in measure.ZENNIT_RULES:
            found = measure.explain32(golden.NAME, "legacy", golden.BATCH, rule)
            ours = show(references.error(found.relevance, native), measure.ZENNIT)
        rows.append([rule, sums, ours, around, f"{float(saved[f'{rule}-workaround-error']):.0f}"])
    return markdown(
        ["rule set", "sum R, native zennit", "our error", "sum R, onnx2torch + zennit", "its error (of max\\|R\\|)"],
        rows,
    )


def main(names: Sequence[str]) -> None:
    """Measures the named models, by default all, and writes the table if it is whole."""
    torch.set_num_threads(2)
    chosen = names or list(zoo.ZOO)
    pairs = [f"{rule} {bits}" for rule in ("gradient", "guided", "deconvnet") for bits in ("f64", "f32")]
    closures = [f"{rule} {bits}" for rule in measure.LRP_RULES for bits in ("f64", "f32")]
    text = "\n".join(
        [
            INTRODUCTION,
            "## Gradients",
            "",
            f"Bounds: float64 {measure.FLOAT64:.0e}; float32 as printed, never above {measure.FLIPPED:.0e}.",
            "Guided backprop and deconvnet: where every ReLU is a module that zennit's and captum's hooks can see.",
            "",
            markdown(
                ["model", "exporter", "torch", "bound f32", *pairs, "prediction bit-identical"], each(chosen, gradients)
            ),
            "## Books",
            "",
            "abs(sum(R) + ledger - explained) over max(abs(explained), abs(ledger), largest layer sum);",
            f"bounds: float64 {measure.CLOSURE64:.0e}, float32 {measure.CLOSURE:.0e}.",
            "",
            markdown(
                ["model", "exporter", *closures, "lrp-0 = gradient-x-input", "prediction bit-identical"],
                each(chosen, books),
            ),
            "## Zennit 1.0.0",
            "",
            f"float32 in ONNX Runtime against zennit in float64 with its canonizers; bound {measure.ZENNIT:.0e}.",
            "",
            markdown(
                ["model", "exporter", *measure.ZENNIT_RULES],
                each([n for n in measure.ZENNIT_MODELS if n in chosen], against_zennit),
            ),
            "## resnet18 from its ONNX file",
            "",
            headline(),
        ]
    )
    print(text)
    if not names:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
