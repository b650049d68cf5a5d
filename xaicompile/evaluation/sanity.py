"""Sanity checks: does a rule set's map depend on the model's weights, and on the class that is explained?

A map that stays the same under random weights shows edges of the picture, not reasons of the model (Adebayo et al.
2018); one that is the same for every class shows no reason for any of them (Sixt et al. 2020). Both are told by
Spearman's rank correlation of signed, channel-summed maps. Near 1 the check fails, and near -1 too: the map is the same
but for its sign, as where a randomised last layer turns the class's weights around. What is averaged over samples
should be the magnitude, or such maps cancel out.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from xaicompile.compiler import compile_model
from xaicompile.errors import ModelError
from xaicompile.evaluation.maps import rank_correlation, summed
from xaicompile.ir.graph import captured_names, sorted_nodes
from xaicompile.ir.model import STANDARD, ModelLike, read
from xaicompile.registry import nearest
from xaicompile.runtime import Session, adapt

# fmt: off
LAYERS = {
    "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gather", "Gemm", "If", "LSTM", "Loop",
    "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN", "Scan",
}
# fmt: on
BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}  # place among the inputs
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
BYTES = (TensorProto.INT8, TensorProto.UINT8)  # weights of 8-bit models
LIMIT = 2**31  # bytes that a model without external data may have


@dataclass
class Weights:
    """The weights of a model.

    Attributes:
        layers: Names of the weights of each layer, by name of the layer, in topological order.
        tensors: The weights by the name of the initializer, or of the output of the Constant that holds them.
    """

    layers: dict[str, list[str]] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)


def layers_of(model: onnx.ModelProto) -> list[str]:
    """The layers that have weights, in topological order; see `weights_of`."""
    return list(weights_of(model).layers)


def weights_of(model: onnx.ModelProto) -> Weights:
    """Which weights belong to which layer.

    A layer is a node of `LAYERS`, or of a domain of its own, that reads a weight: an initializer or Constant with at
    least two axes, of floats or of 8 bits, as it is or behind nodes that read nothing but constants (Transpose, Cast,
    DequantizeLinear). Biases belong to it: the third input of Conv and Gemm, and what an Add behind a MatMul adds. A
    loop or branch that uses weights of the graph around it is one layer. Weights that are shared belong to each layer
    that reads them. What scales and shifts (BatchNormalization, LayerNormalization) is no layer of its own.

    Returns:
        The weights; `tensors` are those of the model itself, not copies. A layer's name is that of the node, or of its
        first output where the node has none or shares it.
    """
    graph, found = model.graph, Weights()
    held: dict[str, list[str]] = {}  # the tensors that a constant is made of
    products: dict[str, str] = {}  # the layer that made a tensor without a bias
    names = Counter(node.name for node in graph.node)
    for tensor in graph.initializer:
        held[tensor.name], found.tensors[tensor.name] = [tensor.name], tensor
    for node in sorted_nodes(graph):
        reads = [name for name in (*node.input, *captured_names(node)) if name]
        value = next((a.t for a in node.attribute if a.HasField("t")), None) if node.op_type == "Constant" else None
        name = node.name if node.name and names[node.name] == 1 else node.output[0]
        if value is not None:
            held[node.output[0]], found.tensors[node.output[0]] = [node.output[0]], value
        elif reads and all(read in held for read in reads):
            parts = [part for read in reads for part in held[read]]
            held.update((output, parts) for output in node.output)
        elif node.op_type in LAYERS or node.domain not in STANDARD:
            parts = [part for read in reads for part in held.get(read, ())]
            mine = [part for part in parts if _is_weight(found.tensors[part])]
            if mine:
                place = BIAS.get(node.op_type, len(node.input))
                biases = [read for read in node.input[place : place + 1] if held.get(read) == [read]]
                found.layers[name] = list(dict.fromkeys([*mine, *biases]))
                products[node.output[0]] = name
        elif node.op_type == "Add":
            for before, bias in (node.input, reversed(node.input)):
                if before in products and held.get(bias) == [bias] and len(found.tensors[bias].dims) == 1:
                    found.layers[products[before]].append(bias)
    return found


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) >= 2 and tensor.data_type in (*FLOATS, *BYTES)


def randomised(model: onnx.ModelProto, layers: Sequence[str], seed: int) -> onnx.ModelProto:
    """A copy of the model in which the weights and biases of some layers are drawn anew.

    Each tensor is normal, with the mean and standard deviation that it had. It is the same for the same seed whatever
    other layers are named.

    Raises:
        RuleError: There is no such layer.
        ModelError: The weights stand in another file and were not loaded.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights = weights_of(changed)
    for layer in layers:
        if layer not in weights.layers:
            raise nearest(layer, weights.layers, "layer with weights")
    for name in {name: None for layer in layers for name in weights.layers[layer]}:
        tensor = weights.tensors[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ModelError(f"weight '{name}' stands in another file: load the model with its external data first")
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        tensor.CopyFrom(numpy_helper.from_array(_drawn(numpy_helper.to_array(tensor), rng), tensor.name))
    return changed


def _drawn(old: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers of the same mean, standard deviation, shape and type."""
    wide = old.astype(np.float64)
    new = rng.normal(wide.mean(), wide.std(), old.shape)
    if old.dtype.kind in "iu":
        limits = np.iinfo(old.dtype)
        new = np.clip(np.round(new), limits.min, limits.max)
    drawn: np.ndarray = new.astype(old.dtype)
    return drawn


def cascade(
    model: ModelLike,
    rule: str | os.PathLike[str],
    parameters: Mapping[str, Any] | None,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    targets: Sequence[int] | np.ndarray,
    *,
    channels: int | None = None,
    points: int = 8,
    seed: int = 0,
    batch: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[tuple[str, list[float]]]:
    """How alike maps stay as the weights are randomised, from the output down (Adebayo et al. 2018, "cascading").

    At each of `points` evenly spaced depths the layers from the output down are randomised, the model is compiled
    again, and each sample's map for the same target is compared with that of the real model.

    Args:
        model: The source model; external data is read.
        rule: As for `compile_model`.
        parameters: As for `compile_model`.
        inputs: [N, ...] each, by name, or an array for the only input.
        targets: [N], the class that is explained of each sample; -1: the one with the largest score of the real model.
        channels: Axis of the channels in one sample, as for `maps.summed`.
        points: How many depths; all layers, where there are fewer. The last has all layers randomised.
        seed: Of the weights.
        batch: How many samples are run at once.
        device: `cpu` or `cuda`.
        threads: CPU threads inside an operator; ONNX Runtime's choice if None.
        options: Further arguments of `compile_model`.

    Returns:
        For each depth the last layer that was randomised, and the rank correlation of each sample, in [-1, 1]; nan
        where a map is constant or not finite. Nothing for a model without layers. Of several explained inputs the first
        counts.

    Raises:
        ModelError: The model is of more than 2 GB, or does not run.
        RuleError, UnsupportedError: As for `compile_model`.
    """
    source = read(model)
    whole, layers = source.model, layers_of(source.model)
    if source.external and source.path is not None:
        onnx.load_external_data_for_model(whole, str(source.path.parent))
    if sum(tensor.ByteSize() for tensor in whole.graph.initializer) >= LIMIT:
        raise ModelError("a model of more than 2 GB can't be randomised; leave the sanity checks out")

    if not layers:
        return []

    def compiled(changed: onnx.ModelProto) -> Session:
        made = compile_model(changed, rule, parameters=parameters, **(options or {})).model
        return Session(made, device=device, threads=threads)

    session = compiled(whole)
    ran = list(_runs(session, inputs, targets, batch))
    real, chosen, found = _maps(session, ran, channels), _resolved(session, ran, targets), []
    for count in np.unique(np.linspace(1, len(layers), points).round().astype(int)):
        session = compiled(randomised(whole, layers[-count:], seed))
        there = _maps(session, _runs(session, inputs, chosen, batch), channels)
        found.append((layers[-count], [rank_correlation(a, b) for a, b in zip(real, there, strict=True)]))
    return found


def class_sensitivity(
    session: Session,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    targets: Sequence[int] | np.ndarray,
    others: Sequence[int] | np.ndarray | None = None,
    *,
    channels: int | None = None,
    batch: int = 1,
) -> list[float] | None:
    """How alike the maps of two classes are: each sample's rank correlation.

    Near 1, and near -1 where there are more than two classes, a map says little of its class.

    Args:
        session: The compiled model.
        inputs: As for `cascade`.
        targets: [N], the first class of each sample; -1 is the one with the largest score.
        others: [N], the second; None: the class with the smallest score, or the next where that is the target.
        channels: As for `cascade`.
        batch: How many samples are run at once.

    Returns:
        [N] in [-1, 1]; nan where a map is constant or not finite. None for a model without a target input, or of one
        output.

    Raises:
        ModelError: The model does not run.
    """
    if not session.metadata.get("xaicompile.target"):
        return None
    ran = list(_runs(session, inputs, targets, batch))
    scores = _scores(session, ran)
    if scores.shape[1] < 2:
        return None
    if others is None:
        scores[np.arange(len(scores)), _resolved(session, ran, targets)] = np.inf
        others = scores.argmin(1)
    here, there = (_maps(session, run, channels) for run in (ran, _runs(session, inputs, others, batch)))
    return [rank_correlation(a, b) for a, b in zip(here, there, strict=True)]


def _runs(
    session: Session,
    inputs: np.ndarray | Mapping[str, np.ndarray],
    targets: Sequence[int] | np.ndarray,
    batch: int,
) -> Iterator[dict[str, np.ndarray]]:
    """All outputs for some samples at a time; the target goes into the input for it, if there is one."""
    feed, name = adapt(session, inputs), session.metadata.get("xaicompile.target")
    feed |= {name: np.asarray(targets, np.int64)} if name else {}
    for start in range(0, len(targets), batch):
        yield session.run({key: value[start : start + batch] for key, value in feed.items()})


def _maps(session: Session, ran: Iterable[Mapping[str, np.ndarray]], channels: int | None) -> list[np.ndarray]:
    """The map of each sample, of the first explained input."""
    name = next(iter(json.loads(session.metadata["xaicompile.relevance"]).values()))
    return [summed(r, channels) for outputs in ran for r in outputs[name]]


def _scores(session: Session, ran: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
    """The explained tensor if it is an output, else the first output of floats, [N, classes] in float64."""
    explained = session.metadata["xaicompile.explain_output"]
    floats = [port.name for port in session.outputs if port.dtype is not None and port.dtype.kind == "f"]
    name = explained if explained in floats else floats[0]
    values = np.concatenate([outputs[name] for outputs in ran]).astype(np.float64)
    return values.reshape(len(values), -1)


def _resolved(
    session: Session, ran: Iterable[Mapping[str, np.ndarray]], targets: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The targets, [N], with the class of the largest score in the place of -1."""
    given = np.asarray(targets, np.int64)
    if not session.metadata.get("xaicompile.target") or (given >= 0).all():
        return given
    return np.where(given < 0, _scores(session, ran).argmax(1), given)
