"""Files that ONNX Runtime has optimised: what it fuses is read as the standard ops that it computes.

The runtime's own ops exist only there, in float32: their gradients are compared with central differences through the
runtime. Files saved by its optimiser are compared with the files that they were made from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import xaicompile
from tests.differences import Inputs, assert_gradients, one_node, projected
from tests.graphs import data, net, run, weight
from tests.nets import cnn
from xaicompile import bodies, ir
from xaicompile.checks import check
from xaicompile.errors import UnsupportedError

DOMAIN = "com.microsoft"
FILES = 1e-5  # relative, between a file and its optimised form


def hidden(batch: int = 2, length: int = 5, width: int = 8, seed: int = 0) -> np.ndarray:
    return data(batch, length, width, seed=seed)


W = weight(6, 3, 3, 3)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
LENGTHS = np.array([5, 3], np.int32)
QKV = {"w": weight(8, 24) * 3, "b": data(24)}
SCALE, SHIFT = 1 + 0.3 * data(8, seed=1), data(8, seed=2)

CASES: dict[str, tuple[str, Inputs, Inputs, str, dict]] = {
    "conv with relu": ("FusedConv", {"x": data(2, 3, 6, 6)}, {"w": W, "b": data(6)}, "x w b",
                       dict(activation="Relu", pads=[1, 1, 1, 1], strides=[2, 2])),
    "conv with clip": ("FusedConv", {"x": data(2, 3, 6, 6)}, {"w": W, "b": data(6)}, "x w b",
                       dict(activation="Clip", activation_params=[-0.5, 0.7])),
    "conv with leaky relu": ("FusedConv", {"x": data(2, 3, 6, 6)}, {"w": W}, "x w",
                             dict(activation="LeakyRelu", activation_params=[0.3])),
    "conv with a sum": ("FusedConv", {"x": data(2, 3, 6, 6), "z": data(2, 6, 4, 4)}, {"w": W, "b": data(6)},
                        "x w b z", dict(activation="Relu")),
    "gemm with relu": ("FusedGemm", {"x": data(3, 4)}, {"w": weight(5, 4), "b": data(5)}, "x w b",
                       dict(transB=1, alpha=0.5, activation="Relu")),
    "gemm with leaky relu": ("FusedGemm", {"x": data(3, 4, seed=5)}, {"w": weight(4, 5), "b": data(5)}, "x w b",
                             dict(activation="LeakyRelu", activation_alpha=0.2)),
    "scaled products": ("FusedMatMul", {"x": data(2, 3, 4), "z": data(2, 5, 4, seed=3)}, {}, "x z",
                        dict(transB=1, alpha=0.3)),
    "products turned": ("FusedMatMul", {"x": data(2, 4, 3), "z": data(2, 4, 5, seed=3)}, {}, "x z", dict(transA=1)),
    "products of turned batches": ("FusedMatMul", {"x": data(2, 3, 4), "z": data(3, 4, 5, seed=3)}, {}, "x z",
                                   dict(transBatchA=1)),
    "gelu": ("Gelu", {"x": data(3, 8)}, {}, "x", {}),
    "gelu with bias": ("BiasGelu", {"x": data(3, 8)}, {"b": SHIFT}, "x b", {}),
    "fast gelu": ("FastGelu", {"x": data(3, 8)}, {"b": SHIFT}, "x b", {}),
    "quick gelu": ("QuickGelu", {"x": data(3, 8)}, {}, "x", dict(alpha=1.5)),
    "norm of a sum": ("SkipLayerNormalization", {"x": hidden(), "z": hidden(seed=1)},
                      {"g": SCALE, "h": SHIFT, "b": data(8, seed=3)}, "x z g h b", dict(epsilon=1e-5)),
    "norm of a sum without shift": ("SkipLayerNormalization", {"x": hidden(), "z": hidden(seed=1)}, {"g": SCALE},
                                    "x z g", dict(epsilon=1e-5)),
    "simple norm of a sum": ("SkipSimplifiedLayerNormalization", {"x": hidden(), "z": hidden(seed=1)},
                             {"g": SCALE, "b": data(8, seed=3)}, "x z g b", dict(epsilon=1e-5)),
    "attention": ("Attention", {"x": hidden()}, QKV, "x w b", dict(num_heads=2)),
    "attention, causal": ("Attention", {"x": hidden()}, QKV, "x w b", dict(num_heads=2, unidirectional=1)),
    "attention, masked": ("Attention", {"x": hidden(), "m": MASK}, QKV, "x w b m", dict(num_heads=2)),
    "attention, lengths": ("Attention", {"x": hidden(), "m": LENGTHS}, QKV, "x w b m", dict(num_heads=4, scale=0.7)),
    "attention, bias": ("Attention", {"x": hidden()}, {**QKV, "a": data(1, 2, 5, 5)}, "x w b - - a",
                        dict(num_heads=2)),
    "attention, other values": ("Attention", {"x": hidden()}, {"w": weight(8, 20) * 3, "b": data(20)}, "x w b",
                                dict(num_heads=2, qkv_hidden_sizes=[8, 8, 4])),
    "attention, with a past": ("Attention", {"x": hidden(), "p": data(2, 2, 2, 3, 4)}, QKV, "x w b - p",
                               dict(num_heads=2, unidirectional=1, outputs=2)),
    "several heads": ("MultiHeadAttention",
                      {"x": hidden(), "k": hidden(length=3, seed=1), "v": hidden(length=3, seed=2)},
                      {"b": data(24)}, "x k v b", dict(num_heads=2)),
    "several heads, causal": ("MultiHeadAttention", {"x": hidden(), "k": hidden(seed=1), "v": hidden(seed=2)}, {},
                              "x k v", dict(num_heads=4, unidirectional=1)),
    "several heads, masked": ("MultiHeadAttention",
                              {"x": hidden(), "k": hidden(seed=1), "v": hidden(seed=2), "m": MASK},
                              {"a": data(1, 1, 5, 5)}, "x k v - m a", dict(num_heads=2)),
    "keys and values by head": ("MultiHeadAttention",
                                {"x": hidden(), "k": data(2, 2, 3, 4), "v": data(2, 2, 3, 4, seed=1)},
                                {}, "x k v", dict(num_heads=2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_that_of_the_runtimes_op(name: str) -> None:
    op, inputs, weights, order, attrs = CASES[name]
    model = projected(one_node(op, inputs, weights, order, DOMAIN, **attrs), "y0", inputs)
    emitted = assert_gradients(model, inputs)
    assert check(emitted, model, inputs=inputs).passed


def test_equal_nodes_are_read_once() -> None:
    """Two nodes that compute the same: each tensor is made by one view, and both pass their message on."""
    model = one_node("FusedGemm", {"x": data(3, 4)}, {"w": weight(4, 5)}, "x w", DOMAIN, activation="Relu")
    model.graph.node.append(helper.make_node("FusedGemm", ["x", "w"], ["z"], domain=DOMAIN, activation="Relu"))
    model.graph.node.append(helper.make_node("Add", ["y0", "z"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]))
    del model.graph.output[0]
    p = ir.load(model)
    bodies.run(p)
    made = [y.name for v in p.views for y in v.y if y is not None]
    assert len(made) == len(set(made))
    once = net("(float[N,4] x) => (float[N,5] y)", "m = MatMul(x, w)\nr = Relu(m)\ny = Add(r, r)", w=weight(4, 5))
    feed = {"x": data(3, 4)}
    expected, found = (run(xaicompile.compile(m, "gradient", target=0), feed)["relevance"] for m in (once, model))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


TRANSFORMER = """
h = Gather(words, ids)
n = LayerNormalization<axis=-1>(h, g, b)
q = MatMul(n, wq)
k = MatMul(n, wk)
v = MatMul(n, wv)
kt = Transpose<perm=[0,2,1]>(k)
s = MatMul(q, kt)
d = Div(s, size)
a = Softmax<axis=-1>(d)
m = MatMul(a, v)
o = MatMul(m, wo)
ob = Add(o, bo)
r = Add(ob, h)
f = LayerNormalization<axis=-1>(r, g, b)
u = MatMul(f, w1)
ub = Add(u, b1)
e1 = Div(ub, root)
e2 = Erf(e1)
e3 = Add(e2, one)
e4 = Mul(ub, e3)
e5 = Mul(e4, half)
w = MatMul(e5, w2)
t = Add(w, r)
p = ReduceMean<keepdims=0>(t, axes)
y = Gemm(p, wl, bl)
"""


def transformer() -> onnx.ModelProto:
    """One layer of a transformer encoder on token ids."""
    arrays = {n: weight(8, 8, seed=i) * 3 for i, n in enumerate(("wq", "wk", "wv", "wo"))}
    arrays |= {"words": data(11, 8), "g": SCALE, "b": SHIFT, "bo": data(8, seed=4), "w1": weight(8, 16), "b1": data(16)}
    arrays |= {"w2": weight(16, 8), "wl": weight(8, 3), "bl": data(3)}
    numbers = {"size": 8**0.5, "root": 2**0.5, "one": 1.0, "half": 0.5}
    arrays |= {n: np.asarray(v, np.float32) for n, v in numbers.items()} | {"axes": np.array([1])}
    return net("(int64[N,T] ids) => (float[N,3] y)", TRANSFORMER, **arrays)


def optimised(model: onnx.ModelProto, folder: Path, level: str = "ORT_ENABLE_EXTENDED") -> onnx.ModelProto:
    """The model as the runtime's optimiser saves it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


