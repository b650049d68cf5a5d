"""BiLRP: its sums, single LRP passes in a loop, second derivatives, pooling, chunks, tokens and tables (spec B1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError
from xaicompile.ir.steps import names_read

F64 = np.float64
EXACT = {"epsilon": 0.0}
W1, W2 = (weight(*s, seed=i, dtype=F64) for i, s in enumerate([(6, 2, 3, 3), (4, 6, 3, 3)]))
W3 = weight(4 * 8 * 6, 5, dtype=F64) * 4
BIASES = {"b1": data(6, dtype=F64) / 3, "b2": data(4, dtype=F64) / 3, "b3": data(5, dtype=F64) / 3}
X, OTHER = data(3, 2, 8, 6, dtype=F64), data(3, 2, 8, 6, seed=1, dtype=F64)


def encoder(biases: bool = False, batch: str = "N", sizes: str = "8,6") -> onnx.ModelProto:
    """Two convolutions and a dense layer, to five units."""
    b1, b2, b3 = (", b1", ", b2", ", b3") if biases else ("", "", "")
    body = f"""
        z = Conv<pads=[1,1,1,1]>(x, w1{b1})
        a = Relu(z)
        c = Conv<pads=[1,1,1,1]>(a, w2{b2})
        d = Relu(c)
        f = Flatten(d)
        y = Gemm(f, w3{b3})
    """
    weights = {"w1": W1, "w2": W2, "w3": W3, **(BIASES if biases else {})}
    return net(f"(double[{batch},2,{sizes}] x) => (double[{batch},5] y)", body, **weights)


def explained(model: onnx.ModelProto, feed: Arrays | None = None, rule: str | Path = "bilrp", **options: Any) -> Arrays:
    """All outputs in float64, of rules without a stabiliser."""
    options["parameters"] = {**EXACT, "pool": 1, **options.get("parameters", {})}
    return exact(compile_model(model, rule, **options).model, feed or {"x": X, "other": OTHER})


def embeddings(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    return exact(model, {"x": X})["y"], exact(model, {"x": OTHER})["y"]


def looped(model: onnx.ModelProto, rule: str, patch: int, **parameters: float) -> np.ndarray:
    """One compiled model for each unit, run on either input: relevance of squares of pixels, multiplied and summed."""
    total: Any = 0
    for unit in range(5):
        single = compile_model(model, rule, parameters={**EXACT, **parameters}, target=unit).model
        maps = []
        for x in (X, OTHER):
            r = exact(single, {"x": x})["relevance"].sum(1)
            rows = range(0, 8, patch)
            squares = [[r[:, i : i + patch, j : j + patch].sum((1, 2)) for j in range(0, 6, patch)] for i in rows]
            maps.append(np.stack([s for row in squares for s in row], 1))
        total = total + maps[0][:, :, None] * maps[1][:, None, :]
    return np.asarray(total)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 10.0])
def test_without_biases_relevance_sums_to_the_similarity(gamma: float) -> None:
    model = encoder()
    found = explained(model, parameters={"gamma": gamma})
    x, y = embeddings(model)
    np.testing.assert_allclose(found["similarity"], (x * y).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found["relevance"].sum((1, 2)), found["similarity"], rtol=1e-9)
    np.testing.assert_array_equal(found["y"], x)


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("parameters", [{}, {"project": 10}, {"similarity": "cosine"}])
def test_with_biases_the_ledger_closes(parameters: dict[str, Any], chunk: int) -> None:
    found = explained(encoder(biases=True), parameters={"epsilon": 0.1, **parameters}, ledger=True, chunk=chunk)
    total = found["relevance"].sum((1, 2)) + found["ledger"]
    np.testing.assert_allclose(total, found["similarity"], rtol=1e-9)
    np.testing.assert_array_equal(found["explained"], found["similarity"])
    assert (np.abs(found["ledger"]) > 0.01 * np.abs(found["similarity"])).all(), "biases keep nothing"


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("patch", [1, 2, 4, 5])
@pytest.mark.parametrize("biases", [False, True])
def test_it_is_a_loop_of_single_passes(biases: bool, patch: int, chunk: int) -> None:
    """A patch of 4 or 5 is cut off at an edge of 8 by 6 pixels."""
    model = encoder(biases)
    found = explained(model, parameters={"gamma": 0.3, "pool": patch}, chunk=chunk)["relevance"]
    want = looped(model, "lrp-gamma", patch, gamma=0.3)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("rule", ["lrp-0", "lrp-zplus", "epsilon-plus"])
def test_other_inner_rules(tmp_path: Path, rule: str) -> None:
    """As a rule set of one's own."""
    (tmp_path / "mine.toml").write_text(f'extends = "{rule}"\nmethod = "bilrp"\n')
    own = {} if rule == "lrp-0" else EXACT
    model = encoder()
    found = exact(
        compile_model(model, tmp_path / "mine.toml", parameters={**own, "pool": 2}).model, {"x": X, "other": OTHER}
    )
    total: Any = 0
    for unit in range(5):
        single = compile_model(model, rule, parameters=own, target=unit).model
        a, b = (
            exact(single, {"x": x})["relevance"].reshape(3, 2, 4, 2, 3, 2).sum((1, 3, 5)).reshape(3, 12)
            for x in (X, OTHER)
        )
        total = total + a[:, :, None] * b[:, None]
    np.testing.assert_allclose(found["relevance"], total, rtol=0, atol=1e-12 * np.abs(total).max())


