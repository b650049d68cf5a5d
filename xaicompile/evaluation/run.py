"""One evaluation from its plan to its report: compile each rule once, score the samples, sum up, draw."""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile import composite, runtime
from xaicompile._version import __version__
from xaicompile.compiler import Compiled, compile_model
from xaicompile.errors import ModelError, RuleError, RuntimeMissingError, XaiCompileError
from xaicompile.evaluation import engine, maps, overhead, page, plots, sanity
from xaicompile.evaluation.data import Sample
from xaicompile.evaluation.plan import Compared, Plan, check_files, distinct, resolved
from xaicompile.evaluation.score import Scorer, alike, scores_of
from xaicompile.evaluation.scorecard import Bootstrap, scorecard
from xaicompile.evaluation.store import Store, arrow

Progress = Callable[[Iterator[int], int], Iterator[int]]
CHECKED = 8  # samples on which sanity is checked


def evaluate(
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    by: str = "local",
    workers: int = 2,
    force: bool = False,
    costs: bool = True,
    checks: bool = True,
    examples: int = 4,
    command: str = "",
    progress: Progress = lambda blocks, total: blocks,
) -> dict[str, Any]:
    """Compares explanation techniques on a model and data, and writes the report.

    Args:
        plan: What is compared, on what and how.
        output: A folder: `report.html`, `report.json`, PNG plots, and `blocks/*.parquet` with a row for each sample
            and rule. If the same evaluation was broken off there, it goes on.
        by: "local", or "ray" for the actors of a Ray cluster.
        workers: How many of these.
        force: Start anew in a folder that holds something else.
        costs: Measure overhead and run time.
        checks: Randomise weights, and compare the maps of two classes.
        examples: How many samples' maps are shown.
        command: What the report says how it was made.
        progress: Wraps the blocks that are done one after the other; gets how many there will be.

    Returns:
        The report, as in `report.json`.

    Raises:
        ModelError: The model or the data can't be read, or not one sample can.
        RuleError: An unknown setting; or not one rule works.
        OutputError: The folder can't be written, or holds something else.
        RuntimeMissingError: A library is needed that is not installed.
    """
    libraries()
    check_files(plan)
    shown, plan = plan, resolved(replace(plan, rules=distinct(plan.rules)))
    store = Store(output)
    store.refuse(plan, force)
    made, failed = compiled_rules(plan)
    flips = compiled_flips(plan)
    new = not store.folder.exists()
    store.open(plan, force)
    paths = {name: store.folder / "models" / f"{i}.onnx" for i, name in enumerate(made)}
    for name, compiled in made.items():
        compiled.save(paths[name], force=True)
    for order, compiled in flips.items():
        compiled.save(store.folder / "models" / f"{order}.onnx", force=True)
    try:
        scorer = Scorer(plan, store.folder / "models", paths)
    except XaiCompileError:
        if new:
            shutil.rmtree(store.folder)
        raise
    blocks = store.missing(scorer.blocks)
    work = engine.by_ray(store, paths, blocks, workers) if by == "ray" else engine.local(scorer, store, blocks)
    for _ in progress(work, len(blocks)):
        pass
    table = store.read()
    report = heading(shown, scorer, command) | scorecard(table, plan, list(made))
    report["failed"] = failed + report["failed"]
    if not report["rules"]:
        reasons = [
            *(f"{f['rule']}: {f['reason']}" for f in report["failed"]),
            *(s["reason"] for s in report["skipped"]),
        ]
        if new:
            shutil.rmtree(store.folder)
        raise ModelError(f"not one sample could be explained; {reasons[0] if reasons else 'there is none'}")
    samples = readable(scorer, CHECKED)
    for compared in plan.rules:
        if compared.name in report["rules"]:
            entry = report["rules"][compared.name]
            entry |= about(made[compared.name], compared)
            entry |= measured(made[compared.name], plan, samples) if costs else {}
            entry["sanity"] = checked(scorer, plan, compared, samples) if checks else None
    report["examples"] = drawn(scorer, store.folder, readable(scorer, examples), list(report["rules"]))
    page.write_json(report, store.folder / "report.json")
    page.write_page(report, store.folder)
    return report


