"""The random explanation, against which others are held (spec 8.4)."""

from __future__ import annotations

from xaicompile.images import channels_last
from xaicompile.methods.job import Job, Result
from xaicompile.registry import method


@method("random", seed=0)
def random(job: Job) -> Result:
    """Standard normal numbers, one a position: the same for all channels of an image and all samples of a batch.

    Where axis 0 is no batch each value has its own.
    """
    b, rng, found = job.p.builder, job.rng(), {}
    for s in job.starts:
        shape = job.sample_shape(s)
        if job.seed.batched:
            last = channels_last(s.shape)
            shape = (1, *shape[:-1], 1) if last else (1, 1, *shape[1:]) if len(shape) > 2 else (1, *shape)
        found[s.name] = b.expand_like(b.const(rng.standard_normal(shape).astype(s.dtype)), s)
    return found
