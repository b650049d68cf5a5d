"""What can't be explained is listed, all of it, each node with the kind of gap that it is."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import xaicompile
from tests.graphs import net
from xaicompile.cli import cli
from xaicompile.errors import UnsupportedError


def model_with_gaps() -> onnx.ModelProto:
    """A node of each kind that has no gradient, with nodes between that have one."""
    body = """
        t = Tanh(x)
        y = If (flag) <
            then_branch = yes () => (float[N,3] a) { b = Bernoulli(t)  c = RandomNormalLike(b)  a = Add(b, c) },
            else_branch = no () => (float[N,3] d) { d = Sin(t) }
        >
        z = Sin(y)"""
    model = net("(float[N,3] x, bool flag) => (float[N,3] z)", body)
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Grille", ["z"], ["g"], name="grille", domain="com.example"))
    model.graph.node.append(helper.make_node("Sigmoid", ["g"], ["s"], name="last"))
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 3]))
    return model


def test_inspect_lists_every_node_and_each_gap(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_with_gaps(), path)
    result = CliRunner().invoke(cli, ["inspect", str(path), "--explain-output", "s", "--json"])
    assert result.exit_code == 4
    assert len(result.stderr.strip().splitlines()) == 1
    found = json.loads(result.stdout)
    kinds = {gap["op"]: gap["kind"] for gap in found["gaps"]}
    assert kinds == {"Bernoulli": "subgraph", "RandomNormalLike": "subgraph", "Grille": "domain"}
    assert all(set(gap) == {"node", "op", "domain", "since", "kind", "reason"} for gap in found["gaps"])
    grille = next(gap for gap in found["gaps"] if gap["op"] == "Grille")
    assert (grille["node"], grille["domain"], grille["since"]) == ("grille", "com.example", 3) and grille["reason"]
    rules = {node["op"]: node["rule"] for node in found["nodes"]}
    assert rules["com.example.Grille"] == "unsupported: domain" and rules["Bernoulli"] == "unsupported: subgraph"
    assert {op for op, rule in rules.items() if rule == "default"} == {"Tanh", "If", "Sin", "Sigmoid"}
    text = CliRunner().invoke(cli, ["inspect", str(path), "--explain-output", "s"])
    assert text.exit_code == 4 and text.stdout.count("unsupported: ") == 3
    assert all(word in text.stderr for word in ("(domain)", "(subgraph)", "Grille 'grille'"))


def test_a_form_that_only_the_rule_finds_out_about(tmp_path: Path) -> None:
    model = net("(float[1,2,1] x, int64 axis) => (float[1,2,2] y)", "y = DFT(x, , axis)", opset=20)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    result = CliRunner().invoke(cli, ["inspect", str(path), "--explain-output", "y", "--json"])
    assert result.exit_code == 4
    (gap,) = json.loads(result.stdout)["gaps"]
    assert gap["kind"] == "no rule" and gap["op"] == "DFT" and "axis" in gap["reason"]
    with pytest.raises(UnsupportedError, match=r"no rule: DFT .* axis that is worked out at run time"):
        xaicompile.compile(model, explain_output="y")


def test_a_model_without_gaps_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(net("(float[N,3] x) => (float[N,3] y)", "y = Tanh(x)"), path)
    result = CliRunner().invoke(cli, ["inspect", str(path), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["gaps"] == []
