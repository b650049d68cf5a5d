"""Explanations at many points in every kind of model, with every option, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import xaicompile
from tests.graphs import data, exact, net, run, weight
from tests.nets import cnn
from tests.quantised import number, quantised, whole
from tests.test_methods import AVERAGES, B1, B2, F64, TARGET, W1, W2, X, close, points
from xaicompile.errors import RuleError, UnsupportedError, XaiCompileError

METHODS = ("integrated-gradients", "smooth-integrated-gradients", "smoothgrad", "gradient-squared", "vargrad")
SHORT = {"steps": 3, "samples": 4}

# --- with everything else ---------------------------------------------------------------------------------------------

ALL = [*METHODS, "taylor", "occlusion", "random", "shap-gradient"]


def settings(rule: str, folder: Path) -> dict[str, Any]:
    """Few points, and what must be given."""
    if rule == "shap-gradient":
        np.save(folder / "background.npy", data(2, 3, 12, 12, seed=9))
        return {"background": str(folder / "background.npy"), "samples": 3}
    accepted = {"integrated-gradients": ("steps",), "smooth-integrated-gradients": ("steps", "samples")}
    names = accepted.get(rule, ("samples",) if rule in METHODS else ())
    return {**{name: SHORT[name] for name in names}, **({"window": 5} if rule == "occlusion" else {})}


@pytest.mark.parametrize("rule", ALL)
def test_prediction_is_bit_identical_and_samples_are_apart(rule: str, tmp_path: Path) -> None:
    x, target, options = data(3, 3, 12, 12), np.array([0, 4, 2]), settings(rule, tmp_path)
    made = xaicompile.compile(cnn(), rule, parameters=options)
    found = run(made, {"x": x, "target": target})
    assert made.opset_import[0].version == 18 and {o.domain for o in made.opset_import} <= {"", "ai.onnx"}
    np.testing.assert_array_equal(found["logits"], run(cnn(), {"x": x})["logits"])
    assert found["relevance"].dtype == np.float32 and np.isfinite(found["relevance"]).all()
    for i in range(3):
        one = run(made, {"x": x[i : i + 1], "target": target[i : i + 1]})["relevance"]
        close(found["relevance"][i : i + 1], one, 1e-5)
    fixed = xaicompile.compile(cnn(batch=3), rule, parameters=options)
    close(run(fixed, {"x": x, "target": target})["relevance"], found["relevance"], 1e-5)


@pytest.mark.parametrize("rule", ALL)
def test_maps_and_contrast(rule: str, tmp_path: Path) -> None:
    """Several maps are those of several runs; a contrast is the difference of two where the method is linear."""
    x, options = data(2, 3, 12, 12), settings(rule, tmp_path)
    single = [
        run(xaicompile.compile(cnn(), rule, target=k, parameters=options), {"x": x})["relevance"] for k in range(5)
    ]
    chosen = np.array([[3, 1], [0, 2]])
    maps = run(xaicompile.compile(cnn(), rule, maps=2, parameters=options), {"x": x, "target": chosen})["relevance"]
    assert maps.shape == (2, 2, *x.shape[1:])
    for i, k in np.ndindex(2, 2):
        close(maps[i, k], single[chosen[i, k]][i], 1e-5)
    found = run(
        xaicompile.compile(cnn(), rule, contrast="runner-up", parameters=options), {"x": x, "target": np.array([3])}
    )
    if rule in ("gradient-squared", "vargrad", "random"):
        assert np.isfinite(found["relevance"]).all()
        return
    others = np.where(np.arange(5) == 3, -np.inf, found["logits"]).argmax(1)
    for i in range(2):
        expected = single[3][i] - single[others[i]][i]
        close(found["relevance"][i], expected, 1e-4)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "vargrad", "taylor"])
def test_two_inputs_move_together(rule: str) -> None:
    body = "s = Mul(x, z) t = Concat<axis = 1>(s, x) y = MatMul(t, w)"
    model = net("(double[N,4] x, double[N,4] z) => (double[N,2] y)", body, w=weight(8, 2, dtype=F64))
    x, z, w = data(3, 4, dtype=F64), data(3, 4, seed=1, dtype=F64), weight(8, 2, dtype=F64)[:, 1]
    options = {"integrated-gradients": {"steps": 3, "quadrature": "trapezoid"}, "taylor": {"root": 0.5}}
    given = options.get(rule, {"samples": 5, "sigma": 0.2, "noise": "absolute"})
    found = exact(xaicompile.compile(model, rule, parameters=given), {"x": x, "z": z, "target": np.array([1])})
    grad = lambda x, z: (z * w[:4] + w[4:], x * w[:4])  # noqa: E731
    if rule == "integrated-gradients":
        parts = [[v * g for g in grad(t * x, t * z)] for t, v in points("trapezoid", 3)]
        expected = [s * sum(g) for s, g in zip((x, z), zip(*parts, strict=True), strict=True)]
    elif rule == "taylor":
        expected = [(s - 0.5) * g for s, g in zip((x, z), grad(0 * x + 0.5, 0 * z + 0.5), strict=True)]
    else:
        rng = np.random.default_rng(0)
        n, m = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
        each = [grad(x + 0.2 * a, z + 0.2 * b) for a, b in zip(n, m, strict=True)]
        expected = [AVERAGES[rule](np.stack(g)) for g in zip(*each, strict=True)]
    close(found["relevance_x"], expected[0])
    close(found["relevance_z"], expected[1] + 0 * z, 1e-9)


def test_token_ids_start_at_their_embeddings() -> None:
    table, w, ids = weight(9, 4, dtype=F64), weight(4, 2, dtype=F64), np.array([[1, 5, 5], [0, 8, 2]])
    body = "e = Gather(table, input_ids) a = Tanh(e) s = ReduceSum<keepdims = 0>(a, axes) y = MatMul(s, w)"
    model = net("(int64[N,3] input_ids) => (double[N,2] y)", body, table=table, w=w, axes=np.array([1]))
    made = xaicompile.compile(model, "integrated-gradients", parameters={"quadrature": "gauss-legendre"})
    found = exact(made, {"input_ids": ids, "target": np.array([1])})["relevance"]
    assert np.abs(found - np.tanh(table[ids]) @ w[:, 1]).max() <= 1e-8  # a sum of functions of one token each
    window = xaicompile.compile(model, "occlusion", parameters={"window": 1, "stride": 1})
    lost = exact(window, {"input_ids": ids, "target": np.array([1])})["relevance"]
    assert lost.shape == ids.shape


def test_sizes_that_are_not_known() -> None:
    """No numbers are drawn for a path, so height and width may stay open."""
    body = "c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) g = GlobalAveragePool(r) y = Flatten(g)"
    model = net("(float[N,2,H,W] x) => (float[N,3] y)", body, w=weight(3, 2, 3, 3))
    for rule in ("integrated-gradients", "taylor"):
        made = xaicompile.compile(model, rule)
        for size in ((5, 7), (8, 4)):
            x, target = data(2, 2, *size), np.array([1])
            fixed = net(f"(float[2,2,{size[0]},{size[1]}] x) => (float[2,3] y)", body, w=weight(3, 2, 3, 3))
            found = run(made, {"x": x, "target": target})["relevance"]
            expected = run(xaicompile.compile(fixed, rule), {"x": x, "target": target})["relevance"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    for rule in ("smoothgrad", "occlusion", "random"):
        with pytest.raises(RuleError, match="sizes"):
            xaicompile.compile(model, rule)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "vargrad", "taylor", "occlusion", "random"])
def test_half_precision(rule: str) -> None:
    signature, body = "(float16[N,4] x) => (float16[N,3] y)", "z = Gemm(x, w1, b1) a = Tanh(z) y = Gemm(a, w2, b2)"
    half = {k: v.astype(np.float16) for k, v in {"w1": W1, "w2": W2, "b1": B1, "b2": B2}.items()}
    made = xaicompile.compile(net(signature, body, **half), rule)
    found = run(made, {"x": X.astype(np.float16), "target": TARGET})["relevance"]
    assert found.dtype == np.float16
    full = net(signature.replace("16", ""), body, **{k: v.astype(np.float32) for k, v in half.items()})
    expected = run(xaicompile.compile(full, rule), {"x": X.astype(np.float16).astype(np.float32), "target": TARGET})[
        "relevance"
    ]
    close(found.astype(np.float32), expected, 2e-2)


def test_steps_do_not_grow_the_file() -> None:
    """But for the numbers of each step: a point and a weight."""
    sizes = [xaicompile.compile(cnn(), "integrated-gradients", parameters={"steps": n}).ByteSize() for n in (32, 512)]
    assert sizes[1] - cnn().ByteSize() < 1e6
    assert 0 <= sizes[1] - sizes[0] - 480 * 2 * 4 < 200


# --- models with subgraphs, quantised ones, trees ---------------------------------------------------------------------

LSTM = (
    "(float[5,N,3] x) => (float[N,2] y)",
    "s, h, c = LSTM<hidden_size = 4>(x, w, r) q = Squeeze(h, zero) y = MatMul(q, v)",
)


def test_a_recurrent_layer_in_each_step() -> None:
    model = net(*LSTM, w=weight(1, 16, 3), r=weight(1, 16, 4), v=weight(4, 2), zero=np.array([0]))
    x = data(5, 2, 3)
    feed = {"x": x, "target": np.array([1])}
    steps = {"steps": 16, "quadrature": "gauss-legendre"}
    found = run(xaicompile.compile(model, "integrated-gradients", parameters=steps), feed)
    lost = run(model, {"x": x})["y"] - run(model, {"x": 0 * x})["y"]
    np.testing.assert_allclose(found["relevance"].sum((0, 2)), lost[:, 1], rtol=1e-4)  # axis 0 is time


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_subgraphs_in_each_step(op: str) -> None:
    """A branch and a loop that hold products: f(x) = (x * x) w, whose gradient is 2 x w."""
    w = weight(4, 2)
    square = helper.make_node("Mul", ["x", "x"], ["q"])
    if op == "If":
        out = helper.make_tensor_value_info("q", 1, ["N", 4])
        other = helper.make_node("Mul", ["x", "x"], ["q2"])
        bodies = {
            "then_branch": helper.make_graph([square], "a", [], [out]),
            "else_branch": helper.make_graph([other], "b", [], [helper.make_tensor_value_info("q2", 1, ["N", 4])]),
        }
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "o"], ["on"]),
            helper.make_node("If", ["on"], ["t"], **bodies),
        ]
        weights = {"w": w, "o": np.float32(0)}
    else:
        scalar = [helper.make_tensor_value_info(n, k, []) for n, k in (("i", 7), ("c", 9), ("c2", 9))]
        state = [helper.make_tensor_value_info(n, 1, ["N", 4]) for n in ("a", "a2")]
        inside = [helper.make_node("Identity", ["c"], ["c2"]), square, helper.make_node("Add", ["a", "q"], ["a2"])]
        body = helper.make_graph(inside, "body", [*scalar[:2], state[0]], [scalar[2], state[1]])
        nodes = [helper.make_node("Mul", ["x", "o"], ["z"]), helper.make_node("Loop", ["m", "", "z"], ["t"], body=body)]
        weights = {"w": w, "o": np.float32(0), "m": np.array(1)}
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["t", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = X.astype(np.float32)
    feed = {"x": x, "target": np.array([1])}
    found = run(xaicompile.compile(model, "integrated-gradients"), feed)["relevance"]
    close(found, x * x * w[:, 1], 1e-5)
    moved = [x + 0.1 * np.ptp(x, axis=1, keepdims=True) * n for n in np.random.default_rng(0).standard_normal((25, 4))]
    found = run(xaicompile.compile(model, "smoothgrad"), feed)["relevance"]
    close(found, (2 * np.mean(moved, 0) * w[:, 1]).astype(np.float32), 1e-5)
    lost = run(xaicompile.compile(model, "occlusion", parameters={"window": 1, "stride": 1}), feed)["relevance"]
    close(lost, x * x * w[:, 1], 1e-5)


BAD = {
    "steps must be whole": ("integrated-gradients", {"steps": 2.5}, "whole number"),
    "steps at least 1": ("integrated-gradients", {"steps": 0}, "whole number"),
    "quadrature": ("integrated-gradients", {"quadrature": "simpson"}, "quadrature"),
    "one trapezoid": ("integrated-gradients", {"quadrature": "trapezoid", "steps": 1}, "quadrature"),
    "no file": ("integrated-gradients", {"baseline": "none.npy"}, "file"),
    "samples": ("smoothgrad", {"samples": 0}, "whole number"),
    "sigma": ("smoothgrad", {"sigma": -1}, "negative"),
    "noise": ("smoothgrad", {"noise": "pink"}, "noise"),
    "window": ("occlusion", {"window": 0}, "whole number"),
    "stride": ("occlusion", {"stride": 0}, "whole number"),
    "no background": ("shap-gradient", {}, "background"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_refused_in_one_line(case: str) -> None:
    rule, given, said = BAD[case]
    with pytest.raises(RuleError, match=said) as caught:
        xaicompile.compile(cnn(), rule, parameters=given)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", data(5, 7))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name, key, rule in (
        ("odd", "baseline", "integrated-gradients"),
        ("odd", "root", "taylor"),
        ("odd", "background", "shap-gradient"),
        ("words", "baseline", "integrated-gradients"),
    ):
        with pytest.raises(XaiCompileError, match=key) as caught:
            xaicompile.compile(cnn(), rule, parameters={key: str(tmp_path / f"{name}.npy")})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["integrated-gradients", "smoothgrad", "occlusion", "random"])
def test_what_a_method_does_not_give_is_refused(rule: str) -> None:
    for options in ({"ledger": True}, {"layers": ["a1"]}, {"concepts": ["a1"]}):
        with pytest.raises(RuleError) as caught:
            xaicompile.compile(cnn(), rule, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(RuleError, match="--smooth N"):
        xaicompile.compile(cnn(), "gradient", sigma=0.1)


QDQ = """q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero)
    e = DequantizeLinear(w, scale, zero) y = MatMul(d, e)"""


def test_a_quantised_model_is_refused_in_one_line() -> None:
    arrays = {"scale": number(0.25), "zero": number(0, np.int8), "w": whole(4, 3, dtype=np.int8)}
    model = quantised("(float[N,4] x) => (float[N,3] y)", QDQ, **arrays)
    for rule in ("integrated-gradients", "smoothgrad", "occlusion", "taylor"):
        with pytest.raises(UnsupportedError, match="is quantised and can't be run once more") as caught:
            xaicompile.compile(model, rule)
        assert "\n" not in str(caught.value)


def test_a_classical_model_in_each_step() -> None:
    w = weight(3, 4)
    node = helper.make_node(
        "LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=w.ravel().tolist(), targets=3
    )
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 3])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model, x = helper.make_model(graph, opset_imports=opsets, ir_version=8), X.astype(np.float32)
    for rule, given in (("integrated-gradients", {}), ("occlusion", {"window": 1, "stride": 1})):
        made = xaicompile.compile(model, rule, parameters=given)
        found = run(made, {"x": x, "target": TARGET})["relevance"]
        close(found, x * w[TARGET], 1e-5)
