"""GNN-LRP over all walks, and the search for the most relevant: against one pass for each walk (W1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from tests.test_walks import F64, NODES, X, block_net, explained, feed, gcn, walks
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError


@pytest.mark.parametrize("order", ["messages first", "columns", "einsum", "edges nd"])
@pytest.mark.parametrize("layers", [1, 2])
def test_all_walks_are_each_walk(order: str, layers: int) -> None:
    found = explained(gcn(layers, order, True), feed(order), 0.7, walks=walks(layers), all_walks=True)
    assert found["all_walks_relevance"].shape == (NODES,) * (layers + 1)
    np.testing.assert_allclose(found["all_walks_relevance"].ravel(), found["walk_relevance"], rtol=0, atol=1e-12)
    assert np.abs(found["walk_relevance"]).max() > 1e-2


@pytest.mark.parametrize("nodes", ["N,5", "N,M"])
def test_all_and_top_walks_of_several_graphs_and_maps(nodes: str) -> None:
    several = np.abs(data(3, NODES, 3, seed=4, dtype=F64))
    options: dict[str, Any] = {"all_walks": True, "top_walks": 4}
    found = explained(gcn(2, nodes=nodes), feed(x=several), 0.7, maps=2, target=[0, 1], **options)
    for n, x in enumerate(several):
        for target in (0, 1):
            single = explained(gcn(2), feed(x=x), 0.7, target=target, **options)
            for key in ("all_walks_relevance", "top_walks", "top_walk_relevance"):
                np.testing.assert_allclose(found[key][n, target], single[key], rtol=0, atol=1e-12, err_msg=key)


def sorted_walks(found: Arrays, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The walks of the largest relevance, by looking at all."""
    every = found["all_walks_relevance"]
    order = np.argsort(-np.abs(every), axis=None, kind="stable")[:most]
    return np.stack(np.unravel_index(order, every.shape), axis=1), every.ravel()[order]


def random_net(nodes: int, layers: int, seed: int) -> tuple[Any, Arrays]:
    """A GCN on a random graph with loops, of about three edges a node."""
    rng = np.random.default_rng(seed)
    pattern = np.eye(nodes) + (rng.random((nodes, nodes)) < 2 / nodes)
    a = pattern * rng.uniform(0.2, 1, (nodes, nodes))
    held: dict[str, Any] = {"sum": np.array([0]), "out": weight(4, 2, seed=seed, dtype=F64)}
    text = ["h0 = Identity(x)"]
    for i in range(layers):
        held[f"w{i}"] = weight(3 if i == 0 else 4, 4, seed=seed * 7 + i, dtype=F64)
        text.append(f"m{i} = MatMul(a, h{i})\n z{i} = MatMul(m{i}, w{i})\n h{i + 1} = Relu(z{i})")
    text += [f"pooled = ReduceSum<keepdims=1>(h{layers}, sum)", "y = MatMul(pooled, out)"]
    model = net(f"(double[{nodes},3] x, double[{nodes},{nodes}] a) => (double[1,2] y)", "\n".join(text), **held)
    return model, {"x": np.abs(data(nodes, 3, seed=seed, dtype=F64)), "a": a}


@pytest.mark.parametrize(("nodes", "layers", "seed"), [(10, 2, 1), (9, 2, 2), (8, 3, 3), (6, 3, 4), (10, 1, 5)])
def test_the_top_walks_of_small_graphs_are_those_of_all(nodes: int, layers: int, seed: int) -> None:
    model, fed = random_net(nodes, layers, seed)
    compiled = compile_model(
        model, "gnn-lrp", structure="a", target=0, all_walks=True, top_walks=8, parameters={"gamma": 0.3}
    ).model
    found = run(compiled, fed)
    want, relevance = sorted_walks(found, 8)
    np.testing.assert_array_equal(found["top_walks"], want)
    np.testing.assert_allclose(found["top_walk_relevance"], relevance, rtol=1e-9)
    assert relevance[-1] != 0


@pytest.mark.parametrize("order", ["columns", "edges"])
def test_top_walks_in_other_forms(order: str) -> None:
    found = explained(gcn(2, order, True), feed(order), 0.7, all_walks=True, top_walks=6)
    want, relevance = sorted_walks(found, 6)
    np.testing.assert_array_equal(found["top_walks"], want)
    np.testing.assert_allclose(found["top_walk_relevance"], relevance, rtol=1e-9)
    assert found["top_walks"].dtype == np.int64