def libraries() -> None:
    """Says before the work which library is missing.

    Raises:
        RuntimeMissingError: Names it.
    """
    runtime.version()
    arrow()
    for name in ("jinja2", "matplotlib", "PIL"):
        if importlib.util.find_spec(name) is None:
            raise RuntimeMissingError(f'the report needs {name}; run `pip install "xaicompile[report]"`')


def explained(plan: Plan, compared: Compared, **more: Any) -> Compiled:
    """The model compiled with one rule."""
    return compile_model(
        plan.model,
        compared.rule,
        parameters=dict(compared.parameters),
        **options_of(plan),
        **more,
    )


def options_of(plan: Plan) -> dict[str, Any]:
    """Arguments of `compile_model` that hold for every rule."""
    return {
        "explain_output": plan.explain_output,
        "explain_input": plan.explain_input,
        "preprocess": plan.preprocess,
    }


def compiled_rules(plan: Plan) -> tuple[dict[str, Compiled], list[dict[str, Any]]]:
    """The explained model of each rule, and the rules that fail on this model.

    Raises:
        RuleError: An unknown rule or parameter.
        XaiCompileError: That of the first rule, if not one works.
    """
    for compared in plan.rules:
        composite.load(compared.rule, compared.parameters)
    made: dict[str, Compiled] = {}
    failed: list[tuple[str, XaiCompileError]] = []
    for compared in plan.rules:
        try:
            compiled = explained(plan, compared)
            if len(compiled.relevance) > 1:
                raise RuleError(f"explains {', '.join(compiled.relevance)}; choose one with --explain-input")
            check_shape(compiled)
            made[compared.name] = compiled
        except XaiCompileError as error:
            failed.append((compared.name, error))
    if not made:
        raise failed[0][1]
    return made, [{"rule": name, "reason": " ".join(str(error).split()), "samples": None} for name, error in failed]


def check_shape(compiled: Compiled) -> None:
    """Refuses relevance that is not that of the input's values, as that of pairs.

    Raises:
        RuleError: Says so.
    """
    ranks = {
        t.name: len(t.type.tensor_type.shape.dim) for t in (*compiled.model.graph.input, *compiled.model.graph.output)
    }
    for name, relevance in compiled.relevance.items():
        if ranks[name] == ranks[relevance]:
            return
    raise RuleError("its relevance is not one number for each value of the input, by which values could be flipped")


def compiled_flips(plan: Plan) -> dict[str, Compiled]:
    """The models that flip by relevance that they are given, in either order; "clean" gives the score as it is."""
    settings = {k: v for k, v in asdict(plan.flipping).items() if k != "order"}
    wanted = {"morf": settings, "lerf": settings, **({"clean": settings | {"steps": 1}} if plan.artifact else {})}
    found = {}
    for name, parameters in wanted.items():
        given = Compared(name, "given", parameters | {"order": "lerf" if name == "lerf" else "morf"})
        found[name] = explained(plan, given, evaluate="pixel-flipping")
    return found


def heading(plan: Plan, scorer: Scorer, command: str) -> dict[str, Any]:
    """What was evaluated, when and with what."""
    shape = [
        d
        for a, d in enumerate(scorer.port.shape)
        if a not in (0, (scorer.axis if scorer.axis is None else scorer.axis + 1))
    ]
    positions = [d for d in shape if isinstance(d, int)]
    unit = "tokens" if not scorer.floating else "features" if scorer.axis is None else "pixels"
    metadata = scorer.flips["morf"].metadata
    return {
        "title": Path(plan.model).name,
        "model": plan.model,
        "source_sha256": metadata.get("xaicompile.source_sha256"),
        "data": plan.data,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "runtime": f"ONNX Runtime {runtime.version()}",
        "device": plan.device,
        "command": command,
        "preset": plan.preset,
        "target": plan.target,
        "flipping": {**asdict(plan.flipping), "unit": unit, "units": int(np.prod(positions)) if positions else None},
    }


