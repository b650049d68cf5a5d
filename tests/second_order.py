"""Networks with a second derivative, and Hessians by central differences of the compiled gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

import xaicompile
from tests.graphs import data, exact, net, weight

F64 = np.float64
DIFFERENCES = 1e-6  # relative, of central differences
CLOSED = 1e-9  # relative, of closed forms
W1, B1, W2, B2 = (weight(*s, seed=i, dtype=F64) for i, s in enumerate([(4, 9), (9,), (9, 3), (3,)]))
K1, K2 = weight(4, 2, 3, 3, seed=5, dtype=F64), weight(3, 4, 2, 2, seed=6, dtype=F64)
X, IMAGES, TARGET = data(3, 4, dtype=F64), data(2, 2, 6, 6, dtype=F64), np.array([2, 0, 1])
Q = data(4, 4, seed=3, dtype=F64)

GELU = "e = Erf(z) o = Add(e, one) h = Mul(z, o) a = Mul(h, half)"
TABLES = {
    "tanh": "z = Gemm(x, w1, b1) a = Tanh(z) y = Gemm(a, w2, b2)",
    "sigmoid": "z = Gemm(x, w1, b1) a = Sigmoid(z) y = Gemm(a, w2, b2)",
    "softplus": "z = Gemm(x, w1, b1) a = Softplus(z) y = Gemm(a, w2, b2)",
    "gelu": f"z = Gemm(x, w1, b1) {GELU} y = Gemm(a, w2, b2)",
    "softmax": "z = Gemm(x, w1, b1) p = Softmax(z) a = Mul(p, z) y = Gemm(a, w2, b2)",
    "norm": "z = Gemm(x, w1, b1) n = LayerNormalization(z, b1, b1) a = Tanh(n) y = Gemm(a, w2, b2)",
    "products": "z = MatMul(x, w1) s = Sigmoid(z) a = Mul(s, z) q = Mul(a, a) y = MatMul(q, w2)",
    "quotient": "z = MatMul(x, w1) e = Exp(z) r = ReduceSum<keepdims = 1>(e, axis) a = Div(z, r) y = MatMul(a, w2)",
    "logs": "z = MatMul(x, w1) a = LogSoftmax(z) q = Pow(a, three) y = MatMul(q, w2)",
    "outer": "u = Unsqueeze(x, axis) t = Transpose<perm = [0, 2, 1]>(u) m = MatMul(t, u) f = Flatten(m) y = Gemm(f, w)",
}
NETWORKS = {
    "tanh": "z = Conv<pads = [1, 1, 1, 1]>(x, k1) a = Tanh(z) c = Conv<strides = [2, 2]>(a, k2) "
    "t = Sigmoid(c) g = GlobalAveragePool(t) y = Flatten(g)",
    "gelu": f"z = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, k1) {GELU} c = Conv(a, k2) t = Softplus(c) "
    "g = GlobalAveragePool(t) y = Flatten(g)",
    "pools": "z = Conv(x, k1) t = Tanh(z) m = MaxPool<kernel_shape = [2, 2]>(t) "
    "v = AveragePool<kernel_shape = [2, 2]>(m) c = Conv(v, k2) q = Mul(c, c) g = GlobalAveragePool(q) y = Flatten(g)",
}


def table(name: str, batch: str = "N") -> onnx.ModelProto:
    """One of TABLES, four features to three outputs."""
    body = TABLES[name]
    held = {
        "w1": W1, "b1": B1, "w2": W2, "b2": B2, "w": weight(16, 3, seed=8, dtype=F64), "one": np.float64(1),
        "half": np.float64(0.5), "three": np.float64(3), "axis": np.array([1]),
    }  # fmt: skip
    return net(
        f"(double[{batch},4] x) => (double[{batch},3] y)",
        body,
        **{k: np.asarray(v) for k, v in held.items() if k in body},
    )


def network(name: str) -> onnx.ModelProto:
    """One of NETWORKS, [N, 2, 6, 6] to three outputs."""
    held = {"k1": K1, "k2": K2, "one": np.asarray(1.0), "half": np.asarray(0.5)}
    body = NETWORKS[name]
    return net("(double[N,2,6,6] x) => (double[N,3] y)", body, **{k: v for k, v in held.items() if k in body})


def quadratic() -> onnx.ModelProto:
    """x' Q_k x + c_k x of three Q_k, whose Hessians are Q_k + Q_k'."""
    body = "a = MatMul(x, q) r = Reshape(a, shape) u = Unsqueeze(x, axis) p = Mul(r, u) "
    held = {"q": quadratics().transpose(1, 0, 2).reshape(4, 12), "c": W1[:, :3], "shape": np.array([0, 3, 4])}
    axes = {"axis": np.array([1]), "last": np.array([2])}
    body += "s = ReduceSum<keepdims = 0>(p, last) l = MatMul(x, c) y = Add(s, l)"
    return net("(double[N,4] x) => (double[N,3] y)", body, **held, **axes)


def quadratics() -> np.ndarray:
    """Three of them."""
    return np.stack([data(4, 4, seed=i, dtype=F64) for i in range(3)])


def curved(model: onnx.ModelProto, x: np.ndarray, rule: str = "hessian-x-input", **given: Any) -> dict[str, np.ndarray]:
    """All outputs, of the chosen targets."""
    feed, chunk = given.pop("feed", {}), given.pop("chunk", None)
    made = xaicompile.compile(model, rule, parameters=given, chunk=chunk)
    return exact(made, {"x": x, "target": TARGET[: len(x)], **feed})


def differences(model: onnx.ModelProto, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Hessians [N, values, values] by central differences of the compiled gradient."""
    gradient, found = xaicompile.compile(model, "gradient"), []
    for sample, target in zip(x, TARGET, strict=False):
        moves = np.eye(sample.size).reshape(-1, *sample.shape) * step
        feed = {"x": np.concatenate([sample + moves, sample - moves]), "target": np.array([target])}
        up, down = np.split(exact(gradient, feed)["relevance"].reshape(-1, sample.size), 2)
        found.append((up - down) / (2 * step))
    return np.stack(found)


def close(found: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    """Equal up to a part of the largest value."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def weighted(hessian: np.ndarray, x: np.ndarray) -> np.ndarray:
    """1/2 H_ij x_i x_j."""
    flat = x.reshape(len(x), -1)
    return 0.5 * hessian * flat[:, :, None] * flat[:, None, :]


def together(pairs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Pairs of values summed over groups."""
    member = (numbers.reshape(-1, 1) == np.arange(numbers.max() + 1)) * 1.0
    return np.einsum("nij,ig,jh->ngh", pairs, member, member)


def write(folder: Path, numbers: np.ndarray) -> str:
    """A file of numbers."""
    np.save(folder / "numbers.npy", numbers)
    return str(folder / "numbers.npy")
