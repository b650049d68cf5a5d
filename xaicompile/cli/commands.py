"""The commands. Whatever takes time to import is imported inside them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaicompile import summary
from xaicompile.cli.group import cli
from xaicompile.cli.options import (
    compiled_by,
    device_option,
    force_option,
    json_option,
    preprocess_of,
    preprocess_options,
    rule_options,
    show_json,
)
from xaicompile.errors import CheckFailed, OutputError, RuleError, UnsupportedError

if TYPE_CHECKING:
    from xaicompile.checks import CheckReport
    from xaicompile.compiler import Compiled

CHECK_BELOW = 10**9  # bytes of weights up to which compiling ends with a check


@cli.command("compile", hidden=True)
@click.argument("model")
@rule_options
@preprocess_options
@click.option("--output", "-o", metavar="FILE", help="Where to write (default: beside MODEL, as NAME.explained.onnx).")
@click.option("--check/--no-check", default=None, help="Run both models and compare (default: below 1 GB of weights).")
@force_option
@json_option
def compile_command(
    model: str, output: str | None, check: bool | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Compile MODEL into one that gives the same prediction and its relevance."""
    target = Path(output) if output else Path(model).with_name(f"{Path(model).stem}.explained.onnx")
    refuse(target, Path(model), force)
    compiled = compiled_by(model, options)
    report, note = _self_check(compiled, model, check)
    if report is not None and not report.passed:
        click.echo("\n".join(summary.of_checks(report)), err=True)
        raise CheckFailed(f"{report.failed[0].name}: {report.failed[0].detail}; nothing was written")
    written = compiled.save(target, force=force)
    if as_json:
        show_json(summary.as_dict(compiled, written, report, note))
    else:
        click.echo("\n".join(summary.of_compiled(compiled, Path(model), written, report, note)))


def refuse(output: Path, source: Path, force: bool) -> None:
    """Say before the work that the output can't be written."""
    if output.exists() and source.exists() and output.samefile(source) and not force:
        raise OutputError(f"{output} is the input itself; choose another output, or --force to overwrite it")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"no such folder: {output.resolve().parent}")


def _self_check(compiled: Compiled, model: str, wanted: bool | None) -> tuple[CheckReport | None, str]:
    """The report, or why there is none."""
    from xaicompile import runtime

    if wanted is False:
        return None, "not checked (--no-check)"
    weights = summary.weight_bytes(compiled)
    if wanted is None and weights >= CHECK_BELOW:
        return None, f"not checked: {weights / 1e9:.1f} GB of weights (--check does it)"
    if not runtime.available():
        if wanted:
            runtime.version()  # raises, and says what to install
        return None, 'not checked: ONNX Runtime is not installed (pip install "xaicompile[cpu]")'
    from xaicompile.checks import check

    return check(compiled.model, model, base_dir=compiled.base_dir, hashes=False), ""


@cli.command("rules")
@json_option
def rules_command(as_json: bool) -> None:
    """List the rule sets that --rule takes by name."""
    from xaicompile import composite

    found = [composite.load(name) for name in composite.shipped()]
    if as_json:
        show_json([{"name": r.name, "doc": r.doc, "cite": r.cite, "parameters": r.accepted} for r in found])
        return
    width = max(len(rules.name) for rules in found) + 2
    for rules in found:
        settings = ", ".join(f"{key}={value}" for key, value in rules.parameters.items())
        click.echo(f"{rules.name:<{width}}{rules.doc}{f'  ({settings})' if settings else ''}")


@cli.command("ops")
@json_option
def ops_command(as_json: bool) -> None:
    """List the operators that have a gradient, and what LRP does with them."""
    from xaicompile import optable

    if as_json:
        show_json(optable.as_json())
        return
    found = [(r.domain or "ai.onnx", r.op, str(r.since), r.gradient, r.lrp) for r in optable.rows()]
    click.echo("\n".join(summary.table([("domain", "op", "since", "gradient", "lrp"), *found])))


