"""What captum's methods and zennit's attributors say on the settings, and with the very draws, of xaicompile's methods.

Both draw their noise from global generators; here they are handed the numbers that xaicompile draws. Captum holds
points, weights, noise widths and counts in float32 even where the model is in float64; `in_float64` lifts that, so that
what is left is a difference of the methods. Nothing here imports xaicompile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGMA, RELATIVE, FILL = 0.05, 0.02, 0.1


@dataclass(frozen=True)
class Sample:
    """What is explained: images, a baseline for each (no plain one), and a class of each."""

    x: Tensor
    base: Tensor
    target: Tensor

    def to(self, dtype: torch.dtype) -> Sample:
        """The same in another precision."""
        return Sample(self.x.to(dtype), self.base.to(dtype), self.target)

    @property
    def window(self) -> tuple[int, int]:
        """Window and stride of four (of a vector, three) windows that overlap, the last cut off at the border."""
        return {6: (3, 2), 64: (40, 30), 224: (130, 96)}[self.x.shape[-1]]

    @property
    def tile(self) -> int:
        """Window and stride of windows side by side."""
        return self.x.shape[-1] // 2


Peer = Callable[[nn.Module, Sample, int], Tensor]


@dataclass(frozen=True)
class Method:
    """A method of both.

    Attributes:
        rule: Our rule set.
        peer: The peer's map of a network, a sample and a number of points.
        given: Our parameters.
        points: The parameter that is the number of points.
        sized: Our parameters that depend on the sample.
        feeds: Whether the baseline is fed.
    """

    rule: str
    peer: Peer
    given: dict[str, Any] = field(default_factory=dict)
    points: str = ""
    sized: Callable[[Sample], dict[str, Any]] = lambda sample: {}
    feeds: bool = False

    def parameters(self, sample: Sample, count: int) -> dict[str, Any]:
        """Ours."""
        base = {"baseline": "input"} if self.feeds else {}
        return {**self.given, **base, **({self.points: count} if self.points else {}), **self.sized(sample)}


# ---------------------------------------------------------------------------------------------------------------------
# draws


@contextmanager
def in_float64() -> Iterator[None]:
    """Captum's and zennit's own float32 constants, in float64."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(usual)


def noise(x: Tensor, samples: int) -> Tensor:
    """The standard normal numbers of seed 0, [samples, *one sample], the same for all samples of a batch."""
    drawn = np.random.default_rng(0).standard_normal((samples, *x.shape[1:]))
    return torch.from_numpy(drawn.astype(str(x.dtype).removeprefix("torch.")))


