"""GNN-LRP's relevance of edges: against sums over all walks, and what leaves each sender (W1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests import test_walks as plain
from tests.graphs import Arrays, data, exact, net, weight
from tests.test_walks import F64, LAMBDA, NODES, ORDERS, PATTERN, X, block_net, explained, feed, gcn, walks
from xaicompile.compiler import compile_model

RECEIVERS, SENDERS = np.nonzero(LAMBDA)


def as_matrix(edges: np.ndarray) -> np.ndarray:
    """Edges [..., E] as [..., receivers, senders]; a matrix as it is."""
    if edges.shape[-2:] == (NODES, NODES):
        return edges
    found = np.zeros((*edges.shape[:-1], NODES, NODES))
    found[..., RECEIVERS, SENDERS] = edges
    return found


def along(found: Arrays, every: np.ndarray, layer: int) -> np.ndarray:
    """The sum over all walks that use each edge in a layer, [receivers, senders]."""
    sums = np.zeros((NODES, NODES))
    np.add.at(sums, (every[:, layer + 1], every[:, layer]), found["walk_relevance"])
    return sums


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_an_edge_is_the_sum_of_the_walks_that_use_it(order: str, gamma: float) -> None:
    every = walks(2)
    found = explained(gcn(2, order), feed(order), gamma, walks=every)
    edges = as_matrix(found["edge_relevance"])
    assert edges.shape == (2, NODES, NODES)
    for layer in range(2):
        np.testing.assert_allclose(edges[layer], along(found, every, layer), rtol=0, atol=1e-12)
    assert (edges[:, PATTERN == 0] == 0).all()
    assert np.abs(edges).max() > 1e-2


@pytest.mark.parametrize("order", list(ORDERS))
def test_what_leaves_a_sender_is_its_relevance_behind_the_layer_before(order: str) -> None:
    found = explained(gcn(2, order, biases=True), feed(order), 0.7, walks=walks(2))
    edges = as_matrix(found["edge_relevance"])
    np.testing.assert_allclose(edges[0].sum(0), found["node_relevance"], rtol=0, atol=1e-12)
    free = explained(gcn(2, order), feed(order), 0.7)
    first, second = as_matrix(free["edge_relevance"])
    np.testing.assert_allclose(first.sum(1), second.sum(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(second.sum(), free["y"][0, 1], rtol=1e-10)


@pytest.mark.parametrize("order", ["messages first", "columns", "einsum", "edges nd"])
def test_edges_of_several_graphs_and_maps(order: str) -> None:
    several = np.abs(data(3, NODES, 3, seed=4, dtype=F64))
    model = gcn(2, order, nodes="N,5") if order == "messages first" else batched(order)
    found = explained(model, feed(order, several), 0.7, maps=2, target=[0, 1])["edge_relevance"]
    for n, x in enumerate(several):
        for target in (0, 1):
            single = explained(gcn(2, order), feed(order, x), 0.7, target=target)["edge_relevance"]
            np.testing.assert_allclose(found[n, target], single, rtol=0, atol=1e-12)


def batched(order: str) -> onnx.ModelProto:
    """The same network of several graphs, in forms that count axes from the front."""
    forms = {
        "einsum": 'm{i} = MatMul(h{i}, w{i})\n z{i} = Einsum<equation="kj,njf->nkf">(a, m{i})',
        "columns": """
            across{i} = Transpose<perm=[0,2,1]>(h{i})
            senders{i} = Transpose(a)
            sent{i} = MatMul(across{i}, senders{i})
            m{i} = Transpose<perm=[0,2,1]>(sent{i})
            z{i} = MatMul(m{i}, w{i})
        """,
        "edges nd": """
            s{i} = Gather<axis=-2>(h{i}, source)
            n{i} = Mul(s{i}, values)
            size{i} = Shape(h{i})
            zero{i} = ConstantOfShape<value=double[1]{{0.0}}>(size{i})
            rows{i} = Transpose<perm=[1,0,2]>(zero{i})
            added{i} = Transpose<perm=[1,0,2]>(n{i})
            mm{i} = ScatterND<reduction="add">(rows{i}, target_of_edge, added{i})
            m{i} = Transpose<perm=[1,0,2]>(mm{i})
            z{i} = MatMul(m{i}, w{i})
        """,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plain.ORDERS, order, forms[order])
        return gcn(2, order, nodes="N,5")


def test_a_matrix_that_gemm_transposes_and_scales() -> None:
    body = """
        m = Gemm<transA=1, alpha=0.5>(a, x)
        z = MatMul(m, w)
        h = Relu(z)
        y = MatMul(h, v)
    """
    held: dict[str, Any] = {"w": weight(3, 4, dtype=F64), "v": weight(4, 2, seed=1, dtype=F64)}
    model = net("(double[5,3] x, double[5,5] a) => (double[5,2] y)", body, **held)
    every = walks(1)
    found = explained(model, {"x": X, "a": LAMBDA.T}, 0.7, walks=every)
    np.testing.assert_allclose(found["edge_relevance"][0], along(found, every, 0), rtol=0, atol=1e-12)
    assert np.abs(found["edge_relevance"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["gin", "sage"])
def test_a_layers_own_self_loop_is_no_edge(kind: str) -> None:
    """What edges leave of a sender's relevance went by the path beside the structure, to the node itself."""
    model, every = block_net(kind)[0], walks(2)
    found = explained(model, feed(), 0.7, walks=every)
    edges = found["edge_relevance"]
    sums = along(found, every, 0)
    off = ~np.eye(NODES, dtype=bool)
    np.testing.assert_allclose(edges[0][off], sums[off], rtol=0, atol=1e-12)
    beside = found["node_relevance"] - edges[0].sum(0)
    np.testing.assert_allclose(np.diag(sums) - np.diag(edges[0]), beside, rtol=0, atol=1e-12)
    assert np.abs(beside).max() > 1e-3


