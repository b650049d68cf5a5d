"""GNN-LRP: walks against loops over neurons, products of Jacobians and mixed differences; their sums; sets (W1)."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

F64 = np.float64
NODES = 5
PATTERN = np.array([[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 1]], F64)
LAMBDA = PATTERN / np.sqrt(np.outer(PATTERN.sum(1), PATTERN.sum(0)))  # not symmetric: [receiver, sender]
WEIGHTS = [weight(3, 4, seed=1, dtype=F64), *(weight(4, 4, seed=i, dtype=F64) for i in (2, 3))]
BIASES = [data(4, seed=i, dtype=F64) / 4 for i in range(3)]
OUT = weight(4, 2, seed=9, dtype=F64)
X = np.abs(data(NODES, 3, dtype=F64))
SUM = np.array([0])

ORDERS = {
    "messages first": "m{i} = MatMul(a, h{i})\n z{i} = MatMul(m{i}, w{i})",
    "weights first": "m{i} = MatMul(h{i}, w{i})\n z{i} = MatMul(a, m{i})",
    "columns": """
        across{i} = Transpose(h{i})
        senders{i} = Transpose(a)
        sent{i} = MatMul(across{i}, senders{i})
        m{i} = Transpose(sent{i})
        z{i} = MatMul(m{i}, w{i})
    """,
    "einsum": 'm{i} = MatMul(h{i}, w{i})\n z{i} = Einsum<equation="kj,jf->kf">(a, m{i})',
    "edges": """
        s{i} = Gather<axis=0>(h{i}, source)
        n{i} = Mul(s{i}, values)
        size{i} = Shape(h{i})
        zero{i} = ConstantOfShape<value=double[1]{{0.0}}>(size{i})
        each{i} = Shape(s{i})
        at{i} = Expand(target_of_edge, each{i})
        m{i} = ScatterElements<axis=0,reduction="add">(zero{i}, at{i}, n{i})
        z{i} = MatMul(m{i}, w{i})
    """,
    "edges nd": """
        s{i} = Gather<axis=-2>(h{i}, source)
        n{i} = Mul(s{i}, values)
        size{i} = Shape(h{i})
        zero{i} = ConstantOfShape<value=double[1]{{0.0}}>(size{i})
        m{i} = ScatterND<reduction="add">(zero{i}, target_of_edge, n{i})
        z{i} = MatMul(m{i}, w{i})
    """,
}
EDGES = """
    source = Gather<axis=0>(edges, first)
    ends = Gather<axis=0>(edges, second)
    target_of_edge = Unsqueeze(ends, last)
    values = Unsqueeze(lam, last)
"""


def gcn(
    layers: int = 2, order: str = "messages first", biases: bool = False, nodes: str = str(NODES), single: bool = False
) -> onnx.ModelProto:
    """H <- ReLU(Lambda H W + b), the nodes' sum, a linear readout; one graph, or several if `nodes` says so."""
    body = ["h0 = Identity(x)"]
    sparse = "edges" in order
    if sparse:
        body.insert(0, EDGES)
    for i in range(layers):
        body.append(ORDERS[order].format(i=i))
        body.append(f"h{i + 1} = Relu({f'c{i}' if biases else f'z{i}'})")
        if biases:
            body.insert(-1, f"c{i} = Add(z{i}, b{i})")
    several = "," in nodes
    body += [f"pooled = ReduceSum<keepdims={1 - several}>(h{layers}, {'inner' if several else 'zero'})"]
    body += ["y = MatMul(pooled, out)"]
    graph = "int64[2,E] edges, double[E] lam" if sparse else f"double[{NODES},{NODES}] a"
    rows = nodes.split(",")[0] if several else "1"
    held: dict[str, Any] = {
        "zero": SUM,
        "inner": np.array([1]),
        "out": OUT,
        "first": np.array(0),
        "second": np.array(1),
    }
    held |= {"last": np.array([-1])} | {f"w{i}": WEIGHTS[i] for i in range(layers)}
    held |= {f"b{i}": BIASES[i] for i in range(layers)} if biases else {}
    text = "\n".join(body)
    used = {k: v for k, v in held.items() if re.search(rf"\b{k}\b", text)}
    signature = f"(double[{nodes},3] x, {graph}) => (double[{rows},2] y)"
    if single:
        signature, text = signature.replace("double", "float"), text.replace("double", "float")
        used = {k: v.astype(np.float32) if v.dtype == F64 else v for k, v in used.items()}
    return net(signature, text, **used)


