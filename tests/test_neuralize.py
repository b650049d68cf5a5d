"""The pass `neuralize`: what it recognises, that the score is the model's own, and where relevance goes (spec 9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests import kernel_machines as dense
from tests.graphs import exact, net, run
from tests.kernel_machines import KERNEL_K_MEANS, SQUARES, SUMS, Density, density_graph, svm_node
from xaicompile.compiler import Compiled, compile_model

GAMMA = 0.4
RANDOM = np.random.default_rng(3)
POINTS = RANDOM.normal(size=(12, 5)) + 1.5
WEIGHTS = RANDOM.uniform(0.1, 1.0, 12)
X = RANDOM.normal(size=(7, 5)) + 1.5
LABELS = np.asarray([0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0, 0])
MEMBERS = np.eye(3)[LABELS] / np.bincount(LABELS)


def explained(model: onnx.ModelProto, kind: str, x: np.ndarray = X, **options: Any) -> dict[str, np.ndarray]:
    """All outputs, from the float64 oracle, and the ledger checked."""
    made = compile_model(model, "lrp-0", neuralize=kind, ledger=True, **options).model
    out = exact(made, {"x": x})
    books = out["relevance"].reshape(len(x), -1).sum(1) + out["ledger"]
    scale = np.maximum(np.abs(out["explained"]), np.abs(out["ledger"])).max()
    np.testing.assert_allclose(books, out["explained"], rtol=0, atol=1e-12 * max(scale, 1.0))
    return out


# --- kernel densities and one-class SVMs ------------------------------------------------------------------------------


@pytest.mark.parametrize("summed", SUMS)
@pytest.mark.parametrize("squared", SQUARES)
def test_density_in_every_writing(squared: str, summed: str) -> None:
    """N2, N3: o' + bias is -log f, o' >= 0, and relevance is the dense V-out."""
    out = explained(density_graph(squared, summed, POINTS, WEIGHTS, GAMMA), "kde")
    want = Density(X, POINTS, WEIGHTS, GAMMA)
    f = np.exp(-GAMMA * dense.squares(X, POINTS).sum(-1)) @ WEIGHTS
    np.testing.assert_allclose(out["outlierness"] + out["outlierness_bias"], -np.log(f), rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["ledger"], 0, atol=1e-12)
    assert (out["outlierness"] >= 0).all()


@pytest.mark.parametrize("pool", ["v-out", "v-act", "winner"])
def test_pooling_rules(pool: str) -> None:
    """Each is the dense formula; V-act leaves o' less the divergence of p from the weights."""
    out = explained(density_graph("mul", "matmul", POINTS, WEIGHTS, GAMMA), "kde", pool=pool)
    want = Density(X, POINTS, WEIGHTS, GAMMA)
    relevance = {"v-out": want.v_out, "v-act": want.v_act, "winner": want.winner}[pool]()
    np.testing.assert_allclose(out["relevance"], relevance, rtol=0, atol=1e-10)
    if pool == "v-act":
        np.testing.assert_allclose(out["relevance"].sum(1), want.score - want.divergence(), rtol=0, atol=1e-10)
    else:
        np.testing.assert_allclose(out["relevance"].sum(1), want.score, rtol=0, atol=1e-10)


def test_exponential_kernel() -> None:
    """Roots of the squared distances in the exponent."""
    body = f"{SQUARES['mul']} r0 = Sqrt(d) a = Mul(r0, slope) k = Exp(a) y = MatMul(k, weights)"
    given = dense.constants(POINTS, GAMMA, WEIGHTS, "float64")
    used = {k: given[k] for k in ("points", "slope", "weights")}
    out = explained(net("(double[N,5] x) => (double[N] y)", body, **used), "kde")
    want = Density(X, POINTS, WEIGHTS, GAMMA, root=True)
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("quantile", [0.3, 0.7])
def test_threshold(quantile: float) -> None:
    """f > rho exactly where o' is below the threshold that stands beside it."""
    rho = float(np.quantile(np.exp(-GAMMA * dense.squares(X, POINTS).sum(-1)) @ WEIGHTS, quantile))
    out = explained(density_graph("matmul", "matmul", POINTS, WEIGHTS, GAMMA, rho=rho), "one-class-svm")
    outlier = out["outlierness"] > out["outlierness_threshold"]
    assert (outlier == (out["y"] < 0)).all() and 0 < outlier.sum() < len(X)