NETS = {
    "cnn": (cnn(softmax=True), {"x": data(2, 3, 12, 12)}, {"FusedConv"}),
    "transformer": (transformer(), {"ids": np.array([[1, 7, 3, 3], [0, 2, 10, 4]])}, {"FusedMatMul", "BiasGelu"}),
}


@pytest.mark.parametrize("rule", ["lrp-gamma", "gradient-x-input"])
@pytest.mark.parametrize("name", NETS)
def test_an_optimised_file_is_explained_as_the_original(name: str, rule: str, tmp_path: Path) -> None:
    model, feed, fused = NETS[name]
    after = optimised(model, tmp_path)
    assert fused <= {n.op_type for n in after.graph.node if n.domain == DOMAIN}
    plain, emitted = (xaicompile.compile(m, rule, target=1, ledger=True) for m in (model, after))
    report = check(emitted, after, inputs=feed)
    assert report.passed, report.failed
    expected, found = run(plain, feed), run(emitted, feed)
    for output in ("relevance", "explained", "ledger"):
        np.testing.assert_allclose(found[output], expected[output], atol=FILES * np.abs(expected[output]).max())
    domains = {n.domain for n in emitted.graph.node[len(after.graph.node) :]}
    assert domains == {""}


def test_embeddings_fused_with_their_norm_are_explained_at_the_ids() -> None:
    tables = {"words": data(11, 8), "places": data(6, 8, seed=1), "kinds": data(2, 8, seed=2), "g": SCALE, "h": SHIFT}
    ids = {"ids": np.array([[1, 7, 3, 3], [0, 2, 10, 4]], np.int32), "kind_ids": np.array([[0, 0, 1, 1]] * 2, np.int32)}
    feed = {**ids, "mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)}
    order = "ids kind_ids words places kinds g h mask"
    model = one_node("EmbedLayerNormalization", feed, tables, order, DOMAIN, outputs=2, epsilon=1e-5)
    model.graph.node.append(helper.make_node("Attention", ["y0", "w", "b", "y1"], ["a"], domain=DOMAIN, num_heads=2))
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in QKV.items())
    model.graph.node.append(helper.make_node("Flatten", ["a"], ["y"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32]))
    body = """
        w0 = Gather(words, ids)
        w1 = Gather(places, order)
        w2 = Gather(kinds, kind_ids)
        w3 = Add(w0, w1)
        w4 = Add(w3, w2)
        y0 = LayerNormalization<axis=-1, epsilon=1e-5>(w4, g, h)
    """
    signature = "(int32[N,4] ids, int32[N,4] kind_ids, int32[N,4] mask) => (float[N,M] y)"
    lengths = "k = Cast<to=6>(mask)\nn = ReduceSum<keepdims=0>(k, ax)\n"
    written = net("(int32[N,4] ids, int32[N,4] kind_ids) => (float[N,4,8] y0)", body, **tables, order=np.arange(4))
    joined = onnx.ModelProto()
    joined.CopyFrom(written)
    head = [
        n
        for n in onnx.parser.parse_graph(f"g {signature} {{ {lengths} y = Identity(k) }}").node
        if n.op_type != "Identity"
    ]
    joined.graph.node.extend(head)
    joined.graph.initializer.append(numpy_helper.from_array(np.array([1]), "ax"))
    joined.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in QKV.items())
    joined.graph.node.append(helper.make_node("Attention", ["y0", "w", "b", "n"], ["a"], domain=DOMAIN, num_heads=2))
    joined.graph.node.append(helper.make_node("Flatten", ["a"], ["y"]))
    joined.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT32, ["N", 4]))
    del joined.graph.output[:]
    joined.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32]))
    joined.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    plain, emitted = (xaicompile.compile(m, "lrp-gamma", target=5, explain_input="ids") for m in (joined, model))
    expected, found = run(plain, feed), run(emitted, feed)
    np.testing.assert_allclose(found["y"], expected["y"], atol=1e-5)
    assert found["relevance"].shape == (2, 4) and np.abs(found["relevance"]).max() > 1e-2
    np.testing.assert_allclose(found["relevance"], expected["relevance"], atol=1e-5)


