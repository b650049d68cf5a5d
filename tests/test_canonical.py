"""Patterns of nodes read as one op, and affine runs folded into the linear op before them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from xaicompile import ir
from xaicompile.compiler import compile_model
from xaicompile.errors import UnsupportedError
from xaicompile.facts import find_constants
from xaicompile.passes import canonical

GELU = {
    "gelu by division": "s=Div(x, rt2) e=Erf(s) p=Add(e, one) m=Mul(x, p) y=Mul(m, half)",
    "gelu by multiplication": "s=Mul(x, rt05) e=Erf(s) p=Add(one, e) h=Mul(x, half) y=Mul(p, h)",
    "gelu with the half inside": "s=Div(x, rt2) e=Erf(s) p=Add(e, one) h=Mul(half, p) y=Mul(h, x)",
    "tanh gelu": "q=Pow(x, three) a=Mul(q, k3) i=Add(x, a) j=Mul(i, k2) t=Tanh(j) p=Add(t, one) m=Mul(x, p) "
    "y=Mul(m, half)",
    "fast gelu": "j=Mul(x, k2) k=Mul(k3, x) q=Mul(k, x) o=Add(one, q) i=Mul(j, o) t=Tanh(i) p=Add(one, t) "
    "h=Mul(half, x) y=Mul(h, p)",
    "fast gelu with the square first": "q=Mul(x, x) k=Mul(q, k3) o=Add(k, one) j=Mul(k2, x) i=Mul(j, o) t=Tanh(i) "
    "p=Add(t, one) h=Mul(x, half) y=Mul(h, p)",
}
OTHERS = {
    "swish": ("Swish", "s=Sigmoid(x) y=Mul(x, s)"),
    "quick gelu": ("Swish", "a=Mul(x, alpha) s=Sigmoid(a) y=Mul(x, s)"),
    "mish": ("Mish", "s=Softplus(x) t=Tanh(s) y=Mul(t, x)"),
    "hard swish by gate": ("HardSwish", "s=HardSigmoid<alpha=0.16666667, beta=0.5>(x) y=Mul(s, x)"),
    "hard swish by clip": ("HardSwish", "a=Add(x, three) c=Clip(a, zero, six) d=Div(c, six) y=Mul(x, d)"),
    "hard swish, division last": ("HardSwish", "a=Add(x, three) c=Clip(a, zero, six) d=Mul(x, c) y=Div(d, six)"),
    "hard sigmoid": ("HardSigmoid", "a=Add(x, three) c=Clip(a, zero, six) y=Div(c, six)"),
    "softmax": ("Softmax", "m=ReduceMax(x, last) d=Sub(x, m) e=Exp(d) s=ReduceSum(e, last) y=Div(e, s)"),
    "softmax without the maximum": ("Softmax", "e=Exp(x) s=ReduceSum(e, last) y=Div(e, s)"),
    "layer norm": (
        "LayerNormalization",
        "m=ReduceMean(x, last) d=Sub(x, m) q=Pow(d, two) v=ReduceMean(q, last) w=Add(v, eps) s=Sqrt(w) n=Div(d, s) "
        "g=Mul(n, scale) y=Add(g, bias)",
    ),
    "layer norm without scale": (
        "LayerNormalization",
        "m=ReduceMean(x, last) d=Sub(x, m) q=Mul(d, d) v=ReduceMean(q, last) w=Add(v, eps) s=Sqrt(w) y=Div(d, s)",
    ),
    "layer norm by a power": (
        "LayerNormalization",
        "m=ReduceMean(x, last) d=Sub(x, m) q=Mul(d, d) v=ReduceMean(q, last) w=Add(eps, v) p=Pow(w, mhalf) n=Mul(p, d) "
        "g=Mul(scale, n) y=Add(bias, g)",
    ),
    "rms norm by a reciprocal": (
        "RMSNormalization",
        "q=Pow(x, two) v=ReduceMean(q, last) w=Add(v, eps) s=Sqrt(w) r=Reciprocal(s) n=Mul(x, r) y=Mul(n, scale)",
    ),
    "rms norm by one over it": (
        "RMSNormalization",
        "q=Mul(x, x) v=ReduceMean(q, last) w=Add(v, eps) s=Sqrt(w) r=Div(one, s) n=Mul(x, r) y=Mul(scale, n)",
    ),
    "rms norm by division": (
        "RMSNormalization",
        "q=Mul(x, x) v=ReduceMean(q, last) w=Add(eps, v) s=Sqrt(w) n=Div(x, s) y=Mul(scale, n)",
    ),
    "rms norm by a power, without scale": (
        "RMSNormalization",
        "q=Pow(x, two) v=ReduceMean(q, last) w=Add(v, eps) p=Pow(w, mhalf) y=Mul(p, x)",
    ),
}
CASES = {**{k: ("Gelu", v) for k, v in GELU.items()}, **OTHERS}
NUMBERS = {
    "rt2": 2**0.5, "rt05": 0.5**0.5, "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0,
    "k3": 0.044715, "k2": (2 / np.pi) ** 0.5, "eps": 1e-5, "mhalf": -0.5,
    "alpha": 1.702,
}  # fmt: skip


def written_out(body: str) -> onnx.ModelProto:
    """A model of the nodes in `body` on x float[N, 4]; numbers become initializers."""
    rng = np.random.default_rng(0)
    arrays = {k: np.asarray(v, np.float32) for k, v in NUMBERS.items()}
    arrays |= {
        "last": np.array([-1]),
        "scale": rng.standard_normal(4, np.float32),
        "bias": rng.standard_normal(4, np.float32),
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    text = "\n".join(f"{node} " for node in body.replace(") ", ")\n").split("\n"))
    graph = onnx.parser.parse_graph(f"g (float[N, 4] x) => (float[N, 4] y) {{ {text} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in arrays.items() if k in words)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def views(model: onnx.ModelProto) -> list[ir.View]:
    program = ir.load(model)
    find_constants(program)
    canonical.run(program, "y")
    return program.views


@pytest.mark.parametrize("case", CASES)
def test_a_pattern_is_read_as_one_op(case: str) -> None:
    op, body = CASES[case]
    assert [v.op for v in views(written_out(body))] == [op]


@pytest.mark.parametrize("case", CASES)
def test_a_pattern_is_left_alone_where_another_node_reads_its_inside(case: str) -> None:
    body = CASES[case][1]
    inside = body.split("=")[0]
    model = written_out(body.replace("y=", "z=") + f" o=Neg({inside}) y=Sub(z, o)")
    left = views(model)
    assert inside in {y.name for v in left for y in v.y if y is not None}
    smaller = {"LayerNormalization": "RMSNormalization", "Softmax": "Softmax"}.get(CASES[case][0])
    if smaller and inside == "m":  # what is centred, or has a maximum of 0, is still read as one op
        assert [v.op for v in left if len(v.nodes) > 1] == [smaller]
    else:
        assert len(left) == len(model.graph.node)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][0] == "Softmax"])
def test_a_softmax_in_parts_has_the_gradient_of_one(case: str) -> None:
    body, x = CASES[case][1], np.random.default_rng(4).standard_normal((3, 4)).astype(np.float32)
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    w = np.arange(1, 5, dtype=np.float32) ** 0.5
    model = written_out(body.replace("y=", "z=") + " y=Mul(z, scale)")
    (scale,) = [i for i in model.graph.initializer if i.name == "scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(w, "scale"))
    for rule in ("gradient-x-input", "attnlrp"):
        explained = compile_model(model, rule, explain_output="y", explain_reduce="sum").model
        relevance = ReferenceEvaluator(explained).run(None, {"x": x})[1]
        np.testing.assert_allclose(relevance, x * p * (w - (p * w).sum(1, keepdims=True)), atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][0] in ("LayerNormalization", "RMSNormalization")])
def test_a_normalisation_in_parts_is_explained_as_the_one_op(case: str) -> None:
    """The deviation is detached: relevance is x times w over it (less its mean), read as one op or apart."""
    body, rng = CASES[case][1], np.random.default_rng(4)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    centred = "m=" in body
    d = x - x.mean(1, keepdims=True) if centred else x
    deviation = np.sqrt((d * d).mean(1, keepdims=True) + 1e-5)
    scale = next((onnx.numpy_helper.to_array(i) for i in written_out(body).graph.initializer if i.name == "scale"), 1.0)
    u = scale * np.ones_like(x) / deviation
    expected = x * (u - u.mean(1, keepdims=True) if centred else u)
    apart = body.replace("y=", "z=") + " o=Mul(w, zero) y=Add(z, o)"  # what is read elsewhere keeps the nodes apart
    for nodes in (body, apart):
        model = compile_model(written_out(nodes), "attnlrp", explain_output="y", explain_reduce="sum").model
        np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[1], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (), (3, 4), (3, 1, 4)])
def test_only_a_scale_per_element_is_part_of_a_normalisation(shape: tuple[int, ...]) -> None:
    model = written_out(CASES["rms norm by division"][1])
    (scale,) = [i for i in model.graph.initializer if i.name == "scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "scale"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert [v.op for v in views(model)] == ["RMSNormalization", "Mul"][: 1 if shape in ((4,), (1, 4)) else 2]


def test_a_layer_inside_a_pattern_is_refused_with_the_name_to_ask_for() -> None:
    """Reading the nodes apart for the layer's sake would change the explanation."""
    with pytest.raises(UnsupportedError, match=r"'c' lies inside .* read as one Conv; ask for 'y'"):
        compile_model(conv_model(FOLDS["conv and batch norm"]), layers=["c"])


