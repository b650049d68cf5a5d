"""Captum's LRP, and the models on which it is compared with the files that they were exported to.

Captum computes R_in = a * W~^T (R / (W~ a + b)), where a are the original inputs, b the original biases (or none), and
W~ = W for EpsilonRule, W + gamma max(W, 0) for GammaRule and max(W, 0) for Alpha1_Beta0_Rule, with 1e-9 to stabilise
each quotient. For inputs of any sign this is LRP-epsilon; the other two are the gamma rule and the z+ rule where no
input is negative, where every unit that has relevance is positive (needed for gamma alone), and where the bias is left
out or of the sign that the rule leaves as it is.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from captum.attr import LRP
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import Tensor, nn

from . import references, zoo
from .canonizers import relu_per_call

Array = np.ndarray[Any, Any]
EPSILON = 1e-9  # captum's stabiliser
BATCH = 2
CAPTUM = {"epsilon": EpsilonRule, "gamma": GammaRule, "alpha1-beta0": Alpha1_Beta0_Rule}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        rule: A key of CAPTUM.
        model: A name of the zoo, or a small network with biases of both signs, none positive or none negative.
        bias: Whether the biases count.
    """

    rule: str
    model: str
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.rule}-{self.model}{'' if self.bias else '-without-bias'}"

    @property
    def nonnegative(self) -> bool:
        """Whether the input must not be negative, and a positive logit be explained."""
        return self.rule != "epsilon"


CASES = [
    *(Case("epsilon", model) for model in ("small", "resnet18", "alexnet", "vgg11")),
    *(Case("gamma", model, bias=False) for model in ("small", "alexnet", "vgg11")),
    Case("gamma", "small-negative"),
    *(Case("alpha1-beta0", model, bias=False) for model in ("small", "alexnet", "vgg11")),
    Case("alpha1-beta0", "small-positive"),
]


class Small(nn.Module):
    """Convolutions, both pools and two dense layers; biases of a sign, or of both if it is 0."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.dense1, self.dense2 = nn.Linear(48, 20), nn.Linear(20, 5)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.max, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(2)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for module in (self.conv1, self.conv2, self.dense1, self.dense2):
                scale = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(scale * torch.randn(module.weight.shape, generator=generator))
                assert module.bias is not None
                bias = 0.3 * torch.randn(module.bias.shape, generator=generator)
                module.bias.copy_(sign * bias.abs() if sign else bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images of 16 x 16."""
        x = self.max(self.relu1(self.conv1(x)))
        x = self.mean(self.relu2(self.conv2(x)))
        logits: Tensor = self.dense2(self.relu3(self.dense1(torch.flatten(x, 1))))
        return logits


@lru_cache(maxsize=2)
def network(model: str, dtype: torch.dtype) -> nn.Module:
    """The torch model; resnet18 with captum's Addition_Module for its additions, which its rules do not see else."""
    if model.startswith("small"):
        return Small({"small": 0, "small-negative": -1, "small-positive": 1}[model]).eval().to(dtype)
    found = copy.deepcopy(references.model(model, dtype))
    if model == "resnet18":
        found = relu_per_call(found)
        for module in found.modules():
            if type(module).__name__ == "BasicBlock":
                module.add, module.forward = Addition_Module(), types.MethodType(_block, module)
    return found


def _block(self: Any, x: Tensor) -> Tensor:
    """The forward pass of torchvision's BasicBlock with its addition in a module."""
    skip = x if self.downsample is None else self.downsample(x)
    out: Tensor = self.relu(self.add(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))), skip))
    return out


@cache
def file(model: str, dtype: torch.dtype) -> Path:
    """The model as an ONNX file."""
    if not model.startswith("small"):
        return zoo.export(model, "legacy", dtype)
    path = zoo.cache_dir() / f"captum-{model}-{'f64' if dtype == torch.float64 else 'f32'}.onnx"
    zoo._legacy(network(model, dtype), torch.zeros(2, 3, 16, 16, dtype=dtype), path)
    return path


def inputs(case: Case) -> Mapping[str, Tensor]:
    """Images of both signs and both signs of logits or, where captum's rules need it, neither."""
    if case.model.startswith("small"):
        x = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    else:
        x = zoo.sample(case.model, BATCH)
    if case.nonnegative:
        x = x.abs()
    with torch.no_grad():
        logits = network(case.model, torch.float64)(x.double())
    return {"x": x, "target": logits.argmax(1) if case.nonnegative else zoo.alive_targets(logits)}


def captum(case: Case, dtype: torch.dtype = torch.float64, feed: Mapping[str, Tensor] | None = None) -> Array:
    """Captum's map, of other inputs if some are given."""
    found, feed = copy.deepcopy(network(case.model, dtype)), feed or inputs(case)
    for module in found.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = CAPTUM[case.rule](**({} if case.rule == "epsilon" else {"set_bias_to_zero": not case.bias}))
    return attribute(found, feed["x"].to(dtype), feed["target"])


def attribute(found: nn.Module, x: Tensor, target: Tensor) -> Array:
    """One attribution by captum's LRP, with the rules that the modules have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        relevance: Tensor = LRP(found).attribute(x.clone().requires_grad_(), target=target)
    result: Array = relevance.detach().double().numpy()
    return result


def options(case: Case) -> dict[str, Any]:
    """Arguments of `xaicompile.compile` for the same."""
    bias = {"bias": "absorb" if case.bias else "ignore"}
    if case.rule == "gamma":
        return {"rule": Path(__file__).parent / "composites" / "captum-gamma.toml", "parameters": bias}
    rule = {"epsilon": "lrp-epsilon", "alpha1-beta0": "lrp-zplus"}[case.rule]
    return {"rule": rule, "parameters": {"epsilon": EPSILON, **bias}}


def source(case: Case, dtype: torch.dtype) -> onnx.ModelProto:
    """The exported model."""
    return onnx.load(file(case.model, dtype))
