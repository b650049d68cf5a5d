"""Pixel flipping in the graph against quantus 0.6.0's PixelFlipping, which is given the relevance of the emitted model.

What quantus computes, found by experiment and fixed below:

- Its curve starts after the first step; ours has the score as it is in front.
- The order is descending in the attributions as they are, once `abs` and `normalise` are off. `normalise` (on by
  default) divides by the largest magnitude, which changes no order. Values that tie have no fixed order in it; here
  they go by their places.
- It ranks values, not pixels. Attributions with one channel are repeated over the input's channels, so that the values
  of a pixel tie: with steps of `channels` values, or a multiple, whole pixels are flipped if no two pixels tie.
- `features_in_step` has to divide the positions of a channel; of tabular inputs it can only be 1.
- "black" is the smallest value of each sample, not 0; a number is that number.
- "mean" is that of the sample over all its channels, taken again after each step from what is flipped already. Ours is
  that of each channel of the sample as it was given.
- `softmax` (on by default) follows the probability, else the logit. A trailing Softmax module is not applied twice, and
  is left out for the logit.
- Its area is the trapezoidal rule over step numbers, without the score as it is. It asks numpy for `trapz`, which
  numpy 2.4 has no longer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import xaicompile

from .measure import run_ort, session

quantus = pytest.importorskip("quantus")

pytestmark = pytest.mark.parity
Array = np.ndarray[Any, Any]
BOUND = 1e-5  # of the largest score, in float32
APART = 1e-2  # of the largest score: what a different definition makes, at least
SAMPLES = 4
SHAPES = {"image": (1, 12, 12), "colours": (3, 12, 12), "signal": (2, 24), "table": (12,)}
STEP = {"image": 6, "colours": 4, "signal": 2, "table": 1}  # positions flipped in one step


@lru_cache
def network(kind: str, softmax: bool = False) -> nn.Sequential:
    """A small network with seeded weights for one of SHAPES."""
    torch.manual_seed(0)
    channels = SHAPES[kind][0]
    layers: list[nn.Module]
    if kind == "table":
        layers = [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)]
    elif kind == "signal":
        layers = [nn.Conv1d(channels, 6, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2)]
        layers += [nn.Conv1d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)]
    else:
        layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)]
    for layer in layers:
        if not isinstance(layer, nn.ReLU | nn.MaxPool2d | nn.AvgPool1d | nn.Flatten):
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
    return nn.Sequential(*layers, *[nn.Softmax(-1)] * softmax).eval()


def samples(kind: str, seed: int = 1) -> Array:
    """Normal numbers of the network's shape."""
    return np.random.default_rng(seed).standard_normal((SAMPLES, *SHAPES[kind])).astype(np.float32)


@dataclass(frozen=True)
class Ours:
    """What the emitted model gives."""

    relevance: Array
    curve: Array
    auc: Array
    target: Array


