"""Relevance that is no multiple of a value, on its way down: rules without the input make it, zeros must not end it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import Arrays, data, exact, net, weight
from xaicompile.compiler import compile_model

RULES = """
name = "below-a-shift"
[[rules]]
match = {{ place = "first-linear" }}
rule = "flat"
epsilon = 0.0
[[rules]]
match = {{ op = "BatchNormalization" }}
rule = "pass"
[[rules]]
match = {{ op = "Relu" }}
rule = "{relu}"
[[rules]]
rule = "default"
"""
BIAS = np.array([-3.0, 0.2, 0.1])  # the first channel is off nearly everywhere
SHIFT = np.array([1.0, -2.0, 0.5])


def model() -> onnx.ModelProto:
    """A normalisation behind a max-pool: its shift is relevant where the pool's window, and the ReLU, gave 0."""
    body = """
    z = Conv<kernel_shape=[1, 1]>(x, w, b)
    a = Relu(z)
    p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(a)
    n = BatchNormalization<epsilon=0.0>(p, scale, shift, mean, var)
    f = Flatten(n)
    y = MatMul(f, v)
    """
    arrays = {"w": weight(3, 2, 1, 1, dtype=np.float64), "b": BIAS, "v": weight(12, 2, dtype=np.float64)}
    arrays |= {"scale": np.array([1.0, -0.5, 2.0]), "shift": SHIFT, "mean": np.zeros(3), "var": np.ones(3)}
    return net("(double[N,2,4,4] x) => (double[N,2] y)", body, **arrays)


def by_hand(x: np.ndarray, weights: Arrays, relu_passes: bool) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the relevance of the first, layer by layer in numpy: what arrives at the convolution is spread."""
    z = np.einsum("nchw,oc->nohw", x, weights["w"][..., 0, 0]) + weights["b"][:, None, None]
    windows = np.maximum(z, 0).reshape(len(x), 3, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(len(x), 3, 2, 2, 4)
    n = windows.max(-1) * weights["scale"][:, None, None] + weights["shift"][:, None, None]
    first = np.eye(4)[windows.argmax(-1)]
    r = (n.reshape(len(x), -1) * weights["v"][:, 0]).reshape(n.shape)[..., None] * first
    r = r.reshape(len(x), 3, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(z.shape)
    if not relu_passes:
        r = r * (z > 0)
    return n.reshape(len(x), -1) @ weights["v"], np.repeat(r.sum(1, keepdims=True) / 2, 2, axis=1)


@pytest.mark.parametrize("relu", ["pass", "default"])
def test_relevance_of_zeros_goes_on(tmp_path: Path, relu: str) -> None:
    """A max-pool hands it to the winner and the pass rule through a ReLU that is off; by default it ends there."""
    source, x = model(), data(2, 2, 4, 4, dtype=np.float64)
    path = tmp_path / "below-a-shift.toml"
    path.write_text(RULES.format(relu=relu))
    found = exact(compile_model(source, path, target=0, ledger=True).model, {"x": x})
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    logits, expected = by_hand(x, weights, relu == "pass")
    assert np.abs(found["y"] - logits).max() <= 1e-12
    assert np.abs(found["relevance"] - expected).max() <= 1e-12 * np.abs(expected).max()
    left = found["relevance"].sum((1, 2, 3)) + found["ledger"] - found["explained"]
    assert np.abs(left).max() <= 1e-12
    assert (np.abs(found["ledger"]) <= 1e-12).all() == (relu == "pass")
