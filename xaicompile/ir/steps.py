"""The body of a Scan that evaluates part of the forward graph again and again, at other values of some tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from xaicompile.errors import Gap, UnsupportedError
from xaicompile.ir.body import RANDOM, BodyBuilder, control
from xaicompile.ir.build import Builder
from xaicompile.ir.graph import Dim, Operand, Shape, Tensor, View, subgraphs
from xaicompile.ir.model import attribute_value


class StepBuilder(BodyBuilder):
    """Emits the body. What does not change from step to step and is no constant goes to the graph around it.

    Weights stay outside, where the file holds them once, and are read through a Reshape to their own shape: a runtime
    that folds constants when it loads the model then gives the body weights of its own, without which its
    convolutions would run without their fastest layout.
    """

    def __init__(self, parent: Builder) -> None:
        super().__init__(parent, hoist=True)
        self._constants = {}
        self._origins: dict[str, Callable[[], Tensor]] = {}  # of constants made here: how the graph around makes them

    def adopt(self, t: Tensor) -> Tensor:
        """A tensor from outside, for use in the body."""
        if t.builder is self or not t.constant or not t.static:
            return super().adopt(t)
        if t.name not in self._adopted:
            own = self._emit("Reshape", 1, [super().adopt(t), self.const(np.asarray(t.static, np.int64))], t.static, {})
            own[0].value, own[0].constant = t.value, True
            self._adopted[t.name] = own[0]
            self._origins[own[0].name] = lambda: t
        return self._adopted[t.name]

    def const(self, value: np.ndarray, name: str = "") -> Tensor:
        """A constant, held by the body."""
        return Builder.const(self, value, name)

    def many(
        self, op: str, outputs: int, *x: Operand | None, shape: Shape | None = None, **attrs: Any
    ) -> tuple[Tensor, ...]:
        """Emits a node: here if it is constant or changes with the steps, else in the graph around."""
        given = [t for t in self._operands(x) if t is not None]
        here = any(self.inside(t) and t.name not in self._origins for t in given)
        if all(t.constant for t in given):
            made = Builder.many(self, op, outputs, *x, shape=shape, **attrs)
            for i, t in enumerate(() if here else made):
                self._origins[t.name] = lambda i=i: self._outside(op, outputs, x, shape, attrs)[i]  # type: ignore[misc]
            return made
        if here:
            return super().many(op, outputs, *x, shape=shape, **attrs)
        return super().many(op, outputs, *[self.outward(t) for t in x], shape=shape, **attrs)

    def _outside(
        self, op: str, outputs: int, x: Sequence[Operand | None], shape: Shape | None, attrs: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """A constant of the body, made by the graph around."""
        with self.parent.scope(self._scope):
            return self.parent.many(op, outputs, *[self.outward(t) for t in x], shape=shape, **attrs)

    def outward(self, t: Operand | None) -> Operand | None:
        """A constant of the body as the graph around has it, so that a node may move there."""
        if not isinstance(t, Tensor) or not self.inside(t):
            return t.var.values if isinstance(t, Tensor) and isinstance(t.var, gs.Constant) else t
        return self._origins[t.name]()

    def unplanned(self, t: Tensor) -> Tensor:
        """t as it is: times the length, 1, of a sequence that stands outside.

        ONNX Runtime lays out a body's memory anew behind its first step, in one block beside all that this step used,
        unless the body reads something that is no tensor. With a sequence it goes on with what it has: as little as
        half of the memory, and no slower.
        """
        held = self.parent.op("SequenceConstruct", self.parent.const(np.zeros((), np.int64)))
        return t * self.CastLike(self._emit("SequenceLength", 1, [self.adopt(held)], (), {})[0], t)

    def graph(self, name: str, inputs: Sequence[Tensor], ends: Sequence[Tensor]) -> onnx.GraphProto:
        """The body, with its constants as initializers.

        Shapes are stated, since a runtime infers none from what the body reads of the graph around; without them its
        convolutions leave their fastest layout between any two.
        """
        made = super().graph(name, inputs, ends)
        outputs = {y for node in made.node for y in node.output} - {t.name for t in ends}
        for y in (y for node in self.nodes for y in node.outputs if y.name in outputs and y.dtype and y.shape):
            kind = helper.np_dtype_to_tensor_dtype(y.dtype)
            made.value_info.append(helper.make_tensor_value_info(y.name, kind, list(y.shape)))
        used = {x for node in made.node for x in node.input}
        used |= {x for node in made.node for inner in subgraphs(node) for x in names_read(inner)}
        for constant in self.constants():
            if constant.name in used:
                made.initializer.append(numpy_helper.from_array(constant.values, constant.name))
        return made


def names_read(graph: onnx.GraphProto) -> Iterable[str]:
    """All names that nodes of a graph read, at any depth."""
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from names_read(inner)


def replayed(
    b: Builder, views: Sequence[View], known: dict[str, Tensor], size: Callable[[Dim], Dim] = lambda _: None
) -> list[View]:
    """Emits views once more, on what `known` says their inputs stand for; `known` is filled with what they make.

    Args:
        size: What a size or its symbol is in what is emitted; None where that is not known.

    Raises:
        UnsupportedError: A view is random, or of a domain that is not emitted.
    """
    made: list[View] = []
    for view in views:
        rounded = view.op == "QuantizeLinear" and len(view.x) == 1  # what the prediction rounded, as floats
        if view.domain or rounded or view.op in RANDOM:
            why = "is quantised" if rounded else "is random"
            reason = f"it {why} and can't be run once more" if not view.domain else f"its domain is {view.domain}"
            kind = "domain" if view.domain else "no rule"
            raise UnsupportedError(
                f"{view}: {reason}", (Gap(view.name, view.op, view.domain, view.since, kind, reason),)
            )
        x = [None if t is None else known.get(t.name) or adopted(b, t) for t in view.x]
        attrs = {k: plain(v) for k, v in view.attrs.items()}
        own = x[: view.own]
        if any(isinstance(v, onnx.GraphProto) for v in attrs.values()):
            names = [f"x{i}" if t else "" for i, t in enumerate(own)]
            node = helper.make_node(view.op, names, [f"y{i}" for i in range(len(view.y))], **attrs)
            captured = {n: t for n, t in zip(view.captured, x[view.own :], strict=True) if t is not None}
            results = control(b, node, own, captured)
        else:
            y0 = view.y[0]
            shape = None if y0 is None or y0.shape is None else tuple(size(d) for d in y0.shape)
            results = b.many(view.op, len(view.y), *own, shape=shape, **attrs)
        y: list[Tensor | None] = [r if old is not None else None for r, old in zip(results, view.y, strict=True)]
        known |= {old.name: r for r, old in zip(results, view.y, strict=True) if old is not None}
        made.append(view.varied(x=x, y=y, attrs=attrs, since=b.opset, bodies=(), gaps=()))
    return made


def adopted(b: Builder, t: Tensor) -> Tensor:
    """A tensor for use with a builder."""
    return b.adopt(t) if isinstance(b, BodyBuilder) else t


def plain(value: Any) -> Any:
    """An attribute as a node can hold it."""
    if isinstance(value, gs.Constant):
        numbers = attribute_value(value)
        return value if numbers is None else numpy_helper.from_array(numbers)
    return value
