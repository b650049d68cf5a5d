"""The command line's frame: a model in place of a command, one line for an error, exit codes."""

from __future__ import annotations

from typing import Any

import click

from xaicompile._version import __version__
from xaicompile.errors import XaiCompileError

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a check failed
  2  wrong use: unknown option, rule or parameter
  3  the model or the input can't be read, or is not valid
  4  the model holds operators that the rule does not cover (all are listed)
  5  the output can't be written
  6  an optional library is needed and not installed
  7  evaluated, but some samples or rules had to be left out (all are listed)"""


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
