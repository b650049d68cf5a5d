"""The command line. The only file that knows click; whatever takes time to import is imported inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xaicompile import summary
from xaicompile._version import __version__
from xaicompile.errors import CheckFailed, OutputError, RuleError, UnsupportedError, XaiCompileError

if TYPE_CHECKING:
    from xaicompile.checks import CheckReport
    from xaicompile.compiler import Compiled
    from xaicompile.images import Preprocess

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a check failed
  2  wrong use: unknown option, rule or parameter
  3  the model or the input can't be read, or is not valid
  4  the model holds operators that the rule does not cover (all are listed)
  5  the output can't be written
  6  an optional library is needed and not installed"""
CHECK_BELOW = 10**9  # bytes of weights up to which compiling ends with a check


class Cli(click.Group):
    """A group whose unknown first word is a model to compile: `xaicompile MODEL` means `xaicompile compile MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `compile` in front unless a command or one of the group's own options stands there."""
        own = {name for option in self.params for name in option.opts} | {"--help"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["compile", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and show our errors as one line."""
        try:
            return super().invoke(ctx)
        except XaiCompileError as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways to call it."""
        formatter.write_usage(ctx.command_path, "MODEL [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="   or: ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of compiling, then the commands."""
        params = [p for p in self.commands["compile"].params if isinstance(p, click.Option)]
        rows = [row for row in (param.get_help_record(ctx) for param in (*params, *self.get_params(ctx))) if row]
        with formatter.section("Options"):
            formatter.write_dl(rows)
        self.format_commands(ctx, formatter)


@click.group(cls=Cli, epilog=EXIT_CODES, context_settings={"max_content_width": 120}, no_args_is_help=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Compile an ONNX model into one that gives the same prediction and, beside it, its explanation."""


# --- options that several commands share ------------------------------------------------------------------------


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


preprocess_options = _stack(
    click.option("--mean", metavar="M[,M...]", help="Subtracted from the pixels: one number, or one a channel."),
    click.option("--std", metavar="S[,S...]", help="Divides the pixels after that."),
    click.option(
        "--size", metavar="R[,C]", help="Short side after resizing, and the middle part that is kept (256,224)."
    ),
    click.option(
        "--pixel-range",
        "span",
        type=click.Choice(["1", "255"]),
        help="Largest pixel value in the units of mean and std; 255 if one of them is above 1, else 1.",
    ),
)
rule_options = _stack(
    click.option(
        "--rule", "-r", default="lrp-gamma", show_default=True, metavar="RULE", help="Rule set: name or TOML."
    ),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the rule (repeatable)."),
    click.option(
        "--target", metavar="T[,T...]", help="Default target: index of the output, one a sample; else argmax."
    ),
    click.option("--explain-output", metavar="NAME", help="Explain this tensor as it is (default: the logits)."),
    click.option("--explain-input", multiple=True, metavar="NAME", help="Explain this input (repeatable; else all)."),
    click.option("--explain-reduce", type=click.Choice(["sum", "mean", "max"]), help="Instead of one target element."),
    click.option("--layers", default="", metavar="A[,B...]", help="Also give the relevance of these inner tensors."),
    click.option("--ledger", is_flag=True, help="Also give what biases and stabilisers absorbed, per node."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
force_option = click.option("--force", is_flag=True, help="Overwrite the input itself, or external data that is there.")
device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)


def _value(text: str) -> Any:
    """A parameter's value: number, boolean, list with commas, else text."""
    if "," in text:
        return [_value(part) for part in text.split(",") if part]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parameters(settings: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals or not value:
            raise RuleError(f"--set {setting}: expected KEY=VALUE, such as gamma=0.1")
        found[key.strip()] = _value(value.strip())
    return found


def _target(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise RuleError(f"--target {text}: expected an index, or one a sample with commas between") from None
    return values[0] if len(values) == 1 else values


def _preprocess(options: Mapping[str, Any]) -> Preprocess | None:
    from xaicompile.images import Preprocess

    span = options["span"]
    return Preprocess.from_options(options["mean"], options["std"], options["size"], float(span) if span else None)


def _compile(model: str, options: Mapping[str, Any]) -> Compiled:
    from xaicompile.compiler import compile_model

    preprocess = _preprocess(options)
    return compile_model(
        model,
        options["rule"],
        parameters=_parameters(options["settings"]),
        target=_target(options["target"]),
        explain_output=options["explain_output"],
        explain_input=options["explain_input"] or None,
        explain_reduce=options["explain_reduce"],
        layers=tuple(name for name in options["layers"].split(",") if name),
        ledger=options["ledger"],
        preprocess=None if preprocess is None else preprocess.to_dict(),
    )


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


# --- commands ---------------------------------------------------------------------------------------------------


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
    _refuse(target, Path(model), force)
    compiled = _compile(model, options)
    report, note = _self_check(compiled, model, check)
    if report is not None and not report.passed:
        click.echo("\n".join(summary.of_checks(report)), err=True)
        raise CheckFailed(f"{report.failed[0].name}: {report.failed[0].detail}; nothing was written")
    written = compiled.save(target, force=force)
    if as_json:
        _json(summary.as_dict(compiled, written, report, note))
    else:
        click.echo("\n".join(summary.of_compiled(compiled, Path(model), written, report, note)))


def _refuse(output: Path, source: Path, force: bool) -> None:
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
        _json([{"name": r.name, "doc": r.doc, "cite": r.cite, "parameters": r.accepted} for r in found])
        return
    for rules in found:
        settings = ", ".join(f"{key}={value}" for key, value in rules.parameters.items())
        click.echo(f"{rules.name:<26}{rules.doc}{f'  ({settings})' if settings else ''}")


@cli.command("ops")
@json_option
def ops_command(as_json: bool) -> None:
    """List the operators that have a gradient, and what LRP does with them."""
    from xaicompile import optable

    if as_json:
        _json(optable.as_json())
        return
    found = [(r.domain or "ai.onnx", r.op, str(r.since), r.gradient, r.lrp) for r in optable.rows()]
    click.echo("\n".join(summary.table([("domain", "op", "since", "gradient", "lrp"), *found])))


@cli.command("inspect")
@click.argument("model")
@rule_options
@preprocess_options
@json_option
def inspect_command(model: str, as_json: bool, **options: Any) -> None:
    """List each node of MODEL with its rule, the reason for it, and what is known about it. Writes nothing.

    A node that can't be explained is listed as unsupported, with the kind of gap that it is: no rule (for the
    operator, or for this form of it), subgraph (something inside an If, Loop or Scan), or domain (an operator of
    another domain).
    """
    try:
        compiled = _compile(model, options)
    except UnsupportedError as error:
        if as_json and error.gaps:
            nodes = [asdict(a) for a in summary.with_gaps(error.assignments, error.gaps)]
            _json({"nodes": nodes, "gaps": [asdict(gap) for gap in error.gaps]})
        elif error.gaps:
            click.echo("\n".join(summary.of_rules(summary.with_gaps(error.assignments, error.gaps))))
        raise
    if as_json:
        nodes = [asdict(assignment) for assignment in compiled.assignments]
        result = {"nodes": nodes, "cut": compiled.cut, "notes": compiled.notes, "relevance": compiled.relevance}
        _json({**result, "gaps": []})
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
        _json(report.to_dict())
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
    compiled = _compile(model, options)
    result = bench(
        compiled.model, model, base_dir=compiled.base_dir, device=device, threads=threads, batch=batch, rounds=rounds
    )
    if as_json:
        _json({"model": model, "rule": options["rule"], **result.to_dict()})
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
@click.option("--output", "-o", default="heatmap.png", show_default=True, help="A picture, or .npy for the numbers.")
@click.option(
    "--target", metavar="T", help="What to explain: a class index or name (default: the model's own default)."
)
@click.option("--classes", metavar="FILE", help="Names of the classes, one a line (default: the model's metadata).")
@preprocess_options
@device_option
@json_option
def explain_command(explained: str, source: str, output: str, as_json: bool, **options: Any) -> None:
    """Run a compiled model on a photo or an array (.npy, .npz) and draw the relevance beside it."""
    from xaicompile.heatmap import explain_file

    if Path(output).exists() and Path(output).resolve() in (Path(explained).resolve(), Path(source).resolve()):
        raise OutputError(f"{output} is an input; choose another output")
    result = explain_file(
        explained,
        source,
        output,
        target=options["target"],
        classes=options["classes"],
        preprocess=_preprocess(options),
        device=options["device"],
    )
    if as_json:
        _json(result)
        return
    click.echo(f"{output}  {result['title']}")
    click.echo(f"sum of relevance {result['relevance_sum']:.4g}")


def main() -> None:
    """Console script."""
    cli(prog_name="xaicompile")
