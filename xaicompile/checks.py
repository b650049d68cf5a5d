"""Does an emitted model keep its contract? Shared by the compiler's self-check and by `xaicompile check`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from xaicompile.errors import ModelError
from xaicompile.images import layout, remembered
from xaicompile.runtime import Port, Session, adapt, random_inputs
from xaicompile.summary import metadata_of

ModelLike: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto
Inputs: TypeAlias = dict[str, np.ndarray]

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
FUSION = 1e-6  # relative; larger differences of the prediction are failures
CLOSURE = 1e-4  # of the largest sum that the ledger holds, in float32 and float64
CLOSURE_STEPS = 8  # in coarser types: this many steps of the type
SIZES = (8, 32, 64, 224, 16, 128)  # tried in turn for dynamic axes other than the batch
BIG = 2**31 - 1  # a target that no model has


@dataclass(frozen=True)
class Item:
    """One thing that was checked; `ok` is None where it could not be."""

    name: str
    ok: bool | None
    detail: str


@dataclass
class CheckReport:
    """All that was checked on one emitted model."""

    items: list[Item] = field(default_factory=list)

    @property
    def failed(self) -> list[Item]:
        """What does not hold."""
        return [item for item in self.items if item.ok is False]

    @property
    def skipped(self) -> list[Item]:
        """What could not be checked."""
        return [item for item in self.items if item.ok is None]

    @property
    def passed(self) -> bool:
        """True if nothing failed; see `skipped` for what was not checked at all."""
        return not self.failed

    def add(self, name: str, ok: bool | None, detail: str) -> None:
        """Note one result."""
        self.items.append(Item(name, ok, detail))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        items = [{"name": item.name, "ok": item.ok, "detail": item.detail} for item in self.items]
        return {"passed": self.passed, "complete": not self.skipped, "checks": items}


def check(
    explained: ModelLike,
    source: ModelLike,
    *,
    rule: str | None = None,
    base_dir: str | os.PathLike[str] | None = None,
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
    device: str = "cpu",
    seed: int = 0,
    exact: bool = False,
    hashes: bool = True,
) -> CheckReport:
    """Compare an emitted model with its source.

    Args:
        explained: The emitted model.
        source: The model that it was compiled from.
        rule: The rule set that it should have been compiled with; None takes the one that its metadata names.
        base_dir: Folder of the external data, for models that are not given as paths.
        inputs: Inputs to run on; seeded random ones if None.
        device: `cpu` or `cuda`.
        seed: Of the random inputs.
        exact: Fail where the prediction isn't bit-identical, even if a fusion of the runtime may be the reason.
        hashes: Also compare the hashes in the metadata with the source and the rule set.
    """
    report = CheckReport()
    structure(report, proto_of(explained), proto_of(source))
    if hashes:
        provenance(report, proto_of(explained), source, rule)
    try:
        theirs = Session(source, device=device, base_dir=base_dir)
    except ModelError as error:
        report.add("prediction", None, f"the source model itself does not run here: {error}")
        return report
    try:
        ours = Session(explained, device=device, base_dir=base_dir)
    except ModelError as error:
        report.add("prediction", False, str(error))
        return report
    behaviour(report, ours, theirs, inputs=inputs, seed=seed, exact=exact)
    return report


def proto_of(model: ModelLike) -> onnx.ModelProto:
    """The parsed model, external data unread."""
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            return onnx.load_model_from_string(model)
        return onnx.load(os.fspath(model), load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"no such file: {model!s}") from None
    except Exception as error:
        where = "the model" if isinstance(model, bytes) else str(model)
        raise ModelError(f"{where} is not an ONNX model, or is cut short ({str(error).splitlines()[0]})") from error


# --- without running --------------------------------------------------------------------------------------------


def structure(report: CheckReport, explained: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Only standard operators were added, and the source's outputs come first."""
    before = {(node.domain, node.op_type) for node in _nodes(source.graph)}
    added = {(node.domain, node.op_type) for node in _nodes(explained.graph)} - before
    strange = sorted(f"{domain}.{op}" for domain, op in added if domain not in STANDARD)
    found = f"{len(explained.graph.node)} nodes, {len(source.graph.node)} of them the source's"
    report.add("operators", not strange, f"not standard: {', '.join(strange)}" if strange else f"all standard; {found}")
    names, expected = [o.name for o in explained.graph.output], [o.name for o in source.graph.output]
    same = names[: len(expected)] == expected
    detail = f"{', '.join(names)}" if same else f"{', '.join(names)}; expected {', '.join(expected)} first"
    report.add("outputs", same and len(names) > len(expected), detail)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _nodes(inner)


