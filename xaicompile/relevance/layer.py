"""A linear op as the LRP rules see it: z = x W + b, with its variations and its own transpose.

A weight is a tensor, or a number for ops without one (averages, sums, interpolation): their own weights are not
negative, so W+ is the op itself and W- is nothing. What is proven to be nothing is None, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.half import held
from xaicompile.ir import Tensor, View
from xaicompile.registry import Context, Linear, Message, Messages, Relevance, info
from xaicompile.relevance.reading import recomputed

FEW = 4  # channels; runtimes work on blocks of eight and fill them up

Weight = Tensor | float
Part = tuple[Weight, Weight, Tensor]  # the weight for x >= 0, the weight for x < 0, and what is sent back through them


def linear_of(ctx: Context) -> Linear | None:
    """Which input of the node is data and which is weight, decided by facts; None if the node is not linear."""
    stated = info(ctx.node).linear
    if stated is None or ctx.node.attr("mode") == "cubic":  # a Resize whose weights have both signs
        return None
    on_path = [ctx.facts.on_path(x) for x in ctx.node.x]
    if stated.weight is None:
        return stated if on_path[stated.data] else None
    if stated.either and len(on_path) == 1:  # an Einsum that sums or transposes
        return Linear(stated.data, None, None) if on_path[0] else None
    if stated.either and len(on_path) > 2 and stated.bias is None:  # an Einsum with several weights
        return None
    ways = [stated, Linear(stated.weight, stated.data, stated.bias)] if stated.either else [stated]
    return next((at for at in ways if at.weight is not None and on_path[at.data] and not on_path[at.weight]), None)


@dataclass
class Layer:
    """A linear node z = x W + b seen by a rule.

    Attributes:
        at: Which input is which.
        stands_for: A linear node in place of the context's, of the same shapes.
        node: The node, with Gemm's alpha and beta moved into its weight and bias.
        w: The weight, 1.0 for ops without one.
        bias: The bias, None if there is none.
    """

    ctx: Context
    at: Linear
    stands_for: View | None = None
    node: View = field(init=False)
    w: Weight = field(init=False)
    bias: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        at = self.at
        self.node = node = self.stands_for or self.ctx.node
        self.w = 1.0 if at.weight is None else node.inp(at.weight)
        self.bias = node.inp(at.bias) if at.bias is not None and node.has(at.bias) else None
        self.passed_on: Message = None  # for a bias that depends on the explained input
        if node.op == "Gemm":
            alpha, beta = float(node.attr("alpha")), float(node.attr("beta"))
            self.node = node.varied(attrs={**node.attrs, "alpha": 1.0, "beta": 1.0})
            self.w = self.w if alpha == 1 else self.w * alpha
            self.bias = self.bias if self.bias is None or beta == 1 else self.bias * beta

    @property
    def x(self) -> Tensor:
        """The data input."""
        return self.node.inp(self.at.data)

    # what goes forward

    def z(self, x: Tensor | None, w: Weight, bias: Tensor | None = None) -> Tensor | None:
        """x W + b with other operands; None if it is proven to be nothing."""
        if x is None or (isinstance(w, float) and w == 0):
            return None if bias is None else self.broadcast_bias(bias)
        if isinstance(w, float):
            whole = self.ctx.b.forward(self.varied(x, None, None))
            return held(self.ctx.b, whole if w == 1 else whole * w)
        return held(self.ctx.b, self.ctx.b.forward(self.varied(x, w, bias)))

    def total(self, up: Weight, down: Weight, offset: Tensor | None = None) -> Tensor | None:
        """max(x, 0) up + min(x, 0) down + offset; None if it is proven to be nothing."""
        plus, minus = self.parts
        if plus is None:
            return self.z(minus, down, offset)
        if minus is not None and isinstance(up, Tensor) and isinstance(down, Tensor) and self.few:
            return self.z(self.ctx.b.Concat(plus, minus, axis=1), self.ctx.b.Concat(up, down, axis=1), offset)
        terms = [self.z(plus, up, offset), self.z(minus, down)]
        found = [t for t in terms if t is not None]
        return None if not found else found[0] if len(found) == 1 else held(self.ctx.b, self.ctx.b.add_all(found))

    @property
    def parts(self) -> tuple[Tensor | None, Tensor | None]:
        """max(x, 0) and min(x, 0); None for the one that facts prove to be zero, x itself for the other."""
        low, high = self.ctx.facts.bounds(self.x)
        if low >= 0:
            return self.x, None
        if high <= 0:
            return None, self.x
        return self.ctx.b.Relu(self.x), self.ctx.b.Min(self.x, 0.0)

    def output(self) -> Tensor:
        """z where the cotangent is not zero, read so that the runtime's fusions stay."""
        after = self.ctx.facts.activation.get(self.ctx.y.name)
        return recomputed(self.ctx, self.ctx.y) if after is None else after

    def whole(self) -> Tensor:
        """z, also where the cotangent is zero, read so that the runtime's fusions stay."""
        return recomputed(self.ctx, self.ctx.y)

    @property
    def rectified(self) -> bool:
        """True if the cotangent is zero wherever z <= 0."""
        return self.ctx.y.name in self.ctx.facts.activation

    def varied(self, x: Tensor, w: Tensor | None, bias: Tensor | None) -> View:
        """The node with other operands."""
        operands = list(self.node.x)
        operands[self.at.data] = x
        if self.at.weight is not None:
            operands[self.at.weight] = w
        if self.at.bias is not None:
            operands = operands[: self.at.bias] + ([] if bias is None else [bias])
        return self.node.varied(x=operands)

    @property
    def few(self) -> bool:
        """True for a convolution of so few channels that twice as many cost the runtime no more: a picture's.

        There what x >= 0 and x < 0 hand on is worked out in one convolution, one behind the other along axis 1.
        """
        if self.node.op != "Conv" or self.node.attr("group") != 1 or self.x.shape is None:
            return False
        channels = self.x.shape[1]
        return isinstance(channels, int) and channels <= FEW

    # what goes back

    def back_both(self, up: Weight, down: Weight, s: Tensor) -> Sequence[Tensor | None]:
        """What `back` gives with two weights."""
        b = self.ctx.b
        if not (isinstance(up, Tensor) and isinstance(down, Tensor) and self.few):
            return self.back(up, s), self.back(down, s)
        both = self.back(b.Concat(up, down, axis=1), s, b.Concat(self.x, self.x, axis=1))
        assert both is not None
        return b.many("Split", 2, both, axis=1, num_outputs=2)

    def back(self, w: Weight, s: Tensor, x: Tensor | None = None) -> Tensor | None:
        """The node's own transpose with another weight, applied to s; None if it is proven to be nothing.

        Args:
            x: A tensor of the result's shape, if that is not x's own.
        """
        if isinstance(w, float):
            if w == 0:
                return None
            s = s if w == 1 else s * w
        varied = self.varied(x or self.x, None if isinstance(w, float) else w, None)
        need = [i == self.at.data for i in range(len(varied.x))]
        message = Context(self.ctx.b, varied, [s], need, self.ctx.facts, self.ctx.parameters).vjp()[self.at.data]
        assert isinstance(message, Tensor)
        return message

    def sent_back(self, parts: Sequence[Part]) -> Messages:
        """The cotangent at x: the sum over parts of s up^T where x >= 0 and of s down^T where x < 0."""
        b, (plus, minus) = self.ctx.b, self.parts

        def added(terms: Sequence[Tensor | None]) -> Tensor:
            found = [t if len(parts) == 1 else held(b, t) for t in terms if t is not None]
            return b.add_all(found) if found else b.zeros_like(self.x)

        if minus is None or plus is None:
            side = 0 if minus is None else 1
            return self.result(added([self.back(part[side], part[2]) for part in parts]))
        there, here = zip(*(self.back_both(*part) for part in parts), strict=True)
        return self.result(b.where(self.x < 0.0, added(here), added(there), like=self.x))

    def result(self, message: Message) -> Messages:
        """The message for the data input, and that of a bias which is data too."""
        messages = self.ctx.only(self.at.data, message)
        if self.at.bias is not None and self.passed_on is not None:
            messages[self.at.bias] = self.passed_on
        return messages

    # biases

    def broadcast_bias(self, bias: Tensor) -> Tensor:
        """A bias shaped to broadcast over z."""
        spatial = (self.ctx.y.rank or 2) - 2 if self.node.op in ("Conv", "ConvTranspose") else 0
        return self.ctx.b.Unsqueeze(bias, list(range(1, 1 + spatial))) if spatial else bias

    def absorb_bias(self, s: Tensor, bias: Tensor | None) -> None:
        """s b, the bias's share: entered in the ledger, or passed on as relevance if the bias itself is data."""
        if bias is None or self.at.bias is None:
            return
        if not self.ctx.need[self.at.bias]:
            self.ctx.absorb(lambda: s * self.broadcast_bias(bias), "bias")
            return
        share = self.ctx.b.unbroadcast(s * self.broadcast_bias(bias), self.broadcast_bias(bias))
        own = Relevance(self.ctx.b.reshape_like(share, bias))
        before = self.passed_on
        self.passed_on = Relevance(before.r + own.r) if isinstance(before, Relevance) else own


