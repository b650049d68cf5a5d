"""Relevance that comes from outside, so that any explanation can be evaluated as one's own."""

from __future__ import annotations

from xaicompile.methods.job import Job, Result
from xaicompile.registry import method


@method("given")
def given(job: Job) -> Result:
    """An input `given` of the explained input's shape, one number a value (one a token, of ids); zero unless fed."""
    found = {}
    for each in job.inputs:
        dtype = each.starts[0].dtype
        key = ("given", each.tensor.name)
        if key not in job.fed:
            job.fed[key] = job.feed("given", each.tensor, dtype)
        found[each.tensor.name] = job.p.builder.expand_like(job.fed[key], each.tensor)
    return found