@pytest.mark.parametrize(
    "case", [c for c in CASES if CASES[c][0] not in ("LayerNormalization", "HardSigmoid", "Softmax")]
)
def test_the_identity_rule_conserves_on_patterns(case: str) -> None:
    """Op by op the 0.5 (1 + erf) branch of a GELU is wrong by a factor of 184 at x = -3 (spec section 6)."""
    model = compile_model(written_out(CASES[case][1]), "lrp-0", explain_output="y", explain_reduce="sum").model
    x = np.array([[-3.0, -1.0, 0.0, 1.0], [2.5, -0.1, 1e-9, 4.0]], np.float32)
    y, relevance = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(relevance, y, atol=1e-6)


FOLDS = {
    "conv and batch norm": "c=Conv<pads=[1,1,1,1]>(x, w, b) y=BatchNormalization(c, g, beta, mean, var)",
    "conv without bias": "c=Conv<pads=[1,1,1,1]>(x, w) y=BatchNormalization(c, g, beta, mean, var)",
    "mul and add": "c=Conv<pads=[1,1,1,1]>(x, w, b) m=Mul(c, gcol) y=Add(m, bcol)",
    "sub, mul, add": "c=Conv<pads=[1,1,1,1]>(x, w) s=Sub(c, mcol) m=Mul(gcol, s) y=Add(bcol, m)",
    "constant minus conv, over a constant": "c=Conv<pads=[1,1,1,1]>(x, w, b) s=Sub(mcol, c) y=Div(s, gcol)",
    "scalar": "c=Conv<pads=[1,1,1,1]>(x, w, b) y=Mul(c, two)",
    "scalar shift": "c=Conv<pads=[1,1,1,1]>(x, w) y=Add(c, two)",
    "grouped conv": "c=Conv<pads=[1,1,1,1],group=3>(x, wg, b) y=BatchNormalization(c, g, beta, mean, var)",
    "transposed conv": "c=ConvTranspose<pads=[1,1,1,1]>(x, w, b) y=BatchNormalization(c, g, beta, mean, var)",
    "identity between": "c=Conv<pads=[1,1,1,1]>(x, w, b) i=Identity(c) y=BatchNormalization(i, g, beta, mean, var)",
}


