"""Zennit 1.0.0's nine named composites, by the names that they have here, on whole models."""

from __future__ import annotations

from typing import Any

import pytest

from . import kinks, lite, measure, references, zoo

BATCH = 2  # of one the largest logit is explained, of the other the smallest
CHOSEN = {  # besides all of resnet18
    (lite.NAME, "epsilon-gamma-box"),
    (lite.NAME, "epsilon-plus-flat"),
    (lite.NAME, "excitation-backprop"),
    ("resnet50", "epsilon-alpha2-beta1"),
    ("resnet50", "beta-smooth"),
}


def cases() -> list[Any]:
    """Parameters (name, exporter, composite), each marked `parity` or `parity_full`."""
    result = []
    for name in measure.COMPOSITE_MODELS:
        for exporter in zoo.exporters(name):
            for rule in measure.COMPOSITES:
                chosen = name == "resnet18" or ((name, rule) in CHOSEN and exporter != "legacy")
                mark = pytest.mark.parity if chosen else pytest.mark.parity_full
                result.append(pytest.param(name, exporter, rule, marks=mark))
    return result


@pytest.mark.parametrize(("name", "exporter", "rule"), cases())
def test_equals_zennit(name: str, exporter: str, rule: str) -> None:
    """Element by element zennit's map with its canonizers, in float64 and, but for kinks that flip, in float32."""
    if name == lite.NAME:
        pytest.importorskip("efficientnet_lite_pytorch")
    exact = references.zennit_map(name, BATCH, rule)
    found = measure.explain64(name, exporter, BATCH, rule).relevance
    assert references.error(found, exact) <= measure.exact_bound(rule)
    found = measure.explain32(name, exporter, BATCH, rule).relevance
    assert references.error(found, exact) <= kinks.composite_bound(name, exporter, BATCH, rule)
