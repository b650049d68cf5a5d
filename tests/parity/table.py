"""Prints the parity table as Markdown and writes it to TABLE.md beside this file.

    python -m tests.parity.table [--resume] [MODEL ...]

All models take half an hour on two cores, 12 GB of memory for the vggs and 6 GB for the exported files
(XAICOMPILE_ZOO names the folder). Rows are kept there as they come; --resume goes on from them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from . import golden, kinks, measure, references, zoo
from .selection import BIG

FILE = Path(__file__).parent / "TABLE.md"
ROWS = zoo.cache_dir() / "table.json"
BATCH = 3
PRECISIONS = ("f64", "f32", "zennit f32")
INTRODUCTION = f"""# Parity with torch, zennit and captum

Written by `python -m tests.parity.table`. Sixteen torchvision classifiers with random weights and random batch-norm
statistics, exported by both PyTorch exporters ("legacy": opset 17, "dynamo": opset 20) with a dynamic batch dimension;
batch {BATCH}, one target per sample, largest and smallest logits in turn.

An error is the largest absolute difference over the largest absolute reference value of the sample, of the worst
sample. f64: the emitted graph replayed in torch, both sides in float64. f32: the emitted graph in ONNX Runtime on the
CPU against the float64 reference. Prediction: bit-identical to the source model's in ONNX Runtime, at batch 1 and
{BATCH}. A value above its bound is in bold.
"""
GRADIENTS = f"""## Gradients

"torch f32" is torch's own float32 error, with and without oneDNN, whichever is larger. "flips" counts the ReLUs, clips
and max-pool winners that ONNX Runtime's forward pass puts on the other side of their kink than float64 does; one of
them moves a gradient by up to a few per cent, in torch as well. "same side" is the error against torch's float64
gradient with those kinks put where ONNX Runtime put them: there the bound holds without exception.
Bounds: f64 {measure.FLOAT64:.0e}; f32 as printed, {measure.FLIPPED:.0e} where a kink flips.
Guided backprop and deconvnet against zennit (equal to captum), where hooks can see every ReLU.
"""
BOOKS = f"""## Books

abs(sum(R) + ledger - explained) over max(abs(explained), abs(ledger), largest layer sum);
bounds: f64 {measure.CLOSURE64:.0e}, f32 {measure.CLOSURE:.0e}. Last: the elementwise difference of LRP-0 and
gradient x input, bound 1e-5, where the model is piecewise linear.
"""
ZENNIT = f"""## Zennit 1.0.0

Composites of tests/parity/composites against zennit in float64 with its canonizers. "zennit f32" is what zennit makes
of float32 itself. Bounds: f64 {measure.ZENNIT:.0e}, f32 {measure.ZENNIT:.0e} or ten times zennit's own float32 error.
(Gamma: zennit has a stabiliser of 1e-6 in this rule.)
"""
HEADLINE = """## resnet18 from its ONNX file