def feed(order: str = "messages first", x: np.ndarray = X) -> Arrays:
    receiver, sender = np.nonzero(LAMBDA)
    if "edges" in order:
        return {"x": x, "edges": np.stack([sender, receiver]), "lam": LAMBDA[receiver, sender]}
    return {"x": x, "a": LAMBDA}


def walks(layers: int) -> np.ndarray:
    """All sequences of nodes, walks or not."""
    return np.array(list(itertools.product(range(NODES), repeat=layers + 1)))


def explained(model: onnx.ModelProto, inputs: Arrays, gamma: float = 0.0, structure: Any = "a", **more: Any) -> Arrays:
    options = {"parameters": {"epsilon": 0.0, "gamma": gamma}, "target": 1, **more}
    structure = ["edges", "lam"] if "edges" in inputs else structure
    named = ("walks", "subgraph")
    fed = {k: options.pop(k) for k in named if k in options}
    return exact(compile_model(model, "gnn-lrp", structure=structure, **options).model, {**inputs, **fed})


def by_loops(layers: int, gamma: float, biases: bool, walk: np.ndarray, x: np.ndarray = X) -> float:
    """Spec 11.1, neuron by neuron, from the last node of the walk to its first."""
    h = [x]
    for w, bias in zip(WEIGHTS[:layers], BIASES, strict=False):
        h.append(np.maximum(LAMBDA @ h[-1] @ w + bias * biases, 0))
    relevance = h[layers][walk[-1]] * OUT[:, 1]
    for t in range(layers - 1, -1, -1):
        w, node, before = WEIGHTS[t] + gamma * np.maximum(WEIGHTS[t], 0), walk[t + 1], walk[t]
        bias = (BIASES[t] + gamma * np.maximum(BIASES[t], 0)) * biases
        handed = np.zeros(w.shape[0])
        for k in range(w.shape[1]):
            total = float(bias[k]) if biases else 0.0
            for sender in range(NODES):
                for j in range(w.shape[0]):
                    total += LAMBDA[node, sender] * h[t][sender, j] * w[j, k]
            for j in range(w.shape[0]):
                if relevance[k]:
                    handed[j] += LAMBDA[node, before] * h[t][before, j] * w[j, k] / total * relevance[k]
        relevance = handed
    return float(relevance.sum())


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("biases", [False, True])
def test_walks_are_those_of_loops_over_neurons(order: str, gamma: float, biases: bool) -> None:
    if order == "einsum" and gamma:
        pytest.skip("(Lambda H) W is read as such of MatMul only")
    every = walks(2)[::3]
    found = explained(gcn(2, order, biases), feed(order), gamma, walks=every)["walk_relevance"]
    want = np.array([by_loops(2, gamma, biases, walk) for walk in every])
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)
    assert np.abs(want).max() > 1e-3


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_walks_sum_to_the_prediction_and_to_each_node(layers: int, gamma: float) -> None:
    every = walks(layers)
    found = explained(gcn(layers), feed(), gamma, walks=every)
    r = found["walk_relevance"]
    np.testing.assert_allclose(r.sum(), found["y"][0, 1], rtol=1e-10)
    by_node = [r[every[:, 0] == node].sum() for node in range(NODES)]
    np.testing.assert_allclose(found["node_relevance"], by_node, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["relevance"].sum(1), by_node, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_biases_keep_their_share_of_walks(gamma: float) -> None:
    every = walks(3)
    found = explained(gcn(3, biases=True), feed(), gamma, walks=every)
    by_node = [found["walk_relevance"][every[:, 0] == node].sum() for node in range(NODES)]
    np.testing.assert_allclose(found["node_relevance"], by_node, rtol=0, atol=1e-12)
    assert abs(found["walk_relevance"].sum() - found["y"][0, 1]) > 1e-3


def test_only_walks_along_edges_have_relevance() -> None:
    """With positive weights, as many as the powers of the adjacency count."""
    model, every = gcn(3), walks(3)
    for held in model.graph.initializer:
        if held.name.startswith("w") or held.name == "out":
            held.CopyFrom(onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(held)), held.name))
    found = explained(model, feed(), walks=every)["walk_relevance"]
    along = np.array([all(PATTERN[k, j] for j, k in itertools.pairwise(walk)) for walk in every])
    assert (found[~along] == 0).all()
    assert (found[along] > 0).all()
    assert along.sum() == np.linalg.matrix_power(PATTERN, 3).sum()


