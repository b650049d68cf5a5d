"""compile(): the whole pipeline."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from xaicompile import bodies, gaps, ir, registry, relevance, tokens, vjp
from xaicompile import composite as composites
from xaicompile._version import __version__
from xaicompile.backward import Flow, Ledger, backward
from xaicompile.errors import OutputError, RuleError, UnsupportedError
from xaicompile.explained import Explained, Given, choose_inputs, choose_output, seed_of, total_per_sample
from xaicompile.facts import Facts, find_constants
from xaicompile.images import bounds
from xaicompile.ir import Program, Tensor
from xaicompile.ir.model import ModelLike
from xaicompile.passes import canonical, control, expand

__all__ = ["Assignment", "Compiled", "compile_model", "relevance", "vjp"]

RECTIFYING = {"gradient", "default", "guided"}  # rules that pass nothing where a ReLU, or a Clip at 0, was off
Reduce = Literal["sum", "mean", "max"]


@dataclass(frozen=True)
class Assignment:
    """Which rule a node got, and why."""

    node: str
    op: str
    rule: str
    reason: str
    facts: str


@dataclass
class Compiled:
    """An emitted model and what was done to make it.

    Attributes:
        model: Prediction and relevance in one standalone ONNX model.
        assignments: One per explained node, in graph order.
        cut: Trailing nodes left out of the explanation (never out of the prediction).
        notes: What else the user should know.
        relevance: Name of the relevance output by explained input.
        target: Name of the input that chooses the explained element, "" if there is none.
        base_dir: Folder of the source's external data, None if it has none.
        source: The file that was compiled, None for bytes and protos.
    """

    model: onnx.ModelProto
    assignments: list[Assignment] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    relevance: dict[str, str] = field(default_factory=dict)
    target: str = ""
    base_dir: Path | None = None
    source: Path | None = None

    def save(self, path: str | os.PathLike[str], force: bool = False) -> list[Path]:
        """Writes the model (external data beside it) and returns the files written; an older file is replaced.

        Raises:
            OutputError: The place can't be written; or, without `force`, it is the source itself, or external data
                would be replaced.
        """
        if self.source is not None and Path(path).exists() and Path(path).samefile(self.source) and not force:
            raise OutputError(f"{path} is the input itself; choose another output, or --force to overwrite it")
        return ir.save(self.model, Path(path), self.base_dir, force)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Holds garbage collection: all of a graph is alive, and walking it over and over takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collector_paused()
def compile_model(
    model: ModelLike,
    rule: str | os.PathLike[str] = "lrp-gamma",
    *,
    parameters: Mapping[str, Any] | None = None,
    target: int | Sequence[int] | None = None,
    explain_output: str | None = None,
    explain_input: str | Sequence[str] | None = None,
    explain_reduce: Reduce | None = None,
    layers: Sequence[str] = (),
    ledger: bool = False,
    preprocess: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compiles a model and reports what was done; `xaicompile.compile` says what the arguments are."""
    rules = composites.load(Path(rule) if isinstance(rule, os.PathLike) else rule, parameters)
    known = bounds(preprocess)
    rules.set({key: value for key, value in known.items() if rules.accepted.get(key, value) is None})
    if ledger and rules.output != "relevance":
        raise RuleError(f"rule '{rules.name}' gives no relevance, of which a ledger could be kept")
    p = ir.load(model)
    p.builder.method = rules.name
    find_constants(p)
    changed = bodies.run(p)
    if bodies.quantised.run(p, [explain_output or "", *layers]) or changed:
        find_constants(p)
    end = choose_output(p, explain_output)
    inputs = choose_inputs(p, explain_input, p.notes)
    starts = [t for given in inputs for t in given.starts]
    control.take_branches(p)
    expand.run(p)
    canonical.run(p, end.tensor.name, layers)
    facts = Facts(p, [t.name for t in starts], box_of(rules.parameters))
    taps = [tapped(p, facts, name) for name in layers]
    views = control.on_the_way(p, facts, [end.tensor])
    control.open_bodies(p, facts, views)
    choices = composites.assign(rules, views, facts)
    for known_there, there in [(facts, views), *((body.facts, body.views) for _, body in control.each_body(views))]:
        known_there.trust_activations(v for v in there if rectifies(choices[v]))
    assignments = [described(choices[v], seen) for v, seen in control.inside_facts(views, facts)]
    gaps.refuse(control.inside(views), assignments)

    seed = seed_of(p, end, inputs[0].tensor, target, explain_reduce)
    kept: Ledger | None = {} if ledger else None
    with gaps.told(assignments):
        found = backward(
            p,
            facts,
            {end.tensor.name: seed.cotangent},
            [t.name for t in (*starts, *taps)],
            lambda view: choices[view].picked,
            ledger=kept,
        )
    results = {t.name: result_of(p, rules.output, t, found[t.name]) for t in (*starts, *taps)}
    outputs, names = relevance_outputs(p, inputs, taps, results)
    more, ledger_nodes = ledger_outputs(p, seed, kept) if kept is not None else ([], None)
    metadata = {
        "version": __version__,
        "rule": rules.name,
        "rule_text": rules.text,
        "rule_sha256": rules.sha256,
        "parameters": {k: v for k, v in rules.accepted.items() if v is not None},
        "source_sha256": p.source.sha256,
        "explain_output": end.tensor.name,
        "relevance": names,
        "target": seed.target,
        "ledger_nodes": ledger_nodes,
        "preprocess": None if preprocess is None else dict(preprocess),
    }
    overridable = {seed.target: seed.default} if seed.target else {}
    return Compiled(
        ir.emit(p, [*outputs, *more], overridable, as_properties(metadata)),
        assignments,
        end.cut,
        p.notes + end.notes + seed.notes + composites.unused(rules, list(choices.values())),
        names,
        seed.target,
        p.source.path.parent if p.source.path and p.source.external else None,
        p.source.path,
    )


