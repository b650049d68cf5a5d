"""Second-order deep Taylor: LRP in pairs, from each product of the network down (spec 10.1b; Eberle et al. 2022).

What arrives at a product unit is shared among pairs: of its two factors, of the layers below them, of the inputs.
The pairs factorise, so that one Scan over the values of one factor does: each is explained, and beside it what the
other factor is multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xaicompile.backward import Picked, backward
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Tensor, View
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods.job import Job, Result, as_it_stands, between, explained_in
from xaicompile.methods.second import maps, only_start
from xaicompile.methods.similarity import Side, regions, units_of
from xaicompile.outputs import result_of
from xaicompile.passes import canonical, control
from xaicompile.registry import RULES, Context, method, stops
from xaicompile.ruled import Ruled, ruled

FACTORS = ("Mul", "MatMul", "Gemm", "Einsum")  # a product has two of them


@method("second-order-lrp", pool=16)
def second_order_lrp(job: Job) -> Result:
    """R_ij = sum over product units a b of c LRP(a)_i LRP(b)_j, i and j in either order, where c a b arrives.

    Gives `interaction` [N, regions, regions], symmetric, and as relevance that of the rules themselves, in which a
    product hands half to each factor. Without biases and stabilisers the rows sum to it, as far as all goes through
    products. With `lrp-0` and ReLUs it is 1/2 H_ij x_i x_j.

    Raises:
        RuleError: No product of two things that depend on the input; or chunks.
    """
    if job.chunk > 1:
        raise RuleError(f"--chunk {job.chunk}: second-order-lrp does the factors' values one by one")
    p, b, start, end = job.p, job.p.builder, only_start(job), job.end.tensor
    canonical.run(p, end.name)
    facts, seeds = Facts(p, [start.name]), {end.name: job.seed.cotangent}
    chosen = ruled(p, facts, job.rules, end)
    units = product_units(job, facts, chosen)
    flows = backward(p, facts, seeds, [start.name], chosen.pick)
    stop, names = Picked(RULES["stop"]), [unit.out().name for unit in units]
    arrived = backward(p, facts, seeds, names, lambda view: stop if view in units else chosen.pick(view))
    pairs = [of_product(job, facts, unit, arrived[unit.out().name].cotangent(b, unit.out())) for unit in units]
    half = b.add_all(pairs) * 0.5
    job.outputs |= maps(job, result_of(p, "relevance", start, flows[start.name]))
    job.outputs["interaction"] = held(b, half + b.Transpose(half, perm=[0, 2, 1]))
    job.notes.append(f"product units: {', '.join(str(unit) for unit in units)}")
    job.ruled = chosen
    return {}


def factors(view: View, facts: Facts) -> list[int]:
    """Which operands of a product depend on the input."""
    if view.op not in FACTORS or view.domain:
        return []
    return [i for i, x in enumerate(view.x[:2]) if facts.on_path(x) and i not in stops(view)]


def product_units(job: Job, facts: Facts, chosen: Ruled) -> list[View]:
    """The products that relevance meets first on its way down, and that hand it on to both of their factors.

    Raises:
        RuleError: There are none.
    """
    found: list[View] = []
    reached = {job.end.tensor.name}
    for view in reversed(control.on_the_way(job.p, facts, [job.end.tensor])):
        if not any(y is not None and y.name in reached for y in view.y):
            continue
        if len(factors(view, facts)) == 2 and hands_on_both(job, view, facts, chosen):
            found.append(view)
        else:
            reached.update(t.name for t in (*view.x, *view.captures) if t is not None)
    if not found:
        raise RuleError(
            f"rule '{job.rules.name}' starts at products of two things that depend on {job.starts[0]!r}, and there are "
            "none; for embeddings use --rule bilrp, for smooth networks hessian-x-input"
        )
    return found


def hands_on_both(job: Job, view: View, facts: Facts, chosen: Ruled) -> bool:
    """False where a factor is held constant, as gates are."""
    need, picked = [facts.on_path(x) for x in view.x], chosen.pick(view)
    messages = picked.rule(Context(job.p.builder, view, [view.out()], need, facts, picked.parameters))
    return all(messages[i] is not None for i in factors(view, facts))


def of_product(job: Job, facts: Facts, unit: View, c: Tensor) -> Tensor:
    """The pairs of one product unit, [N, P, P]: of its first factor by its second.

    Args:
        c: The cotangent of the unit's output.
    """
    outer, start = job.p.builder, job.starts[0]
    first, second = factors(unit, facts)
    a, other = unit.inp(first), unit.inp(second)
    count = units_of(outer.Flatten(a, axis=1))
    sides = [Side(between(job.p, [start], t), [start], t, job.inputs[0].tokens) for t in (a, other)]
    shape = (outer.dim(regions(outer, job, sides[0], [start]), 1),) * 2
    sizes = (start.shape or (None,))[0], None, None
    zeros = outer.op(
        "Expand", outer.const(np.zeros((), start.dtype)), outer.Concat(outer.dim(start, 0), *shape, axis=0), shape=sizes
    )
    b = StepBuilder(outer)
    with b.scope("unit"):
        before = b.input("sum", zeros.dtype, zeros.shape)
        number = b.input("unit", np.dtype(np.int64), (1,))
        row = b.CastLike(b.Equal(np.arange(count)[None], b.Unsqueeze(number, [1])), b.adopt(a))
        hot = b.reshape_like(b.op("Expand", row, b.shape_of(b.adopt(outer.Flatten(a, axis=1)))), b.adopt(a))
        operands = [t and b.adopt(t) for t in unit.x]
        operands[first] = hot
        beside = unit.varied(x=operands, y=[b.adopt(unit.out())])
        need = [i == second for i in range(len(operands))]
        sent = Context(b, beside, [b.adopt(c)], need, facts).vjp()[second]
        assert isinstance(sent, Tensor)
        seeds = [hot, b.unbroadcast(sent, b.adopt(other))]
        found = [of_side(job, b, side, seed) for side, seed in zip(sides, seeds, strict=True)]
        pairs = b.MatMul(b.Unsqueeze(found[0], [2]), b.Unsqueeze(found[1], [1]))
        ends = b.ends([before + pairs])
    body = b.graph("units", [before, number], ends)
    scanned = outer.const(np.arange(count, dtype=np.int64)[:, None])
    (total,) = outer.typed("Scan", [zeros, scanned], [(zeros.dtype, zeros.shape)], body=body, num_scan_inputs=1)
    return total


def of_side(job: Job, b: StepBuilder, side: Side, cotangent: Tensor) -> Tensor:
    """Relevance of the regions, [N, P], for a cotangent of one factor."""
    sub = as_it_stands(job.p, b, side.views, side.starts, side.end)
    starts: Sequence[Tensor] = [b.adopt(t) for t in side.starts]
    return regions(b, job, side, explained_in(job, sub, starts, b.adopt(side.end), "relevance", cotangent))
