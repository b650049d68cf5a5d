"""Integer models are read as the floats that they stand for, with straight-through rounding.

The oracle of most tests is the float model: small whole numbers, and scales that are powers of two, pass through a
quantised model without any rounding, so that both must give the same relevance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import xaicompile
from tests.graphs import data, net, run
from tests.quantised import NUMBERS, Arrays, number, quantised, used, whole
from xaicompile.checks import check
from xaicompile.compiler import compile_model
from xaicompile.images import Preprocess, read_photo
from xaicompile.runtime import Session

MODELS = Path(__file__).resolve().parents[1] / "models"
MODEL, PHOTO = MODELS / "efficientnet-lite0.onnx", MODELS / "chelsea.png"
FLOAT = 2e-5  # relative to the largest value, float32


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
    if name != "8-bit floats":  # both sides of either end
        low, high, near = (np.broadcast_to(v, (2, 6)) for v in (low, high, np.subtract(high, low) * 2e-4))
        ends = (low - near, low + near, high - near, high + near)
        x[:, :4] = np.stack([e[:, i] for i, e in enumerate(ends)], axis=1)
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
    r = Relu(a)
    aq = QuantizeLinear(r, one, z0)
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
INTEGERS = {"w1": W1.astype(np.int8), "w2": W2.astype(np.int8), "wl": WL.astype(np.int8), "b1": B1.astype(np.int32)}
CNN = "(float[N,2,4,4] x) => (float[N,3] y)"
WRITTEN = net(CNN, FLOAT_CNN, w1=W1, b1=B1, w2=W2, wl=WL)


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


COARSE = """
    xq = QuantizeLinear(x, quarter, z7)
    aq = QLinearConv<pads=[1,1,1,1]>(xq, quarter, z7, w1, tiny, z8, one, z7)
    a = DequantizeLinear(aq, one, z7)
    n = BatchNormalization(a, g, b, m, v)
    nq = QuantizeLinear(n, half, z0)
    cq = QLinearConv(nq, half, z0, w2, tiny, z8, half, z7)
    c = DequantizeLinear(cq, half, z7)
    s = Sigmoid(c)
    sq = QuantizeLinear(s, small, z0)
    sd = DequantizeLinear(sq, small, z0)
    d = ReduceMean<keepdims=0>(sd, axes)
    y = Relu(d)
"""
PAIRED = (
    COARSE.replace("aq = QLinearConv<pads=[1,1,1,1]>(xq, quarter, z7, w1, tiny, z8, one, z7)",
                   "xd = DequantizeLinear(xq, quarter, z7)\nw1d = DequantizeLinear(w1, tiny, z8)\n"
                   "ad = Conv<pads=[1,1,1,1]>(xd, w1d)\naq = QuantizeLinear(ad, one, z7)")
    .replace("cq = QLinearConv(nq, half, z0, w2, tiny, z8, half, z7)",
             "nd = DequantizeLinear(nq, half, z0)\nw2d = DequantizeLinear(w2, tiny, z8)\n"
             "cd = Conv(nd, w2d)\ncq = QuantizeLinear(cd, half, z7)")
)  # fmt: skip


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rule", ["lrp-gamma", "gradient-x-input"])
def test_both_forms_of_a_coarse_model_are_explained_alike(rule: str, signed: bool) -> None:
    """Coarse steps, so that a rounding that is left out or done twice shows; one of them stands before a norm.

    With signed activations some processors' runtimes give up integers where anything else reads them.
    """
    arrays = {"tiny": number(0.03), "half": number(0.5), "small": number(1 / 128), "axes": np.array([2, 3]), **NUMBERS}
    arrays |= {"w1": whole(4, 2, 3, 3, low=-50, high=51, dtype=np.int8), "g": 1 + data(4) ** 2, "b": data(4, seed=1)}
    arrays |= {"w2": whole(4, 4, 1, 1, low=-50, high=51, dtype=np.int8), "m": data(4, seed=2), "v": 1 + data(4) ** 2}
    if signed:
        arrays |= {"z7": number(-28, np.int8), "z0": number(-128, np.int8)}
    x, results = {"x": data(3, 2, 4, 4, seed=6) * 2}, []
    for body in (COARSE, PAIRED):
        model = quantised("(float[N,2,4,4] x) => (float[N,4] y)", body, **used(body, **arrays))
        emitted = xaicompile.compile(model, rule, target=1, ledger=True, explain_output="y")
        report = check(emitted, model, inputs=x)
        assert report.passed and "bit-identical" in str(report.to_dict()), report.failed
        results.append(run(emitted, x))
    np.testing.assert_allclose(results[0]["y"], results[1]["y"], atol=1e-6)
    assert np.abs(results[0]["relevance"]).max() > 1e-3
    for name in ("relevance", "ledger", "explained"):
        atol = 1e-5 * np.abs(results[0][name]).max()
        np.testing.assert_allclose(results[1][name], results[0][name], atol=atol, rtol=0)


def test_a_rounding_left_out_before_a_norm_enters_the_ledger() -> None:
    """Convolution and norm are read as one linear op, whatever is rounded between them; the output is the model's."""
    end = COARSE.index("    nq = ")
    body = COARSE[:end] + "    c = Relu(n)\n    y = ReduceMean<keepdims=0>(c, axes)\n"
    arrays = {"tiny": number(0.03), "axes": np.array([2, 3]), **NUMBERS, "g": 1 + data(4) ** 2, "b": data(4, seed=1)}
    arrays |= {"w1": whole(4, 2, 3, 3, low=-50, high=51, dtype=np.int8), "m": data(4, seed=2), "v": 1 + data(4) ** 2}
    model = quantised("(float[N,2,4,4] x) => (float[N,4] y)", body, **used(body, **arrays))
    emitted = xaicompile.compile(model, "lrp-0", target=1, ledger=True)
    x = {"x": data(3, 2, 4, 4, seed=6) * 2}
    found = run(emitted, x)
    np.testing.assert_allclose(found["explained"], found["y"][:, 1], rtol=1e-6)
    total = found["relevance"].sum((1, 2, 3)) + found["ledger"]
    np.testing.assert_allclose(total, found["explained"], rtol=1e-5, atol=1e-5)
    assert check(emitted, model, inputs=x).passed


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
