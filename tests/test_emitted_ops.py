"""Every operator that the compiler emits runs on CUDA in ONNX Runtime, and can itself be explained."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

import xaicompile
from tests import source
from tests.cases import Case
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from tests.finite_nets import NETS
from tests.graphs import data, net, run, weight
from tests.test_conservation_table import rule_sets
from tests.test_ledger import BOOKED, BOX, SETS, mixed
from xaicompile import registry
from xaicompile.methods import WITHOUT_TARGET

# Operators with a kernel in ONNX Runtime's CUDA provider (1.31) for float32, float16 and float64 where they take
# floating-point numbers. CastLike is a function of the standard, which the runtime replaces by Cast.
CUDA = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat ConstantOfShape Conv
    ConvTranspose Cos CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity If
    InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max
    MaxPool Min Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence Round Scan ScatterElements ScatterND Selu SequenceConstruct SequenceLength Shape Sigmoid Sign Sin
    Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
# Without one: each costs a copy to the CPU and back. Mean is Sum / n.
CPU_ONLY = """
    Acos Acosh Asin Asinh Atan Atanh Celu Col2Im Cosh Det DFT Hardmax LpPool MaxUnpool Mean Mish Sinh Tan
"""

# Rows whose own model, which stays as it is, fails the checker's shape inference.
MISREAD = {"STFT-one_sided_by_default": "ONNX's inference takes a one-sided default for two-sided"}

OTHER_MODELS = ("gnn-lrp", "second-order-lrp")  # tests/test_walks.py, tests/test_second_order_lrp.py
RULES = [rule for rule in SETS if rule not in OTHER_MODELS]
ALIKE = {"lrp-gamma", "lrp-0", "lrp-epsilon", "gradient-x-input"}  # these emit nothing that another does not


def given(rule: str) -> dict[str, object] | None:
    """The parameters that a rule set asks for."""
    if rule in ("z-box", "epsilon-gamma-box"):
        return dict(BOX)
    return {"background": [[[[0.5]]]]} if "background" in SETS[rule].accepted else None


def new_nodes(made: onnx.ModelProto, model: onnx.ModelProto) -> set[str]:
    return {op for node in made.graph.node[len(model.graph.node) :] for op in ops_of(node)}


def ops_of(node: onnx.NodeProto) -> set[str]:
    """A node's operator and those in its subgraphs."""
    inner = [child for a in node.attribute if a.HasField("g") for child in a.g.node]
    return {node.op_type}.union(*(ops_of(child) for child in inner))


@functools.cache
def emitted_by_cases() -> dict[str, str]:
    """Each operator that some row of the table makes the compiler emit, with the row."""
    found: dict[str, str] = {}
    for case in CASES:
        for dynamic in {False, case.dynamic}:
            model, _ = build(case, "float32", dynamic)
            more = [] if dynamic else [r for r in rule_sets(case.op) if r not in ALIKE]
            for rule in ("gradient", "lrp-gamma", *more):
                options = {"explain_output": "s", "explain_input": explained_inputs(case), "parameters": given(rule)}
                made = xaicompile.compile(model, rule, **options)
                for op in new_nodes(made, model):
                    found.setdefault(op, f"{case.id}, {rule}, {'dynamic' if dynamic else 'static'}")
    return found


