"""Second-order deep Taylor from product units: the Hessian of LRP-0, loops over neurons for LRP-gamma, sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, run, weight
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

F64 = np.float64
HELD = {
    "w1": weight(6, 8, dtype=F64),
    "w2": weight(8, 5, seed=1, dtype=F64),
    "w3": weight(6, 5, seed=2, dtype=F64),
    "w4": weight(6, 1, seed=4, dtype=F64),
    "w5": weight(5, 5, seed=5, dtype=F64),
    "out": weight(5, 3, seed=3, dtype=F64),
    "pairs": weight(4, 3, seed=6, dtype=F64),
    "rows": np.array([0, 2, 3]),
    "columns": np.array([0, 3, 2]),
    "flat": np.array([0, -1]),
}
SIDES = """
    z = MatMul(x, w1)
    r = Relu(z)
    a = MatMul(r, w2)
    q = MatMul(x, w3)
    b = Relu(q)
"""
NETS = {
    "features": f"{SIDES} p = Mul(a, b) \n y = MatMul(p, out)",
    "features with biases": f"{SIDES} c = Add(a, bias) \n p = Mul(c, b) \n y = MatMul(p, out)",
    "one factor for all": f"{SIDES} s = MatMul(x, w4) \n p = Mul(s, a) \n y = MatMul(p, out)",
    "one factor for all, second": f"{SIDES} s = MatMul(x, w4) \n p = Mul(a, s) \n y = MatMul(p, out)",
    "squares": f"{SIDES} p = Mul(a, a) \n y = MatMul(p, out)",
    "of the input": "p = Mul(x, x) \n q = MatMul(p, w3) \n y = MatMul(q, out)",
    "two products": f"{SIDES} p = Mul(a, b) \n s = Mul(b, b) \n d = Sub(p, s) \n y = MatMul(d, out)",
    "layers above": f"{SIDES} p = Mul(a, b) \n e = MatMul(p, w5) \n f = Relu(e) \n y = MatMul(f, out)",
    "matrices": """
        t = Reshape(x, rows2)
        q = MatMul(t, left)
        k = MatMul(t, right)
        kt = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, kt)
        f = Reshape(s, flat)
        y = MatMul(f, pairs)
    """,
    "einsum": """
        t = Reshape(x, rows2)
        q = MatMul(t, left)
        k = MatMul(t, right)
        s = Einsum<equation="nif,njf->nij">(q, k)
        f = Reshape(s, flat)
        y = MatMul(f, pairs)
    """,
}
GELU = "d = Div(x, root2) \n e = Erf(d) \n f = Add(e, unit) \n h = Mul(f, half) \n p = Mul(x, h)"
NUMBERS = {"root2": np.sqrt(2.0), "unit": 1.0, "half": 0.5}
X = data(2, 6, dtype=F64)
TARGET = 1


def network(name: str, **more: np.ndarray) -> onnx.ModelProto:
    """Six features to three classes, in float64."""
    held = HELD | {
        "rows2": np.array([0, 2, 3]),
        "left": weight(3, 4, dtype=F64),
        "right": weight(3, 4, seed=1, dtype=F64),
    }
    held |= {"bias": data(5, dtype=F64)} | more
    words = set(NETS[name].replace("(", " ").replace(")", " ").replace(",", " ").split())
    return net("(double[N,6] x) => (double[N,3] y)", NETS[name], **{k: v for k, v in held.items() if k in words})


def explained(model: onnx.ModelProto, x: np.ndarray = X, inner: str = "lrp-0", **options: Any) -> Arrays:
    options = {"parameters": {"pool": 1}, "target": TARGET, **options}
    return exact(compile_model(model, "second-order-lrp", inner=inner, **options).model, {"x": x})


@pytest.mark.parametrize("name", list(NETS))
def test_lrp_0_is_half_the_hessian_times_both_inputs(name: str) -> None:
    """With ReLUs the layers between products are linear near x, and all curvature comes from the products."""
    model = network(name)
    found = explained(model)["interaction"]
    hessian = exact(compile_model(model, "hessian-x-input", target=TARGET).model, {"x": X})["interaction"]
    assert np.abs(hessian).max() > 1e-2
    np.testing.assert_allclose(found, hessian, rtol=0, atol=1e-12 * np.abs(hessian).max())


@pytest.mark.parametrize("name", [n for n in NETS if "bias" not in n])
def test_rows_sum_to_the_relevance_of_the_rules_and_all_to_the_output(name: str) -> None:
    found = explained(network(name))
    np.testing.assert_allclose(found["interaction"].sum(2), found["relevance"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found["interaction"].sum((1, 2)), found["y"][:, TARGET], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(found["interaction"], found["interaction"].transpose(0, 2, 1))


def gamma_of_a_layer(x: np.ndarray, w: np.ndarray, relevance: np.ndarray, gamma: float) -> np.ndarray:
    """Generalised LRP-gamma of z = x W, neuron by neuron: shares of the sign of z count 1 + gamma times."""
    found = np.zeros(len(x))
    for k in range(w.shape[1]):
        shares = x * w[:, k]
        sign = np.sign(shares.sum())
        boosted = shares + gamma * np.where(np.sign(shares) == sign, shares, 0)
        found += boosted / boosted.sum() * relevance[k]
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_lrp_gamma_shares_what_arrives_at_a_product_among_the_pairs_below_it(tmp_path: Any, gamma: float) -> None:
    rules = tmp_path / "inner.toml"
    rules.write_text(
        f'name = "inner"\n[[rules]]\nmatch = {{ kind = "linear" }}\nrule = "gamma"\ngamma = {gamma}\n'
        '[[rules]]\nrule = "default"\n'
    )
    found = explained(network("features"), inner=rules)["interaction"]
    for n, x in enumerate(X):
        z = x @ HELD["w1"]
        r = np.maximum(z, 0)
        a, b = r @ HELD["w2"], np.maximum(x @ HELD["w3"], 0)
        arrives = gamma_of_a_layer(a * b, HELD["out"], np.eye(3)[TARGET] * ((a * b) @ HELD["out"]), gamma)
        expected = np.zeros((6, 6))
        for m in np.flatnonzero(arrives):
            one = np.zeros(5)
            one[m] = 1  # shares of 1 at either factor
            first = gamma_of_a_layer(x, HELD["w1"], gamma_of_a_layer(r, HELD["w2"], one, gamma), gamma)
            second = gamma_of_a_layer(x, HELD["w3"], one, gamma)
            expected += arrives[m] * np.outer(first, second)
        expected = (expected + expected.T) / 2
        np.testing.assert_allclose(found[n], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_pairs_of_squares_of_pixels() -> None:
    model = net(
        "(float[N,2,6,6] x) => (float[N,4] y)",
        """
        z = Conv<pads=[1,1,1,1]>(x, w)
        a = Relu(z)
        g = Conv<pads=[1,1,1,1]>(x, v)
        b = Relu(g)
        p = Mul(a, b)
        y = ReduceMean<keepdims=0>(p, spatial)
        """,
        w=weight(4, 2, 3, 3),
        v=weight(4, 2, 3, 3, seed=1),
        spatial=np.array([2, 3]),
    )
    x = data(2, 2, 6, 6)
    found = run(compile_model(model, "second-order-lrp", inner="lrp-0", pool=3, target=2).model, {"x": x})
    whole = run(compile_model(model, "hessian-x-input", parameters={"group": 3}, target=2).model, {"x": x})
    assert found["interaction"].shape == (2, 4, 4)
    np.testing.assert_allclose(found["interaction"], whole["interaction"], rtol=0, atol=1e-6)
    default = run(compile_model(model, "second-order-lrp", pool=3, target=2).model, {"x": x})
    np.testing.assert_allclose(default["interaction"].sum((1, 2)), default["y"][:, 2], rtol=1e-4)


def test_products_below_others_are_explained_by_the_rules_and_all_rules_are_listed() -> None:
    text = f"{SIDES} p = Mul(a, b) \n d = Mul(p, b) \n y = MatMul(d, out)"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = net("(double[N,6] x) => (double[N,3] y)", text, **{k: v for k, v in HELD.items() if k in words})
    made = compile_model(model, "second-order-lrp", target=0)
    (units,) = (note for note in made.notes if note.startswith("product units"))
    assert units.count("Mul") == 2 and "Mul_6" in units, "one unit, its op and its name"
    assert [a.op for a in made.assignments].count("MatMul") == 4 and len(made.assignments) == 8


def test_what_passes_round_products_has_no_pairs() -> None:
    """A product behind another, and reached around it too, starts with what arrives around it alone."""
    text = f"{SIDES} p = Mul(a, b) \n d = Mul(p, b) \n s = Add(d, p) \n f = Add(s, q) \n y = MatMul(f, out)"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = net("(double[N,6] x) => (double[N,3] y)", text, **{k: v for k, v in HELD.items() if k in words})
    found = explained(model)
    r, b = np.maximum(X @ HELD["w1"], 0), np.maximum(X @ HELD["w3"], 0)
    p = (r @ HELD["w2"]) * b
    np.testing.assert_allclose(
        found["interaction"].sum((1, 2)), (p * b + p) @ HELD["out"][:, TARGET], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "y = MatMul(x, w3)",
            {},
            "starts at products of two things that depend on x: float64.N,6., and there are none",
        ),
        ("h = MatMul(x, w6) \n g = Sigmoid(h) \n p = Mul(g, x) \n y = MatMul(p, w3)", {}, "there are none"),
        (f"{GELU} \n y = MatMul(p, w3)", {}, "there are none"),
        ("p = Mul(x, x) \n y = MatMul(p, w3)", {"chunk": 2}, "one by one"),
        ("p = Mul(x, x) \n y = MatMul(p, w3)", {"project": 4}, "unknown parameter"),
        ("p = Mul(x, x) \n y = MatMul(p, w3)", {"ledger": True}, "--ledger"),
    ],
)
def test_what_it_can_not_do_is_said_in_one_line(text: str, options: dict[str, Any], message: str) -> None:
    held = {"w3": HELD["w3"], "w6": weight(6, 6, dtype=F64)} | {k: np.array(v) for k, v in NUMBERS.items()}
    model = net("(double[N,6] x) => (double[N,5] y)", text, **{k: v for k, v in held.items() if k in text})
    with pytest.raises(RuleError, match=message) as error:
        compile_model(model, "second-order-lrp", **options)
    assert "\n" not in str(error.value)
