"""Nodes that can't be explained: found together, each with its kind, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xaicompile import registry
from xaicompile.bodies.refused import reason
from xaicompile.errors import Gap, UnsupportedError
from xaicompile.ir import View
from xaicompile.ir.body import BODIES


def gaps_of(views: Sequence[View]) -> list[Gap]:
    """The gaps among the views, in graph order."""
    found: list[Gap] = []
    for view in views:
        if view.gaps:
            found += view.gaps
        elif registry.info(view).vjp is None:
            found.append(gap(view, reason(view) or lacking(view)))
    return found


def gap(view: View, why: str) -> Gap:
    """A view as a gap."""
    return Gap(view.name, view.op, view.domain, view.since, "domain" if view.domain else "no rule", why)


def lacking(view: View) -> str:
    """That an operator is not known, or not in this form."""
    shapes = ", ".join("-" if x is None else repr(x).split(": ", 1)[1] for x in view.x)
    known = ", not in this form" if (view.domain, view.op) in BODIES else ""
    return f"opset {view.since}, inputs {shapes}{known}"


def refuse(views: Sequence[View], assignments: Sequence[Any]) -> None:
    """Reports every gap, together.

    Raises:
        UnsupportedError: There is at least one.
    """
    gaps = gaps_of(views)
    if gaps:
        raise UnsupportedError(
            f"no rule for {len(gaps)} node{'s' if len(gaps) > 1 else ''}: {'; '.join(in_words(gaps))}. "
            "Explain an earlier tensor with --explain-output, or replace these nodes",
            gaps,
            assignments,
        )


@contextmanager
def told(assignments: Sequence[Any]) -> Iterator[None]:
    """Adds to an error that a rule raises inside what `inspect` shows, and the kind of gap."""
    try:
        yield
    except UnsupportedError as error:
        kinds = ", ".join(sorted({g.kind for g in error.gaps}))
        raise UnsupportedError(f"{kinds}: {error}" if kinds else str(error), error.gaps, assignments) from error


def in_words(gaps: Sequence[Gap]) -> list[str]:
    """Gaps in words, those with one reason together."""
    together: dict[tuple[str, str], list[Gap]] = {}
    for g in gaps:
        together.setdefault((g.kind, g.reason), []).append(g)
    lines = []
    for (kind, why), held in together.items():
        ops = ", ".join(sorted({f"{g.domain}.{g.op}" if g.domain else g.op for g in held}))
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        lines.append(f"{ops} '{held[0].node}'{more} ({kind}): {why}")
    return lines
