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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit import composites as zc
from zennit import rules as zr
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from . import zoo
from .canonizers import canonizers, relu_per_call

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


@dataclass(frozen=True)
class Setting:
    """What a composite is made from beside its rules.

    Attributes:
        norm: Stabiliser of sums and average pools; zennit's default is 1e-6.
    """

    canonizers: list[Canonizer]
    norm: float
    low: Tensor
    high: Tensor


def _layer_map(conv: zr.Hook, linear: zr.Hook, norm: float) -> list[tuple[Any, zr.Hook]]:
    return [
        (Activation, zr.Pass()),
        (Sum, zr.Norm(norm)),
        (AvgPool, zr.Norm(norm)),
        (BatchNorm, zr.Pass()),
        (Convolution, conv),
        (nn.Linear, linear),
    ]


def _rules(conv: zr.Hook, linear: zr.Hook, first: zr.Hook | None = None) -> Callable[[Setting], Composite]:
    """A composite from the rules for convolutions, fully connected layers and the first layer."""
    if first is None:
        return lambda s: LayerMapComposite(_layer_map(conv, linear, s.norm), canonizers=s.canonizers)
    return lambda s: SpecialFirstLayerMapComposite(
        _layer_map(conv, linear, s.norm), first_map=[(Linear, first)], canonizers=s.canonizers
    )


def _named(composite: Callable[..., Composite], box: bool = False) -> Callable[[Setting], Composite]:
    """One of zennit's own composites, with its defaults but for the stabiliser of sums and average pools."""

    def make(s: Setting) -> Composite:
        bounds = {"low": s.low, "high": s.high} if box else {}
        if s.norm == EPSILON:
            return composite(canonizers=s.canonizers, **bounds)
        norms = [(Sum, zr.Norm(s.norm)), (AvgPool, zr.Norm(s.norm))]
        return composite(canonizers=s.canonizers, layer_map=norms, **bounds)

    return make


COMPOSITES: dict[str, Callable[[Setting], Composite]] = {
    "epsilon-gamma-box": _named(zc.EpsilonGammaBox, box=True),
    "epsilon-plus": _named(zc.EpsilonPlus),
    "epsilon-plus-flat": _named(zc.EpsilonPlusFlat),
    "epsilon-alpha2-beta1": _named(zc.EpsilonAlpha2Beta1),
    "epsilon-alpha2-beta1-flat": _named(zc.EpsilonAlpha2Beta1Flat),
    "excitation-backprop": _named(zc.ExcitationBackprop),
    "guided-backprop": _named(zc.GuidedBackprop),
    "deconvnet": _named(zc.DeconvNet),
    "beta-smooth": _named(zc.BetaSmooth),
    "zennit-epsilon": _rules(zr.Epsilon(EPSILON), zr.Epsilon(EPSILON)),
    "zennit-gamma": _rules(zr.Gamma(0.25), zr.Epsilon(EPSILON)),
    "zennit-gamma-flat": _rules(zr.Gamma(0.25), zr.Epsilon(EPSILON), zr.Flat()),
    "zennit-epsilon-w-square": _rules(zr.Epsilon(0.25), zr.Epsilon(0.25), zr.WSquare()),
}
GRADIENT_LIKE = ("guided-backprop", "deconvnet", "beta-smooth")  # their seed is 1, and not the logit


@lru_cache(maxsize=64)
def zennit_map(
    name: str, batch: int, composite: str, norm: float = EPSILON, dtype: torch.dtype = torch.float64
) -> Array:
    """Zennit's map with the model's canonizers.

    Args:
        name: Model of the zoo.
        batch: Samples.
        composite: A key of COMPOSITES; for the gradient-like ones the seed is 1, else the target's logit.
        norm: Stabiliser of sums and average pools; zennit's default is 1e-6.
        dtype: Precision of the model.
    """
    network = copy.deepcopy(model(name, dtype))
    if composite == "beta-smooth":
        network = relu_per_call(network)
    return attribute(
        network,
        COMPOSITES[composite](Setting(canonizers(name, network), norm, *zoo.box(name))),
        zoo.sample(name, batch).to(dtype),
        targets(name, batch),
        unit_seed=composite in GRADIENT_LIKE,
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
    setting = Setting([SequentialMergeBatchNorm()], EPSILON, zoo.LOW, zoo.HIGH)
    return attribute(network, COMPOSITES[composite](setting), x.double(), target)


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
