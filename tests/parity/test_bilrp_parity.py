"""BiLRP on real encoders: all-MiniLM-L6-v2 with its weights and VGG-11's features, against a loop of LRP passes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.benchmarks.bilrp import encoder
from tests.graphs import Arrays, data
from xaicompile.compiler import compile_model
from xaicompile.runtime import Session

from . import minilm
from .real_files import AbsentError, member

CLOSURE = 1e-4  # relative
UNITS, SEED = 8, 5


@pytest.fixture(scope="module")
def sentences() -> tuple[onnx.ModelProto, Arrays, Arrays]:
    """The encoder, and three pairs: two of one meaning, two of different ones, one sentence twice."""
    try:
        _, feed, model = minilm.encoder(member)
    except AbsentError as error:
        pytest.skip(str(error))
    x, other = [0, 1, 0], [1, 2, 0]
    return model, {k: v[x] for k, v in feed.items()}, {f"other_{k}": v[other] for k, v in feed.items()}


def projected(model: onnx.ModelProto, units: int) -> onnx.ModelProto:
    """The model with random projections of its embedding as its output."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    name = made.graph.output[0].name
    p = np.random.default_rng(SEED).standard_normal((units, UNITS)) / np.sqrt(UNITS)
    made.graph.initializer.append(numpy_helper.from_array(p.astype(np.float32), "projection"))
    made.graph.node.append(helper.make_node("MatMul", [name, "projection"], ["projected"]))
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("projected", onnx.TensorProto.FLOAT, ["N", UNITS]))
    return made


def assert_closed(out: Arrays) -> None:
    total = out["relevance"].sum((1, 2), dtype=np.float64) + out["ledger"]
    scale = np.maximum(np.abs(out["similarity"]), np.abs(out["relevance"].sum((1, 2))))
    assert (np.abs(total - out["similarity"]) <= CLOSURE * scale).all(), (total, out["similarity"])


@pytest.mark.parity
def test_sentences(sentences: tuple[onnx.ModelProto, Arrays, Arrays]) -> None:
    """All units: the embeddings have unit length, so their product is the cosine; padding gets nothing."""
    model, x, other = sentences
    made = compile_model(model, "bilrp", inner="attnlrp", ledger=True, chunk=16).model
    out = Session(made).run({**x, **other})
    assert_closed(out)
    second = Session(model).run({name.removeprefix("other_"): values for name, values in other.items()})
    np.testing.assert_allclose(out["similarity"], (out["embedding"] * second["embedding"]).sum(1), atol=1e-5)
    assert out["similarity"] == pytest.approx([0.76, -0.17, 1.0], abs=0.01)
    largest = np.abs(out["relevance"]).max((1, 2))
    for axis, mask in ((1, x["attention_mask"]), (2, other["other_attention_mask"])):
        absent = np.moveaxis(np.abs(out["relevance"]), axis, 1)[mask == 0]
        assert absent.max() <= 1e-6 * largest.max()
    twice = out["relevance"][2]
    np.testing.assert_allclose(twice, twice.T, rtol=0, atol=1e-5 * np.abs(twice).max())


@pytest.mark.parity
@pytest.mark.parametrize("inner", ["attnlrp", "lrp-gamma"])
def test_sentences_are_a_loop_of_single_passes(sentences: tuple[onnx.ModelProto, Arrays, Arrays], inner: str) -> None:
    model, x, other = sentences
    parameters = {"project": UNITS, "seed": SEED}
    out = Session(compile_model(model, "bilrp", inner=inner, parameters=parameters, ledger=True).model).run(
        {**x, **other}
    )
    assert_closed(out)
    single = Session(compile_model(projected(model, 384), inner).model)
    second = {name.removeprefix("other_"): values for name, values in other.items()}
    want = np.zeros_like(out["relevance"], np.float64)
    for unit in range(UNITS):
        target = {"target": np.array([unit])}
        a, b = (np.asarray(single.run({**feed, **target})["relevance"], np.float64) for feed in (x, second))
        want += a[:, :, None] * b[:, None, :]
    np.testing.assert_allclose(out["relevance"], want, rtol=0, atol=CLOSURE * np.abs(want).max())


@pytest.mark.parity
@pytest.mark.parametrize("chunk", [1, 4])
def test_images_are_a_loop_of_single_passes(chunk: int) -> None:
    model = onnx.load_from_string(encoder(64))
    x, other = data(2, 3, 64, 64), data(2, 3, 64, 64, seed=1)
    parameters = {"project": UNITS, "seed": SEED, "pool": 8}
    made = compile_model(model, "bilrp", parameters=parameters, ledger=True, chunk=chunk).model
    out = Session(made).run({"x": x, "other": other})
    assert_closed(out)
    single = Session(compile_model(projected(model, 512), "lrp-gamma").model)
    want = np.zeros_like(out["relevance"], np.float64)
    for unit in range(UNITS):
        maps = []
        for values in (x, other):
            r = single.run({"x": values, "target": np.array([unit])})["relevance"].astype(np.float64)
            maps.append(r.reshape(2, 3, 8, 8, 8, 8).sum((1, 3, 5)).reshape(2, 64))
        want += maps[0][:, :, None] * maps[1][:, None, :]
    np.testing.assert_allclose(out["relevance"], want, rtol=0, atol=CLOSURE * np.abs(want).max())
