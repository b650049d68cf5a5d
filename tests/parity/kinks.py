"""Where float32 falls on the other side of a kink, and what the gradient is on that side.

A ReLU whose input is 0 up to rounding, or two equal candidates of a max-pool, make the gradient of a network jump. Two
float32 programs, or float32 and float64, then differ by up to a few per cent though both are right. To compare exactly
all the same, the sides that ONNX Runtime took are read from the run itself, and imposed on the float64 reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from . import measure, references, zoo
from .replay import replay
from .replay_ops import OPS

KINKED = ("Relu", "Clip", "MaxPool")


@dataclass
class Float32:
    """A float32 gradient in ONNX Runtime.

    Attributes:
        error: Against the float64 gradient.
        flips: Number of kinks that ONNX Runtime takes on the other side than float64.
        on_side: Error against the float64 gradient on ONNX Runtime's side of every kink.
    """

    error: float
    flips: int
    on_side: float


def gradient32(name: str, exporter: str, batch: int) -> Float32:
    """The emitted gradient in ONNX Runtime against both float64 gradients."""
    exact = references.gradient(name, batch)
    source = measure.source(name, exporter, torch.float64)
    nodes = [n for n in source.graph.node if n.op_type in KINKED]
    watched = sorted({t for n in nodes for t in (n.output[0], *([n.input[0]] if n.op_type == "MaxPool" else []))})

    runtime = _watching(name, exporter, tuple(watched))
    x, target = zoo.sample(name, batch), references.targets(name, batch)
    seen = measure.run_ort(runtime, {"x": x.numpy(), "target": target.numpy()})
    found = seen["relevance"].astype(np.float64)
    with torch.no_grad():
        calm = replay(source, {"x": x}, watched)
    sides = {n.output[0]: _side(n, {k: torch.from_numpy(v).double() for k, v in seen.items()}) for n in nodes}
    flips = sum(int((sides[n.output[0]] != _side(n, calm)).sum()) for n in nodes)

    leaf = x.double().requires_grad_()
    logits = replay(source, {"x": leaf}, ["logits"], sides)["logits"]
    (on_side,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return Float32(references.error(found, exact), flips, references.error(found, on_side.numpy()))


@lru_cache(maxsize=1)
def _watching(name: str, exporter: str, watched: tuple[str, ...]) -> onnxruntime.InferenceSession:
    """The emitted gradient, with these tensors as outputs too."""
    return measure.session(with_outputs(measure.emitted(name, exporter, torch.float32, "gradient"), watched))


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with more of its tensors as outputs."""
    more = onnx.ModelProto()
    more.CopyFrom(model)
    have = {o.name for o in model.graph.output}
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return more


def _side(node: onnx.NodeProto, values: Mapping[str, Tensor]) -> Tensor:
    """Which side a node is on, from its output (Relu, Clip) or input (MaxPool)."""
    if node.op_type == "MaxPool":
        attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        winners: Tensor = OPS["MaxPool"](attributes | {"_outputs": 2}, [values[node.input[0]]])[1]
        return winners
    y = values[node.output[0]]
    return y > 0 if node.op_type == "Relu" else (y > 0) & (y < 6)


@lru_cache(maxsize=16)
def flips(name: str, exporter: str, batch: int, ops: tuple[str, ...] = KINKED) -> int:
    """Number of kinks of these ops that ONNX Runtime's forward pass takes on the other side than float64."""
    nodes = [n for n in measure.source(name, exporter, torch.float64).graph.node if n.op_type in ops]
    if not nodes:
        return 0
    watched = sorted({t for n in nodes for t in (n.output[0], *([n.input[0]] if n.op_type == "MaxPool" else []))})
    x = zoo.sample(name, batch)
    runtime = measure.session(with_outputs(measure.source(name, exporter, torch.float32), watched))
    seen = {k: torch.from_numpy(v).double() for k, v in measure.run_ort(runtime, {"x": x.numpy()}).items()}
    with torch.no_grad():
        calm = replay(measure.source(name, exporter, torch.float64), {"x": x}, watched)
    return sum(int((_side(n, seen) != _side(n, calm)).sum()) for n in nodes)


def that_matter(name: str, exporter: str, batch: int, rule: str) -> int:
    """Number of kinks on the other side that can move a map: max-pool winners, clips that a rule cuts at, and ReLUs
    for guided backprop alone, since the relevance of a unit near 0 is near 0."""
    clips = ("Clip",) if rule in ("excitation-backprop", *references.GRADIENT_LIKE) else ()
    relus = ("Relu",) if rule == "guided-backprop" else ()
    return flips(name, exporter, batch, ("MaxPool", *clips, *relus))


def composite_bound(name: str, exporter: str, batch: int, rule: str) -> float:
    """Allowed float32 error of a composite against zennit's float64: as zennit_bound, 3e-2 where a kink flips."""
    return measure.FLIPPED if that_matter(name, exporter, batch, rule) else measure.zennit_bound(name, batch, rule)
