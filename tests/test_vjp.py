"""Every operator's gradient, first and second order, against central differences in float64.

The emitted model runs in ``onnx.reference`` with the float64 operators of ``reference_ops.py``, which are checked
against ONNX Runtime themselves. Then the same models in float32 and float16 in ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import xaicompile
from tests.cases import Case
from tests.cases.build import (
    Array,
    Feed,
    build,
    central_difference,
    explained_inputs,
    project,
    relative_error,
)
from tests.cases.table import CASES
from tests.reference_ops import evaluator

FIRST_ORDER = 1e-6
SECOND_ORDER = 1e-6
FLOAT32 = 2e-5
FLOAT16 = 2e-2


def relevance_names(model: onnx.ModelProto, inputs: list[str]) -> dict[str, str]:
    """The relevance output of each explained input; the last ones, where a model is compiled twice."""
    outputs = [o.name for o in model.graph.output]
    return dict(zip(inputs, outputs[len(outputs) - len(inputs) :], strict=True))


def compiled(model: onnx.ModelProto, case: Case, output: str) -> onnx.ModelProto:
    """The model with the gradient of the scalar ``output`` added."""
    inputs = explained_inputs(case)
    return xaicompile.compile(model, "gradient", explain_output=output, explain_reduce="sum", explain_input=inputs)


def gradients(model: onnx.ModelProto, case: Case, feed: Feed) -> Feed:
    """The relevance of each explained input, in float64 by the reference."""
    names = relevance_names(model, explained_inputs(case))
    values = evaluator(model).run(list(names.values()), feed)
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def variants(cases: list[Case]) -> list[object]:
    """Each row with known dimensions, and again with every dimension unknown."""
    rows = []
    for case in cases:
        rows.append(pytest.param(case, False, id=case.id))
        if case.dynamic:
            rows.append(pytest.param(case, True, id=f"{case.id}-dynamic"))
    return rows


def assert_close(got: Feed, want: Feed, tolerance: float) -> None:
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        assert relative_error(got[name], expected) <= tolerance, f"{name}\n{got[name]}\n{expected}"


@pytest.mark.parametrize(("case", "dynamic"), variants(CASES))
def test_gradient(case: Case, dynamic: bool) -> None:
    model, feed = build(case, "float64", dynamic)
    emitted = compiled(model, case, "s")
    want = central_difference(model, feed, "s", explained_inputs(case))
    assert_close(gradients(emitted, case, feed), want, FIRST_ORDER)
    before, after = (evaluator(m).run(["s"], feed)[0] for m in (model, emitted))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(("case", "dynamic"), variants([c for c in CASES if c.order2]))
def test_second_order(case: Case, dynamic: bool) -> None:
    """Compiles the compiled model again, explaining a random combination of its gradients."""
    model, feed = build(case, "float64", dynamic)
    first = compiled(model, case, "s")
    names = relevance_names(first, explained_inputs(case))
    combined = project(first, {names[n]: feed[n] for n in names}, "float64", "t")
    second = compiled(combined, case, "t")
    want = central_difference(combined, feed, "t", explained_inputs(case))
    got = gradients(second, case, feed)
    largest = max(float(np.abs(v).max()) for v in gradients(first, case, feed).values())
    for name, expected in want.items():  # a linear operator's second derivative is zero: measure against the first
        assert got[name].shape == expected.shape
        scale = max(float(np.abs(expected).max()), largest)
        assert np.abs(got[name] - expected).max() <= SECOND_ORDER * scale, f"{name}\n{got[name]}\n{expected}"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("case", "dynamic"), variants([c for c in CASES if c.runtime]))
def test_types_in_the_runtime(case: Case, dynamic: bool, dtype: str) -> None:
    """The emitted model loads, runs and keeps the type; the numbers are those of float64."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if dtype == "float16" and not case.half:
        pytest.skip("the runtime has no such kernel for the operator itself")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model, feed = build(case, dtype, dynamic)
    emitted = compiled(model, case, "s")
    session = onnxruntime.InferenceSession(emitted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = relevance_names(emitted, explained_inputs(case))
    values: list[Array] = session.run(list(names.values()), feed)
    exact_model, exact_feed = build(case, "float64", dynamic)
    want = gradients(compiled(exact_model, case, "s"), case, exact_feed)
    assert all(v.dtype == np.dtype(dtype) for v in values)
    assert_close(dict(zip(names, values, strict=True)), want, FLOAT32 if dtype == "float32" else FLOAT16)