@cli.command("inspect")
@click.argument("model")
@rule_options
@preprocess_options
@click.option("--data", metavar="IMAGE|ARRAY", help="Run on this, and show the books of each node.")
@device_option
@json_option
def inspect_command(model: str, data: str | None, device: str, as_json: bool, **options: Any) -> None:
    """List each node of MODEL with its rule, the reason for it, and what is known about it. Writes nothing.

    With --data: node by node, from the output to the input, the relevance that arrives, what the node's bias and
    stabiliser keep of it, what is left, and how many values are NaN or infinite.

    A node that can't be explained is listed as unsupported, with the kind of gap that it is: no rule (for the
    operator, or for this form of it), subgraph (something inside an If, Loop or Scan), or domain (an operator of
    another domain).
    """
    try:
        compiled = compiled_by(model, options, audit=data is not None)
    except UnsupportedError as error:
        if as_json and error.gaps:
            nodes = [asdict(a) for a in summary.with_gaps(error.assignments, error.gaps)]
            show_json({"nodes": nodes, "gaps": [asdict(gap) for gap in error.gaps]})
        elif error.gaps:
            click.echo("\n".join(summary.of_rules(summary.with_gaps(error.assignments, error.gaps))))
        raise
    if data is not None:
        from xaicompile.audit import audit, in_words

        found = audit(compiled, data, preprocess_of(options), device)
        if as_json:
            show_json(found.to_dict())
        else:
            click.echo("\n".join(in_words(found)))
        return
    if as_json:
        nodes = [asdict(assignment) for assignment in compiled.assignments]
        result = {"nodes": nodes, "cut": compiled.cut, "notes": compiled.notes, "relevance": compiled.relevance}
        show_json({**result, "gaps": []})
        return
    click.echo("\n".join(summary.of_rules(compiled.assignments)))
    for line in [*(f"cut: {cut}" for cut in compiled.cut), *compiled.notes]:
        click.echo(line)


@cli.command("check")
@click.argument("explained")
@click.option("--against", "source", required=True, metavar="MODEL", help="The model that it was compiled from.")
@click.option("--rule", "-r", metavar="RULE", help="The rule set that it should have been compiled with.")
@click.option("--input", "array", metavar="FILE", help="Run on this .npy or .npz instead of random numbers.")
@click.option("--exact", is_flag=True, help="Fail unless the prediction is bit-identical, fusions or not.")
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@device_option
@json_option
def check_command(
    explained: str, source: str, rule: str | None, array: str | None, exact: bool, seed: int, device: str, as_json: bool
) -> None:
    """Check that EXPLAINED keeps its contract: same prediction, finite relevance, closed ledger, right hashes."""
    from xaicompile.checks import check
    from xaicompile.images import read_arrays

    inputs = read_arrays(array) if array else None
    report = check(explained, source, rule=rule, inputs=inputs, device=device, seed=seed, exact=exact)
    if as_json:
        show_json(report.to_dict())
    else:
        click.echo("\n".join(summary.of_checks(report)))
    for item in [*report.failed, *report.skipped][:1]:
        raise CheckFailed(f"{explained} is not as it should be: {item.name}: {item.detail}")