def rectifies(choice: composites.Choice) -> bool:
    """True if the rule passes nothing where the output is 0, and all of what arrives where it is the input."""
    return choice.rule in RECTIFYING or (choice.rule in ("identity", "pass") and choice.view.op == "Relu")


def as_properties(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata under the names and in the form that a model carries: text as it is, all else as JSON."""
    given = {k: v for k, v in metadata.items() if v is not None}
    return {
        f"xaicompile.{k}": v if isinstance(v, str) else json.dumps(v, default=np.ndarray.tolist)
        for k, v in given.items()
    }


def box_of(parameters: Mapping[str, Any]) -> tuple[float, float]:
    """The interval that low and high, if given, prove for the explained inputs."""
    low, high = parameters.get("low"), parameters.get("high")
    if low is None or high is None:
        return -np.inf, np.inf
    return float(np.min(low)), float(np.max(high))


def tapped(p: Program, facts: Facts, name: str) -> Tensor:
    """An intermediate tensor whose relevance is wanted."""
    if name not in p.tensors:
        raise registry.nearest(name, p.tensors, "layer (tensor name)")
    if name in p.hidden:
        inside = p.hidden[name]
        raise UnsupportedError(
            f"tensor '{name}' lies inside {' + '.join(inside.nodes)}, which are read as one {inside.op}; "
            f"ask for '{inside.out().name}' instead"
        )
    if not facts.on_path(p.tensors[name]):
        raise UnsupportedError(f"tensor '{name}' is not between an explained input and the explained output")
    return p.tensors[name]


def result_of(p: Program, kind: str, t: Tensor, flow: Flow) -> Tensor:
    """What is given out for a tensor: its relevance, or its cotangent."""
    with p.builder.scope(t.name):
        result = flow.cotangent(p.builder, t) if kind == "cotangent" else flow.relevance(p.builder, t)
        result.shape = ir.build.merged(t.shape, result.shape)
        return result


def relevance_outputs(
    p: Program, inputs: Sequence[Given], taps: Sequence[Tensor], results: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, str]]:
    """The outputs, the explained inputs' first, and their names by input."""
    b, outputs, names = p.builder, [], {}
    for given in inputs:
        t = results.get(given.tensor.name)
        if t is None:
            t = tokens.per_token(b, given.tensor, given.starts, [results[s.name] for s in given.starts])
        outputs.append(named(b, t, "relevance" if len(inputs) == 1 else f"relevance_{given.tensor.name}"))
        names[given.tensor.name] = outputs[-1].name
    outputs += [named(b, results[t.name], f"relevance_{t.name}") for t in taps]
    return outputs, names


def named(b: ir.Builder, t: Tensor, name: str) -> Tensor:
    """The tensor as an output of a certain name (with a number behind it if the model has that name already)."""
    out = t if t.name in b.made else b.op("Identity", t)
    while out.name in b.outputs:  # one tensor under several names
        out = b.op("Identity", out)
    b.rename(out, b.unique(name))
    return out


def ledger_outputs(p: Program, seed: Explained, kept: Ledger) -> tuple[list[Tensor], list[str]]:
    """`explained` [N], `ledger` [N] and `ledger_by_node` [N, nodes], and the nodes' names."""
    b = p.builder
    columns, names = [], []
    for node, amounts in reversed(kept.items()):
        if amounts:
            with b.scope(node):
                total = b.add_all([total_per_sample(b, a.amount, seed) for a in amounts])
                columns.append(b.Unsqueeze(total, [1]))
                names.append(node)
    if not columns:
        columns, names = [b.Unsqueeze(seed.value * 0.0, [1])], ["none"]
    by_node = b.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
    everything = b.sum_axes(by_node, [1])
    outputs = [("explained", seed.value), ("ledger", everything), ("ledger_by_node", by_node)]
    return [named(b, t, name) for name, t in outputs], names


def described(choice: composites.Choice, facts: Facts) -> Assignment:
    """A choice in words."""
    view, said = choice.view, []
    if view.x and view.x[0] is not None:
        low, high = facts.bounds(view.x[0])
        if (low, high) != (-np.inf, np.inf):
            said.append(f"input in [{low:g}, {high:g}]")
    if view.y and view.y[0] is not None and view.y[0].name in facts.activation:
        said.append("feeds only a ReLU")
    if len(view.nodes) > 1:
        said.append(f"reads {' + '.join(view.nodes)}")
    return Assignment(view.name, view.op, choice.rule, choice.reason, "; ".join(said))
