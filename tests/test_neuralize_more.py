"""Neuralized models on top of networks, on real data, through rule sets and the command line; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from sklearn import datasets

from tests import kernel_machines as dense
from tests.graphs import exact, net, run, weight
from tests.kernel_machines import KERNEL_K_MEANS, SQUARES, Density, density_graph
from xaicompile import composite
from xaicompile.cli import cli
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError, UnsupportedError


def standardised(name: str) -> np.ndarray:
    """A data set of scikit-learn, mean 0 and deviation 1."""
    x = getattr(datasets, f"load_{name}")(return_X_y=True)[0].astype(np.float64)
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 0, deviation, 1.0)


# --- on top of a network ----------------------------------------------------------------------------------------------

FEATURES = "v = Conv <pads = [1, 1, 1, 1]> (image, w1) r = Relu(v) f = Flatten(r) h = Gemm(f, w2, bias) x = Relu(h)"


def deep(kind: str) -> onnx.ModelProto:
    """A small CNN with a density of its features, or their k-means, behind it."""
    points = np.abs(weight(6, 8, dtype=np.float64) * 3)
    body = (
        f"{FEATURES} {SQUARES['matmul']} "
        + {
            "kde": "a = Mul(d, slope) k = Exp(a) y = MatMul(k, weights)",
            "kmeans": "y = Sqrt(d)",
        }[kind]
    )
    given = dense.constants(points, 0.2, np.ones(6), "float64")
    given |= {"w1": weight(3, 2, 3, 3, dtype=np.float64), "w2": weight(108, 8, dtype=np.float64), "bias": np.zeros(8)}
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    out = "N" if kind == "kde" else "N,6"
    return net(f"(double[N,2,6,6] image) => (double[{out}] y)", body, **used)


@pytest.mark.parametrize("rule", ["lrp-0", "lrp-gamma", "lrp-epsilon", "epsilon-plus"])
@pytest.mark.parametrize("kind", ["kde", "kmeans"])
def test_relevance_goes_on_to_the_pixels(kind: str, rule: str) -> None:
    """Also through units that are off, which distances give relevance to (spec 9.8): the ledger stays small."""
    x = np.random.default_rng(0).normal(size=(4, 2, 6, 6))
    compiled = compile_model(deep(kind), rule, neuralize="auto", ledger=True, layers=["h"])
    out = exact(compiled.model, {"image": x})
    books = out["relevance"].reshape(4, -1).sum(1) + out["ledger"]
    np.testing.assert_allclose(books, out["explained"], rtol=1e-9)
    off = out["relevance_h"][exact_tensor(compiled.model, "h", x) < 0]
    assert np.abs(off).max() > 1e-3
    np.testing.assert_allclose(out["relevance_h"].sum(1), out["explained"], rtol=1e-9)
    assert np.abs(out["ledger"]).max() < (0.1 if rule != "lrp-0" else 1e-9) * np.abs(out["explained"]).max()
    (rule_of_relu,) = (a for a in compiled.assignments if a.rule == "pass")
    assert "units that are 0" in rule_of_relu.reason


def exact_tensor(model: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    """An inner tensor of a model."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return exact(copy, {"image": x})[name]


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["breast_cancer", "wine", "digits"])
def test_density_of_real_data(data: str) -> None:
    """N2, N3 on every tenth sample against all others."""
    x = standardised(data)
    points, rest = x[np.arange(len(x)) % 10 > 0], x[::10]
    gamma = 1 / x.shape[1]
    model = density_graph("gemm", "matmul", points, np.ones(len(points)), gamma)
    out = exact(compile_model(model, "neuralized-kde", ledger=True).model, {"x": rest})
    want = Density(rest, points, np.ones(len(points)), gamma)
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(out["relevance"].sum(1), out["outlierness"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("data", ["breast_cancer", "wine", "digits"])
def test_clusters_of_real_data(data: str) -> None:
    """N5: evidence is positive for the assigned cluster alone; the log-odds of kernel k-means are those of its p."""
    x, y = standardised(data), getattr(datasets, f"load_{data}")().target
    centres = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    body = f"{SQUARES['gemm']} y = ArgMin <axis = 1, keepdims = 0> (d)"
    given = dense.constants(centres, 1.0, None, "float64")
    used = {k: v for k, v in given.items() if f"{k}," in body or f"{k})" in body}
    model = net(f"(double[N,{x.shape[1]}] x) => (int64[N] y)", body, **used)
    out = exact(compile_model(model, "neuralized-kmeans", ledger=True).model, {"x": x})
    np.testing.assert_allclose(out["cluster_evidence"], dense.evidence(x, centres).max(1), rtol=0, atol=1e-10)
    assert (out["cluster_evidence"] > 0).all()
    np.testing.assert_allclose(out["relevance"].sum(1), out["cluster_evidence"], rtol=0, atol=1e-9)
    few = np.arange(len(x)) % 5 > 0
    members = np.eye(len(centres))[np.searchsorted(np.unique(y), y[few])]
    members /= members.sum(0)
    gamma = 0.5 / x.shape[1]
    model = KERNEL_K_MEANS["logarithms"](x[few], members, gamma, 2 * gamma)
    out = exact(compile_model(model, "neuralized-kernel-kmeans").model, {"x": x[~few][:40]})
    z = dense.kernel_logits(x[~few][:40], x[few], members, gamma, 2 * gamma)
    np.testing.assert_allclose(out["log_ratio"], dense.log_odds(z).max(1), rtol=0, atol=1e-8)


# --- rule sets and the command line -----------------------------------------------------------------------------------


def points_and_weights() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(9, 4)), random.uniform(0.2, 1.0, 9)


def test_every_shipped_set_fits_its_model() -> None:
    """neuralized-<kind> finds its kind, and `neuralized` all of them."""
    points, weights = points_and_weights()
    members = np.eye(3)[np.arange(9) % 3]
    models = {
        "kde": density_graph("mul", "matmul", points, weights, 0.5),
        "one-class-svm": density_graph("mul", "matmul", points, weights, 0.5, rho=1.0),
        "kmeans": net("(double[N,4] x) => (double[N,9] y)", f"{SQUARES['sumsquare']} y = Sqrt(d)", points=points),
        "kernel-kmeans": KERNEL_K_MEANS["powers"](points, members, 0.5, 1.0),
        "log-ratio": net("(double[N,4] x) => (double[N,9] y)", "z = Gemm(x, w) y = Softmax(z)", w=points.T.copy()),
    }
    sets = {name for name in composite.shipped() if composite.load(name).neuralize}
    assert sets == {f"neuralized-{kind}" for kind in models} | {"neuralized"}
    scores = dict.fromkeys(models, "outlierness") | {"kmeans": "cluster_evidence"}
    scores |= dict.fromkeys(("kernel-kmeans", "log-ratio"), "log_ratio")
    for kind, model in models.items():
        for name in (f"neuralized-{kind}", "neuralized"):
            made = compile_model(model, name).model
            assert [o.name for o in made.graph.output][:3] == ["y", "relevance", scores[kind]]
            assert {p.key: p.value for p in made.metadata_props}["xaicompile.neuralized"] == scores[kind]


def test_a_pool_of_one_s_own(tmp_path: Path) -> None:
    """`pool` in a rule file is `--pool`."""
    points, weights = points_and_weights()
    model, x = density_graph("mul", "matmul", points, weights, 0.5), np.ones((2, 4))
    file = tmp_path / "mine.toml"
    file.write_text('extends = "neuralized-kde"\npool = "v-act"\n', encoding="utf-8")
    by_file, by_option = (
        exact(compile_model(model, rule, pool=pool).model, {"x": x})["relevance"]
        for rule, pool in ((file, None), ("neuralized-kde", "v-act"))
    )
    np.testing.assert_array_equal(by_file, by_option)
    file.write_text('extends = "neuralized-kde"\npool = "v-up"\n', encoding="utf-8")
    with pytest.raises(RuleError, match=r"pooling rule of mine.toml: 'v-up'; did you mean 'v-out'"):
        composite.load(file)


def test_distances_are_read_where_they_are() -> None:
    """`distances` rewrites nothing, and any rule then shares a distance among features by their squares."""
    points, _ = points_and_weights()
    model = net("(double[N,4] x) => (double[N,9] y)", f"{SQUARES['mul']} y = Identity(d)", points=points)
    x = np.random.default_rng(2).normal(size=(3, 4))
    out = exact(compile_model(model, "lrp-epsilon", neuralize="distances", target=4, ledger=True).model, {"x": x})
    np.testing.assert_allclose(out["relevance"], (x - points[4]) ** 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out["ledger"], 0, atol=1e-12)


def test_a_model_that_says_what_it_is() -> None:
    """What `neuralize` made is explained as such by any rule set, but for a tensor that the user names."""
    points, weights = points_and_weights()
    model = density_graph("mul", "matmul", points, weights, 0.5)
    model.metadata_props.add(key="xaicompile.neuralize", value="kde")
    made = compile_model(model, "lrp-epsilon")
    assert [o.name for o in made.model.graph.output] == ["y", "relevance", "outlierness", "outlierness_bias"]
    assert "SquaredDistance" in {a.op for a in made.assignments}
    assert [o.name for o in compile_model(model, "lrp-epsilon", explain_output="y").model.graph.output] == [
        "y",
        "relevance",
    ]
    assert "outlierness" not in {o.name for o in compile_model(model, "integrated-gradients").model.graph.output}


def test_command_line(tmp_path: Path) -> None:
    """--neuralize and --pool; the self-check runs; inspect lists distances and pools."""
    points, weights = points_and_weights()
    path, out = tmp_path / "kde.onnx", tmp_path / "out.onnx"
    onnx.save(density_graph("gemm", "matmul", points.astype("f"), weights.astype("f"), 0.5, dtype="float32"), path)
    done = CliRunner().invoke(cli, [str(path), "--neuralize", "auto", "--pool", "v-act", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "explains -log of the normed kernel sum" in done.output and out.exists()
    shown = CliRunner().invoke(cli, ["inspect", str(path), "--neuralize", "kde"])
    assert "SquaredDistance" in shown.output and "SoftMin" in shown.output
    made = run(onnx.load(out), {"x": np.ones((2, 4), np.float32)})
    assert made["outlierness"].shape == (2,)


# --- what is refused --------------------------------------------------------------------------------------------------

RELU = "h = Relu(x) y = MatMul(h, w)"


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (
            "kde",
            RELU,
            r"kde: looked for a sum of kernels, .* in front of 'y', but MatMul '.*' sums no exponentials, but Relu",
        ),
        ("one-class-svm", "h = Exp(x) y = MatMul(h, w)", r"but 'x' is no part of squared distances"),
        (
            "kde",
            "u = Sub(x, c) q = Mul(u, u) h = Exp(q) y = MatMul(h, w)",
            r"but Mul '.*' is no part of squared dist",
        ),
        ("kmeans", RELU, r"kmeans: looked for distances to cluster centres, or their ArgMin in front of 'y'"),
        ("kernel-kmeans", "y = MatMul(x, w)", r"but MatMul '.*' is neither a Softmax nor a division by the sum"),
        (
            "log-ratio",
            "h = MatMul(x, w) s = ReduceSum(h) y = Mul(h, s)",
            r"but Mul '.*' is neither Softmax, LogSoftmax nor",
        ),
        (
            "kmeans",
            "one = Constant <value_ints = [1]> () u = Unsqueeze(x, one) e = Sub(u, lone) last = Constant "
            "<value_ints = [2]> () y = ReduceSumSquare <keepdims = 0> (e, last)",
            r"knows one cluster only, and no rival",
        ),
        (
            "log-ratio",
            "h = MatMul(x, w) p = Sigmoid(h) y = Concat <axis = 1> (p, p)",
            r"joins other things than 1 - p and p",
        ),
        ("auto", RELU, r"kernel-kmeans: .* one-class-svm: .* kde: .* kmeans: .*"),
    ],
)
def test_a_model_without_the_pattern(kind: str, body: str, message: str) -> None:
    """The error says what was looked for, and at which node the graph differs."""
    given = {"w": np.ones((3, 2 if kind in ("kmeans", "auto") else 1), np.float32)}
    given |= {"c": np.ones(3, np.float32), "lone": np.ones((1, 3), np.float32)}
    used = {name: value for name, value in given.items() if f"{name})" in body}
    width = "K" if "Reduce" in body or "Concat" in body else given["w"].shape[1]
    model = net(f"(float[N,3] x) => (float[N,{width}] y)", body, **used)
    with pytest.raises(UnsupportedError, match=message):
        compile_model(model, "lrp-0", neuralize=kind)


def test_weights_of_both_signs() -> None:
    """A classifier's kernel sum is no density."""
    points, weights = points_and_weights()
    model = density_graph("mul", "matmul", points, weights - 0.5, 0.5)
    with pytest.raises(
        UnsupportedError, match=r"the weights in MatMul .* have both signs: a classifier, and no density"
    ):
        compile_model(model, "lrp-0", neuralize="kde")


def test_a_constant_that_is_not_the_points_square() -> None:
    """|x|^2 - 2 x u + c with another c is no distance, and as the exponent of a kernel another weight."""
    points, _ = points_and_weights()
    given = dense.constants(points, 0.5, None, "float64")
    body = f"{SQUARES['matmul']} y = ArgMin <axis = 1, keepdims = 0> (d)"
    used = {k: given[k] for k in ("points", "two", "zero")} | {"own": given["own"] + np.arange(9)}
    model = net("(double[N,4] x) => (int64[N] y)", body, **used)
    with pytest.raises(UnsupportedError, match=r"is not the points' \|u\|\^2"):
        compile_model(model, "lrp-0", neuralize="kmeans")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neuralize": "kme"}, "unknown kind of --neuralize: 'kme'; did you mean 'kmeans'?"),
        (
            {"neuralize": "kde", "rule": "integrated-gradients"},
            "looks at many points, and can't be applied to a neural",
        ),
        ({"neuralize": "kde", "pool": "soft"}, "unknown pooling rule of --pool: 'soft'"),
        ({"neuralize": "kmeans", "pool": "v-out"}, "needs its stiffness: --set stiffness=BETA"),
        ({"neuralize": "log-ratio", "contrast": "others"}, "the log-ratio of a class is a contrast itself"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    points, weights = points_and_weights()
    body = {"kde": None, "kmeans": f"{SQUARES['mul']} y = Sqrt(d)", "log-ratio": f"{SQUARES['mul']} y = Softmax(d)"}
    written = body.get(options["neuralize"])
    model = density_graph("mul", "matmul", points, weights, 0.5)
    if written:
        model = net("(double[N,4] x) => (double[N,9] y)", written, points=points)
    with pytest.raises(RuleError, match=message.replace("?", r"\?")):
        compile_model(model, options.pop("rule", "lrp-0"), **options)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    """Exit code 4, one line, nothing written."""
    path = tmp_path / "net.onnx"
    onnx.save(net("(float[N,3] x) => (float[N,2] y)", RELU, w=np.ones((3, 2), np.float32)), path)
    done = CliRunner().invoke(cli, [str(path), "--neuralize", "kde"])
    assert done.exit_code == 4 and len(done.stderr.strip().splitlines()) == 1
    assert "looked for a sum of kernels" in done.stderr and list(tmp_path.iterdir()) == [path]


# --- what is emitted is a model like any other ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kde", "kernel-kmeans", "log-ratio"])
def test_an_explanation_has_a_gradient_itself(kind: str) -> None:
    """The gradient of one sample's relevance, weighted, against central differences."""
    points, weights = points_and_weights()
    members = np.eye(3)[np.arange(9) % 3]
    model = {
        "kde": lambda: density_graph("mul", "matmul", points, weights, 0.5),
        "kernel-kmeans": lambda: KERNEL_K_MEANS["powers"](points, members, 0.5, 1.0),
        "log-ratio": lambda: net(
            "(double[N,4] x) => (double[N,9] y)", "z = Gemm(x, w) y = Softmax(z)", w=points.T.copy()
        ),
    }[kind]()
    once = compile_model(model, "neuralized").model
    again = compile_model(once, "gradient", explain_output="relevance", explain_input="x", explain_reduce="sum").model
    onnx.checker.check_model(again, full_check=True)
    x = np.random.default_rng(5).normal(size=(1, 4))
    found = exact(again, {"x": x})["relevance_2"]
    step = 1e-6
    want = np.zeros(4)
    for i in range(4):
        ends = [exact(once, {"x": x + sign * step * np.eye(4)[i]})["relevance"].sum() for sign in (1, -1)]
        want[i] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found[0], want, rtol=1e-6, atol=1e-8)


def test_half_precision() -> None:
    """float16 in, float16 out, and finite: scores and relevance near those of float64."""
    points, weights = points_and_weights()
    x = np.random.default_rng(6).normal(size=(5, 4))
    model = density_graph("matmul", "matmul", points, weights, 0.5, dtype="float16")
    out = run(compile_model(model, "neuralized-kde").model, {"x": x.astype(np.float16)})
    want = Density(x, points, weights, 0.5)
    assert out["relevance"].dtype == np.float16
    np.testing.assert_allclose(out["outlierness"], want.score, rtol=0.02)
    np.testing.assert_allclose(out["relevance"], want.v_out(), rtol=0, atol=0.05 * np.abs(want.v_out()).max())
