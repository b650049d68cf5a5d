"""LSTM, GRU and RNN written out: one Scan over the time steps for each direction, explained like any other Scan.

The inputs' share of all gates is one MatMul in front of the Scan. The node itself stays for the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from xaicompile.errors import UnsupportedError
from xaicompile.facts import fold
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.ir.body import BodyBuilder
from xaicompile.ir.build import merged
from xaicompile.ir.graph import Shape

Function = Callable[[Tensor], Tensor]
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}  # gates, each with its rows in W, R and B


@dataclass(frozen=True)
class Activation:
    """An activation of a cell, with the parameters it takes and their defaults."""

    make: Callable[[Builder, Tensor, float, float], Tensor]
    alpha: float | None = None
    beta: float | None = None


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(lambda b, x, _, __: b.Sigmoid(x)),
    "tanh": Activation(lambda b, x, _, __: b.Tanh(x)),
    "relu": Activation(lambda b, x, _, __: b.Relu(x)),
    "softsign": Activation(lambda b, x, _, __: b.Softsign(x)),
    "softplus": Activation(lambda b, x, _, __: b.Softplus(x)),
    "leakyrelu": Activation(lambda b, x, alpha, _: b.LeakyRelu(x, alpha=alpha), 0.01),
    "thresholdedrelu": Activation(lambda b, x, alpha, _: b.ThresholdedRelu(x, alpha=alpha), 1.0),
    "elu": Activation(lambda b, x, alpha, _: b.Elu(x, alpha=alpha), 1.0),
    "hardsigmoid": Activation(lambda b, x, alpha, beta: b.HardSigmoid(x, alpha=alpha, beta=beta), 0.2, 0.5),
    "affine": Activation(lambda b, x, alpha, beta: x * alpha + beta, 1.0, 0.0),
    "scaledtanh": Activation(lambda b, x, alpha, beta: b.Tanh(x * beta) * alpha, 1.0, 1.0),
}
DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


class Recorder:
    """Emits nodes and keeps each as a view."""

    def __init__(self, p: Program, view: View) -> None:
        self.p, self.view, self.views = p, view, list[View]()

    def op(
        self,
        op: str,
        *x: Tensor | Sequence[int],
        y: Tensor | None = None,
        shape: Shape | None = None,
        **attrs: Any,
    ) -> Tensor:
        """A node and its view; the view makes `y` where the forward graph has that tensor already."""
        b = self.p.builder
        operands: list[Tensor | None] = [t if isinstance(t, Tensor) else b.const(np.asarray(t, np.int64)) for t in x]
        made = b.op(op, *operands, shape=shape, **attrs)
        self.add(View(op, operands, [y or made], attrs))
        return y or made

    def add(self, view: View) -> None:
        """Keeps a view, named after the node that is written out."""
        view.name = f"{self.view.name}/{view.op}_{len(self.views)}"
        view.since, view.nodes = self.p.opset, self.view.nodes
        self.views.append(view)
        fold(view)

    def pick(self, x: Tensor, row: int, axis: int, shape: Shape) -> Tensor:
        """x at one index of an axis, without that axis."""
        return self.op("Squeeze", self.op("Slice", x, [row], [row + 1], [axis]), [axis], shape=shape)


def written_out(p: Program, view: View) -> list[View]:
    """The views of a recurrent node."""
    r, b = Recorder(p, view), p.builder
    for i in (0, 5, 6):
        if view.has(i):  # the operator says that these have three axes
            view.inp(i).shape = merged(view.inp(i).shape, (None, None, None))
    with b.scope(view.name):
        batch_first = bool(view.attr("layout"))
        x = r.op("Transpose", view.inp(0), perm=[1, 0, 2]) if batch_first else view.inp(0)
        names = {"forward": [0], "reverse": [1], "bidirectional": [0, 1]}
        backward = names[str(view.attr("direction"))]
        found = [Cell(r, view, x, i, bool(back), batch_first).run() for i, back in enumerate(backward)]
        for k, y in enumerate(view.y):
            if y is not None:
                axis = 1 if k == 0 else 0
                parts = [r.op("Unsqueeze", results[k], [axis]) for results in found]
                swap = ([2, 0, 1, 3] if k == 0 else [1, 0, 2]) if batch_first else list(range(4 if k == 0 else 3))
                r.op("Transpose", r.op("Concat", *parts, axis=axis), y=y, perm=swap)
    return r.views


class Cell:
    """One direction of a recurrent node."""

    def __init__(self, r: Recorder, view: View, x: Tensor, index: int, back: bool, batch_first: bool) -> None:
        self.r, self.view, self.x, self.index, self.back = r, view, x, index, back
        self.batch_first, self.b = batch_first, r.p.builder
        self.gates = CELLS[view.op]
        self.functions = activations(view)[index]
        self.clip = view.attrs.get("clip")
        recurrent = view.inp(2).static
        size = recurrent[2] if recurrent else view.attrs.get("hidden_size")
        if not isinstance(size, int):
            raise UnsupportedError(f"{view}: no gradient where the hidden size is not known")
        self.size = size
        self.length, self.batch = (None, None) if x.shape is None else x.shape[:2]

    def of(self, i: int, axis: int = 0) -> Tensor:
        """This direction's part of an input: W, R, B, an initial state or P."""
        h, features = self.size, None if self.x.shape is None else self.x.shape[2]
        rows = self.gates * h
        shapes = {
            1: (rows, features),
            2: (rows, h),
            3: (2 * rows,),
            5: (self.batch, h),
            6: (self.batch, h),
            7: (3 * h,),
        }
        return self.r.pick(self.view.inp(i), self.index, axis, shapes[i])

    def part(self, t: Tensor, first: int, count: int = 1) -> Tensor:
        """The rows of some gates."""
        shape = (count * self.size, *(() if t.shape is None else t.shape[1:]))
        return self.r.op("Slice", t, [first * self.size], [(first + count) * self.size], [0], shape=shape)

    def run(self) -> list[Tensor]:
        """Y without the axis of directions, and the final states."""
        r, view, b = self.r, self.view, self.b
        wide = (self.length, self.batch, self.gates * self.size)
        given = r.op("MatMul", self.x, r.op("Transpose", self.of(1), perm=[1, 0]), shape=wide)
        inner_bias = None
        if view.has(3):
            of_w, of_r = (self.part(self.of(3), i * self.gates, self.gates) for i in (0, 1))
            if view.op == "GRU" and view.attr("linear_before_reset"):
                inner_bias = self.part(of_r, 2)
                of_r = r.op("Concat", self.part(of_r, 0, 2), b.zeros_like(inner_bias), axis=0)
            given = r.op("Add", given, r.op("Add", of_w, of_r), shape=wide)
        states = [self.start(5)] + ([self.start(6)] if view.op == "LSTM" else [])
        steps = [given] + ([self.running()] if view.has(4) else [])
        return self.scan(states, steps, inner_bias)

    def start(self, i: int) -> Tensor:
        """The initial state, zero if none is given."""
        if self.view.has(i):
            return self.of(i, 1 if self.batch_first else 0)
        size = self.b.Concat(self.b.dim(self.x, 1), [self.size], axis=0)
        zero = helper.make_tensor("zero", helper.np_dtype_to_tensor_dtype(self.x.dtype), [1], [0.0])
        return self.b.op("ConstantOfShape", size, value=zero, shape=(self.batch, self.size))

    def running(self) -> Tensor:
        """[T, N, 1] booleans: whether the sample's sequence has reached that step's end."""
        b = self.b
        length = b.Squeeze(b.dim(self.x, 0), [0])
        step = b.Range(b.const(np.asarray(0, np.int64)), length, b.const(np.asarray(1, np.int64)))
        lengths = b.Cast(self.view.inp(4), to=7)
        return b.Unsqueeze(b.Less(b.Unsqueeze(step, [1]), b.Unsqueeze(lengths, [0])), [2])

    def scan(self, states: list[Tensor], steps: list[Tensor], inner_bias: Tensor | None) -> list[Tensor]:
        """The Scan over the steps, and its view."""
        b, view = self.b, self.view
        body = BodyBuilder(b, hoist=True)
        before = [body.input(f"state_{i}", t.dtype, t.shape) for i, t in enumerate(states)]
        wide = [(self.batch, self.gates * self.size), (self.batch, 1)]
        now = [body.input(f"step_{i}", t.dtype, wide[i]) for i, t in enumerate(steps)]
        step = {"LSTM": self.lstm, "GRU": self.gru, "RNN": self.rnn}[view.op]
        after = step(body, now[0], before, inner_bias)
        y = after[0]
        if len(now) > 1:
            y = body.where(now[1], y, 0.0, like=y)
            after = [body.Where(now[1], new, old) for new, old in zip(after, before, strict=True)]
        graph = body.graph("steps", [*before, *now], body.ends([*after, y]))
        turned = int(self.back)
        attrs = {
            "num_scan_inputs": len(steps),
            "scan_input_directions": [turned] * len(steps),
            "scan_output_directions": [turned],
            "body": graph,
        }
        types = [*((t.dtype, (self.batch, self.size)) for t in states), (y.dtype, (self.length, self.batch, self.size))]
        made = b.typed("Scan", [*states, *steps], types, **attrs)
        captured = {name: t for name, t in body.outer.items()}
        self.r.add(View("Scan", [*states, *steps, *captured.values()], list(made), attrs, captured=tuple(captured)))
        return [made[-1], *made[:-1]]

    def clipped(self, b: Builder, z: Tensor) -> Tensor:
        """The sum that enters an activation, within the node's bounds."""
        if self.clip is None:
            return z
        bounds = [b.const(np.asarray(sign * self.clip, z.dtype)) for sign in (-1, 1)]
        return b.Clip(z, *bounds)

    def times(self, b: BodyBuilder, h: Tensor, weight: Tensor) -> Tensor:
        """h R^T."""
        return b.MatMul(h, b.adopt(self.r.op("Transpose", weight, perm=[1, 0])))

    def lstm(self, b: BodyBuilder, x: Tensor, states: list[Tensor], _: Tensor | None) -> list[Tensor]:
        """One step; gates in the order i, o, f, c."""
        (f, f_rest), (g, _g), (h_of, _h) = self.functions
        h, c = states
        i, o, forget, cell = b.many("Split", 4, x + self.times(b, h, self.of(2)), axis=-1, num_outputs=4)
        peep = [b.adopt(self.part(self.of(7), k)) for k in range(3)] if self.view.has(7) else None
        if peep is not None:
            i, forget = i + peep[0] * c, forget + peep[2] * c
        i, forget, cell = (self.clipped(b, z) for z in (i, forget, cell))
        kept = f_rest(i) if self.view.attr("input_forget") else f(forget)
        c = kept * c + f(i) * g(cell)
        o = self.clipped(b, o if peep is None else o + peep[1] * c)
        return [f(o) * h_of(c), c]

    def gru(self, b: BodyBuilder, x: Tensor, states: list[Tensor], inner_bias: Tensor | None) -> list[Tensor]:
        """One step; gates in the order z, r, h."""
        (f, rest), (g, _) = self.functions
        (h,) = states
        update, reset, cell = b.many("Split", 3, x, axis=-1, num_outputs=3)
        both = self.times(b, h, self.part(self.of(2), 0, 2))
        of_update, of_reset = b.many("Split", 2, both, axis=-1, num_outputs=2)
        update, reset = self.clipped(b, update + of_update), self.clipped(b, reset + of_reset)
        weight = self.part(self.of(2), 2)
        if self.view.attr("linear_before_reset"):
            inner = self.times(b, h, weight)
            inner = inner if inner_bias is None else inner + b.adopt(inner_bias)
            inner = f(reset) * inner
        else:
            inner = self.times(b, f(reset) * h, weight)
        return [rest(update) * g(self.clipped(b, cell + inner)) + f(update) * h]

    def rnn(self, b: BodyBuilder, x: Tensor, states: list[Tensor], _: Tensor | None) -> list[Tensor]:
        """One step."""
        ((f, _rest),) = self.functions
        return [f(self.clipped(b, x + self.times(b, states[0], self.of(2))))]


