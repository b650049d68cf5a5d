"""Sanity checks: which weights are drawn anew, and how alike maps stay, against networks worked out in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graphs import data, net, run, weight
from tests.nets import cnn, external
from xaicompile.compiler import compile_model
from xaicompile.errors import ModelError, RuleError
from xaicompile.evaluation.maps import rank_correlation
from xaicompile.evaluation.sanity import cascade, class_sensitivity, layers_of, randomised, weights_of
from xaicompile.runtime import Session

GXI = "gradient-x-input"
MLP = net(
    "(float[N,12] x) => (float[N,4] y)",
    """
    h = MatMul(x, w1)
    hb = Add(b1, h)
    a = Relu(hb)
    g = Gemm(a, w2, b2)
    c = Relu(g)
    y = MatMul(c, w3)
    """,
    w1=weight(12, 9),
    b1=weight(9, seed=1),
    w2=weight(9, 8),
    b2=weight(8, seed=2),
    w3=weight(8, 4),
)
X = data(3, 12)


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights by name: of initializers, and of Constants by their output."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    held = [(n.output[0], a.t) for n in model.graph.node for a in n.attribute if n.op_type == "Constant"]
    return found | {name: numpy_helper.to_array(t) for name, t in held}


def named(model: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """The model with nodes named, by their first output."""
    for node in model.graph.node:
        node.name = names.get(node.output[0], "")
    return model


def mlp(model: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N, 4] and gradient times input of each [N, 4, 12], in float64."""
    w = {name: value.astype(np.float64) for name, value in values(model).items()}
    h = x @ w["w1"] + w["b1"]
    g = np.maximum(h, 0) @ w["w2"] + w["b2"]
    gradient = np.einsum("jk,nk,kc->njc", w["w2"], g > 0, w["w3"])
    gradient = np.einsum("ij,nj,njc->nci", w["w1"], h > 0, gradient)
    return np.maximum(g, 0) @ w["w3"], gradient * x[:, None]


# --- which weights ----------------------------------------------------------------------------------------------------


def test_weights_belong_to_layers() -> None:
    """With biases, behind Transpose and Cast, in Constants; shared ones to each; scales, masks and data to none."""
    model = net(
        "(float[N,3,4,4] x, int64[N,2] ids) => (float[N,5] y, float[N,2,7] e, double[N,5] o)",
        """
        c = Conv(x, k, kb)
        n = BatchNormalization(c, scale, shift, mean, variance)
        p = GlobalAveragePool(n)
        f = Flatten(p)
        m = Add(f, mask)
        t = Transpose(w)
        a = MatMul(m, t)
        u = Constant<value = float[5,5] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25}>()
        b = Gemm(a, u, ub)
        again = MatMul(b, u)
        y = Add(again, after)
        e = Gather(table, ids)
        d = Cast<to = 11>(w)
        fd = Cast<to = 11>(f)
        dt = Transpose(d)
        z = MatMul(fd, dt)
        o = Add(z, far)
        """,
        k=weight(6, 3, 3, 3),
        kb=weight(6),
        scale=weight(6),
        shift=weight(6),
        mean=weight(6),
        variance=weight(6) ** 2,
        mask=weight(6, 6)[:1],
        w=weight(5, 6),
        ub=weight(5),
        after=weight(5),
        table=weight(9, 7),
        far=weight(1, 5, dtype=np.float64),
    )
    named(model, c="conv", a="dense", b="same", again="same", e="embedding")
    found = weights_of(model).layers
    assert found == {
        "conv": ["k", "kb"],
        "dense": ["w"],
        "b": ["u", "ub"],
        "again": ["u", "after"],
        "embedding": ["table"],
        "z": ["w"],
    }


def test_products_of_data_are_no_layers() -> None:
    """Attention multiplies what it reads; a shape that a Reshape reads is no weight."""
    model = net(
        "(float[N,3,4] x) => (float[N,3,2,2] y)",
        "t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t) z = MatMul(s, x) y = Reshape(z, to)",
        to=np.array([0, 3, 2, 2]),
    )
    assert layers_of(model) == []
    assert cascade(model, GXI, {}, data(2, 3, 4), [0, 1]) == []


