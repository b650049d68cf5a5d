"""DeepLIFT against captum's, in float64: the same reference, the same target.

Not with max-pooling: there captum 0.9's relevance does not sum to the difference of the outputs (which its rule is
meant to do), and xaicompile's does; both are printed.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import xaicompile

from . import measure, references, zoo
from .replay import replay

FLOAT64 = 1e-9


def small(activation: Callable[[], nn.Module], pool: nn.Module) -> nn.Module:
    """Two convolutions, a pool, two dense layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), activation(), pool, nn.Conv2d(4, 3, 3), activation(), nn.Flatten(),
        nn.Linear(12, 6), activation(), nn.Linear(6, 3),
    )  # fmt: skip


def leaky() -> nn.Module:
    """With a slope that an ONNX attribute, which is float32, holds exactly."""
    return nn.LeakyReLU(0.125)


def averaging(name: str) -> nn.Module:
    """A classifier of the zoo with averages in place of its max-pools."""
    network = copy.deepcopy(references.model(name, torch.float64))
    for module in network.modules():
        for child, value in list(module.named_children()):
            if isinstance(value, nn.MaxPool2d):
                setattr(module, child, nn.AvgPool2d(value.kernel_size, value.stride))
    return network


def both(network: nn.Module, x: torch.Tensor, base: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Captum's map, ours, and the difference of the outputs."""
    from captum.attr import DeepLift

    network, target, file = network.double().eval(), torch.arange(len(x)) % 3, io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = DeepLift(network).attribute(x, base.expand_as(x), target=target).detach().numpy()
        dynamic = {"x": {0: "N"}, "y": {0: "N"}}
        torch.onnx.export(
            network, (x,), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes=dynamic,
        )  # fmt: skip
    made = xaicompile.compile(file.getvalue(), "deeplift", parameters={"baseline": "input"})
    with torch.no_grad():
        found = replay(made, {"x": x, "target": target, "baseline": base})["relevance"].numpy()
        change = (network(x) - network(base.expand_as(x))).gather(1, target[:, None])[:, 0].numpy()
    return expected, found, change


@pytest.mark.parity
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, leaky])
def test_small_networks(activation: Callable[[], nn.Module]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, 8, generator=generator).double()
    base = torch.rand(1, 2, 8, 8, generator=generator).double()
    expected, found, change = both(small(activation, nn.AvgPool2d(2)), x, base)
    assert references.error(found, expected) <= FLOAT64
    np.testing.assert_allclose(found.sum((1, 2, 3)), change, rtol=1e-9, atol=1e-12)


@pytest.mark.parity_full
def test_a_classifier() -> None:
    """With batch norms; resnet18, vgg11 and the real classifier are in test_methods_parity.py."""
    x = zoo.sample("vgg11_bn", 1).double()
    expected, found, change = both(averaging("vgg11_bn"), x, 0.5 * x[:1].flip(3))
    assert references.error(found, expected) <= FLOAT64
    np.testing.assert_allclose(found.sum((1, 2, 3)), change, rtol=1e-8, atol=1e-9)


@pytest.mark.parity
def test_max_pooling_sums_to_the_difference_here(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, 8, generator=generator).double()
    base = torch.rand(1, 2, 8, 8, generator=generator).double()
    expected, found, change = both(small(nn.ReLU, nn.MaxPool2d(2)), x, base)
    np.testing.assert_allclose(found.sum((1, 2, 3)), change, rtol=1e-9, atol=1e-12)
    with capsys.disabled():
        gaps = [f"{float(np.abs(r.sum((1, 2, 3)) - change).max()):.1e}" for r in (expected, found)]
        print(f" captum's gap {gaps[0]}, ours {gaps[1]}", end=" ")


BITS = [pytest.param("resnet18", marks=pytest.mark.parity), pytest.param("vgg11_bn", marks=pytest.mark.parity_full)]


@pytest.mark.parametrize("name", BITS)
def test_the_prediction_keeps_its_bits(name: str) -> None:
    made = xaicompile.compile(measure.source(name, "legacy", torch.float32), "deeplift")
    out = measure.run_ort(measure.session(made), {"x": zoo.sample(name, 1).numpy()})
    assert np.array_equal(out["logits"], measure.prediction(name, "legacy", 1))
    assert np.isfinite(out["relevance"]).all()
