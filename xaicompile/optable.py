"""The table of operators: which have a gradient, and what LRP does with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from xaicompile import relevance, vjp
from xaicompile.bodies.quantised import HANDLERS
from xaicompile.ir.apart import APART
from xaicompile.ir.body import BODIES
from xaicompile.ir.graph import schema_of
from xaicompile.ir.model import CONTROL
from xaicompile.passes.recurrent import CELLS
from xaicompile.passes.sequences import SEQUENCES
from xaicompile.registry import OWN, RELEVANCE, OpInfo, operators

__all__ = ["Row", "markdown", "relevance", "rows", "vjp"]

NEWEST = 10**6
LRP = {
    "linear": "linear: the rule that the composite names",
    "own": "a rule of its own",
    "identity": "identity: relevance passes as it is",
    "secant": "secant: f(0) is absorbed",
    "homogeneous": "the transpose, by Euler's degree: conserves",
    "layout": "moves with the values",
    "zero": "carries nothing",
    "gradient": "the transpose; the difference is absorbed",
    "body": "through the function body of its schema",
    "read": "read as the standard ops that it stands for",
    "inside": "node by node inside subgraphs and steps",
}


@dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        since: First opset of the domain that the row is for.
        gradient: "exact", "zero" (carries nothing), or "body" (the standard ops that it stands for are differentiated,
            be they those of the schema's function body or written here).
        lrp: A key of `LRP`.
    """

    domain: str
    op: str
    since: int
    gradient: str
    lrp: str


def rows() -> list[Row]:
    """All operators with a gradient, by domain and name."""
    found = [
        Row(r.domain, r.op, r.since, "zero" if r.zero else "exact", lrp_of(r))
        for r in operators()
        if r.vjp is not None and r.domain != OWN
    ]
    known = {(r.domain, r.op) for r in found}
    found += [Row("", op, 1, "exact", "inside") for op in CELLS]
    found += [
        Row("", op, since, "body", "body") for op, since in with_body() if ("", op) not in known and op not in SEQUENCES
    ]
    known |= {(r.domain, r.op) for r in found}
    read = {*BODIES, *HANDLERS, *(("", op) for op in SEQUENCES)} - known
    found += [Row(domain, op, 1, "body", "read") for domain, op in read if domain != APART]
    return sorted(found, key=lambda r: (r.domain, r.op, r.since))


def with_body() -> list[tuple[str, int]]:
    """Standard operators whose newest schema states a function body, with its version."""
    import onnx

    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    schemas = [schema_of(name, "", NEWEST) for name in sorted(names)]
    return [
        (s.name, s.since_version)
        for s in schemas
        if s is not None and not s.deprecated and (s.has_function or s.has_context_dependent_function)
    ]


def lrp_of(row: OpInfo) -> str:
    """What the rule "default" does with an op, as a key of `LRP`."""
    if row.zero:
        return "zero"
    if row.linear is not None and row.linear.weight is not None:
        return "linear"
    if row.op in CONTROL and not row.domain:
        return "inside"
    if row.op in RELEVANCE and not row.domain:
        return "own"
    if row.layout:
        return "layout"
    if row.degree is not None:
        return "homogeneous"
    if row.at_zero is not None:
        return "identity" if row.at_zero == 0 else "secant"
    return "gradient"


def as_json() -> list[dict[str, str | int]]:
    """The table for scripts: keys domain, op, since, gradient, lrp."""
    return [asdict(r) for r in rows()]


def markdown() -> str:
    """The table as README shows it: operators by what LRP does with them."""
    lines = ["| LRP | operators |", "|---|---|"]
    for key, meaning in LRP.items():
        found = {(r.domain, r.op) for r in rows() if r.lrp == key}
        parts = []
        for domain in sorted({d for d, _ in found}):
            parts.append((f"{domain}: " if domain else "") + ", ".join(sorted(op for d, op in found if d == domain)))
        if parts:
            lines.append(f"| {meaning} | {'; '.join(parts)} |")
    return "\n".join(lines)
