"""Captum's LRP where its rules coincide with ours, and what keeps them apart elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from . import captum_lrp, measure, references
from .captum_lrp import CASES, Case

SMALL = ("small", "small-negative", "small-positive", "resnet18")
APART = 1e-2  # of the largest value: more than any stabiliser or precision makes


def cases(rules: Iterable[str]) -> list[Any]:
    """The cases of these rules, each marked `parity` or `parity_full`."""
    return [
        pytest.param(case, id=str(case), marks=pytest.mark.parity if case.model in SMALL else pytest.mark.parity_full)
        for case in CASES
        if case.rule in rules
    ]


@pytest.mark.parametrize("case", cases(captum_lrp.CAPTUM))
def test_equals_captum(case: Case) -> None:
    """Element by element captum's map, in float64 and, in ONNX Runtime, in float32."""
    exact = captum_lrp.captum(case)
    assert np.abs(exact).max() > 1e-3 or case.model not in SMALL  # spread over 224 x 224 there may be none above 1e-4
    assert np.abs(exact.sum((1, 2, 3))).min() > 0.1
    assert references.error(measure.captum_case(case), exact) <= measure.CAPTUM
    assert references.error(measure.captum_case(case, torch.float32), exact) <= measure.captum_bound(case)


@pytest.mark.parametrize("case", cases(["epsilon"]))
def test_the_rest_is_captum_s_stabiliser(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a difference falls with the stabiliser, which captum has in pools, sums and batch norms too."""
    errors = []
    for epsilon in (1e-9, 1e-12):
        monkeypatch.setattr(captum_lrp, "EPSILON", epsilon)
        monkeypatch.setattr(captum_lrp.EpsilonRule.__init__, "__defaults__", (epsilon,))
        errors.append(references.error(measure.captum_case(case), captum_lrp.captum(case)))
    assert errors[1] <= 2e-3 * errors[0]


@pytest.mark.parametrize("rule", ["gamma", "alpha1-beta0"])
@pytest.mark.parity
def test_differs_by_the_bias(rule: str) -> None:
    """Captum leaves a bias as it is: the gamma rule boosts it like a weight, the z+ rule leaves out a negative one."""
    case = Case(rule, "small")
    assert references.error(measure.captum_case(case), captum_lrp.captum(case)) > APART


@pytest.mark.parametrize("rule", ["gamma", "alpha1-beta0"])
@pytest.mark.parity
def test_differs_for_signed_inputs(rule: str) -> None:
    """Captum boosts weights, and not contributions: of a negative input it boosts, or keeps, what is negative."""
    case, feed = Case(rule, "small", bias=False), dict(captum_lrp.inputs(Case("epsilon", "small")))
    feed["target"] = captum_lrp.network("small", torch.float64)(feed["x"].double()).argmax(1)
    assert references.error(measure.captum_case(case, feed=feed), captum_lrp.captum(case, feed=feed)) > APART


@pytest.mark.parity
def test_gamma_differs_for_negative_logits() -> None:
    """Captum boosts what speaks against a negative logit; the generalised rule what is of its sign."""
    case = Case("gamma", "small", bias=False)
    feed = dict(captum_lrp.inputs(case))
    logits = captum_lrp.network("small", torch.float64)(feed["x"].double())
    assert (logits.min(1).values < -0.1).all()
    feed["target"] = logits.argmin(1)
    assert references.error(measure.captum_case(case, feed=feed), captum_lrp.captum(case, feed=feed)) > APART
    same = Case("alpha1-beta0", "small", bias=False)  # knows no such difference
    assert references.error(measure.captum_case(same, feed=feed), captum_lrp.captum(same, feed=feed)) <= measure.CAPTUM


@pytest.mark.parity
def test_additions_that_captum_does_not_see() -> None:
    """A functional addition copies all relevance to both operands, without a word."""
    case = Case("epsilon", "resnet18")
    feed = captum_lrp.inputs(case)
    functional = copy.deepcopy(references.model("resnet18", torch.float64))
    found = captum_lrp.attribute(functional, feed["x"].double(), feed["target"])
    assert references.error(found, captum_lrp.captum(case)) > 1e6


@pytest.mark.parity
@pytest.mark.parametrize(
    "layer", [torch.nn.Flatten(1), torch.nn.ReLU6(), torch.nn.BatchNorm1d(4), torch.nn.LayerNorm(4)]
)
def test_layers_that_captum_refuses(layer: torch.nn.Module) -> None:
    """A layer without a rule is an error, and not a guess."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), layer, torch.nn.Linear(4, 2)).eval()
    with pytest.raises(TypeError, match="has no rule defined"):
        captum_lrp.attribute(network, torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
