"""The torchvision classifiers of the parity tests: random, alive, reproducible, exported by both PyTorch exporters.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from . import lite

EXPORTERS = ("legacy", "dynamo")
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
LOW = (0 - MEAN) / STD
HIGH = (1 - MEAN) / STD


@dataclass(frozen=True)
class Entry:
    """One architecture and what the tests may expect of it."""

    size: int = 64  # height and width of the input; adaptive pooling to 7x7 only exports from 224
    piecewise_linear: bool = True  # made of linear, ReLU-like, pooling and addition ops only
    seed: int = 0  # of the sample images
    relu_modules: bool = True  # every ReLU is an nn.ReLU that hooks can see, and there is one


ZOO: dict[str, Entry] = {
    "alexnet": Entry(size=224),
    "vgg16": Entry(size=224, seed=14),
    "vgg11_bn": Entry(size=224, seed=2),
    "resnet18": Entry(),
    "resnet50": Entry(),
    "googlenet": Entry(relu_modules=False),
    "inception_v3": Entry(size=96, seed=1, relu_modules=False),
    "densenet121": Entry(relu_modules=False),
    "squeezenet1_1": Entry(),
    "mobilenet_v2": Entry(relu_modules=False),
    "mobilenet_v3_small": Entry(piecewise_linear=False),
    "mnasnet1_0": Entry(),
    "shufflenet_v2_x1_0": Entry(),
    "efficientnet_b0": Entry(piecewise_linear=False, relu_modules=False),
    "regnet_y_400mf": Entry(piecewise_linear=False),
    "convnext_tiny": Entry(piecewise_linear=False, relu_modules=False),
}
COMPARED: dict[str, Entry] = {"vgg11": Entry(size=224, seed=5)}  # with zennit and captum alone


def entry(name: str) -> Entry:
    """What is known of an architecture."""
    return ZOO.get(name) or COMPARED[name]


def exporters(name: str) -> tuple[str, ...]:
    """What wrote the model's files: PyTorch's exporters, or the demo's script."""
    return ("demo",) if name == lite.NAME else EXPORTERS


def box(name: str) -> tuple[Tensor, Tensor]:
    """The bounds of the model's input, channel by channel."""
    return (torch.tensor(lite.LOW), torch.tensor(lite.HIGH)) if name == lite.NAME else (LOW, HIGH)


def cache_dir() -> Path:
    """Folder for the exported models: XAICOMPILE_ZOO, or one in the system's temporary folder."""
    folder = Path(os.environ.get("XAICOMPILE_ZOO") or Path(tempfile.gettempdir()) / "xaicompile-zoo")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def randomise(model: nn.Module, size: int, seed: int) -> None:
    """Give a model random weights whose signals neither die nor explode, and random batch-norm statistics.

    Convolutions and linear layers are drawn He-like, then scaled layer by layer, in the order of execution, so that
    their outputs have about unit standard deviation. One in eight batch-norm scales is negative, which exchanges
    positive and negative weights when it is folded.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    handles = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:  # convnext: 1e-6 by default, which silences every block
                parameter.copy_(uniform(parameter, 0.2, 0.8))
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(normal(module.weight) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * normal(module.bias))
                handles.append(module.register_forward_hook(_unit_output))
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(0.1 * normal(module.running_mean))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                sign = torch.where(uniform(module.weight, 0, 1) < 0.125, -1.0, 1.0)
                module.weight.copy_(sign * uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(0.1 * normal(module.bias))
        model(pixels_to_input(torch.rand(2, 3, size, size, generator=generator)))
    for handle in handles:
        handle.remove()


def _unit_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook: scale the layer so that its output has about unit standard deviation.

    The scale is a power of two, so that the parameters are the same on every machine.
    """
    scale = 2.0 ** -round(math.log2(output.std().item()))
    for parameter in module.parameters():
        parameter.mul_(scale)
    return output * scale


def pixels_to_input(pixels: Tensor) -> Tensor:
    """Normalise pixels in [0, 1] as the torchvision classifiers expect them."""
    return (pixels - MEAN.to(pixels.dtype)) / STD.to(pixels.dtype)


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The architecture in evaluation mode, with random parameters or, of the demo's classifier, the real ones.

    The parameters are drawn in float32 and then cast, so that both precisions hold the same numbers.
    """
    extra: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": False}
    real = name == lite.NAME
    model: nn.Module = lite.build() if real else torchvision.models.get_model(name, weights=None, **extra).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):  # hooks and in-place activations do not go together
            setattr(module, "inplace", False)  # noqa: B010
    if not real:
        randomise(model, entry(name).size, seed=1 + [*ZOO, *COMPARED].index(name))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(dtype)


def sample(name: str, batch: int = 1) -> Tensor:
    """A float32 batch of images for the model: blobs of colour under noise, all different, or the demo's photo."""
    if name == lite.NAME:
        return lite.images()[:batch]
    generator = torch.Generator().manual_seed(1000 + entry(name).seed)
    size = entry(name).size
    blobs = F.interpolate(torch.rand(batch, 3, 4, 4, generator=generator), size, mode="bilinear")
    noise = torch.rand(batch, 3, size, size, generator=generator)
    return pixels_to_input((1.5 * blobs - 0.25).clamp(0, 1) * 0.7 + 0.3 * noise)


def alive_targets(logits: Tensor) -> Tensor:
    """For every sample a class whose logit is far from zero: of even samples the largest, of odd ones the smallest.

    Where no logit is negative (squeezenet ends in a ReLU and a mean) odd samples take the second largest.
    """
    lowest, smallest = logits.min(1)
    odd = torch.where(lowest < 0, smallest, logits.topk(2, 1).indices[:, 1])
    return torch.where(torch.arange(len(logits)) % 2 == 0, logits.argmax(1), odd)


def export(name: str, exporter: str, dtype: torch.dtype = torch.float32) -> Path:
    """The model as an ONNX file with a dynamic batch dimension, written on first use."""
    bits = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    path = cache_dir() / f"{name}-{exporter}-{bits}.onnx"
    if not path.exists():
        partial = path.with_name(f"{path.stem}-{os.getpid()}.partial")
        if name == lite.NAME:
            onnx.save(lite.file(dtype), partial)
        else:
            _exporter(exporter)(build(name, dtype), sample(name, 2).to(dtype), partial)
        partial.replace(path)
    return path


@cache
def _exporter(exporter: str) -> Callable[[nn.Module, Tensor, Path], None]:
    return {"legacy": _legacy, "dynamo": _dynamo}[exporter]


def _legacy(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
        )


def _dynamo(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(path),
            dynamo=True,
            external_data=sum(p.nbytes for p in model.parameters()) > 1 << 30,
            verbose=False,
            input_names=["x"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