@pytest.mark.parametrize("biases", [False, True])
def test_lrp_0_is_the_second_derivative_times_both_inputs(biases: bool) -> None:
    """By central differences, x_i d2y/dx_i dx'_i' x'_i'; biases do not enter."""
    model = encoder(biases)
    found = explained(model, parameters={"gamma": 0.0})["relevance"]
    x, y = X[:1], OTHER[:1]
    places = np.random.default_rng(0).choice(X[0].size // 2, 6, replace=False)
    step = 1e-4

    def moved(x: np.ndarray, pixel: int) -> np.ndarray:
        """A pixel's channels scaled up and down, which is a step along its own values."""
        mask = np.zeros((1, 1, 48))
        mask[..., pixel] = step
        mask = mask.reshape(1, 1, 8, 6)
        up, down = (exact(model, {"x": x * (1 + s * mask)})["y"][0] for s in (1, -1))
        return np.asarray((up - down) / (2 * step))

    for i in places:
        for j in places[:3]:
            want = moved(x, i) @ moved(y, j)
            np.testing.assert_allclose(found[0, i, j], want, rtol=1e-6, atol=1e-9 * np.abs(found[0]).max())


@pytest.mark.parametrize("patch", [2, 4])
def test_pooling_commutes_with_the_product(patch: int) -> None:
    model = encoder(biases=True)
    fine = explained(model)["relevance"].reshape(3, 8, 6, 8, 6)
    rows, columns = np.arange(0, 8, patch), np.arange(0, 6, patch)
    for axis, starts in ((1, rows), (2, columns), (3, rows), (4, columns)):
        fine = np.add.reduceat(fine, starts, axis=axis)
    found = explained(model, parameters={"pool": patch})["relevance"]
    np.testing.assert_allclose(found, fine.reshape(found.shape), rtol=0, atol=1e-12 * np.abs(found).max())


def test_the_same_input_twice_gives_a_symmetric_matrix() -> None:
    found = explained(encoder(biases=True), {"x": X, "other": X})
    np.testing.assert_allclose(found["relevance"], found["relevance"].transpose(0, 2, 1), rtol=0, atol=1e-14)
    assert (found["similarity"] > 0).all()


def test_each_pair_is_explained_by_itself() -> None:
    model = encoder(biases=True)
    together = explained(model)
    for i in range(3):
        alone = explained(model, {"x": X[i : i + 1], "other": OTHER[i : i + 1]})
        for name in ("similarity", "relevance"):
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-9, atol=1e-12)


def test_one_input_is_compared_with_several_others() -> None:
    model = encoder(biases=True)
    found = explained(model, {"x": X[:1], "other": OTHER}, ledger=True)
    pairs = explained(model, {"x": np.repeat(X[:1], 3, 0), "other": OTHER}, ledger=True)
    for name in ("similarity", "relevance", "ledger"):
        np.testing.assert_allclose(found[name], pairs[name], rtol=1e-9, atol=1e-12)


def test_a_fixed_batch() -> None:
    made = compile_model(encoder(batch="1"), "bilrp").model
    (other,) = (i for i in made.graph.input if i.name == "other")
    assert [d.dim_value for d in other.type.tensor_type.shape.dim] == [1, 2, 8, 6]
    found = explained(encoder(biases=True, batch="1"), {"x": X[:1], "other": OTHER[:1]})
    want = explained(encoder(biases=True))
    np.testing.assert_allclose(found["relevance"], want["relevance"][:1], rtol=0, atol=1e-13)
    with pytest.raises(RuleError, match="--chunk 5: the model's batch is fixed"):
        compile_model(encoder(batch="1"), "bilrp", chunk=5)


