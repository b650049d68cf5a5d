"""Facts before rules: one forward sweep that proves what it can about every tensor.

Dependence on the explained inputs, constants, and an interval that holds all values. A rule may be simplified only
by what stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from xaicompile import registry
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.build import SMALL
from xaicompile.ir.model import attribute_value
from xaicompile.ir.types import RANDOM, run_node

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
Transfer = Callable[[View, Sequence[Interval]], Interval]


class Facts:
    """What is proven about the tensors of a program.

    Attributes:
        path: Names of tensors through which a message can reach an explained input.
        depends: Names of tensors whose value depends on an explained input.
        interval: Bounds on all values, by name; a missing name has none.
        explained: Names of the explained inputs.
        activation: For a tensor read by nothing but one ReLU-like op: that op's output.
        between: Convolution outputs read by nothing but an Add or a ReLU, and such sums read by nothing but a ReLU.
            Runtimes compute them in one: reading them as well would change the prediction's last bits.
        reference: The same tensors at a reference input, for rules that compare with one.
    """

    def __init__(
        self,
        program: Program,
        explained: Sequence[str],
        box: Interval = ANY,
        known: Mapping[str, Interval] | None = None,
    ) -> None:
        self.program = program
        self.path: set[str] = set(explained)
        self.depends: set[str] = set(explained)
        self.interval: dict[str, Interval] = {**dict.fromkeys(explained, box), **(known or {})}
        self.activation: dict[str, Tensor] = {}
        self.between: set[str] = set()
        self.explained = frozenset(explained)
        self.reference: dict[str, Tensor] = {}
        self.makers: dict[str, View] = {}
        for view in program.views:
            self._sweep(view)
        self._read_activations()

    def made_by(self, t: Tensor | None) -> str:
        """The op that makes t, "" for inputs and constants."""
        view = self.producer(t)
        return "" if view is None or view.domain else view.op

    def producer(self, t: Tensor | None) -> View | None:
        """The view that makes t, None for inputs and constants."""
        return None if t is None else self.makers.get(t.name)

    def _read_activations(self) -> None:
        self.makers = {y.name: v for v in self.program.views for y in v.y if y is not None}
        consumers = self.program.consumers()
        outputs = {t.name for t in self.program.outputs}
        for view in self.program.views:
            inside = [t for t in view.x if t and len(consumers[t.name]) == 1 and t.name not in outputs]
            if rectifies(view) and view.x[0] in inside:
                self.activation[view.inp(0).name] = view.out(0)
            if rectifies(view) or view.op in ("Add", "Sum"):
                fused = [t for t in inside if self.made_by(t) == "Conv" or self._sums(t)]
                self.between.update(t.name for t in fused if rectifies(view) or self.made_by(t) == "Conv")

    def _sums(self, t: Tensor) -> bool:
        """True for a sum that holds a convolution's output which nothing else reads."""
        view = self.producer(t)
        return view is not None and view.op in ("Add", "Sum") and any(x and x.name in self.between for x in view.x)

    def trust_activations(self, views: Iterable[View]) -> None:
        """Keeps `activation` only for ReLUs among these views, whose rule passes nothing where they were off."""
        trusted = {v.x[0].name for v in views if v.x and v.x[0] is not None}
        self.activation = {k: v for k, v in self.activation.items() if k in trusted}

    def on_path(self, t: Tensor | None) -> bool:
        """True if a message through t can reach an explained input."""
        return t is not None and t.name in self.path

    def bounds(self, t: Tensor | None) -> Interval:
        """An interval that holds all values of t."""
        if t is None:
            return ANY
        if t.name not in self.interval and t.value is not None and t.value.size and t.value.dtype.kind in "iuf":
            low, high = float(t.value.min()), float(t.value.max())
            self.interval[t.name] = ANY if math.isnan(low + high) else (low, high)
        return self.interval.get(t.name, ANY)

    def nonnegative(self, t: Tensor) -> bool:
        """True if t is proven to hold no negative value."""
        return self.bounds(t)[0] >= 0

    def _sweep(self, view: View) -> None:
        reads = [t for t in (*view.x, *view.captures) if t is not None]
        row, stopped = registry.info(view), registry.stops(view)
        if any(t.name in self.depends for t in reads):
            self.depends.update(y.name for y in view.y if y is not None)
        carries = any(self.on_path(t) for i, t in enumerate(view.x) if i not in stopped)
        if (carries or any(self.on_path(t) for t in view.captures)) and not row.zero:
            self.path.update(y.name for y in view.y if y is not None and (y.is_float or y.dtype is None))
        transfer = TRANSFER.get(view.op) if view.domain == "" else None
        if transfer is not None and view.y and view.y[0] is not None:
            low, high = transfer(view, [self.bounds(t) for t in view.x])
            if not (math.isnan(low) or math.isnan(high)) and (low, high) != ANY:
                self.interval[view.out(0).name] = (low, high)


