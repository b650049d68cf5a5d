"""One backward pass for each map: gradients and every LRP rule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xaicompile import books, gaps, registry
from xaicompile.backward import Flow, Ledger, backward
from xaicompile.composite import Composite
from xaicompile.concepts import Mask, layer_of, masks_of, taps_of, top_outputs
from xaicompile.errors import UnsupportedError
from xaicompile.explained import End, Explained, Given, all_together, apart
from xaicompile.facts import Facts, Interval
from xaicompile.ir import Program, Tensor
from xaicompile.outputs import Outputs, ledger_outputs, relevance_outputs, result_of, stacked
from xaicompile.passes import canonical
from xaicompile.registry import Absorbed
from xaicompile.ruled import Ruled, ruled
from xaicompile.samples import Samples
from xaicompile.seeds import Question, Seeds, seeds_of
from xaicompile.timefirst import behind_time, seeds_behind_time


@dataclass(frozen=True)
class Wanted:
    """What else is to be given out.

    Attributes:
        layers: Inner tensors whose relevance is given out.
        concepts: Inner tensors whose channels may be masked.
        top_concepts: How many channels of each of them are ranked.
        books: Whether a ledger is kept.
        audit: Whether what arrives at each node is given out as well.
    """

    layers: Sequence[str] = ()
    concepts: Sequence[str] = ()
    top_concepts: int | None = None
    books: bool = False
    audit: bool = False


@dataclass(frozen=True)
class Made:
    """What was emitted beside the prediction.

    Attributes:
        outputs: By name.
        inputs: Defaults of new inputs, by name; without the target's.
        metadata: What the model's metadata should say of it.
    """

    outputs: Outputs
    seeds: Seeds
    ruled: Ruled
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is decided before anything flows back.

    Attributes:
        end: Where the backward passes start.
        inputs: Where they end.
        shown: Inner tensors whose relevance is given out.
        masks: Inner tensors whose channels may be masked.
        samples: Where samples are, if a ledger is kept.
    """

    p: Program
    facts: Facts
    rules: Composite
    ruled: Ruled
    end: End
    inputs: Sequence[Given]
    shown: Sequence[Tensor]
    masks: Sequence[Mask]
    top_concepts: int | None
    samples: Samples | None
    audit: bool


def direct(
    p: Program,
    rules: Composite,
    end: End,
    inputs: Sequence[Given],
    box: Interval,
    asked: Question,
    wanted: Wanted,
) -> Made:
    """Emits a backward pass for each map that is asked for."""
    b = p.builder
    canonical.run(p, end.tensor.name, [*wanted.layers, *wanted.concepts])
    facts = Facts(p, [t.name for given in inputs for t in given.starts], box)
    chosen = ruled(p, facts, rules, end.tensor)
    between = {t.name for view in chosen.views for t in (*view.x, *view.y) if facts.on_path(t) and t is not None}
    shown = [tapped(p, name, between) for name in wanted.layers]
    masks = masks_of(b, [layer_of(facts, tapped(p, name, between)) for name in wanted.concepts])
    behind, first = behind_time(chosen.views, facts, inputs, end.tensor), inputs[0].tensor
    if behind is None:
        seeds = seeds_of(p, end, first, asked, rules.pool)
    else:
        by_axis_0 = bool(wanted.concepts) or wanted.top_concepts is not None
        seeds = seeds_behind_time(p, end, first, asked, rules.pool, behind, by_axis_0)
    if not facts.on_path(end.tensor):
        seeds.notes.append(f"relevance is zero: none of '{end.tensor.name}' can reach an explained input")
    samples = None
    if wanted.books:
        samples = apart(chosen.views, facts, inputs, end.tensor)
        if samples.mixed and seeds.each[0].batched:
            seeds.notes.append(f"one ledger for all samples together: {samples.mixed}")
    plan = Plan(p, facts, rules, chosen, end, inputs, shown, masks, wanted.top_concepts, samples, wanted.audit)
    with gaps.told(chosen.assignments):
        made = [one_map(plan, seed) for seed in seeds.each]
    outputs = stacked(b, [m for m, _ in made], int(seeds.each[0].batched)) if seeds.stacked else made[0][0]
    metadata = {
        "concepts": {mask.layer.tensor.name: mask.given.name for mask in masks} or None,
        "ledger_nodes": made[0][1],
        "audit_nodes": [v.name for v in chosen.views] if wanted.audit else None,
    }
    return Made(outputs, seeds, chosen, {mask.given.name: mask.default for mask in masks}, metadata)


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
    found = backward(p, plan.facts, seeded, names, plan.ruled.pick, taps=taps, ledger=kept)
    results = {t.name: result_of(p, kind, t, found[t.name]) for t in ends}
    outputs = relevance_outputs(b, plan.inputs, plan.shown, results)
    if plan.top_concepts is not None:
        layers = {t.name: t for t in (*plan.shown, *(mask.layer.tensor for mask in plan.masks))}
        flows = {**found, **arrived}  # of a masked layer what came to it
        before = {name: result_of(p, kind, t, flows[name]) for name, t in layers.items()}
        outputs |= top_outputs(b, [layer_of(plan.facts, t) for t in layers.values()], before, plan.top_concepts)
    if plan.end.score and plan.end.score not in {t.name for t in p.outputs}:
        outputs[plan.end.score] = seed.value
    if kept is None or plan.samples is None:
        return outputs, None
    if seed.surplus is not None:
        kept[plan.end.score or "seed"] = [Absorbed(-seed.surplus, "other")]
    if not plan.facts.on_path(plan.end.tensor):  # nothing was handed on to anyone
        kept["none"] = [Absorbed(plan.end.tensor * seed.cotangent, "other")]
    if plan.samples.mixed:
        seed = all_together(b, seed)
    more, nodes = ledger_outputs(b, seed, kept, plan.samples)
    if plan.audit:
        more |= books.outputs(p, plan.ruled.views, seed, arrived, kept, plan.samples)
    return outputs | more, nodes


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
