"""The books of each node: what relevance arrives, what it keeps and why, and what is not finite.

The ledger of an emitted model says how much each node absorbs. For finding where an explanation breaks, `audit` adds
what arrives at each node as well; `xaicompile inspect --data` runs such a model and shows the books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xaicompile.backward import Flow, Ledger, Tap
from xaicompile.explained import Explained, total_per_sample
from xaicompile.facts import Facts
from xaicompile.ir import Program, Tensor, View
from xaicompile.outputs import joined
from xaicompile.samples import Samples

KINDS = ("bias", "stabiliser", "concepts", "other")


def watching(p: Program, facts: Facts, taps: Mapping[str, Tap], arrived: dict[str, Flow]) -> Mapping[str, Tap]:
    """The taps, and one on every other tensor that keeps what arrives there."""

    def keep(t: Tensor, flow: Flow) -> Flow:
        arrived[t.name] = flow
        return flow

    return {**{y.name: keep for v in p.views for y in v.y if y is not None and facts.on_path(y)}, **taps}


def outputs(
    p: Program, views: Sequence[View], seed: Explained, arrived: Mapping[str, Flow], kept: Ledger, samples: Samples
) -> dict[str, Tensor]:
    """`audit_arrives` [N, nodes], `audit_<kind>` [N, nodes] for each kind of what is kept, `audit_broken` [N, nodes].

    The nodes are those of `views` in this order. Broken: how many of the values that arrive are NaN or infinite.
    """
    b, columns = p.builder, dict[str, list[Tensor]]()
    nothing = seed.value * 0.0
    for view in views:
        with b.scope(view.name):
            flows = [(y, arrived[y.name]) for y in view.y if y is not None and y.name in arrived]
            relevance = [flow.relevance(b, y) for y, flow in flows if flow.c is not None or flow.r is not None]
            broken = [b.Cast(b.Not(b.Equal(r - r, 0.0)), to=1) for r in relevance]
            entries = kept.get(view.name, [])
            found = {"arrives": relevance, "broken": broken}
            found |= {kind: [e.amount for e in entries if e.kind == kind] for kind in KINDS}
            for name, amounts in found.items():
                sums = [total_per_sample(b, t, seed, samples.axis(view.name, t)) for t in amounts]
                columns.setdefault(name, []).append(b.Unsqueeze(b.add_all(sums) if sums else nothing, [1]))
    return {f"audit_{name}": joined(b, held) for name, held in columns.items()}
