"""The gradient-like rules on sixteen torchvision classifiers, from the files of both exporters."""

from __future__ import annotations

import numpy as np
import pytest

from . import measure, references, zoo
from .selection import cases

HOOKED = [name for name, entry in zoo.ZOO.items() if entry.relu_modules]
PIECEWISE_LINEAR = [name for name, entry in zoo.ZOO.items() if entry.piecewise_linear]


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_gradient_is_autograd_float64(name: str, exporter: str) -> None:
    """In float64 the emitted graph is torch's gradient to rounding."""
    for batch in (1, 3):
        found = measure.explain64(name, exporter, batch, "gradient")
        assert references.error(found.relevance, references.gradient(name, batch)) <= measure.FLOAT64


@pytest.mark.parametrize(("name", "exporter"), cases(big=True))
def test_gradient_is_autograd_float32(name: str, exporter: str) -> None:
    """In ONNX Runtime the gradient is torch's to float32 accuracy, and the prediction is the source model's."""
    for batch in (1, 3):
        found = measure.explain32(name, exporter, batch, "gradient")
        assert references.error(found.relevance, references.gradient(name, batch)) <= measure.float32_bound(name, batch)
        assert np.array_equal(found.outputs["logits"], measure.prediction(name, exporter, batch))


@pytest.mark.parametrize("rule", ["guided-backprop", "deconvnet"])
@pytest.mark.parametrize(("name", "exporter"), cases(HOOKED))
def test_changed_relu_is_zennit(name: str, exporter: str, rule: str) -> None:
    """Guided backprop and deconvnet equal zennit's (which equal captum's) where its hooks see every ReLU."""
    exact = references.zennit_map(name, 3, rule)
    assert references.error(measure.explain64(name, exporter, 3, rule).relevance, exact) <= measure.FLOAT64
    found = measure.explain32(name, exporter, 3, rule)
    assert references.error(found.relevance, exact) <= measure.float32_bound(name, 3)
    assert np.array_equal(found.outputs["logits"], measure.prediction(name, exporter, 3))


@pytest.mark.parametrize(("name", "exporter"), cases(PIECEWISE_LINEAR))
def test_lrp_0_is_gradient_x_input(name: str, exporter: str) -> None:
    """On piecewise linear models, with biases, LRP-0 is gradient x input element by element."""
    left, right = (measure.explain32(name, exporter, 3, rule).relevance for rule in ("lrp-0", "gradient-x-input"))
    assert references.error(left, right) <= 1e-5
    exact = measure.exact_gradient_like(name, 3, "gradient-x-input")
    assert references.error(measure.explain64(name, exporter, 3, "lrp-0").relevance, exact) <= measure.FLOAT64
