"""What captum's methods and zennit's attributors define in another way: shown here, and not followed."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import xaicompile

from . import measure, references
from .methods_measure import measured, network, relevance, sample, source
from .methods_peers import (
    METHODS,
    NOISE,
    RELATIVE,
    RULES_OF_QUADRATURE,
    Sample,
    deep_lift,
    deep_lift_with_relu6,
    in_float64,
    noise,
    occlusion,
    path,
    zennit_smooth_as_it_is,
)  # fmt: skip

pytestmark = pytest.mark.parity
APART = 1e-3  # more than rounding, by far
F64 = torch.float64


def ours(rule: str, s: Sample, file: onnx.ModelProto | bytes | None = None, **given: Any) -> np.ndarray:
    """Our map in float64, of the network of tanh or another."""
    made = xaicompile.compile(file or source("tanh", F64), rule, parameters=given)
    feed = {"x": s.x, "target": s.target, **({"baseline": s.base} if "baseline" in given else {})}
    return relevance(made, feed, F64)


def error(found: np.ndarray, expected: Tensor) -> float:
    return references.error(found, expected.detach().double().numpy())


def exported(net: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return file.getvalue()


@pytest.fixture
def at() -> Sample:
    return sample("tanh").to(F64)


def test_captum_keeps_points_weights_and_counts_in_float32(at: Sample) -> None:
    """So a bound of 1e-9 does not hold for captum as it is, in float64: by 2^-24 a step, and by no more."""
    for peer, found in (
        (RULES_OF_QUADRATURE["gauss-legendre"],
         ours("integrated-gradients", at, baseline="input", quadrature="gauss-legendre", steps=5)),
        (occlusion, ours("occlusion", at, window=3, stride=2, fill=0.1)),
    ):  # fmt: skip
        as_it_is = error(found, peer(network("tanh", F64), at, 5))
        with in_float64():
            lifted = error(found, peer(network("tanh", F64), at, 5))
        assert lifted <= measure.FLOAT64 < as_it_is <= 2**-22


def test_captum_s_trapezoid_does_not_sum_to_one(at: Sample) -> None:
    count = 5
    with in_float64():
        captum = path(network("tanh", F64), at, count, "riemann_trapezoid")
    found = ours("integrated-gradients", at, baseline="input", quadrature="trapezoid", steps=count)
    assert error(found * (count - 1) / count, captum) <= measure.FLOAT64
    assert error(found, captum) > APART


def test_captum_draws_noise_for_each_sample(at: Sample) -> None:
    """Here two equal samples have equal maps, and the width follows the range of each."""
    from captum.attr import NoiseTunnel, Saliency

    twice = Sample(at.x[:1].repeat(2, 1), at.base, at.target[:1].repeat(2))
    captum = NoiseTunnel(Saliency(network("tanh", F64))).attribute(
        twice.x, nt_samples=4, stdevs=0.3, target=twice.target, abs=False
    )  # fmt: skip
    found = ours("smoothgrad", twice, samples=4, sigma=0.3)
    assert np.array_equal(found[0], found[1])
    assert error(captum[:1].detach().numpy(), captum[1:]) > APART
    width = 0.3 * (at.x.amax(1) - at.x.amin(1))[0].item()
    absolute = ours("smoothgrad", twice, samples=4, sigma=width, noise="absolute")
    assert references.error(found, absolute) <= measure.FLOAT64


def test_captum_s_variance_cancels() -> None:
    """The mean square less the square of the mean, in float32."""
    numbers = measured("tanh", "captum NoiseTunnel, vargrad")
    assert numbers.own > measure.ZENNIT > numbers.single


class Clipped(nn.Module):
    """A dense layer, ReLU6, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.act, self.last = nn.Linear(6, 9), nn.ReLU6(), nn.Linear(9, 4)
        for p in self.parameters():
            nn.init.normal_(p, 0.0, 1.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.act(self.first(x)))
        return out