def test_walks_of_lrp_0_are_mixed_derivatives() -> None:
    """R_W = prod lam * d^2 f / dlam^1 dlam^2 with a Lambda of its own in each layer (spec 11.6)."""

    def f(first: np.ndarray, second: np.ndarray) -> float:
        h = np.maximum(first @ X @ WEIGHTS[0], 0)
        return float((np.maximum(second @ h @ WEIGHTS[1], 0).sum(0) @ OUT)[1])

    def moved(receiver: int, sender: int, by: float) -> np.ndarray:
        lam = LAMBDA.copy()
        lam[receiver, sender] += by
        return lam

    every, step = walks(2), 1e-3
    found = explained(gcn(2), feed(), walks=every)["walk_relevance"]
    for walk, r in zip(every, found, strict=True):
        i, j, k = walk
        signs = itertools.product((1, -1), repeat=2)
        mixed = sum(s * t * f(moved(j, i, s * step), moved(k, j, t * step)) for s, t in signs) / (4 * step * step)
        assert abs(r - LAMBDA[j, i] * LAMBDA[k, j] * mixed) < 1e-9


@pytest.mark.parametrize("order", ["messages first", "edges"])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_a_set_of_nodes_is_the_sum_of_its_walks(order: str, gamma: float) -> None:
    every = walks(3)
    sets = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0.5, 0.3, 1, 0, 0.9]], F64)
    found = explained(gcn(3, order, biases=True), feed(order), gamma, walks=every, subgraph=sets)
    want = [(found["walk_relevance"] * s[every].prod(1)).sum() for s in sets]
    np.testing.assert_allclose(found["subgraph_relevance"], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["subgraph_relevance"][2], found["relevance"].sum(), rtol=1e-10)


def test_any_node_is_the_sum_over_nodes() -> None:
    """As relevance of an edge in one layer is."""
    every, r = walks(2), explained(gcn(2), feed(), 0.7, walks=walks(2))["walk_relevance"]
    found = explained(gcn(2), feed(), 0.7, walks=np.array([[-1, 1, 0], [2, 3, -1], [-1, -1, -1], [3, -1, 2]]))
    chosen = [(every[:, 1:] == [1, 0]).all(1), (every[:, :2] == [2, 3]).all(1), every[:, 0] >= 0]
    chosen.append((every[:, ::2] == [3, 2]).all(1))
    np.testing.assert_allclose(found["walk_relevance"], [r[c].sum() for c in chosen], rtol=0, atol=1e-12)


def test_defaults_are_a_walk_at_node_0_and_all_nodes() -> None:
    """Whether the number of nodes is fixed or not."""
    for nodes in (str(NODES), "M"):
        model = compile_model(
            gcn(2, nodes=nodes), "gnn-lrp", structure="a", parameters={"epsilon": 0.0}, target=1
        ).model
        found = exact(model, feed())
        np.testing.assert_allclose(found["walk_relevance"], [by_loops(2, 0.25, False, np.zeros(3, int))], rtol=1e-10)
        np.testing.assert_allclose(found["subgraph_relevance"], [found["y"][0, 1]], rtol=1e-10)


@pytest.mark.parametrize("nodes", ["N,5", "N,M"])
def test_graphs_of_a_batch_are_explained_each_by_itself(nodes: str) -> None:
    several = np.abs(data(3, NODES, 3, seed=4, dtype=F64))
    some = walks(2)[::7]
    sets = np.array([[1, 1, 0, 0, 1.0], [0, 1, 1, 1, 0]])
    found = explained(gcn(2, nodes=nodes), feed(x=several), 0.7, walks=some, subgraph=sets)
    for n, x in enumerate(several):
        single = explained(gcn(2), feed(x=x), 0.7, walks=some, subgraph=sets)
        for key in ("relevance", "node_relevance", "walk_relevance", "subgraph_relevance"):
            np.testing.assert_allclose(found[key][n], single[key], rtol=0, atol=1e-12)


