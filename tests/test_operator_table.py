"""The operator table is closed: every row is tested, and what the rows emit has a row and a kernel on CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest

import xaicompile
from tests.cases import Case
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from xaicompile import registry

# Operators with a row but without one in the table of cases, and why.
ELSEWHERE = {
    "Cast": "test_vjp_special.py",
    "CastLike": "test_vjp_special.py",
    "Swish": "opset 24, of which ONNX Runtime has no kernel yet; a view of Sigmoid and Mul otherwise",
}
NOTHING_TO_DIFFERENTIATE = {
    *("And", "Or", "Xor", "Not"),  # bool
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),  # integers
    *("Constant", "ConstantOfShape", "EyeLike", "Range", "Unique", "Hardmax"),  # carry nothing
    *("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"),  # random
}

# Of ONNX Runtime: operators without a CUDA kernel cost a copy to the CPU and back.
NO_CUDA_KERNEL = {
    *("Acosh", "Asin", "Atan", "Celu", "Col2Im", "Cosh", "DFT", "Det", "Hardmax", "LpPool", "MaxUnpool"),
    *("Mean", "Sinh", "Tan"),
}
CUDA_KERNEL = {
    *("Abs", "Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Conv"),
    *("ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp"),
    *("Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool"),
    *("Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log"),
    *("LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu"),
    *("Pad", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND"),
    *("Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth"),
    *("Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
    *("Unsqueeze", "Where", "Xor"),
}


def emitted_ops(case: Case) -> Iterator[str]:
    """The operators that the gradient of a row adds, with known and with unknown dimensions, in two types."""
    for dynamic in (False, True) if case.dynamic else (False,):
        for dtype in ("float32", "float16"):
            model, _ = build(case, dtype, dynamic)
            emitted = xaicompile.compile(
                model, "gradient", explain_output="s", explain_reduce="sum", explain_input=explained_inputs(case)
            )
            had = {y for n in model.graph.node for y in n.output}
            yield from (n.op_type for n in emitted.graph.node if not had & set(n.output))


@pytest.fixture(scope="module")
def emitted() -> dict[str, str]:
    """Each operator that some row emits, with the name of such a row."""
    rows = [c for c in CASES if c.opset >= 18]  # below, the forward nodes change too
    return {op: case.id for case in rows for op in emitted_ops(case)}


def test_every_row_has_a_case() -> None:
    covered = {c.op for c in CASES} | set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE
    assert sorted({row.op for row in registry.operators() if not row.domain} - covered) == []


def test_the_exceptions_are_needed() -> None:
    assert not (set(ELSEWHERE) | NOTHING_TO_DIFFERENTIATE) & {c.op for c in CASES}
    carrying = [op for op in NOTHING_TO_DIFFERENTIATE if (row := registry.find(op)) is None or not row.zero]
    assert carrying == []


def test_what_is_emitted_can_be_compiled_again(emitted: dict[str, str]) -> None:
    assert {op: case for op, case in emitted.items() if registry.find(op) is None} == {}


def test_what_is_emitted_has_a_cuda_kernel(emitted: dict[str, str]) -> None:
    assert {op: case for op, case in emitted.items() if op in NO_CUDA_KERNEL} == {}
    known = CUDA_KERNEL | {"CastLike", "Mish", "HardSwish"}  # function bodies: the runtime expands them
    assert {op: case for op, case in emitted.items() if op not in known} == {}


def test_emitted_operators_are_standard(emitted: dict[str, str]) -> None:
    assert all(onnx.defs.has(op) for op in emitted)
