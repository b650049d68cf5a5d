"""Integrated gradients, noise, occlusion and expected gradients against captum's, on the same settings and draws."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import xaicompile

from . import measure, references, zoo
from .replay import replay

pytestmark = pytest.mark.parity
NAME, BATCH = "resnet18", 2


@lru_cache(maxsize=1)
def smooth() -> tuple[nn.Module, bytes]:
    """A small network of tanh, and its file."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double().eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(1, 6).double(),), file, dynamo=False, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return network, file.getvalue()


def case(name: str) -> tuple[nn.Module, bytes | onnx.ModelProto, torch.Tensor, torch.Tensor]:
    """The network in float64, its file, samples and live targets."""
    if name == "tanh":
        network, file = smooth()
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
        return network, file, x, network(x).abs().argmax(1)
    source = measure.source(name, zoo.exporters(name)[0], torch.float64)
    return (
        references.model(name, torch.float64),
        source,
        zoo.sample(name, BATCH).double(),
        references.targets(name, BATCH),
    )


def ours(source: Any, rule: str, x: torch.Tensor, target: torch.Tensor, **parameters: Any) -> np.ndarray:
    """Our map in float64."""
    made = xaicompile.compile(source, rule, parameters=parameters)
    with torch.no_grad():
        found: np.ndarray = replay(made, {"x": x, "target": target})["relevance"].numpy()
    return found


def near(found: np.ndarray, expected: torch.Tensor, bound: float = measure.FLOAT64) -> None:
    assert references.error(found, expected.detach().double().numpy()) <= bound


def moved(x: torch.Tensor, samples: int, sigma: float) -> list[torch.Tensor]:
    """The noisy inputs of seed 0, noise of an absolute width."""
    noise = np.random.default_rng(0).standard_normal((samples, *x.shape[1:]))
    return [x + sigma * torch.from_numpy(n) for n in noise]


@pytest.mark.parametrize("name", ["tanh", NAME])
@pytest.mark.parametrize(
    ("quadrature", "method"), [("midpoint", "riemann_middle"), ("riemann-right", "riemann_right"),
                               ("riemann-left", "riemann_left"), ("gauss-legendre", "gausslegendre")],
)  # fmt: skip
def test_integrated_gradients(name: str, quadrature: str, method: str, tmp_path: Path) -> None:
    """The baseline is no plain image, in which every window of a max-pool would be a tie."""
    from captum.attr import IntegratedGradients

    network, source, x, target = case(name)
    base, steps = 0.3 * x.flip(0), 4 if name == NAME else 16
    np.save(tmp_path / "base.npy", base.numpy())
    options = {"steps": steps, "quadrature": quadrature, "baseline": str(tmp_path / "base.npy")}
    found = ours(source, "integrated-gradients", x, target, **options)
    expected = IntegratedGradients(network).attribute(x, base, target=target, n_steps=steps, method=method)
    # captum rounds the weights to float32, which holds those of a Riemann sum here exactly
    near(found, expected, 2**-24 if quadrature == "gauss-legendre" else measure.FLOAT64)


@pytest.mark.parametrize("name", ["tanh", NAME])
@pytest.mark.parametrize(
    ("rule", "mean"), [("smoothgrad", lambda g: g.mean(0)), ("gradient-squared", lambda g: (g**2).mean(0)),
                       ("vargrad", lambda g: (g**2).mean(0) - g.mean(0) ** 2)],
)  # fmt: skip
def test_noise(name: str, rule: str, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Captum's saliency at the same noisy inputs, averaged as its NoiseTunnel does."""
    from captum.attr import Saliency

    network, source, x, target = case(name)
    found = ours(source, rule, x, target, samples=4, sigma=0.05, noise="absolute")
    saliency = Saliency(network)
    each = [saliency.attribute(v.requires_grad_(), target=target, abs=False) for v in moved(x, 4, 0.05)]
    near(found, mean(torch.stack(each)))


def test_occlusion() -> None:
    from captum.attr import Occlusion

    network, source, x, target = case(NAME)
    found = ours(source, "occlusion", x, target, window=24, stride=20, fill=0.1)
    with torch.no_grad():
        expected = Occlusion(network).attribute(x, (3, 24, 24), strides=(3, 20, 20), target=target, baselines=0.1)
    near(found, expected, 1e-6)  # captum adds up in float32


@pytest.mark.parametrize("name", ["tanh", NAME])
def test_expected_gradients(name: str, tmp_path: Path) -> None:
    """The mean over captum's integrand, InputXGradient at the points drawn, times (x - b) in place of x."""
    from captum.attr import Saliency

    network, source, x, target = case(name)
    background = 0.5 * x.flip(0).numpy()
    np.save(tmp_path / "background.npy", background)
    found = ours(source, "shap-gradient", x, target, samples=4, background=str(tmp_path / "background.npy"))
    rng = np.random.default_rng(0)
    chosen, where = rng.integers(0, len(background), 4), rng.uniform(size=4)
    total = torch.zeros_like(x)
    for i, t in zip(chosen, where, strict=True):
        base = torch.from_numpy(background[i])
        at = (base + t * (x - base)).detach().requires_grad_()
        total += (x - base) * Saliency(network).attribute(at, target=target, abs=False) / 4
    near(found, total)
