"""The books of each node: `inspect --data` shows what arrives, what is kept, and where values stop being finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import xaicompile
from tests.graphs import data, net, run, weight
from tests.nets import cnn
from xaicompile.cli import cli

X = data(2, 3, 12, 12)


def books(tmp_path: Path, model: onnx.ModelProto, x: np.ndarray, *options: str) -> dict[str, Any]:
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x)
    arguments = ["inspect", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "x.npy"), "--json", *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.mark.parametrize("rule", ["lrp-gamma", "lrp-epsilon", "epsilon-plus", "lrp-0"])
def test_the_books_are_those_of_the_ledger(tmp_path: Path, rule: str) -> None:
    found = books(tmp_path, cnn(), X, "--rule", rule)
    made = xaicompile.compile(cnn(), rule, ledger=True)
    out = run(made, {"x": X})
    names = json.loads({p.key: p.value for p in made.metadata_props}["xaicompile.ledger_nodes"])
    by_node = dict(zip(names, out["ledger_by_node"].mean(0), strict=True))
    for e in found["entries"]:
        kept = e["bias"] + e["stabiliser"] + e["concepts"] + e["other"]
        assert kept == pytest.approx(by_node.get(e["node"], 0.0), rel=1e-4, abs=1e-6), e
    assert found["explained"] == pytest.approx(out["explained"].mean(), rel=1e-5)
    assert found["relevance"] == pytest.approx(out["relevance"].sum() / 2, rel=1e-4, abs=1e-6)
    assert abs(found["gap"]) <= 1e-5 and found["samples"] == 2
    assert not any(e["broken"] for e in found["entries"])
    assert found["entries"][-1]["left"] == pytest.approx(found["relevance"], rel=1e-3, abs=1e-5)


def test_what_arrives_is_the_layers_relevance(tmp_path: Path) -> None:
    found = {e["node"]: e["arrives"] for e in books(tmp_path, cnn(), X)["entries"]}
    made = xaicompile.compile(cnn(), layers=["a1", "a2"])
    out, makers = run(made, {"x": X}), {n.output[0]: n.name for n in cnn().graph.node}
    for name in ("a1", "a2"):
        assert found[makers[name]] == pytest.approx(out[f"relevance_{name}"].sum() / 2, rel=1e-4)


def test_biases_and_stabilisers_are_told_apart(tmp_path: Path) -> None:
    """y = x w + b at x = 1: the bias keeps c b z/st(z), the stabiliser c z eps/(|z| + eps)."""
    model = net(
        "(float[N,1] x) => (float[N,1] y)",
        "[only] y = Gemm(x, w, b)",
        w=np.full((1, 1), 2, np.float32),
        b=np.ones(1, np.float32),
    )
    (entry,) = books(tmp_path, model, np.ones((1, 1), np.float32), "--rule", "lrp-epsilon", "--set", "epsilon=1")[
        "entries"
    ]
    assert entry["bias"] == pytest.approx(0.75) and entry["stabiliser"] == pytest.approx(0.75)
    assert entry["left"] == pytest.approx(1.5) and entry["rule"] == "epsilon"


def test_the_first_node_that_breaks_is_named(tmp_path: Path) -> None:
    text = "[first] h = MatMul(x, v)\n[root] s = Sqrt(h)\n[last] y = MatMul(s, w)"
    model = net("(float[N,3] x) => (float[N,2] y)", text, v=np.abs(weight(3, 4)), w=weight(4, 2))
    x = np.abs(data(2, 3)) * np.array([[1], [-1]], np.float32)  # the root of a negative number
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x)
    arguments = ["inspect", str(tmp_path / "model.onnx"), "--rule", "lrp-0", "--data", str(tmp_path / "x.npy")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "not finite from 'last' (MatMul, rule epsilon) on: 2 values" in result.output
    assert result.output.splitlines()[0].split()[:4] == ["node", "op", "rule", "arrives"]


def test_bad_data_is_one_line(tmp_path: Path) -> None:
    onnx.save(cnn(), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", data(2, 5))
    for file in ("x.npy", "none.npy"):
        result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "model.onnx"), "--data", str(tmp_path / file)])
        assert result.exit_code == 3 and len(result.output.strip().splitlines()) == 1, result.output
