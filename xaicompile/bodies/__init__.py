"""Ops outside the standard domain, and ops on integers, read as the standard float ops that they stand for.

Importing this package fills the tables.
"""

from xaicompile.bodies import attention, blocks, contrib, integer, ml, norms, quantised, refused, rotary
from xaicompile.bodies.record import run

__all__ = [
    "attention",
    "blocks",
    "contrib",
    "integer",
    "ml",
    "norms",
    "quantised",
    "refused",
    "rotary",
    "run",
]
