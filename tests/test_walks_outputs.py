"""Which outputs a model of walks has, as options and parameters say (W1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from tests.graphs import exact
from tests.test_walks import NODES, feed, gcn
from xaicompile.cli import cli
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError


@pytest.mark.parametrize("kept", ["relevance", "edges", "walks", "subgraph"])
def test_outputs_that_are_not_wanted_are_left_out(kept: str) -> None:
    """With their inputs; those that are wanted are the same."""
    given = {"relevance": ["relevance", "node_relevance"], "edges": ["edge_relevance"]}
    names = given.get(kept, [f"{kept.removesuffix('s')}_relevance"])
    off: dict[str, Any] = {key: 0 for key in ("relevance", "edges", "walks", "subgraph") if key != kept}
    compiled = compile_model(gcn(2), "gnn-lrp", structure="a", target=1, parameters=off).model
    assert [o.name for o in compiled.graph.output] == ["y", *names]
    assert {i.name for i in compiled.graph.input} == {"x", "a", "target"} | ({kept} & {"walks", "subgraph"})
    found = exact(compiled, feed())
    want = exact(compile_model(gcn(2), "gnn-lrp", structure="a", target=1).model, feed())
    for name in names:
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=1e-12)
    with pytest.raises(RuleError, match="of relevance, edges, walks and subgraph one must be given"):
        compile_model(gcn(2), "gnn-lrp", structure="a", parameters={**off, kept: 0})


def test_a_model_of_one_output_stands_the_check(tmp_path: Path) -> None:
    """As do those with walks; other rules know no such options."""
    source, made = str(tmp_path / "gcn.onnx"), str(tmp_path / "made.onnx")
    onnx.save(gcn(2, single=True), source)
    command = [source, "-o", made, "--rule", "gnn-lrp", "--structure", "a"]
    few = [part for key in ("relevance", "walks", "edges") for part in ("--set", f"{key}=0")]
    for more in (few, ["--all-walks", "--top-walks", "5", "--set", "beam=16"]):
        found = CliRunner().invoke(cli, ["compile", *command, *more])
        assert found.exit_code == 0, found.output
        assert CliRunner().invoke(cli, ["check", made, "--against", source]).exit_code == 0
    outputs = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in onnx.load(made).graph.output}
    assert outputs["all_walks_relevance"] == [NODES] * 3
    assert (outputs["top_walks"], outputs["top_walk_relevance"]) == ([5, 3], [5])
