"""What is known about each operator, in one table keyed (domain, op, since-version).

An op's row says how a cotangent passes through it (`vjp`) and what kind of op it is; from the kind follow the facts
that LRP needs. Ops whose treatment by LRP is not given by their kind register a rule of their own with `relevance`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xaicompile.errors import RuleError
from xaicompile.half import widened
from xaicompile.ir import Builder, Tensor, View

if TYPE_CHECKING:
    from xaicompile.facts import Facts


OWN = "xaicompile"  # domain of operators that several nodes are read as, and that no model holds


@dataclass(frozen=True)
class Relevance:
    """A message that is relevance itself, not a multiple of the input (z-box, w-square, flat)."""

    r: Tensor


@dataclass(frozen=True)
class Absorbed:
    """What a node keeps of the relevance that arrives, and why: a bias, a stabiliser, or other."""

    amount: Tensor
    kind: str


Message = Tensor | Relevance | None
Messages = Sequence[Message]
Rule = Callable[["Context"], Messages]
Derivative = Callable[["Context", Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Linear:
    """How an op is linear: which input is data, which weight, which bias.

    Attributes:
        weight: None for an op without one: an average, a sum, an interpolation, of weights that are not negative.
        either: Data and weight may change places, or be both.
    """

    data: int = 0
    weight: int | None = 1
    bias: int | None = 2
    either: bool = False


UNWEIGHTED = Linear(weight=None, bias=None)


@dataclass(frozen=True)
class OpInfo:
    """One row of the operator table.

    Attributes:
        since: First opset version that the row is for.
        vjp: The exact transpose of the op's Jacobian, applied to the outputs' cotangents.
        zero: The op carries nothing backwards.
        layout: The op only moves, repeats or drops values: relevance passes through its vjp unchanged.
        degree: Degree of positive homogeneity in the data inputs (spec 1.7), None if there is none.
        derivative: For elementwise ops of one data input: dy/dx.
        at_zero: For elementwise ops: f(0).
        linear: For ops with a weight.
    """

    op: str
    domain: str = ""
    since: int = 1
    vjp: Rule | None = None
    zero: bool = False
    layout: bool = False
    degree: float | None = None
    derivative: Derivative | None = None
    at_zero: float | None = None
    linear: Linear | None = None


@dataclass
class Context:
    """All that a rule may see: one view, the cotangents of its outputs, which inputs want a message, and facts.

    Attributes:
        b: Emits nodes.
        node: The view that the rule is applied to.
        g: Cotangent per output, None where nothing flows.
        need: Per input, whether a message is wanted.
        facts: What is proven about tensors.
        parameters: The rule's parameters.
        ledger: Collects what the node absorbs and why, None if no ledger is kept.
    """

    b: Builder
    node: View
    g: Sequence[Tensor | None]
    need: Sequence[bool]
    facts: Facts
    parameters: Mapping[str, Any] = field(default_factory=dict)
    ledger: list[Absorbed] | None = None

    @property
    def c(self) -> Tensor:
        """The cotangent of the first output."""
        assert self.g[0] is not None
        return self.g[0]

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.node.inp(0)

    @property
    def y(self) -> Tensor:
        """The first output."""
        return self.node.out(0)

    def attr(self, key: str, default: Any = None) -> Any:
        """An attribute of the node, with the schema's default."""
        return self.node.attr(key, default)

    def vjp(self, node: View | None = None, g: Sequence[Tensor | None] | None = None) -> Messages:
        """Applies the exact transpose of `node` (default: this one) to `g` (default: the cotangents here)."""
        node = node or self.node
        transpose = info(node).vjp
        assert transpose is not None, f"{node} has no vjp"
        return transpose(self.on(node, g))

    def on(self, node: View, g: Sequence[Tensor | None] | None = None) -> Context:
        """The same context for a variation of the node, without a ledger."""
        return Context(self.b, node, self.g if g is None else g, self.need, self.facts, self.parameters)

    def absorb(self, amount: Callable[[], Tensor], kind: str = "other") -> None:
        """Enters in the ledger what the node keeps; any shape with the batch in front. Emitted only if one is kept."""
        if self.ledger is not None:
            self.ledger.append(Absorbed(amount(), kind))

    def absorb_difference(self, messages: Messages) -> Messages:
        """Enters y c minus what the messages hand on, for rules that conserve nothing; returns the messages."""
        for y, c in zip(self.node.y, self.g, strict=True):
            if y is not None and c is not None:
                self.absorb(lambda y=y, c=c: self.share(y, c))  # type: ignore[misc]
        for x, m, needed in zip(self.node.x, messages, self.need, strict=False):
            if x is not None and isinstance(m, Tensor) and needed:
                self.absorb(lambda x=x, m=m: -self.share(x, m))  # type: ignore[misc]
        return messages

    def product(self, x: Tensor, c: Tensor) -> Tensor:
        """x c, for the ledger: in float32 where it may exceed half precision."""
        return widened(self.b, x) * widened(self.b, c)

    def share(self, x: Tensor, c: Tensor) -> Tensor:
        """x c, and 0 where c is 0 though x be infinite, as attention masks are (spec section 6)."""
        if all(math.isfinite(end) for end in self.facts.bounds(x)):
            return self.product(x, c)
        product = self.product(x, c)
        return self.b.where(self.b.Equal(c, 0.0), 0.0, product, like=product)

    def where(self, condition: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
        """Where, with numbers in the dtype of the first output."""
        return self.b.where(condition, yes, no, like=self.y)

    def nothing(self) -> list[Message]:
        """No message for any input."""
        return [None] * len(self.node.x)

    def only(self, i: int, message: Message) -> list[Message]:
        """A message for input `i` alone."""
        return [message if j == i else None for j in range(len(self.node.x))]


_OPS: dict[tuple[str, str], list[OpInfo]] = {}
_STOPS: dict[tuple[str, str], frozenset[int]] = {}
RULES: dict[str, Rule] = {}
RELEVANCE: dict[str, Rule] = {}
PARAMETERS: dict[str, dict[str, Any]] = {}
METHODS: dict[str, Callable[[Any], Mapping[str, Tensor]]] = {}
METHOD_PARAMETERS: dict[str, dict[str, Any]] = {}


def register(row: OpInfo) -> None:
    """Adds a row; the largest `since` not above the node's version wins."""
    rows = _OPS.setdefault((row.domain, row.op), [])
    rows.append(row)
    rows.sort(key=lambda r: -r.since)


def find(op: str, domain: str = "", version: int = 10**6) -> OpInfo | None:
    """The row in force for an op at a version, None if it has none."""
    return next((r for r in _OPS.get((domain, op), ()) if r.since <= version), None)


def info(view: View) -> OpInfo:
    """The row in force for a view; an empty row for ops without one."""
    return find(view.op, view.domain, view.since) or OpInfo(view.op, view.domain)


def stops(view: View) -> frozenset[int]:
    """Inputs of the view that never carry a message."""
    return _STOPS.get((view.domain, view.op), frozenset())


def operators() -> Iterable[OpInfo]:
    """All rows."""
    return (row for rows in _OPS.values() for row in rows)


def elementwise(
    op: str,
    derivative: Derivative,
    *,
    at_zero: float | None = None,
    degree: float | None = None,
    since: int = 1,
    domain: str = "",
) -> None:
    """An op y = f(x) on each element, given by dy/dx from the context, x and y."""

    def transpose(ctx: Context) -> Messages:
        return ctx.only(0, ctx.c * derivative(ctx, ctx.x, ctx.y))

    register(OpInfo(op, domain, since, transpose, derivative=derivative, at_zero=at_zero, degree=degree))


def zero(*ops: str, domain: str = "") -> None:
    """Ops that carry nothing backwards."""
    for op in ops:
        register(OpInfo(op, domain, vjp=Context.nothing, zero=True))


def stop(op: str, *inputs: int, domain: str = "") -> None:
    """Inputs that carry no message (indices, shapes, sizes)."""
    _STOPS[(domain, op)] = frozenset(inputs)


def vjp(
    op: str,
    *,
    since: int = 1,
    domain: str = "",
    layout: bool = False,
    degree: float | None = None,
    linear: Linear | None = None,
) -> Callable[[Rule], Rule]:
    """Registers the exact transpose of an op."""
    if layout or linear:
        degree = 1.0

    def add(rule: Rule) -> Rule:
        register(OpInfo(op, domain, since, rule, layout=layout, degree=degree, linear=linear))
        return rule

    return add


def relevance(*ops: str) -> Callable[[Rule], Rule]:
    """Registers how LRP treats an op where its kind does not say it."""

    def add(rule: Rule) -> Rule:
        RELEVANCE.update(dict.fromkeys(ops, rule))
        return rule

    return add


def rule(name: str, **parameters: Any) -> Callable[[Rule], Rule]:
    """Registers a rule that composites name, with its parameters and their defaults."""

    def add(function: Rule) -> Rule:
        RULES[name] = function
        PARAMETERS[name] = parameters
        return function

    return add


def method(name: str, **parameters: Any) -> Callable[[Callable[[Any], Mapping[str, Tensor]]], Any]:
    """Registers a way to explain that evaluates a rule set at many points, with its parameters and their defaults."""

    def add(function: Callable[[Any], Mapping[str, Tensor]]) -> Callable[[Any], Mapping[str, Tensor]]:
        METHODS[name] = function
        METHOD_PARAMETERS[name] = parameters
        return function

    return add


def nearest(word: str, known: Iterable[str], what: str) -> RuleError:
    """An error for an unknown name that suggests the nearest known one."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, 1, 0.4)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    return RuleError(f"unknown {what} '{word}'; {hint}")
