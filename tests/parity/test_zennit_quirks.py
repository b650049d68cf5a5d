"""What zennit does that is not reproduced, each on a small network: not on this one, but on the one put right.

TABLE.md lists them. In each case the ONNX file of the network as it is written gives here what zennit gives for the
same function with the quirk out of its way.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit import composites as zc
from zennit import rules as zr
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import BatchNorm

import xaicompile

from . import measure, references
from .replay import replay

pytestmark = pytest.mark.parity
APART = 1e-2


class Net(nn.Module):
    """Two convolutions, a batch norm in front of the second, and a dense layer; `right` puts the quirks right."""

    def __init__(self, right: bool, kind: str) -> None:
        super().__init__()
        self.right, self.kind = right, kind
        first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        if kind == "registration" and not right:
            self.second, self.first = second, first
        else:
            self.first, self.second = first, second
        self.relu, self.other = nn.ReLU(), nn.ReLU()
        self.norm, self.sum = nn.BatchNorm2d(4), Sum()
        self.pool, self.dense = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for layer in (first, second, self.dense):
                layer.weight.copy_(
                    torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
                )
                layer.bias.copy_(0.2 * torch.randn(layer.bias.shape, generator=generator))
            self.norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of 6 x 6 images."""
        x = self.relu(self.first(x))
        y = self.second(self.norm(x) if self.kind == "norm" else x)
        if self.kind == "addition":
            y = self.sum(torch.stack([x, y], -1)) if self.right else x + y
        y = self.relu(y) if self.kind == "reuse" and not self.right else self.other(y)
        y = F.adaptive_avg_pool2d(y, 1) if self.kind == "pool" and not self.right else self.pool(y)
        logits: Tensor = self.dense(y.flatten(1))
        return logits


@dataclass(frozen=True)
class Quirk:
    """What is explained, and how zennit has to be asked for the right answer."""

    kind: str
    rule: str
    composite: Callable[[], Composite]
    right: Callable[[], Composite] | None = None


QUIRKS = [
    Quirk("reuse", "beta-smooth", zc.BetaSmooth),  # keeps one input for a module that is called twice
    Quirk("addition", "epsilon-plus", zc.EpsilonPlus),  # a function: all relevance to both operands
    Quirk("pool", "epsilon-plus", zc.EpsilonPlus),  # a function: the same relevance to all of a window
    Quirk("registration", "epsilon-plus-flat", zc.EpsilonPlusFlat),  # the first layer is the first that was registered
    Quirk(  # no rule for a batch norm that is not merged: relevance is multiplied by its scale
        "norm",
        "excitation-backprop",
        zc.ExcitationBackprop,
        lambda: zc.ExcitationBackprop(layer_map=[(BatchNorm, zr.Pass())]),
    ),
]


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.kind)
def test_is_not_reproduced(quirk: Quirk) -> None:
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(4)).double()
    written, right = (Net(flag, quirk.kind).double().eval() for flag in (False, True))
    with torch.no_grad():
        logits = written(x)
        assert torch.equal(logits, right(x))
    target, unit = logits.abs().argmax(1), quirk.rule in references.GRADIENT_LIKE
    model = xaicompile.compile(exported(written, x), quirk.rule)
    with torch.no_grad():
        ours = replay(model, {"x": x, "target": target})["relevance"].numpy()
    quirky = references.attribute(written, quirk.composite(), x, target, unit)
    amended = references.attribute(right, (quirk.right or quirk.composite)(), x, target, unit)
    assert references.error(ours, amended) <= measure.FLOAT64
    assert references.error(quirky, amended) > APART


def exported(network: nn.Module, x: Tensor) -> onnx.ModelProto:
    """The network as an ONNX model."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (x,), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["logits"]
        )
    return onnx.load_from_string(file.getvalue())


def test_batch_norms_that_are_not_merged() -> None:
    """SequentialMergeBatchNorm goes by modules without children, in the order of registration."""
    pytest.importorskip("efficientnet_lite_pytorch")
    assert not SequentialMergeBatchNorm().apply(references.model("efficientnet-lite0", torch.float64))
    with pytest.raises(RuntimeError, match="must match the size"):
        SequentialMergeBatchNorm().apply(references.model("densenet121", torch.float64))
    references.model.cache_clear()  # half merged


def test_beta_smooth_on_torchvision_s_resnets() -> None:
    """One ReLU module per block: an input of the wrong call (resnet18), or one of the wrong shape (resnet50)."""
    from . import zoo

    def as_it_is(name: str) -> Any:
        network = references.model(name, torch.float64)
        target = references.targets(name, 2)
        composite = zc.BetaSmooth(canonizers=references.canonizers(name, network))
        return references.attribute(network, composite, zoo.sample(name, 2).double(), target, unit_seed=True)

    assert references.error(as_it_is("resnet18"), references.zennit_map("resnet18", 2, "beta-smooth")) > 0.5
    with pytest.raises(RuntimeError, match="must match the size"):
        as_it_is("resnet50")
    references.model.cache_clear()
    assert np.isfinite(references.zennit_map("resnet50", 2, "beta-smooth")).all()
