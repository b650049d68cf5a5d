"""Ops outside the standard domain, each written out in standard ones. Importing this package fills the table."""

from xaicompile.bodies import attention, contrib
from xaicompile.bodies.record import run

__all__ = ["attention", "contrib", "run"]