def about(compiled: Compiled, compared: Compared) -> dict[str, Any]:
    """What the rule is."""
    rules = composite.load(compared.rule, compared.parameters)
    known = {k: v for k, v in rules.accepted.items() if isinstance(v, str | int | float | bool)}
    return {"doc": rules.doc, "cite": rules.cite, "rule": compared.rule, "parameters": known}


def readable(scorer: Scorer, count: int) -> list[Sample]:
    """The first samples that can be read."""
    found: list[Sample] = []
    for i in range(len(scorer.data)):
        if len(found) == count:
            break
        try:
            found.append(scorer.data[i])
        except XaiCompileError:
            continue
    return found


def measured(compiled: Compiled, plan: Plan, samples: Sequence[Sample]) -> dict[str, Any]:
    """Overhead and run time of one rule, on one sample."""
    feed, device, threads = dict(samples[0].feed), plan.device, plan.threads
    return {
        "overhead": overhead.overhead(compiled, plan.model, feed, device=device, threads=threads),
        "runtime": overhead.runtime(compiled, plan.model, device=device, threads=threads),
    }


def checked(scorer: Scorer, plan: Plan, compared: Compared, samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Randomised weights and class sensitivity of one rule, on samples that go through the model together.

    Magnitudes of rank correlations: a map that only changes its sign shows the same.
    """
    samples = alike(samples, False)[0]
    feed = {name: np.concatenate([s.feed[name] for s in samples]) for name in samples[0].feed}
    targets = scorer.targets(samples)
    session, size = scorer.explained[compared.name], 1 if scorer.single else len(samples)
    boot = Bootstrap(len(samples))
    try:
        layers = sanity.cascade(
            plan.model,
            compared.rule,
            compared.parameters,
            feed,
            targets,
            channels=scorer.axis,
            batch=size,
            device=plan.device,
            threads=plan.threads,
            options=options_of(plan),
        )
        other = sanity.class_sensitivity(session, feed, targets, channels=scorer.axis, batch=size)
    except XaiCompileError:  # too large to be randomised, or a randomised model that does not run
        return None
    return {
        "layers": [{"layer": name, "similarity": boot.interval(np.abs(found))} for name, found in layers],
        "class_sensitivity": None if other is None else boot.interval(np.abs(other)),
        "samples": len(samples),
    }


def drawn(scorer: Scorer, folder: Path, samples: Sequence[Sample], rules: Sequence[str]) -> list[dict[str, Any]]:
    """Maps of some samples by every rule, as pictures."""
    found = []
    for i, sample in enumerate(samples):
        targets = scorer.targets([sample])
        ran = {name: scorer.run(scorer.explained[name], sample.feed, targets) for name in rules}
        flat = {
            name: maps.summed(scorer.relevance(scorer.explained[name], outputs)[0], scorer.axis)
            for name, outputs in ran.items()
        }
        session, outputs = scorer.explained[rules[0]], ran[rules[0]]
        target = int(scorer.largest(session, outputs)[0]) if targets[0] < 0 else int(targets[0])
        scores = np.asarray(outputs[scores_of(session).name][0], np.float64).reshape(-1)
        known = scorer.classes or []
        found.append(
            {
                "name": sample.name,
                "target": target,
                "class": known[target] if target < len(known) == scores.size else None,
                "label": None if sample.label < 0 else sample.label,
                "score": float(scores[target]) if target < scores.size else None,
                **plots.example_maps(folder, i, picture(scorer, sample), flat),
            }
        )
    return found


def picture(scorer: Scorer, sample: Sample) -> np.ndarray | None:
    """What is shown of a sample: its pixels, or its values; nothing of token ids."""
    if sample.pixels is not None or not scorer.floating:
        return sample.pixels
    values = np.asarray(sample.feed[scorer.explains][0], np.float64)
    if scorer.axis is None:
        return values
    values = np.moveaxis(values, scorer.axis, -1)
    return values[..., :3] if values.shape[-1] in (3, 4) else values[..., :1]
