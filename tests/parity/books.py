"""Do the books of every composite close? Prints a table as Markdown and writes it to BOOKS.md beside this file.

    python -m tests.parity.books [MODEL ...]

All models take half an hour on two cores. What was measured is kept in the folder that XAICOMPILE_ZOO names, under
the hash of the emitted model, so a second run measures only what the compiler makes another model of.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import torch

import xaicompile
from tests.graphs import Arrays, exact
from xaicompile import composite
from xaicompile.errors import RuleError

from . import classifiers, lite, measure, references, zoo
from .measure import CLOSURE, CLOSURE64, Array, Run
from .packages import doubled
from .replay import replay
from .selection import BIG
from .test_shipped import BYTES, SPEECH, fetched, speech

FILE = Path(__file__).parent / "BOOKS.md"
ROWS = zoo.cache_dir() / "books.json"
FUSED = 1e-6  # relative difference of the prediction where the runtime fuses other nodes
TRANSFORMERS = ("vit_b_16", "swin_t")
REAL = (lite.NAME, "silero", "magika")
MODELS = (*zoo.ZOO, *TRANSFORMERS, *REAL)
BOXED = {"z-box", "epsilon-gamma-box", "lrp-vgg16", "deep-taylor"}  # those that make use of bounds

INTRODUCTION = f"""# The books of every composite

Written by `python -m tests.parity.books`. abs(sum(R) + ledger - explained) over
max(abs(explained), abs(ledger), largest layer sum) of the worst sample; bounds: float32 in ONNX Runtime {CLOSURE:.0e},
float64 {CLOSURE64:.0e}. A value above its bound is in bold. Sixteen torchvision classifiers, two vision transformers
with random weights, and three real models (images, speech, bytes).
"""


@dataclass
class Row:
    """What was measured of one composite on one model."""

    single: float = float("nan")
    double: float = float("nan")
    prediction: float = float("nan")  # relative difference, 0 if identical
    refused: str = ""
    emitted: str = ""  # hash of the float32 model


@dataclass(frozen=True)
class Subject:
    """A model in both precisions, an input, the bounds of its input, and what runs it in float64."""

    single: onnx.ModelProto
    double: onnx.ModelProto
    feed: Arrays
    box: Mapping[str, object]
    exactly: Callable[[onnx.ModelProto, Arrays], Arrays]


def composites() -> list[str]:
    """The shipped ones of which a ledger can be kept: those that give relevance from one pass."""
    loaded = {name: rules for name in composite.shipped() if not (rules := composite.load(name)).neuralize}
    return [name for name, rules in loaded.items() if rules.output == "relevance" and not rules.method]


@lru_cache(maxsize=1)
def subject(name: str) -> Subject:
    """A model by name."""
    if name in zoo.ZOO:
        exporter, batch = zoo.EXPORTERS[list(zoo.ZOO).index(name) % 2], 1 if name in BIG else 2
        feed = {"x": zoo.sample(name, batch).numpy(), "target": references.targets(name, batch).numpy()}
        models = [onnx.load(zoo.export(name, exporter, dtype)) for dtype in (torch.float32, torch.float64)]
        return Subject(models[0], models[1], feed, box(), replayed)
    if name == "silero":
        single = onnx.version_converter.convert_version(onnx.load_from_string(fetched(SPEECH)), 18)
        feed = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in speech(16000).items()}
        return Subject(single, widened(single), feed, {"low": -1.0, "high": 1.0}, exact)
    if name == "magika":
        single = onnx.load_from_string(fetched(BYTES))
        text = np.frombuffer(Path(__file__).read_bytes()[:1024], np.uint8)
        tokens = np.concatenate([text, text])[None].astype(np.int32)
        return Subject(single, widened(single), {"bytes": tokens}, {"low": -1.0, "high": 1.0}, exact)
    if name == lite.NAME:
        models = [lite.file(dtype) for dtype in (torch.float32, torch.float64)]
        return Subject(*models, {"x": lite.images().numpy()}, {"low": lite.LOW, "high": lite.HIGH}, replayed)
    single = onnx.load(transformer(name))
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    return Subject(single, widened(single), {"x": zoo.pixels_to_input(pixels).numpy()}, box(), replayed)


def box() -> Mapping[str, object]:
    """What normalised pixels lie in."""
    return {"low": zoo.LOW.flatten().tolist(), "high": zoo.HIGH.flatten().tolist()}


def transformer(name: str) -> Path:
    """A vision transformer as a file, written on first use."""
    path = zoo.cache_dir() / f"{name}-legacy-f32.onnx"
    if not path.exists():
        partial = path.with_name(f"{path.stem}-{os.getpid()}.partial")
        zoo._legacy(classifiers.build(name), torch.zeros(2, 3, 224, 224), partial)
        partial.replace(path)
    return path


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    doubled(double.graph)
    return double


def replayed(model: onnx.ModelProto, feed: Arrays) -> Arrays:
    """Outputs by the replay in torch."""
    with torch.no_grad():
        values = replay(model, {k: torch.from_numpy(v) for k, v in feed.items()})
    return {k: v.numpy() for k, v in values.items()}


def options(rule: str, of: Subject) -> dict[str, object]:
    """What the composite is compiled with."""
    return {"rule": rule, "ledger": True, "parameters": of.box if rule in BOXED else None}


def closure(model: onnx.ModelProto, outputs: Arrays) -> float:
    """How far the books are from closing; relevance of several inputs is taken together."""
    batch = len(outputs["explained"])
    parts = [v.reshape(batch, -1).astype(np.float64) for k, v in outputs.items() if k.startswith("relevance")]
    assert parts and all(np.isfinite(v).all() for v in (*parts, outputs["ledger_by_node"]))
    metadata = {p.key: p.value for p in model.metadata_props}
    order = {node.name: i for i, node in enumerate(model.graph.node)}
    together = {**outputs, "relevance": np.concatenate(parts, 1)}
    return Run("", batch, together, json.loads(metadata["xaicompile.ledger_nodes"]), order).closure


def measured(name: str, rule: str, earlier: Row | None = None, double: bool = True) -> Row:
    """Compiles and runs a composite on a model in both precisions, unless `earlier` is of the same emitted model."""
    of = subject(name)
    try:
        model = xaicompile.compile(of.single, **options(rule, of))
    except RuleError as error:
        return Row(refused=str(error))
    row = Row(emitted=hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
    if earlier is not None and earlier.emitted == row.emitted:
        return earlier
    outputs = measure.run_ort(measure.session(model), of.feed)
    row.single, row.prediction = closure(model, outputs), moved(predicted(name), outputs)
    if double:
        wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in of.feed.items()}
        model = xaicompile.compile(of.double, **options(rule, of))
        row.double = closure(model, of.exactly(model, wide))
    return row


@lru_cache(maxsize=1)
def predicted(name: str) -> Arrays:
    """The source model's outputs."""
    of = subject(name)
    return measure.run_ort(measure.session(of.single), {k: v for k, v in of.feed.items() if k != "target"})


