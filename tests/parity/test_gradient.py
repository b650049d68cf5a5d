"""The gradient-like rules on sixteen torchvision classifiers, from the files of both exporters."""

from __future__ import annotations

import numpy as np
import pytest

from . import kinks, measure, references, zoo
from .selection import cases

HOOKED = [name for name, entry in zoo.ZOO.items() if entry.relu_modules]
PIECEWISE_LINEAR = [name for name, entry in zoo.ZOO.items() if entry.piecewise_linear]


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_gradient_is_autograd_float64(name: str, exporter: str) -> None:
    """In float64 the emitted graph is torch's gradient to rounding."""
    for batch in (1, 3):
        found = measure.explain64(name, exporter, batch, "gradient")
        assert references.error(found.relevance, references.gradient(name, batch)) <= measure.FLOAT64


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_gradient_is_autograd_float32(name: str, exporter: str) -> None:
    """In ONNX Runtime the gradient is torch's to float32 accuracy on the same side of every kink."""
    for batch in (1, 3):
        found = kinks.gradient32(name, exporter, batch)
        assert found.on_side <= measure.float32_bound(name, batch)
        assert found.error <= measure.raw_bound(name, batch, found.flips)


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_prediction_is_untouched(name: str, exporter: str) -> None:
    """Bit for bit the source model's prediction, whatever the rule and the batch size."""
    for rule in ("gradient", "lrp-gamma"):
        for batch in (1, 3):
            found = measure.explain32(name, exporter, batch, rule).outputs["logits"]
            assert np.array_equal(found, measure.prediction(name, exporter, batch))


@pytest.mark.parametrize("rule", ["guided-backprop", "deconvnet"])
@pytest.mark.parametrize(("name", "exporter"), cases(HOOKED))
def test_changed_relu_is_zennit(name: str, exporter: str, rule: str) -> None:
    """Guided backprop and deconvnet equal zennit's (which equal captum's) where its hooks see every ReLU."""
    exact = references.zennit_map(name, 3, rule)
    assert references.error(measure.explain64(name, exporter, 3, rule).relevance, exact) <= measure.FLOAT64
    found = measure.explain32(name, exporter, 3, rule)
    flips = kinks.gradient32(name, exporter, 3).flips
    assert references.error(found.relevance, exact) <= measure.raw_bound(name, 3, flips)


@pytest.mark.parametrize(("name", "exporter"), cases(PIECEWISE_LINEAR))
def test_lrp_0_is_gradient_x_input(name: str, exporter: str) -> None:
    """On piecewise linear models, with biases, LRP-0 is gradient x input element by element."""
    left, right = (measure.explain32(name, exporter, 3, rule).relevance for rule in ("lrp-0", "gradient-x-input"))
    assert references.error(left, right) <= 1e-5
    exact = measure.exact_gradient_like(name, 3, "gradient-x-input")
    assert references.error(measure.explain64(name, exporter, 3, "lrp-0").relevance, exact) <= measure.FLOAT64
