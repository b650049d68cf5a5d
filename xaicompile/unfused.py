"""Reading a forward tensor without breaking the fusion in which a runtime computes it.

Runtimes compute Conv + Relu and Conv + Add + Relu as one node each, as long as nothing else reads what lies between. A
rule that needs such a tensor gets it computed once more, in a form that a runtime does not merge with the prediction's
own node: so the prediction keeps its bits.
"""

from __future__ import annotations

import numpy as np

from xaicompile.facts import Facts
from xaicompile.ir import Builder, Tensor


def unfused(b: Builder, facts: Facts, t: Tensor) -> Tensor:
    """The tensor itself, or a copy of its computation where reading it would break a fusion."""
    view = facts.producer(t)
    if view is None or t.name not in facts.between:
        return t
    if view.op != "Conv":  # an Add whose operands are read so
        return b.forward(view.varied(x=[None if x is None else unfused(b, facts, x) for x in view.x]))
    if view.has(2):
        product = b.forward(view.varied(x=view.x[:2]))
        return product + b.Unsqueeze(view.inp(2), list(range(1, (t.rank or 3) - 1)))
    channels = (view.inp(1).static or (1,))[0]
    return b.forward(view.varied(x=[*view.x[:2], b.const(np.zeros(channels, t.dtype))]))