def moved(expected: Arrays, found: Mapping[str, Array]) -> float:
    """The largest relative difference of the prediction, 0 if it is identical."""
    changed = {k: v for k, v in expected.items() if not np.array_equal(found[k], v)}
    return float(max((np.abs(found[k] - v).max() / np.abs(v).max() for k, v in changed.items()), default=0.0))


def all_rows(names: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    """Every composite on the models, kept in a file as they come."""
    kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    for name in sorted(names, key=lambda n: n in BIG):
        for rule in composites():
            key = f"{name} {rule}"
            row = measured(name, rule, Row(**kept[key]) if key in kept else None)
            kept[key] = asdict(row)
            ROWS.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            print(key, row.single, row.double, row.prediction, row.refused, file=sys.stderr, flush=True)
            yield name, rule, row


def show(value: float, bound: float) -> str:
    """A number, in bold if it is above its bound or none."""
    return f"{value:.0e}" if value <= bound else f"**{value:.0e}**"


def markdown(rows: Mapping[tuple[str, str], Row]) -> str:
    """The tables."""
    names, rules = list(dict.fromkeys(n for n, _ in rows)), list(dict.fromkeys(r for _, r in rows))
    names.sort(key=MODELS.index)
    header = "| model | " + " | ".join(rules) + " |\n|" + "---|" * (len(rules) + 1)

    def table(cell: Callable[[Row], str]) -> str:
        lines = [f"| {n} | " + " | ".join(cell(rows[n, r]) for r in rules) + " |" for n in names]
        return "\n".join([header, *lines]) + "\n"

    refused = [f"- {n}, {r}: {row.refused}" for (n, r), row in rows.items() if row.refused]
    parts = [
        INTRODUCTION,
        "## float32\n",
        table(lambda row: "-" if row.refused else show(row.single, CLOSURE)),
        "## float64\n",
        table(lambda row: "-" if row.refused else show(row.double, CLOSURE64)),
        "## Prediction\n",
        f"Identical to the source model's bit for bit, or its relative difference (bound {FUSED:.0e}).\n",
        table(lambda row: "-" if row.refused else "yes" if row.prediction == 0 else show(row.prediction, FUSED)),
    ]
    if refused:
        parts += ["## Refused\n", "\n".join(refused) + "\n"]
    return "\n".join(parts)


def main(names: Sequence[str]) -> None:
    """Measures the named models, by default all, and writes the table if it is whole."""
    torch.set_num_threads(1)
    text = markdown({(name, rule): row for name, rule, row in all_rows(names or MODELS)})
    print(text)
    if not names:
        FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
