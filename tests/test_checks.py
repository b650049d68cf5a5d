"""The check finds each way in which an emitted model can break its contract (models made by hand here)."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from xaicompile.checks import CheckReport, check

W = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32)


def source() -> onnx.ModelProto:
    """logits = x W."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["logits"], name="fc")],
        "source",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(W, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def explained(fault: str = "") -> onnx.ModelProto:
    """The source with gradient times input written by hand, and one fault if named."""
    model = source()
    graph = model.graph
    if fault == "prediction":
        graph.initializer[0].CopyFrom(numpy_helper.from_array(W * np.float32(1.001), "W"))
    if fault == "fusion":
        graph.initializer[0].CopyFrom(numpy_helper.from_array(W * np.float32(1 + 3e-7), "W"))
    for name, value in {
        "target": np.array([-1]),
        "axis": np.array([1]),
        "one": np.array([1]),
        "zero": np.array(0),
        "three": np.array(3),
        "values": np.array([0, 1], np.float32),
    }.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["targets"]))
    depth = "three"
    inf = [helper.make_node("Log", ["zero_f"], ["inf"]), helper.make_node("Mul", ["R", "inf"], ["relevance"])]
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero_f"))
    graph.node.extend(
        [
            helper.make_node("ArgMax", ["logits"], ["winner"], axis=1, keepdims=0),
            helper.make_node("Less", ["target", "zero"], ["free"]),
            helper.make_node("Where", ["free", "winner", "target"], ["t"]),
            *([helper.make_node("Mod", ["t", "three"], ["index"])] if fault == "target" else []),
            helper.make_node("OneHot", ["index" if fault == "target" else "t", depth, "values"], ["seed"], axis=-1),
            helper.make_node("Transpose", ["W"], ["Wt"]),
            helper.make_node("MatMul", ["seed", "Wt"], ["c"]),
            helper.make_node("Mul", ["x", "c"], ["R"]),
            *(inf if fault == "finite" else [helper.make_node("Identity", ["R"], ["relevance"])]),
            helper.make_node("Mul", ["seed", "logits"], ["picked"]),
            helper.make_node("ReduceSum", ["picked", "axis"], ["explained"], keepdims=0),
            helper.make_node("Sub", ["explained", "explained"], ["nothing"]),
            helper.make_node("Add" if fault == "ledger" else "Mul", ["nothing", "half"], ["ledger"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    if fault == "operators":
        graph.node.append(helper.make_node("FastGelu", ["R"], ["unused"], domain="com.microsoft"))
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    outputs = [("relevance", ["N", 4]), ("explained", ["N"]), ("ledger", ["N"])]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs)
    if fault == "outputs":
        first = graph.output.pop(0)
        graph.output.append(first)
    text = 'name = "handmade"\n'
    props = {
        "xaicompile.version": "0",
        "xaicompile.rule": "handmade",
        "xaicompile.rule_text": text + ("#" if fault == "rule hash" else ""),
        "xaicompile.rule_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "xaicompile.source_sha256": hashlib.sha256(source().SerializeToString(deterministic=True)).hexdigest(),
        "xaicompile.relevance": json.dumps({"x": "relevance"}),
        "xaicompile.target": "target",
    }
    if fault == "source hash":
        props["xaicompile.source_sha256"] = "0" * 64
    if fault == "provenance":
        props = {key: value for key, value in props.items() if key in ("xaicompile.relevance", "xaicompile.target")}
    helper.set_model_props(model, props)
    return model


def failures(report: CheckReport) -> list[str]:
    return [item.name for item in report.failed]


def test_a_sound_model_passes() -> None:
    report = check(explained(), source())
    assert failures(report) == []
    expected = ["operators", "outputs", "source hash", "rule hash", "prediction", "relevance", "ledger", "target"]
    assert [item.name for item in report.items] == expected
    assert all(item.ok for item in report.items)
    assert "batches of 2 and 1" in next(item.detail for item in report.items if item.name == "prediction")


@pytest.mark.parametrize(
    "fault",
    ["prediction", "target", "finite", "ledger", "operators", "outputs", "rule hash", "source hash", "provenance"],
)
def test_each_fault_is_found(fault: str) -> None:
    spreads = {"finite": ["relevance", "ledger", "target"]}  # NaN is neither a closed ledger nor zero
    assert failures(check(explained(fault), source())) == spreads.get(fault, [fault])


def test_a_fusion_passes_unless_exact_is_asked_for() -> None:
    report = check(explained("fusion"), source())
    assert failures(report) == []
    assert "fuses" in next(item.detail for item in report.items if item.name == "prediction")
    assert failures(check(explained("fusion"), source(), exact=True)) == ["prediction"]


def test_given_inputs_are_used() -> None:
    x = np.full((5, 4), 2, np.float32)
    report = check(explained(), source(), inputs=x)
    assert "batches of 5" in next(item.detail for item in report.items if item.name == "prediction")