def test_one_class_svm_of_an_exporter() -> None:
    """SVMRegressor and Sign: the same score in float32, the same decision, and no tensor [N, vectors, features]."""
    x, points = X.astype(np.float32), POINTS.astype(np.float32)
    model = svm_node(points, WEIGHTS.astype(np.float32), GAMMA, 1.1)
    compiled = compile_model(model, "lrp-gamma", neuralize="auto", ledger=True)
    out, want = run(compiled.model, {"x": x}), Density(X, POINTS, WEIGHTS, GAMMA)
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=1e-5)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-5)
    assert ((out["outlierness"] > out["outlierness_threshold"]) == (out["label"][:, 0] < 0)).all()
    assert all(size < len(points) * x.shape[1] for size in per_sample(compiled))


def per_sample(compiled: Compiled) -> list[int]:
    """How many numbers each tensor has for each sample."""
    inferred = onnx.shape_inference.infer_shapes(compiled.model, data_prop=True).graph
    shapes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in inferred.value_info]
    return [int(np.prod([d for d in s if isinstance(d, int)])) for s in shapes if any(isinstance(d, str) for d in s)]


def test_mean_of_kernels() -> None:
    """A mean in place of the sum counts in the bias."""
    body = f"{SQUARES['mul']} a = Mul(d, slope) k = Exp(a) y = ReduceMean <keepdims = 0> (k, one)"
    given = dense.constants(POINTS, GAMMA, None, "float64")
    out = explained(net("(double[N,5] x) => (double[N] y)", body, points=given["points"], slope=given["slope"]), "kde")
    np.testing.assert_allclose(out["outlierness"] + out["outlierness_bias"], -np.log(out["y"]), rtol=0, atol=1e-10)


def test_sign_written_out() -> None:
    """Where(y > 0, 1, -1) behind the score."""
    body = f"""{SQUARES["mul"]} {SUMS["matmul"]} f = Sub(y, rho) zero = Constant <value_float = 0.0> ()
        nil = Cast <to = 11> (zero) over = Greater(f, nil) label = Where(over, unit, minus)"""
    given = dense.constants(POINTS, GAMMA, WEIGHTS, "float64") | {"rho": np.asarray(1.0), "minus": np.asarray(-1.0)}
    used = {k: given[k] for k in ("points", "slope", "weights", "rho", "unit", "minus")}
    out = explained(net("(double[N,5] x) => (double[N] label)", body, **used), "auto")
    assert ((out["outlierness"] > out["outlierness_threshold"]) == (out["label"] < 0)).all()


def test_far_from_the_origin() -> None:
    """Points around 1000 in float32: distances are taken from their mean, and keep their digits."""
    x, points = (X + 1000).astype(np.float32), (POINTS + 1000).astype(np.float32)
    want = Density(x.astype(np.float64), points.astype(np.float64), WEIGHTS, GAMMA)
    model = svm_node(points, WEIGHTS.astype(np.float32), GAMMA, 1.1)
    out = run(compile_model(model, "lrp-0", neuralize="auto").model, {"x": x})
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=1e-4)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_far_outliers_stay_finite(far: float) -> None:
    """f underflows there, the soft minimum does not."""
    x = (X * far).astype(np.float32)
    model = density_graph("matmul", "matmul", POINTS, WEIGHTS, GAMMA, dtype="float32", rho=0.5)
    out = run(compile_model(model, "lrp-0", neuralize="auto", ledger=True).model, {"x": x})
    assert all(np.isfinite(value).all() for value in out.values())
    assert (out["y"] < 0).all() and (out["outlierness"] > out["outlierness_threshold"]).all()
    nearest = GAMMA * dense.squares(x.astype(np.float64), POINTS).sum(-1).min(1)
    np.testing.assert_allclose(out["outlierness"], nearest, rtol=1e-4)
    np.testing.assert_allclose(out["relevance"].sum(1), out["outlierness"], rtol=1e-5)  # weights keep their digits