@pytest.mark.parametrize("same", [True, False])
def test_layers_with_edges_of_their_own_have_no_edge_relevance(same: bool) -> None:
    """Edges that each layer makes anew, but in one way, are the same."""
    layers = "\n".join(
        f"""
        size{i} = Shape({x})
        zero{i} = ConstantOfShape<value=double[1]{{0.0}}>(size{i})
        looped{i} = Concat<axis=1>({edges}, loops)
        source{i} = Gather<axis=0>(looped{i}, first)
        to{i} = Gather<axis=0>(looped{i}, second)
        at{i} = Unsqueeze(to{i}, last)
        s{i} = Gather<axis=0>({x}, source{i})
        {y} = ScatterND<reduction="add">(zero{i}, at{i}, s{i})
        """
        for i, (x, y, edges) in enumerate([("x", "h", "edges"), ("h", "g", "edges" if same else "more")])
    )
    held: dict[str, Any] = {
        "first": np.array(0),
        "second": np.array(1),
        "last": np.array([-1]),
        "loops": np.array([[4], [4]]),
    }
    signature = f"(double[5,3] x, int64[2,E] edges{'' if same else ', int64[2,F] more'}) => (double[5,3] y)"
    model = net(signature, f"{layers}\n y = Relu(g)", **held)
    structure = ["edges"] if same else ["edges", "more"]
    compiled = compile_model(model, "gnn-lrp", structure=structure, target=0, parameters={"epsilon": 0.0})
    assert ("edge_relevance" in [o.name for o in compiled.model.graph.output]) == same
    assert any("no edge_relevance: not all layers have the same edges" in note for note in compiled.notes) != same
    if same:
        pairs = np.stack([SENDERS, RECEIVERS])
        found = exact(compiled.model, {"x": X, "edges": pairs})
        assert found["edge_relevance"].shape == (2, len(SENDERS) + 1)
        np.testing.assert_allclose(found["edge_relevance"].sum(1), found["y"][:, 0].sum(), rtol=1e-10)