def test_the_runtimes_norm_in_the_standard_domain() -> None:
    """ONNX Runtime writes this op without a domain; ONNX's checker, inference and converter refuse it."""
    op = helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["n"], name="norm", epsilon=1e-5, axis=-1)
    graph = helper.make_graph(
        [op, helper.make_node("MatMul", ["n", "w"], ["y"], name="head")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(a, n) for n, a in {"g": SCALE, "w": weight(8, 3)}.items()],
    )
    body = "q = Mul(x, x)\nm = ReduceMean<keepdims=1>(q, ax)\ne = Add(m, eps)\ns = Sqrt(e)\nr = Reciprocal(s)\n"
    body += "k = Mul(x, r)\nn = Mul(k, g)\ny = MatMul(n, w)"
    numbers = {"ax": np.array([-1]), "eps": np.asarray(1e-5, np.float32)}
    written = net("(float[N,8] x) => (float[N,3] y)", body, g=SCALE, w=weight(8, 3), **numbers)
    feed = {"x": data(4, 8)}
    for opset in (13, 17, 20):  # 13 is raised
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        for rule in ("gradient", "lrp-gamma"):
            emitted = xaicompile.compile(model, rule, target=1)
            assert [n.domain for n in emitted.graph.node if n.op_type == op.op_type] == [""]
            expected = run(xaicompile.compile(written, rule, target=1), feed)
            np.testing.assert_allclose(run(emitted, feed)["relevance"], expected["relevance"], rtol=1e-4, atol=1e-6)


def test_the_runtimes_memory_layout_is_refused_with_advice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    model = net("(float[1,32,8,8] x) => (float[1,32,6,6] y)", "c = Conv(x, w)\ny = Relu(c)", w=w)
    after = optimised(model, tmp_path, "ORT_ENABLE_ALL")
    if not any("nchwc" in n.domain for n in after.graph.node):
        pytest.skip("this processor's runtime keeps the standard layout")
    with pytest.raises(UnsupportedError, match="before the runtime's layout optimisation") as refused:
        xaicompile.compile(after)
    assert len(str(refused.value)) < 600
