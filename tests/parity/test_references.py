"""The references themselves: they agree with one another before anything is compared with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import layer_lrp, measure, references, zoo
from .replay import replay
from .selection import cases

HOOKED = [name for name, entry in zoo.ZOO.items() if entry.relu_modules]


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_replay_is_the_model(name: str, exporter: str) -> None:
    """The replayed float64 file and the torch model agree in prediction and, by autograd through both, gradient."""
    x = zoo.sample(name, 2).double().requires_grad_()
    target = references.targets(name, 2)
    logits = replay(measure.source(name, exporter, torch.float64), {"x": x})["logits"]
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), x)
    with torch.no_grad():
        exact = references.model(name, torch.float64)(x)
    assert (logits - exact).abs().max() <= 1e-11 * exact.abs().max()
    assert references.error(gradient.numpy(), references.gradient(name, 2)) <= 1e-11


@pytest.mark.parametrize("name", list(zoo.ZOO))
@pytest.mark.parity_full
def test_targets_are_alive(name: str) -> None:
    """The explained logits are not small and of both signs."""
    with torch.no_grad():
        logits = references.model(name, torch.float64)(zoo.sample(name, 3).double())
    chosen = logits.gather(1, references.targets(name, 3)[:, None])[:, 0]
    assert (chosen.abs() > 0.5).all()
    assert np.abs(references.gradient(name, 3)).max() > 1e-4


@pytest.mark.parametrize("rule", ["guided-backprop", "deconvnet"])
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "regnet_y_400mf"])
@pytest.mark.parity
def test_captum_and_zennit_agree(name: str, rule: str) -> None:
    """Two libraries, one guided backprop."""
    assert references.error(references.captum_map(name, 2, rule), references.zennit_map(name, 2, rule)) <= 1e-12


@pytest.mark.parametrize(
    ("rule", "composite", "bound"),
    [
        ("lrp-epsilon", "zennit-epsilon", 1e-6),
        ("lrp-gamma", "zennit-gamma", 2e-5),
        ("z-box", "epsilon-gamma-box", 2e-5),
        ("flat", "zennit-gamma-flat", 2e-5),
    ],
)
@pytest.mark.parity
def test_layer_lrp_is_zennit_up_to_stabilisers(rule: str, composite: str, bound: float) -> None:
    """The plain implementation is zennit's, but for the stabilisers of zennit's sums, pools and gamma rule."""
    found = layer_lrp.explain("resnet18", 2, rule).relevance.numpy()
    assert references.error(found, references.zennit_map("resnet18", 2, composite, norm=1e-14)) <= bound
