"""DeepLIFT: differences to one reference, carried back by multipliers."""

from __future__ import annotations

from xaicompile.backward import backward
from xaicompile.facts import Facts
from xaicompile.ir.steps import replayed
from xaicompile.methods.job import Job, Result, between
from xaicompile.passes import canonical
from xaicompile.registry import method
from xaicompile.ruled import ruled


@method("deeplift", baseline="zero")
def deeplift(job: Job) -> Result:
    """(x - x0) times the multipliers of the rescale rule, with the baseline x0 as reference (Shrikumar et al. 2017)."""
    p, b, starts = job.p, job.p.builder, job.starts
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
    return {s.name: (s - base) * flows[s.name].cotangent(b, s) for s, base in zip(starts, bases, strict=True)}
