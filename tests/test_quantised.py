"""Integer models are read as the floats that they stand for, with straight-through rounding.

The oracle of most tests is the float model: small whole numbers, and scales that are powers of two, pass through a
quantised model without any rounding, so that both must give the same relevance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import xaicompile
from tests.graphs import data, net, run
from xaicompile.checks import check
from xaicompile.compiler import compile_model
from xaicompile.images import Preprocess, read_photo
from xaicompile.runtime import Session

MODELS = Path(__file__).resolve().parents[1] / "models"
MODEL, PHOTO = MODELS / "efficientnet-lite0.onnx", MODELS / "chelsea.png"
FLOAT = 2e-5  # relative to the largest value, float32

Arrays = dict[str, np.ndarray]


def quantised(signature: str, body: str, opset: int = 18, **arrays: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text that may use the runtime's domain as `com.microsoft.Op`."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{head} net {signature} {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    return model


def whole(*shape: int, seed: int = 0, low: int = -2, high: int = 3, dtype: type = np.float32) -> np.ndarray:
    """Small whole numbers."""
    return np.random.default_rng((seed, *shape)).integers(low, high, shape).astype(dtype)


def number(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


# One rounding


ROUNDINGS = {
    "bytes": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 18,
              {"s": number(0.5), "z": number(7, np.uint8)}, (-3.75, 124.25)),
    "signed": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 18,
               {"s": number(0.25), "z": number(-3, np.int8)}, (-31.375, 32.625)),
    "from zero": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 18,
                  {"s": number(0.5), "z": number(0, np.uint8)}, (0.0, 127.75)),
    "no zero point": ("QuantizeLinear(x, s)", "DequantizeLinear(q, s)", 18, {"s": number(0.5)}, (0.0, 127.75)),
    "per axis": ("QuantizeLinear<axis=0>(x, s, z)", "DequantizeLinear<axis=0>(q, s, z)", 18,
                 {"s": np.array([0.5, 0.25], np.float32), "z": np.array([3, 2], np.int8)},
                 ([[-65.75], [-32.625]], [[62.25], [31.375]])),
    "blocked": ("QuantizeLinear<axis=1, block_size=3>(x, s, z)", "DequantizeLinear<axis=1, block_size=3>(q, s, z)", 21,
                {"s": np.array([[0.5, 1.0], [0.25, 2.0]], np.float32), "z": np.zeros((2, 2), np.int8)},
                (np.repeat([[-64.25, -128.5], [-32.125, -257.0]], 3, 1),
                 np.repeat([[63.75, 127.5], [31.875, 255.0]], 3, 1))),
    "16 bits": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 21,
                {"s": number(0.001), "z": number(0, np.int16)}, (-32.7685, 32.7675)),
    "4 bits": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 21,
               {"s": number(2.0), "z": helper.make_tensor("z", onnx.TensorProto.INT4, [], [1])}, (-19.0, 13.0)),
    "8-bit floats": ("QuantizeLinear(x, s, z)", "DequantizeLinear(q, s, z)", 21,
                     {"s": number(1.0), "z": helper.make_tensor("z", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])},
                     (-np.inf, np.inf)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDINGS)
def test_rounding_is_straight_through_and_clips_outside(name: str) -> None:
    """The gradient of sum(k x^) is k where x is in the range of the integers, 0 elsewhere."""
    quantize, dequantize, opset, arrays, (low, high) = ROUNDINGS[name]
    body = f"q = {quantize}\nd = {dequantize}\ny = Mul(d, k)"
    k = data(2, 6, seed=1)
    plain = {n: a for n, a in arrays.items() if isinstance(a, np.ndarray)}
    model = quantised("(float[2,6] x) => (float[2,6] y)", body, opset, k=k, **plain)
    model.graph.initializer.extend(a for a in arrays.values() if not isinstance(a, np.ndarray))
    x = data(2, 6) * 60
    emitted = xaicompile.compile(model, "gradient", explain_output="y", explain_reduce="sum")
    found = run(emitted, {"x": x})
    inside = (x > low) & (x < high)
    assert name == "8-bit floats" or (inside.any() and not inside.all())
    np.testing.assert_array_equal(found["relevance"], k * inside)
    np.testing.assert_array_equal(found["y"], run(model, {"x": x})["y"])


def test_dynamic_rounding_clips_nothing_and_its_scale_carries_nothing() -> None:
    body = "q, s, z = DynamicQuantizeLinear(x)\nd = DequantizeLinear(q, s, z)\ny = Mul(d, k)"
    k = data(2, 6, seed=1)
    model = quantised("(float[2,6] x) => (float[2,6] y)", body, k=k)
    found = run(xaicompile.compile(model, "gradient", explain_reduce="sum"), {"x": data(2, 6)})
    np.testing.assert_array_equal(found["relevance"], k)


def test_integers_read_with_another_scale() -> None:
    """q is made with one scale and zero point, read with others, moved and cast on the way."""
    body = """
        q = QuantizeLinear(x, s, z)
        t = Transpose<perm=[1,0]>(q)
        p = Pad(t, pads)
        d = DequantizeLinear(p, s2, z2)
        c = Cast<to=1>(t)
        m = Mul(c, k)
        n = ReduceSum<keepdims=0>(m)
        o = ReduceSum<keepdims=0>(d)
        y = Add(n, o)
    """
    arrays = {"s": number(0.5), "z": number(10, np.uint8), "s2": number(2.0), "z2": number(4, np.uint8)}
    model = quantised("(float[2,3] x) => (float y)", body, k=data(3, 2), pads=np.array([1, 0, 0, 0]), **arrays)
    emitted = xaicompile.compile(model, "gradient", explain_output="y", explain_reduce="sum")
    found = run(emitted, {"x": whole(2, 3)})
    np.testing.assert_allclose(found["relevance"], data(3, 2).T / 0.5 + 2.0 / 0.5, rtol=1e-6)
    ledger = run(xaicompile.compile(model, "lrp-0", explain_output="y", ledger=True), {"x": whole(2, 3)})
    np.testing.assert_allclose(ledger["relevance"].sum() + ledger["ledger"], ledger["explained"], rtol=1e-5)


# Whole numbers: the float model is the oracle

W1, W2, WL = whole(4, 2, 3, 3, seed=1, low=-1, high=2), whole(4, 4, 1, 1, seed=2, low=-1, high=2), whole(4, 3, seed=3)
B1 = whole(4, seed=4)
ZERO8, ZERO, SEVEN = number(0, np.int8), number(0, np.uint8), number(100, np.uint8)

FLOAT_CNN = """
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c = Conv(m, w2)
    d = Add(c, m)
    g = GlobalAveragePool(d)
    f = Flatten(g)
    y = MatMul(f, wl)
