"""Second-order explanations against closed forms, central differences of the gradient, and identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, exact, net, run, weight
from tests.nets import cnn
from tests.second_order import (
    B1,
    B2,
    CLOSED,
    DIFFERENCES,
    F64,
    IMAGES,
    K2,
    NETWORKS,
    TABLES,
    TARGET,
    W1,
    W2,
    X,
    close,
    curved,
    differences,
    network,
    quadratic,
    quadratics,
    table,
    together,
    weighted,
    write,
)
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

# --- values -----------------------------------------------------------------------------------------------------------


def test_quadratics_are_exact() -> None:
    found = curved(quadratic(), X)
    both = quadratics()[TARGET] + quadratics()[TARGET].transpose(0, 2, 1)
    np.testing.assert_allclose(found["interaction"], weighted(both, X), rtol=1e-14)
    slope = np.einsum("nij,nj->ni", both, X) + W1[:, :3].T[TARGET]
    np.testing.assert_allclose(found["relevance"], X * slope, rtol=1e-13)


def test_small_whole_numbers_leave_no_error_at_all() -> None:
    model = net("(double[N,2] x) => (double[N,1] y)", "q = Mul(x, x) y = MatMul(q, w)", w=np.array([[3.0], [-5.0]]))
    found = exact(xaicompile.compile(model, "hessian-x-input"), {"x": np.array([[2.0, 7.0]])})["interaction"]
    assert np.array_equal(found, [[[12.0, 0.0], [0.0, -245.0]]])


def test_tanh_network_in_closed_form() -> None:
    a = np.tanh(X @ W1 + B1)
    inner = W2.T[TARGET] * -2 * a * (1 - a**2)
    hessian = np.einsum("ik,nk,jk->nij", W1, inner, W1)
    close(curved(table("tanh"), X)["interaction"], weighted(hessian, X), CLOSED)


def test_softplus_network_in_closed_form() -> None:
    s = 1 / (1 + np.exp(-(X @ W1 + B1)))
    hessian = np.einsum("ik,nk,jk->nij", W1, W2.T[TARGET] * s * (1 - s), W1)
    close(curved(table("softplus"), X)["interaction"], weighted(hessian, X), CLOSED)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str) -> None:
    """The matrix, its symmetry, its rows by products with a vector, the first-order part; in the runtime, too."""
    model, found = table(name), curved(table(name), X)
    hessian = differences(model, X)
    close(found["interaction"], weighted(hessian, X), DIFFERENCES)
    close(found["interaction"], found["interaction"].transpose(0, 2, 1), 1e-12)
    gradient = exact(xaicompile.compile(model, "gradient-x-input"), {"x": X, "target": TARGET})
    close(found["relevance"], gradient["relevance"], 1e-12)
    product = xaicompile.compile(model, "hessian-vector-product")
    for i, unit in enumerate(np.eye(4)):
        row = exact(product, {"x": X, "target": TARGET, "v": unit[None]})["hvp"]
        close(0.5 * X[:, i : i + 1] * X * row, found["interaction"][:, i], 1e-12)
    v = data(3, 4, seed=9, dtype=F64)
    row = exact(product, {"x": X, "target": TARGET, "v": v})["hvp"]
    close(row, np.einsum("nij,nj->ni", hessian, v), DIFFERENCES)
    left_out = exact(product, {"x": X, "target": TARGET})
    assert np.array_equal(left_out["hvp"], np.zeros_like(X))
    close(left_out["relevance"], gradient["relevance"], 1e-12)
    if name == "gelu":
        return  # the runtime has no Erf in float64
    in_runtime = run(xaicompile.compile(model, "hessian-x-input"), {"x": X, "target": TARGET})
    close(in_runtime["interaction"], found["interaction"], 1e-9)
    assert np.array_equal(in_runtime["y"], run(model, {"x": X})["y"])


@pytest.mark.parametrize("name", NETWORKS)
def test_images(name: str) -> None:
    """By position, the channels taken together; in squares, the last of which may be cut off."""
    model, images = network(name), IMAGES
    pairs = weighted(differences(model, images), images)
    positions = np.broadcast_to(np.arange(36).reshape(6, 6), (2, 6, 6))
    close(curved(model, images)["interaction"], together(pairs, positions), DIFFERENCES)
    for side, count in ((3, 2), (4, 2)):
        rows = np.arange(6) // side
        squares = np.broadcast_to(rows[:, None] * count + rows, (2, 6, 6))
        close(curved(model, images, group=side)["interaction"], together(pairs, squares), DIFFERENCES)


@pytest.mark.parametrize("shape", [(6, 6), (2, 6, 6)], ids=["positions", "values"])
def test_groups_of_a_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = network("tanh")
    numbers = np.random.default_rng(0).integers(0, 5, shape)
    np.save(tmp_path / "groups.npy", numbers)
    whole = curved(model, IMAGES, group=write(tmp_path, np.arange(72).reshape(2, 6, 6)))["interaction"]
    found = curved(model, IMAGES, group=str(tmp_path / "groups.npy"))["interaction"]
    close(found, together(whole, np.broadcast_to(numbers, (2, 6, 6))), 1e-12)
    close(whole, weighted(differences(model, IMAGES), IMAGES), DIFFERENCES)


def test_channels_last() -> None:
    body = f"t = Transpose<perm = [0, 3, 1, 2]>(x) {NETWORKS['tanh'].replace('(x, k1)', '(t, k1)')}".replace(
        "t = Sigmoid(c) g = GlobalAveragePool(t)", "s = Sigmoid(c) g = GlobalAveragePool(s)"
    )
    images = data(2, 6, 6, 3, dtype=F64)
    k1 = weight(4, 3, 3, 3, seed=5, dtype=F64)
    model = net("(double[N,6,6,3] x) => (double[N,3] y)", body, k1=k1, k2=K2)
    squares = np.broadcast_to((np.arange(6)[:, None] // 2 * 3 + np.arange(6) // 2)[..., None], (6, 6, 3))
    pairs = weighted(differences(model, images), images)
    close(curved(model, images, group=2)["interaction"], together(pairs, squares), DIFFERENCES)


def test_tokens_are_paired_over_their_features() -> None:
    held = {"t": weight(7, 4, dtype=F64), "w": W1[:, :3], "axis": np.array([1])}
    body = "e = Gather(t, input_ids) h = Tanh(e) s = ReduceSum<keepdims = 0>(h, axis) p = Mul(s, s) y = MatMul(p, w)"
    model = net("(int64[N,5] input_ids) => (double[N,3] y)", body, **held)
    ids = np.array([[1, 2, 3, 0, 6], [5, 5, 1, 0, 2]])
    found = exact(xaicompile.compile(model, "hessian-x-input"), {"input_ids": ids, "target": TARGET[:2]})
    embedded = net("(double[N,5,4] x) => (double[N,3] y)", body.replace("e = Gather(t, input_ids)", "e = Identity(x)"),
                   w=held["w"], axis=held["axis"])  # fmt: skip
    x = held["t"][ids]
    pairs = weighted(differences(embedded, x), x)
    each = np.broadcast_to(np.arange(5)[:, None], (5, 4))
    close(found["interaction"], together(pairs, each), DIFFERENCES)
    assert found["relevance"].shape == (2, 5)


# --- identities -------------------------------------------------------------------------------------------------------


def test_pair_occlusion_is_twice_the_interaction_of_quadratics() -> None:
    """f(x) - f(x without i) - f(x without j) + f(x without both) == H_ij x_i x_j == 2 R_ij (spec 10.1)."""
    model, x = quadratic(), X[:1]
    found = curved(model, x)["interaction"][0]

    def f(*left_out: int) -> float:
        kept = x.copy()
        kept[:, list(left_out)] = 0
        return float(exact(model, {"x": kept})["y"][0, TARGET[0]])

    for i in range(4):
        for j in range(i):
            assert abs(f() - f(i) - f(j) + f(i, j) - 2 * found[i, j]) <= 1e-13


@pytest.mark.parametrize("root", ["zero", "mean", 0.3, "file", "input"])
def test_taylor_terms_at_a_root_sum_to_the_difference_of_quadratics(root: Any, tmp_path: Path) -> None:
    r = {"zero": 0 * X, "mean": X.mean(1, keepdims=True) + 0 * X, "file": data(1, 4, seed=5, dtype=F64) + 0 * X}
    at = r.get(root, data(3, 4, seed=6, dtype=F64) if root == "input" else 0.3 + 0 * X)
    given = write(tmp_path, at[:1]) if root == "file" else root
    found = curved(quadratic(), X, root=given, feed={"root": at} if root == "input" else {})
    f = [exact(quadratic(), {"x": points})["y"][np.arange(3), TARGET] for points in (X, at)]
    total = found["relevance"].sum(1) + found["interaction"].sum((1, 2))
    np.testing.assert_allclose(total, f[0] - f[1], rtol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "norm", "outer"])
def test_terms_at_a_root(name: str) -> None:
    root = 0.3
    found, there = curved(table(name), X, root=root), np.full_like(X, root)
    pairs = 0.5 * differences(table(name), there) * (X - root)[:, :, None] * (X - root)[:, None, :]
    close(found["interaction"], pairs, DIFFERENCES)
    taylor = xaicompile.compile(table(name), "taylor", parameters={"root": root})
    close(found["relevance"], exact(taylor, {"x": X, "target": TARGET})["relevance"], 1e-12)
    product = curved(table(name), X, "hessian-vector-product", root=root, feed={"v": X - root})["hvp"]
    close(0.5 * product * (X - root), found["interaction"].sum(2), 1e-12)


SHORT = {"hessian-x-input": {}, "integrated-hessians": {"steps": 3}}


@pytest.mark.parametrize("rule", SHORT)
def test_samples_do_not_meet(rule: str) -> None:
    model = xaicompile.compile(table("norm"), rule, parameters=SHORT[rule])
    whole = exact(model, {"x": X, "target": TARGET})
    for i in range(3):
        one = exact(model, {"x": X[i : i + 1], "target": TARGET[i : i + 1]})
        for name in ("relevance", "interaction"):
            close(one[name], whole[name][i : i + 1], 1e-13)


@pytest.mark.parametrize("rule", SHORT)
def test_chunks_change_nothing(rule: str) -> None:
    for model, x, group, chunks in ((table("gelu"), X, 1, (2, 4)), (network("tanh"), IMAGES, 2, (3,))):
        expected = curved(model, x, rule, group=group, **SHORT[rule])
        for chunk in chunks:
            found = curved(model, x, rule, group=group, chunk=chunk, **SHORT[rule])
            for name in ("relevance", "interaction"):
                close(found[name], expected[name], 1e-13)


def test_fixed_batch() -> None:
    close(curved(table("norm", "3"), X)["interaction"], curved(table("norm"), X)["interaction"], 1e-13)
    close(
        curved(table("norm", "3"), X, root="zero")["interaction"],
        curved(table("norm"), X, root="zero")["interaction"],
        1e-13,
    )


def test_target_is_live_and_chooses_the_largest_output_by_itself() -> None:
    model, product = xaicompile.compile(table("tanh"), "hessian-x-input"), table("tanh")
    largest = exact(product, {"x": X})["y"].argmax(1)
    chosen = exact(model, {"x": X, "target": largest})
    by_itself = exact(model, {"x": X})
    assert np.array_equal(by_itself["interaction"], chosen["interaction"])
    none = exact(model, {"x": X, "target": np.array([99])})
    assert not none["interaction"].any() and not none["relevance"].any()


def test_several_maps_and_sums_of_outputs() -> None:
    maps = exact(xaicompile.compile(table("tanh"), "hessian-x-input", maps=2), {"x": X, "target": np.array([[0, 2]])})
    assert maps["interaction"].shape == (3, 2, 4, 4)
    made = xaicompile.compile(table("tanh"), "hessian-x-input")
    for k, target in enumerate((0, 2)):
        close(maps["interaction"][:, k], exact(made, {"x": X, "target": np.array([target])})["interaction"], 1e-13)
    total = exact(xaicompile.compile(table("tanh"), "hessian-x-input", explain_reduce="sum"), {"x": X})["interaction"]
    each = [exact(made, {"x": X, "target": np.array([k])})["interaction"] for k in range(3)]
    close(total, sum(each), 1e-13)
    product = xaicompile.compile(table("tanh"), "hessian-vector-product", maps=2)
    assert [i.name for i in product.graph.input] == ["x", "v", "target"]


# --- ReLUs ------------------------------------------------------------------------------------------------------------


def test_piecewise_linear_networks_are_told() -> None:
    made = compile_model(cnn(), "hessian-x-input", parameters={"group": 4})
    assert any("piecewise linear" in note and "softplus" in note for note in made.notes)
    assert not run(made.model, {"x": data(1, 3, 12, 12)})["interaction"].any()
    rounded = compile_model(cnn(), "hessian-x-input", parameters={"group": 4, "softplus": 3.0})
    assert not any("piecewise" in note for note in rounded.notes)
    for name in TABLES:
        assert not any("piecewise" in note for note in compile_model(table(name), "hessian-vector-product").notes)


def test_relus_before_a_square_have_a_hessian() -> None:
    """Where the ReLUs are on, as it is without them."""
    model = net("(double[N,4] x) => (double[N,3] y)", "z = MatMul(x, w1) a = Relu(z) q = Mul(a, a) y = MatMul(q, w2)",
                w1=W1, w2=W2)  # fmt: skip
    on = (X @ W1 > 0) * 2.0 * W2.T[TARGET]
    close(curved(model, X)["interaction"], weighted(np.einsum("ik,nk,jk->nij", W1, on, W1), X), CLOSED)


@pytest.mark.parametrize(
    ("act", "rounded"),
    [
        ("a = Relu(z)", "t = Mul(z, beta) s = Softplus(t) a = Mul(s, r)"),
        (
            "a = LeakyRelu<alpha = 0.25>(z)",
            "t = Mul(z, beta) s = Softplus(t) m = Mul(s, r75) n = Mul(z, quarter) a = Add(m, n)",
        ),
        (
            "a = Clip(z, quarter, one)",
            "zl = Sub(z, quarter) tl = Mul(zl, beta) sl = Softplus(tl) ml = Mul(sl, r) zh = Sub(z, one) "
            "th = Mul(zh, beta) sh = Softplus(th) mh = Mul(sh, r) d = Sub(ml, mh) a = Add(d, quarter)",
        ),
        (
            "a = Clip(z, quarter)",
            "zl = Sub(z, quarter) tl = Mul(zl, beta) sl = Softplus(tl) ml = Mul(sl, r) a = Add(ml, quarter)",
        ),
    ],
    ids=["relu", "leaky", "clip", "floor"],
)
def test_softplus_is_the_smooth_network_and_leaves_the_prediction(act: str, rounded: str) -> None:
    beta = 3.0
    numbers = {"beta": beta, "r": 1 / beta, "r75": 0.75 / beta, "quarter": 0.25, "one": 1.0}

    def model(body: str) -> onnx.ModelProto:
        held = {k: np.asarray(v) for k, v in numbers.items() if k in body}
        body = f"z = Gemm(x, w1, b1) {body} y = Gemm(a, w2, b2)"
        return net("(double[N,4] x) => (double[N,3] y)", body, w1=W1, b1=B1, w2=W2, b2=B2, **held)

    smooth = model(rounded)
    for rule in ("hessian-x-input", "integrated-hessians"):
        found, expected = curved(model(act), X, rule, softplus=beta), curved(smooth, X, rule)
        close(found["interaction"], expected["interaction"], 1e-12)
        close(found["relevance"], expected["relevance"], 1e-12)
        assert np.array_equal(found["y"], exact(model(act), {"x": X})["y"])
    assert np.abs(expected["interaction"]).max() > 1e-2


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(model: onnx.ModelProto, rule: str = "hessian-x-input", **options: Any) -> str:
    """The one line that says why."""
    with pytest.raises(RuleError) as error:
        xaicompile.compile(model, rule, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("rule", ["hessian-x-input", "hessian-vector-product", "integrated-hessians"])
def test_two_inputs(rule: str) -> None:
    model = net("(double[N,4] x, double[N,4] z) => (double[N,4] y)", "p = Mul(x, z) y = Mul(p, x)")
    assert "'x', 'z'" in refused(model, rule) and "--explain-input" in refused(model, rule)
    found = exact(
        xaicompile.compile(model, "hessian-x-input", explain_input="x"), {"x": X, "z": X[::-1], "target": TARGET}
    )
    at = np.eye(4)[TARGET]
    close(found["interaction"], weighted(2 * (X[::-1] * at)[:, :, None] * np.eye(4), X), CLOSED)


def test_unknown_sizes_and_no_batch() -> None:
    assert "sizes must be known" in refused(net("(double[N,D] x) => (double[N,D] y)", "y = Tanh(x)"))
    assert "batch" in refused(net("(double[4] x) => (double[3] y)", "z = MatMul(x, w) y = Tanh(z)", w=W1[:, :3]))
    assert "batch" in refused(net("(double[N] x) => (double[N] y)", "y = Tanh(x)"))
    dynamic = xaicompile.compile(net("(double[N,D] x) => (double[N,D] y)", "y = Tanh(x)"), "hessian-vector-product")
    found = exact(dynamic, {"x": X, "v": X, "target": TARGET})["hvp"]
    close(found, (-2 * np.tanh(X) * (1 - np.tanh(X) ** 2) * X) * np.eye(4)[TARGET], CLOSED)


def test_parameters_and_options(tmp_path: Path) -> None:
    model, image = table("tanh"), network("tanh")
    assert "square" in refused(model, parameters={"group": "nothing.npy"})
    assert "whole number" in refused(image, parameters={"group": 1.5})
    for numbers in (np.zeros((2, 3), int), np.full((6, 6), -1), np.full((6, 6), 0.5), np.full((6, 6), 36)):
        assert "parameter 'group'" in refused(image, parameters={"group": write(tmp_path, numbers)})
    assert "softplus" in refused(model, parameters={"softplus": 0})
    assert "steps" in refused(model, "integrated-hessians", parameters={"steps": 129})
    assert "--chunk 3" in refused(model, chunk=3)
    assert "--chunk 2" in refused(table("tanh", "3"), chunk=2)
    for options in ({"contrast": "others"}, {"normalise": True}):
        assert "as they are" in refused(model, **options)
    large = net("(double[N,3,80,80] x) => (double[N,3] y)", "t = Tanh(x) g = GlobalAveragePool(t) y = Flatten(g)")
    assert "--set group" in refused(large)