def emitted_by_source() -> dict[str, str]:
    """Each operator that stands in the compiler's code as a call, with the place."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    own = {"Layer", "Constant", "Optional"}  # classes and helpers of other libraries that share an operator's name
    return {name: f"{file}: {function}" for file, function, name in source.calls() if name in known - own}


def emitted_by_contract() -> dict[str, str]:
    model = mixed()
    found = {}
    for rule in RULES:
        once = bool(SETS[rule].method)  # a method explains inputs only
        reduced = {} if SETS[rule].method in WITHOUT_TARGET else {"explain_reduce": "mean"}
        for extra in (reduced, {} if once else {"layers": ["a2"]}, {"ledger": rule in BOOKED}):
            for op in new_nodes(xaicompile.compile(model, rule, parameters=given(rule), **extra), model):
                found[op] = f"{rule}, {extra}"
    return found


@pytest.fixture(scope="module")
def emitted() -> dict[str, str]:
    return {**emitted_by_source(), **emitted_by_contract(), **emitted_by_cases()}


def test_the_sweep_sees_what_the_code_says(emitted: dict[str, str]) -> None:
    assert len(emitted) > 60
    assert {"ConvTranspose", "ScatterElements", "ScatterND", "DepthToSpace", "Where", "Sum"} <= set(emitted)
    seen = set(emitted_by_cases()) | set(emitted_by_contract())
    assert len(seen) > 50


def test_every_emitted_operator_has_a_cuda_kernel(emitted: dict[str, str]) -> None:
    assert not set(CUDA.split()) & set(CPU_ONLY.split())
    missing = {op: where for op, where in emitted.items() if op not in CUDA.split()}
    assert not missing


def test_every_emitted_operator_can_itself_be_explained(emitted: dict[str, str]) -> None:
    """Sequences are read as the standard ops that they stand for, if their members are known when compiling."""
    assert "SequenceConstruct" in emitted  # of one constant: test_an_emitted_loop_can_be_compiled_again
    rows = {op: registry.find(op) for op in emitted if op != "SequenceConstruct"}
    missing = {op: emitted[op] for op, row in rows.items() if row is None or row.vjp is None}
    assert not missing


@pytest.mark.parametrize("case", [c for c in CASES if c.carries], ids=lambda case: case.id)
def test_an_emitted_gradient_can_be_compiled_again(case: Case) -> None:
    model, _ = build(case, "float32")
    names = explained_inputs(case)
    once = xaicompile.compile(model, "gradient", explain_output="s", explain_input=names)
    end = "relevance" if len(names) == 1 else f"relevance_{names[0]}"
    again = xaicompile.compile(once, "gradient", explain_output=end, explain_input=names)
    if case.id in MISREAD:  # the source fails it too: once it does not, this row is to be checked like all others
        with pytest.raises(onnx.shape_inference.InferenceError):
            onnx.checker.check_model(model, full_check=True)
    onnx.checker.check_model(again, full_check=case.id not in MISREAD)


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad"])
def test_an_emitted_loop_can_be_compiled_again(rule: str, chunk: int) -> None:
    """The gradient of its relevance is the central difference, along one direction."""
    w, v = weight(5, 3, dtype=np.float64), weight(3, 4, seed=2, dtype=np.float64)
    model = net("(double[N,5] x) => (double[N,4] y)", "z = MatMul(x, w) \n h = Tanh(z) \n y = MatMul(h, v)", w=w, v=v)
    parameters = {"steps": 4} if rule == "integrated-gradients" else {"samples": 4, "noise": "absolute"}
    once = xaicompile.compile(model, rule, parameters=parameters, chunk=chunk)
    again = xaicompile.compile(once, "gradient", explain_output="relevance", explain_reduce="sum")
    onnx.checker.check_model(again, full_check=True)
    x, way, target, e = data(2, 5, dtype=np.float64), data(2, 5, seed=1, dtype=np.float64), np.array([1, 3]), 1e-5
    (name,) = {t.name for t in again.graph.output} - {t.name for t in once.graph.output}
    slope = run(again, {"x": x, "target": target})[name]
    high, low = (run(once, {"x": x + s * way, "target": target})["relevance"].sum(1) for s in (e, -e))
    np.testing.assert_allclose((slope * way).sum(1), (high - low) / (2 * e), rtol=0, atol=1e-8 * np.abs(slope).max())


@pytest.mark.parametrize("name", ["mixed", "attention, -inf"])
@pytest.mark.parametrize("rule", BOOKED)
def test_an_emitted_relevance_can_be_compiled_again(rule: str, name: str) -> None:
    """Every rule set's own nodes have a gradient: that of its relevance, with the ledger's in it."""
    if rule == "z-box" and name != "mixed":
        pytest.skip("its first layer reads no bounded input")
    once = xaicompile.compile(NETS[name].make(np.float32), rule, parameters=given(rule), ledger=True)
    for end in ("relevance", "ledger"):
        again = xaicompile.compile(once, "gradient", explain_output=end, explain_input="x")
        onnx.checker.check_model(again, full_check=True)
