"""Where a network has a second derivative at all: kinks, and what rounds them off."""

from __future__ import annotations

from collections.abc import Sequence

from xaicompile import registry
from xaicompile.facts import Facts
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.steps import adopted, replayed

SUMS = {"Add", "Sub", "Sum", "Mean", "Neg", "Max", "Min", "Where", "Concat"}  # of any inputs
KINKED = {"Relu", "LeakyRelu", "ThresholdedRelu", "Clip", "Abs", "HardSigmoid", "MaxPool", "GlobalMaxPool"}
KINKED |= {"ReduceMax", "ReduceMin", "ReduceL1"}
SCALED = {"Mul", "Div", "PRelu", "BatchNormalization", "Resize", "CumSum"}  # by what is no data
ROUNDED = {"Relu", "LeakyRelu", "Clip"}


def is_flat(views: Sequence[View], facts: Facts) -> bool:
    """True for a network that is proven to be piecewise linear in the explained input."""
    return all(is_linear_in_pieces(view, facts) for view in views)


def is_linear_in_pieces(view: View, facts: Facts) -> bool:
    """True for an op that is linear, or bends only at kinks, in whatever of its inputs depends on the explained one."""
    row, stopped = registry.info(view), registry.stops(view)
    read = [i for i, t in enumerate(view.x) if facts.on_path(t) and i not in stopped]
    if not read or row.layout:
        return True
    if view.domain or view.captures or view.bodies:
        return False
    if view.op in SUMS | KINKED:
        return True
    if row.linear is not None:
        factors = [i for i in read if i != row.linear.bias]
        return row.linear.weight is None or len(factors) < 2
    return view.op in SCALED and len(read) == 1 and not (view.op in ("Div", "BatchNormalization") and read[0])


def rounded(b: Builder, views: Sequence[View], known: dict[str, Tensor], beta: float) -> list[View]:
    """Emits views once more with Softplus of sharpness beta, log(1 + exp(beta z)) / beta, in place of each ReLU.

    Clips and leaky ReLUs become sums of it. `known` says what the inputs stand for and is filled with what is made.
    """
    made: list[View] = []
    for view in views:
        if view.op not in ROUNDED or view.domain:
            made += replayed(b, [view], known)
            continue
        x, *bounds = (t and (known.get(t.name) or adopted(b, t)) for t in view.x)
        assert x is not None
        with b.recorded() as record:
            known[view.out().name] = softened(b, view, x, [*bounds, None, None], beta)
        made += record
    return made


def softened(b: Builder, view: View, x: Tensor, bounds: Sequence[Tensor | None], beta: float) -> Tensor:
    """A ReLU, leaky ReLU or Clip without its kinks."""

    def soft(z: Tensor) -> Tensor:
        return b.Softplus(z * beta) * (1 / beta)

    if view.op == "LeakyRelu":
        alpha = float(view.attr("alpha"))
        return x * alpha + soft(x) * (1 - alpha)
    low, high = bounds[:2]
    if view.op == "Relu":
        return soft(x)
    if low is None:
        return x if high is None else high - soft(high - x)
    return low + soft(x - low) if high is None else low + soft(x - low) - soft(x - high)
