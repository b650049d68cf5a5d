"""Ops that compute with integers, one by one: between whole numbers each is explained as the float op."""

from __future__ import annotations

import numpy as np
import pytest

import xaicompile
from tests.graphs import data, net, run
from tests.quantised import NUMBERS, SEVEN, number, quantised, used, whole
from xaicompile.compiler import compile_model

FLOAT = 2e-5  # float32


OPS = {
    "QLinearMul": ("Mul(x, v)", "com.microsoft.QLinearMul(q, one, z7, vq, one, z7, one, z7)", (2, 3)),
    "QLinearAdd": ("Add(x, v)", "com.microsoft.QLinearAdd(q, one, z7, vq, one, z7, one, z7)", (2, 3)),
    "QLinearConcat": ("Concat<axis=1>(x, v)", "com.microsoft.QLinearConcat<axis=1>(one, z7, q, one, z7, vq, one, z7)",
                      (2, 3)),
    "QLinearLeakyRelu": ("LeakyRelu<alpha=0.5>(x)", "com.microsoft.QLinearLeakyRelu<alpha=0.5>(q, one, z7, half, z7)",
                         (2, 3)),
    "QLinearWhere": ("Where(t, x, v)", "com.microsoft.QLinearWhere(t, q, one, z7, vq, one, z7, one, z7)", (2, 3)),
    "QGemm": ("Gemm<transB=1>(x, w, b)", "com.microsoft.QGemm<transB=1>(q, one, z7, wq, ones, z8s, bq, one, z7)",
              (2, 3)),
    "QGemm in float": ("Gemm(x, wt, b)", "com.microsoft.QGemm(q, one, z7, wtq, one, z8, bq)", (2, 3)),
    "QLinearAveragePool": ("AveragePool<kernel_shape=[2,2]>(x)",
                           "com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(q, one, z7, quarter, z7)",
                           (1, 2, 3, 3)),
    "channels last": ("Conv(x, w4)",
                      "com.microsoft.QLinearConv<channels_last=1>(qt, one, z7, w4q, ones4, z8s4, one, z7)",
                      (1, 2, 3, 3)),
    "MatMulIntegerToFloat": ("MatMul(x, wt)", "com.microsoft.MatMulIntegerToFloat(q, wtq, one, one, z7, z8)", (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_ops_of_the_runtime_are_explained_as_the_float_op(name: str) -> None:
    written, op, shape = OPS[name]
    x, v = whole(*shape, seed=7, low=-4, high=5), whole(*shape, seed=8, low=1, high=4)
    w, w4 = whole(4, 3, seed=9), whole(3, 2, 2, 2, seed=10)
    floats = {"v": v, "w": w, "wt": w.T.copy(), "b": whole(4, seed=11), "w4": w4, "axes": np.array([1])}
    floats["t"] = whole(2, 3, seed=12, low=0, high=2).astype(bool)
    arrays = {
        **NUMBERS,
        "half": number(0.5),
        "t": floats["t"],
        "wq": w.astype(np.int8),
        "bq": floats["b"].astype(np.int32),
    }
    arrays |= {"wtq": w.T.copy().astype(np.int8), "w4q": w4.astype(np.int8), "vq": (v + 100).astype(np.uint8)}
    arrays |= {"ones": np.ones(4, np.float32), "z8s": np.zeros(4, np.int8), "ones4": np.ones(3, np.float32)}
    arrays |= {"z8s4": np.zeros(3, np.int8)}
    last = " qt = Transpose<perm=[0,2,3,1]>(q)\n" if name == "channels last" else ""
    scale = next((s for s in ("quarter", "half") if f"{s}, z7)" in op), "one")
    end = f"y = DequantizeLinear(r, {scale}, z7)"
    if name == "channels last":
        end = f"rt = Transpose<perm=[0,3,1,2]>(r)\n{end.replace('(r,', '(rt,')}"
    if name in ("QGemm in float", "MatMulIntegerToFloat"):
        end = "y = Identity(r)"
    body = f"q = QuantizeLinear(x, one, z7)\n{last} r = {op}\n{end}"
    dims = ",".join(str(d) for d in shape)
    signature = f"(float[{dims}] x) => (float[{','.join('abcd'[: len(shape)])}] y)"
    plain = net(signature, f"y = {written}", **used(written, **floats))
    model = quantised(signature, body, **used(body, **arrays))
    for rule in ("gradient", "lrp-gamma"):
        results = []
        for m in (plain, model):
            emitted = xaicompile.compile(m, rule, explain_output="y", explain_reduce="sum", explain_input="x")
            results.append(run(emitted, {"x": x}))
        expected, found = results
        np.testing.assert_array_equal(found["y"], expected["y"])
        assert np.abs(expected["relevance"]).max() > 0
        np.testing.assert_allclose(found["relevance"], expected["relevance"], rtol=FLOAT, atol=FLOAT)


def test_a_softmax_and_a_sigmoid_in_integers_are_cut() -> None:
    """What is explained are the scores before them, as for their float forms."""
    for op in ("QLinearSoftmax<axis=1, opset=13>", "QLinearSigmoid"):
        body = f"q = QuantizeLinear(x, quarter, z7)\nr = com.microsoft.{op}(q, quarter, z7, small, z0)\n"
        body += "y = DequantizeLinear(r, small, z0)"
        arrays = {**NUMBERS, "small": number(1 / 256)}
        model = quantised("(float[N,4] x) => (float[N,4] y)", body, **used(body, **arrays))
        compiled = compile_model(model, "gradient", target=2)
        x = data(3, 4)
        found = run(compiled.model, {"x": x})
        np.testing.assert_array_equal(found["relevance"], np.eye(4, dtype=np.float32)[[2, 2, 2]])
        assert compiled.cut[1].startswith(("Softmax", "Sigmoid"))


def test_an_embedding_in_integers_is_explained_at_the_ids() -> None:
    table = whole(9, 4, seed=1, dtype=np.uint8, low=90, high=111)
    body = "e = Gather(table, ids)\nd = DequantizeLinear(e, s, z7)\nr = Relu(d)\np = ReduceSum<keepdims=0>(r, ax)\n"
    body += "y = MatMul(p, w)"
    arrays = {"s": number(0.5), "z7": SEVEN, "ax": np.array([1]), "w": data(4, 2)}
    signature = "(int64[N,T] ids) => (float[N,2] y)"
    model = quantised(signature, body, table=table, **arrays)
    plain = net(signature, body.replace("d = DequantizeLinear(e, s, z7)\n", "").replace("(d)", "(e)"),
                table=(table.astype(np.float32) - 100) / 2, ax=arrays["ax"], w=arrays["w"])  # fmt: skip
    feed = {"ids": np.array([[1, 4, 8], [0, 0, 3]])}
    expected, found = (run(xaicompile.compile(m, "lrp-0", target=1), feed) for m in (plain, model))
    np.testing.assert_allclose(found["relevance"], expected["relevance"], rtol=1e-5, atol=1e-6)


def test_integer_arithmetic_that_stops_relevance_is_said() -> None:
    body = "q = QuantizeLinear(x, one, z7)\na = BitwiseXor(q, z7)\nm = Mod(q, z7)\nb = Cast<to=1>(m)\n"
    body += "d = DequantizeLinear(q, one, z7)\ny = Add(d, b)"
    model = quantised("(float[N,4] x) => (float[N,4] y)", body, **used(body, **NUMBERS))
    compiled = compile_model(model, "gradient", target=0)
    assert any("Mod" in note and "nothing passes back" in note for note in compiled.notes)