The legacy exporter's file, compiled, against native zennit with its canonizers; beside it the usual way round, the
same file read back with onnx2torch and explained with zennit, whose rules do not see the additions.
It raises no error. (The dynamo exporter's file onnx2torch does not read.)
"""

Row = Sequence[str]


def show(value: float, bound: float) -> str:
    """A number, in bold if it is above its bound."""
    text = f"{value:.0e}"
    return text if value <= bound else f"**{text}**"


def each(names: Iterable[str], report: Callable[[str, str], Row], earlier: dict[str, Row]) -> list[Row]:
    """One row per model and exporter, the small models first, kept in a file as they come."""
    for name in sorted(names, key=lambda n: n in BIG):
        for exporter in zoo.EXPORTERS:
            key = f"{report.__name__} {name} {exporter}"
            if key not in earlier:
                earlier[key] = [name, exporter, *report(name, exporter)]
                print(" | ".join(earlier[key]), file=sys.stderr, flush=True)
                ROWS.write_text(json.dumps(earlier), encoding="utf-8")
                for cached in (measure.emitted_session, measure.source_session, measure.emitted, measure.source):
                    cached.cache_clear()
                gc.collect()
    return [earlier[f"{report.__name__} {name} {exporter}"] for name in names for exporter in zoo.EXPORTERS]


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def gradients(name: str, exporter: str) -> Row:
    """Errors of the gradient-like rules."""
    bound = measure.float32_bound(name, BATCH)
    exact = references.gradient(name, BATCH)
    single = kinks.gradient32(name, exporter, BATCH)
    raw = measure.raw_bound(name, BATCH, single.flips)
    cells = [
        show(references.error(measure.explain64(name, exporter, BATCH, "gradient").relevance, exact), measure.FLOAT64),
        f"{references.torch_own_error(name, BATCH):.0e}",
        show(single.error, raw),
        str(single.flips),
        show(single.on_side, bound),
        f"{bound:.0e}",
    ]
    for rule in ("guided-backprop", "deconvnet"):
        if rule not in measure.gradient_rules(name):
            cells += ["-", "-"]
            continue
        exact = measure.exact_gradient_like(name, BATCH, rule)
        found = [explain(name, exporter, BATCH, rule).relevance for explain in (measure.explain64, measure.explain32)]
        cells.append(show(references.error(found[0], exact), measure.FLOAT64))
        cells.append(show(references.error(found[1], exact), raw))
    return [*cells, untouched(name, exporter, "gradient")]


def untouched(name: str, exporter: str, rule: str) -> str:
    """Whether the prediction is the source model's, bit for bit, at batch 1 and 3."""
    for batch in (1, BATCH):
        found = measure.explain32(name, exporter, batch, rule).outputs["logits"]
        if not np.array_equal(found, measure.prediction(name, exporter, batch)):
            return "**no**"
    return "yes"


def books(name: str, exporter: str) -> Row:
    """Closure of the books under each LRP rule, and LRP-0 against gradient x input."""
    cells = []
    for rule in measure.LRP_RULES:
        double = measure.explain64(name, exporter, BATCH, rule, ledger=True)
        single = measure.explain32(name, exporter, BATCH, rule, ledger=True)
        cells += [show(double.closure, measure.CLOSURE64), show(single.closure, measure.CLOSURE)]
        cells.append(untouched(name, exporter, rule))
    if not zoo.ZOO[name].piecewise_linear:
        return [*cells, "-"]
    left, right = (measure.explain32(name, exporter, BATCH, rule).relevance for rule in ("lrp-0", "gradient-x-input"))
    return [*cells, show(references.error(left, right), 1e-5)]


def against_zennit(name: str, exporter: str) -> Row:
    """Errors of the LRP rule sets against zennit with its canonizers, in float64 and float32."""
    cells = []
    for rule in measure.ZENNIT_RULES:
        exact = references.zennit_map(name, BATCH, rule)
        double, single = measure.explain64(name, exporter, BATCH, rule), measure.explain32(name, exporter, BATCH, rule)
        cells.append(show(references.error(double.relevance, exact), measure.ZENNIT))
        cells.append(show(references.error(single.relevance, exact), measure.zennit_bound(name, BATCH, rule)))
        cells.append(f"{references.error(references.zennit_map(name, BATCH, rule, dtype=torch.float32), exact):.0e}")
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


def main(arguments: Sequence[str]) -> None:
    """Measures the named models, by default all, and writes the table if it is whole."""
    names = [a for a in arguments if a != "--resume"]
    rows: dict[str, Row] = json.loads(ROWS.read_text()) if "--resume" in arguments and ROWS.exists() else {}
    torch.set_num_threads(1)
    chosen = names or list(zoo.ZOO)
    gradient = ["gradient f64", "torch f32", "gradient f32", "flips", "f32, same side", "bound"]
    others = ["guided f64", "guided f32", "deconvnet f64", "deconvnet f32", "prediction"]
    closures = [f"{rule} {what}" for rule in measure.LRP_RULES for what in ("f64", "f32", "prediction")]
    zennit = [f"{rule.removeprefix('zennit-')} {what}" for rule in measure.ZENNIT_RULES for what in PRECISIONS]
    compared = [n for n in measure.ZENNIT_MODELS if n in chosen]
    text = "\n".join(
        [
            INTRODUCTION,
            GRADIENTS,
            markdown(["model", "exporter", *gradient, *others], each(chosen, gradients, rows)),
            BOOKS,
            markdown(["model", "exporter", *closures, "lrp-0 = gradient-x-input"], each(chosen, books, rows)),
            ZENNIT,
            markdown(
                ["model", "exporter", *zennit],
                each(compared, against_zennit, rows),
            ),
            HEADLINE,
            headline(),
        ]
    )
    print(text)
    if not names:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