def provenance(report: CheckReport, explained: onnx.ModelProto, source: ModelLike, rule: str | None = None) -> None:
    """The hashes in the metadata are those of the source model and of the rule set."""
    from xaicompile import composite

    metadata = metadata_of(explained)
    if "xaicompile.version" not in metadata:
        report.add("provenance", False, "no xaicompile metadata: was this model compiled by xaicompile?")
        return
    stated, seen = metadata.get("xaicompile.source_sha256", ""), source_sha256(source)
    detail = f"sha256 {seen[:12]}" if stated == seen else f"sha256 is {seen[:12]}, the metadata states {stated[:12]}"
    report.add("source hash", stated == seen, detail)
    name, stated = metadata.get("xaicompile.rule", ""), metadata.get("xaicompile.rule_sha256", "")
    seen = hashlib.sha256(metadata.get("xaicompile.rule_text", "").encode()).hexdigest()
    if stated != seen:
        report.add("rule hash", False, f"the text of '{name}' in the metadata was changed")
    elif rule is None and name not in composite.shipped():
        report.add(
            "rule hash", True, f"'{name}', sha256 {seen[:12]}; it is no shipped rule set (--rule compares a file)"
        )
    else:
        here = composite.load(rule or name).sha256
        other = f"compiled with another '{name}' than the one here (sha256 {seen[:12]}, here {here[:12]})"
        report.add("rule hash", here == seen, f"'{name}', sha256 {seen[:12]}" if here == seen else other)


def source_sha256(source: ModelLike) -> str:
    """Hash of a source model, as the compiler writes it into the metadata."""
    if isinstance(source, onnx.ModelProto):
        return hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- running ----------------------------------------------------------------------------------------------------


def behaviour(
    report: CheckReport,
    ours: Session,
    theirs: Session,
    *,
    inputs: np.ndarray | Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    exact: bool = False,
) -> None:
    """Run both models: same prediction, finite relevance, closed ledger, zeros for a target out of range."""
    if inputs is not None:
        feeds = [adapt(theirs, inputs)]
        expected = [theirs.run(feeds[0])]
    else:
        feeds, expected = accepted(theirs, ours.metadata, seed)
    if not feeds:
        report.add("prediction", None, "found no random input that the model accepts; give one with --input")
        return
    names = [port.name for port in theirs.outputs]
    try:
        found = [ours.run(feed) for feed in feeds]
    except ModelError as error:
        report.add("prediction", False, str(error))
        return
    worst, where = max((_difference(e[n], f[n]), n) for e, f in zip(expected, found, strict=True) for n in names)
    batches = " and ".join(str(_batch(feed)) for feed in feeds)
    if worst == 0:
        report.add("prediction", True, f"bit-identical on batches of {batches}")
    else:
        ok = worst <= FUSION and not exact
        why = " (the runtime fuses other nodes than in the source model)" if worst <= FUSION else ""
        report.add("prediction", ok, f"'{where}' differs by {worst:.1e} of its largest value{why}")
    for result in found[:1]:
        relevance = _relevance(report, ours, names, result)
        _ledger(report, names, result, relevance)
    _target(report, ours, names, feeds[0], found[0])


def accepted(
    session: Session, metadata: Mapping[str, str], seed: int, batches: tuple[int, ...] = (2, 1)
) -> tuple[list[Inputs], list[dict[str, Any]]]:
    """Random inputs that the model accepts, one for each batch, and its outputs; else for the first that it accepts.

    A model of a fixed batch gets one. One that reads integers as positions, as a graph's edges are, may take two but
    not one.
    """
    low, high = known_box(session.inputs, metadata)
    dynamic = any(port.shape and not isinstance(port.shape[0], int) for port in session.inputs)
    wanted = [batches, *([b] for b in batches)] if dynamic else [batches[:1]]
    for some, size in product(wanted, SIZES):
        rng = np.random.default_rng(seed)
        try:
            feeds = [random_inputs(session, rng, batch=b, size=size, low=low, high=high) for b in some]
            return feeds, [session.run(feed) for feed in feeds]
        except ModelError:
            continue
    return [], []


