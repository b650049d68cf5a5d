"""What zennit needs to know of each model, and what has to be overridden for those that it can't take as they are.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from zennit.canonizers import AttributeCanonizer, Canonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer

from . import lite


def canonizers(name: str, network: nn.Module) -> list[Canonizer]:
    """What zennit needs to see batch norms and residual additions of the model."""
    if name == lite.NAME:
        return [lite_batch_norms(network), AttributeCanonizer(_lite_sum)]
    if isinstance(network, DenseNet):
        return [NamedMergeBatchNorm([([conv], norm) for conv, norm in densenet_pairs(network)])]
    return [ResNetCanonizer()] if name.startswith("resnet") else [SequentialMergeBatchNorm()]


def densenet_pairs(network: nn.Module) -> list[tuple[str, str]]:
    """The batch norms of a densenet that follow a convolution at once: those that exporters fold into it.

    Zennit's SequentialMergeBatchNorm goes by the order of registration, in which conv2 of one layer stands before
    norm1 of the next, though what they do to each other is not what it merges.
    """
    layers = [name.removesuffix(".conv1") for name, _ in network.named_modules() if name.endswith(".conv1")]
    return [("features.conv0", "features.norm0"), *((f"{layer}.conv1", f"{layer}.norm2") for layer in layers)]


def lite_batch_norms(network: nn.Module) -> Canonizer:
    """The convolutions of efficientnet-lite by name, and the batch norm behind each.

    Zennit's SequentialMergeBatchNorm looks at modules without children, and every convolution of that class has a
    child (its padding): it merges none of the 49, without a word.
    """
    pairs = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
    inner = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    for name, module in network.named_modules():
        if type(module).__name__ == "MBConvBlock":
            pairs += [(f"{name}.{conv}", f"{name}.{norm}") for conv, norm in inner if hasattr(module, conv)]
    return NamedMergeBatchNorm([([conv], norm) for conv, norm in pairs])


def _lite_sum(name: str, module: Any) -> dict[str, Any] | None:
    """The residual additions of efficientnet-lite as zennit's Sum.

    They are functions, which no hook sees; all relevance is copied to both operands. Zennit's own ResNetCanonizer does
    the same for resnets.
    """
    if type(module).__name__ != "MBConvBlock":
        return None
    return {"forward": types.MethodType(_lite_block, module), "canonizer_sum": Sum()}


def _lite_block(self: Any, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
    """A block's forward pass in evaluation mode, without squeeze and excitation, with its addition in a module."""
    x, arguments = inputs, self._block_args
    if arguments.expand_ratio != 1:
        x = self._swish(self._bn0(self._expand_conv(x)))
    x = self._swish(self._bn1(self._depthwise_conv(x)))
    x = self._bn2(self._project_conv(x))
    if self.id_skip and arguments.stride == 1 and arguments.input_filters == arguments.output_filters:
        total: Tensor = self.canonizer_sum(torch.stack([inputs, x], dim=-1))
        return total
    return x


class ReluPerCall(nn.Module):
    """A ReLU of its own for each call, for a block that calls one module several times.

    Zennit's BetaSmooth keeps one input per module, that of the last call: for torchvision's resnets it takes a wrong
    one (resnet18) or fails on its shape (resnet50).
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(calls))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The ReLU whose turn it is."""
        y: Tensor = self.relus[self.calls % len(self.relus)](x)
        self.calls += 1
        return y


def relu_per_call(network: nn.Module) -> nn.Module:
    """The network, with a ReLU for each call in the blocks of torchvision's resnets."""
    for module in network.modules():
        if type(module).__name__ in ("BasicBlock", "Bottleneck"):
            module.relu = ReluPerCall(3 if hasattr(module, "conv3") else 2)
    return network
