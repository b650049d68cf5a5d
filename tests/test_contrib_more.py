"""More ops of ONNX Runtime's own: those of decoders, of image generators, and of weights in few bits.

What its CPU provider computes is compared with central differences through it; what only its GPU providers have is
compared with float64 definitions in numpy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import xaicompile
from tests.cases.build import relative_error
from tests.differences import Inputs, assert_gradients, one_node, projected
from tests.graphs import data, run, weight
from tests.reference_more import MORE_OPS
from tests.reference_ops import NEW_OPS
from xaicompile.checks import check
from xaicompile.errors import UnsupportedError

DOMAIN = "com.microsoft"
ANGLES = np.outer(np.arange(12), [1.0, 0.3]).astype(np.float32)
TABLES = {"cos": np.cos(ANGLES), "sin": np.sin(ANGLES)}
WIDE = {k: np.tile(v, 4) for k, v in TABLES.items()}
IDS = np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])


def states(*shape: int, seed: int = 0) -> np.ndarray:
    return data(*shape, seed=seed)


def lengths(*counts: int) -> np.ndarray:
    return np.asarray(counts, np.int32)


QKV = {"q": states(2, 5, 32), "k": states(2, 5, 16, seed=1), "v": states(2, 5, 16, seed=2)}
LARGE = {"q": states(2, 3, 32), "k": states(2, 3, 16, seed=1), "v": states(2, 3, 16, seed=2)}
THIRD = {"n": lengths(2, 2), "t": np.asarray(3, np.int32)}
FIRST = {"n": lengths(4, 4), "t": np.asarray(5, np.int32)}
NEXT = {"q": states(2, 1, 32), "k": states(2, 1, 16, seed=1), "v": states(2, 1, 16, seed=2)}
PAST = {"pk": states(2, 1, 3, 16, seed=3), "pv": states(2, 1, 3, 16, seed=4)}
LATER = {"n": lengths(3, 2), "t": np.asarray(4, np.int32)}  # the second sample has seen one token less
HEADS = dict(num_heads=4, kv_num_heads=2)
FEW = dict(num_heads=2, kv_num_heads=1)

CASES: dict[str, tuple[str, Inputs, Inputs, str, dict]] = {
    "rotary": ("RotaryEmbedding", {"x": states(2, 5, 8)}, {"i": IDS, **TABLES}, "x i cos sin", {}),
    "rotary, by head, from a position": ("RotaryEmbedding", {"x": states(2, 2, 5, 4)}, {"i": np.array([2]), **TABLES},
                                         "x i cos sin", {}),
    "rotary, interleaved": ("RotaryEmbedding", {"x": states(2, 5, 8)}, {"i": IDS, **TABLES}, "x i cos sin",
                            dict(interleaved=1)),
    "rotary, some of it": ("RotaryEmbedding", {"x": states(2, 5, 12)}, {"i": IDS, **TABLES}, "x i cos sin",
                           dict(num_heads=2, rotary_embedding_dim=4)),
    "grouped queries": ("GroupQueryAttention", QKV, FIRST, "q k v - - n t", HEADS),
    "grouped queries, packed": ("GroupQueryAttention", {"q": states(2, 5, 64)}, FIRST, "q - - - - n t", HEADS),
    "grouped queries, turned": ("GroupQueryAttention", LARGE, {**THIRD, **WIDE}, "q k v - - n t cos sin",
                                dict(do_rotary=1, **FEW)),
    "grouped queries, near ones": ("GroupQueryAttention", QKV, FIRST, "q k v - - n t",
                                   dict(local_window_size=2, scale=0.7, **HEADS)),
    "grouped queries, capped": ("GroupQueryAttention", QKV, {**FIRST, "a": data(2, 4, 5, 5)},
                                "q k v - - n t - - - a", dict(softcap=1.5, **HEADS)),
    "grouped queries, one bias": ("GroupQueryAttention", QKV, {**FIRST, "a": data(1, 1, 5, 5)},
                                  "q k v - - n t - - - a", HEADS),
    "grouped queries, later": ("GroupQueryAttention", {**NEXT, **PAST}, {**LATER, **WIDE},
                               "q k v pk pv n t cos sin", dict(do_rotary=1, outputs=3, **FEW)),
    "lower triangle": ("Trilu", {"x": data(3, 4)}, {}, "x", dict(upper=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_that_of_the_runtimes_op(name: str) -> None:
    op, inputs, weights, order, attrs = CASES[name]
    model = projected(one_node(op, inputs, weights, order, DOMAIN, **attrs), "y0", inputs)
    emitted = assert_gradients(model, inputs)
    assert check(emitted, model, inputs=inputs).passed


def packed(q: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of a few bits as bytes, along the last axis."""
    each = 8 // bits
    parts = q.reshape(*q.shape[:-1], -1, each).astype(np.uint32)
    return np.sum(parts << (bits * np.arange(each)), -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("bits", "zero"), [(4, "none"), (4, "whole"), (4, "float"), (8, "none"), (8, "whole"), (2, "none")]
)
def test_weights_of_few_bits(bits: int, zero: str) -> None:
    """The message is W' c with the weight that the integers stand for, whatever the runtime's accuracy."""
    rng = np.random.default_rng(bits)
    n, k, block = 6, 40, 16
    q, s = rng.integers(0, 2**bits, (n, 3, block)), rng.uniform(0.5, 1.5, (n, 3)).astype(np.float32) / 2**bits
    offset = {"none": np.full((n, 3), 2 ** (bits - 1)), "whole": rng.integers(0, 2**bits, (n, 3)),
              "float": rng.uniform(0, 2**bits, (n, 3)).astype(np.float32)}[zero]  # fmt: skip
    even = np.pad(offset, ((0, 0), (0, 1)))[:, : 4 if bits < 8 else 3]
    weights = {"b": packed(q, bits), "scale": s, "z": packed(even, bits) if zero == "whole" else offset}
    if zero == "none":
        del weights["z"]
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    x, c = {"x": data(2, 3, k)}, data(2, 3, n, seed=1)
    model = one_node("MatMulNBits", x, weights, f"x b scale{' z' if zero != 'none' else ''}", DOMAIN, **attrs)
    made = projected(model, "y0", x)
    c = numpy_helper.to_array(next(i for i in made.graph.initializer if i.name == "projection"))
    found = run(xaicompile.compile(made, "gradient", explain_output="s", explain_reduce="sum"), x)
    w = ((q - offset[:, :, None]) * s[:, :, None]).reshape(n, -1)[:, :k]
    np.testing.assert_allclose(run(model, x)["y0"], x["x"] @ w.T, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(found["relevance"], c @ w, rtol=1e-4, atol=1e-5)


# What no CPU has


def normalised(x: np.ndarray, groups: int, epsilon: float) -> np.ndarray:
    """Group normalisation of [N, ..., C] without scale and shift."""
    split = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = split - split.mean((1, 3), keepdims=True)
    return (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)).reshape(x.shape)


