"""The ledger closes on every row of the operator table: relevance plus what was absorbed is what was explained.

Float64, through the reference. The ledger is summed from what each node absorbs, so a rule that loses, doubles or
invents relevance leaves a gap here. Every row under four rule sets, and under each other rule that a shipped set has
for its op.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import xaicompile
from tests.cases import Case
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from tests.reference_ops import evaluator
from tests.test_ledger import BOOKED, BOX, SETS
from xaicompile import registry
from xaicompile.composite import Place, choose
from xaicompile.ir import View

TOLERANCE = 1e-9
SINGLE = {"Attention": 1e-7}  # its function body rounds to float32 on the way
RULES = ["lrp-0", "lrp-epsilon", "lrp-gamma", "gradient-x-input"]
BOXES = {"z-box", "epsilon-gamma-box"}
HOLDING = ("LSTM", "GRU", "RNN", "If", "Loop", "Scan")
INSIDE = ["lrp-zplus", "lrp-alpha2-beta1", "epsilon-plus-flat", "attnlrp", "cp-lrp", "deep-taylor"]


@functools.cache
def rule_sets(op: str) -> list[str]:
    """RULES, and a shipped set for each other rule that one has for the op, or for what it holds inside."""
    row = registry.find(op)
    if row is None or row.vjp is None or op in HOLDING:
        return [*RULES, *INSIDE]
    seen, found = [], []
    for name in (*RULES, *(name for name in BOOKED if name not in RULES)):
        places = [Place(linear, 0, linear, linear) for linear in (False, True)[: 1 + weighted(row)]]
        choices = [choose(SETS[name], View(op, [], [], {}), place) for place in places]
        rules = [(c.rule, {k: v for k, v in c.picked.parameters.items() if k not in BOX}) for c in choices]
        if name in RULES or rules not in seen:
            found.append(name)
        seen.append(rules)
    return found


def weighted(row: registry.OpInfo) -> bool:
    """True for linear ops with a weight, which may also be data."""
    return row.linear is not None and row.linear.weight is not None


def variants() -> list[object]:
    rows = []
    for case in CASES:
        for rule in rule_sets(case.op):
            rows.append(pytest.param(case, rule, False, id=f"{case.id}-{rule}"))
            if case.dynamic and rule == "lrp-gamma":
                rows.append(pytest.param(case, rule, True, id=f"{case.id}-{rule}-dynamic"))
    return rows


@pytest.mark.parametrize(("case", "rule", "dynamic"), variants())
def test_the_ledger_closes(case: Case, rule: str, dynamic: bool) -> None:
    model, feed = build(case, "float64", dynamic)
    names = explained_inputs(case)
    options = {"explain_output": "s", "explain_reduce": "sum", "explain_input": names, "ledger": True}
    emitted = xaicompile.compile(model, rule, parameters=BOX if rule in BOXES else None, **options)
    outputs = [o.name for o in emitted.graph.output]
    got = dict(zip(outputs, evaluator(emitted).run(None, feed), strict=True))
    relevance = [np.asarray(v) for k, v in got.items() if k.startswith("relevance")]
    assert len(relevance) == len(names)
    assert all(np.isfinite(r).all() for r in relevance)
    explained, absorbed = float(got["explained"].sum()), float(got["ledger"].sum())
    assert explained == pytest.approx(float(np.sum(got["s"])), rel=1e-12)
    scale = max(abs(explained), abs(absorbed), *(float(np.abs(r).sum()) for r in relevance))
    assert abs(sum(float(r.sum()) for r in relevance) + absorbed - explained) <= SINGLE.get(case.op, TOLERANCE) * scale
    assert np.allclose(got["ledger_by_node"].sum(1), got["ledger"], rtol=1e-12, atol=1e-12 * scale)
