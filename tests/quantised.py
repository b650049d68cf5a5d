"""Quantised models from ONNX text, for tests: small whole numbers pass through them without any rounding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

Arrays = dict[str, np.ndarray]


def quantised(signature: str, body: str, opset: int = 18, **arrays: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text that may use the runtime's domain as `com.microsoft.Op`."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{head} net {signature} {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    return model


def whole(*shape: int, seed: int = 0, low: int = -2, high: int = 3, dtype: type = np.float32) -> np.ndarray:
    """Small whole numbers."""
    return np.random.default_rng((seed, *shape)).integers(low, high, shape).astype(dtype)


def number(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


def used(body: str, **arrays: np.ndarray) -> Arrays:
    """The arrays that a body names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {n: a for n, a in arrays.items() if n in words}


ZERO8, ZERO, SEVEN = number(0, np.int8), number(0, np.uint8), number(100, np.uint8)
NUMBERS = {"one": number(1.0), "quarter": number(0.25), "z0": ZERO, "z7": SEVEN, "z8": ZERO8}
