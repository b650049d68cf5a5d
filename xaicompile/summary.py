"""What was done, in words and as data: for the command line, and for scripts that read its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

if TYPE_CHECKING:
    from xaicompile.checks import CheckReport
    from xaicompile.compiler import Assignment, Compiled
    from xaicompile.errors import Gap

MARKS = {True: "ok", False: "FAILED", None: "skipped"}


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's metadata as a dictionary."""
    return {prop.key: prop.value for prop in model.metadata_props}


def weight_bytes(compiled: Compiled) -> int:
    """Bytes of all initializers, external ones included."""
    sizes = ((prod(t.dims), helper.tensor_dtype_to_np_dtype(t.data_type)) for t in compiled.model.graph.initializer)
    return sum(count * int(dtype.itemsize) for count, dtype in sizes)


def rule_counts(compiled: Compiled) -> dict[str, int]:
    """How many nodes got which rule, the most frequent first."""
    return dict(Counter(assignment.rule for assignment in compiled.assignments).most_common())


def as_dict(compiled: Compiled, written: Sequence[Path], report: CheckReport | None, note: str) -> dict[str, Any]:
    """What compiling did, for JSON. `note` says why there is no report."""
    return {
        "output": str(written[0]),
        "files": [str(path) for path in written],
        "rules": rule_counts(compiled),
        "relevance": compiled.relevance,
        "target": compiled.target,
        "cut": compiled.cut,
        "notes": compiled.notes,
        "check": {"passed": None, "note": note} if report is None else report.to_dict(),
    }


def of_compiled(
    compiled: Compiled, source: Path, written: Sequence[Path], report: CheckReport | None, note: str
) -> list[str]:
    """What compiling did, in lines."""
    growth = written[0].stat().st_size - source.stat().st_size
    lines = [f"{written[0]}  ({growth / 1000:+.0f} kB)"]
    lines += [f"{path}  (external data)" for path in written[1:]]
    metadata = metadata_of(compiled.model)
    explained = metadata.get("xaicompile.neuralized") or metadata.get("xaicompile.explain_output", "?")
    which = f"the largest value, or the one that input '{compiled.target}' names" if compiled.target else "reduced"
    lines.append(f"explains   '{explained}': {which}")
    lines += [f"relevance  of input '{x}' in output '{y}'" for x, y in compiled.relevance.items()]
    lines.append("rules      " + ", ".join(f"{rule} {count}" for rule, count in rule_counts(compiled).items()))
    lines += [f"cut        {cut}, for the explanation only" for cut in compiled.cut]
    lines += [f"note       {line}" for line in compiled.notes]
    return lines + ([note] if report is None else of_checks(report))


def of_checks(report: CheckReport) -> list[str]:
    """One line for each thing that was checked."""
    return [f"{MARKS[item.ok]:<10} {item.name}: {item.detail}" for item in report.items]


def with_gaps(assignments: Sequence[Assignment], gaps: Sequence[Gap]) -> list[Assignment]:
    """The assignments with what is unsupported marked as such; gaps inside subgraphs that could not be read follow."""
    missing = {gap.node: gap for gap in gaps}
    found = []
    for a in assignments:
        gap = missing.pop(a.node, None)
        found.append(a if gap is None else marked(gap))
    return found + [marked(gap) for gap in missing.values()]


def marked(gap: Gap) -> Assignment:
    """A gap as a line of the list."""
    from xaicompile.compiler import Assignment

    op = f"{gap.domain}.{gap.op}" if gap.domain and gap.kind == "domain" else gap.op
    return Assignment(gap.node, op, f"unsupported: {gap.kind}", gap.reason, "")


def of_rules(assignments: Sequence[Assignment]) -> list[str]:
    """Each node's rule and the reason for it, one line for each."""
    rows = [("node", "op", "rule", "reason", "facts")]
    return table([*rows, *((a.node, a.op, a.rule, a.reason, a.facts) for a in assignments)])


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