"""
QOPERATOR = """
    xq = QuantizeLinear(x, one, z7)
    aq = QLinearConv<pads=[1,1,1,1]>(xq, one, z7, w1, one, z8, one, z0, b1)
    mq = MaxPool<kernel_shape=[2,2], strides=[2,2]>(aq)
    cq = QLinearConv(mq, one, z0, w2, one, z8, one, z7)
    dq = com.microsoft.QLinearAdd(cq, one, z7, mq, one, z0, one, z7)
    gq = com.microsoft.QLinearGlobalAveragePool(dq, one, z7, quarter, z7)
    fq = Reshape(gq, flat)
    yq = QLinearMatMul(fq, quarter, z7, wl, one, z8, quarter, z7)
    y = DequantizeLinear(yq, quarter, z7)
"""
QDQ = """
    xq = QuantizeLinear(x, one, z7)
    xd = DequantizeLinear(xq, one, z7)
    w1d = DequantizeLinear(w1, one, z8)
    b1d = DequantizeLinear(b1, one)
    a = Conv<pads=[1,1,1,1]>(xd, w1d, b1d)
    aq = QuantizeLinear(a, one, z0)
    ad = DequantizeLinear(aq, one, z0)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(ad)
    mq = QuantizeLinear(m, one, z0)
    md = DequantizeLinear(mq, one, z0)
    w2d = DequantizeLinear(w2, one, z8)
    c = Conv(md, w2d)
    cq = QuantizeLinear(c, one, z7)
    cd = DequantizeLinear(cq, one, z7)
    d = Add(cd, md)
    dq = QuantizeLinear(d, one, z7)
    dd = DequantizeLinear(dq, one, z7)
    g = GlobalAveragePool(dd)
    gq = QuantizeLinear(g, quarter, z7)
    gd = DequantizeLinear(gq, quarter, z7)
    f = Flatten(gd)
    wld = DequantizeLinear(wl, one, z8)
    l = MatMul(f, wld)
    yq = QuantizeLinear(l, quarter, z7)
    y = DequantizeLinear(yq, quarter, z7)