def layer_of(ctx: Context, name: str) -> Layer:
    """The node as a linear layer.

    Raises:
        RuleError: The node is not linear in one data input.
    """
    at = linear_of(ctx)
    if at is None:
        raise RuleError(f"rule '{name}' is for linear ops and can't be applied to {ctx.node}")
    return Layer(ctx, at)


def positive(layer: Layer, t: Weight) -> Weight:
    """max(t, 0); t itself or 0.0 where facts prove it."""
    if isinstance(t, float):
        return max(t, 0.0)
    low, high = layer.ctx.facts.bounds(t)
    return t if low >= 0 else 0.0 if high <= 0 else layer.ctx.b.Relu(t)


def negative(layer: Layer, t: Weight) -> Weight:
    """min(t, 0); t itself or 0.0 where facts prove it."""
    if isinstance(t, float):
        return min(t, 0.0)
    low, high = layer.ctx.facts.bounds(t)
    return t if high <= 0 else 0.0 if low >= 0 else layer.ctx.b.Min(t, 0.0)


def tiny(t: Tensor) -> float:
    """A number next to nothing: the smallest normal one of float32, in half precision (6e-5) the smallest of all.

    Of float64 ONNX Runtime takes what float32 can't hold for 0, and leaves out its addition.
    """
    half = np.finfo(t.dtype or np.float32).bits == 16
    return float(np.finfo(np.float16).smallest_subnormal if half else np.finfo(np.float32).tiny)
