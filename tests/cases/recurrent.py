"""LSTM, GRU and RNN: directions, lengths, states, peepholes, bounds and activations; [T, N, F] inputs, H = 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.cases import Arg, Case, case, const, given, real, weight

T, N, F, H = 4, 3, 3, 2
LENGTHS = const(given([4, 1, 3], np.int32))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 3, "GRU": 2, "RNN": 2}  # outputs


def row(
    op: str,
    note: str,
    *rest: Arg | None,
    two: bool = False,
    weights: Any = weight,
    bias: bool = True,
    x: Arg | None = None,
    **options: Any,
) -> Case:
    """A row with weights for one direction or two; `rest` are sequence_lens, initial_h, initial_c and P."""
    d, g = 1 + two, GATES[op]
    w, r, b = weights(d, g * H, F), weights(d, g * H, H), weights(d, 2 * g * H)
    args = [x or real(T, N, F), w, r, *([b if bias else None] if bias or rest else []), *rest]
    options = {"outputs": STATES[op], "used": tuple(range(STATES[op])), "half": False, **options}
    return case(op, note, *args, hidden_size=H, **({"direction": "bidirectional"} if two else {}), **options)


def state(d: int = 1) -> Arg:
    """An initial state that is explained too."""
    return real(d, N, H)


CASES: list[Case] = [
    row("LSTM", "plain", order2=True),
    row("LSTM", "no bias", bias=False),
    row("LSTM", "reverse", direction="reverse"),
    row("LSTM", "both directions, lengths", LENGTHS, two=True),
    row("LSTM", "states", None, state(), state()),
    row("LSTM", "constant states", LENGTHS, weight(1, N, H), weight(1, N, H), direction="reverse"),
    row("LSTM", "both directions, states, lengths, peepholes", LENGTHS, state(2), state(2), weight(2, 3 * H), two=True),
    row("LSTM", "weights explained", None, state(), None, real(1, 3 * H), weights=real),
    row("LSTM", "only Y_c", used=(2,)),
    row("LSTM", "only Y_h", used=(1,), outputs=2),
    row("LSTM", "only Y", used=(0,), outputs=1, order2=True),
    row("LSTM", "clip", clip=0.4),
    row("LSTM", "input forget", input_forget=1),
    row("LSTM", "batch first", None, real(N, 1, H), real(N, 1, H), layout=1, x=real(N, T, F), runtime=False),
    row("LSTM", "other activations", activations=["HardSigmoid", "Softsign", "Affine"], activation_alpha=[0.3, 1.5],
        activation_beta=[0.4, 0.2]),
    row("LSTM", "activations by direction", two=True,
        activations=["Sigmoid", "ScaledTanh", "Tanh", "HardSigmoid", "Elu", "Softplus"],
        activation_alpha=[1.7, 0.25, 0.7], activation_beta=[0.6, 0.45]),
    row("GRU", "plain", order2=True),
    row("GRU", "no bias, reverse", bias=False, direction="reverse"),
    row("GRU", "linear before reset", linear_before_reset=1),
    row("GRU", "linear before reset, no bias", bias=False, linear_before_reset=1),
    row("GRU", "both directions, lengths, states", LENGTHS, state(2), two=True, linear_before_reset=1),
    row("GRU", "weights explained", None, state(), weights=real),
    row("GRU", "batch first", layout=1, x=real(N, T, F), two=True, runtime=False),
    row("GRU", "clip, other activations", clip=0.5, activations=["HardSigmoid", "LeakyRelu"],
        activation_alpha=[0.3, 0.1], activation_beta=[0.5]),
    row("RNN", "plain", order2=True),
    row("RNN", "both directions, lengths, states", LENGTHS, state(2), two=True, activations=["Relu", "Tanh"]),
    row("RNN", "weights explained", None, state(), weights=real, direction="reverse"),
    row("RNN", "thresholded", activations=["ThresholdedRelu"], activation_alpha=[0.2]),
]  # fmt: skip
