"""A second, plain implementation of LRP on two models, which keeps the books layer by layer.

It works on relevances (not on cotangents), in float64, on the torch modules with folded batch norms, and records for
every linear layer how much relevance enters and does not leave. Nothing here imports xaicompile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import references, zoo


@dataclass
class Layer:
    """One linear layer: its function of (input, weight, bias) and its parameters, batch norm folded."""

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    bias: Tensor

    def vjp(self, a: Tensor, weight: Tensor, s: Tensor) -> Tensor:
        """Transpose of the layer with this weight, applied to s."""
        with torch.enable_grad():
            probe = torch.zeros_like(a, requires_grad=True)
            (result,) = torch.autograd.grad(self.apply(probe, weight, None), probe, s)
        return result


EPSILON = 1e-6  # stabiliser of the rules for the first layer
Rule = Callable[[Layer, Tensor, Tensor], Tensor]


def _ratio(r: Tensor, z: Tensor) -> Tensor:
    """R / z with 0 where z is 0."""
    return torch.where(z == 0, 0, r / torch.where(z == 0, 1, z))


def epsilon(eps: float) -> Rule:
    """LRP-epsilon; LRP-0 at eps = 0."""

    def rule(layer: Layer, a: Tensor, r: Tensor) -> Tensor:
        z = layer.apply(a, layer.weight, layer.bias)
        return a * layer.vjp(a, layer.weight, _ratio(r, z + eps * torch.where(z < 0, -1, 1)))

    return rule


def gamma(g: float) -> Rule:
    """Generalised LRP-gamma in its four-term form."""

    def rule(layer: Layer, a: Tensor, r: Tensor) -> Tensor:
        w, b = layer.weight, layer.bias
        up, down = w + g * w.clamp(min=0), w + g * w.clamp(max=0)
        plus, minus = a.clamp(min=0), a.clamp(max=0)
        z = layer.apply(a, w, b)
        p = layer.apply(plus, up, b + g * b.clamp(min=0)) + layer.apply(minus, down, None)
        q = layer.apply(plus, down, b + g * b.clamp(max=0)) + layer.apply(minus, up, None)
        sp, sn = _ratio(r * (z > 0), p), _ratio(r * (z < 0), q)
        return plus * (layer.vjp(a, up, sp) + layer.vjp(a, down, sn)) + minus * (
            layer.vjp(a, down, sp) + layer.vjp(a, up, sn)
        )

    return rule


def box(low: Tensor, high: Tensor) -> Rule:
    """The z-box rule."""

    def rule(layer: Layer, a: Tensor, r: Tensor) -> Tensor:
        w = layer.weight
        lo, hi = low.expand_as(a), high.expand_as(a)
        plus, minus = w.clamp(min=0), w.clamp(max=0)
        z = layer.apply(a, w, None) - layer.apply(lo, plus, None) - layer.apply(hi, minus, None)
        s = _ratio(r, z + EPSILON * torch.where(z < 0, -1, 1))
        return a * layer.vjp(a, w, s) - lo * layer.vjp(a, plus, s) - hi * layer.vjp(a, minus, s)

    return rule


def _fixed(weigh: Callable[[Tensor], Tensor]) -> Rule:
    """A rule that does not look at the input: shares in proportion to a function of the weights."""

    def rule(layer: Layer, a: Tensor, r: Tensor) -> Tensor:
        weight = weigh(layer.weight)
        z = layer.apply(torch.ones_like(a), weight, None)
        return layer.vjp(a, weight, r / (z + EPSILON))

    return rule


FLAT = _fixed(torch.ones_like)
W_SQUARE = _fixed(torch.square)
_BOX = box(zoo.LOW.double(), zoo.HIGH.double())

# rule set -> (first layer, other convolutions, fully connected)
RULE_SETS: Mapping[str, tuple[Rule, Rule, Rule]] = {
    "lrp-0": (epsilon(0), epsilon(0), epsilon(0)),
    "lrp-epsilon": (epsilon(1e-6), epsilon(1e-6), epsilon(1e-6)),
    "lrp-gamma": (gamma(0.25), gamma(0.25), epsilon(1e-6)),
    "z-box": (_BOX, gamma(0.25), epsilon(1e-6)),
    "flat": (FLAT, gamma(0.25), epsilon(1e-6)),
    "w-square": (W_SQUARE, gamma(0.25), epsilon(1e-6)),
}


@dataclass
class Books:
    """The result: the input's relevance and, per linear layer, its folded weight and what it absorbed per sample."""

    relevance: Tensor
    explained: Tensor
    absorbed: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Tape:
    """Records the forward pass as a list of steps back, then walks it in reverse."""

    def __init__(self, rules: tuple[Rule, Rule, Rule]) -> None:
        self.first, self.conv, self.dense = rules
        self.seen = 0
        self.absorbed: list[tuple[Tensor, Tensor]] = []

    def linear(self, a: Tensor, module: nn.Module, norm: nn.Module | None = None) -> tuple[Tensor, _Back]:
        """A convolution or fully connected layer, with the batch norm that follows it."""
        layer = _layer(module, norm)
        rule = self.first if self.seen == 0 else self.conv if isinstance(module, nn.Conv2d) else self.dense
        self.seen += 1

        def back(r: Tensor) -> Tensor:
            inner = rule(layer, a, r)
            self.absorbed.append((layer.weight, r.flatten(1).sum(1) - inner.flatten(1).sum(1)))
            return inner

        return layer.apply(a, layer.weight, layer.bias), back