def conv_model(body: str) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    vector = {k: rng.uniform(0.5, 1.5, 3) * rng.choice([-1, 1], 3) for k in ("b", "g", "beta", "mean")}
    arrays = {**vector, "var": rng.uniform(0.5, 2, 3), "w": rng.standard_normal((3, 3, 3, 3)), "two": np.array(2.0)}
    arrays |= {
        "wg": arrays["w"][:, :1],
        "gcol": vector["g"].reshape(3, 1, 1),
        "bcol": vector["beta"].reshape(1, 3, 1, 1),
    }
    arrays["mcol"] = vector["mean"].reshape(3, 1, 1)
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    text = "\n".join(body.replace(") ", ")\n").split("\n"))
    graph = onnx.parser.parse_graph(f"g (double[N, 3, 5, 5] x) => (double[N, 3, 5, 5] y) {{ {text} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in arrays.items() if k in words)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("case", FOLDS)
def test_affine_runs_are_folded_into_the_linear_op(case: str) -> None:
    """The folded view computes the same output, and its relevance closes with the ledger."""
    model = conv_model(FOLDS[case])
    (view,) = views(model)
    assert view.op in ("Conv", "ConvTranspose") and len(view.nodes) == FOLDS[case].count("=") - FOLDS[case].count(
        "pads="
    ) - FOLDS[case].count("group=") - FOLDS[case].count("Identity")
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 5))
    folded = compile_model(model, "lrp-gamma", ledger=True, explain_reduce="sum")
    assert [a.rule for a in folded.assignments] == ["gamma"]
    y, relevance, explained, ledger, _ = ReferenceEvaluator(folded.model).run(None, {"x": x})
    np.testing.assert_allclose(explained, y.sum((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(relevance.sum((1, 2, 3)) + ledger, explained, rtol=1e-9)


@pytest.mark.parametrize("case", FOLDS)
def test_lrp_zero_does_not_depend_on_folding(case: str) -> None:
    """LRP-0: folded == separate (spec section 2); the gradient is the oracle, since the graph is linear."""
    model = conv_model(FOLDS[case])
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 5))
    relevance = ReferenceEvaluator(compile_model(model, "lrp-0").model).run(None, {"x": x})[1]
    y = ReferenceEvaluator(model).run(None, {"x": x})[0].reshape(2, -1)
    steps, target = 1e-5, y.argmax(1)
    for i in range(0, 75, 7):
        moved = x.reshape(2, -1).copy()
        moved[:, i] += steps
        slope = (ReferenceEvaluator(model).run(None, {"x": moved.reshape(x.shape)})[0].reshape(2, -1) - y) / steps
        expected = slope[[0, 1], target] * x.reshape(2, -1)[:, i]
        np.testing.assert_allclose(relevance.reshape(2, -1)[:, i], expected, atol=1e-8)


def test_gamma_differs_when_batch_norm_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative scale flips which weights are positive: reading the two apart would be wrong (spec section 2)."""
    model = conv_model(FOLDS["conv and batch norm"])
    x = np.random.default_rng(2).standard_normal((1, 3, 5, 5))
    folded = ReferenceEvaluator(compile_model(model, "lrp-gamma", explain_reduce="sum").model).run(None, {"x": x})[1]
    monkeypatch.setattr(canonical, "fold_affine", lambda *_: False)
    separate = ReferenceEvaluator(compile_model(model, "lrp-gamma", explain_reduce="sum").model).run(None, {"x": x})[1]
    assert np.abs(folded - separate).max() > 0.05 * np.abs(folded).max()


def test_dense_layer_with_bias_as_an_add_is_one_linear_op() -> None:
    rng = np.random.default_rng(3)
    graph = onnx.parser.parse_graph(
        "g (double[N, 2, 4] x) => (double[N, 2, 3] y) { m = MatMul(x, w) a = Add(b, m) y = Relu(a) }"
    )
    for name, shape in {"w": (4, 3), "b": (3,)}.items():
        graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape), name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    assert [v.op for v in views(model)] == ["MatMul", "Relu"]
    compiled = compile_model(model, "lrp-epsilon", parameters={"epsilon": 0.1}, ledger=True)
    _, relevance, explained, ledger, _ = ReferenceEvaluator(compiled.model).run(
        None, {"x": rng.standard_normal((5, 2, 4))}
    )
    np.testing.assert_allclose(relevance.sum((1, 2)) + ledger, explained, rtol=1e-9)