SELF = 1.3
BLOCKS = {  # how a block puts a node together with what arrives
    "gin": "o{i} = Mul(h{i}, self)\n g{i} = Add(o{i}, m{i})\n p{i} = MatMul(g{i}, v{i})",
    "sage": "q{i} = Concat<axis=-1>(h{i}, m{i})\n p{i} = MatMul(q{i}, c{i})",
}


def block_net(kind: str, nodes: str = str(NODES)) -> tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray]]:
    """Two blocks with an MLP of two layers each, and the weights of the first layers (one, or two for a Concat)."""
    text, own = ["h0 = Identity(x)"], kind == "gin"
    sizes = [3, 4, 4]
    held: dict[str, Any] = {"zero": SUM, "out": OUT}
    held |= {"self": np.array(SELF)} if own else {}
    for i in range(2):
        rows = sizes[i] if own else 2 * sizes[i]
        held |= {f"{'v' if own else 'c'}{i}": weight(rows, 6, seed=20 + i, dtype=F64)}
        held |= {f"w{i}": weight(6, 4, seed=30 + i, dtype=F64), f"b{i}": BIASES[i][:4], f"d{i}": data(6, dtype=F64) / 4}
        text += [
            f"m{i} = MatMul(a, h{i})",
            BLOCKS[kind].format(i=i),
            f"e{i} = Add(p{i}, d{i})",
            f"r{i} = Relu(e{i})",
        ]
        text += [f"z{i} = MatMul(r{i}, w{i})", f"t{i} = Add(z{i}, b{i})", f"h{i + 1} = Relu(t{i})"]
    text += ["pooled = ReduceSum<keepdims=1>(h2, zero)", "y = MatMul(pooled, out)"]
    model = net(f"(double[{nodes},3] x, double[5,5] a) => (double[1,2] y)", "\n".join(text), **held)
    return model, [held[f"{'v' if own else 'c'}{i}"] for i in range(2)], [held[f"w{i}"] for i in range(2)]


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_blocks_with_mlps_are_products_of_jacobians(kind: str) -> None:
    """With LRP-0 a walk is x_J J_1[K, J] ... J_T w: each J_t[K, J] is the block's Jacobian from one node to one."""
    model, first, second = block_net(kind)
    h, jacobians = X, []
    for i in range(2):
        v, width = first[i], h.shape[1]
        own, other = (np.eye(NODES) * SELF + LAMBDA, None) if kind == "gin" else (np.eye(NODES), LAMBDA)
        z = own @ h @ v[:width] + (0 if other is None else other @ h @ v[width:]) + data(6, dtype=F64) / 4
        t = np.maximum(z, 0) @ second[i] + BIASES[i][:4]
        paths = np.einsum("kj,fu->kjfu", own, v[:width])
        paths = paths if other is None else paths + np.einsum("kj,fu->kjfu", other, v[width:])
        jacobians.append(np.einsum("kjfu,ku,uo,ko->kjfo", paths, z > 0, second[i], t > 0))
        h = np.maximum(t, 0)
    every = walks(2)
    found = explained(model, feed(), walks=every)
    want = [X[a] @ jacobians[0][b, a] @ jacobians[1][c, b] @ OUT[:, 1] for a, b, c in every]
    np.testing.assert_allclose(found["walk_relevance"], want, rtol=0, atol=1e-12)
    assert len([w for w, walk in zip(want, every, strict=True) if w and walk[0] == walk[1]]) > 3


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_blocks_with_gamma_conserve_each_node(kind: str) -> None:
    every = walks(2)
    found = explained(block_net(kind)[0], feed(), 0.7, walks=every)
    by_node = [found["walk_relevance"][every[:, 0] == node].sum() for node in range(NODES)]
    np.testing.assert_allclose(found["node_relevance"], by_node, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["subgraph_relevance"], [found["relevance"].sum()], rtol=1e-10)


@pytest.mark.parametrize("order", ["messages first", "weights first", "edges"])
def test_onnx_runtime_agrees_in_float32(order: str) -> None:
    """And the prediction is the same to the bit."""
    model, some = gcn(2, order, biases=True, single=True), walks(2)[::5]
    structure = ["edges", "lam"] if order == "edges" else "a"
    compiled = compile_model(model, "gnn-lrp", structure=structure, target=1).model
    fed = {k: v.astype(np.float32) if v.dtype == F64 else v for k, v in feed(order).items()}
    found = run(compiled, {**fed, "walks": some})
    np.testing.assert_array_equal(found["y"], run(model, fed)["y"])
    want = explained(gcn(2, order, biases=True), feed(order), 0.25, walks=some, parameters={"gamma": 0.25})
    for key in ("relevance", "node_relevance", "walk_relevance", "subgraph_relevance"):
        np.testing.assert_allclose(found[key], want[key], rtol=0, atol=1e-5, err_msg=key)


