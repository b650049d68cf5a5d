"""What the parity tests and the parity table measure: explanations of the zoo against their references."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import xaicompile

from . import captum_lrp, lite, references, zoo
from .replay import replay

Array = np.ndarray[Any, Any]
LRP_RULES = ("lrp-0", "lrp-epsilon", "lrp-gamma")
COMPOSITES = tuple(name for name in references.COMPOSITES if not name.startswith("zennit-"))  # zennit's named ones
COMPOSITE_MODELS = ("resnet18", "resnet50", "alexnet", "vgg11", "vgg11_bn", "vgg16", lite.NAME)
ZENNIT_MODELS = ("vgg16", "vgg11_bn", "resnet18", "resnet50")
ZENNIT_RULES = ("zennit-epsilon", "zennit-gamma", "zennit-epsilon-w-square")  # rules that no named composite has

FLOAT64 = 1e-9  # both sides in float64
FLOAT32 = 1e-5  # float32 in ONNX Runtime, no kink flipped
FLIPPED = 3e-2  # float32, where ReLUs or winners of max-pooling flip
ZENNIT = 1e-4  # against zennit, whose stabilisers are not all ours
CAPTUM = 1e-4  # against captum, whose stabiliser of 1e-9 is in pools, sums and batch norms too
CLOSURE = 1e-4  # of a float32 ledger
CLOSURE64 = 1e-9

_COMPOSITES = Path(__file__).parent / "composites"


def rule_options(rule: str, name: str = "") -> dict[str, Any]:
    """Arguments of `xaicompile.compile` for a rule set: a built-in name, or a file of this folder."""
    file = _COMPOSITES / f"{rule}.toml"
    options: dict[str, Any] = {"rule": file if file.exists() else rule}
    if rule in ("z-box", "epsilon-gamma-box"):
        low, high = (bound.tolist() if bound.dim() == 0 else bound.flatten().tolist() for bound in zoo.box(name))
        options["parameters"] = {"low": low, "high": high}
    return options


@lru_cache(maxsize=2)
def source(name: str, exporter: str, dtype: torch.dtype) -> onnx.ModelProto:
    """The exported model."""
    return onnx.load(zoo.export(name, exporter, dtype))


@lru_cache(maxsize=1)
def emitted(name: str, exporter: str, dtype: torch.dtype, rule: str, ledger: bool = False) -> onnx.ModelProto:
    """The compiled model."""
    return xaicompile.compile(source(name, exporter, dtype), ledger=ledger, **rule_options(rule, name))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU with ONNX Runtime's default optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_ort(runtime: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs of a session."""
    names = [o.name for o in runtime.get_outputs()]
    return dict(zip(names, runtime.run(names, dict(inputs)), strict=True))


@lru_cache(maxsize=1)
def source_session(name: str, exporter: str) -> onnxruntime.InferenceSession:
    """The exported model in ONNX Runtime."""
    return session(source(name, exporter, torch.float32))


@lru_cache(maxsize=1)
def emitted_session(name: str, exporter: str, rule: str, ledger: bool) -> onnxruntime.InferenceSession:
    """The compiled model in ONNX Runtime."""
    return session(emitted(name, exporter, torch.float32, rule, ledger))


@dataclass
class Run:
    """One explained batch."""

    name: str
    batch: int
    outputs: dict[str, Array]
    ledger_nodes: list[str]
    node_order: dict[str, int]

    @property
    def relevance(self) -> Array:
        """The map, in float64."""
        return self.outputs["relevance"].astype(np.float64)

    @property
    def closure(self) -> float:
        """Violation of sum(R) + ledger == explained, against the largest sum in the books, of the worst sample."""
        explained, ledger = self.outputs["explained"].astype(np.float64), self.outputs["ledger"].astype(np.float64)
        total = self.relevance.reshape(self.batch, -1).sum(1)
        scale = np.maximum.reduce([np.abs(explained), np.abs(ledger), self.largest_layer_sum()])
        return float((np.abs(total + ledger - explained) / scale).max())

    def largest_layer_sum(self) -> Array:
        """Largest absolute sum of relevance over a cut through the network, per sample.

        Going back from the output in the order of the forward nodes, what is left after each node is the sum over the
        tensors that cross the cut before it.
        """
        explained = self.outputs["explained"].astype(np.float64)
        by_node = self.outputs["ledger_by_node"].astype(np.float64)
        order = sorted(range(len(self.ledger_nodes)), key=lambda i: -self.node_order.get(self.ledger_nodes[i], -1))
        left: Array = np.abs(explained[:, None] - by_node[:, order].cumsum(1)).max(1, initial=0)
        return left


