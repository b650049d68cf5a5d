"""Which rule each node of a graph has, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xaicompile import composite as composites
from xaicompile import gaps
from xaicompile.backward import Picked
from xaicompile.facts import Facts
from xaicompile.ir import Program, Tensor, View
from xaicompile.passes import control

RECTIFYING = {"gradient", "default", "guided"}  # rules that pass nothing where a ReLU, or a Clip at 0, was off


@dataclass(frozen=True)
class Assignment:
    """Which rule a node got, and why."""

    node: str
    op: str
    rule: str
    reason: str
    facts: str


@dataclass(frozen=True)
class Ruled:
    """The views between an explained tensor and the explained inputs, and their rules.

    Attributes:
        views: In graph order.
        choices: The rule of each view, those of subgraphs included.
        assignments: The same in words.
    """

    views: Sequence[View]
    choices: Mapping[View, composites.Choice]
    assignments: list[Assignment]

    def pick(self, view: View) -> Picked:
        """The rule of a view."""
        return self.choices[view].picked


def ruled(p: Program, facts: Facts, rules: composites.Composite, end: Tensor) -> Ruled:
    """Assigns a rule to every view between the explained inputs and `end`.

    Raises:
        UnsupportedError: Some views have none; all are listed.
    """
    views = control.on_the_way(p, facts, [end])
    control.open_bodies(p, facts, views)
    choices = composites.assign(rules, views, facts)
    for known_there, there in [(facts, views), *((body.facts, body.views) for _, body in control.each_body(views))]:
        known_there.trust_activations(v for v in there if rectifies(choices[v]))
    assignments = [described(choices[v], seen) for v, seen in control.inside_facts(views, facts)]
    gaps.refuse(control.inside(views), assignments)
    return Ruled(views, choices, assignments)


def rectifies(choice: composites.Choice) -> bool:
    """True if the rule passes nothing where the output is 0, and all of what arrives where it is the input."""
    return choice.rule in RECTIFYING or (choice.rule == "identity" and choice.view.op == "Relu")


def described(choice: composites.Choice, facts: Facts) -> Assignment:
    """A choice in words."""
    view, said = choice.view, []
    if view.x and view.x[0] is not None:
        low, high = facts.bounds(view.x[0])
        if (low, high) != (-np.inf, np.inf):
            said.append(f"input in [{low:g}, {high:g}]")
    if view.y and view.y[0] is not None and view.y[0].name in facts.activation:
        said.append("feeds only a ReLU")
    if len(view.nodes) > 1:
        said.append(f"reads {' + '.join(view.nodes)}")
    return Assignment(view.name, view.op, choice.rule, choice.reason, "; ".join(said))