@cli.command("bench")
@click.argument("model")
@rule_options
@preprocess_options
@device_option
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Where the batch is dynamic.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="How often each is timed.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads (default: the runtime's choice).")
@json_option
def bench_command(
    model: str, device: str, batch: int, rounds: int, threads: int | None, as_json: bool, **options: Any
) -> None:
    """Time the explained MODEL against MODEL itself, in turn; the median of the ratios counts. Writes nothing."""
    from xaicompile import runtime
    from xaicompile.bench import bench

    runtime.version()
    compiled = compiled_by(model, options)
    result = bench(
        compiled.model, model, base_dir=compiled.base_dir, device=device, threads=threads, batch=batch, rounds=rounds
    )
    if as_json:
        show_json({"model": model, "rule": options["rule"], **result.to_dict()})
        return
    click.echo(
        f"{model}, {options['rule']}: {result.ratio:.2f} times the prediction ({result.low:.2f} to {result.high:.2f})"
    )
    rows = [
        ("", "run", "load", "file"),
        ("source", f"{result.source_ms:.2f} ms", f"{result.source_load_ms:.0f} ms", f"{result.source_bytes:,} B"),
        ("explained", f"{result.explained_ms:.2f} ms", f"{result.explained_load_ms:.0f} ms", f"{result.growth:+,} B"),
    ]
    click.echo("\n".join(summary.table(rows)))
    click.echo(f"{device}, batch {result.batch}, {rounds} rounds, ONNX Runtime {result.runtime}")


@cli.command("explain")
@click.argument("explained")
@click.argument("source", metavar="IMAGE|ARRAY")
@click.argument("second", required=False, metavar="[SECOND]")
@click.option("--output", "-o", default="heatmap.png", show_default=True, help="A picture, or .npy for the numbers.")
@click.option(
    "--target", metavar="T", help="What to explain: a class index or name (default: the model's own default)."
)
@click.option("--classes", metavar="FILE", help="Names of the classes, one a line (default: the model's metadata).")
@click.option("--walks", metavar="FILE", help="Draw these walks in a graph, a .npy array with one in each row.")
@click.option("--subgraph", "subgraphs", multiple=True, metavar="A,B,C", help="Relevance of this set of nodes too.")
@preprocess_options
@device_option
@json_option
def explain_command(
    explained: str, source: str, second: str | None, output: str, as_json: bool, **options: Any
) -> None:
    """Run a compiled model on a photo or an array (.npy, .npz) and draw the relevance beside it.

    A model that compares two inputs (--rule bilrp) takes a SECOND photo or array. Lines join the 100 pairs of regions
    that count most, red for and blue against; of tokens and features a matrix is drawn.

    A model that explains walks in a graph (--rule gnn-lrp) takes a .npz file with an array for each input. Bands along
    the edges show the strongest walks: those that --walks names, else those that the model itself finds (--top-walks,
    --all-walks), else those that the file holds as `walks`.
    """
    from xaicompile.graphs import explain_graph, is_graph
    from xaicompile.heatmap import explain_file
    from xaicompile.pairs import explain_pair

    inputs = [Path(name).resolve() for name in (explained, source, second, options["walks"]) if name]
    if Path(output).exists() and Path(output).resolve() in inputs:
        raise OutputError(f"{output} is an input; choose another output")
    preprocess, device = preprocess_of(options), options["device"]
    if second is not None:
        if any(options[key] for key in ("target", "classes", "walks", "subgraphs")):
            raise RuleError(
                "--target, --classes, --walks, --subgraph: a similarity of two inputs has no classes or nodes"
            )
        result = explain_pair(explained, (source, second), output, preprocess=preprocess, device=device)
    elif is_graph(explained):
        own = {key: options[key] for key in ("target", "classes", "walks", "subgraphs")}
        result = explain_graph(explained, source, output, **own, device=device)
    elif options["walks"] or options["subgraphs"]:
        raise RuleError(f"--walks and --subgraph: {explained} explains no walks in a graph (--rule gnn-lrp)")
    else:
        target, classes = options["target"], options["classes"]
        result = explain_file(
            explained, source, output, target=target, classes=classes, preprocess=preprocess, device=device
        )
    if as_json:
        show_json(result)
        return
    click.echo(f"{output}  {result['title']}")
    click.echo(f"sum of relevance {result['relevance_sum']:.4g}")
    for found in result.get("maps", [result]):
        for inside in found.get("subgraphs", ()):
            click.echo(f"nodes {','.join(map(str, inside['nodes']))}: relevance {inside['relevance']:.4g}")