"""
DYNAMIC = """
    xq, s, z = DynamicQuantizeLinear(x)
    i = ConvInteger<pads=[1,1,1,1]>(xq, w1, z, z8)
    a = Cast<to=1>(i)
    ws = Mul(s, one)
    e = Mul(a, ws)
    eb = Add(e, b1)
    r = Relu(eb)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c = Conv(m, w2)
    d = Add(c, m)
    g = GlobalAveragePool(d)
    f = Flatten(g)
    fq, fs, fz = DynamicQuantizeLinear(f)
    k = MatMulInteger(fq, wl, fz, z8)
    kf = Cast<to=1>(k)
    ks = Mul(fs, one)
    y = Mul(kf, ks)
"""
NUMBERS = {"one": number(1.0), "quarter": number(0.25), "z0": ZERO, "z7": SEVEN, "z8": ZERO8}
INTEGERS = {"w1": W1.astype(np.int8), "w2": W2.astype(np.int8), "wl": WL.astype(np.int8), "b1": B1.astype(np.int32)}
CNN = "(float[N,2,4,4] x) => (float[N,3] y)"
WRITTEN = net(CNN, FLOAT_CNN, w1=W1, b1=B1, w2=W2, wl=WL)


def used(body: str, **arrays: np.ndarray) -> Arrays:
    """The arrays that a body names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {n: a for n, a in arrays.items() if n in words}


FORMS = {
    "operators": quantised(CNN, QOPERATOR, **used(QOPERATOR, **NUMBERS, **INTEGERS), flat=np.array([0, -1])),
    "pairs": quantised(CNN, QDQ, **used(QDQ, **NUMBERS, **INTEGERS)),
}


