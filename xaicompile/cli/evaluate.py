"""`xaicompile evaluate`: which explanation to prefer, for a model and data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from xaicompile import summary
from xaicompile.cli.group import cli
from xaicompile.cli.options import device_option, json_option, parameters_of, preprocess_of, preprocess_options
from xaicompile.errors import RuleError

PARTLY = 7  # exit code: done, but something had to be left out


@cli.command("evaluate")
@click.argument("model")
@click.option("--rule", "-r", "rules", multiple=True, metavar="R[:K=V,...]", help="A rule set to compare (repeatable).")
@click.option("--preset", metavar="NAME", help="A named comparison, or a TOML file; options override it.")
@click.option("--data", required=True, metavar="DIR|NPZ", help="Photos or .npy files in a folder, or arrays.")
@click.option("--labels", metavar="FILE", help="CSV of names and labels, or one a line (else labels.csv, or the .npz).")
@click.option("--masks", metavar="DIR|FILE", help="Where relevance should lie: pictures, or a CSV of boxes.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="How values are flipped: steps, fraction, patch, replacement, score, seed (repeatable).",
)
@click.option("--target", metavar="T", help="What is explained: predicted (default), label, or an index.")
@click.option("--samples", type=click.IntRange(1), metavar="N", help="Only the first N samples.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples at once, and in one block of results (16).")
@click.option("--random-seeds", type=click.IntRange(0), metavar="N", help="Random orders in the baseline (10).")
@click.option("--artifact", metavar="FILE", help="A mark to plant into each image: does relevance find it?")
@click.option(
    "--artifact-at", default="0,0", show_default=True, metavar="X,Y", help="Its corner; negative: from behind."
)
@click.option(
    "--artifact-target", type=int, metavar="T", help="The output that is explained there (else as without it)."
)
@click.option("--explain-output", metavar="NAME", help="Explain this tensor as it is (default: the logits).")
@click.option("--explain-input", metavar="NAME", help="Explain this input, where there are several.")
@click.option("--output", "-o", default="report", show_default=True, metavar="DIR", help="Where the report goes.")
@click.option("--examples", default=4, show_default=True, type=click.IntRange(0), help="Samples whose maps are shown.")
@click.option("--costs/--no-costs", default=True, help="Measure memory, file size and run time (default: yes).")
@click.option("--sanity/--no-sanity", default=True, help="Randomise weights, compare classes (default: yes).")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Actors of --engine ray.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a session (default: the runtime's choice).")
@preprocess_options
@device_option
@click.option("--force", is_flag=True, help="Start anew in a folder that holds something else.")
@json_option
def evaluate_command(output: str, as_json: bool, **options: Any) -> None:
    """Compare explanations of MODEL on data, and write a report: fidelity, understandability, sufficiency, overhead,
    run time.

    Each rule is compiled once; pixel flipping runs inside the graph. An evaluation that was broken off goes on where
    it was, if it is started again.
    """
    from xaicompile.evaluation.run import evaluate

    plan = plan_of(options)
    report = evaluate(
        plan,
        output,
        by=options["engine"],
        workers=options["workers"],
        force=options["force"],
        costs=options["costs"],
        checks=options["sanity"],
        examples=options["examples"],
        command=" ".join(["xaicompile", *sys.argv[1:]]),
        progress=bar,
    )
    if as_json:
        click.echo((Path(output) / "report.json").read_text(encoding="utf-8"))
    else:
        click.echo("\n".join(lines(report)))
        click.echo(f"{Path(output) / 'report.html'}")
    for left in report["skipped"]:
        click.echo(f"skipped {left['name']}: {left['reason']}", err=True)
    for left in report["failed"]:
        click.echo(f"rule {left['rule']} failed: {left['reason']}", err=True)
    if report["skipped"] or report["failed"]:
        click.get_current_context().exit(PARTLY)


def plan_of(options: Mapping[str, Any]) -> Any:
    """The plan that a preset and the options give; options come first."""
    from xaicompile.evaluation import plan as plans

    preset = plans.read_preset(options["preset"]) if options["preset"] else {}
    given = {k: options[k] for k in ("samples", "batch", "random_seeds") if options[k] is not None}
    prepared = preprocess_of(options)
    rules = [*(preset.get("rules", [])), *(compared(r) for r in options["rules"])]
    target = options["target"] or preset.get("target", "predicted")
    return plans.Plan(
        **{
            **{k: v for k, v in preset.items() if k not in ("rules", "flipping", "preprocess", "target")},
            **given,
            "model": options["model"],
            "rules": tuple(rules),
            "data": options["data"],
            "labels": options["labels"],
            "masks": options["masks"],
            "target": target_of(target),
            "flipping": plans.flipping_of(preset.get("flipping", {}), parameters_of(options["settings"])),
            "preprocess": preset.get("preprocess") if prepared is None else prepared.to_dict(),
            "artifact": artifact_of(options),
            "explain_output": options["explain_output"],
            "explain_input": options["explain_input"],
            "device": options["device"],
            "threads": options["threads"],
        }
    )


def compared(text: str) -> Any:
    """A rule of the command line: `RULE`, or `RULE:KEY=VALUE,KEY=VALUE`."""
    from xaicompile.evaluation.plan import Compared

    rule, colon, rest = text.partition(":")
    if colon and "=" not in rest:
        return Compared(text, text)  # the path of a file on a drive
    return Compared(text, rule, parameters_of(tuple(rest.split(","))) if colon else {})


def target_of(text: str | int) -> str | int:
    """predicted, label, or an index."""
    if text in ("predicted", "label") or isinstance(text, int):
        return text
    try:
        return int(text)
    except ValueError:
        raise RuleError(f"--target {text}: expected predicted, label, or the index of an output") from None


def artifact_of(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is planted."""
    if options["artifact"] is None:
        return None
    try:
        x, y = (int(v) for v in options["artifact_at"].split(","))
    except ValueError:
        raise RuleError(f"--artifact-at {options['artifact_at']}: expected X,Y in pixels") from None
    return {"path": options["artifact"], "at": [x, y], "target": options["artifact_target"]}


def bar(blocks: Iterator[int], total: int) -> Iterator[int]:
    """Shows how far it is, on a terminal."""
    with click.progressbar(blocks, length=total, label="evaluating", file=sys.stderr) as shown:
        yield from shown


def lines(report: Mapping[str, Any]) -> list[str]:
    """The scorecard in short."""
    rows: list[tuple[str, ...]] = [
        ("rule", "AOPC", "95 %", "over random", "insertion", "PNG bytes", "Gini", "run time")
    ]
    for name, one in report["rules"].items():
        f, u, t = one["fidelity"], one["understandability"], one.get("runtime") or {}
        ratio = f"{t['ratio']:.2f}" if t.get("ratio") else ""
        fidelity = (mean(f["aopc"]), ends(f["aopc"]), ends(f["over_random"]), mean(f["insertion"]))
        rows.append((name, *fidelity, mean(u["png_bytes"], ".0f"), mean(u["gini"]), ratio))
    if report["random"]:
        area = report["random"]["aopc"]
        rows.append(("random", mean(area), ends(area), *[""] * 5))
    return [f"{report['samples']} samples", *summary.table(rows)]


def mean(interval: Mapping[str, float] | None, form: str = ".3g") -> str:
    """The mean of an interval, empty where it was not measured."""
    return "" if interval is None else format(interval["mean"], form)


def ends(interval: Mapping[str, float] | None) -> str:
    """The ends of an interval, empty where it was not measured."""
    return "" if interval is None else f"{interval['low']:.3g} to {interval['high']:.3g}"
