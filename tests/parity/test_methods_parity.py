"""Methods against captum's and zennit's, on the same settings and draws, with a target of each sample fed at run time.

On four models (methods_measure.py), in float64 and in ONNX Runtime's float32; METHODS.md has the figures. What the
peers define in another way is in test_methods_differences.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import xaicompile

from . import lite, measure, methods_measure, references, zoo
from .methods_measure import AVERAGES, MODELS, measured, network, relevance, sample, source
from .methods_peers import DEEP_LIFT, METHODS, RELATIVE, in_float64, zennit_smooth

QUICK = ("captum Occlusion", "zennit Gradient")  # on the real classifier

BEYOND = {  # 3e-2 in float32, the peer's own error as well, where rounding falls so
    ("vgg11", "captum NoiseTunnel, vargrad"),  # two kinks flip, and squares double what they cost
    ("vgg11", "captum IntegratedGradients, riemann-left, from zero"),  # at zero rounding decides ties of max-pools
}


def cases() -> list[Any]:
    """All methods on all models; the large ones are run by hand."""
    found = []
    for name in MODELS:
        for key in METHODS:
            quick = name in ("tanh", "resnet18") or (name == lite.NAME and key in QUICK)
            ending = AVERAGES if key in DEEP_LIFT and name != "tanh" else ""
            found.append(
                pytest.param(name + ending, key, marks=pytest.mark.parity if quick else pytest.mark.parity_full)
            )
    return found


@pytest.mark.parametrize(("name", "key"), cases())
def test_is_the_peer_s(name: str, key: str) -> None:
    if lite.NAME in name:
        pytest.importorskip("efficientnet_lite_pytorch")
    numbers = measured(name, key)
    assert numbers.double <= measure.FLOAT64, numbers
    if numbers.single > numbers.bound:
        assert (name, key) in BEYOND and numbers.flips and numbers.own > measure.FLIPPED, numbers
    assert numbers.on_side <= measure.ZENNIT, numbers


@pytest.mark.parity
@pytest.mark.parametrize("composite", ["epsilon-plus", "guided-backprop"])
def test_zennit_s_smooth_grad_with_a_composite(composite: str) -> None:
    """The noise over any rule set: relevance that starts at the logit of each noisy input, and a modified gradient."""
    name, count, unit = "resnet18", 3, composite == "guided-backprop"
    at, double = sample(name).to(torch.float64), network(name, torch.float64)
    setting = references.Setting(references.canonizers(name, double), references.EPSILON, *zoo.box(name))

    def seed(logits: torch.Tensor) -> torch.Tensor:
        one_hot = F.one_hot(at.target, logits.shape[1]).to(logits.dtype)
        return one_hot if unit else one_hot * logits

    with in_float64():
        expected = zennit_smooth(double, at, count, references.COMPOSITES[composite](setting), seed)
    made = xaicompile.compile(source(name, torch.float64), composite, smooth=count, sigma=RELATIVE)
    found = relevance(made, {"x": at.x, "target": at.target}, torch.float64)
    assert references.error(found, expected.detach().numpy()) <= measure.FLOAT64


@pytest.mark.parity
def test_another_target_is_another_map() -> None:
    """The target is an input, not compiled in: fed the other way round, one model gives the peer's other maps."""
    at, method = sample("tanh").to(torch.float64), METHODS["zennit Gradient"]
    turned = methods_measure.Sample(at.x, at.base, at.target.flip(0))
    made = xaicompile.compile(source("tanh", torch.float64), "gradient")
    for s in (at, turned):
        found = relevance(made, {"x": s.x, "target": s.target}, torch.float64)
        expected = method.peer(network("tanh", torch.float64), s, 1).numpy()
        assert references.error(found, expected) <= measure.FLOAT64
