"""The standard's own test models: the gradient of every operator in it, along random directions in float64.

What is left out stands in ``backend_skips.toml`` with the reason; so do inputs that carry nothing on purpose.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.backend import NodeModel, disagreement, gradients, models, scalar_of, tests, twin
from xaicompile import registry
from xaicompile.errors import UnsupportedError

SKIPS = tomllib.loads((Path(__file__).parent / "backend_skips.toml").read_text("utf-8"))
TOLERANCE = 1e-5
FEWEST = 140


def left_out(case: NodeModel, output: str) -> bool:
    return case.name in SKIPS["outputs"] or f"{case.name} {output}" in SKIPS["outputs"]


def compared(case: NodeModel) -> list[str]:
    """The outputs whose gradient is compared."""
    if case.op in SKIPS["refused"] or case.op in SKIPS["opaque"] or not case.explained:
        return []
    return [output for output in case.outputs if not left_out(case, output)]


def by_operator() -> Iterator[object]:
    for op in sorted({case.op for case in models() if compared(case)}):
        yield pytest.param([case for case in models() if case.op == op and compared(case)], id=op)


@pytest.mark.parametrize("cases", by_operator())
def test_the_gradient_is_that_of_central_differences(cases: list[NodeModel]) -> None:
    with np.errstate(all="ignore"):
        errors = {(case.name, output): disagreement(case, output) for case in cases for output in compared(case)}
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


def with_twins() -> Iterator[object]:
    for op in sorted({case.op for case in models() if compared(case) and f"{case.name}_expanded" in tests()}):
        yield pytest.param([case for case in models() if case.op == op and case.name not in SKIPS["twins"]], id=op)


@pytest.mark.parametrize("cases", with_twins())
def test_an_operator_and_its_function_body_have_the_same_gradient(cases: list[NodeModel]) -> None:
    for case in cases:
        body = twin(case)
        for output in compared(case) if body is not None else []:
            with np.errstate(all="ignore"):
                one, other = (gradients(scalar_of(case, output, model), case) for model in (None, body))
            for name, gradient in one.items():
                largest = max(float(np.abs(gradient).max(initial=0)), 1e-9)
                assert np.abs(gradient - other[name]).max(initial=0) <= 1e-6 * largest, f"{case.name} {output} {name}"


@pytest.mark.parametrize("op", SKIPS["refused"])
def test_what_is_refused_is_refused_in_one_line(op: str) -> None:
    case = next(case for case in models() if case.op == op)
    with pytest.raises(UnsupportedError) as refusal:
        gradients(scalar_of(case, case.outputs[0]), case)
    assert op in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_inputs_that_carry_nothing_do_so_on_purpose() -> None:
    found = {(case.op, str(place)) for case in models() for place in case.stopped}
    assert found == {(op, place) for op, places in SKIPS["stopped"].items() for place in places}


def test_every_exception_names_a_model() -> None:
    known = {name for case in models() for name in (case.name, *(f"{case.name} {o}" for o in case.outputs))}
    assert set(SKIPS["outputs"]) | set(SKIPS["twins"]) <= known
    assert set(SKIPS["refused"]) | set(SKIPS["opaque"]) <= {case.op for case in models()}


def test_how_many_operators_are_covered(capsys: pytest.CaptureFixture[str]) -> None:
    covered = {(case.domain, case.op) for case in models() if compared(case)}
    rows = [registry.find(op, domain) for domain, op in covered]
    flat = sum(row is not None and row.zero for row in rows)
    total = len({(case.domain, case.op) for case in models()})
    with capsys.disabled():
        print(f"\n{len(covered)} of {total} operators covered, {flat} of which carry nothing; {len(models())} models")
    assert len(covered) >= FEWEST