@pytest.mark.parametrize("patch", [1, 2, 5])
def test_sizes_that_are_known_at_run_time_only(patch: int) -> None:
    """Both inputs may then have sizes of their own."""
    body = "z = Conv<pads=[1,1,1,1]>(x, w) a = Relu(z) g = GlobalAveragePool(a) y = Flatten(g)"
    model = net("(double[N,2,H,W] x) => (double[N,6] y)", body, w=W1)
    found = explained(model, {"x": X, "other": OTHER[:, :, :7]}, parameters={"pool": patch})
    fixed = (net(f"(double[N,2,{h},6] x) => (double[N,6] y)", body, w=W1) for h in (8, 7))
    maps = []
    for single, x in zip(fixed, (X, OTHER[:, :, :7]), strict=True):
        each = [compile_model(single, "lrp-gamma", parameters=EXACT, target=k).model for k in range(6)]
        r = np.stack([exact(m, {"x": x})["relevance"].sum(1) for m in each])
        for axis in (2, 3):
            r = np.add.reduceat(r, np.arange(0, r.shape[axis], patch), axis=axis)
        maps.append(r.reshape(6, 3, -1))
    want = np.einsum("mni,mnj->nij", *maps)
    np.testing.assert_allclose(found["relevance"], want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_channels_behind_the_pixels() -> None:
    last = net(
        "(double[N,8,6,3] x) => (double[N,6] y)",
        "t = Transpose<perm=[0,3,1,2]>(x) z = Conv(t, w) a = Relu(z) g = GlobalAveragePool(a) y = Flatten(g)",
        w=weight(6, 3, 3, 3, dtype=F64),
    )
    first = net(
        "(double[N,3,8,6] x) => (double[N,6] y)",
        "z = Conv(x, w) a = Relu(z) g = GlobalAveragePool(a) y = Flatten(g)",
        w=weight(6, 3, 3, 3, dtype=F64),
    )
    x, y = data(2, 3, 8, 6, dtype=F64), data(2, 3, 8, 6, seed=3, dtype=F64)
    want = explained(first, {"x": x, "other": y}, parameters={"pool": 2})
    moved = {"x": x.transpose(0, 2, 3, 1), "other": y.transpose(0, 2, 3, 1)}
    found = explained(last, moved, parameters={"pool": 2})
    np.testing.assert_allclose(found["relevance"], want["relevance"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_random_projection(chunk: int) -> None:
    """Rows of normal numbers: their products are those of the embeddings in expectation."""
    model = encoder()
    found = explained(model, parameters={"project": 8, "seed": 3, "gamma": 0.0}, chunk=chunk)
    p = np.random.default_rng(3).standard_normal((5, 8)) / np.sqrt(8)
    x, y = embeddings(model)
    np.testing.assert_allclose(found["similarity"], ((x @ p) * (y @ p)).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found["relevance"].sum((1, 2)), found["similarity"], rtol=1e-9)
    maps = []
    for inputs in (X, OTHER):
        each = [exact(compile_model(model, "gradient-x-input", target=k).model, {"x": inputs}) for k in range(5)]
        maps.append(np.einsum("mk,mni->kni", p, np.stack([e["relevance"].sum(1).reshape(3, 48) for e in each])))
    want = np.einsum("kni,knj->nij", *maps)
    np.testing.assert_allclose(found["relevance"], want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_cosine() -> None:
    model = encoder()
    found = explained(model, parameters={"similarity": "cosine"})
    x, y = embeddings(model)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found["similarity"], (x * y).sum(1) / norms, rtol=1e-12)
    dot = explained(model)["relevance"]
    np.testing.assert_allclose(found["relevance"], dot / norms[:, None, None], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found["relevance"].sum((1, 2)), found["similarity"], rtol=1e-9)


def test_the_cosine_of_nothing_is_0() -> None:
    found = explained(encoder(), {"x": X * 0, "other": OTHER}, parameters={"similarity": "cosine"}, ledger=True)
    assert all(not np.any(found[name]) for name in ("similarity", "relevance", "ledger"))
    single = exact(compile_model(encoder(), "bilrp", parameters={"similarity": "cosine"}).model, {"x": X})
    assert not np.any(single["similarity"]) and not np.any(single["relevance"]), "`other` is 0 unless it is fed"


TABLE, HEAD = weight(11, 4, dtype=F64), weight(4, 3, dtype=F64) * 3
IDS = np.array([[1, 5, 5, 2, 0], [3, 0, 7, 9, 0]])
OTHERS = np.array([[4, 1, 8, 10, 6], [2, 2, 5, 0, 0]])
MASK, MASKS = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def text(length: str = "T", lookup: str = "e = Gather(table, ids)", **more: np.ndarray) -> onnx.ModelProto:
    """The masked mean of rectified embeddings, and a dense layer."""
    body = f"""
        {lookup}
        h = Relu(e)
        m = CastLike(mask, e)
        c = Unsqueeze(m, last)
        k = Mul(h, c)
        s = ReduceSum<keepdims=0>(k, one)
        n = ReduceSum<keepdims=1>(m, one)
        q = Div(s, n)
        y = MatMul(q, w)
    """
    weights = {"table": TABLE, "w": HEAD, "last": np.array([-1]), "one": np.array([1]), **more}
    return net(f"(int64[N,{length}] ids, int64[N,{length}] mask) => (double[N,3] y)", body, **weights)


def tokens(length: int) -> Arrays:
    return {"ids": IDS, "mask": MASK, "other_ids": OTHERS[:, :length], "other_mask": MASKS[:, :length]}


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(("length", "other"), [("T", 5), ("T", 4), ("5", 5)])
def test_tokens(length: str, other: int, chunk: int) -> None:
    """In closed form: R_tt' = <W^T h_t m_t / n, W^T h'_t' m'_t' / n'>; where lengths are open, each has its own."""
    found = explained(text(length), tokens(other), chunk=chunk)
    h = np.maximum(TABLE, 0) @ HEAD
    sides = [(IDS, MASK), (OTHERS[:, :other], MASKS[:, :other])]
    x, y = (h[ids] * (mask / mask.sum(1, keepdims=True))[..., None] for ids, mask in sides)
    want = np.einsum("ntm,nsm->nts", x, y)
    np.testing.assert_allclose(found["relevance"], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["similarity"], want.sum((1, 2)), rtol=1e-12)


def test_tokens_looked_up_twice() -> None:
    twice = "g = Gather(table, ids) r = Relu(g) v = Gather(table2, ids) e = Add(r, v)"
    model = text(lookup=twice, table2=np.abs(TABLE[::-1]))
    found = explained(model, tokens(5))
    h = (np.maximum(TABLE, 0) + np.abs(TABLE[::-1])) @ HEAD
    sides = [(IDS, MASK), (OTHERS, MASKS)]
    x, y = (h[ids] * (mask / mask.sum(1, keepdims=True))[..., None] for ids, mask in sides)
    np.testing.assert_allclose(found["relevance"], np.einsum("ntm,nsm->nts", x, y), rtol=0, atol=1e-12)


def test_tables() -> None:
    """Features are not pooled: R_ij = x_i <W_i, W_j> x'_j of a linear encoder."""
    w = weight(7, 3, dtype=F64)
    model = net("(double[N,7] x) => (double[N,3] y)", "y = MatMul(x, w)", w=w)
    x, y = data(4, 7, dtype=F64), data(4, 7, seed=1, dtype=F64)
    found = explained(model, {"x": x, "other": y}, parameters={"pool": 4})
    want = x[:, :, None] * (w @ w.T) * y[:, None, :]
    np.testing.assert_allclose(found["relevance"], want, rtol=0, atol=1e-12)


def test_the_loop_over_units_holds_no_forward_pass_and_weights_stand_in_the_file_once() -> None:
    """The forward pass and the denominators of the rules are worked out once, outside."""
    big = {"w1": weight(64, 2, 3, 3), "w2": weight(256, 64, 3, 3), "w3": weight(256, 32)}
    nodes = """
        z = Conv<pads=[1,1,1,1]>(x, w1)
        a = Relu(z)
        c = Conv<pads=[1,1,1,1]>(a, w2)
        d = Relu(c)
        g = GlobalAveragePool(d)
        f = Flatten(g)
        y = MatMul(f, w3)
    """
    model = net("(float[N,2,12,12] x) => (float[N,32] y)", nodes, **big)
    for options in ({}, {"chunk": 8}, {"ledger": True}):
        made = compile_model(model, "bilrp", parameters={"pool": 4}, **options).model  # type: ignore[arg-type]
        (scan,) = (n for n in made.graph.node if n.op_type == "Scan")
        body = scan.attribute[0].g
        changing = {i.name for i in body.input}
        for node in body.node:
            changing |= set(node.output) if changing & set(node.input) else set()
        convs = [n for n in body.node if n.op_type in ("Conv", "ConvTranspose")]
        assert len(convs) == 4, "for either input, one in each layer"
        assert all(n.input[0] in changing and n.input[1] not in changing for n in convs)
        assert all(changing & set(n.input) for n in body.node if n.op_type in ("Div", "Abs", "HardSigmoid", "MaxPool"))
        products = [n for n in body.node if n.op_type == "Mul" and len(changing & set(n.input)) == 1]
        if "ledger" not in options:  # masks and denominators are one product: seed, three layers and input, twice
            assert len(products) == 10
        forward = [n for n in made.graph.node if n.op_type == "Conv" and n.input[1] in ("w1", "w2")]
        assert len(forward) == (4 if "chunk" not in options else 8)
        assert {"w1", "w2", "w3"} <= set(names_read(body))
        large = [t.name for t in made.graph.initializer if np.prod(t.dims) > 1000]
        assert sorted(large) == ["w1", "w2", "w3"]
        assert made.ByteSize() - model.ByteSize() < 100_000 < model.ByteSize() / 5
        assert np.isfinite(run(made, {"x": data(2, 2, 12, 12), "other": data(2, 2, 12, 12, seed=1)})["relevance"]).all()