def test_the_shipped_rule_keeps_the_last_layer_at_epsilon() -> None:
    compiled = compile_model(gcn(2), "gnn-lrp", structure="a")
    assert [a.rule for a in compiled.assignments if a.op == "MatMul"] == [
        "default",
        "gamma",
        "default",
        "gamma",
        "epsilon",
    ]
    assert any("interaction layers: 2 (MatMul 'MatMul_1', MatMul 'MatMul_4')" in note for note in compiled.notes)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"name the input or constant that holds the graph with --structure \(x, a, w1\)"),
        ({"structure": "b"}, "unknown structure input or constant 'b'"),
        ({"structure": "x", "explain_input": "a"}, "no interaction layer of 'x'"),
        (
            {"structure": "a", "rule": "lrp-gamma"},
            "--structure a is for --rule gnn-lrp; rule 'lrp-gamma' knows no graph",
        ),
        ({"structure": "a", "explain_input": ["x", "a"]}, "gnn-lrp explains one input"),
        ({"structure": "a", "chunk": 2}, "--chunk 2: gnn-lrp does walks and sets of nodes one by one"),
        ({"structure": "a", "ledger": True}, "--ledger: rule 'gnn-lrp' explains inputs only"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RuleError, match=told):
        compile_model(gcn(2), **{"rule": "gnn-lrp", **options})


def test_several_maps_share_their_walks() -> None:
    some, model = walks(2)[::9], gcn(2)
    found = explained(model, feed(), walks=some, maps=2, target=[0, 1])
    for key in ("relevance", "node_relevance", "walk_relevance", "subgraph_relevance"):
        want = np.stack([explained(model, feed(), walks=some, target=t)[key] for t in (0, 1)])
        np.testing.assert_allclose(found[key], want, rtol=0, atol=1e-12)


def test_a_model_that_mixes_no_nodes_is_refused() -> None:
    model = net("(double[5,3] x, double[5,5] a) => (double[5,3] y)", "r = Relu(x)\n s = ReduceSum(a)\n y = Mul(r, s)")
    with pytest.raises(RuleError, match="no interaction layer of 'a': no op mixes nodes by it"):
        compile_model(model, "gnn-lrp", structure="a")


def test_what_mixes_nodes_by_data_in_front_of_a_layer_is_refused() -> None:
    body = """
        t = Transpose(x)
        scores = MatMul(x, t)
        mean = MatMul(scores, x)
        m = MatMul(a, mean)
        y = Relu(m)
    """
    model = net("(double[5,3] x, double[5,5] a) => (double[5,3] y)", body)
    with pytest.raises(RuleError, match=r"in front of MatMul '.*' nodes can't be told apart: MatMul '.*' multiplies"):
        compile_model(model, "gnn-lrp", structure="a")


def test_layers_that_the_readout_reads_as_well_are_one_interaction() -> None:
    """Inside it walks can't be told apart."""
    body = """
        m = MatMul(a, x)
        h = Relu(m)
        n = MatMul(a, h)
        g = Relu(n)
        both = Sum(x, h, g)
        y = MatMul(both, w)
    """
    model = net("(double[5,3] x, double[5,5] a) => (double[5,2] y)", body, w=weight(3, 2, dtype=F64))
    compiled = compile_model(model, "gnn-lrp", structure="a", parameters={"epsilon": 0.0}, target=0)
    assert any("interaction layers: 1 (" in note for note in compiled.notes)
    found = exact(compiled.model, {**feed(), "walks": walks(1)})
    np.testing.assert_allclose(found["walk_relevance"].sum(), found["y"][:, 0].sum(), rtol=1e-10)


def test_walks_of_a_wrong_length_are_refused() -> None:
    compiled = compile_model(gcn(2), "gnn-lrp", structure="a").model
    with pytest.raises(Exception, match="walks"):
        run(compiled, {**feed(), "walks": walks(3)})
