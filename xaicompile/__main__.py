"""`python -m xaicompile`."""

from xaicompile.cli import main

main()
