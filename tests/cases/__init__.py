"""The table of operators with their awkward attributes: one row per case, one file per family.

A row says how to make the inputs, not what the answer is: the answer is a central difference (``tests/test_vjp.py``).
Each input generator keeps off the operator's kinks by far more than the difference's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Arg:
    """One input of a case.

    Attributes:
        make: Makes the values; floating-point ones are float64.
        constant: Whether it is an initializer rather than a graph input.
        explained: Whether the gradient with respect to it is checked.
    """

    make: Callable[[np.random.Generator], Array]
    constant: bool = False
    explained: bool = True


@dataclass(frozen=True)
class Case:
    """One row: an operator, its inputs and attributes.

    Attributes:
        op: The operator.
        note: What is special about the row.
        args: Its inputs; None is an omitted optional input.
        attrs: Its attributes.
        opset: The opset of the model.
        outputs: How many outputs the node has.
        used: Which of them are explained.
        order2: Whether the second derivative is checked too.
        carries: False for an operator whose gradient is zero: the input then also reaches the output on a second path.
        dynamic: Whether the row is also run with every dimension of every input unknown.
        half: Whether ONNX Runtime's CPU provider has the operator itself in float16.
        runtime: Whether ONNX Runtime's CPU provider has a kernel for the row.
    """

    op: str
    note: str
    args: tuple[Arg | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    used: tuple[int, ...] = (0,)
    order2: bool = False
    carries: bool = True
    dynamic: bool = True
    half: bool = True
    runtime: bool = True

    @property
    def id(self) -> str:
        """The name pytest shows."""
        return f"{self.op}-{self.note}".replace(" ", "_")


def case(op: str, note: str, *args: Arg | None, **options: Any) -> Case:
    """Returns a row; options that are not fields of ``Case`` are attributes of the node."""
    fields = {key: options.pop(key) for key in list(options) if key in Case.__dataclass_fields__}
    return Case(op, note, args, options, **fields)


def real(*shape: int, low: float = -2.0, high: float = 2.0, avoid: Sequence[float] = (), gap: float = 0.1) -> Arg:
    """Uniform in [low, high], at least ``gap`` away from each value of ``avoid``."""

    def make(rng: np.random.Generator) -> Array:
        value = rng.uniform(low, high, shape)
        for kink in avoid:
            near = np.abs(value - kink) < gap
            value = np.where(near, kink + np.where(value < kink, -gap, gap), value)
        return np.asarray(value)

    return Arg(make)


def positive(*shape: int, low: float = 0.5, high: float = 2.0) -> Arg:
    """Uniform in [0.5, 2]: for logarithms, roots and denominators."""
    return real(*shape, low=low, high=high)


def spread(*shape: int, low: float = -2.0, high: float = 2.0) -> Arg:
    """Distinct values in random order, evenly spread over [low, high]: no maximum is near a tie."""
    size = int(np.prod(shape))
    return Arg(lambda rng: rng.permutation(np.linspace(low, high, size)).reshape(shape))


def given(values: Any, dtype: Any = np.float64) -> Arg:
    """These values, as a graph input."""
    array = np.asarray(values, dtype)
    return Arg(lambda rng: array.copy(), explained=array.dtype.kind == "f")


def const(arg: Arg) -> Arg:
    """The same values as an initializer."""
    return Arg(arg.make, constant=True, explained=False)


def ints(*values: Any) -> Arg:
    """An int64 initializer."""
    return const(given(values, np.int64))


def mask(*shape: int) -> Arg:
    """A random bool graph input."""
    return Arg(lambda rng: np.asarray(rng.random(shape) < 0.5), explained=False)


def weight(*shape: int) -> Arg:
    """A random initializer."""
    return const(real(*shape, low=-1.0, high=1.0))
