"""Data that estimators are fitted on, and their networks run in both runtimes."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from sklearn import datasets

from xaicompile.runtime import Session

Arrays = dict[str, np.ndarray]
DATA = ("breast_cancer", "wine", "digits")
EXACT, SINGLE = 1e-10, 1e-5  # relative to max(1, |value|)
FAR = 1e3  # standard deviations


@cache
def data(name: str, standardised: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points to fit on, their classes, and others to look at; float64, of values that float32 has too."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if standardised:
        spread = x.std(0)
        x = (x - x.mean(0)) / np.where(spread, spread, 1)
    x = x.astype(np.float32).astype(np.float64)
    return x[::2], y[::2], x[1::2]


def far_away(x: np.ndarray, count: int = 20) -> np.ndarray:
    """Points 1000 standard deviations from the data."""
    step = np.random.default_rng(0).standard_normal((count, x.shape[1]))
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    return (x.mean(0) + FAR * x.std(0).mean() * step).astype(np.float32).astype(np.float64)


def run(model: onnx.ModelProto, x: np.ndarray) -> Arrays:
    """The outputs: float64 in ONNX's reference evaluator, float32 in ONNX Runtime."""
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
        found = ReferenceEvaluator(model).run(None, {"X": x})
        return dict(zip([o.name for o in model.graph.output], found, strict=True))
    return Session(model).run({"X": x.astype(np.float32)})


def limit(dtype: str) -> float:
    return EXACT if dtype == "float64" else SINGLE


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float, also: np.ndarray | float = 0.0) -> None:
    """Equal but for the tolerance, relative to max(1, |wanted|), and for an absolute part of it."""
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    over = abs(got - wanted) - tolerance * np.maximum(1, abs(wanted)) - also
    assert (over <= 0).all(), f"off by {abs(got - wanted).max()}"


def distances(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """|x - u|^2, [N,M], straight."""
    return np.stack([((x - u) ** 2).sum(1) for u in points], axis=1)


def rounding(x: np.ndarray, points: np.ndarray, gamma: float) -> np.ndarray:
    """[N]: how much float32 may lose of gamma |x - u|^2 far from the points' mean, relative to |x|^2 + |u|^2."""
    v, w = x - points.mean(0), points - points.mean(0)
    return 1e-6 * gamma * ((v**2).sum(1) + (w**2).sum(1).max())


def behind(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """The model with one more output, `scores`: what its last node of this op takes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    name = [node.input[0] for node in made.graph.node if node.op_type == op][-1]
    made.graph.node.append(helper.make_node("Identity", [name], ["scores"]))
    made.graph.output.append(
        helper.make_tensor_value_info("scores", made.graph.input[0].type.tensor_type.elem_type, None)
    )
    return made


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {prop.key: prop.value for prop in model.metadata_props}
