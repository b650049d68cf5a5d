"""Integer tensors, read as the floats that they stand for.

An integer tensor q with scale s and zero point z stands for (q - z) s. Views never read integers on the way to an
explained input, but that float, computed beside the prediction. Rounding is straight-through: `QuantizeLinear` passes
all of its message on, apart from where a value lies outside the range of the integers, which is read as a `Clip`.

A runtime that finds an op between DequantizeLinear and QuantizeLinear computes all three in integers, unless somebody
reads what is between them, or on some processors even the integers: that would change the prediction. What is
explained there is computed once more in float, from the input on (`shadow`, `Scale.rounded`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from xaicompile import registry
from xaicompile.bodies.record import Recorder, infer
from xaicompile.bodies.scales import Scale, key
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.build import merged
from xaicompile.passes.canonical import AFFINE

Handler = Callable[["Quantised", View], None]
HANDLERS: dict[tuple[str, str], Handler] = {}
MOVES = {"MaxPool", "Max", "Min", "Identity"}  # besides layout ops: their results are among their inputs
ENDS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sum"}  # after which nets have a ReLU


def integer(op: str, *domains: str) -> Callable[[Handler], Handler]:
    """Registers how an op with integer inputs or outputs is read."""

    def add(function: Handler) -> Handler:
        HANDLERS.update({(domain, op): function for domain in domains or ("",)})
        return function

    return add


def given(v: View, i: int) -> Tensor | None:
    """Input `i`, None if it is left out."""
    return v.x[i] if v.has(i) else None


def run(p: Program, keep: Collection[str] = ()) -> bool:
    """Reads quantised parts of the graph as float. Returns whether there were any.

    Args:
        keep: Names of tensors that are asked for: the views make them under their own names.
    """
    if not any((v.domain, v.op) in HANDLERS for v in p.views):
        return False
    state = Quantised(p, keep)
    for view in p.views:
        infer(p, view)
        with p.builder.scope(view.name):
            state.take(view)
    p.views = state.views
    return True


class Quantised:
    """The sweep over the views.

    Attributes:
        read: What views read instead of a tensor of the prediction.
        scales: How integer tensors are scaled that depend on data.
        rough: Tensors whose reading leaves out a rounding on the way, so that it is not the prediction's own value.
        values: Where a reading leaves out a rounding: the value with it.
    """

    def __init__(self, p: Program, keep: Collection[str]) -> None:
        self.p, self.b, self.keep = p, p.builder, set(keep)
        self.readers: Mapping[str, list[View]] = p.consumers()
        self.outputs = {t.name for t in p.outputs}
        self.recorder = Recorder(p)
        self.views: list[View] = []
        self.read: dict[str, Tensor] = {}
        self.scales: dict[str, Scale] = {}
        self.rough: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.makers: dict[str, View] = {}

    def take(self, view: View) -> None:
        """Reads one view."""
        handler = HANDLERS.get((view.domain, view.op))
        if handler is not None:
            handler(self, view)
        elif view.domain or any(not isinstance(a, int | float | str | list) for a in view.attrs.values()):
            for t in (*view.x, *view.captures):
                self.link(view, t)
            self.add(view)
        elif any(t is not None and t.name in self.scales for t in view.x):
            self.moved(view)
        elif any(t is not None and t.name in self.read for t in view.x):
            self.substituted(view)
        else:
            self.add(view)
        for y in view.y:
            if y is not None and y.name in self.outputs | self.keep:
                self.link(view, y)

    def add(self, *views: View) -> None:
        """Appends views."""
        for view in views:
            self.views.append(view)
            self.makers.update({y.name: view for y in view.y if y is not None})

    def reading(self, t: Tensor | None) -> Tensor | None:
        """What views read for t."""
        return None if t is None else self.read.get(t.name, t)

    def value(self, t: Tensor | None) -> Tensor | None:
        """The value that the prediction has there, as closely as it is computed."""
        return None if t is None else self.values.get(t.name, self.reading(t))

    def link(self, view: View, t: Tensor | None) -> None:
        """Lets a view make a float tensor of the prediction that others read under its own name."""
        if t is None or t.name not in self.read or not t.is_float or t.constant:
            return
        name = f"{view.name}/read"  # by an op whose ledger takes what is between the two
        self.add(View("QuantizeLinear", [self.read[t.name]], [t], name=name, since=self.p.opset, nodes=view.nodes))
        if t.name not in self.outputs:
            del self.read[t.name]
            self.rough.discard(t.name)

    def recorded(self, view: View, make: Callable[[], Tensor], own: bool = False) -> Tensor:
        """Emits what `make` asks for, as views; `own` if it makes the view's own output."""
        with self.b.recorded() as made:
            result = make()
        fresh = self.recorder.views(view, made, [result] if own else [])
        if fresh:
            fresh[-1].name = view.name
        self.add(*fresh)
        known = self.recorder.read(result)
        assert known is not None
        return known

    def as_read(self, view: View, q: Tensor, scale: Scale) -> Tensor:
        """What q stands for with a certain scale, where it may have been made with another."""
        known = self.scales.get(q.name)
        if known is None:
            return scale.dequantised(self.b, q)
        x = self.read[q.name]
        if known.same(scale):
            return x
        with self.b.recorded():
            step = scale.step(self.b, q)
            factor = step / known.step(self.b, q)
            shift = (known.offset(self.b, q, step) - scale.offset(self.b, q, step)) * step
        moved = key(known.zero) != key(scale.zero)
        return self.recorded(view, lambda: x * factor + shift if moved else x * factor)

    def land(self, view: View, x: Tensor, scale: Scale, value: Tensor | None = None, clips: bool = True) -> None:
        """Reads the view's integer output as x, rounded; `value` is what is rounded, where that is not x itself."""
        q = view.out()
        if q.dtype is None and scale.zero is not None:
            q.dtype = scale.zero.dtype
        q.shape = merged(q.shape, x.shape)
        if x.constant:
            self.add(view)
            return
        self.scales[q.name] = scale
        if view.op == "QuantizeLinear" and all(v.op == "DequantizeLinear" for v in self.readers[q.name]):
            y = scale.rounded(self.b, value or x, q)
        else:
            y = scale.dequantised(self.b, q)
        if self.folds(x, q):
            self.read[q.name], self.values[q.name] = x, y
            self.rough.add(q.name)
            return
        self.read[q.name] = y
        made = self.makers.get(x.name)
        relu = made is not None and made.op in ENDS
        inside = self.recorded(view, lambda: scale.clipped(self.b, x, q, relu)) if clips else x
        self.add(View("QuantizeLinear", [inside], [y], name=view.name, since=self.p.opset, nodes=view.nodes))

    def folds(self, x: Tensor, q: Tensor) -> bool:
        """True where q lies between a linear op and a per-channel affine one, which are read as one linear op."""
        made = self.makers.get(x.name)
        at = registry.info(made).linear if made is not None else None
        if made is None or at is None or at.weight is None or at.bias is None:
            return False
        if not made.has(at.weight) or not made.inp(at.weight).constant:
            return False
        for _ in range(2):  # q, and the float that DequantizeLinear makes of it
            after = self.readers[q.name]
            if len(after) != 1 or q.name in self.outputs | self.keep:
                return False
            if after[0].op in AFFINE and not after[0].domain:
                return all(t is q or t is None or t.constant for t in after[0].x)
            if after[0].op != "DequantizeLinear":
                return False
            q = after[0].out()
        return after[0].op in AFFINE

    # Ops between integer ones

    def moved(self, view: View) -> None:
        """An op that moves integers, or one that carries nothing."""
        q = next(t for t in view.x if t is not None and t.name in self.scales)
        scale, row, stopped = self.scales[q.name], registry.info(view), registry.stops(view)
        if row.zero:
            self.add(view)
            return
        if not (row.layout or view.op in MOVES) or not scale.per_tensor:
            self.p.notes.append(f"{view} computes with integers of '{q.name}': nothing passes back through it")
            self.add(view)
            return
        x = [
            self.as_read(view, t, scale) if t is not None and t.dtype == q.dtype and i not in stopped else t
            for i, t in enumerate(view.x)
        ]
        if view.op == "Pad" and not view.has(2) and key(scale.zero) != 0:
            value = scale.dequantised(self.b, self.b.const(np.zeros((), q.dtype)))
            x = [x[0], x[1], self.b.Reshape(value, self.b.const(np.zeros(0, np.int64))), *x[3:]]
        y: list[Tensor | None] = []
        for t in view.y:
            if t is not None and t.dtype == q.dtype:
                self.scales[t.name] = scale
                self.read[t.name] = scale.dequantised(self.b, t)
            y.append(self.reading(t))
        self.add(view.varied(x=x, y=y))

    def substituted(self, view: View) -> None:
        """A float op behind a quantised one."""
        x = [self.reading(t) for t in view.x]
        rough = any(t is not None and t.name in self.rough for t in view.x)
        constant = all(t is None or t.constant for t in x)
        if registry.info(view).zero and not constant:
            self.add(view)
        elif rough or constant or any(y is not None and self.in_a_unit(y) for y in view.y):
            self.shadow(view, x, rough)
        else:
            self.add(view.varied(x=x))

    def shadow(self, view: View, x: list[Tensor | None], rough: bool) -> None:
        """Computes a float op once more on what it reads."""
        if any(t is not None and t.name in self.values for t in view.x):
            with self.b.recorded():
                values = self.b.many(view.op, len(view.y), *[self.value(t) for t in view.x], **view.attrs)
            self.values.update({y.name: t for t, y in zip(values, view.y, strict=True) if y is not None})
        with self.b.recorded() as made:
            results = self.b.many(view.op, len(view.y), *x, **view.attrs)
        for t, y in zip(results, view.y, strict=True):
            if y is not None:
                t.dtype, t.shape = t.dtype or y.dtype, merged(t.shape, y.shape)
                self.read[y.name] = t
                if rough:
                    self.rough.add(y.name)
        fresh = self.recorder.views(view, made)
        for v in fresh:
            v.name = view.name
            v.y = [t if y is not None else None for t, y in zip(v.y, view.y, strict=True)]
        self.add(*fresh)

    def in_a_unit(self, y: Tensor) -> bool:
        """True if y is rounded at once, perhaps after an activation, and nobody else reads it."""
        after = self.readers[y.name]
        if not after or y.name in self.outputs | self.keep:
            return False
        if all(v.op == "QuantizeLinear" for v in after):
            return True
        only = after[0]
        activation = registry.info(only).derivative is not None and not only.domain
        return len(after) == 1 and activation and only.y[0] is not None and self.in_a_unit(only.out())