def test_a_point_of_the_training_set() -> None:
    """Its distance to itself is 0 and carries nothing: that share stays in the ledger."""
    model = density_graph("matmul", "matmul", POINTS, WEIGHTS, GAMMA, dtype="float32")
    out = run(compile_model(model, "lrp-0", neuralize="kde", ledger=True).model, {"x": POINTS.astype(np.float32)})
    want = Density(POINTS, POINTS + 1e-30, WEIGHTS, GAMMA)
    own = np.diag(want.p) * want.score
    np.testing.assert_allclose(out["ledger"], own, rtol=1e-3, atol=1e-5)
    assert np.abs(out["relevance"]).max() < want.score.max()


# --- clusterings ------------------------------------------------------------------------------------------------------

K_MEANS = {
    **{name: f"{body} y = ArgMin <axis = 1, keepdims = 0> (d)" for name, body in SQUARES.items()},
    "root": f"{SQUARES['gemm']} y = Sqrt(d)",
    "linear": "m = Gemm <alpha = 2.0, transB = 1> (x, points, minus_own) y = ArgMax <axis = 1, keepdims = 0> (m)",
    "linear, doubled": "m = Gemm <transB = 1> (x, twice, minus_own) y = ArgMax <axis = 1, keepdims = 0> (m)",
    "linear, halved": """t = Transpose <perm = [1, 0]> (points) m = MatMul(x, t) h = Div(own, two) s = Sub(m, h)
        y = ArgMax <axis = 1, keepdims = 0> (s)""",
}