_Back = Callable[[Tensor], Tensor]


def _layer(module: nn.Module, norm: nn.Module | None) -> Layer:
    if isinstance(module, nn.Linear):
        return Layer(F.linear, module.weight, module.bias)
    assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    stride, padding, groups = module.stride, module.padding, module.groups
    weight = module.weight
    bias = module.bias if module.bias is not None else torch.zeros(len(weight), dtype=weight.dtype)
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight, bias = weight * scale.reshape(-1, 1, 1, 1), (bias - norm.running_mean) * scale + norm.bias
    return Layer(lambda a, w, b: F.conv2d(a, w, b, stride, padding, 1, groups), weight, bias)


def _pool(a: Tensor, size: int, stride: int, padding: int = 0) -> tuple[Tensor, _Back]:
    probe = a.clone().requires_grad_()
    with torch.enable_grad():
        y = F.max_pool2d(probe, size, stride, padding)
    return y.detach(), lambda r: torch.autograd.grad(y, probe, r)[0]


def _vgg(network: Any, x: Tensor, tape: Tape) -> tuple[Tensor, list[_Back]]:
    steps: list[_Back] = []
    modules = list(network.features)
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(module, nn.Conv2d):
            x, back = tape.linear(x, module, following)
            steps.append(back)
        elif isinstance(module, nn.ReLU):
            x = x.relu()
        elif isinstance(module, nn.MaxPool2d):
            x, back = _pool(x, 2, 2)
            steps.append(back)
    shape = x.shape
    assert shape[2:] == (7, 7)  # the adaptive pooling is the identity
    steps.append(lambda r: r.reshape(shape))
    x = x.flatten(1)
    for module in network.classifier:
        if isinstance(module, nn.Linear):
            x, back = tape.linear(x, module)
            steps.append(back)
        elif isinstance(module, nn.ReLU):
            x = x.relu()
    return x, steps


def _block(block: Any, x: Tensor, tape: Tape) -> tuple[Tensor, _Back]:
    inner, back1 = tape.linear(x, block.conv1, block.bn1)
    branch, back2 = tape.linear(inner.relu(), block.conv2, block.bn2)
    skip, back_skip = tape.linear(x, *block.downsample) if block.downsample is not None else (x, lambda r: r)
    total = branch + skip

    def back(r: Tensor) -> Tensor:
        share = _ratio(r, total)
        return back1(back2(share * branch)) + back_skip(share * skip)

    return total.relu(), back


def _resnet(network: Any, x: Tensor, tape: Tape) -> tuple[Tensor, list[_Back]]:
    x, back = tape.linear(x, network.conv1, network.bn1)
    steps = [back]
    x, back = _pool(x.relu(), 3, 2, 1)
    steps.append(back)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            x, back = _block(block, x, tape)
            steps.append(back)
    last, mean = x, x.mean((2, 3), keepdim=True)
    steps.append(lambda r: last / last[0, 0].numel() * _ratio(r.reshape(mean.shape), mean))
    x, back = tape.linear(mean.flatten(1), network.fc)
    return x, [*steps, back]


def explain(name: str, batch: int, rule_set: str) -> Books:
    """Relevance and books of vgg11_bn or resnet18 under a rule set.

    Args:
        name: "vgg11_bn" or "resnet18".
        batch: Samples.
        rule_set: A key of RULE_SETS.
    """
    network, tape = references.model(name, torch.float64), Tape(RULE_SETS[rule_set])
    target = references.targets(name, batch)[:, None]
    walk = {"vgg11_bn": _vgg, "resnet18": _resnet}[name]
    logits, steps = walk(network, zoo.sample(name, batch).double(), tape)
    explained = logits.gather(1, target)
    r = torch.zeros_like(logits).scatter(1, target, explained)
    for back in reversed(steps):
        r = back(r)
    return Books(r, explained[:, 0], tape.absorbed)
