"""The affine ops that an explained input goes through first.

They turn a straight path into a straight path, and send back a sum of gradients as the sum of what they send back. So
the path may begin behind them: they run at its two ends and not in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from xaicompile.backward import backward
from xaicompile.explained import Given
from xaicompile.facts import Facts
from xaicompile.ir import Tensor, View
from xaicompile.ir.steps import replayed
from xaicompile.methods.job import Job, between
from xaicompile.methods.structure import bottlenecks
from xaicompile.registry import info
from xaicompile.ruled import Ruled, ruled

CHOOSING = ("TopK", "Unique")  # they move values to places that the values decide

Back = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def shortened(job: Job, bases: Sequence[Tensor]) -> tuple[Job, Sequence[Tensor], Back]:
    """A path that begins behind the affine ops; the path as it is, where there are none.

    Args:
        bases: Where the path begins, for each start.

    Returns:
        The job behind them, where its path begins, and what sends cotangents from there back to the job's starts.
    """
    there = behind(job)
    if there is None:
        return job, bases, lambda found: found
    p, b, (start,) = job.p, job.p.builder, job.starts
    known = {start.name: b.expand_like(bases[0], start)}
    with b.scope("baseline"):
        replayed(b, between(p, [start], there), known)
    path = replace(job, inputs=[Given(there, [there])])

    def back(found: Sequence[Tensor]) -> Sequence[Tensor]:
        facts = Facts(p, [start.name])
        front = ruled(p, facts, job.rules, there)
        flows = backward(p, facts, {there.name: found[0]}, [start.name], front.pick)
        assert path.ruled is not None
        both = (front, path.ruled)
        job.ruled = Ruled(
            [v for part in both for v in part.views],
            {**front.choices, **path.ruled.choices},
            [a for part in both for a in part.assignments],
        )
        return [flows[start.name].cotangent(b, start)]

    return path, [known[there.name]], back


def behind(job: Job) -> Tensor | None:
    """The last tensor that the explained input reaches through affine ops alone and that all goes through.

    None if no weight is on the way, if rules say more than the gradient, or if several points are to be put behind each
    other along axis 0 and that is no longer the same.
    """
    plain = all(entry.rule == "gradient" for entry in job.rules.entries)
    if not plain or len(job.starts) > 1:
        return None
    p, start, end = job.p, job.starts[0], job.end.tensor
    facts, views = Facts(p, [start.name]), between(p, [start], end)
    narrow = bottlenecks(views, facts, start, end)
    weighted, found = False, None
    for view in views:
        if not affine(view, facts):
            break
        weighted |= info(view).linear is not None
        found = narrow.get(view.name, found) if weighted else None
    if found is None or found.name == end.name:
        return None
    return found if job.chunk == 1 or (found.shape and start.shape and found.shape[0] == start.shape[0]) else None


def affine(view: View, facts: Facts) -> bool:
    """True if the view's output is affine in what depends on the explained input."""
    data = [i for i, x in enumerate(view.x) if x is not None and facts.on_path(x)]
    if view.domain or view.captures:
        return False
    if view.op in ("Add", "Sub"):
        return True
    if view.op == "BatchNormalization":
        return data == [0] and not view.attr("training_mode")
    moves = info(view).layout and view.op not in CHOOSING
    return data == [0] and (view.op in ("Mul", "Div") or moves or info(view).linear is not None)
