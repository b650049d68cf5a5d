"""Neuralized models as exporters write them, against the formulas in numpy, in float32 in ONNX Runtime."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import onnx
import pytest

pytest.importorskip("torchvision")
pytest.importorskip("skl2onnx")
import torch
import torchvision
from sklearn.neighbors import KernelDensity
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

import xaicompile
from tests import estimators
from tests.graphs import net as graph
from xaicompile.compiler import compile_model
from xaicompile.runtime import run

from . import neuralize_sklearn as sklearn
from . import neuralize_texture as texture
from . import neuralize_torch as written
from . import zoo
from .neuralize_torch import EXPORTERS, PAIRS, WRITINGS, Machine, Wanted

pytestmark = pytest.mark.parity
Arrays = dict[str, np.ndarray]
SCORE, RELEVANCE, BOOKS = 1e-5, 1e-4, 1e-5
SCORES = dict.fromkeys(("kde", "one-class-svm"), "outlierness")
SCORES |= {"kmeans": "cluster_evidence", "kernel-kmeans": "log_ratio", "log-ratio": "log_ratio"}
exported = pytest.mark.parametrize("exporter", EXPORTERS)
in_pairs = pytest.mark.parametrize(("name", "exporter"), PAIRS)


def explained(model: onnx.ModelProto, kind: str, as_kind: str, x: np.ndarray) -> Arrays:
    """All outputs, once the prediction is seen to be the source model's.

    Args:
        kind: What is asked for.
        as_kind: What it should be taken for.
    """
    compiled = compile_model(model, "lrp-0", neuralize=kind, ledger=True)
    feed = {model.graph.input[0].name: x}
    got, source = run(compiled.model, feed), run(model, feed)
    for name, value in source.items():
        np.testing.assert_array_equal(got[name], value)
    found = {p.key: p.value for p in compiled.model.metadata_props}["xaicompile.neuralized"]
    assert found == SCORES[as_kind] and ("outlierness_threshold" in got) == (as_kind == "one-class-svm")
    np.testing.assert_array_equal(got["explained"], got[found])
    return got


def books_close(got: Arrays, lost: np.ndarray | float = 0.0) -> None:
    """Relevance and ledger sum to the score, to float32's digits of what is summed, and what is lost before."""
    relevance = got["relevance"].reshape(len(got["relevance"]), -1)
    scale = at_least_one(np.maximum(np.abs(relevance).sum(1), np.abs(got["explained"])))
    near(relevance.sum(1) + got["ledger"], got["explained"], BOOKS * scale + lost)


def at_least_one(value: np.ndarray) -> np.ndarray:
    """What errors are relative to."""
    found: np.ndarray = np.maximum(1, np.abs(value))
    return found


def near(got: np.ndarray, want: np.ndarray, limit: np.ndarray | float) -> None:
    """Finite and equal, but for the limit."""
    assert got.shape == want.shape and np.isfinite(got).all()
    off: np.ndarray = np.abs(got - want)
    assert (off <= limit).all(), f"off by {off.max()}"


def as_wanted(got: Arrays, want: Wanted) -> None:
    """Score and relevance are the dense formulas'."""
    near(got["explained"], want.score, SCORE * at_least_one(want.score))
    near(got["relevance"], want.relevance, RELEVANCE * np.abs(want.relevance).max())
    if want.minus_log is not None:
        minus_log = got["outlierness"] + got["outlierness_bias"]
        near(minus_log, want.minus_log, SCORE * at_least_one(want.minus_log))


def as_decided(got: Arrays, name: str) -> None:
    """What the model decides is what the score says."""
    kind, y = WRITINGS[name].kind, got["y"]
    if kind == "one-class-svm":
        assert ((got["outlierness"] > got["outlierness_threshold"]) == (y < 0)).all() and 0 < (y < 0).sum() < len(y)
    elif kind == "kmeans":
        assert (got["explained"] > 0).all()


# --- torch ------------------------------------------------------------------------------------------------------------


def inputs(*shape: int, seed: int = 8) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@in_pairs
def test_on_the_input(name: str, exporter: str) -> None:
    machine, x = Machine([name], deep=False).eval(), inputs(9, written.FEATURES)
    model, want = written.export(machine, x[:4], ["y"], exporter), written.wanted(machine, name, x)
    for kind in (WRITINGS[name].kind, "auto"):
        got = explained(model, kind, WRITINGS[name].kind, x.numpy())
        books_close(got)
        as_wanted(got, want)
        as_decided(got, name)