@integer("QuantizeLinear", "", "com.microsoft")
def quantize(state: Quantised, v: View) -> None:
    """The float, rounded."""
    x = state.reading(v.x[0])
    assert x is not None
    state.land(v, x, scale_of(v), state.value(v.x[0]))


@integer("DequantizeLinear", "", "com.microsoft")
def dequantize(state: Quantised, v: View) -> None:
    """The float that the integers stand for."""
    q, y, scale = v.inp(0), v.out(), scale_of(v)
    y.dtype, y.shape = y.dtype or scale.scale.dtype, merged(y.shape, q.shape)
    maker = state.makers.get(q.name)
    if q.name in state.scales or q.constant:
        state.read[y.name] = state.as_read(v, q, scale)
        if q.name in state.rough:
            state.rough.add(y.name)
        if q.name in state.values:
            state.values[y.name] = state.values[q.name]
    elif maker is not None and maker.op == "Gather" and maker.inp(0).constant and scale.per_tensor:
        table = scale.dequantised(state.b, maker.inp(0))  # an embedding: its rows are looked up in float
        state.add(maker.varied(x=[table, maker.x[1]], y=[y], name=v.name, nodes=v.nodes))
    else:
        state.add(v)


def scale_of(v: View) -> Scale:
    """Scale and zero point of QuantizeLinear and DequantizeLinear."""
    return Scale(v.inp(1), given(v, 2), int(v.attrs.get("axis", 1)), int(v.attrs.get("block_size", 0)))


@integer("Cast")
def cast(state: Quantised, v: View) -> None:
    """Integers taken as they are: the float that they stand for, over the scale, plus the zero point."""
    q, y = v.inp(0), v.out()
    known = state.scales.get(q.name)
    if known is None:
        state.substituted(v) if q.name in state.read else state.add(v)
    elif y.is_float:
        plain = Scale(state.b.const(np.ones((), y.dtype)))
        state.recorded(v, lambda: state.b.Cast(state.as_read(v, q, plain), to=v.attrs["to"]), own=True)
    elif y.dtype is not None and y.dtype.kind in "iu":
        state.scales[y.name], state.read[y.name] = known, state.read[q.name]
    else:
        state.add(v)