def test_recurrent_and_quantised_layers_and_branches() -> None:
    """All of an LSTM's tensors of two axes and more; int8 weights behind DequantizeLinear, but not their scales."""
    model = net(
        "(float[T,N,3] x, bool q) => (float[T,1,N,4] y, float[N,5] z, float[N,2] o)",
        """
        y, h, c = LSTM<hidden_size = 4>(x, W, R, B)
        f = Squeeze(h, first)
        d = DequantizeLinear<axis = 1>(k, s)
        z = MatMul(f, d)
        o = If(q) <
            then_branch = one () => (float[N,2] r) { r = MatMul(z, v) },
            else_branch = two () => (float[N,2] r) { g = MatMul(z, v) r = Neg(g) }
        >
        """,
        W=weight(1, 16, 3),
        R=weight(1, 16, 4),
        B=weight(1, 32),
        first=np.array([0]),
        k=np.arange(20, dtype=np.int8).reshape(4, 5),
        s=np.full(5, 0.1, np.float32),
        v=weight(5, 2),
    )
    named(model, y="lstm", z="dense", o="branch")
    assert weights_of(model).layers == {"lstm": ["W", "R", "B"], "dense": ["k"], "branch": ["v"]}


def test_layers_are_in_topological_order() -> None:
    """However the nodes stand in the file."""
    model = onnx.ModelProto()
    model.CopyFrom(cnn())
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    assert layers_of(cnn()) == layers_of(model) == ["conv1", "conv2", "fc"]


# --- drawing them anew ------------------------------------------------------------------------------------------------


def test_only_the_named_layers_change() -> None:
    """Weights and biases of two layers, in a copy; the same for the same seed, whatever else is drawn."""
    before = MLP.SerializeToString()
    old, some, all_ = values(MLP), randomised(MLP, ["g", "y"], 3), randomised(MLP, layers_of(MLP), 3)
    assert MLP.SerializeToString() == before
    assert layers_of(MLP) == ["h", "g", "y"]
    changed = {name for name, value in values(some).items() if not np.array_equal(value, old[name])}
    assert changed == {"w2", "b2", "w3"}
    for name, value in values(all_).items():
        assert not np.isin(value, old[name]).any()
        assert (value.dtype, value.shape) == (old[name].dtype, old[name].shape)
    for name in changed:
        np.testing.assert_array_equal(values(some)[name], values(all_)[name])
    assert randomised(MLP, ["y"], 3) == randomised(MLP, ["y"], 3)
    assert randomised(MLP, ["y"], 3) != randomised(MLP, ["y"], 4)
    assert randomised(MLP, [], 3) == MLP


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
def test_weights_keep_mean_and_deviation(dtype: str) -> None:
    """Normal: the moments of 40,000 draws agree within five standard errors, of the kurtosis too."""
    kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
    w = (3 + 0.5 * np.random.default_rng(1).uniform(-1, 1, (200, 200))).astype(kind)
    model = net(f"({dtype}[N,200] x) => ({dtype}[N,200] y)", "y = MatMul(x, w)", w=w)
    new = values(randomised(model, ["y"], 0))["w"].astype(np.float64)
    deviation, count = w.astype(np.float64).std(), new.size
    assert new.mean() == pytest.approx(w.astype(np.float64).mean(), abs=5 * deviation / math.sqrt(count))
    assert new.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))
    assert (((new - new.mean()) / new.std()) ** 4).mean() == pytest.approx(3, abs=5 * math.sqrt(24 / count))
    assert abs(np.corrcoef(w.astype(np.float64).reshape(-1), new.reshape(-1))[0, 1]) < 5 / math.sqrt(count)