def activations(view: View) -> list[list[tuple[Function, Function]]]:
    """Per direction, each activation f and 1 - f.

    Raises:
        UnsupportedError: The node names one that is not in the standard.
    """
    count = 2 if view.attr("direction") == "bidirectional" else 1
    names = [str(n) for n in view.attrs.get("activations") or DEFAULTS[view.op] * count]
    alphas, betas = (list(view.attrs.get(k) or []) for k in ("activation_alpha", "activation_beta"))
    found: list[tuple[Function, Function]] = []
    for name in names:
        row = ACTIVATIONS.get(name.lower())
        if row is None:
            raise UnsupportedError(f"{view}: no gradient for the activation '{name}'; known: {', '.join(ACTIVATIONS)}")
        alpha = alphas.pop(0) if row.alpha is not None and alphas else row.alpha
        beta = betas.pop(0) if row.beta is not None and betas else row.beta
        found.append(pair(name.lower(), row, alpha or 0.0, beta or 0.0))
    each = len(found) // count
    return [found[i * each : (i + 1) * each] for i in range(count)]


def pair(name: str, row: Activation, alpha: float, beta: float) -> tuple[Function, Function]:
    """f and 1 - f; of a sigmoid that is f(-x), a gate itself, through which LRP passes nothing.

    Of a hard sigmoid it is so to the accuracy of attributes, which are float32.
    """

    def f(x: Tensor) -> Tensor:
        return row.make(x.builder, x, alpha, beta)

    def rest(x: Tensor) -> Tensor:
        if name == "sigmoid":
            return f(-x)
        return row.make(x.builder, -x, alpha, 1.0 - beta) if name == "hardsigmoid" else 1.0 - f(x)

    return f, rest


__all__ = ["ACTIVATIONS", "CELLS", "written_out"]
