"""Writes the parity table, TABLE.md beside this file.

    python -m tests.parity.table [--resume] [gradients | books | zennit | captum | headline | quirks ...]

Named sections are measured anew, the others stay as they are. All take an hour on two cores, 12 GB of memory for the
vggs and 8 GB for the exported files (XAICOMPILE_ZOO names the folder). Rows are kept there as they come; --resume goes
on from them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from . import kinks, measure, references, table_lrp, zoo
from .selection import BIG
from .table_lrp import markdown, show

FILE = Path(__file__).parent / "TABLE.md"
ROWS = zoo.cache_dir() / "table.json"
BATCH = 3
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
Row = Sequence[str]


def each(report: Callable[[str, str], Row], resume: bool) -> list[Row]:
    """One row per model and exporter, the small models first, kept in a file as they come."""
    earlier: dict[str, Row] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    if not resume:
        earlier = {key: row for key, row in earlier.items() if key.split()[0] != report.__name__}
    for name in sorted(zoo.ZOO, key=lambda n: n in BIG):
        for exporter in zoo.EXPORTERS:
            key = f"{report.__name__} {name} {exporter}"
            if key not in earlier:
                earlier[key] = [name, exporter, *report(name, exporter)]
                print(" | ".join(earlier[key]), file=sys.stderr, flush=True)
                ROWS.write_text(json.dumps(earlier), encoding="utf-8")
                table_lrp.forget()
    return [earlier[f"{report.__name__} {name} {exporter}"] for name in zoo.ZOO for exporter in zoo.EXPORTERS]


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


def gradient_section(resume: bool) -> str:
    """The section on gradient-like rules."""
    gradient = ["gradient f64", "torch f32", "gradient f32", "flips", "f32, same side", "bound"]
    others = ["guided f64", "guided f32", "deconvnet f64", "deconvnet f32", "prediction"]
    return f"{GRADIENTS}\n{markdown(['model', 'exporter', *gradient, *others], each(gradients, resume))}"


def book_section(resume: bool) -> str:
    """The section on ledgers."""
    closures = [f"{rule} {what}" for rule in measure.LRP_RULES for what in ("f64", "f32", "prediction")]
    header = ["model", "exporter", *closures, "lrp-0 = gradient-x-input"]
    return f"{BOOKS}\n{markdown(header, each(books, resume))}"


SECTIONS: dict[str, Callable[[bool], str]] = {
    "gradients": gradient_section,
    "books": book_section,
    "zennit": lambda resume: table_lrp.zennit(table_lrp.load("zennit", resume)),
    "captum": lambda resume: table_lrp.captum(table_lrp.load("captum", resume)),
    "headline": lambda resume: table_lrp.headline(table_lrp.load("headline", resume)),
    "quirks": lambda resume: table_lrp.QUIRKS,
}
TITLES = {
    "gradients": GRADIENTS,
    "books": BOOKS,
    "zennit": table_lrp.ZENNIT,
    "captum": table_lrp.CAPTUM,
    "headline": table_lrp.HEADLINE,
    "quirks": table_lrp.QUIRKS,
}


def written() -> dict[str, str]:
    """The sections that the file has."""
    parts = re.split(r"^(?=## )", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:] if FILE.exists() else []
    by_title = {part.splitlines()[0]: part.rstrip() + "\n" for part in parts}
    titles = {name: text.splitlines()[0] for name, text in TITLES.items()}
    return {name: by_title[title] for name, title in titles.items() if title in by_title}


def main(arguments: Sequence[str]) -> None:
    """Measures the named sections, by default all, and writes the table with the others as they are."""
    chosen = [a for a in arguments if a != "--resume"] or list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        raise SystemExit(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    for name in chosen:
        sections = {**written(), name: SECTIONS[name]("--resume" in arguments).rstrip() + "\n"}
        text = "\n".join([INTRODUCTION, *(sections[n] for n in SECTIONS if n in sections)])
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