def test_constants_and_bytes() -> None:
    """Weights in Constant nodes of one shape get different numbers; int8 stays int8, in its range."""
    model = net(
        "(float[N,4] x) => (float[N,4] y)",
        """
        a = Constant<value = float[4,4] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>()
        b = Constant<value = float[4,4] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>()
        h = MatMul(x, a)
        g = MatMul(h, b)
        d = DequantizeLinear(k, s)
        y = MatMul(g, d)
        """,
        k=np.array([[-128, 127, 127, 127], [-128] * 4, [127] * 4, [-128, 127, -128, -128]], np.int8),
        s=np.float32(0.1),
    )
    changed = randomised(model, layers_of(model), 0)
    new = values(changed)
    assert not np.isin(new["a"], [*values(model)["a"], *new["b"]]).any()
    assert new["k"].dtype == np.int8
    assert np.isfinite(run(changed, {"x": data(2, 4)})["y"]).all()


def test_bytes_are_clipped() -> None:
    """Of numbers with a deviation of 127.5 about -0.5, 31.7 % lie outside of int8, and none comes in again."""
    k = np.tile(np.array([-128, 127], np.int8), (60, 40))
    model = net(
        "(float[N,60] x) => (float[N,80] y)", "d = DequantizeLinear(k, s) y = MatMul(x, d)", k=k, s=np.float32(1)
    )
    new = values(randomised(model, ["y"], 0))["k"]
    assert new.dtype == np.int8
    for end in (-128, 127):
        assert (new == end).mean() == pytest.approx(0.317 / 2, abs=0.03)


def test_what_cannot_be_randomised(tmp_path: Path) -> None:
    """A layer that is not there, and weights that were not read."""
    with pytest.raises(RuleError, match="unknown layer with weights 'conv3'; did you mean 'conv2'"):
        randomised(cnn(), ["conv3"], 0)
    unread = onnx.load(external(tmp_path), load_external_data=False)
    with pytest.raises(ModelError, match="'w3' stands in another file"):
        randomised(unread, ["fc"], 0)


# --- cascade ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "depths"), [(8, [1, 2, 3]), (2, [1, 3]), (1, [1])])
def test_cascade_against_numpy(points: int, depths: list[int]) -> None:
    """Gradient times input of the real and the randomised networks, each from its weights."""
    targets, layers = [2, 0, 3], ["h", "g", "y"]
    real = mlp(MLP, X)[1]
    found = cascade(MLP, GXI, None, {"x": X}, targets, points=points, seed=5)
    assert [name for name, _ in found] == [layers[-depth] for depth in depths]
    for depth, (_, similarity) in zip(depths, found, strict=True):
        there = mlp(randomised(MLP, layers[-depth:], 5), X)[1]
        want = [rank_correlation(real[i, t], there[i, t]) for i, t in enumerate(targets)]
        np.testing.assert_allclose(similarity, want, rtol=0, atol=1e-12)


def test_the_largest_class_is_that_of_the_real_model() -> None:
    """-1 names the same class in every model."""
    best = mlp(MLP, X)[0].argmax(1)
    assert (best != mlp(randomised(MLP, ["h", "g", "y"], 5), X)[0].argmax(1)).any()
    named_, largest = (cascade(MLP, GXI, {}, X, t, seed=5, batch=b) for t, b in ((best, 1), ([-1] * 3, 2)))
    assert largest == named_
    assert cascade(MLP, GXI, {}, X, best, seed=6) != named_


def test_random_maps_fail_the_check() -> None:
    """What no weight decides stays the same."""
    found = cascade(MLP, "random", {"seed": 1}, X, [0, 1, 2])
    assert [similarity for _, similarity in found] == [[1.0] * 3] * 3


def test_pictures_channels_and_options(tmp_path: Path) -> None:
    """Channels are summed before ranks are taken; parameters and options reach the compiler; data beside the model."""
    x, rule = data(2, 3, 12, 12), {"gamma": 0.5}
    options = {"explain_output": "prob"}
    path = external(tmp_path)
    found = cascade(path, "lrp-gamma", rule, x, [1, 4], channels=0, points=2, seed=1)
    assert found == cascade(cnn(), "lrp-gamma", rule, x, [1, 4], channels=0, points=2, seed=1)
    assert [name for name, _ in found] == ["fc", "conv1"]
    for depth, (_, similarity) in zip((1, 3), found, strict=True):
        models = (cnn(), randomised(cnn(), layers_of(cnn())[-depth:], 1))
        made = [compile_model(m, "lrp-gamma", parameters=rule).model for m in models]
        real, there = (run(m, {"x": x, "target": np.array([1, 4])})["relevance"].sum(1) for m in made)
        want = [rank_correlation(a, b) for a, b in zip(real, there, strict=True)]
        np.testing.assert_allclose(similarity, want, rtol=0, atol=1e-3)
    soft = cnn(softmax=True)
    explained = cascade(soft, GXI, {}, x, [1, 4], channels=0, points=1, options=options)
    assert explained != cascade(soft, GXI, {}, x, [1, 4], channels=0, points=1)


