"""What the tests of methods and their table measure: our methods against captum's and zennit's, on four models.

A network of tanh, resnet18 and vgg11 with random weights, the demo's classifier with its real ones. DeepLIFT is
compared where captum's sums up: with averages in place of max-pools, and a ReLU module for each call.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import xaicompile

from . import lite, measure, references, zoo
from .methods_peers import METHODS, Method, Sample, in_float64
from .methods_sides import on_side
from .replay import replay

MODELS = ("tanh", "resnet18", lite.NAME, "vgg11")
BIG = ("vgg11", lite.NAME)
AVERAGES = ", averages"  # in place of max-pools
COUNT = {"tanh": 8, "resnet18": 4, "vgg11": 3, lite.NAME: 3}  # of steps, or of noisy inputs
BATCH = {"vgg11": 1}  # 2 elsewhere; one takes a minute a method


@dataclass(frozen=True)
class Numbers:
    """Errors against the peer in float64.

    Attributes:
        double: Ours in float64.
        single: Ours in float32 in ONNX Runtime.
        own: The peer's own in float32.
        flips: Kinks at the method's points that ONNX Runtime takes on the other side than float64; counted where the
            float32 error is above 1e-4.
        on_side: The float32 error against float64 on ONNX Runtime's side of every kink, worked out there, too.
    """

    double: float
    single: float
    own: float
    flips: int = 0
    on_side: float = 0.0

    @property
    def bound(self) -> float:
        """Allowed in float32: 1e-4, or ten times the peer's own error; 3e-2 at most, and where a kink flips."""
        return measure.FLIPPED if self.flips else min(max(measure.ZENNIT, 10 * self.own), measure.FLIPPED)

    @property
    def within(self) -> bool:
        """Whether all bounds hold; on the same side of all kinks that of float32 has no exceptions."""
        return self.double <= measure.FLOAT64 and self.single <= self.bound and self.on_side <= measure.ZENNIT


@lru_cache(maxsize=2)
def network(name: str, dtype: torch.dtype) -> nn.Module:
    """In evaluation mode."""
    if name == "tanh":
        generator = torch.Generator().manual_seed(0)
        layers: list[nn.Module] = []
        for size, more in ((6, 12), (12, 9), (9, 4)):
            layers += [nn.Linear(size, more), nn.Tanh()]
            for p in layers[-2].parameters():
                nn.init.normal_(p, 0.0, size**-0.5, generator)
        return nn.Sequential(*layers[:-1]).to(dtype).eval()
    found = references.model(plain(name), dtype)
    return averaging(found, sample(plain(name)).x.to(dtype)) if name != plain(name) else found


def plain(name: str) -> str:
    """The model that another is made from."""
    return name.removesuffix(AVERAGES)


class PerCall(nn.Module):
    """Takes turns at copies of a module, one for each call in a forward pass."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.each, self.turn = nn.ModuleList(copy.deepcopy(module) for _ in range(calls)), -1

    def forward(self, x: Tensor) -> Tensor:
        self.turn = (self.turn + 1) % len(self.each)
        found: Tensor = self.each[self.turn](x)
        return found


def averaging(network: nn.Module, x: Tensor) -> nn.Module:
    """With averages in place of max-pools, and a ReLU module for each call, which captum asks for."""
    network, calls = copy.deepcopy(network), Counter[nn.Module]()
    relus = [m for m in network.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    hooks = [m.register_forward_hook(lambda m, *_: calls.update([m])) for m in relus]
    with torch.no_grad():
        network(x[:1])
    for hook in hooks:
        hook.remove()
    for module in list(network.modules()):
        for child, value in list(module.named_children()):
            if isinstance(value, nn.MaxPool2d):
                setattr(module, child, nn.AvgPool2d(value.kernel_size, value.stride, value.padding))
            elif calls[value] > 1:
                setattr(module, child, PerCall(value, calls[value]))
    return network


@lru_cache(maxsize=2)
def source(name: str, dtype: torch.dtype) -> onnx.ModelProto:
    """The exported model."""
    if name in MODELS and name != "tanh":
        return measure.source(name, zoo.exporters(name)[0], dtype)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network(name, dtype), (sample(name).x.to(dtype),), file, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@lru_cache(maxsize=8)
def sample(name: str) -> Sample:
    """In float32 numbers; each sample's baseline is made from the other's image, its class from the outputs."""
    if plain(name) == "tanh":
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    else:
        x = zoo.sample(plain(name), 2)
    with torch.no_grad():
        target = zoo.alive_targets(network(name, torch.float64)(x.double()))
    assert target[0] != target[1]
    batch = BATCH.get(plain(name), 2)
    return Sample(x[:batch], 0.25 * x.flip(0)[:batch] + 0.1, target[:batch])


def measured(name: str, key: str) -> Numbers:
    """A method on a model."""
    method, exact = METHODS[key], peer(name, key)
    own = references.error(peer(name, key, torch.float32), exact)
    double, single = (emitted(name, method, dtype) for dtype in (torch.float64, torch.float32))
    found = [relevance(*double, torch.float64), relevance(*single, torch.float32)]
    errors = [references.error(f, exact) for f in found]
    numbers = Numbers(errors[0], errors[1], own)
    if numbers.single <= measure.ZENNIT or method.rule in ("occlusion", "deeplift"):  # which average no gradients
        return numbers
    at = sample(name)
    given = method.parameters(at, COUNT[plain(name)])
    beside, flips = on_side(*single, source(name, torch.float64), method.rule, given, at)
    return replace(numbers, flips=flips, on_side=references.error(found[1], beside))


def peer(name: str, key: str, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The peer's map: in float64 throughout, or as it is in float32."""
    method, at = METHODS[key], sample(name).to(dtype)
    if dtype == torch.float64:
        with in_float64():
            found = method.peer(network(name, dtype), at, COUNT[plain(name)])
    else:
        found = method.peer(network(name, dtype), at, COUNT[plain(name)])
    return found.detach().double().numpy()


def emitted(name: str, method: Method, dtype: torch.dtype) -> tuple[onnx.ModelProto, dict[str, Tensor]]:
    """Our model, and what it is fed. The target is fed when the model runs."""
    at = sample(name).to(dtype)
    parameters = method.parameters(at, COUNT[plain(name)])
    with tempfile.TemporaryDirectory() as folder:
        if method.rule == "shap-gradient":
            parameters["background"] = str(Path(folder) / "background.npy")
            np.save(parameters["background"], at.base.numpy())
        made = xaicompile.compile(source(name, dtype), method.rule, parameters=parameters)
    return made, {"x": at.x, "target": at.target, **({"baseline": at.base} if method.feeds else {})}


def relevance(made: onnx.ModelProto, feed: Mapping[str, Tensor], dtype: torch.dtype) -> np.ndarray:
    """What an emitted model gives: in float64 replayed in torch, or in float32 in ONNX Runtime."""
    if dtype == torch.float64:
        with torch.no_grad():
            replayed: np.ndarray = replay(made, feed, ["relevance"])["relevance"].numpy()
        return replayed
    out = measure.run_ort(measure.session(made), {k: v.numpy() for k, v in feed.items()})
    return out["relevance"].astype(np.float64)