def group_norm(x, g, h, channels_last=1, groups=1, activation=0, epsilon=1e-5):  # type: ignore[no-untyped-def]
    x = x if channels_last else np.moveaxis(x, 1, -1)
    y = normalised(x, groups, epsilon) * g + h
    y = y / (1 + np.exp(-y)) if activation else y
    return (y if channels_last else np.moveaxis(y, -1, 1),)


def skip_group_norm(x, g, h, skip, bias=None, **attrs):  # type: ignore[no-untyped-def]
    total = x + skip.reshape(x.shape[0], *skip.shape[1:-1] or (1, 1), -1) + (0 if bias is None else bias)
    return (*group_norm(total, g, h, **attrs), total)


def gelu(x: np.ndarray) -> np.ndarray:
    import math

    return x * (np.vectorize(math.erf)(x / np.sqrt(2)) + 1) / 2


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray | float = 0) -> np.ndarray:
    """[batch, length, heads, size] each."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]) + bias
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdims=True), v)
    return y.reshape(*y.shape[:2], -1)


def multi_head(q, k=None, num_heads=1):  # type: ignore[no-untyped-def]
    if k is None:
        return (attention(*np.moveaxis(q, 3, 0)),)
    return (attention(q.reshape(*q.shape[:2], num_heads, -1), *np.moveaxis(k, 3, 0)),)


def grouped(q, k, v, *left_out, num_heads=1, kv_num_heads=1):  # type: ignore[no-untyped-def]
    """The first call without padding, queries and keys normalised."""
    q, k, v = (t.reshape(*t.shape[:2], n, -1) for t, n in ((q, num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    q, k = (t / np.sqrt((t**2).mean(-1, keepdims=True) + 1e-6) * w for t, w in ((q, left_out[-2]), (k, left_out[-1])))
    k, v = (np.repeat(t, num_heads // kv_num_heads, 2) for t in (k, v))
    return (attention(q, k, v, np.triu(np.full((q.shape[1], k.shape[1]), -np.inf), 1)),)


def softmax(x, a, axis=1, is_inner_broadcast=0):  # type: ignore[no-untyped-def]
    z = (x + a).reshape(*x.shape[:axis], -1)
    p = np.exp(z - z.max(-1, keepdims=True))
    return ((p / p.sum(-1, keepdims=True)).reshape(x.shape),)


def conv(x, w, b=None, z=None, activation="", strides=(1, 1)):  # type: ignore[no-untyped-def]
    kernel, size = w.shape[2:], [(x.shape[1 + i] - w.shape[2 + i]) // strides[i] + 1 for i in (0, 1)]
    y = np.zeros((x.shape[0], *size, w.shape[0]))
    for i, j in np.ndindex(*size):
        at = [slice(p * s, p * s + n) for p, s, n in zip((i, j), strides, kernel, strict=True)]
        y[:, i, j] = np.einsum("nhwc,mchw->nm", x[:, at[0], at[1]], w)
    y = y + (0 if b is None else b) + (0 if z is None else z)
    return (np.maximum(y, 0) if activation == "Relu" else y,)


DEFINITIONS: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {
    "GroupNorm": group_norm,
    "SkipGroupNorm": skip_group_norm,
    "BiasSplitGelu": lambda x, b: ((x + b)[..., : b.size // 2] * gelu((x + b)[..., b.size // 2 :]),),
    "BiasAdd": lambda x, b, skip: (x + b + skip,),
    "BiasSoftmax": softmax,
    "NhwcConv": conv,
    "NhwcFusedConv": conv,
    "GemmFastGelu": lambda x, w, b: (
        (lambda z: z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))(x @ w + b),
    ),
    "MultiHeadAttention": multi_head,
    "GroupQueryAttention": grouped,
}
MAPS = {"x": data(2, 3, 4, 6)}
AFFINE = {"g": 1 + 0.3 * data(6), "h": data(6, seed=1)}
ELSEWHERE: dict[str, tuple[str, Inputs, Inputs, str, dict]] = {
    "group norm": ("GroupNorm", MAPS, AFFINE, "x g h", dict(groups=3, activation=1)),
    "group norm, channels first": ("GroupNorm", {"x": data(2, 6, 3, 4)}, AFFINE, "x g h",
                                   dict(groups=2, activation=0, channels_last=0, epsilon=0.1)),
    "group norm of a sum": ("SkipGroupNorm", {**MAPS, "z": data(2, 3, 4, 6, seed=5)}, {**AFFINE, "b": data(6)},
                            "x g h z b", dict(groups=3, activation=0)),
    "group norm of a sum by channel": ("SkipGroupNorm", {**MAPS, "z": data(2, 6, seed=5)}, AFFINE, "x g h z",
                                       dict(groups=2, activation=1)),
    "split gelu": ("BiasSplitGelu", {"x": data(2, 3, 8)}, {"b": data(8)}, "x b", {}),
    "bias and skip": ("BiasAdd", {"x": data(2, 3, 4), "z": data(2, 3, 4, seed=1)}, {"b": data(4)}, "x b z", {}),
    "softmax with bias": ("BiasSoftmax", {"x": data(2, 2, 3, 4), "z": data(2, 1, 1, 4, seed=1)}, {}, "x z",
                          dict(axis=3, is_inner_broadcast=1)),
    "softmax over two axes": ("BiasSoftmax", {"x": data(2, 3, 4)}, {"z": data(1, 3, 4, seed=1)}, "x z",
                              dict(axis=1, is_inner_broadcast=0)),
    "conv, channels last": ("NhwcConv", {"x": data(2, 5, 4, 3)}, {"w": weight(6, 3, 2, 2), "b": data(6)}, "x w b",
                            dict(strides=[2, 1])),
    "conv with a sum, channels last": ("NhwcFusedConv", {"x": data(2, 5, 4, 3), "z": data(2, 4, 3, 6, seed=1)},
                                       {"w": weight(6, 3, 2, 2)}, "x w - z", dict(activation="Relu")),
    "gemm with gelu": ("GemmFastGelu", {"x": data(2, 3, 4)}, {"w": weight(4, 5), "b": data(5)}, "x w b", {}),
    "normalised queries and keys": ("GroupQueryAttention", LARGE,
                                    {**THIRD, "g": 1 + 0.3 * data(8), "h": data(8, seed=1)},
                                    "q k v - - n t - - - - - - - g h", HEADS),
    "packed heads": ("MultiHeadAttention", {"q": data(2, 4, 2, 3, 3)}, {}, "q", dict(num_heads=2)),
    "packed keys and values": ("MultiHeadAttention", {"q": data(2, 4, 6), "k": data(2, 5, 2, 2, 3, seed=1)}, {}, "q k",
                               dict(num_heads=2)),
}  # fmt: skip


def defined(op: str) -> type[OpRun]:
    """The definition as an op of the evaluator."""

    def _run(self: OpRun, *x: np.ndarray, **attrs: object) -> tuple[np.ndarray, ...]:
        given = {k: v for k, v in attrs.items() if v is not None}
        return tuple(np.asarray(y) for y in DEFINITIONS[op](*x, **given))[: len(self.onnx_node.output)]

    return type(op, (OpRun,), {"op_domain": DOMAIN, "_run": _run, "op_schema": None})


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_gradient_is_that_of_the_definition(name: str) -> None:
    op, inputs, weights, order, attrs = ELSEWHERE[name]
    wide, fixed = (
        {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in d.items()} for d in (inputs, weights)
    )
    model = one_node(op, wide, fixed, order, DOMAIN, **attrs)
    y = DEFINITIONS[op](*(None if n == "-" else {**wide, **fixed}[n] for n in order.split()), **attrs)[0]
    del model.graph.output[:]
    model.graph.initializer.append(numpy_helper.from_array(data(*y.shape, seed=9).astype(np.float64), "projection"))
    model.graph.node.append(helper.make_node("Mul", ["y0", "projection"], ["product"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["product"], ["s"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.DOUBLE, []))
    names = list(wide)
    emitted = xaicompile.compile(model, "gradient", explain_output="s", explain_reduce="sum", explain_input=names)
    assert {n.domain for n in emitted.graph.node[3:]} == {""}
    ops = [*NEW_OPS, *MORE_OPS, defined(op)]
    asked = ["relevance"] if len(names) == 1 else [f"relevance_{n}" for n in names]
    found = ReferenceEvaluator(emitted, new_ops=ops).run(asked, wide)
    session = ReferenceEvaluator(model, new_ops=ops)
    for n, got in zip(names, found, strict=True):
        want = np.zeros_like(wide[n])
        for place in np.ndindex(*want.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = wide[n].copy()
                moved[place] += step
                ends.append(float(session.run(["s"], {**wide, n: moved})[0]))
            want[place] = (ends[0] - ends[1]) / 2e-5
        assert relative_error(got, want) <= 1e-6, n


def test_the_group_normalisation_that_the_standard_has_withdrawn() -> None:
    """Below opset 21 scale and bias are one a group; ONNX's checker and inference refuse it, runtimes run it."""
    node = helper.make_node("GroupNormalization", ["x", "g", "h"], ["y0"], num_groups=3, epsilon=1e-3)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, "H", "W"])],
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["N", 6, "H", "W"])],
        [numpy_helper.from_array(np.float32(a), n) for n, a in {"g": [1.2, -0.7, 0.4], "h": [0.1, 0, 1]}.items()],
    )
    for opset in (18, 20):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        x = {"x": data(2, 6, 3, 2)}
        emitted = assert_gradients(projected(model, "y0", x), x)
        assert [n.domain for n in emitted.graph.node if n.op_type == "GroupNormalization"] == [""]
        for rule in ("lrp-epsilon", "lrp-gamma"):
            explained = xaicompile.compile(model, rule, ledger=True, explain_output="y0")
            assert check(explained, model, inputs=x).passed