@pytest.mark.parametrize("writing", K_MEANS)
def test_k_means(writing: str) -> None:
    """N5: evidence by pairs; all to the nearest rival by the midpoint rule, for every cluster."""
    body, kind = K_MEANS[writing], "double" if writing == "root" else "int64"
    given = dense.constants(POINTS, GAMMA, None, "float64")
    given |= {"minus_own": -given["own"], "twice": 2 * POINTS}
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    model = net(f"(double[N,5] x) => ({kind}[N{',12' if writing == 'root' else ''}] y)", body, **used)
    want = dense.evidence(X, POINTS)
    for target in (-1, 2):
        out = explained(model, "kmeans", target=target)
        c = want.argmax(1) if target < 0 else np.full(len(X), target)
        np.testing.assert_allclose(out["cluster_evidence"], want[np.arange(len(X)), c], rtol=0, atol=1e-10)
        d = dense.squares(X, POINTS).sum(-1)
        d[np.arange(len(X)), c] = np.inf
        relevance = np.stack(
            [dense.midpoint(x[None], POINTS, i, k)[0] for x, i, k in zip(X, c, d.argmin(1), strict=True)]
        )
        np.testing.assert_allclose(out["relevance"], relevance, rtol=0, atol=1e-10)
        np.testing.assert_allclose(out["relevance"].sum(1), out["explained"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["v-out", "v-act"])
def test_k_means_softly(pool: str) -> None:
    """sum_k p_k f_c / h_k times the midpoint rule, and p_k times it: by pairs."""
    body, beta = K_MEANS["matmul"], 0.3
    given = dense.constants(POINTS, GAMMA, None, "float64")
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    model = net("(double[N,5] x) => (int64[N] y)", body, **used)
    out = explained(model, "kmeans", pool=pool, parameters={"stiffness": beta})
    d = dense.squares(X, POINTS).sum(-1)
    for n, x in enumerate(X):
        c = d[n].argmin()
        rivals = [k for k in range(12) if k != c]
        h = d[n, rivals] - d[n, c]
        share = dense.soft(beta * h) * (h.min() / h if pool == "v-out" else 1.0)
        want = sum(s * dense.midpoint(x[None], POINTS, c, k)[0] for s, k in zip(share, rivals, strict=True))
        np.testing.assert_allclose(out["relevance"][n], want, rtol=0, atol=1e-8)
    if pool == "v-out":
        np.testing.assert_allclose(out["relevance"].sum(1), out["explained"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("writing", KERNEL_K_MEANS)
def test_kernel_k_means(writing: str) -> None:
    """N5: the factorised form is the explicit network of pairs; what V-act leaves are entropies and normalisers."""
    beta = 0.9
    model = KERNEL_K_MEANS[writing](POINTS, MEMBERS, GAMMA, beta)
    out = explained(model, "kernel-kmeans")
    z = dense.kernel_logits(X, POINTS, MEMBERS, GAMMA, beta)
    c = z.argmax(1)
    np.testing.assert_allclose(out["log_ratio"], dense.log_odds(z).max(1), rtol=0, atol=1e-10)
    d = dense.squares(X, POINTS)
    for n in range(len(X)):
        own = MEMBERS[:, c[n]] > 0
        p_i = dense.soft(GAMMA * d[n, own].sum(-1))
        relevance, left, rivals = np.zeros(5), 0.0, [k for k in range(3) if k != c[n]]
        p_k = dense.soft(-z[n, rivals])
        for p, k in zip(p_k, rivals, strict=True):
            mine = MEMBERS[:, k] > 0
            p_j = dense.soft(GAMMA * d[n, mine].sum(-1))
            pairs = d[n, mine][:, None] - d[n, own][None]  # (x - x_j)^2 - (x - x_i)^2
            relevance += beta * p * np.einsum("j,i,jid->d", p_j, p_i, pairs)
            sizes = np.log(mine.sum()) - np.log(own.sum())
            left += beta / GAMMA * p * (dense.entropy(p_j) - dense.entropy(p_i) - sizes)
        np.testing.assert_allclose(out["relevance"][n], relevance, rtol=0, atol=1e-10)
        np.testing.assert_allclose(-out["ledger"][n], dense.entropy(p_k) + left, rtol=0, atol=1e-10)


# --- class probabilities ----------------------------------------------------------------------------------------------

W, BIAS = RANDOM.normal(size=(5, 4)), RANDOM.normal(size=4)
GEMM = "z = Gemm(x, w, bias)"
HEADS = {
    "softmax": f"{GEMM} y = Softmax <axis = 1> (z)",
    "log-softmax": f"{GEMM} y = LogSoftmax <axis = -1> (z)",
    "written out": f"""{GEMM} one = Constant <value_ints = [1]> () t = ReduceMax <keepdims = 1> (z, one) s = Sub(z, t)
        e = Exp(s) n = ReduceSum <keepdims = 1> (e, one) y = Div(e, n)""",
    "normed again": f"""{GEMM} one = Constant <value_ints = [1]> () p = Softmax <axis = 1> (z)
        n = ReduceL1 <keepdims = 1> (p, one) y = Div(p, n)""",
}


@pytest.mark.parametrize("writing", HEADS)
def test_log_ratio(writing: str) -> None:
    """N4: the log-odds, and c = w_k - sum p_j w_j; the entropy of the rivals is left over."""
    model = net("(double[N,5] x) => (double[N,4] y)", HEADS[writing], w=W, bias=BIAS)
    for target in (-1, 3):
        out, z = explained(model, "log-ratio", target=target), X @ W + BIAS
        k = z.argmax(1) if target < 0 else np.full(len(X), target)
        np.testing.assert_allclose(out["log_ratio"], dense.log_odds(z)[np.arange(len(X)), k], rtol=0, atol=1e-10)
        for n in range(len(X)):
            rivals = [j for j in range(4) if j != k[n]]
            p = dense.soft(-z[n, rivals])
            c = W[:, k[n]] - W[:, rivals] @ p
            np.testing.assert_allclose(out["relevance"][n], X[n] * c, rtol=0, atol=1e-10)
            left = dense.entropy(p) - (BIAS[k[n]] - p @ BIAS[rivals])
            np.testing.assert_allclose(-out["ledger"][n], left, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["v-out", "winner"])
def test_log_ratio_by_other_pools(pool: str) -> None:
    """V-out conserves what the biases leave; the winner is the runner-up."""
    model = net("(double[N,5] x) => (double[N,4] y)", HEADS["softmax"], w=W, bias=np.zeros(4))
    out, z = explained(model, "log-ratio", pool=pool), X @ W
    k = z.argmax(1)
    if pool == "v-out":
        np.testing.assert_allclose(out["relevance"].sum(1), out["log_ratio"], rtol=0, atol=1e-6)
    else:
        second = np.argsort(z, 1)[:, -2]
        np.testing.assert_allclose(out["relevance"], X * (W[:, k] - W[:, second]).T, rtol=0, atol=1e-10)


BINARY = {
    "one sigmoid": ("z = MatMul(x, w) y = Sigmoid(z)", 1, [1]),
    "both sides": ("z = MatMul(x, w) n = Neg(z) b = Concat <axis = 1> (n, z) y = Sigmoid(b)", 2, [-1, 1]),
    "complement": ("z = MatMul(x, w) p = Sigmoid(z) q = Sub(unit, p) y = Concat <axis = 1> (q, p)", 2, [-1, 1]),
}


@pytest.mark.parametrize("writing", BINARY)
def test_binary_log_ratio(writing: str) -> None:
    """log p/(1-p) is z or -z, never 2 z."""
    body, columns, signs = BINARY[writing]
    given = {"w": W[:, :1], **({"unit": np.asarray(1.0)} if "unit" in body else {})}
    model = net(f"(double[N,5] x) => (double[N,{columns}] y)", body, **given)
    for target, sign in enumerate(signs):
        out = explained(model, "log-ratio", target=target)
        np.testing.assert_allclose(out["log_ratio"], sign * (X @ W[:, 0]), rtol=0, atol=1e-10)


def test_saturated_probabilities() -> None:
    """Stable where p is 1 in float32."""
    model = net("(float[N,5] x) => (float[N,4] y)", HEADS["softmax"], w=W.astype("f"), bias=BIAS.astype("f"))
    x = (X * 50).astype(np.float32)
    out = run(compile_model(model, "lrp-0", neuralize="log-ratio").model, {"x": x})
    want = dense.log_odds(x.astype(np.float64) @ W + BIAS).max(1)
    assert (out["y"].max(1) == 1).any() and np.isfinite(out["relevance"]).all()
    np.testing.assert_allclose(out["log_ratio"], want, rtol=1e-5)


def test_maps_and_targets() -> None:
    """Several classes of a sample at once; a target that is none has ratio and relevance 0."""
    model = net("(double[N,5] x) => (double[N,4] y)", HEADS["softmax"], w=W, bias=BIAS)
    made = compile_model(model, "lrp-0", neuralize="log-ratio", maps=2).model
    out, odds = exact(made, {"x": X}), np.sort(dense.log_odds(X @ W + BIAS), 1)
    np.testing.assert_allclose(out["log_ratio"], odds[:, :-3:-1], rtol=0, atol=1e-10)
    made = compile_model(model, "lrp-0", neuralize="log-ratio").model
    out = exact(made, {"x": X, "target": np.asarray([9])})
    assert not out["log_ratio"].any() and not out["relevance"].any()


def test_many_points() -> None:
    """N2, N3 on 20,000 points of 50 features, few at a time in the dense form."""
    points, x = RANDOM.normal(size=(20_000, 50)), RANDOM.normal(size=(3, 50))
    weights = RANDOM.uniform(0.1, 1.0, 20_000)
    out = explained(density_graph("matmul", "matmul", points, weights, 0.02), "kde", x)
    want = Density(x, points, weights, 0.02)
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-9)
    act = explained(density_graph("matmul", "matmul", points, weights, 0.02), "kde", x, pool="v-act")
    np.testing.assert_allclose(act["relevance"].sum(1), want.score - want.divergence(), rtol=0, atol=1e-9)
