"""Every row of the operator table has a case; what the rows emit is looked at in ``test_emitted_ops.py``."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import xaicompile
from tests.cases import Case
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from tests.reference_ops import evaluator
from xaicompile import registry

# Operators with a row but without one in the table of cases, and why.
ELSEWHERE = {
    "Cast": "test_vjp_special.py",
    "CastLike": "test_vjp_special.py",
    "QuantizeLinear": "test_quantised.py",
    **dict.fromkeys(("If", "Loop", "Scan"), "test_control.py"),
}
NOTHING_TO_DIFFERENTIATE = {
    *("And", "Or", "Xor", "Not"),  # bool
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),  # integers
    *("Constant", "ConstantOfShape", "EyeLike", "Hardmax", "MelWeightMatrix"),  # carry nothing
    *("SequenceLength", "OptionalHasElement"),  # of what is no tensor
    *("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"),  # random
}


def test_every_row_has_a_case() -> None:
    covered = {c.op for c in CASES} | set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE
    assert sorted({row.op for row in registry.operators() if not row.domain} - covered) == []


def test_the_exceptions_are_needed() -> None:
    assert not (set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE) & {c.op for c in CASES}
    carrying = [op for op in NOTHING_TO_DIFFERENTIATE if (row := registry.find(op)) is None or not row.zero]
    assert carrying == []


AT_ZERO = sorted({row.op for row in registry.operators() if row.at_zero is not None})


@pytest.mark.parametrize("op", AT_ZERO)
def test_at_zero_is_the_value_at_zero(op: str) -> None:
    """The identity and secant rules build on it; their ledger closes whatever it says."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1])]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], op, inputs, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    row = registry.find(op)
    assert row is not None
    value = float(evaluator(model).run(None, {"x": np.zeros(1)})[0][0])
    assert value == pytest.approx(row.at_zero, abs=1e-15)


def homogeneous() -> list[Case]:
    """Rows of operators with a degree, all of whose floating-point inputs are explained."""
    return [
        case
        for case in CASES
        if (row := registry.find(case.op)) is not None
        and row.degree is not None
        and row.linear is None
        and case.op not in registry.RELEVANCE
        and case.carries
        and case.opset >= 18
        and not any(
            a is not None and a.constant and a.make(np.random.default_rng(0)).dtype.kind == "f" for a in case.args
        )
    ]


@pytest.mark.parametrize("case", homogeneous(), ids=lambda case: case.id)
def test_degree_is_eulers(case: Case) -> None:
    """Inputs times gradients sum to the degree times the output (spec 1.7): what LRP divides by."""
    model, feed = build(case, "float64")
    names = explained_inputs(case)
    emitted = xaicompile.compile(
        model, "gradient-x-input", explain_output="s", explain_reduce="sum", explain_input=names
    )
    outputs = [o.name for o in emitted.graph.output]
    got = dict(zip(outputs, evaluator(emitted).run(None, feed), strict=True))
    row = registry.find(case.op)
    assert row is not None
    assert row.degree is not None
    relevance = [np.asarray(v) for k, v in got.items() if k.startswith("relevance")]
    scale = sum(float(np.abs(r).sum()) for r in relevance)
    assert abs(sum(float(r.sum()) for r in relevance) - row.degree * float(got["s"])) <= 1e-12 * scale
