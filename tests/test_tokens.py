"""Token ids are explained where floats begin: at the embedding or the one-hot vector; masks and positions are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from xaicompile.compiler import compile_model
from xaicompile.errors import ModelError, RuleError

RNG = np.random.default_rng(0)
WEIGHTS = {
    "table": RNG.standard_normal((11, 4)),
    "places": RNG.standard_normal((6, 4)),
    "w": RNG.standard_normal((4, 3)),
    "w11": RNG.standard_normal((11, 3)),
    "eleven": np.arange(11),
    "depth": np.array(11),
    "values": np.array([0.0, 1.0]),
    "one": np.array([1]),
    "last": np.array([-1]),
    "scale": np.array(2.0),
}
HEAD = "h = Tanh(e) m = ReduceMean<keepdims=0>(h, one) y = MatMul(m, w)"
IDS = np.array([[1, 5, 5, 2], [3, 0, 7, 9]])


def model(inputs: str, body: str) -> onnx.ModelProto:
    text = "\n".join(body.replace(") ", ")\n").split("\n"))
    graph = onnx.parser.parse_graph(f"g ({inputs}) => (double[N, 3] y) {{ {text} }}")
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in WEIGHTS.items() if k in used)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def relevance(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: object) -> dict[str, np.ndarray]:
    emitted = compile_model(proto, "gradient-x-input", target=1, **options).model  # type: ignore[arg-type]
    names = [o.name for o in emitted.graph.output]
    return dict(zip(names, ReferenceEvaluator(emitted).run(None, feeds), strict=True))


def expected(rows: np.ndarray) -> np.ndarray:
    """Sum over features of embedding times gradient, for mean_t(tanh(e_t)) w."""
    return (rows * (1 - np.tanh(rows) ** 2) * WEIGHTS["w"][:, 1]).sum(-1) / rows.shape[1]


LOOKUPS = {
    "plain": "e = Gather(table, ids)",
    "cast and shifted": "k = Cast<to=6>(ids) i = Cast<to=7>(k) j = Add(i, one) n = Sub(j, one) e = Gather(table, n)",
    "flattened": "f = Reshape(ids, last) g = Gather(table, f) s = Shape(ids) d = Concat<axis=0>(s, last) "
    "e = Reshape(g, d)",
}


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_relevance_has_the_shape_of_the_ids(lookup: str) -> None:
    found = relevance(model("int64[N, T] ids", f"{LOOKUPS[lookup]} {HEAD}"), {"ids": IDS})
    np.testing.assert_allclose(found["relevance"], expected(WEIGHTS["table"][IDS]), rtol=1e-12)


def test_an_id_that_is_looked_up_twice_gets_both_shares() -> None:
    proto = model(
        "int64[N, T] ids", f"a = Gather(table, ids) b = Gather(table, ids) c = Mul(b, scale) e = Add(a, c) {HEAD}"
    )
    rows = WEIGHTS["table"][IDS]
    slope = 1 - np.tanh(3 * rows) ** 2
    share = (3 * rows * slope * WEIGHTS["w"][:, 1]).sum(-1) / 4
    np.testing.assert_allclose(relevance(proto, {"ids": IDS})["relevance"], share, rtol=1e-12)


@pytest.mark.parametrize(
    "one_hot",
    [
        "u = Unsqueeze(ids, last) q = Equal(u, eleven) e = Cast<to=11>(q)",
        "u = Unsqueeze(ids, last) z = Shape(u) v = Expand(u, z) q = Equal(v, eleven) e = Cast<to=11>(q)",
        "e = OneHot(ids, depth, values)",
    ],
)
def test_one_hot_vectors_are_explained_per_token(one_hot: str) -> None:
    proto = model("int64[N, T] ids", f"{one_hot} h = MatMul(e, w11) m = ReduceMean<keepdims=0>(h, one) y = Tanh(m)")
    found = relevance(proto, {"ids": IDS})
    rows = WEIGHTS["w11"][IDS]
    slope = 1 - np.tanh(rows.mean(1)) ** 2
    np.testing.assert_allclose(found["relevance"], rows[..., 1] * slope[:, None, 1] / 4, rtol=1e-12)


def test_masks_positions_and_segments_carry_nothing_unless_named() -> None:
    proto = model(
        "int64[N, T] ids, int64[N, T] mask, int64[N, T] position_ids",
        "a = Gather(table, ids) p = Gather(places, position_ids) s = Add(a, p) "
        f"k = Cast<to=11>(mask) u = Unsqueeze(k, last) e = Mul(s, u) {HEAD}",
    )
    feeds = {"ids": IDS, "mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]]), "position_ids": np.tile(np.arange(4), (2, 1))}
    compiled = compile_model(proto, "gradient-x-input")
    assert compiled.relevance == {"ids": "relevance"}
    assert any("position_ids" in note for note in compiled.notes)
    named = relevance(proto, feeds, explain_input=["ids", "position_ids"])
    rows = WEIGHTS["table"][IDS] + WEIGHTS["places"][feeds["position_ids"]]
    kept = rows * feeds["mask"][..., None]
    slope = (1 - np.tanh(kept) ** 2) * WEIGHTS["w"][:, 1] / 4 * feeds["mask"][..., None]
    np.testing.assert_allclose(named["relevance_ids"], (WEIGHTS["table"][IDS] * slope).sum(-1), rtol=1e-12)
    places = WEIGHTS["places"][feeds["position_ids"]]
    np.testing.assert_allclose(named["relevance_position_ids"], (places * slope).sum(-1), rtol=1e-12)


def test_two_texts_and_a_float_input() -> None:
    proto = model(
        "int64[N, T] question, int64[N, T] answer, double[N, 4] x",
        "a = Gather(table, question) b = Gather(table, answer) c = Mul(a, b) u = Unsqueeze(x, one) d = Mul(c, u) "
        "m = ReduceMean<keepdims=0>(d, one) y = MatMul(m, w)",
    )
    feeds = {"question": IDS, "answer": IDS[:, ::-1].copy(), "x": RNG.standard_normal((2, 4))}
    found = relevance(proto, feeds)
    for name in feeds:  # each factor of the product gets all of it times its own gradient
        total = found[f"relevance_{name}"].reshape(2, -1).sum(1)
        np.testing.assert_allclose(total, found["y"][:, 1], rtol=1e-10)


def test_integers_that_nothing_looks_up_are_refused() -> None:
    proto = model("int64[N, 4] ids", "f = Cast<to=11>(ids) y = MatMul(f, w)")
    with pytest.raises(ModelError, match="no token ids to explain"):
        compile_model(proto)
    with pytest.raises(RuleError, match="no embedding looks it up"):
        compile_model(proto, explain_input="ids")
