"""Ends of classifiers that take several nodes: a Softmax written out, and probabilities divided by their sum."""

from __future__ import annotations

from collections.abc import Mapping

from xaicompile.ir import Tensor, View

SPREADS = {"Identity", "Reshape", "Expand", "Unsqueeze", "Squeeze"}  # what may stand between a sum and its use


def logits_of(view: View, producers: Mapping[str, View]) -> Tensor | None:
    """x of a Softmax over the last axis that is written out; None if the node is not the end of that.

    Either exp(x - m) / sum(exp(x - m)), whatever m, or exp(x - log(sum(exp(x)))).
    """
    if view.domain or view.op not in ("Div", "Exp"):
        return None
    if view.op == "Exp":
        shifted = maker(view.x[0], "Sub", producers)
        total = None if shifted is None else maker(before(shifted.x[1], producers), "ReduceLogSumExp", producers)
        same = shifted is not None and total is not None and total.x[0] is shifted.x[0] and over_last(total)
        return shifted.x[0] if shifted is not None and same else None
    above = maker(view.x[0], "Exp", producers)
    total = maker(before(view.x[1], producers), "ReduceSum", producers)
    if above is None or total is None or total.x[0] is not above.y[0] or not over_last(total):
        return None
    shifted = maker(above.x[0], "Sub", producers)
    if shifted is None:
        return above.x[0]
    m = shifted.inp(1)
    return shifted.x[0] if m.shape is not None and (not m.shape or m.shape[-1] == 1) else None


def before(t: Tensor | None, producers: Mapping[str, View]) -> Tensor | None:
    """The tensor before nodes that spread it."""
    while t is not None and (step := producers.get(t.name)) is not None and step.op in SPREADS:
        t = step.inp(0)
    return t


def scaled_to_one(view: View, producers: Mapping[str, View]) -> Tensor | None:
    """The probabilities p of p / sum(p), with p from a Sigmoid or a Softmax; None for anything else."""
    p = view.x[0] if view.op == "Div" and not view.domain else None
    above = producers.get(p.name) if p is not None else None
    while above is not None and above.op in ("Identity", "Cast") and above.x[0] is not None:
        above = producers.get(above.inp(0).name)
    if above is None or above.op not in ("Sigmoid", "Softmax"):
        return None
    below = view.x[1]
    guarded = maker(below, "Where", producers)
    total = producers.get(guarded.inp(2).name if guarded is not None else below.name if below is not None else "")
    return p if total is not None and total.op in ("ReduceL1", "ReduceSum") and total.x[0] is p else None


def maker(t: Tensor | None, op: str, producers: Mapping[str, View]) -> View | None:
    """The node that makes t, if it is of this op."""
    view = None if t is None else producers.get(t.name)
    return view if view is not None and view.op == op and not view.domain else None


def over_last(view: View) -> bool:
    """True for a reduction over the last axis alone."""
    axes, rank = view.inp(1).value if view.has(1) else None, view.inp(0).rank
    return axes is not None and rank is not None and [int(a) % rank for a in axes.reshape(-1)] == [rank - 1]