def _inputs(name: str, batch: int) -> dict[str, Array]:
    return {"x": zoo.sample(name, batch).numpy(), "target": references.targets(name, batch).numpy()}


def explain32(name: str, exporter: str, batch: int, rule: str, ledger: bool = False) -> Run:
    """Explain with the float32 file in ONNX Runtime."""
    model = emitted(name, exporter, torch.float32, rule, ledger)
    return _run(name, batch, model, run_ort(emitted_session(name, exporter, rule, ledger), _inputs(name, batch)))


def run(model: onnx.ModelProto, name: str, batch: int) -> Run:
    """Explain with any float32 compilation of the model in ONNX Runtime."""
    return _run(name, batch, model, run_ort(session(model), _inputs(name, batch)))


def explain64(name: str, exporter: str, batch: int, rule: str, ledger: bool = False) -> Run:
    """Explain with the float64 file, replayed in torch."""
    model = emitted(name, exporter, torch.float64, rule, ledger)
    with torch.no_grad():
        values = replay(model, {k: torch.from_numpy(v) for k, v in _inputs(name, batch).items()})
    return _run(name, batch, model, {k: v.numpy() for k, v in values.items()})


def _run(name: str, batch: int, model: onnx.ModelProto, outputs: dict[str, Array]) -> Run:
    metadata = {p.key: p.value for p in model.metadata_props}
    nodes = json.loads(metadata.get("xaicompile.ledger_nodes", "[]"))
    order = {node.name: i for i, node in enumerate(model.graph.node)}
    return Run(name, batch, outputs, nodes, order)


def prediction(name: str, exporter: str, batch: int) -> Array:
    """The source model's output in ONNX Runtime."""
    return run_ort(source_session(name, exporter), {"x": zoo.sample(name, batch).numpy()})["logits"]


def exact_gradient_like(name: str, batch: int, rule: str) -> Array:
    """The float64 reference of a gradient-like rule: autograd, or zennit for the two that change the ReLU."""
    if rule in ("guided-backprop", "deconvnet"):
        return references.zennit_map(name, batch, rule)
    exact = references.gradient(name, batch)
    return exact * zoo.sample(name, batch).double().numpy() if rule == "gradient-x-input" else exact


def float32_bound(name: str, batch: int) -> float:
    """Allowed float32 error on the same side of every kink: 1e-5, or ten times torch's own on models that curve."""
    if zoo.ZOO[name].piecewise_linear:
        return FLOAT32
    return min(max(FLOAT32, 10 * references.torch_own_error(name, batch)), FLIPPED)


def raw_bound(name: str, batch: int, flips: int) -> float:
    """Allowed float32 error where the reference keeps float64's sides of the kinks: 3e-2 where some flip.

    The sample images of the vggs and of inception_v3 are chosen so that it holds: others cost torch itself up to 0.1.
    """
    return FLIPPED if flips else float32_bound(name, batch)


def zennit_bound(name: str, batch: int, rule: str) -> float:
    """Allowed float32 error against zennit: 1e-4, or ten times what zennit itself makes of float32."""
    own = references.error(
        references.zennit_map(name, batch, rule, dtype=torch.float32), references.zennit_map(name, batch, rule)
    )
    return min(max(ZENNIT, 10 * own), FLIPPED)


def exact_bound(rule: str) -> float:
    """Allowed float64 error against zennit: rounding, but for the gamma rule, which has a stabiliser there alone."""
    return ZENNIT if "gamma" in rule else FLOAT64


def captum_case(
    case: captum_lrp.Case, dtype: torch.dtype = torch.float64, feed: Mapping[str, torch.Tensor] | None = None
) -> Array:
    """Our map for a comparison with captum: float64 replayed, or float32 in ONNX Runtime."""
    model = xaicompile.compile(captum_lrp.source(case, dtype), **captum_lrp.options(case))
    feed = feed or captum_lrp.inputs(case)
    if dtype == torch.float64:
        with torch.no_grad():
            return replay(model, feed)["relevance"].numpy()
    return run_ort(session(model), {k: v.numpy() for k, v in feed.items()})["relevance"].astype(np.float64)


def captum_bound(case: captum_lrp.Case) -> float:
    """Allowed float32 error against captum: 1e-4, or ten times what captum itself makes of float32."""
    own = references.error(captum_lrp.captum(case, torch.float32), captum_lrp.captum(case))
    return min(max(ZENNIT, 10 * own), FLIPPED)


def gradient_rules(name: str) -> Sequence[str]:
    """The gradient-like rules that have a reference for the model."""
    return ("gradient", "guided-backprop", "deconvnet") if zoo.ZOO[name].relu_modules else ("gradient",)
