"""What a fitted scikit-learn estimator has learned, read with checks. scikit-learn itself is never imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, RuleError, UnsupportedError
from xaicompile.ir import Builder, Tensor

DTYPES = ("float32", "float64")
PREDICTS = {"predict", "predict_proba", "decision_function", "score_samples", "transform"}


class Fitted:
    """An estimator, whose learned numbers come out dense, finite and in the network's dtype.

    Attributes:
        estimator: As given.
        dtype: float32 or float64.
        name: The scikit-learn class that it is, among those known.
        called: How messages name it.
    """

    def __init__(self, estimator: Any, dtype: np.dtype[Any], known: Iterable[str], step: str = "") -> None:
        self.estimator, self.dtype = estimator, dtype
        self.called = f"step '{step}' ({type(estimator).__name__})" if step else type(estimator).__name__
        self.name = class_of(estimator, list(known), self.called)

    def param(self, name: str, default: Any = None) -> Any:
        """A parameter that the estimator was made with."""
        return getattr(self.estimator, name, default)

    def learned(self, name: str) -> Any:
        """An attribute that fitting sets, as it is.

        Raises:
            ModelError: It is not there.
        """
        value = getattr(self.estimator, name, None)
        if value is None:
            raise ModelError(f"{self.called} is not fitted (it has no {name}): call its fit first")
        return value

    def exact(self, name: str) -> np.ndarray:
        """Learned numbers in float64.

        Raises:
            ModelError: They are not there, sparse, or not finite.
        """
        return self.dense(name, self.learned(name))

    def dense(self, name: str, value: Any) -> np.ndarray:
        """An array in float64.

        Raises:
            ModelError: It is sparse, or has numbers that are not finite (in the network's dtype).
        """
        if hasattr(value, "toarray"):
            raise ModelError(f"{self.called} holds sparse numbers in {name}: fit it on a dense array")
        found = np.asarray(value, np.float64)
        with np.errstate(over="ignore"):
            cast = found.astype(self.dtype)
        if not np.isfinite(cast).all():
            raise ModelError(
                f"{self.called} has NaN, infinite or too large numbers in {name}: check what it was fitted on"
            )
        return found

    def const(self, b: Builder, value: np.ndarray) -> Tensor:
        """Numbers as a constant of the network's dtype."""
        return b.const(np.asarray(value, self.dtype))

    def classes(self) -> list[Any]:
        """`classes_` as JSON has them: numbers, booleans, or text."""
        return plain(np.asarray(self.learned("classes_")))


def plain(values: np.ndarray) -> list[Any]:
    """An array's values as JSON has them: numbers and booleans stay, all else becomes text."""
    return [v if isinstance(v, bool | int | float | str) else str(v) for v in values.tolist()]


def class_of(estimator: Any, known: list[str], called: str) -> str:
    """The nearest scikit-learn class that an estimator is.

    Raises:
        UnsupportedError: It is none of those known, or predicts in another way than that class does.
    """
    if isinstance(estimator, type):
        raise UnsupportedError(f"{estimator.__name__} is a class: give a fitted estimator")
    own: set[str] = set()
    for kind in type(estimator).__mro__:
        if kind.__module__.split(".")[0] == "sklearn":
            if kind.__name__ in known and not own:
                return str(kind.__name__)
        else:
            own |= PREDICTS & set(vars(kind))
    if own:
        raise UnsupportedError(f"{called} has a {min(own)} of its own, of which nothing is known")
    inner = " (give its best_estimator_)" if hasattr(estimator, "best_estimator_") else ""
    raise UnsupportedError(
        f"{called} can't be written as a network here{inner}: known are {', '.join(sorted(known))}. If it can be "
        "exported to ONNX in another way, compile that model with neuralize"
    )


def dtype_of(dtype: str) -> np.dtype[Any]:
    """The network's dtype.

    Raises:
        RuleError: It is neither float32 nor float64.
    """
    if dtype not in DTYPES:
        raise RuleError(f"dtype is float32 or float64, not {dtype!r}")
    return np.dtype(dtype)