def known_box(ports: list[Port], metadata: Mapping[str, str]) -> tuple[Any, Any]:
    """The box that an image model's pixels lie in, from the metadata; (None, None) if it isn't known."""
    images = [port for port in ports if len(port.shape) == 4]
    if len(ports) != 1 or not images:
        return None, None
    parameters = json.loads(metadata.get("xaicompile.parameters") or "{}")
    preprocess = remembered(metadata)
    low, high = parameters.get("low"), parameters.get("high")
    if (low is None or high is None) and preprocess is not None:
        low, high = preprocess.box()
    if low is None or high is None:
        return None, None
    try:
        channels_first = layout(images[0].shape) == "NCHW"
    except ModelError:
        return None, None
    shape = (-1, 1, 1) if channels_first else (-1,)
    return np.reshape(low, shape), np.reshape(high, shape)


def _difference(expected: Any, found: Any) -> float:
    """Largest difference relative to the largest value; 0 only if all bits agree."""
    if not isinstance(expected, np.ndarray) or not np.issubdtype(expected.dtype, np.number):
        return 0.0 if _same(expected, found) else float("inf")
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if np.array_equal(expected, found, equal_nan=np.issubdtype(expected.dtype, np.floating)):
        return 0.0
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    error = float(np.max(np.abs(wide - other)) / max(float(np.max(np.abs(wide))), 1e-30))
    return error if np.isfinite(error) else float("inf")


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and np.array_equal(expected, found)
    return bool(expected == found)


def _batch(feed: Inputs) -> int:
    return max((len(value) for value in feed.values() if value.ndim), default=1)


def _relevance(report: CheckReport, ours: Session, names: list[str], result: dict[str, Any]) -> list[np.ndarray]:
    """Every relevance is finite and not zero throughout."""
    stated = json.loads(ours.metadata.get("xaicompile.relevance") or "{}")
    found = {name: result[name] for name in stated.values() if name in result}
    if not found:
        found = {n: v for n, v in result.items() if n not in names and re.search(r"(^|_)relevance(_|$)", n)}
    if not found:
        report.add("relevance", False, "the model has no relevance output")
        return []
    broken = [name for name, value in found.items() if not np.isfinite(value).all()]
    empty = [name for name, value in found.items() if not np.any(value)]
    size = max(float(np.max(np.abs(value), initial=0.0)) for value in found.values())
    detail = f"finite, largest |R| {size:.3g}"
    if empty:
        detail += f"; zero throughout: {', '.join(empty)}"
    report.add("relevance", not broken, f"not finite: {', '.join(broken)}" if broken else detail)
    return list(found.values())


def _ledger(report: CheckReport, names: list[str], result: dict[str, Any], relevance: list[np.ndarray]) -> None:
    """`sum(relevance) + ledger == explained`, for every sample, or all of them where they can't be told apart."""
    own = {re.sub(r"_\d+$", "", name): value for name, value in result.items() if name not in names}
    if "ledger" not in own or "explained" not in own or not relevance:
        return
    if own["explained"].ndim == 2 and len(own["explained"]) == 1:  # several maps, of all samples together
        relevance = [np.moveaxis(r, 1, 0) for r in relevance]
    explained, ledger = (np.asarray(own[name], np.float64).reshape(-1) for name in ("explained", "ledger"))
    with np.errstate(invalid="ignore"):  # a relevance that isn't finite is told by its own line
        total = sum(np.asarray(r, np.float64).reshape(explained.size, -1).sum(1) for r in relevance)
    parts = np.asarray(own.get("ledger_by_node", ledger), np.float64).reshape(explained.size, -1)
    scale = np.maximum.reduce([abs(explained), abs(ledger), abs(np.asarray(total)), abs(parts).max(1, initial=0.0)])
    error = float(np.max(abs(total + ledger - explained) / np.maximum(scale, 1e-30)))
    closure = max(CLOSURE, CLOSURE_STEPS * float(np.finfo(own["explained"].dtype).eps))
    report.add("ledger", error <= closure, f"sum of relevance + ledger - explained = {error:.1e} of the largest sum")


def _target(report: CheckReport, ours: Session, names: list[str], feed: Inputs, default: dict[str, Any]) -> None:
    """A target out of range leaves the prediction alone and gives zeros."""
    target = ours.metadata.get("xaicompile.target")
    if target not in {port.name for port in ours.overridable}:
        return
    maps = json.loads(ours.metadata.get("xaicompile.maps") or "null")
    result = ours.run({**feed, target: np.full([1] if maps is None else [1, maps], BIG, np.int64)})
    same = all(_difference(default[name], result[name]) == 0 for name in names)
    stated = json.loads(ours.metadata.get("xaicompile.relevance") or "{}").values()
    zero = all(not np.any(result[name]) for name in stated)
    detail = "out of range: relevance is zero" if zero else "out of range, yet the relevance is not zero"
    report.add("target", same and zero, detail if same else "changes the prediction")