def test_top_walks_of_blocks() -> None:
    found = explained(block_net("sage")[0], feed(), 0.7, all_walks=True, top_walks=6)
    want, relevance = sorted_walks(found, 6)
    np.testing.assert_array_equal(found["top_walks"], want)
    np.testing.assert_allclose(found["top_walk_relevance"], relevance, rtol=1e-9)


def test_a_narrow_beam_finds_walks_that_are_walks() -> None:
    """Each with the relevance of that walk, not always the largest."""
    model, fed = random_net(8, 3, 3)
    options: dict[str, Any] = {"structure": "a", "target": 0, "all_walks": True, "top_walks": 8}
    found = run(compile_model(model, "gnn-lrp", parameters={"beam": 2}, **options).model, fed)
    some = found["top_walks"][found["top_walks"][:, 0] >= 0]
    each = [found["all_walks_relevance"][tuple(walk)] for walk in some]
    np.testing.assert_allclose(found["top_walk_relevance"][: len(some)], each, rtol=1e-9)
    assert len(some) > 2
    assert (np.diff(np.abs(found["top_walk_relevance"])) <= 0).all()
    assert len({tuple(walk[1:]) for walk in some}) == 2


def test_walks_that_are_not_there_are_minus_one() -> None:
    """More are asked for than have any relevance, or than there could be."""
    found = explained(gcn(2), feed(), 0.7, all_walks=True, top_walks=200)
    there = int(np.count_nonzero(found["all_walks_relevance"]))
    assert 8 < there < NODES**3
    want, relevance = sorted_walks(found, there)
    assert found["top_walks"].shape == (200, 3)
    np.testing.assert_array_equal(found["top_walks"][:there], want)
    np.testing.assert_allclose(found["top_walk_relevance"][:there], relevance, rtol=1e-9)
    assert (found["top_walks"][there:] == -1).all()
    assert (found["top_walk_relevance"][there:] == 0).all()


def test_graphs_without_any_relevance_have_no_walks() -> None:
    """One beside others, whose walks are all found."""
    several = np.stack([X, 0 * X])
    found = explained(gcn(2, nodes="N,5"), feed(x=several), 0.7, top_walks=3)
    assert (found["top_walks"][0] >= 0).all()
    assert (found["top_walks"][1] == -1).all()
    alone = compile_model(gcn(2), "gnn-lrp", structure="a", target=1, top_walks=3).model
    assert (run(alone, feed(x=0 * X))["top_walks"] == -1).all()


def test_too_many_walks_are_refused_and_many_are_searched() -> None:
    model = net("(float[300,3] x, float[300,300] a) => (float[300,3] y)", "\n".join(
        f"m{i} = MatMul(a, {h})\n {y} = Relu(m{i})" for i, (h, y) in enumerate([("x", "h"), ("h", "g"), ("g", "y")])
    ))  # fmt: skip
    with pytest.raises(RuleError, match=r"--all-walks: 300\^4 walks are too many; take --top-walks 100"):
        compile_model(model, "gnn-lrp", structure="a", all_walks=True)
    compiled = compile_model(model, "gnn-lrp", structure="a", target=0, top_walks=2, parameters={"beam": 4}).model
    a = np.eye(300, k=1, dtype=np.float32)
    found = run(compiled, {"x": data(300, 3) ** 2, "a": a})
    np.testing.assert_array_equal(np.diff(found["top_walks"], axis=1), -np.ones((2, 3)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"all_walks": True}, "--all-walks is for --rule gnn-lrp; rule 'lrp-gamma' knows no graph"),
        ({"top_walks": 3}, "--top-walks 3 is for --rule gnn-lrp; rule 'lrp-gamma' knows no graph"),
        ({"rule": "gnn-lrp", "structure": "a", "top_walks": 3, "parameters": {"beam": 0}}, "parameter 'beam' is 0"),
    ],
)
def test_options_of_other_rules_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RuleError, match=told):
        compile_model(gcn(2), **options)


def test_onnx_runtime_agrees_with_the_oracle() -> None:
    options: dict[str, Any] = {"structure": "a", "target": 1, "top_walks": 4, "all_walks": True}
    compiled = compile_model(gcn(2), "gnn-lrp", **options).model
    found, want = run(compiled, feed()), exact(compiled, feed())
    for key, value in want.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-12, err_msg=key)
