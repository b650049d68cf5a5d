"""compile(): the whole pipeline."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xaicompile import bodies, books, gaps, ir, registry, relevance, vjp
from xaicompile import composite as composites
from xaicompile._version import __version__
from xaicompile.backward import Flow, Ledger, backward
from xaicompile.concepts import Mask, layer_of, masks_of, taps_of, top_outputs
from xaicompile.errors import OutputError, RuleError, UnsupportedError
from xaicompile.explained import End, Explained, Given, all_together, apart, choose_inputs, choose_output
from xaicompile.facts import Facts, find_constants
from xaicompile.images import bounds
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.model import ModelLike
from xaicompile.outputs import Outputs, input_names, ledger_outputs, named, relevance_outputs, result_of, stacked
from xaicompile.passes import canonical, control, expand
from xaicompile.plugins import load as load_plugins
from xaicompile.registry import Absorbed
from xaicompile.samples import Samples
from xaicompile.seeds import Contrast, Question, Reduce, Target, seeds_of

__all__ = ["Assignment", "Compiled", "compile_model", "relevance", "vjp"]

RECTIFYING = {"gradient", "default", "guided"}  # rules that pass nothing where a ReLU, or a Clip at 0, was off


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
    target: Target = None,
    explain_output: str | None = None,
    explain_input: str | Sequence[str] | None = None,
    explain_reduce: Reduce | None = None,
    maps: int | None = None,
    contrast: Contrast | None = None,
    normalise: bool = False,
    layers: Sequence[str] = (),
    concepts: Sequence[str] = (),
    top_concepts: int | None = None,
    ledger: bool = False,
    audit: bool = False,
    plugins: Sequence[str | os.PathLike[str]] = (),
    preprocess: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compiles a model and reports what was done; `xaicompile.compile` says what the arguments are.

    `audit` adds the outputs that `xaicompile.audit` reads: the books of each node (see `xaicompile.books`).
    """
    loaded = load_plugins(plugins)
    rules = composites.load(Path(rule) if isinstance(rule, os.PathLike) else rule, parameters)
    known = bounds(preprocess)
    rules.set({key: value for key, value in known.items() if rules.accepted.get(key, value) is None})
    check_output(rules, ledger or audit, normalise, [*layers, *concepts], top_concepts)
    p = ir.load(model)
    b = p.builder
    b.method = rules.name
    find_constants(p)
    changed = bodies.run(p)
    if bodies.quantised.run(p, [explain_output or "", *layers, *concepts]) or changed:
        find_constants(p)
    end = choose_output(p, explain_output)
    inputs = choose_inputs(p, explain_input, p.notes)
    starts = [t.name for given in inputs for t in given.starts]
    control.take_branches(p)
    expand.run(p)
    canonical.run(p, end.tensor.name, [*layers, *concepts])
    facts = Facts(p, starts, box_of(rules.parameters))
    views = control.on_the_way(p, facts, [end.tensor])
    between = {t.name for view in views for t in (*view.x, *view.y) if facts.on_path(t) and t is not None}
    shown = [tapped(p, name, between) for name in layers]
    masks = masks_of(b, [layer_of(facts, tapped(p, name, between)) for name in concepts])
    control.open_bodies(p, facts, views)
    choices = composites.assign(rules, views, facts)
    for known_there, there in [(facts, views), *((body.facts, body.views) for _, body in control.each_body(views))]:
        known_there.trust_activations(v for v in there if rectifies(choices[v]))
    assignments = [described(choices[v], seen) for v, seen in control.inside_facts(views, facts)]
    gaps.refuse(control.inside(views), assignments)

    asked = Question(target, explain_reduce, maps, contrast, normalise)
    seeds = seeds_of(p, end, inputs[0].tensor, asked)
    if not facts.on_path(end.tensor):
        seeds.notes.append(f"relevance is zero: none of '{end.tensor.name}' can reach an explained input")
    samples = None
    if ledger or audit:
        samples = apart(views, facts, inputs, end.tensor)
        if samples.mixed and seeds.each[0].batched:
            seeds.notes.append(f"one ledger for all samples together: {samples.mixed}")
    plan = Plan(p, facts, rules, views, choices, end, inputs, shown, masks, top_concepts, samples, audit)
    with gaps.told(assignments):
        made = [one_map(plan, seed) for seed in seeds.each]
    outputs = stacked(b, [m for m, _ in made], int(seeds.each[0].batched)) if seeds.stacked else made[0][0]
    ledger_nodes = made[0][1]
    final = {name: named(b, t, name) for name, t in outputs.items()}
    names = {x: final[y].name for x, y in input_names(inputs).items()}
    metadata = {
        "version": __version__,
        "rule": rules.name,
        "rule_text": rules.text,
        "rule_sha256": rules.sha256,
        "parameters": {k: v for k, v in rules.accepted.items() if v is not None},
        "plugins": loaded or None,
        "source_sha256": p.source.sha256,
        "explain_output": end.tensor.name,
        "relevance": names,
        "target": seeds.target,
        "maps": maps,
        "contrast": contrast,
        "concepts": {mask.layer.tensor.name: mask.given.name for mask in masks} or None,
        "ledger_nodes": ledger_nodes,
        "audit_nodes": [v.name for v in views] if audit else None,
        "preprocess": None if preprocess is None else dict(preprocess),
    }
    overridable = {mask.given.name: mask.default for mask in masks}
    overridable |= {seeds.target: seeds.default} if seeds.target else {}
    return Compiled(
        ir.emit(p, list(final.values()), overridable, as_properties(metadata)),
        assignments,
        end.cut,
        p.notes + end.notes + seeds.notes + composites.unused(rules, list(choices.values())),
        names,
        seeds.target,
        p.source.path.parent if p.source.path and p.source.external else None,
        p.source.path,
    )


