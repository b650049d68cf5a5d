"""GNN-LRP from token to token, with the weights of attention held fixed as structure (W1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, weight
from tests.test_walks import walks
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

TOKENS, WIDTH, HEADS = 5, 6, 2
F64 = np.float64


def transformer(layers: int = 2) -> onnx.ModelProto:
    """Blocks of attention with two heads, and of an MLP, each with a residual connection, and linear scores."""
    text, held = ["h0 = Identity(x)"], dict[str, Any]()
    for i in range(layers):
        for k, part in enumerate("qkv"):
            text.append(f"""
                {part}{i} = MatMul(h{i}, {part}w{i})
                {part}s{i} = Reshape({part}{i}, split)
                {part}t{i} = Transpose<perm=[0,2,{"3,1" if part == "k" else "1,3"}]>({part}s{i})
            """)
            held[f"{part}w{i}"] = weight(WIDTH, WIDTH, seed=10 * i + k, dtype=F64)
        text.append(f"""
            scores{i} = MatMul(qt{i}, kt{i})
            attention{i} = Softmax(scores{i})
            mixed{i} = MatMul(attention{i}, vt{i})
            back{i} = Transpose<perm=[0,2,1,3]>(mixed{i})
            joined{i} = Reshape(back{i}, join)
            o{i} = MatMul(joined{i}, ow{i})
            g{i} = Add(h{i}, o{i})
            up{i} = MatMul(g{i}, uw{i})
            on{i} = Relu(up{i})
            down{i} = MatMul(on{i}, dw{i})
            h{i + 1} = Add(g{i}, down{i})
        """)
        held[f"ow{i}"] = weight(WIDTH, WIDTH, seed=10 * i + 4, dtype=F64)
        held[f"uw{i}"], held[f"dw{i}"] = weight(WIDTH, 8, seed=i, dtype=F64), weight(8, WIDTH, seed=i, dtype=F64)
    text.append(f"pooled = ReduceSum<keepdims=0>(h{layers}, tokens)\n y = MatMul(pooled, out)")
    held |= {"split": np.array([0, 0, HEADS, WIDTH // HEADS]), "join": np.array([0, 0, WIDTH]), "tokens": np.array([1])}
    held["out"] = weight(WIDTH, 2, seed=9, dtype=F64)
    return net(f"(double[N,{TOKENS},{WIDTH}] x) => (double[N,2] y)", "\n".join(text), **held)


X = data(2, TOKENS, WIDTH, dtype=F64)


def explained(structure: Any, gamma: float = 0.0, **more: Any) -> Arrays:
    options = {"parameters": {"epsilon": 0.0, "gamma": gamma}, "target": 1, **more}
    fed = {"x": X, "walks": options.pop("walks", walks(2))}
    return exact(compile_model(transformer(), "gnn-lrp", structure=structure, **options).model, fed)


@pytest.mark.parametrize("structure", ["attention", ["attention0", "attention1"]])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_walks_from_token_to_token_sum_to_each_token(structure: Any, gamma: float) -> None:
    every = walks(2)
    found = explained(structure, gamma)
    r = found["walk_relevance"]
    for token in range(TOKENS):
        of_token = r[:, every[:, 0] == token].sum(1)
        np.testing.assert_allclose(found["node_relevance"][:, token], of_token, rtol=0, atol=1e-9)
    np.testing.assert_allclose(r.sum(1), found["y"][:, 1], rtol=1e-9)
    for layer in range(2):
        for n in range(2):
            sums = np.zeros((TOKENS, TOKENS))
            np.add.at(sums, (every[:, layer + 1], every[:, layer]), r[n])
            off = ~np.eye(TOKENS, dtype=bool)
            np.testing.assert_allclose(found["edge_relevance"][n, layer][off], sums[off], rtol=0, atol=1e-9)


def by_jacobians(x: np.ndarray, walk: np.ndarray) -> float:
    """LRP-0 of a walk: products of each block's Jacobian from token to token, attention and ReLU held fixed."""
    held = {t.name: onnx.numpy_helper.to_array(t) for t in transformer().graph.initializer}
    h, steps, size = x, [], WIDTH // HEADS
    for i in range(2):
        q, k = ((h @ held[f"{part}w{i}"]).reshape(TOKENS, HEADS, size) for part in "qk")
        scores = np.einsum("thd,shd->hts", q, k)
        a = np.exp(scores - scores.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        vw, ow = held[f"vw{i}"].reshape(WIDTH, HEADS, size), held[f"ow{i}"].reshape(HEADS, size, WIDTH)
        step = np.einsum("hts,fhd,hdo->tsfo", a, vw, ow) + np.einsum("ts,fo->tsfo", np.eye(TOKENS), np.eye(WIDTH))
        g = np.einsum("tsfo,sf->to", step, h)
        on = g @ held[f"uw{i}"] > 0
        mlp = np.eye(WIDTH) + np.einsum("fu,tu,uo->tfo", held[f"uw{i}"], on, held[f"dw{i}"])
        steps.append(np.einsum("tsfo,top->tsfp", step, mlp))
        h = np.einsum("tf,tfp->tp", g, mlp)
    first, second = steps[0][walk[1], walk[0]], steps[1][walk[2], walk[1]]
    return float(x[walk[0]] @ first @ second @ held["out"][:, 1])


def test_walks_are_products_of_jacobians_with_attention_held_fixed() -> None:
    some = walks(2)[::7]
    found = explained("attention", walks=some)["walk_relevance"]
    want = [[by_jacobians(x, walk) for walk in some] for x in X]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-9)
    assert np.abs(want).min() > 1e-6


def test_several_maps_and_the_top_walks() -> None:
    found = explained("attention", top_walks=3, all_walks=True, maps=2, target=[0, 1])
    single = explained("attention", top_walks=3, target=1)
    for key in ("top_walks", "top_walk_relevance", "walk_relevance", "edge_relevance"):
        np.testing.assert_allclose(found[key][:, 1], single[key], rtol=0, atol=1e-12)
    every = found["all_walks_relevance"][:, 1]
    np.testing.assert_allclose(np.abs(single["top_walk_relevance"][:, 0]), np.abs(every).max((1, 2, 3)), rtol=1e-9)


def test_tokens_are_explained_where_they_are_embedded() -> None:
    model = transformer()
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N", TOKENS]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(data(9, WIDTH, seed=3, dtype=F64), "table"))
    model.graph.node.insert(0, onnx.helper.make_node("Gather", ["table", "ids"], ["x"]))
    compiled = compile_model(model, "gnn-lrp", structure="attention", target=1, parameters={"epsilon": 0.0}).model
    ids = np.array([[1, 4, 0, 8, 8]])
    found = exact(compiled, {"ids": ids, "walks": walks(2)})
    assert found["relevance"].shape == (1, TOKENS)
    by_token = [found["walk_relevance"][0, walks(2)[:, 0] == token].sum() for token in range(TOKENS)]
    np.testing.assert_allclose(found["relevance"][0], by_token, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["relevance"].sum(1), found["y"][:, 1], rtol=1e-9)


def test_a_model_without_attention_is_refused() -> None:
    model = net("(double[5,3] x) => (double[5,3] y)", "s = Softmax(x)\n y = Relu(s)")
    with pytest.raises(
        RuleError, match="--structure attention is the Softmax whose outputs multiply values, and there"
    ):
        compile_model(model, "gnn-lrp", structure="attention")
