"""The tests' own float64 operators, and onnx.reference's, against ONNX Runtime: the oracle is checked first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.cases import Case
from tests.cases.build import build, relative_error
from tests.cases.table import CASES
from tests.reference_ops import evaluator

onnxruntime = pytest.importorskip("onnxruntime")


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", [c for c in CASES if c.runtime], ids=lambda c: c.id)
def test_the_reference_agrees_with_the_runtime(case: Case) -> None:
    """Float32 in ONNX Runtime against float64 in the evaluator: 2e-6 of the largest term."""
    single, feed = build(case, "float32")
    double, feed64 = build(case, "float64")
    for model in (single, double):  # the terms, not their sum, so that nothing cancels
        terms = [n.output[0] for n in model.graph.node if n.output[0].endswith("_product")]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in terms)
    got = session(single.SerializeToString()).run(None, feed)
    want = evaluator(double).run(None, feed64)
    for left, right in zip(got[1:], want[1:], strict=True):
        assert relative_error(left, np.asarray(right, np.float64)) <= 2e-6
