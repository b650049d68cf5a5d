"""The command line. The only part that knows click."""

from xaicompile.cli import commands, neuralize
from xaicompile.cli.group import cli

__all__ = ["cli", "commands", "main", "neuralize"]


def main() -> None:
    """Console script."""
    cli(prog_name="xaicompile")