def ours(kind: str, x: Array, rule: str = "lrp-gamma", softmax: bool = False, **how: Any) -> Ours:
    """The network exported, compiled with pixel flipping and run in ONNX Runtime."""
    file = io.BytesIO()
    torch.onnx.export(
        network(kind, softmax), (torch.from_numpy(x),), file, dynamo=False, opset_version=17,  # type: ignore[arg-type]
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
    )  # fmt: skip
    how = {"steps": int(np.prod(SHAPES[kind][1:] or SHAPES[kind])) // STEP[kind], **how}
    made = xaicompile.compile(file.getvalue(), rule, evaluate="pixel-flipping", parameters=how)
    out = run_ort(session(made), {"x": x})
    return Ours(out["relevance"], out["flipping_curve"], out["auc"], out["y"].argmax(1))


def theirs(
    kind: str, x: Array, attributions: Array, target: Array, net: nn.Module | None = None, softmax: bool = False,
    **options: Any,
) -> Array:  # fmt: skip
    """Quantus' curves [N, steps], or areas [N], with one attribution a value, or one a pixel."""
    repeated = x[0].size // attributions[0].size
    options = {"features_in_step": STEP[kind] * repeated, "perturb_baseline": 0.0, **options}
    metric = quantus.PixelFlipping(abs=False, normalise=False, disable_warnings=True, **options)
    found = metric(net or network(kind), x, target, attributions, channel_first=True, softmax=softmax, device="cpu")
    return np.asarray(found)


def pixels(relevance: Array) -> Array:
    """Relevance summed over channels, [N, 1, ...], or of a table as it is. No two of a sample are the same."""
    summed: Array = relevance.sum(1, keepdims=True) if relevance.ndim > 2 else relevance
    assert all(len(np.unique(one)) == one.size for one in summed)
    return summed


def gap(found: Array, wanted: Array) -> float:
    """Largest difference, relative to the largest score wanted."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def filled(new: Array) -> Callable[..., Array]:
    """A `perturb_func` that takes what replaces each value from an array of the input's shape."""

    def put(arr: Array, indices: Array, **_: Any) -> Array:
        result = arr.copy()
        np.put_along_axis(result, indices, np.take_along_axis(new.reshape(len(arr), -1), indices, 1), 1)
        return result

    return put


def noise(x: Array) -> Array:
    """Uniform noise in each sample's range, of seed 0."""
    inner = tuple(range(1, x.ndim))
    low, high = x.min(inner, keepdims=True), x.max(inner, keepdims=True)
    result: Array = low + np.random.default_rng(0).uniform(size=(1, *x.shape[1:])).astype(np.float32) * (high - low)
    return result


# --- the same ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("rule", ["lrp-gamma", "gradient-x-input", "integrated-gradients"])
@pytest.mark.parametrize("kind", SHAPES)
def test_curves(kind: str, rule: str, score: str, order: str) -> None:
    """Zero in place of flipped values: quantus' curve is ours without its first point."""
    x = samples(kind)
    found = ours(kind, x, rule, score=score, order=order)
    first = pixels(found.relevance) * (1 if order == "morf" else -1)
    wanted = theirs(kind, x, first, found.target, softmax=score == "probability")
    assert wanted.shape[1] == found.curve.shape[1] - 1
    assert gap(found.curve[:, 1:], wanted) <= BOUND
    assert np.ptp(wanted) > 0.1


@pytest.mark.parametrize("kind", ["image", "table"])
def test_mean_of_one_channel(kind: str) -> None:
    """Quantus takes one number a sample as the replacement: our mean, where there is one channel."""
    x = samples(kind) + 1
    found = ours(kind, x, replacement="mean")
    mean = x.reshape(SAMPLES, -1).mean(1, keepdims=True).repeat(STEP[kind], 1)
    wanted = theirs(kind, x, pixels(found.relevance), found.target, perturb_baseline=mean)
    assert gap(found.curve[:, 1:], wanted) <= BOUND


@pytest.mark.parametrize("kind", ["image", "colours", "signal"])
@pytest.mark.parametrize("replacement", ["mean", "noise"])
def test_replacements(replacement: str, kind: str) -> None:
    """With a `perturb_func` that fills in the same numbers: the mean of each channel, and seeded noise."""
    x = samples(kind) + 1
    new = noise(x) if replacement == "noise" else x.mean(tuple(range(2, x.ndim)), keepdims=True)
    found = ours(kind, x, replacement=replacement)
    wanted = theirs(kind, x, pixels(found.relevance), found.target, perturb_func=filled(np.broadcast_to(new, x.shape)))
    assert gap(found.curve[:, 1:], wanted) <= BOUND


@pytest.mark.parametrize("kind", ["image", "colours"])
def test_patches(kind: str) -> None:
    """Each pixel gets the relevance of its patch, and a step flips as many values as a patch has."""
    x = samples(kind)
    found = ours(kind, x, patch=4, steps=9)
    patches = pixels(found.relevance.sum(1).reshape(SAMPLES, 3, 4, 3, 4).sum((2, 4))[:, None])
    wide = patches.repeat(4, 2).repeat(4, 3)
    wanted = theirs(kind, x, wide, found.target, features_in_step=16 * x.shape[1])
    assert gap(found.curve[:, 1:], wanted) <= BOUND


def test_a_part_of_the_pixels() -> None:
    """A fraction of 1/4 is the first quarter of quantus' curve."""
    x = samples("image")
    found = ours("image", x, fraction=0.25, steps=6)
    wanted = theirs("image", x, pixels(found.relevance), found.target)[:, :6]
    assert gap(found.curve[:, 1:], wanted) <= BOUND


def test_a_softmax_in_the_model() -> None:
    """It is the model's own output with `softmax`, and is left out without it."""
    x, net = samples("image"), network("image", softmax=True)
    for score, softmax in (("output", True), ("probability", True), ("logit", False)):
        found = ours("image", x, softmax=True, score=score)
        wanted = theirs("image", x, pixels(found.relevance), found.target, net, softmax)
        assert gap(found.curve[:, 1:], wanted) <= BOUND


@pytest.mark.parametrize("kind", ["image", "table"])
def test_areas(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantus' area is trapezoidal over the steps k = 1..L: (L + 1) auc = y_0 + area + (y_1 + y_L)/2."""
    x = samples(kind)
    found = ours(kind, x)
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    area = theirs(kind, x, pixels(found.relevance), found.target, return_auc_per_sample=True)
    y = found.curve
    assert gap(y.shape[1] * found.auc, y[:, 0] + area + (y[:, 1] + y[:, -1]) / 2) <= BOUND


# --- where the definitions differ -------------------------------------------------------------------------------------


def test_its_mean_drifts() -> None:
    """Its "mean" is taken again after each step, from values some of which are a mean by then: 0.10 apart."""
    x = samples("image") + 1
    found = ours("image", x, replacement="mean")
    r = pixels(found.relevance)
    wanted = theirs("image", x, r, found.target, perturb_baseline="mean")
    flat, order = x.reshape(SAMPLES, -1).copy(), np.argsort(-r.reshape(SAMPLES, -1), 1)
    drifting = []
    for some in np.split(order, 24, 1):
        np.put_along_axis(flat, some, flat.mean(1, keepdims=True), 1)
        with torch.no_grad():
            y = network("image")(torch.from_numpy(flat.reshape(x.shape))).numpy()
        drifting.append(y[np.arange(SAMPLES), found.target])
    assert gap(np.stack(drifting, 1), wanted) <= BOUND
    assert gap(found.curve[:, 1], wanted[:, 0]) <= BOUND  # the first step's mean is ours
    assert gap(found.curve[:, 1:], wanted) > APART


def test_its_black_is_the_smallest_value() -> None:
    """Our zero where the smallest value of each sample is 0, as of pixels in 0..1; else 1.1 apart, say."""
    pictures = np.maximum(samples("image"), 0)
    for x, close in ((pictures, True), (samples("image"), False)):
        found = ours("image", x)
        wanted = theirs("image", x, found.relevance, found.target, perturb_baseline="black")  # ties: zeros
        assert gap(found.curve[:, 1:], wanted) <= BOUND if close else gap(found.curve[:, 1:], wanted) > APART


def test_it_ranks_values_of_channels() -> None:
    """Given relevance of each value it flips single values of pixels: 0.52 apart."""
    x = samples("colours")
    found = ours("colours", x)
    wanted = theirs("colours", x, found.relevance, found.target, features_in_step=3 * STEP["colours"])
    assert gap(found.curve[:, 1:], wanted) > APART


def test_its_ties_have_no_order() -> None:
    """Relevance that is 0 over most of the image: the same if it is told our order, as distinct numbers.

    Given the relevance itself, its curve was off by 0.73 of the largest score, as numpy's sort happened to go.
    """
    x = samples("image")
    x[:, :, 4:] = 0
    found = ours("image", x, "gradient-x-input", replacement="noise")
    flat = found.relevance.reshape(SAMPLES, -1)
    assert (np.count_nonzero(flat, 1) < 50).all()
    turns = np.argsort(np.argsort(-flat, 1, kind="stable"), 1).reshape(x.shape)
    wanted = theirs("image", x, -turns.astype(np.float32), found.target, perturb_func=filled(noise(x)))
    assert gap(found.curve[:, 1:], wanted) <= BOUND


def test_tables_go_one_by_one() -> None:
    """Steps of more than one feature are refused there; here they are not."""
    x = samples("table")
    found = ours("table", x, steps=6)
    with pytest.raises(AssertionError, match="features_in_step"):
        theirs("table", x, found.relevance, found.target, features_in_step=2)
    each = theirs("table", x, pixels(found.relevance), found.target)
    assert gap(found.curve[:, 1:], each[:, 1::2]) <= BOUND