@contextmanager
def drawing(x: Tensor) -> Iterator[None]:
    """`torch.normal`, as NoiseTunnel calls it, gives our noise: all draws of the first sample, then of the next."""

    def normal(mean: float, std: Tensor) -> Tensor:
        return mean + std * noise(x, len(std) // len(x)).repeat(len(x), *[1] * (x.dim() - 1))

    with mock.patch.object(torch, "normal", normal):
        yield


@contextmanager
def choosing(x: Tensor, members: int, count: int) -> Iterator[None]:
    """Members and points on the way, as GradientShap draws them, are those of our seed 0."""
    rng = np.random.default_rng(0)
    chosen, where = rng.integers(0, members, count), rng.uniform(size=count)
    with ExitStack() as stack:
        stack.enter_context(drawing(x))
        stack.enter_context(mock.patch.object(np.random, "choice", lambda *_: np.tile(chosen, len(x))))
        stack.enter_context(mock.patch.object(np.random, "uniform", lambda *_: np.tile(where, len(x))))
        yield


# ---------------------------------------------------------------------------------------------------------------------
# captum


def path(network: nn.Module, s: Sample, count: int, method: str) -> Tensor:
    """Captum's integrated gradients."""
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(network).attribute(s.x, s.base, target=s.target, n_steps=count, method=method)
    return found


def from_zero(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's left Riemann sum from zero: the first step is at zero itself, where windows of max-pools are ties."""
    return path(network, replace(s, base=torch.zeros_like(s.x)), count, "riemann_left")


def trapezoid(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's trapezoid, whose weights sum to (n - 1) / n, with weights that sum to 1."""
    return path(network, s, count, "riemann_trapezoid") * (count / (count - 1))


def tunnel(network: nn.Module, s: Sample, count: int, kind: str) -> Tensor:
    """Captum's NoiseTunnel over the gradient."""
    from captum.attr import NoiseTunnel, Saliency

    with drawing(s.x):
        found: Tensor = NoiseTunnel(Saliency(network)).attribute(
            s.x, nt_type=kind, nt_samples=count, stdevs=SIGMA, target=s.target, abs=False
        )
    return found


def smooth_path(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's NoiseTunnel over its integrated gradients."""
    from captum.attr import IntegratedGradients, NoiseTunnel

    with drawing(s.x):
        found: Tensor = NoiseTunnel(IntegratedGradients(network)).attribute(
            s.x, nt_samples=2, stdevs=SIGMA, target=s.target, baselines=s.base, n_steps=2, method="riemann_middle"
        )
    return found


def shap(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's GradientShap towards the sample's baselines as background."""
    from captum.attr import GradientShap

    with choosing(s.x, len(s.base), count):
        found: Tensor = GradientShap(network).attribute(s.x, s.base, n_samples=count, stdevs=0.0, target=s.target)
    return found


def occlusion(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's occlusion, over all channels."""
    from captum.attr import Occlusion

    window, stride = s.window
    channels, axes = s.x.shape[1:-2] or (), max(s.x.dim() - 2, 1)
    shape, strides = (*channels, *[window] * axes), (*channels, *[stride] * axes)
    with torch.no_grad():
        found: Tensor = Occlusion(network).attribute(s.x, shape, strides=strides, target=s.target, baselines=FILL)
    return found


def deep_lift(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's DeepLift."""
    from captum.attr import DeepLift

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Tensor = DeepLift(network).attribute(s.x, s.base, target=s.target)
    return found


@contextmanager
def clipped_relus() -> Iterator[None]:
    """Captum's DeepLift knows no ReLU6, and takes its gradient; here it is given the rescale rule that ReLU has."""
    from captum.attr._core import deep_lift as module

    with mock.patch.dict(module.SUPPORTED_NON_LINEAR, {nn.ReLU6: module.nonlinear}):
        yield


def deep_lift_with_relu6(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Captum's DeepLift that knows ReLU6."""
    with clipped_relus():
        return deep_lift(network, s, count)


# ---------------------------------------------------------------------------------------------------------------------
# zennit


def one_hot(s: Sample, out: Tensor) -> Tensor:
    """Of the target."""
    return F.one_hot(s.target, out.shape[1]).to(out.dtype)


def zennit_gradient(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Zennit's Gradient."""
    from zennit.attribution import Gradient

    found: Tensor = Gradient(network, attr_output=partial(one_hot, s))(s.x.clone())[1]
    return found


def zennit_path(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Zennit's IntegratedGradients: the right Riemann sum."""
    from zennit.attribution import IntegratedGradients

    seed = partial(one_hot, s)
    found: Tensor = IntegratedGradients(network, attr_output=seed, baseline_fn=lambda x: s.base, n_iter=count)(s.x)[1]
    return found


def zennit_smooth(network: nn.Module, s: Sample, count: int, composite: Any = None, seed: Any = None) -> Tensor:
    """Zennit's SmoothGrad with one more iteration, which has no noise: that one is taken out of the mean."""
    from zennit.attribution import Gradient

    seed = seed or partial(one_hot, s)
    full = zennit_smooth_as_it_is(network, s, count + 1, composite, seed)
    clean = Gradient(network, composite, attr_output=seed)(s.x.clone())[1]
    return ((count + 1) * full - clean) / count


def zennit_smooth_as_it_is(
    network: nn.Module, s: Sample, count: int, composite: Any = None, seed: Any = None
) -> Tensor:
    """Zennit's SmoothGrad with our noise in the first iterations."""
    from zennit.attribution import SmoothGrad

    draws = iter(noise(s.x, max(count - 1, 1)))
    with mock.patch.object(torch, "randn_like", lambda x: next(draws).expand_as(x)):
        seed = seed or partial(one_hot, s)
        found: Tensor = SmoothGrad(network, composite, seed, noise_level=RELATIVE, n_iter=count)(s.x.clone())[1]
    return found


def zennit_occlusion(network: nn.Module, s: Sample, count: int) -> Tensor:
    """Zennit's Occlusion, told to fill the window, and to weight by what is lost; the windows lie side by side."""
    from zennit.attribution import Occlusion, occlude_independent

    with torch.no_grad():
        whole = network(s.x)
    fill = partial(occlude_independent, fill_fn=lambda x: torch.full_like(x, FILL), invert=True)
    tile = (s.tile,) * max(s.x.dim() - 2, 1)
    lost = Occlusion(network, None, lambda out: (whole - out) * one_hot(s, out), fill, tile, tile)
    found: Tensor = lost(s.x)[1]
    return found


NOISE = {"sigma": SIGMA, "noise": "absolute"}
RULES_OF_QUADRATURE = {
    "gauss-legendre": partial(path, method="gausslegendre"),
    "midpoint": partial(path, method="riemann_middle"),
    "riemann-right": partial(path, method="riemann_right"),
    "riemann-left": partial(path, method="riemann_left"),
    "trapezoid": trapezoid,
}
CAPTUM: dict[str, Method] = {
    **{
        f"captum IntegratedGradients, {name}": Method(
            "integrated-gradients", peer, {"quadrature": name}, points="steps", feeds=True
        )
        for name, peer in RULES_OF_QUADRATURE.items()
    },
    "captum IntegratedGradients, riemann-left, from zero": Method(
        "integrated-gradients", from_zero, {"quadrature": "riemann-left"}, "steps"
    ),
    "captum NoiseTunnel, smoothgrad": Method("smoothgrad", partial(tunnel, kind="smoothgrad"), NOISE, "samples"),
    "captum NoiseTunnel, smoothgrad_sq": Method(
        "gradient-squared", partial(tunnel, kind="smoothgrad_sq"), NOISE, "samples"
    ),
    "captum NoiseTunnel, vargrad": Method("vargrad", partial(tunnel, kind="vargrad"), NOISE, "samples"),
    "captum NoiseTunnel of IntegratedGradients": Method(
        "smooth-integrated-gradients", smooth_path, {**NOISE, "samples": 2, "steps": 2}, feeds=True
    ),
    "captum GradientShap": Method("shap-gradient", shap, points="samples"),
    "captum Occlusion": Method(
        "occlusion",
        occlusion,
        {"fill": FILL},
        sized=lambda s: dict(zip(("window", "stride"), s.window, strict=True)),
    ),
}
ZENNIT: dict[str, Method] = {
    "zennit Gradient": Method("gradient", zennit_gradient),
    "zennit IntegratedGradients": Method(
        "integrated-gradients", zennit_path, {"quadrature": "riemann-right"}, points="steps", feeds=True
    ),
    "zennit SmoothGrad, less its clean sample": Method(
        "smoothgrad", zennit_smooth, {**NOISE, "sigma": RELATIVE, "noise": "relative"}, "samples"
    ),
    "zennit Occlusion, of what is lost": Method(
        "occlusion", zennit_occlusion, {"fill": FILL}, sized=lambda s: {"window": s.tile, "stride": s.tile}
    ),
}
DEEP_LIFT: dict[str, Method] = {"captum DeepLift": Method("deeplift", deep_lift_with_relu6, feeds=True)}
METHODS = {**CAPTUM, **ZENNIT, **DEEP_LIFT}