@dataclass(frozen=True)
class Plan:
    """What is decided before anything flows back.

    Attributes:
        views: What is explained, in graph order.
        choices: The rule of each view.
        end: Where the backward passes start.
        inputs: Where they end.
        shown: Inner tensors whose relevance is given out.
        masks: Inner tensors whose channels may be masked.
        samples: Where samples are, if a ledger is kept.
    """

    p: Program
    facts: Facts
    rules: composites.Composite
    views: Sequence[View]
    choices: Mapping[View, composites.Choice]
    end: End
    inputs: Sequence[Given]
    shown: Sequence[Tensor]
    masks: Sequence[Mask]
    top_concepts: int | None
    samples: Samples | None
    audit: bool


def one_map(plan: Plan, seed: Explained) -> tuple[Outputs, list[str] | None]:
    """The outputs for one start, by name, and the nodes of its ledger."""
    p, b, kind = plan.p, plan.p.builder, plan.rules.output
    kept: Ledger | None = None if plan.samples is None else {}
    arrived: dict[str, Flow] = {}
    taps = taps_of(b, plan.masks, arrived, kept)
    if plan.audit:
        taps = books.watching(p, plan.facts, taps, arrived)
    ends = [*(t for given in plan.inputs for t in given.starts), *plan.shown]
    seeded, names = {plan.end.tensor.name: seed.cotangent}, [t.name for t in ends]
    found = backward(p, plan.facts, seeded, names, lambda v: plan.choices[v].picked, taps=taps, ledger=kept)
    results = {t.name: result_of(p, kind, t, found[t.name]) for t in ends}
    outputs = relevance_outputs(b, plan.inputs, plan.shown, results)
    if plan.top_concepts is not None:
        layers = {t.name: t for t in (*plan.shown, *(mask.layer.tensor for mask in plan.masks))}
        flows = {**found, **arrived}  # of a masked layer what came to it
        before = {name: result_of(p, kind, t, flows[name]) for name, t in layers.items()}
        outputs |= top_outputs(b, [layer_of(plan.facts, t) for t in layers.values()], before, plan.top_concepts)
    if kept is None or plan.samples is None:
        return outputs, None
    if not plan.facts.on_path(plan.end.tensor):  # nothing was handed on to anyone
        kept["none"] = [Absorbed(plan.end.tensor * seed.cotangent, "other")]
    if plan.samples.mixed:
        seed = all_together(b, seed)
    more, nodes = ledger_outputs(b, seed, kept, plan.samples)
    if plan.audit:
        more |= books.outputs(p, plan.views, seed, arrived, kept, plan.samples)
    return outputs | more, nodes


def check_output(
    rules: composites.Composite, ledger: bool, normalise: bool, layers: Sequence[str], top_concepts: int | None
) -> None:
    """Refuses what only relevance has, for rule sets that give cotangents, and a ranking of nothing.

    Raises:
        RuleError: Names what was asked for.
    """
    if top_concepts is not None and not layers:
        raise RuleError("--top-concepts ranks the channels of layers: name some with --layers or --concepts")
    if rules.output != "relevance" and (ledger or normalise):
        what = "a ledger could be kept" if ledger else "a share could be given"
        raise RuleError(f"rule '{rules.name}' gives no relevance, of which {what}")


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


def tapped(p: Program, name: str, between: Collection[str]) -> Tensor:
    """An intermediate tensor whose relevance is wanted."""
    if name not in p.tensors:
        raise registry.nearest(name, p.tensors, "layer (tensor name)")
    if name in p.hidden:
        inside = p.hidden[name]
        raise UnsupportedError(
            f"tensor '{name}' lies inside {' + '.join(inside.nodes)}, which are read as one {inside.op}; "
            f"ask for '{inside.out().name}' instead"
        )
    if name not in between:
        raise UnsupportedError(f"tensor '{name}' is not between an explained input and the explained output")
    return p.tensors[name]


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
