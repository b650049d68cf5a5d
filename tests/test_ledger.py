"""The ledger closes for every rule on a net of many kinds of ops, and models keep their floating-point type."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import xaicompile
from tests.cases import Case
from tests.cases.build import build, explained_inputs
from tests.cases.table import CASES
from tests.graphs import Arrays, data, exact, net, run, weight
from tests.nets import cnn
from xaicompile import composite
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LRP = ["lrp-0", "lrp-epsilon", "lrp-gamma", "z-box", "w-square", "flat"]
BOX = {"low": -4.0, "high": 4.0}
SETS = {name: rules for name in composite.shipped() if not (rules := composite.load(name)).neuralize}
BOOKED = [name for name, rules in SETS.items() if rules.output == "relevance" and not rules.method]
X = data(3, 3, 12, 12)


def mixed(dtype: type = np.float64, bias: float = 0.3) -> onnx.ModelProto:
    """BatchNorm after and before Conv, residual, squeeze-and-excite, HardSwish, Clip, pools, concat, split, Gemm."""
    kind = {np.float64: "double", np.float32: "float", np.float16: "float16"}[dtype]

    def param(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
        return (weight(*shape, seed=seed, dtype=np.float64) * scale).astype(dtype)

    norm = {}
    for i in range(2):
        norm |= {f"g{i}": 1 + param(6, seed=1, scale=0.2), f"t{i}": param(6, seed=2, scale=bias)}
        norm |= {f"m{i}": param(6, seed=3, scale=0.2), f"v{i}": 1 + np.abs(param(6, seed=4, scale=0.3))}
    return net(
        f"({kind}[N,3,12,12] x) => ({kind}[N,5] y)",
        """
        c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
        n1 = BatchNormalization(c1, g0, t0, m0, v0)
        h1 = HardSwish(n1)
        c2 = Conv<pads=[1,1,1,1], group=2>(h1, w2)
        r2 = Add(c2, h1)
        n2 = BatchNormalization(r2, g1, t1, m1, v1)
        a2 = Relu(n2)
        q = GlobalAveragePool(a2)
        q1 = Conv(q, w3, b3)
        q2 = Relu(q1)
        q3 = Conv(q2, w4, b4)
        gate = Sigmoid(q3)
        e = Mul(gate, a2)
        c3 = Conv<strides=[2,2], pads=[1,1,1,1]>(e, w5, b5)
        k = Clip(c3, zero, six)
        p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(k)
        p2 = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(k)
        j = Concat<axis=1>(p1, p2)
        s1, s2 = Split<axis=1>(j, parts)
        t = Add(s1, s2)
        u = Sub(t, shift)
        o = GlobalAveragePool(u)
        f = Flatten(o)
        d1 = Gemm<transB=1>(f, w6, b6)
        d2 = Tanh(d1)
        d3 = MatMul(d2, w7)
        y = Add(d3, b7)
        """,
        w1=param(6, 3, 3, 3), b1=param(6, scale=bias), w2=param(6, 3, 3, 3), w3=param(4, 6, 1, 1),
        b3=param(4, scale=bias), w4=param(6, 4, 1, 1), b4=param(6, scale=bias), w5=param(8, 6, 3, 3),
        b5=param(8, scale=bias),
        w6=param(7, 8), b6=param(7, scale=bias), w7=param(7, 5), b7=param(5, scale=bias), shift=param(1, scale=bias),
        zero=np.asarray(0, dtype), six=np.asarray(0.7, dtype), parts=np.asarray([8, 8]), **norm,
    )  # fmt: skip


def close(out: Arrays, tolerance: float) -> None:
    """sum(R) + ledger == explained, the ledger being the sum of its nodes."""
    total = out["relevance"].reshape(len(out["explained"]), -1).sum(1, dtype=np.float64)
    sizes = np.abs([out["explained"], out["ledger"], *out["ledger_by_node"].T]).max(0)
    np.testing.assert_array_less(np.abs(total + out["ledger"] - out["explained"]), tolerance * sizes)
    np.testing.assert_allclose(out["ledger_by_node"].sum(1), out["ledger"], rtol=1e-6, atol=1e-6 * sizes.max())


def parameters(rule: str, **more: object) -> dict[str, object]:
    return {**(BOX if rule == "z-box" else {}), **more}


@pytest.mark.parametrize("rule", [*LRP, "gradient-x-input", "guided-backprop-x-input"])
def test_the_ledger_closes_in_float64(rule: str) -> None:
    made = xaicompile.compile(mixed(), rule, parameters=parameters(rule), ledger=True)
    out = exact(made, {"x": data(3, 3, 12, 12, dtype=np.float64), "target": np.asarray([0, 3, -1])})
    close(out, 1e-12)
    assert np.abs(out["ledger"]).min() > 1e-3


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2, 1.0])
def test_the_ledger_closes_for_any_stabiliser(epsilon: float) -> None:
    made = xaicompile.compile(mixed(), "lrp-gamma", parameters={"epsilon": epsilon}, ledger=True)
    close(exact(made, {"x": data(2, 3, 12, 12, dtype=np.float64)}), 1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 10.0])
def test_the_ledger_closes_for_any_gamma(gamma: float) -> None:
    made = xaicompile.compile(mixed(), "lrp-gamma", parameters={"gamma": gamma}, ledger=True)
    close(exact(made, {"x": data(2, 3, 12, 12, dtype=np.float64)}), 1e-12)


@pytest.mark.parametrize("rule", LRP)
def test_the_ledger_closes_in_the_runtime(rule: str) -> None:
    made = xaicompile.compile(mixed(np.float32), rule, parameters=parameters(rule), ledger=True)
    close(run(made, {"x": X}), 1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_the_ledger_closes_for_reduced_outputs(reduce: str) -> None:
    made = xaicompile.compile(mixed(), "lrp-gamma", explain_reduce=reduce, ledger=True)
    close(exact(made, {"x": data(2, 3, 12, 12, dtype=np.float64)}), 1e-12)


def test_nothing_is_absorbed_without_biases() -> None:
    """A piecewise-linear net without biases under LRP-0 keeps all relevance."""
    model = net(
        "(double[N,3,8,8] x) => (double[N,5] y)",
        "c = Conv<pads=[1,1,1,1]>(x, w)\nr = Relu(c)\nd = Conv<pads=[1,1,1,1]>(r, v)\ns = Add(d, r)\na = Relu(s)\n"
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)\ng = GlobalAveragePool(p)\nf = Flatten(g)\ny = MatMul(f, u)",
        w=weight(4, 3, 3, 3, dtype=np.float64),
        v=weight(4, 4, 3, 3, dtype=np.float64),
        u=weight(4, 5, dtype=np.float64),
    )
    out = exact(xaicompile.compile(model, "lrp-0", ledger=True), {"x": data(2, 3, 8, 8, dtype=np.float64)})
    np.testing.assert_allclose(out["relevance"].sum((1, 2, 3)), out["explained"], rtol=1e-12)
    np.testing.assert_allclose(out["ledger"], 0, atol=1e-14)


def test_lrp_zero_is_gradient_times_input_where_all_is_piecewise_linear() -> None:
    feed = {"x": X}
    zero, product = (run(xaicompile.compile(cnn(), rule), feed)["relevance"] for rule in ("lrp-0", "gradient-x-input"))
    np.testing.assert_allclose(zero, product, atol=1e-6 * np.abs(product).max())


@pytest.mark.parametrize("rule", BOOKED)
def test_keeping_a_ledger_leaves_the_prediction_as_it_is(rule: str) -> None:
    """Bit for bit: no rule's ledger reads what the runtime computes inside Conv + Add + Relu."""
    feed = {"x": data(2, 3, 12, 12)}
    given = BOX if rule in ("z-box", "epsilon-gamma-box") else None
    made = run(xaicompile.compile(cnn(), rule, parameters=given, ledger=True), feed)
    assert np.array_equal(made["logits"], run(cnn(), feed)["logits"])