def test_a_model_of_one_sample() -> None:
    """A fixed batch of one is run sample by sample."""
    x = data(3, 3, 12, 12)
    one, many = (cascade(cnn(batch=b), GXI, {}, x, [0, 1, 2], channels=0, points=1) for b in (1, "N"))
    np.testing.assert_allclose(one[0][1], many[0][1], atol=1e-3)


def test_a_model_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is compiled."""
    monkeypatch.setattr("xaicompile.evaluation.sanity.LIMIT", 1000)
    with pytest.raises(ModelError, match="more than 2 GB"):
        cascade(cnn(), GXI, {}, data(1, 3, 12, 12), [0])


# --- classes ----------------------------------------------------------------------------------------------------------


def sensitivity(
    model: onnx.ModelProto, targets: Sequence[int], others: Sequence[int] | None = None, rule: str = GXI
) -> list[float] | None:
    """Of the samples above."""
    return class_sensitivity(Session(compile_model(model, rule).model), X, targets, others, batch=2)


def test_class_sensitivity_against_numpy() -> None:
    """The target's map against that of the smallest score, or of the next where that is the target."""
    scores, maps = mlp(MLP, X)
    order = scores.argsort(1)
    for targets in ([1, 2, 3], order[:, 0].tolist(), [-1, -1, 0]):
        first = [t if t >= 0 else int(order[i, -1]) for i, t in enumerate(targets)]
        second = [order[i, 1] if order[i, 0] == t else order[i, 0] for i, t in enumerate(first)]
        want = [rank_correlation(maps[i, a], maps[i, b]) for i, (a, b) in enumerate(zip(first, second, strict=True))]
        np.testing.assert_allclose(sensitivity(MLP, targets), want, rtol=0, atol=1e-12)
    want = [rank_correlation(maps[i, 0], maps[i, 3]) for i in range(3)]
    np.testing.assert_allclose(sensitivity(MLP, [0, 0, 0], [3, 3, 3]), want, rtol=0, atol=1e-12)


def test_scores_behind_a_softmax() -> None:
    """The explained logits are no output: their probabilities have the same order."""
    soft = onnx.ModelProto()
    soft.CopyFrom(MLP)
    soft.graph.node.append(helper.make_node("Softmax", ["y"], ["p"]))
    soft.graph.output[0].name = "p"
    assert sensitivity(soft, [1, 2, 3]) == sensitivity(MLP, [1, 2, 3])


def test_maps_that_no_class_decides() -> None:
    """Random numbers are the same for every class, and 1 tells."""
    assert sensitivity(MLP, [0, 1, 2], rule="random") == [1.0] * 3


def test_a_map_that_only_changes_its_sign() -> None:
    """-1, which is no less alike than 1."""
    w = weight(12, 1)
    two = net("(float[N,12] x) => (float[N,2] y)", "y = MatMul(x, w)", w=np.concatenate([w, -w], 1))
    assert sensitivity(two, [0, 1, 0]) == [-1.0] * 3


def test_without_classes() -> None:
    """Of one output, or of a sum of them, there is no other class."""
    one = net("(float[N,12] x) => (float[N,1] y)", "y = MatMul(x, w)", w=weight(12, 1))
    assert sensitivity(one, [0, 0, 0]) is None
    summed = compile_model(MLP, GXI, explain_reduce="sum").model
    assert class_sensitivity(Session(summed), X, [0, 0, 0]) is None
    assert len(cascade(MLP, GXI, {}, X, [0, 0, 0], options={"explain_reduce": "sum"})) == 3
