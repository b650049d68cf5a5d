"""The emitted gradient of a whole model against independent ones, in float64 or in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from tests.backend import widened
from tests.graphs import Arrays
from tests.reference_ops import evaluator
from xaicompile.compiler import compile_model
from xaicompile.runtime import Session

from . import minilm, sklearn_models
from .replay import replay
from .replay_ops import OPS

STEP = 1e-6

OPS["LRN"] = lambda a, x: torch.nn.functional.local_response_norm(
    x[0], a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)
)


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error over the largest value."""
    if found.shape != exact.shape:
        return float("inf")
    return float(np.abs(found - exact).max(initial=0) / max(np.abs(exact).max(initial=0), 1e-30))


@dataclass
class Doubled:
    """An emitted model in float64: the gradient of the largest value of each sample.

    Attributes:
        end: The explained tensor.
        names: The gradients' names by input.
        batched: Whether axis 0 of the explained tensor holds samples.
    """

    model: onnx.ModelProto
    end: str
    names: dict[str, str]
    batched: bool


def in_float64(model: onnx.ModelProto) -> Doubled:
    """The gradient that is emitted for a model."""
    compiled = compile_model(model, "gradient", explain_reduce="max")
    emitted = compiled.model
    end = next(p.value for p in emitted.metadata_props if p.key == "xaicompile.explain_output")
    if end not in {o.name for o in emitted.graph.output}:
        emitted.graph.output.append(onnx.ValueInfoProto(name=end))
    widened(emitted.graph)
    for node in emitted.graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:  # float32 by default
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "stash_type":
                attribute.i = TensorProto.FLOAT  # the reference knows no other, and computes in the data's type
    return Doubled(emitted, end, compiled.relevance, not any("no batch axis" in note for note in compiled.notes))


def differences(model: onnx.ModelProto, feed: Arrays) -> float:
    """The gradient along a random direction against central differences, both by the tests' float64 operators."""
    made, rng = in_float64(model), np.random.default_rng(5)
    feed = {k: off_kinks(v, rng) if v.dtype.kind == "f" else v for k, v in feed.items()}
    way = {k: rng.standard_normal(v.shape) for k, v in feed.items() if k in made.names and v.dtype.kind == "f"}
    runner = evaluator(made.model)
    found = dict(zip(made.names, runner.run(list(made.names.values()), feed), strict=True))
    ends = []
    for sign in (1, -1):
        (y,) = runner.run([made.end], {**feed, **{k: feed[k] + sign * STEP * d for k, d in way.items()}})
        ends.append(float(np.reshape(y, (len(y) if made.batched else 1, -1)).max(1).sum()))
    want, parts = (ends[0] - ends[1]) / (2 * STEP), [found[k] * d for k, d in way.items()]
    noise = 1e-15 * max(map(abs, ends)) / STEP
    size = max(abs(want), float(np.sqrt(sum((p**2).sum() for p in parts))), 1e-6)
    return max(abs(sum(float(p.sum()) for p in parts) - want) - noise, 0.0) / size


def off_kinks(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little more, at random, in float64: away from zeros and ties."""
    return np.asarray(x + rng.uniform(0.5e-3, 2e-3, x.shape) * (1 + np.abs(x)), np.float64)


def autograd(model: onnx.ModelProto, feed: Arrays) -> float:
    """The whole gradient against torch's, on replays of the emitted and of the source model in float64."""
    made = in_float64(model)
    source = onnx.version_converter.convert_version(model, 18)
    leaves = {k: torch.from_numpy(v).double().requires_grad_() for k, v in feed.items()}
    y = replay(source, leaves, [made.end])[made.end]
    y.reshape(len(y) if made.batched else 1, -1).amax(1).sum().backward()
    found = replay(made.model, {k: v.detach() for k, v in leaves.items()}, list(made.names.values()))
    return max(relative(found[name].numpy(), leaves[k].grad.numpy()) for k, name in made.names.items())  # type: ignore[union-attr]


def at_the_embeddings(net: minilm.Encoder, model: onnx.ModelProto, feed: Arrays) -> float:
    """The gradient where the ids become vectors, and gradient times input of each token, against torch's autograd."""
    _, value, slope = minilm.autograd(net, feed, "word_embeddings")
    vectors = minilm.vectors(model, "word_embeddings")
    run = [
        Session(compile_model(model, rule, layers=[vectors]).model).run(feed)
        for rule in ("gradient", "gradient-x-input")
    ]
    pairs = [(run[0][f"relevance_{vectors}"], slope), (run[1]["relevance"], (value * slope).sum(-1))]
    return max(relative(found, want) for found, want in pairs)


def slopes(name: str, model: onnx.ModelProto, feed: Arrays) -> float:
    """The emitted gradient in ONNX Runtime against scikit-learn's own function, sample by sample."""
    scores = sklearn_models.PIPELINES[name].scores
    fitted, x = sklearn_models.fitted(name)
    assert scores is not None
    targets = scores(fitted, x.astype(np.float64)).argmax(1)
    compiled = compile_model(model, "gradient")
    found = Session(compiled.model).run({**feed, compiled.target: targets.astype(np.int64)})["relevance"]
    want = sklearn_models.gradient(name, targets)
    return max(relative(a, b) for a, b in zip(found, want, strict=True))
