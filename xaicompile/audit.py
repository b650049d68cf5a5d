"""Runs a model on data and shows its books: where relevance comes from, where it stays, and where it breaks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xaicompile.books import KINDS
from xaicompile.compiler import Compiled
from xaicompile.heatmap import feed_of
from xaicompile.images import Preprocess
from xaicompile.runtime import Session
from xaicompile.summary import metadata_of, table


@dataclass(frozen=True)
class Entry:
    """The books of one node, averaged over the samples.

    Attributes:
        arrives: Sum of the relevance that arrives at the node's outputs.
        bias: What the node keeps for its bias; likewise `stabiliser`, `concepts` (masked out) and `other` (constants,
            detached means, saturated clips, softmax and whatever else conserves nothing).
        left: What is left of the explained value, with all that nodes further on keep taken off, and this node too.
        broken: How many of the values that arrive are NaN or infinite, in all samples.
    """

    node: str
    op: str
    rule: str
    arrives: float
    bias: float
    stabiliser: float
    concepts: float
    other: float
    left: float
    broken: int


@dataclass(frozen=True)
class Audit:
    """The books of a model on some data, from the output to the input.

    Attributes:
        explained: The explained value, averaged over the samples.
        relevance: Sum of the relevance of all inputs, likewise.
        samples: How many samples there were.
    """

    entries: list[Entry]
    explained: float
    relevance: float
    samples: int

    @property
    def broken(self) -> Entry | None:
        """The node nearest to the output at which something arrives that is not finite."""
        return next((e for e in self.entries if e.broken), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "gap": self.explained - self.relevance - sum(map(kept, self.entries))}


def kept(e: Entry) -> float:
    """All that a node keeps."""
    return e.bias + e.stabiliser + e.concepts + e.other


def audit(
    compiled: Compiled, data: str | os.PathLike[str], preprocess: Preprocess | None = None, device: str = "cpu"
) -> Audit:
    """Runs a model that was compiled with `audit` on a photo or an array (.npy, .npz).

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        ModelError: The data does not fit the model.
    """
    session = Session(compiled.model, base_dir=compiled.base_dir, device=device)
    feed, _ = feed_of(session, data, preprocess)
    found = {name: np.asarray(value, np.float64) for name, value in session.run(feed).items() if wanted(name, compiled)}
    samples = len(found["explained"])
    names = json.loads(metadata_of(compiled.model)["xaicompile.audit_nodes"])
    given = {a.node: a for a in compiled.assignments}
    left, entries = float(per_sample(found["explained"]).mean()), []
    columns = {name: per_sample(found[f"audit_{name}"], len(names)) for name in ("arrives", *KINDS, "broken")}
    for i in reversed(range(len(names))):
        amounts = {kind: float(columns[kind][:, i].mean()) for kind in KINDS}
        left -= sum(amounts.values())
        a = given[names[i]]
        broken = int(columns["broken"][:, i].sum())
        entries.append(
            Entry(a.node, a.op, a.rule, float(columns["arrives"][:, i].mean()), **amounts, left=left, broken=broken)
        )
    total = sum(float(np.sum(found[name])) for name in compiled.relevance.values())
    return Audit(entries, float(per_sample(found["explained"]).mean()), total / samples, samples)


def wanted(name: str, compiled: Compiled) -> bool:
    """True for the outputs that the audit reads."""
    return name.startswith("audit_") or name == "explained" or name in compiled.relevance.values()


def per_sample(values: np.ndarray, nodes: int = 1) -> np.ndarray:
    """[samples, nodes]: the maps of a sample summed up."""
    return np.asarray(values.reshape(len(values), -1, nodes).sum(axis=1))


def in_words(found: Audit) -> list[str]:
    """The books as a table, and what stands out."""
    rows: list[tuple[str, ...]] = [("node", "op", "rule", "arrives", "bias", "stabiliser", "other", "left", "NaN/Inf")]
    for e in found.entries:
        numbers = (e.arrives, e.bias, e.stabiliser, e.other + e.concepts, e.left)
        rows.append((e.node, e.op, e.rule, *(short(v) for v in numbers), str(e.broken or "")))
    lines = table(rows)
    gap = found.explained - found.relevance - sum(kept(e) for e in found.entries)
    lines.append(
        f"explained {found.explained:.4g} = relevance {found.relevance:.4g} + kept "
        f"{sum(kept(e) for e in found.entries):.4g} (gap {gap:.1e}; mean of {found.samples} sample"
        f"{'s' if found.samples > 1 else ''})"
    )
    return lines + standing_out(found)


def standing_out(found: Audit) -> list[str]:
    """The node at which the explanation breaks, and the nodes that keep most."""
    if found.broken is not None:
        e = found.broken
        return [f"not finite from '{e.node}' ({e.op}, rule {e.rule}) on: {e.broken} values"]
    most = sorted(found.entries, key=lambda e: -abs(kept(e)))[:3]
    return [f"keeps most: '{e.node}' ({e.op}, rule {e.rule}) {kept(e):.4g}" for e in most if kept(e)]


def short(value: float) -> str:
    """A number in few letters; nothing for 0."""
    return f"{value:.4g}" if value else ""