def rectifies(view: View) -> bool:
    """True for ops that pass nothing back wherever their input is <= 0, and else are the identity or flat."""
    if view.domain:
        return False
    low = view.x[1].value if view.op == "Clip" and view.has(1) and view.x[1] is not None else None
    return view.op == "Relu" or (low is not None and low.size == 1 and float(low.reshape(-1)[0]) >= 0)


def find_constants(program: Program) -> None:
    """Marks what no graph input reaches, and works out small integers, booleans and known shapes."""
    for view in program.views:
        reads = [t for t in (*view.x, *view.captures) if t is not None]
        if all(t.constant for t in reads) and not view.domain and view.op not in RANDOM:
            for y in view.y:
                if y is not None:
                    y.constant = True
        fold(view)


def fold(view: View) -> None:
    """Works out small integer and boolean constants, and shapes that are known, so that rules can read them."""
    y = view.y[0] if view.y else None
    if y is None or y.value is not None or view.domain or view.captures:
        return
    if view.op == "Shape":
        shape = view.inp(0).shape
        dims = (None,) if shape is None else shape[view.attr("start", 0) : view.attrs.get("end")]
        if all(isinstance(d, int) for d in dims):
            y.value = np.asarray(dims, np.int64)
    elif view.op == "Size" and view.inp(0).static is not None:
        y.value = np.asarray(math.prod(view.inp(0).static or ()), np.int64)
    elif view.op == "Constant":
        y.value = constant_value(view.attrs)
        y.constant = True
    elif y.constant and all(t is None or t.value is not None for t in view.x) and y.dtype is not None:
        y.value = evaluated(view)
    y.constant = y.constant or y.value is not None