def test_a_form_that_is_not_known_is_refused_as_such() -> None:
    weights = {**FIRST, "sink": data(4)}
    model = one_node("GroupQueryAttention", QKV, weights, "q k v - - n t - - - - sink", DOMAIN, **HEADS)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["N", 5, 32]))
    with pytest.raises(UnsupportedError, match=r"GroupQueryAttention 'node' \(domain\): .*not in this form"):
        xaicompile.compile(model, explain_input=list(QKV), explain_output="y0")


# Integers: the explanation is that of the float op that they stand for


def eight_bits(a: np.ndarray, per_column: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """int8, scale, zero point, and the floats that they stand for.

    Seven bits are used: two products of unsigned and signed bytes then fit into 16 bits, where processors without
    VNNI add them up and ONNX Runtime's own prediction would saturate.
    """
    scale = np.abs(a).max(tuple(range(a.ndim - 1)) if per_column else None).astype(np.float32) / 60
    zero = np.zeros_like(scale, np.int8) if per_column else np.asarray(3, np.int8)
    q = np.clip(np.round(a / scale) + zero, -127, 127).astype(np.int8)
    return q, scale, zero, ((q.astype(np.float32) - zero) * scale).astype(np.float32)


def chained(nodes: list[onnx.NodeProto], inputs: Inputs, weights: Inputs, shape: list[int | str]) -> onnx.ModelProto:
    """A model of some nodes; the last makes y."""
    kinds = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(k, kinds[k], ["N", *v.shape[1:]]) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def explanations(
    models: list[onnx.ModelProto], feed: Inputs, rule: str, **options: object
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Relevance and prediction of each."""
    found = [run(xaicompile.compile(m, rule, explain_reduce="sum", **options), feed) for m in models]  # type: ignore[arg-type]
    return [f["relevance"] for f in found], [f["y"] for f in found]


@pytest.mark.parametrize("rule", ["gradient", "lrp-gamma"])
@pytest.mark.parametrize("per_column", [False, True])
def test_attention_of_integers(per_column: bool, rule: str) -> None:
    q, scale, zero, w = eight_bits(weight(8, 24) * 3, per_column)
    head = [helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"])]
    tail = [helper.make_node("Mul", ["a", "m"], ["y"])]
    whole = helper.make_node("QAttention", ["xq", "q", "b", "xs", "ws", "", "xz", "wz"], ["a"], domain=DOMAIN,
                             num_heads=2, unidirectional=1)  # fmt: skip
    plain = [
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
        helper.make_node("Attention", ["xf", "w", "b"], ["a"], domain=DOMAIN, num_heads=2, unidirectional=1),
    ]
    held = {"b": data(24), "m": data(5, 8, seed=3)}
    integers = {"q": q, "ws": np.asarray(scale), "wz": np.asarray(zero)}
    x = {"x": data(2, 5, 8)}
    models = [
        chained([*head, *middle, *tail], x, {**held, **more}, ["N", 5, 8])
        for middle, more in (([whole], integers), (plain, {"w": w}))
    ]
    relevance, prediction = explanations(models, x, rule)
    np.testing.assert_allclose(*prediction, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*relevance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["gradient", "lrp-epsilon"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_recurrent_op_of_integers(direction: str, rule: str) -> None:
    each = 2 if direction == "bidirectional" else 1
    parts = [eight_bits(data(each, n, 12, seed=n)) for n in (4, 3)]
    held = {"b": data(each, 24, seed=9)}
    integers = {}
    for name, (q, scale, zero, _) in zip("wr", parts, strict=True):
        integers |= {name: q, f"{name}s": np.full(each, scale), f"{name}z": np.full(each, zero)}
    floats = {name: np.ascontiguousarray(p[3].transpose(0, 2, 1)) for name, p in zip("wr", parts, strict=True)}
    attrs = {"hidden_size": 3, "direction": direction}
    whole = helper.make_node("DynamicQuantizeLSTM", [*"xwrb", *[""] * 4, "ws", "wz", "rs", "rz"], ["y"], domain=DOMAIN,
                             **attrs)  # fmt: skip
    plain = helper.make_node("LSTM", [*"xwrb"], ["y"], **attrs)
    x = {"x": data(5, 2, 4)}
    shape = ["N", each, 2, 3]
    models = [chained([n], x, {**held, **more}, shape) for n, more in ((whole, integers), (plain, floats))]
    relevance, prediction = explanations(models, x, rule)
    np.testing.assert_allclose(*prediction, atol=0.05)
    np.testing.assert_allclose(*relevance, rtol=1e-5, atol=1e-6)


def test_embeddings_of_integers() -> None:
    tables = {"words": data(11, 8), "places": data(6, 8, seed=1), "kinds": data(2, 8, seed=2)}
    tables |= {"g": 1 + 0.3 * data(8, seed=3), "h": data(8, seed=4)}
    feed = {
        "ids": np.array([[1, 7, 3, 3], [0, 2, 10, 4]], np.int32),
        "kind_ids": np.array([[0, 0, 1, 1]] * 2, np.int32),
    }
    parts = {k: eight_bits(v) for k, v in tables.items()}
    names = [*tables, "", *(f"{k}_scale" for k in tables), *(f"{k}_zero" for k in tables)]
    held: Inputs = {}
    for k, (q, scale, zero, _) in parts.items():
        held |= {k: q, f"{k}_scale": np.asarray(scale), f"{k}_zero": np.asarray(zero)}
    tail = helper.make_node("Mul", ["e", "m"], ["y"])
    m = {"m": data(4, 8, seed=5)}
    models = []
    for op, order, weights in (
        ("QEmbedLayerNormalization", names, held),
        ("EmbedLayerNormalization", list(tables), {k: p[3] for k, p in parts.items()}),
    ):
        node = helper.make_node(op, ["ids", "kind_ids", *order], ["e", "lengths"], domain=DOMAIN, epsilon=1e-5)
        models.append(chained([node, tail], feed, {**weights, **m}, ["N", 4, 8]))
    relevance, prediction = explanations(models, feed, "lrp-gamma", explain_input="ids")
    np.testing.assert_allclose(*prediction, rtol=1e-4, atol=1e-4)
    assert np.abs(relevance[0]).max() > 1e-2
    np.testing.assert_allclose(*relevance, rtol=1e-4, atol=1e-4)
