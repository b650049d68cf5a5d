"""Integrated Hessians (Janizek et al. 2021): completeness, rows, a double sum, and the rule of quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xaicompile
from tests.graphs import exact
from tests.second_order import B1, CLOSED, IMAGES, TARGET, W1, W2, X, close, curved, network, table, together, weighted
from xaicompile.methods.second import log_quadrature


@pytest.mark.parametrize("n", [1, 3, 16, 128])
def test_quadrature_is_exact_for_polynomials(n: int) -> None:
    """The integral of u^k (-log u) over [0, 1] is 1/(k + 1)^2."""
    points, weights = log_quadrature(n)
    assert (points > 0).all() and (points < 1).all()
    for k in range(2 * n):
        assert abs((weights * points**k).sum() - 1 / (k + 1) ** 2) <= 1e-14


@pytest.mark.parametrize("baseline", ["zero", -0.4])
@pytest.mark.parametrize("name", ["tanh", "gelu", "softmax", "products"])
def test_integrated_hessians_are_complete(name: str, baseline: Any) -> None:
    """All sum to f(x) - f(x0), rows to integrated gradients; of a double integral by another rule."""
    model, base = table(name), 0.0 if baseline == "zero" else baseline
    found = curved(model, X, "integrated-hessians", steps=24, baseline=baseline)
    f = [exact(model, {"x": points})["y"][np.arange(3), TARGET] for points in (X, 0 * X + base)]
    np.testing.assert_allclose(found["interaction"].sum((1, 2)), f[0] - f[1], rtol=CLOSED)
    close(found["interaction"], found["interaction"].transpose(0, 2, 1), 1e-12)
    close(found["interaction"].sum(2), found["relevance"], 1e-12)
    options = {"steps": 64, "quadrature": "gauss-legendre", "baseline": baseline}
    ig = exact(xaicompile.compile(model, "integrated-gradients", parameters=options), {"x": X, "target": TARGET})
    close(found["relevance"], ig["relevance"], CLOSED)


def test_integrated_hessians_as_a_double_sum() -> None:
    """Janizek et al. 2021, equations 5 and 6, on a grid of Gauss's points for the tanh network."""
    t, w = np.polynomial.legendre.leggauss(12)
    t, w = (t + 1) / 2, w / 2
    expected = np.zeros((3, 4, 4))
    for alpha, p in zip(t, w, strict=True):
        for beta, q in zip(t, w, strict=True):
            a = np.tanh(alpha * beta * X @ W1 + B1)
            v = W2.T[TARGET]
            hessian = np.einsum("ik,nk,jk->nij", W1, v * -2 * a * (1 - a**2), W1)
            slope = (v * (1 - a**2)) @ W1.T
            expected += p * q * (alpha * beta * 2 * weighted(hessian, X) + np.eye(4) * (X * slope)[:, None])
    close(curved(table("tanh"), X, "integrated-hessians", steps=12)["interaction"], expected, CLOSED)


def test_integrated_hessians_of_groups() -> None:
    whole = curved(network("gelu"), IMAGES, "integrated-hessians", steps=4)["interaction"]
    rows = np.arange(6) // 3
    found = curved(network("gelu"), IMAGES, "integrated-hessians", steps=4, group=3)["interaction"]
    close(found, together(whole, rows[:, None] * 2 + rows), 1e-12)
