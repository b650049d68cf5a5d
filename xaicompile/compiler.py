"""compile(): the whole pipeline."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xaicompile import bodies, ir, neuralization, relevance, vjp
from xaicompile import composite as composites
from xaicompile._version import __version__
from xaicompile.direct import Made, Wanted, direct
from xaicompile.errors import OutputError, RuleError
from xaicompile.evaluation import Flipping, flipped, settings
from xaicompile.explained import End, Given, choose_inputs, choose_output
from xaicompile.facts import find_constants
from xaicompile.images import bounds
from xaicompile.ir.model import ModelLike
from xaicompile.methods import WITHOUT_TARGET, by_method, similarity, smoothed, walks
from xaicompile.outputs import Outputs, input_names, named
from xaicompile.passes import control, expand
from xaicompile.plugins import load as load_plugins
from xaicompile.registry import nearest
from xaicompile.ruled import Assignment
from xaicompile.seeds import Contrast, Question, Reduce, Target

__all__ = ["Assignment", "Compiled", "compile_model", "relevance", "vjp"]


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
    neuralize: str | Sequence[str] = (),
    pool: str | int | None = None,
    inner: str | os.PathLike[str] | None = None,
    project: int | None = None,
    structure: str | Sequence[str] | None = None,
    all_walks: bool = False,
    top_walks: int | None = None,
    normalise: bool = False,
    smooth: int | None = None,
    sigma: float | None = None,
    chunk: int | None = None,
    evaluate: str | None = None,
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
    how, parameters = evaluation_of(evaluate, parameters or {})
    late = smooth or inner  # the rule set takes other parameters then
    by = pool if isinstance(pool, str) else None
    rules = composites.load(Path(rule) if isinstance(rule, os.PathLike) else rule, {} if late else parameters, by)
    smoothed(rules, smooth, sigma)
    similarity.adjust(rules, pool, inner, project)
    walks.adjust(rules, structure, all_walks, top_walks)
    rules.set(parameters if late else {})
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
    asked_kinds = [neuralize] if isinstance(neuralize, str) else neuralize
    kinds = neuralization.kinds_of(p, asked_kinds, rules, explain_output is not None)
    end = choose_output(p, explain_output, any_type=bool(kinds))
    inputs = choose_inputs(p, walks.features(p, rules, explain_input), p.notes)
    control.take_branches(p)
    expand.run(p)
    if kinds:
        end = neuralization.run(p, kinds, end, explain_output is not None)
    known_box = box_of(rules.parameters)
    asked = Question(target, explain_reduce, maps, contrast, normalise)
    wanted = Wanted(layers, concepts, top_concepts, ledger or audit, audit)
    if rules.method:
        made = by_method(p, rules, end, inputs, asked, wanted, chunk)
    else:
        forward = [v.varied(x=list(v.x), y=list(v.y)) for v in p.views]  # as it stands, for other inputs
        made = direct(p, rules, end, inputs, known_box, asked, wanted)
        p.views = forward if how else p.views
    if how is not None:
        made.outputs.update(evaluated(p, rules, end, inputs, made, how, chunk))
    numbers = {name: b.const(np.asarray([v], end.tensor.dtype)) for name, v in end.constants.items()}
    final = {name: named(b, t, name) for name, t in {**made.outputs, **numbers}.items()}
    names = {x: final[y].name for x, y in input_names(inputs).items() if y in final}
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
        "target": made.seeds.target,
        "maps": maps,
        "contrast": contrast,
        "neuralized": end.score or None,
        "evaluate": None if how is None else {evaluate: asdict(how)},
        **made.metadata,
        "preprocess": None if preprocess is None else dict(preprocess),
    }
    target_input = {made.seeds.target: made.seeds.default} if made.seeds.target else {}
    return Compiled(
        ir.emit(p, list(final.values()), {**made.inputs, **target_input}, as_properties(metadata)),
        made.ruled.assignments,
        end.cut,
        p.notes + end.notes + made.seeds.notes + composites.unused(rules, list(made.ruled.choices.values())),
        names,
        made.seeds.target,
        p.source.path.parent if p.source.path and p.source.external else None,
        p.source.path,
    )


def evaluation_of(evaluate: str | None, parameters: Mapping[str, Any]) -> tuple[Flipping | None, Mapping[str, Any]]:
    """How the explanation is evaluated, and the parameters that are left for the rule set.

    Raises:
        RuleError: An unknown evaluation.
    """
    if evaluate is None:
        return None, parameters
    if evaluate != "pixel-flipping":
        raise nearest(evaluate, ["pixel-flipping"], "evaluation")
    return settings(parameters)


def evaluated(
    p: ir.Program,
    rules: composites.Composite,
    end: End,
    inputs: Sequence[Given],
    made: Made,
    how: Flipping,
    chunk: int | None,
) -> Outputs:
    """The outputs of an evaluation.

    Raises:
        RuleError: Several maps or inputs, or a rule set that gives no relevance.
    """
    if made.seeds.stacked or len(inputs) > 1 or rules.output != "relevance" or rules.method in WITHOUT_TARGET:
        raise RuleError("--evaluate pixel-flipping needs a rule set that gives relevance, one map and one input")
    if end.score:
        raise RuleError("--evaluate pixel-flipping follows an output of the model, and not what --neuralize explains")
    with p.builder.scope("flipping"):
        relevance = made.outputs[input_names(inputs)[inputs[0].tensor.name]]
        return flipped(p, rules, end, inputs[0], made.seeds.each[0], relevance, how, chunk)


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
