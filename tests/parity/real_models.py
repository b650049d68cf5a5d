"""All files of the packages that carry models: each is explained and checked, or refused with a reason.

    python -m tests.parity.real_models [--only WORD ...] [--table tests/parity/REAL_MODELS.md]

A row is right if `gradient` and `lrp-gamma` compile and pass the compiler's own check (prediction, finite relevance,
closed ledger, target), and if the gradient in float64 is that of central differences along a random direction, of
torch's autograd on a replay of the source, or of scikit-learn's own function. Files that only older runtimes read are
compared with the outputs that their package has recorded. "runtime" is said of a prediction that ONNX Runtime's own
optimisations change: its matrix product of a transposed matrix and a vector is wrong (1.32), in any model. Nothing
that is fetched is kept.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.graphs import run
from xaicompile.checks import CheckReport, behaviour, check, structure
from xaicompile.compiler import Compiled, compile_model
from xaicompile.errors import ModelError, XaiCompileError
from xaicompile.runtime import Session

from .real_files import AbsentError, Loaded, Real, reals
from .real_gradients import relative

RULES = ("gradient", "lrp-gamma")
RECORDED = 1e-5  # of recorded outputs, of the largest value


@dataclass
class Row:
    """What came of one model."""

    package: str
    name: str
    nodes: int = 0
    verdict: str = ""
    error: str = ""
    closure: str = ""
    prediction: str = ""
    remark: str = ""


def judged(real: Real) -> Row:
    """Explains one model by both rule sets and checks what comes out."""
    row = Row(real.package, real.name)
    try:
        loaded = real.load()
    except AbsentError as error:
        row.verdict, row.remark = "absent", str(error)
        return row
    model, row.remark = loaded.model, loaded.remark
    row.nodes = len(model.graph.node)
    for rule in RULES:
        try:
            compiled = compile_model(model, rule, ledger=rule != "gradient")
        except XaiCompileError as error:
            row.verdict, row.remark = "refused", first_sentence(str(error))
            return row
        try:
            report = checked(compiled, loaded)
        except ModelError as error:
            row.verdict, row.remark = "not run", str(error)
            return row
        items = {item.name: item.detail for item in report.items}
        row.prediction = row.prediction or items["prediction"].split(" on ")[0]
        row.closure = number(items["ledger"]) if "ledger" in items else ""
        wrong = [f"{rule}, {item.name}: {item.detail}" for item in (*report.failed, *report.skipped)]
        if wrong:
            row.verdict, row.remark = "WRONG", "; ".join(wrong)
            if [item.name for item in report.failed] == ["prediction"] and same_without_fusions(compiled, loaded):
                row.verdict, row.remark = "runtime", f"its optimisations change it: {report.failed[0].detail}"
            return row
        if "zero throughout: relevance" in items["relevance"] and not row.remark:
            row.remark = next((n for n in compiled.notes if "zero" in n), items["relevance"].split("; ")[-1])
    row.verdict = "right"
    if loaded.error is not None and loaded.feed is not None:
        gap = loaded.error(model, loaded.feed)
        row.error = f"{gap:.0e}"
        if not gap <= loaded.bound:
            row.verdict, row.remark = "WRONG", f"gradient: error {gap:.1e}"
    return row


def checked(compiled: Compiled, loaded: Loaded) -> CheckReport:
    """The compiler's own check; against recorded outputs where the source does not run here."""
    try:
        Session(loaded.model)
    except ModelError:
        report = CheckReport()
        structure(report, compiled.model, loaded.model)
        ours = Session(compiled.model)
        behaviour(report, ours, Session(prediction_alone(compiled.model, loaded.model)), inputs=loaded.feed)
        found = ours.run(loaded.feed or {})
        errors = [relative(found[name], value) for name, value in loaded.recorded.items()]
        (item,) = (item for item in report.items if item.name == "prediction")
        report.items.remove(item)
        told = f"as recorded: {max(errors):.0e}" if errors else "nothing is recorded"
        report.add("prediction", bool(errors) and max(errors) <= RECORDED and item.ok, told)
        return report
    return check(compiled.model, loaded.model, inputs=loaded.feed)


def same_without_fusions(compiled: Compiled, loaded: Loaded) -> bool:
    """True if the prediction is the source's bit for bit, once ONNX Runtime's optimisations are switched off."""
    want, got = (run(model, loaded.feed or {}, optimise=False) for model in (loaded.model, compiled.model))
    return all(np.array_equal(got[name], value) for name, value in want.items())


def prediction_alone(emitted: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """An emitted model with the source's outputs alone."""
    model = onnx.ModelProto()
    model.CopyFrom(emitted)
    del model.graph.output[len(source.graph.output) :]
    return model


def first_sentence(text: str) -> str:
    """An error up to the advice that all have."""
    return text.removesuffix(". Explain an earlier tensor with --explain-output, or replace these nodes")


def number(detail: str) -> str:
    """The number in "... = 1.2e-08 of the largest sum"."""
    return detail.rpartition("= ")[2].split(" ")[0]


def markdown(rows: list[Row]) -> str:
    """The table, one part a package."""
    counts = Counter(row.verdict for row in rows)
    lines = [
        "# Models that packages carry",
        "",
        "Made by `python -m tests.parity.real_models`; what is compared and how stands there.",
        "",
        "Error: of the gradient in float64. Ledger: its gap under `lrp-gamma` in float32, of the largest sum.",
        "",
        f"{len(rows)} models: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) + ".",
    ]
    for package in dict.fromkeys(row.package for row in rows):
        lines += ["", f"## {package}", "", "| model | nodes | verdict | error | ledger | prediction | remark |"]
        lines.append("|---|---|---|---|---|---|---|")
        for row in rows:
            if row.package == package:
                cells = (row.name, row.nodes, row.verdict, row.error, row.closure, row.prediction, row.remark)
                lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Walks all of them and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="packages and models with these words")
    parser.add_argument("--table", type=Path, help="file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for real in reals():
        if all(word in f"{real.package} {real.name}" for word in options.only):
            start = time.monotonic()
            rows.append(judged(real))
            took = f"{time.monotonic() - start:.1f} s"
            print("  ".join([*(str(v) for v in asdict(rows[-1]).values() if v != ""), took]), flush=True)
    if options.table:
        options.table.write_text(markdown(rows))
    return int(any(row.verdict in ("WRONG", "absent") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
