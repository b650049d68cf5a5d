"""Pixel flipping in the graph against a plain loop over the source model, and its exact identities (spec 12.3)."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from tests.graphs import exact, net, run
from tests.nets import cnn
from xaicompile.cli import cli
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

RANDOM = np.random.default_rng(0)
W, X = RANDOM.normal(size=(12, 3)), RANDOM.normal(size=(5, 12))
LINEAR = net("(double[N,12] x) => (double[N,3] y)", "y = MatMul(x, w)", w=W)
IMAGES = RANDOM.normal(size=(3, 3, 12, 12)).astype(np.float32)


def curves(model: onnx.ModelProto, rule: str, feed: dict[str, np.ndarray], **parameters: Any) -> dict[str, np.ndarray]:
    """All outputs of a model that is evaluated."""
    made = compile_model(model, rule, evaluate="pixel-flipping", parameters=parameters).model
    return (exact if model is LINEAR else run)(made, feed)


# --- identities -------------------------------------------------------------------------------------------------------


def contributions() -> tuple[np.ndarray, np.ndarray]:
    """Gradient times input of the largest score, and that score."""
    k = (X @ W).argmax(1)
    return X * W[:, k].T, (X @ W).max(1)


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_linear_models_are_exact(order: str) -> None:
    """P1: y_k is f less the k largest (smallest) contributions; aopc + auc = y_0; aoc is over y_0."""
    out, (r, f) = curves(LINEAR, "gradient-x-input", {"x": X}, steps=12, order=order), contributions()
    lost = np.sort(r, 1) if order == "lerf" else np.sort(r, 1)[:, ::-1]
    want = f[:, None] - np.concatenate([np.zeros((5, 1)), lost.cumsum(1)], 1)
    np.testing.assert_allclose(out["flipping_curve"], want, rtol=0, atol=1e-13)
    np.testing.assert_allclose(out["aopc"], (f[:, None] - want).mean(1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(out["auc"], want.mean(1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(out["aopc"] + out["auc"], f, rtol=0, atol=1e-13)
    np.testing.assert_allclose(out["aoc"], out["aopc"] / f, rtol=0, atol=1e-12)


def test_no_order_is_better() -> None:
    """P1: of all orders of a linear model MoRF has the largest area, LeRF the smallest."""
    w, x = W[:6, :1], X[:1, :6]
    model = net("(double[N,6] x) => (double[N,1] y)", "y = MatMul(x, w)", w=w)
    r, areas = (x[0] * w[:, 0]), []
    for order in permutations(range(6)):
        lost = np.concatenate([[0], r[list(order)].cumsum()])
        areas.append(lost.mean())
    for order, best in (("morf", max(areas)), ("lerf", min(areas))):
        made = compile_model(model, "lrp-0", evaluate="pixel-flipping", parameters={"steps": 6, "order": order}).model
        np.testing.assert_allclose(exact(made, {"x": x})["aopc"], best, rtol=0, atol=1e-12)


def test_random_orders_lose_in_proportion() -> None:
    """P1: over many seeds of `random`, E aopc = sum R / 2."""
    _, f = contributions()
    found = [curves(LINEAR, "random", {"x": X}, **{"steps": 12, "rule.seed": s})["aopc"] for s in range(60)]
    spread = np.std(found, 0) / np.sqrt(60)
    assert (np.abs(np.mean(found, 0) - f / 2) < 4 * spread).all()


# --- against a loop over the source model -----------------------------------------------------------------------------


def replaced(x: np.ndarray, kind: str) -> np.ndarray:
    """What takes the place of flipped pixels, in numpy."""
    if kind == "mean":
        return x.mean((2, 3), keepdims=True)
    if kind == "noise":
        drawn = np.random.default_rng(0).uniform(size=(1, *x.shape[1:])).astype(np.float32)
        low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
        return low + drawn * (high - low)
    return np.zeros_like(x)


def inpainted(x: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The mean of what is left in the smallest square of the grid around each flipped pixel."""
    out = x.astype(np.float64).copy()
    for n, i, j in np.argwhere(gone[:, 0]):
        for side in (2, 4, 8, 16):
            rows, columns = (
                slice(i // side * side, i // side * side + side),
                slice(j // side * side, j // side * side + side),
            )
            left = ~gone[n, 0, rows, columns]
            if left.any():
                out[n, :, i, j] = x[n, :, rows, columns][:, left].mean(1)
                break
        else:
            out[n, :, i, j] = 0
    return out


def by_loop(model: onnx.ModelProto, x: np.ndarray, r: np.ndarray, new: np.ndarray, **how: Any) -> np.ndarray:
    """The curve of images, step by step."""
    p, steps, samples = how.get("patch", 1), how["steps"], range(len(x))
    cells = [-(-d // p) for d in r.shape[1:]]
    wide = np.zeros((len(x), cells[0] * p, cells[1] * p), r.dtype)
    wide[:, : r.shape[1], : r.shape[2]] = r
    units = wide.reshape(len(x), cells[0], p, cells[1], p).sum((2, 4)).reshape(len(x), -1)
    order = np.argsort(units if how.get("order") == "lerf" else -units, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(units.shape[1])[None].repeat(len(x), 0), 1)
    rank = rank.reshape(len(x), *cells).repeat(p, 1).repeat(p, 2)[:, None, : r.shape[1], : r.shape[2]]
    target = run(model, {"x": x})["logits"].argmax(1)
    found = []
    for k in range(steps + 1):
        count = int(np.round(k * units.shape[1] * how.get("fraction", 1.0) / steps))
        instead = inpainted(x, rank < count) if how.get("replacement") == "inpaint" else new
        y = run(model, {"x": np.where(rank < count, instead, x).astype(np.float32)})["logits"]
        if how.get("score") == "probability":
            y = np.exp(y - y.max(1, keepdims=True))
            y = y / y.sum(1, keepdims=True)
        found.append(y[samples, target])
    return np.stack(found, 1)


HOW: dict[str, dict[str, Any]] = {
    "pixels": {},
    "least relevant first": {"order": "lerf"},
    "patches": {"patch": 4},
    "patches cut off": {"patch": 5, "replacement": "mean"},
    "mean": {"replacement": "mean"},
    "noise": {"replacement": "noise"},
    "inpaint": {"replacement": "inpaint"},
    "inpaint patches": {"replacement": "inpaint", "patch": 4},
    "part": {"fraction": 0.3},
    "probability": {"score": "probability"},
}


@pytest.mark.parametrize("rule", ["lrp-gamma", "integrated-gradients", "occlusion"])
@pytest.mark.parametrize("how", HOW)
def test_images(how: str, rule: str) -> None:
    """The curve is that of a loop, for the class that is largest before anything is flipped."""
    own = {"rule.steps": 4} if rule == "integrated-gradients" else {}
    out = curves(cnn(), rule, {"x": IMAGES}, **{"steps": 7, **HOW[how], **own})
    new = replaced(IMAGES, HOW[how].get("replacement", "zero"))
    want = by_loop(cnn(), IMAGES, out["relevance"].sum(1), new, steps=7, **HOW[how])
    np.testing.assert_allclose(out["flipping_curve"], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["aopc"], (want[:, :1] - want).mean(1), rtol=0, atol=1e-5)
    assert np.ptp(want) > 1e-2


def test_blur() -> None:
    """All flipped: the score of the blurred image, a Gaussian of 5 pixels with the border mirrored."""
    x = RANDOM.normal(size=(2, 1, 40, 40)).astype(np.float32)
    model = net(
        "(float[N,1,40,40] x) => (float[N,2] y)",
        "f = Flatten(x) y = MatMul(f, w)",
        w=RANDOM.normal(size=(1600, 2)).astype("f"),
    )
    out = curves(model, "gradient-x-input", {"x": x}, steps=3, replacement="blur")
    bell = np.exp(-0.5 * (np.arange(-15, 16) / 5.0) ** 2)
    bell /= bell.sum()
    blurred = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (15, 15), (15, 15)], mode="reflect")
    for axis in (2, 3):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, bell, "valid")
    y = run(model, {"x": blurred.astype(np.float32)})["y"]
    k = run(model, {"x": x})["y"].argmax(1)
    np.testing.assert_allclose(out["flipping_curve"][:, -1], y[np.arange(2), k], rtol=0, atol=1e-4)


def test_the_model_s_own_output() -> None:
    """score = output follows the probability that the model gives, score = probability a softmax of its own."""
    model = cnn(softmax=True)
    own, ours = (curves(model, "lrp-gamma", {"x": IMAGES}, steps=5, score=s) for s in ("output", "probability"))
    np.testing.assert_allclose(own["flipping_curve"], ours["flipping_curve"], rtol=0, atol=1e-6)
    name = model.graph.output[0].name
    np.testing.assert_allclose(own["flipping_curve"][:, 0], own[name].max(1), rtol=0, atol=1e-6)


def test_chunks_and_targets() -> None:
    """Several steps in one pass give the same; a class that the user names stays the explained one."""
    model = cnn()
    once = curves(model, "lrp-gamma", {"x": IMAGES}, steps=7)["flipping_curve"]
    options = {"evaluate": "pixel-flipping", "parameters": {"steps": 7}}
    made = compile_model(model, "lrp-gamma", chunk=4, **options).model
    np.testing.assert_allclose(run(made, {"x": IMAGES})["flipping_curve"], once, rtol=0, atol=1e-6)
    made = compile_model(model, "lrp-gamma", **options).model
    target = np.asarray([2, 0, 1])
    out = run(made, {"x": IMAGES, "target": target})
    np.testing.assert_array_equal(out["flipping_curve"][:, 0], out["logits"][np.arange(3), target])


def test_tokens() -> None:
    """A token is flipped as a whole, one by one: its embedding becomes zero."""
    table, w = RANDOM.normal(size=(9, 4)), RANDOM.normal(size=(4, 2))
    model = net(
        "(int64[N,6] input_ids) => (double[N,2] y)",
        """e = Gather(table, input_ids) last = Constant <value_ints = [1]> ()
        m = ReduceMean <keepdims = 0> (e, last) y = MatMul(m, w)""",
        table=table,
        w=w,
    )
    ids = RANDOM.integers(0, 9, (3, 6))
    made = compile_model(
        model, "gradient-x-input", evaluate="pixel-flipping", parameters={"steps": 6, "patch": 2}
    ).model
    out = exact(made, {"input_ids": ids})
    r = np.sort(out["relevance"], 1)[:, ::-1]
    f = out["y"].max(1)
    np.testing.assert_allclose(
        out["flipping_curve"], f[:, None] - np.pad(r.cumsum(1), [(0, 0), (1, 0)]), rtol=0, atol=1e-12
    )


def test_one_forward_pass_in_the_file() -> None:
    """The file does not grow with the steps, and weights stand in it once."""
    sizes = [
        compile_model(cnn(), "lrp-gamma", evaluate="pixel-flipping", parameters={"steps": steps}).model.ByteSize()
        for steps in (5, 500)
    ]
    assert sizes[1] - sizes[0] < 40 * 500 and sizes[0] - compile_model(cnn(), "lrp-gamma").model.ByteSize() < 30_000


# --- the command line, and what is refused ----------------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    """The self-check runs on what comes out."""
    path, out = tmp_path / "cnn.onnx", tmp_path / "out.onnx"
    onnx.save(cnn(), path)
    done = CliRunner().invoke(cli, [str(path), "--evaluate", "pixel-flipping", "--set", "steps=5", "-o", str(out)])
    assert done.exit_code == 0, done.output
    made = onnx.load(out)
    assert [o.name for o in made.graph.output] == ["logits", "relevance", "flipping_curve", "aopc", "aoc", "auc"]
    assert '"steps": 5' in {p.key: p.value for p in made.metadata_props}["xaicompile.evaluate"]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("lrp-0", {"parameters": {"steps": 0}}, "'steps' is 0; it must be a whole number of at least 1"),
        ("lrp-0", {"parameters": {"steps": 2.5}}, "'steps' is 2.5; it must be a whole number"),
        ("lrp-0", {"parameters": {"fraction": 1.5}}, "'fraction' is 1.5; it must be above 0 and at most 1"),
        ("lrp-0", {"parameters": {"patch": "big"}}, "'patch' is a number, not 'big'"),
        (
            "lrp-0",
            {"parameters": {"order": "most"}},
            "unknown value of pixel-flipping's 'order': 'most'; did you mean 'morf'",
        ),
        ("lrp-0", {"parameters": {"replacement": "blur"}}, "replacement=blur is for images of more than 15 pixels"),
        ("lrp-0", {"parameters": {"stepz": 3}}, "unknown parameter of rule 'lrp-0' 'stepz'"),
        ("lrp-0", {"neuralize": "log-ratio"}, "follows an output of the model, and not what --neuralize explains"),
        ("lrp-0", {"maps": 2}, "needs a rule set that gives relevance, one map and one input"),
        ("gradient", {}, "needs a rule set that gives relevance, one map and one input"),
        ("lrp-0", {"evaluate": "pixels"}, "unknown evaluation 'pixels'; did you mean 'pixel-flipping'"),
    ],
)
def test_refused(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        compile_model(cnn(), rule, **{"evaluate": "pixel-flipping", **options})


# --- relevance from outside, and images with the channels behind ------------------------------------------------------


def test_relevance_that_is_given() -> None:
    """`given` flips by what it is fed, as the rule that made it does in the graph; by nothing, from the first on."""
    out = curves(cnn(), "lrp-gamma", {"x": IMAGES}, steps=7)
    again = curves(cnn(), "given", {"x": IMAGES, "given": out["relevance"]}, steps=7)
    for name in ("relevance", "flipping_curve", "aopc", "aoc", "auc"):
        np.testing.assert_array_equal(again[name], out[name])
    first = curves(cnn(), "given", {"x": IMAGES}, steps=7)["flipping_curve"]
    falling = np.broadcast_to(-np.arange(144.0).reshape(1, 1, 12, 12), IMAGES.shape).astype(np.float32)
    np.testing.assert_array_equal(
        curves(cnn(), "given", {"x": IMAGES, "given": falling}, steps=7)["flipping_curve"], first
    )


@pytest.mark.parametrize("how", ["patches cut off", "mean", "noise", "inpaint", "zero", "random", "occlusion"])
def test_channels_behind(how: str) -> None:
    """An image model that reads [N, H, W, C] flips the same pixels as the one behind its Transpose."""
    parameters = {"steps": 7, **HOW.get(how, {})}
    rule = how if how in ("random", "occlusion") else "lrp-gamma"
    behind = compose(cnn())
    out = curves(behind, rule, {"pixels": np.moveaxis(IMAGES, 1, -1)}, **parameters)
    if how == "noise":  # its numbers are drawn for another shape
        np.testing.assert_array_equal(out["flipping_curve"].shape, (3, 8))
        return
    want = curves(cnn(), rule, {"x": IMAGES}, **parameters)
    np.testing.assert_allclose(np.moveaxis(out["relevance"], -1, 1), want["relevance"], rtol=0, atol=1e-6)
    for name in ("flipping_curve", "aopc", "auc"):
        np.testing.assert_allclose(out[name], want[name], rtol=0, atol=1e-6)


def compose(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model behind a Transpose, as converters write what TensorFlow trained."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.node.insert(0, onnx.helper.make_node("Transpose", ["pixels"], ["x"], perm=[0, 3, 1, 2]))
    batch, channels, *sizes = (d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [batch, *sizes, channels])
    del made.graph.input[0]
    made.graph.input.insert(0, pixels)
    return made
