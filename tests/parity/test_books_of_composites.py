"""The books of every shipped composite close, on classifiers, vision transformers and real models; see books.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import books, lite

EVERY = ("resnet18", "mobilenet_v3_small")  # every composite in CI: residual sums; gates and HardSwish
SOME = {
    "squeezenet1_1": ("lrp-vgg16", "lrp-zplus", "epsilon-plus-flat"),
    "densenet121": ("epsilon-alpha2-beta1", "lrp-gamma"),
    "googlenet": ("epsilon-gamma-box", "lrp-alpha2-beta1"),
    "convnext_tiny": ("attnlrp", "epsilon-plus"),
    "swin_t": ("cp-lrp",),
    lite.NAME: ("epsilon-plus-flat", "deep-taylor"),
    "silero": ("attnlrp", "epsilon-alpha2-beta1-flat"),
    "magika": ("excitation-backprop",),
}


def cells() -> list[Any]:
    """Models and composites, each marked `parity` or `parity_full`."""
    made = []
    for name in books.MODELS:
        for rule in books.composites():
            quick = name in EVERY or rule in SOME.get(name, ())
            made.append(pytest.param(name, rule, marks=pytest.mark.parity if quick else pytest.mark.parity_full))
    return made


@pytest.mark.parametrize(("name", "rule"), cells())
def test_the_books_close(name: str, rule: str) -> None:
    """sum(R) + ledger == explained, in ONNX Runtime and, to rounding, in float64; the prediction is the model's own."""
    row = books.measured(name, rule)
    assert not row.refused
    assert row.single <= books.CLOSURE
    assert row.double <= books.CLOSURE64
    assert row.prediction <= (books.FUSED if name in books.TRANSFORMERS else 0)


@pytest.mark.parity
def test_open_books_show() -> None:
    """A ledger that lacks what one node absorbs is not closed."""
    of = books.subject("resnet18")
    model = books.xaicompile.compile(of.single, **books.options("epsilon-plus", of))
    outputs = books.measure.run_ort(books.measure.session(model), of.feed)
    assert books.closure(model, outputs) <= books.CLOSURE
    largest = np.abs(outputs["ledger_by_node"]).sum(0).argmax()
    lacking = {**outputs, "ledger": outputs["ledger"] - outputs["ledger_by_node"][:, largest]}
    assert books.closure(model, lacking) > 100 * books.CLOSURE