@pytest.mark.parametrize("rule", ["gradient", "lrp-0", "lrp-epsilon", "lrp-gamma", "z-box", "guided-backprop"])
@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_are_explained_as_by_the_float_model(form: str, rule: str) -> None:
    x = whole(3, 2, 4, 4, seed=6)
    options = {"parameters": {"low": -3.0, "high": 3.0}} if rule == "z-box" else {}
    ledger = rule.startswith(("lrp", "z-"))
    plain, emitted = (xaicompile.compile(m, rule, target=1, ledger=ledger, **options) for m in (WRITTEN, FORMS[form]))
    expected, found = run(plain, {"x": x}), run(emitted, {"x": x})
    np.testing.assert_array_equal(found["y"], expected["y"])
    assert np.count_nonzero(expected["relevance"]) > 20
    atol = FLOAT * np.abs(expected["relevance"]).max()
    np.testing.assert_allclose(found["relevance"], expected["relevance"], atol=atol, rtol=0)
    if ledger:
        np.testing.assert_allclose(found["explained"], expected["explained"], rtol=1e-6)
        total = found["relevance"].sum((1, 2, 3)) + found["ledger"]
        np.testing.assert_allclose(total, found["explained"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["gradient", "lrp-gamma"])
@pytest.mark.parametrize("form", FORMS)
def test_any_numbers_leave_the_prediction_alone_and_close_the_ledger(form: str, rule: str) -> None:
    x = data(3, 2, 4, 4, seed=6) * 3
    report = check(xaicompile.compile(FORMS[form], rule, ledger=rule != "gradient"), FORMS[form], inputs={"x": x})
    assert report.passed, report.failed
    assert "bit-identical" in next(i.detail for i in report.items if i.name == "prediction")


def test_layers_and_outputs_of_quantised_models_have_their_own_names() -> None:
    x = {"x": whole(2, 2, 4, 4, seed=6)}
    plain = run(xaicompile.compile(WRITTEN, "lrp-gamma", target=0, layers=["m"]), x)
    found = run(xaicompile.compile(FORMS["pairs"], "lrp-gamma", target=0, layers=["md"]), x)
    np.testing.assert_allclose(found["relevance_md"], plain["relevance_m"], atol=1e-5)
    np.testing.assert_allclose(found["relevance"], plain["relevance"], atol=1e-5)


def test_a_rounding_at_the_end_is_cut_and_said() -> None:
    compiled = compile_model(FORMS["operators"])
    assert compiled.cut == ["QuantizeLinear 'QLinearMatMul_7'"]


def test_dynamic_quantisation_is_explained_as_the_float_model() -> None:
    """Scales come from the data here: there is rounding, but little."""
    arrays = {**NUMBERS, **INTEGERS, "b1": B1.reshape(4, 1, 1), "w2": W2}
    model = quantised(CNN, DYNAMIC, **used(DYNAMIC, **arrays))
    x = data(3, 2, 4, 4, seed=6)
    for rule in ("gradient", "lrp-0"):
        plain, emitted = (xaicompile.compile(m, rule, target=1, ledger=rule != "gradient") for m in (WRITTEN, model))
        expected, found = run(plain, {"x": x}), run(emitted, {"x": x})
        difference = np.abs(found["relevance"] - expected["relevance"]) / np.abs(expected["relevance"]).max()
        assert np.quantile(difference, 0.9) < 0.02
        assert check(emitted, model, inputs={"x": x}).passed


# Every op of the runtime's own, one by one, between whole numbers

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


# The demo classifier


@pytest.mark.skipif(not MODEL.is_file(), reason="models/fetch_demo.py has not been run")
@pytest.mark.parity
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_the_demo_classifier_in_8_bits_is_explained_as_in_float(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """ONNX Runtime's static quantiser after its pre-processing, one scale a channel, calibrated on the demo's photo."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    port = Session(MODEL).inputs[0]
    preprocess = Preprocess(mean=(127.0,), std=(128.0,), resize=256, crop=(224, 224))
    x = read_photo(PHOTO, port.shape, port.dtype, preprocess).values

    class Photo(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = [{"x": x}]

        def get_next(self) -> Arrays | None:
            return self.rest.pop() if self.rest else None

    ready, path = tmp_path / "ready.onnx", tmp_path / "quantised.onnx"
    quant_pre_process(MODEL, ready, skip_symbolic_shape=True)
    quantize_static(ready, path, Photo(), quant_format=getattr(QuantFormat, form), per_channel=True)
    plain, emitted = (xaicompile.compile(m, "lrp-gamma", target=285) for m in (MODEL, path))
    expected, found = run(plain, {"x": x})["relevance"], run(emitted, {"x": x})["relevance"]
    correlation = np.corrcoef(expected.reshape(-1), found.reshape(-1))[0, 1]
    with capsys.disabled():
        print(f"\n{form}: correlation of the relevance with the float model's {correlation:.4f}")
    assert correlation >= 0.95
    report = check(emitted, path, inputs={"x": x})
    assert report.passed, report.failed
