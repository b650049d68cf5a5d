"""Float64 LSTM, GRU, RNN and Scan for the tests, sample by sample and step by step as the standard puts it.

What is missing in onnx 1.23's own evaluator: the recurrent operators take neither two directions, sequence lengths,
bounds, ``input_forget`` nor any activations but the default ones; ``Scan`` takes neither axes nor directions; ``Loop``
takes a condition that is left out for a false one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# f(x, alpha, beta), and the defaults of alpha and beta where the activation takes them
FUNCTIONS: dict[str, tuple[Callable[[Array, Any, Any], Array], float | None, float | None]] = {
    "Sigmoid": (lambda x, a, b: _sigmoid(x), None, None),
    "Tanh": (lambda x, a, b: np.tanh(x), None, None),
    "Relu": (lambda x, a, b: np.maximum(x, 0), None, None),
    "Affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "LeakyRelu": (lambda x, a, b: np.where(x < 0, a * x, x), 0.01, None),
    "ThresholdedRelu": (lambda x, a, b: np.where(x > a, x, 0), 1.0, None),
    "ScaledTanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "HardSigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "Elu": (lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x), 1.0, None),
    "Softsign": (lambda x, a, b: x / (1 + np.abs(x)), None, None),
    "Softplus": (lambda x, a, b: np.log1p(np.exp(x)), None, None),
}


class _Recurrent(OpRun):
    gates = 1
    defaults: Sequence[str] = ("Tanh",)

    def _run(self, x, w, r, bias=None, lengths=None, h0=None, c0=None, p=None, **attrs):  # type: ignore[no-untyped-def]
        if attrs.get("layout"):
            x = x.swapaxes(0, 1)
            h0, c0 = (None if s is None else s.swapaxes(0, 1) for s in (h0, c0))
        steps, batch, _ = x.shape
        directions, _, hidden = r.shape
        functions = self._functions(attrs, directions)
        ys = np.zeros((steps, directions, batch, hidden))
        last = [np.zeros((directions, batch, hidden)) for _ in range(2)]
        for d in range(directions):
            back = attrs["direction"] == "reverse" or d == 1
            b = np.zeros(2 * self.gates * hidden) if bias is None else bias[d]
            peep = np.zeros(3 * hidden) if p is None else p[d]
            for n in range(batch):
                count = steps if lengths is None else int(lengths[n])
                state = [np.zeros(hidden) if s is None else s[d, n] for s in (h0, c0)]
                for t in range(count)[::-1] if back else range(count):
                    state = self._step(x[t, n], state, w[d], r[d], b, peep, functions[d], attrs)
                    ys[t, d, n] = state[0]
                last[0][d, n], last[1][d, n] = state
        if attrs.get("layout"):
            ys, last = ys.transpose(2, 0, 1, 3), [s.swapaxes(0, 1) for s in last]
        found = [ys, *last][: 3 if self.gates == 4 else 2]
        return tuple(v.astype(x.dtype) for v in found[: len(self.onnx_node.output)])

    def _functions(self, attrs: dict[str, Any], directions: int) -> list[list[Callable[[Array], Array]]]:
        names = list(attrs.get("activations") or list(self.defaults) * directions)
        alphas, betas = (list(attrs.get(f"activation_{k}") or []) for k in ("alpha", "beta"))
        found = []
        for name in names:
            f, alpha, beta = FUNCTIONS[name]
            alpha = alphas.pop(0) if alpha is not None and alphas else alpha
            beta = betas.pop(0) if beta is not None and betas else beta
            alpha, beta = (None if v is None else float(np.float32(v)) for v in (alpha, beta))  # as attributes are
            found.append(lambda z, f=f, alpha=alpha, beta=beta: f(z, alpha, beta))
        each = len(names) // directions
        return [found[i * each : (i + 1) * each] for i in range(directions)]

    @staticmethod
    def _bounded(z: Array, attrs: dict[str, Any]) -> Array:
        clip = attrs.get("clip")
        return np.clip(z, -clip, clip) if clip else z

    def _step(self, x, state, w, r, b, p, functions, attrs):  # type: ignore[no-untyped-def]
        z = w @ x + r @ state[0] + b[: len(w)] + b[len(w) :]
        return [functions[0](self._bounded(z, attrs)), state[1]]


class RNN(_Recurrent):
    pass


class GRU(_Recurrent):
    gates = 3
    defaults = ("Sigmoid", "Tanh")

    def _step(self, x, state, w, r, b, p, functions, attrs):  # type: ignore[no-untyped-def]
        h, (f, g) = state[0], functions
        (wz, wr, wh), (rz, rr, rh), bs = np.split(w, 3), np.split(r, 3), np.split(b, 6)
        z = f(self._bounded(wz @ x + rz @ h + bs[0] + bs[3], attrs))
        reset = f(self._bounded(wr @ x + rr @ h + bs[1] + bs[4], attrs))
        before = reset * (rh @ h + bs[5]) if attrs.get("linear_before_reset") else rh @ (reset * h) + bs[5]
        return [(1 - z) * g(self._bounded(wh @ x + before + bs[2], attrs)) + z * h, state[1]]


class LSTM(_Recurrent):
    gates = 4
    defaults = ("Sigmoid", "Tanh", "Tanh")

    def _step(self, x, state, w, r, b, p, functions, attrs):  # type: ignore[no-untyped-def]
        (h, c), (f, g, out) = state, functions
        i, o, forget, cell = np.split(w @ x + r @ h + b[: len(w)] + b[len(w) :], 4)
        pi, po, pf = np.split(p, 3)
        i = f(self._bounded(i + pi * c, attrs))
        forget = 1 - i if attrs.get("input_forget") else f(self._bounded(forget + pf * c, attrs))
        c = forget * c + i * g(self._bounded(cell, attrs))
        return [f(self._bounded(o + po * c, attrs)) * out(c), c]


class Scan(OpRun):
    def need_context(self) -> bool:
        return True

    def _run(  # type: ignore[no-untyped-def]
        self,
        *args,
        context=None,
        body=None,
        num_scan_inputs=None,
        scan_input_axes=None,
        scan_input_directions=None,
        scan_output_axes=None,
        scan_output_directions=None,
        attributes=None,
        bindings=None,
    ):
        count = len(args) - num_scan_inputs
        states, names = list(args[:count]), self.body.input_names
        outputs = len(self.body.output_names) - count
        stacks = [
            np.moveaxis(v, a, 0) for v, a in zip(args[count:], scan_input_axes or [0] * num_scan_inputs, strict=True)
        ]
        turned = scan_input_directions or [0] * num_scan_inputs
        stacks = [v[::-1] if back else v for v, back in zip(stacks, turned, strict=True)]
        kept: list[list[Array]] = [[] for _ in range(outputs)]
        for step in range(len(stacks[0])):
            feed = dict(context or {}) | dict(zip(names, [*states, *(v[step] for v in stacks)], strict=True))
            found = self._run_body(feed, bindings=bindings)
            states = list(found[:count])
            for into, value in zip(kept, found[count:], strict=True):
                into.append(value)
        turned = scan_output_directions or [0] * outputs
        axes = scan_output_axes or [0] * outputs
        made = [np.stack(v[::-1] if back else v, axis=a) for v, back, a in zip(kept, turned, axes, strict=True)]
        return tuple(np.asarray(v) for v in (*states, *made))


class Loop(OpRun):
    def need_context(self) -> bool:
        return True

    def _run(self, count, condition, *states, context=None, body=None, attributes=None, bindings=None):  # type: ignore[no-untyped-def]
        names, outputs = self.body.input_names, len(self.body.output_names) - 1 - len(states)
        kept: list[list[Array]] = [[] for _ in range(outputs)]
        step, on = 0, True if condition is None else bool(condition)
        while on and (count is None or step < int(count)):
            given = [np.asarray(step, np.int64), np.asarray(True), *states]
            found = self._run_body(dict(context or {}) | dict(zip(names, given, strict=True)), bindings=bindings)
            on, states, step = bool(found[0]), tuple(found[1 : 1 + len(states)]), step + 1
            for into, value in zip(kept, found[1 + len(states) :], strict=True):
                into.append(value)
        return tuple(np.asarray(v) for v in (*states, *(np.stack(v) if v else np.zeros((0,) * 3) for v in kept)))


OPS: list[type[OpRun]] = [LSTM, GRU, RNN, Loop, Scan]
