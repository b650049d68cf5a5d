"""What PyTorch, zennit and captum say: the reference maps of the parity tests.

Nothing here imports xaicompile. Every map is returned per sample and in float64, and relevance starts at the logit of
the sample's target (zennit seeds with what it is given, so it is given the logit).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit import rules as zr
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.composites import (
    DeconvNet,
    EpsilonGammaBox,
    EpsilonPlusFlat,
    GuidedBackprop,
    LayerMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.core import Composite
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from . import zoo

Array = np.ndarray[Any, Any]
EPSILON = 1e-6


class _Float32Slope(nn.Module):
    """Hardsigmoid whose slope is 1/6 rounded to float32, which is all that an ONNX attribute can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * float(np.float32(1 / 6)) + 0.5).clamp(0, 1)


@lru_cache(maxsize=2)
def model(name: str, dtype: torch.dtype) -> nn.Module:
    """The zoo's model as the exporters write it: hard sigmoids with a float32 slope."""
    network = zoo.build(name, dtype)
    for module in network.modules():
        for child, value in list(module.named_children()):
            if isinstance(value, nn.Hardsigmoid):
                setattr(module, child, _Float32Slope())
    return network


@lru_cache(maxsize=64)
def targets(name: str, batch: int) -> Tensor:
    """The explained class of each sample: the largest absolute logit, in float64."""
    with torch.no_grad():
        logits: Tensor = model(name, torch.float64)(zoo.sample(name, batch).double())
    return zoo.alive_targets(logits)


@lru_cache(maxsize=64)
def gradient(name: str, batch: int, dtype: torch.dtype = torch.float64, mkldnn: bool = True) -> Array:
    """Autograd's gradient of the target's logit.

    Args:
        name: Model of the zoo.
        batch: Samples.
        dtype: Precision of the model.
        mkldnn: Whether torch may use oneDNN.
    """
    x = zoo.sample(name, batch).to(dtype).requires_grad_()
    with nullcontext() if mkldnn else torch.backends.mkldnn.flags(enabled=False):
        logits = model(name, dtype)(x)
        (result,) = torch.autograd.grad(logits.gather(1, targets(name, batch)[:, None]).sum(), x)
    return _array(result)


def torch_own_error(name: str, batch: int) -> float:
    """How far torch's float32 gradients, with and without oneDNN, are from its float64 gradient."""
    exact = gradient(name, batch)
    return max(error(gradient(name, batch, torch.float32, mkldnn), exact) for mkldnn in (True, False))


def error(found: Array, exact: Array) -> float:
    """Largest absolute difference relative to the largest absolute reference value, of the worst sample."""
    axes = tuple(range(1, exact.ndim))
    return float((np.abs(found - exact).max(axes) / np.abs(exact).max(axes)).max())


def _array(value: Tensor) -> Array:
    return value.detach().double().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# zennit


def canonizers(name: str) -> list[Canonizer]:
    """What zennit needs to see batch norms and residual additions of the model."""
    return [ResNetCanonizer()] if name.startswith("resnet") else [SequentialMergeBatchNorm()]


def _layer_map(conv: zr.Hook, linear: zr.Hook, norm: float) -> list[tuple[Any, zr.Hook]]:
    return [
        (Activation, zr.Pass()),
        (Sum, zr.Norm(norm)),
        (AvgPool, zr.Norm(norm)),
        (BatchNorm, zr.Pass()),
        (Convolution, conv),
        (nn.Linear, linear),
    ]


def _rules(
    conv: zr.Hook, linear: zr.Hook, first: zr.Hook | None = None
) -> Callable[[list[Canonizer], float], Composite]:
    """A composite from the rules for convolutions, fully connected layers and the first layer."""
    if first is None:
        return lambda c, norm: LayerMapComposite(_layer_map(conv, linear, norm), canonizers=c)
    return lambda c, norm: SpecialFirstLayerMapComposite(
        _layer_map(conv, linear, norm), first_map=[(Linear, first)], canonizers=c
    )


# from the canonizers and the stabiliser of sums and average pools
COMPOSITES: dict[str, Callable[[list[Canonizer], float], Composite]] = {
    "guided-backprop": lambda c, norm: GuidedBackprop(canonizers=c),
    "deconvnet": lambda c, norm: DeconvNet(canonizers=c),
    "zennit-epsilon": _rules(zr.Epsilon(EPSILON), zr.Epsilon(EPSILON)),
    "zennit-gamma": _rules(zr.Gamma(0.25), zr.Epsilon(EPSILON)),
    "zennit-gamma-box": lambda c, norm: EpsilonGammaBox(
        low=zoo.LOW,
        high=zoo.HIGH,
        canonizers=c,
        layer_map=[(Sum, zr.Norm(norm)), (AvgPool, zr.Norm(norm))],
    ),
    "zennit-gamma-flat": _rules(zr.Gamma(0.25), zr.Epsilon(EPSILON), zr.Flat()),
    "zennit-epsilon-w-square": _rules(zr.Epsilon(0.25), zr.Epsilon(0.25), zr.WSquare()),
    "epsilon-plus-flat": lambda c, norm: EpsilonPlusFlat(canonizers=c),
}


@lru_cache(maxsize=64)
def zennit_map(
    name: str, batch: int, composite: str, norm: float = EPSILON, dtype: torch.dtype = torch.float64
) -> Array:
    """Zennit's map with the model's canonizers.

    Args:
        name: Model of the zoo.
        batch: Samples.
        composite: A key of COMPOSITES; for the two gradient-like ones the seed is 1, else the target's logit.
        norm: Stabiliser of sums and average pools; zennit's default is 1e-6.
        dtype: Precision of the model.
    """
    return attribute(
        copy.deepcopy(model(name, dtype)),
        COMPOSITES[composite](canonizers(name), norm),
        zoo.sample(name, batch).to(dtype),
        targets(name, batch),
        unit_seed=composite in ("guided-backprop", "deconvnet"),
    )


def attribute(network: nn.Module, composite: Composite, x: Tensor, target: Tensor, unit_seed: bool = False) -> Array:
    """One zennit attribution of the target's logit."""

    def seed(logits: Tensor) -> Tensor:
        one_hot = F.one_hot(target, logits.shape[1]).to(logits.dtype)
        return one_hot if unit_seed else one_hot * logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Gradient(network, composite) as attributor:
            _, relevance = attributor(x, seed)
    return _array(relevance)


def workaround_map(path: Path, x: Tensor, target: Tensor, composite: str) -> Array:
    """The usual way round: read the ONNX file back with onnx2torch, then explain that with zennit."""
    with _quiet("onnx2torch"):
        from onnx2torch import convert

        network = convert(str(path)).eval().double()
    return attribute(network, COMPOSITES[composite]([SequentialMergeBatchNorm()], EPSILON), x.double(), target)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger, level = logging.getLogger(name), logging.getLogger(name).level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# captum


def captum_map(name: str, batch: int, rule: str) -> Array:
    """Captum's guided backprop or deconvolution in float64."""
    from captum.attr import Deconvolution
    from captum.attr import GuidedBackprop as CaptumGuided

    method = {"guided-backprop": CaptumGuided, "deconvnet": Deconvolution}[rule]
    x = zoo.sample(name, batch).double().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attributor = method(copy.deepcopy(model(name, torch.float64)))
        return _array(attributor.attribute(x, target=targets(name, batch)))