@cache
def on_a_cnn(exporter: str) -> tuple[Machine, onnx.ModelProto]:
    """One network with all machines side by side; each is then taken out, which is quicker than to export them all."""
    names = [name for name, by in PAIRS if by == exporter]
    machine = Machine(names, deep=True).eval()
    return machine, written.export(machine, inputs(4, 1, 6, 6), [f"y{i}" for i in range(len(names))], exporter)


def taken_out(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part that makes one output, renamed `y`."""
    part = onnx.utils.Extractor(model).extract_model(["x"], [output])
    part.graph.node.add(op_type="Identity", input=[output], output=["y"])
    part.graph.output[0].name = "y"
    return part


@in_pairs
def test_on_a_cnn(name: str, exporter: str) -> None:
    machine, whole = on_a_cnn(exporter)
    model, x = taken_out(whole, f"y{machine.names.index(name)}"), inputs(9, 1, 6, 6)
    cnn = copy.deepcopy(machine.cnn).double()
    features = written.wanted(machine, name, cnn(x.double()).detach())
    want = Wanted(features.score, written.to_pixels(cnn, x, features.relevance), features.minus_log)
    for kind in (WRITINGS[name].kind, "auto"):
        got = explained(model, kind, WRITINGS[name].kind, x.numpy())
        books_close(got)
        as_wanted(got, want)
        as_decided(got, name)


# --- skl2onnx ---------------------------------------------------------------------------------------------------------

every = pytest.mark.parametrize("name", sklearn.ESTIMATORS)
on = pytest.mark.parametrize("data", sklearn.DATA)
scaled = pytest.mark.parametrize("scaled", [False, True], ids=["bare", "behind a scaler"])


@every
@on
@scaled
def test_estimators(name: str, data: str, scaled: bool) -> None:
    """The score of each class, near and far; what is decided; and the network of `xaicompile.neuralize`."""
    f = sklearn.fitted(name, data, scaled)
    compiled = compile_model(f.model, "lrp-0", neuralize=f.of.kind, ledger=True).model
    for x in (f.near, f.far):
        scores, lost = f.scores(x), f.rounding(x) if x is f.far else np.zeros(len(x))
        for kind in (f.of.kind, "auto"):
            got = explained(f.model, kind, f.of.kind, x)
            if x is f.near or f.of.kind != "one-class-svm":
                books_close(got, lost)
            near(got["explained"], scores.max(1), SCORE * at_least_one(scores.max(1)) + lost)
        assert np.isfinite(got["relevance"]).all()
        if f.of.kind == "one-class-svm":
            outlier = got["outlierness"] > got["outlierness_threshold"]
            np.testing.assert_array_equal(outlier, f.predicted(x) == -1)
            continue
        for k, column in enumerate(scores.T):
            one = run(compiled, {"X": x, "target": np.full(len(x), k)})["explained"]
            near(one, column, SCORE * at_least_one(column) + lost)
            if f.of.kind == "kmeans":
                np.testing.assert_array_equal(one > 0, f.predicted(x) == k)
        np.testing.assert_array_equal(scores.argmax(1), f.predicted(x))
    own = compile_model(xaicompile.neuralize(f.estimator), "lrp-0", ledger=True).model
    one, other = (run(m, {"X": f.near}) for m in (compiled, own))
    near(one["explained"], other["explained"], SCORE * at_least_one(other["explained"]))
    near(one["relevance"], other["relevance"], SCORE * np.abs(other["relevance"]).max())


@on
@scaled
def test_minus_log_of_score_samples(data: str, scaled: bool) -> None:
    f = sklearn.fitted("OneClassSVM", data, scaled)
    got = explained(f.model, "one-class-svm", "one-class-svm", f.near)
    want = -np.log(f.last.score_samples(f.before(f.near)))
    near(got["outlierness"] + got["outlierness_bias"], want, SCORE * at_least_one(want))
    outlier = f.predicted(f.near) == -1
    assert 0 < outlier.sum() < len(outlier)


def test_books_of_far_outliers() -> None:
    f = sklearn.fitted("OneClassSVM", "wine", False)
    books_close(explained(f.model, "one-class-svm", "one-class-svm", f.far))


# --- whole classifiers ------------------------------------------------------------------------------------------------


@exported
def test_a_classifier_of_torchvision(exporter: str) -> None:
    """The log-odds of a class of 1000, of logits in float64, and LRP-0 as gradient x input."""
    net = torchvision.models.squeezenet1_1(weights=None).eval()
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    zoo.randomise(net, 64, seed=3)
    x = inputs(2, 3, 64, 64, seed=9)  # by seed 8 one unit is at its kink, and float32 decides on which side
    model = written.export(nn.Sequential(net, nn.Softmax(1)).eval(), x, ["y"], exporter)
    leaf = x.double().requires_grad_()
    z = net.double()(leaf)
    best = z.argmax(1, keepdim=True)
    rivals = z.scatter(1, best, -torch.inf).logsumexp(1)
    odds = z.gather(1, best)[:, 0] - rivals
    (slopes,) = torch.autograd.grad(odds.sum(), leaf)
    for kind in ("log-ratio", "auto"):
        got = explained(model, kind, "log-ratio", x.numpy())
        books_close(got)
        as_wanted(got, Wanted(odds.detach().numpy(), (leaf * slopes).detach().numpy()))


@pytest.mark.skipif(not texture.MODEL.exists(), reason="models/fetch_demo.py fetches the classifier")
@pytest.mark.parametrize("name", texture.TEXTURES)
def test_a_square_in_a_texture(name: str) -> None:
    """It is stranger than all that was fitted, and is where the relevance says."""
    t, features = texture.TEXTURES[name], texture.backbone()
    normal, odd = texture.samples(t)
    fitted = texture.in_batches(features, normal, "flatten:out").astype(np.float64)
    width = float(np.median([d for d in estimators.distances(fitted, fitted).reshape(-1) if d > 0]))
    heads = {"kde": KernelDensity(bandwidth=(width / 2) ** 0.5), "one-class-svm": OneClassSVM(gamma=1 / width, nu=0.1)}
    for kind, head in heads.items():
        model = texture.with_head(features, head.fit(fitted))
        compiled = compile_model(model, "lrp-gamma", neuralize=kind, ledger=True).model
        got = run(compiled, {"x": odd})
        books_close(got)
        usual = run(xaicompile.neuralize(head), {"X": fitted.astype(np.float32)})["outlierness"]
        assert got["outlierness"].min() > usual.max()
        near(got["outlierness"], run(model, {"x": odd})["head/outlierness"], SCORE * got["outlierness"])
        positive = np.maximum(got["relevance"][0], 0)
        assert positive[texture.SQUARE].sum() >= t.least * positive.sum()


# --- more heads of classifiers ----------------------------------------------------------------------------------------


def test_probabilities_as_maps() -> None:
    """skl2onnx writes a ZipMap if nobody says otherwise."""
    f = sklearn.fitted("LogisticRegression", "wine", False)
    model = sklearn.written(f.estimator, f.near, zipmap=True)
    assert "ZipMap" in {node.op_type for node in model.graph.node}
    for kind in ("log-ratio", "auto"):
        got = run(compile_model(model, "lrp-0", neuralize=kind).model, {"X": f.near})
        near(got["log_ratio"], f.scores(f.near).max(1), SCORE * at_least_one(f.scores(f.near).max(1)))


def test_one_against_the_rest() -> None:
    """Each class has a sigmoid of its own, and log p/(1-p) of it is its score."""
    f = sklearn.fitted("LogisticRegression", "wine", False)
    rest = copy.deepcopy(f.estimator)
    rest.multi_class = "ovr"  # as older scikit-learn has it
    model = sklearn.written(rest, f.near)
    (node,) = (n for n in model.graph.node if n.op_type == "LinearClassifier")
    assert b"LOGISTIC" in {a.s for a in node.attribute}
    compiled, want = compile_model(model, "lrp-0", neuralize="log-ratio").model, f.last.decision_function(f.near)
    for k, column in enumerate(want.T):
        got = run(compiled, {"X": f.near, "target": np.full(len(f.near), k)})["log_ratio"]
        near(got, column, SCORE * at_least_one(column))


def test_reading_takes_no_way_twice() -> None:
    """Residual blocks: n of them have 2^n ways back to the input, and more nodes than Python nests calls."""
    body = "x0 = Identity(x) " + " ".join(f"r{i} = Relu(x{i}) x{i + 1} = Add(x{i}, r{i})" for i in range(700))
    model = graph("(float[N,3] x) => (float[N,3] y)", f"{body} y = Softmax <axis = 1> (x700)")
    notes = compile_model(model, "lrp-0", neuralize="auto").notes
    assert any("log p/(1-p)" in note for note in notes)