@pytest.mark.parametrize("rule", ["gradient", "guided-backprop", "deconvnet"])
def test_batches_do_not_mix(rule: str) -> None:
    made = xaicompile.compile(mixed(np.float32), rule)
    together = run(made, {"x": X})["relevance"]
    for i in range(len(X)):
        alone = run(made, {"x": X[i : i + 1]})["relevance"][0]
        np.testing.assert_allclose(alone, together[i], atol=1e-5 * np.abs(together[i]).max())


@pytest.mark.parametrize("rule", ["z-box", "w-square", "flat"])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.op in LINEAR and len(explained_inputs(c)) == 1], ids=lambda case: case.id
)
def test_rules_without_a_cotangent_close_on_every_linear_op(case: Case, rule: str) -> None:
    """Also where axis 0 of the data is no batch: vectors, transposed matrices, data on the right."""
    model, feed = build(case, "float64")
    options = {"explain_output": "s", "explain_input": explained_inputs(case), "ledger": True}
    made = xaicompile.compile(model, rule, parameters=parameters(rule), **options)
    out = exact(made, feed)
    assert out["relevance"].shape == feed[explained_inputs(case)[0]].shape
    close({**out, "relevance": out["relevance"][None]}, 1e-9)
    assert np.abs(out["relevance"]).max() > 1e-3


def test_there_is_no_ledger_of_a_gradient() -> None:
    with pytest.raises(RuleError, match="gives no relevance"):
        compile_model(cnn(), "gradient", ledger=True)


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gradient", *LRP])
def test_float16_models_stay_float16(rule: str) -> None:
    made = xaicompile.compile(mixed(np.float16), rule, parameters=parameters(rule), ledger=rule in LRP)
    kinds = {o.type.tensor_type.elem_type for o in made.graph.output}
    assert kinds == {onnx.TensorProto.FLOAT16}
    target = np.asarray([1, 2, 3])
    got = run(made, {"x": X.astype(np.float16), "target": target})["relevance"].astype(np.float64)
    want = exact(
        xaicompile.compile(mixed(), rule, parameters=parameters(rule)), {"x": X.astype(np.float64), "target": target}
    )["relevance"]
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@pytest.mark.parametrize("rule", ["gradient", *LRP])
def test_float32_agrees_with_float64(rule: str) -> None:
    target = np.asarray([1, 2, 3])
    got, want = (
        runner(
            xaicompile.compile(mixed(dtype), rule, parameters=parameters(rule)),
            {"x": X.astype(dtype), "target": target},
        )["relevance"]
        for runner, dtype in ((run, np.float32), (exact, np.float64))
    )
    assert want.dtype == np.float64
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