def constant_value(attrs: dict[str, Any]) -> np.ndarray | None:
    """A Constant node's value, with the schema's types (float32 for value_float), if it is small and numeric."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for key, kind in kinds.items():
        if key in attrs:
            return np.asarray(attrs[key], kind)
    return attribute_value(attrs["value"]) if "value" in attrs else None


def evaluated(view: View) -> np.ndarray | None:
    """The value of a node on small constants, by the reference implementation; None where that fails."""
    if any(y is not None for y in view.y[1:]) or any(isinstance(v, onnx.GraphProto) for v in view.attrs.values()):
        return None
    if view.y[0] is None or (
        view.y[0].shape is not None and int(np.prod([d if isinstance(d, int) else 1 for d in view.y[0].shape])) > SMALL
    ):
        return None
    names = ["" if t is None else f"x{i}" for i, t in enumerate(view.x)]
    feeds = {n: t.value for n, t in zip(names, view.x, strict=True) if t is not None and t.value is not None}
    try:
        node = helper.make_node(view.op, names, ["y"], **view.attrs)
    except TypeError:  # an attribute that the graph library holds unread
        return None
    value = run_node(node, feeds, view.since)
    return value if value is not None and value.size <= SMALL else None


# Transfer rows: the interval of an op's first output from those of its inputs.


def monotone(f: Callable[[float], float]) -> Transfer:
    """Of an increasing function."""

    def transfer(_: View, x: Sequence[Interval]) -> Interval:
        with np.errstate(all="ignore"):
            return float(f(x[0][0])), float(f(x[0][1]))

    return transfer


def fixed(low: float, high: float) -> Transfer:
    """Of an op with a known range."""
    return lambda _, x: (low, high)


def keep(_: View, x: Sequence[Interval]) -> Interval:
    """Of an op that moves, repeats, averages or picks values of its first input."""
    return x[0]


def hull(_: View, x: Sequence[Interval]) -> Interval:
    """Of an op whose values come from any of its inputs."""
    return min(i[0] for i in x), max(i[1] for i in x)


def with_zero(_: View, x: Sequence[Interval]) -> Interval:
    """Of an op that adds zeros to the values of its first input."""
    return min(x[0][0], 0.0), max(x[0][1], 0.0)


def product(a: Interval, b: Interval) -> Interval:
    """Of a product; 0 * inf counts as 0 because an infinite bound stands for any finite value."""
    ends = [0.0 if p == 0 or q == 0 else p * q for p in a for q in b]
    return min(ends), max(ends)


def _div(_: View, x: Sequence[Interval]) -> Interval:
    low, high = x[1]
    if low <= 0 <= high:
        return (0.0, math.inf) if low >= 0 and x[0][0] >= 0 else ANY
    return product(x[0], (1 / high, 1 / low))


def _sum(_: View, x: Sequence[Interval]) -> Interval:
    return sum(i[0] for i in x), sum(i[1] for i in x)


def _square(_: View, x: Sequence[Interval]) -> Interval:
    return (0.0, max(x[0][0] ** 2, x[0][1] ** 2))


def _sign_of_sum(_: View, x: Sequence[Interval]) -> Interval:
    return (0.0 if x[0][0] >= 0 else -math.inf), (0.0 if x[0][1] <= 0 else math.inf)


def _clip(view: View, x: Sequence[Interval]) -> Interval:
    """Of min(max(x, low), high), each of the two a bound or an interval of its own."""
    low = x[1] if view.has(1) else (-math.inf, -math.inf)
    high = x[2] if view.has(2) else (math.inf, math.inf)
    return min(max(x[0][0], low[0]), high[0]), min(max(x[0][1], low[1]), high[1])


def _abs(_: View, x: Sequence[Interval]) -> Interval:
    low, high = x[0]
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _pow(view: View, x: Sequence[Interval]) -> Interval:
    low, high = x[1]
    even = low == high and low % 2 == 0
    return (0.0, math.inf) if even or x[0][0] >= 0 else ANY


def _mod(view: View, x: Sequence[Interval]) -> Interval:
    reach, sign = max(abs(b) for b in x[1]), x[0] if view.attr("fmod") else x[1]
    return (0.0 if sign[0] >= 0 else -reach), (0.0 if sign[1] <= 0 else reach)


def _leaky(view: View, x: Sequence[Interval]) -> Interval:
    alpha = float(view.attr("alpha"))
    return ANY if alpha < 0 else (x[0][0] * (alpha if x[0][0] < 0 else 1), x[0][1] * (alpha if x[0][1] < 0 else 1))


def _prelu(_: View, x: Sequence[Interval]) -> Interval:
    return x[0] if x[0][0] >= 0 else ((0.0 if x[1][1] <= 0 else -math.inf), math.inf)


def _elu(view: View, x: Sequence[Interval]) -> Interval:
    return (0.0 if x[0][0] >= 0 else -math.inf), math.inf


def _threshold(view: View, x: Sequence[Interval]) -> Interval:
    return (0.0, max(x[0][1], 0.0)) if float(view.attr("alpha")) >= 0 else with_zero(view, x)


def _pad(view: View, x: Sequence[Interval]) -> Interval:
    if view.attr("mode") != "constant":
        return x[0]
    value = x[2] if view.has(2) else (0.0, 0.0)
    return min(x[0][0], value[0]), max(x[0][1], value[1])


def _scatter(view: View, x: Sequence[Interval]) -> Interval:
    if view.attr("reduction") in ("none", "max", "min"):
        return hull(view, (x[0], x[2]))
    return _sign_of_sum(view, [hull(view, (x[0], x[2]))]) if view.attr("reduction") == "add" else ANY


def _cast(view: View, x: Sequence[Interval]) -> Interval:
    return x[0] if view.out(0).is_float else ANY


def _where(_: View, x: Sequence[Interval]) -> Interval:
    return min(x[1][0], x[2][0]), max(x[1][1], x[2][1])


def _sqrt(x: float) -> float:
    return math.sqrt(max(x, 0.0))


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0)) if x < math.inf else math.inf


def _log(x: float) -> float:
    return math.inf if x == math.inf else (math.log(x) if x > 0 else -math.inf)


TRANSFER: dict[str, Transfer] = {
    **dict.fromkeys(("Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"), keep),
    **dict.fromkeys(("Slice", "Split", "TopK"), keep),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"), keep),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin"), keep),
    **dict.fromkeys(("Concat", "Mean"), hull),
    **dict.fromkeys(("ReduceSum", "CumSum", "QuantizeLinear"), _sign_of_sum),
    **dict.fromkeys(("ReduceL2", "ReduceL1", "ReduceSumSquare", "LpPool", "GlobalLpPool"), fixed(0.0, math.inf)),
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), fixed(0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Softsign", "Erf", "Sin", "Cos"), fixed(-1.0, 1.0)),
    **dict.fromkeys(("Elu", "Selu", "Celu"), _elu),
    "AveragePool": with_zero,
    "Trilu": with_zero,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "OneHot": lambda _, x: x[2],
    "Relu": monotone(lambda v: max(v, 0.0)),
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "ThresholdedRelu": _threshold,
    "Clip": _clip,
    "HardSwish": lambda _, x: (0.0 if x[0][0] >= 0 else -0.375, max(x[0][1], 0.0)),
    "Gelu": lambda _, x: (0.0 if x[0][0] >= 0 else -0.17, max(x[0][1], 0.0)),
    "Swish": lambda _, x: (0.0 if x[0][0] >= 0 else -math.inf, max(x[0][1], 0.0)),
    "Mish": lambda _, x: (0.0 if x[0][0] >= 0 else -0.31, max(x[0][1], 0.0)),
    "Softplus": fixed(0.0, math.inf),
    "LogSoftmax": fixed(-math.inf, 0.0),
    "Exp": monotone(_exp),
    "Log": monotone(_log),
    "Sqrt": monotone(_sqrt),
    "Abs": _abs,
    "Neg": lambda _, x: (-x[0][1], -x[0][0]),
    "Reciprocal": lambda v, x: _div(v, [(1.0, 1.0), x[0]]),
    "Pow": _pow,
    "Mod": _mod,
    "Add": _sum,
    "Sum": _sum,
    "Sub": lambda _, x: (x[0][0] - x[1][1], x[0][1] - x[1][0]),
    "Mul": lambda v, x: _square(v, x) if v.x[0] is v.x[1] else product(x[0], x[1]),
    "Div": _div,
    "Max": lambda _, x: (max(i[0] for i in x), max(i[1] for i in x)),
    "Min": lambda _, x: (min(i[0] for i in x), min(i[1] for i in x)),
    "Pad": _pad,
    "Where": _where,
    "Cast": _cast,
    "ConstantOfShape": lambda v, _: constant_range(v),
    "LRN": _sign_of_sum,
}


def constant_range(view: View) -> Interval:
    """Of a ConstantOfShape."""
    held = view.attrs.get("value")
    numbers = numpy_helper.to_array(held) if isinstance(held, onnx.TensorProto) else getattr(held, "values", 0.0)
    value = float(np.asarray(numbers).reshape(-1)[0])
    return value, value
