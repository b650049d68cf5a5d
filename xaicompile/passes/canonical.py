"""Canonical form as a reading of the forward graph: patterns of nodes become one view, no node is changed."""

from __future__ import annotations

from collections.abc import Collection

from xaicompile.ir import Program


def run(p: Program, keep: Collection[str]) -> bool:
    """Reads patterns as views; tensors in `keep` stay visible."""
    return False
