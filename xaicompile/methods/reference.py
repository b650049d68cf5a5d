"""DeepLIFT: differences to one reference, carried back by multipliers."""

from __future__ import annotations

from xaicompile.backward import backward
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir.steps import replayed
from xaicompile.methods.job import Job, Result, between
from xaicompile.passes import canonical, control
from xaicompile.registry import method
from xaicompile.ruled import ruled

REASON = (
    "its rescale rule is not defined for recurrent ops and subgraphs here, of which no step has a reference; "
    "use integrated-gradients, or an LRP rule such as lrp-epsilon"
)


@method("deeplift", baseline="zero")
def deeplift(job: Job) -> Result:
    """(x - x0) times the multipliers of the rescale rule, with the baseline x0 as reference (Shrikumar et al. 2017).

    Raises:
        RuleError: Nodes with subgraphs are on the way: their steps have no reference.
    """
    p, b, starts = job.p, job.p.builder, job.starts
    refuse_subgraphs(job)
    bases = [b.expand_like(job.given("baseline", s), s) for s in starts]
    known = {s.name: base for s, base in zip(starts, bases, strict=True)}
    with b.scope("reference"):
        replayed(b, between(p, starts, job.end.tensor), known)
    canonical.run(p, job.end.tensor.name)
    facts = Facts(p, [s.name for s in starts])
    facts.reference = known
    job.ruled = ruled(p, facts, job.rules, job.end.tensor)
    seeds, names = {job.end.tensor.name: job.seed.cotangent}, [s.name for s in starts]
    flows = backward(p, facts, seeds, names, job.ruled.pick)
    return {s.name: job.away(s, base, flows[s.name].cotangent(b, s)) for s, base in zip(starts, bases, strict=True)}


def refuse_subgraphs(job: Job) -> None:
    """Reports all recurrent ops and subgraphs on the way, together.

    Raises:
        RuleError: There is at least one.
    """
    makers = {name: node.op_type for node in job.p.source.model.graph.node for name in node.output}
    ops = {v.nodes: makers[y.name] for v in job.p.views for y in v.y if y is not None and y.name in makers}
    found: dict[str, str] = {}
    for view in between(job.p, job.starts, job.end.tensor):
        if control.is_control(view):
            found[view.nodes[0] if view.nodes else view.name] = ops.get(view.nodes, view.op)
    if found:
        named = ", ".join(f"{op} '{name}'" for name, op in found.items())
        raise RuleError(f"rule '{job.rules.name}' can't pass {named}: {REASON}")