class Reused(Clipped):
    """One module twice."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.act(self.act(self.first(x)) - 0.5))
        return out


def test_captum_s_deep_lift_takes_the_gradient_of_relu6(at: Sample) -> None:
    """Without the rescale rule the map does not sum to the difference of the outputs; with it both agree."""
    net = Clipped().to(F64).eval()
    found = ours("deeplift", at, exported(net, at.x), baseline="input")
    change = (net(at.x) - net(at.base)).gather(1, at.target[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(found.sum(1), change, rtol=1e-9, atol=1e-12)
    assert error(found, deep_lift_with_relu6(net, at, 1)) <= measure.FLOAT64
    assert error(found, deep_lift(net, at, 1)) > APART


def test_captum_s_deep_lift_refuses_a_module_that_is_called_twice(at: Sample) -> None:
    net = Reused().to(F64).eval()
    with pytest.raises(RuntimeError, match="more than once"):
        deep_lift_with_relu6(net, at, 1)
    found = ours("deeplift", at, exported(net, at.x), baseline="input")
    change = (net(at.x) - net(at.base)).gather(1, at.target[:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(found.sum(1), change, rtol=1e-9, atol=1e-12)


def test_captum_refuses_a_stride_above_the_window(at: Sample) -> None:
    """Here what no window covers gets nothing."""
    from captum.attr import Occlusion

    with pytest.raises(AssertionError, match="cannot be larger than sliding window"):
        Occlusion(network("tanh", F64)).attribute(at.x, (1,), strides=(2,), target=at.target)
    found = ours("occlusion", at, window=1, stride=2)
    assert not found[:, 1::2][:, :2].any() and found[:, ::2].all()


def test_captum_s_left_sum_from_zero_where_all_is_a_kink(at: Sample) -> None:
    """Without biases every ReLU sits on its kink at zero, and both take the slope 0 there.

    Such a network is linear on the way from zero, so all other steps give gradient x input, and the left sum n - 1 of
    them over n, in captum and here. With biases nothing but ties of max-pools is on a kink at zero: those are won by
    the first of the window in both (the row "from zero" of METHODS.md, in float64).
    """
    net = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)).to(F64).eval()
    file, count = exported(net, at.x), 4
    product = ours("gradient-x-input", at, file)
    for rule, share in (("riemann-left", (count - 1) / count), ("midpoint", 1.0)):
        found = ours("integrated-gradients", at, file, quadrature=rule, steps=count)
        with in_float64():
            zero = Sample(at.x, torch.zeros_like(at.x), at.target)
            captum = RULES_OF_QUADRATURE[rule](net, zero, count)
        assert error(found, captum) <= measure.FLOAT64
        assert references.error(found, share * product) <= measure.FLOAT64


def test_zennit_s_smooth_grad_ends_without_noise(at: Sample) -> None:
    """Of n samples one is the input itself: with one it is the gradient, and noise counts (n - 1) / n."""
    net, gradient = network("tanh", F64), ours("gradient", at)
    assert error(gradient, zennit_smooth_as_it_is(net, at, 1)) <= measure.FLOAT64
    given = {**NOISE, "noise": "relative", "sigma": RELATIVE}
    assert references.error(ours("smoothgrad", at, samples=1, **given), gradient) > APART
    with in_float64():
        zennit = zennit_smooth_as_it_is(net, at, 4)
    three = ours("smoothgrad", at, samples=3, **given)
    assert error((3 * three + gradient) / 4, zennit) <= measure.FLOAT64
    assert error(ours("smoothgrad", at, samples=4, **given), zennit) > APART


def test_zennit_s_occlusion_keeps_the_window(at: Sample) -> None:
    """As it is, what a window gets is the output with all else filled; and a window goes round the border."""
    from zennit.attribution import Occlusion

    net, window, stride = network("tanh", F64), 4, 4
    one_hot = nn.functional.one_hot(at.target, 4).to(F64)
    zennit = Occlusion(net, None, lambda out: out * one_hot, window=(window,), stride=(stride,))(at.x)[1]
    expected = torch.zeros_like(at.x)
    for first in (0, 4):
        inside = torch.zeros(6, dtype=torch.bool)
        inside[[(first + i) % 6 for i in range(window)]] = True
        with torch.no_grad():
            expected += inside * (net(at.x * inside) * one_hot).sum(1, keepdim=True)
    assert error(zennit.detach().numpy(), expected) <= measure.FLOAT64
    assert error(ours("occlusion", at, window=window, stride=stride), zennit) > APART


def test_zennit_starts_at_all_outputs(at: Sample) -> None:
    """Weighted by themselves, so that its Gradient as it is is that of half of their squares' sum."""
    from zennit.attribution import Gradient

    net, x = network("tanh", F64), at.x.clone().requires_grad_()
    (half,) = torch.autograd.grad(0.5 * (net(x) ** 2).sum(), x)
    zennit = Gradient(net)(at.x.clone())[1]
    assert error(zennit.numpy(), half) <= measure.FLOAT64
    assert error(ours("gradient", at), zennit) > APART


def test_the_noise_that_the_peers_are_handed_is_ours(at: Sample) -> None:
    """Other draws are another map: the comparisons do see the noise."""
    count = 3
    points = [at.x + 0.05 * n for n in noise(at.x, count)]
    each = [METHODS["zennit Gradient"].peer(network("tanh", F64), Sample(p, at.base, at.target), 1) for p in points]
    assert error(ours("smoothgrad", at, samples=count, **NOISE), torch.stack(each).mean(0)) <= measure.FLOAT64
    assert error(ours("smoothgrad", at, samples=count, seed=1, **NOISE), torch.stack(each).mean(0)) > APART
