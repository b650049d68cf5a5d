"""Second order of models with loops and branches, whose gradients are loops and branches themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, exact, net, weight
from tests.second_order import CLOSED, DIFFERENCES, F64, TARGET, W1, W2, X, close, curved, differences, weighted, write


def recurrent(op: str) -> onnx.ModelProto:
    """A recurrent op over four steps of three features, with samples in front."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    held: dict[str, Any] = {"w": weight(1, gates * 4, 3, dtype=F64), "r": weight(1, gates * 4, 4, dtype=F64)}
    rest = ", c" if op == "LSTM" else ""
    body = f"t = Transpose<perm = [1, 0, 2]>(x) o, h{rest} = {op}<hidden_size = 4>(t, w, r) y = Squeeze(h, axis)"
    return net("(double[N,4,3] x) => (double[N,4] y)", body, axis=np.array([0]), **held)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent(op: str, tmp_path: Path) -> None:
    """Whose gradient is a loop of its own; also at a root, and on a path, where it stands inside another loop."""
    model, x, each = recurrent(op), data(2, 4, 3, dtype=F64), write(tmp_path, np.arange(12).reshape(4, 3))
    found = curved(model, x, group=each)["interaction"]
    close(found, weighted(differences(model, x), x), DIFFERENCES)
    close(curved(model, x, group=each, root=0.0)["interaction"], weighted(differences(model, 0 * x), x), DIFFERENCES)
    product = curved(model, x, "hessian-vector-product", feed={"v": x})["hvp"]
    close(0.5 * x * product, found.sum(2).reshape(x.shape), 1e-12)
    on_the_way = curved(model, x, "integrated-hessians", steps=12)
    f = [exact(model, {"x": points})["y"][np.arange(2), TARGET[:2]] for points in (x, 0 * x)]
    np.testing.assert_allclose(on_the_way["interaction"].sum((1, 2)), f[0] - f[1], rtol=CLOSED)


def test_branches() -> None:
    """Either, as the batch decides at run time."""
    model = net(
        "(double[N,4] x) => (double[N,3] y)",
        """m = ReduceMax<keepdims = 0>(x) c = Greater(m, limit)
        z = If(c) <then_branch = g1 () => (double[N,4] t) { t = Tanh(x) },
                   else_branch = g2 () => (double[N,4] e) { e = Mul(x, x) }>
        q = MatMul(z, w1) s = Sigmoid(q) y = MatMul(s, w2)""",
        w1=W1, w2=W2, limit=np.asarray(2.5),
    )  # fmt: skip
    for x in (X, X + 4):
        close(curved(model, x)["interaction"], weighted(differences(model, x), x), DIFFERENCES)


def test_loops_that_read_what_stands_outside() -> None:
    """What a step makes of the input alone is worked out before the loop, and counts all the same."""
    model = net(
        "(double[N,4] x) => (double[N,3] y)",
        """first = MatMul(x, w)
        y = Scan<num_scan_inputs = 1, body = step (double[N,3] s, double[3] k) => (double[N,3] made) {
            u = MatMul(x, w) t = Tanh(u) q = Mul(t, t) p = Mul(q, s) r = Mul(p, k) made = Add(r, t) }>(first, rows)""",
        w=W2[:4], rows=data(3, 3, seed=2, dtype=F64),
    )  # fmt: skip
    close(curved(model, X)["interaction"], weighted(differences(model, X), X), DIFFERENCES)


def test_determinants_of_any_size() -> None:
    """Whose gradient is a loop, though the op is none."""
    body, x = "d = Det(x) y = Unsqueeze(d, one)", data(2, 3, 3, dtype=F64)
    unknown = net("(double[N,D,D] x) => (double[N,1] y)", body, one=np.array([1]))
    found = exact(xaicompile.compile(unknown, "hessian-vector-product"), {"x": x, "v": x})["hvp"]
    inverse = np.linalg.inv(x)  # d det(x + t v) / dx = det (trace(x^-1 v) x^-1' - (x^-1 v x^-1)')
    expected = np.linalg.det(x)[:, None, None] * 2 * inverse.transpose(0, 2, 1)
    close(found, expected, CLOSED)
