"""The command line. The only part that knows click."""

from xaicompile.cli import commands, evaluate, neuralize
from xaicompile.cli.group import cli

__all__ = ["cli", "commands", "evaluate", "main", "neuralize"]


def main() -> None:
    """Console script."""
    cli(prog_name="xaicompile")
