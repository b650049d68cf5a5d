"""`xaicompile neuralize`: a fitted scikit-learn estimator in, an ONNX model out."""

from __future__ import annotations

from pathlib import Path

import click

from xaicompile.cli.commands import refuse
from xaicompile.cli.group import cli
from xaicompile.cli.options import force_option
from xaicompile.errors import CheckFailed


@cli.command("neuralize")
@click.argument("estimator")
@click.option("--output", "-o", metavar="FILE", help="Where to write (default: beside ESTIMATOR, as NAME.onnx).")
@click.option("--rule", "-r", metavar="RULE", help="Compile the network with this rule set, and write what comes out.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--trust", multiple=True, metavar="TYPE", help="A type that a .skops file may hold (repeatable).")
@force_option
def neuralize_command(
    estimator: str, output: str | None, rule: str | None, dtype: str, trust: tuple[str, ...], force: bool
) -> None:
    """Write ESTIMATOR, fitted with scikit-learn, as a network in ONNX: density, one-class SVM, k-means, classifier.

    ESTIMATOR is a .skops file, or a .joblib, .pkl or .pickle file, whose loading runs code in it.
    """
    from xaicompile import ir, runtime
    from xaicompile.neuralization import api, stored

    source = Path(estimator)
    target = Path(output) if output else source.with_suffix(".explained.onnx" if rule else ".onnx")
    refuse(target, source, force)
    network = api.neuralize(stored.load(source, trust, lambda line: click.echo(line, err=True)), dtype)
    names = [o.name for o in network.graph.output]
    if rule is None:
        ir.save(network, target, force=force)
    else:
        from xaicompile.checks import check
        from xaicompile.compiler import compile_model

        compiled = compile_model(network, rule)
        if runtime.available() and (failed := check(compiled.model, network, hashes=False).failed):
            raise CheckFailed(f"{failed[0].name}: {failed[0].detail}; nothing was written")
        compiled.save(target, force=force)
        names = [o.name for o in compiled.model.graph.output]
        for note in compiled.notes:
            click.echo(note)
    click.echo(f"{target}  outputs {', '.join(names)}")
