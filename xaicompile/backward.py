"""The only reverse loop. Gradient, guided backprop and every LRP rule are this loop with another rule per node.

What flows is the cotangent c; relevance is a*c, taken at the end (spec 1.1). The loop, not the rules, sums at
fan-out, reduces broadcast axes, skips nodes off the path and never asks for a message that nobody needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xaicompile import registry
from xaicompile.errors import Gap, UnsupportedError
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.registry import Absorbed, Context, Message, Messages, Relevance, Rule

AFFINE = {"Add", "Sub", "Mul", "Div", "BatchNormalization", "Neg", "Sum"}
ROUNDING = {"Clip", "QuantizeLinear"}  # an input that is quantised keeps its relevance
WINNERS = {"MaxPool", "GlobalMaxPool", "ReduceMax"}  # their outputs are some of their inputs, as these are


@dataclass(frozen=True)
class Picked:
    """The rule for one view, with its parameters."""

    rule: Rule
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """What has arrived at a tensor: a cotangent, relevance, or both."""

    c: Tensor | None = None
    r: Tensor | None = None

    def relevance(self, b: Builder, x: Tensor) -> Tensor:
        """x*c + R, of x's shape; zeros where nothing arrived."""
        terms = [t for t in ((x * self.c) if self.c is not None else None, self.r) if t is not None]
        return held(b, b.add_all(terms)) if terms else b.zeros_like(x)

    def cotangent(self, b: Builder, x: Tensor) -> Tensor:
        """c, with relevance turned into a cotangent; zeros where nothing arrived."""
        terms = [t for t in (self.c, None if self.r is None else as_cotangent(b, x, self.r)) if t is not None]
        return held(b, b.add_all(terms)) if terms else b.zeros_like(x)


Tap = Callable[[Tensor, Flow], Flow]
Ledger = dict[str, list[Absorbed]]


def backward(
    p: Program,
    facts: Facts,
    seeds: Mapping[str, Tensor],
    wrt: Sequence[str],
    pick: Callable[[View], Picked],
    taps: Mapping[str, Tap] | None = None,
    ledger: Ledger | None = None,
) -> dict[str, Flow]:
    """Runs the reverse loop.

    Args:
        p: The program; nodes are emitted through its builder.
        facts: Its facts; a message goes only where `facts.path` says that it can reach an explained input.
        seeds: Cotangent by tensor name, of the tensor's shape.
        wrt: Names of the tensors whose flow is returned; those inside the graph pass it on as well.
        pick: The rule for a view.
        taps: Called with a tensor and what has arrived there, once complete; returns what goes on.
        ledger: Filled with what each view absorbs, by view name.

    Returns:
        What arrived, by the names in `wrt`.
    """
    b = p.builder
    arrived: dict[str, list[Message]] = {name: [seed] for name, seed in seeds.items()}
    found: dict[str, Flow] = {}

    def collect(t: Tensor) -> Flow:
        flow = summed(b, arrived.pop(t.name, []))
        if taps and t.name in taps:
            flow = taps[t.name](t, flow)
        if t.name in wrt:
            found[t.name] = flow
        return flow

    for view in reversed(p.views):
        with b.scope(view.name):
            flows = [collect(y) if y is not None else Flow() for y in view.y]
            if registry.info(view).zero:
                continue
            need = [facts.on_path(x) and i not in registry.stops(view) for i, x in enumerate(view.x)]
            if not any(need) or all(f.c is None and f.r is None for f in flows):
                continue
            picked = pick(view)
            kept: list[Absorbed] | None = None if ledger is None else ledger.setdefault(view.name, [])
            try:
                passed = through(b, view, flows, need, facts, picked, kept)
            except UnsupportedError as error:
                error.gaps = error.gaps or (Gap(view.name, view.op, view.domain, view.since, "no rule", str(error)),)
                raise
            for messages in passed:
                for i, (x, m) in enumerate(zip(view.x, messages, strict=False)):
                    if x is not None and m is not None and need[i]:
                        arrived.setdefault(x.name, []).append(fitted(b, x, m))
    for name in wrt:
        if name not in found:
            with b.scope(name):
                collect(p.tensors[name])
    return found


def through(
    b: Builder,
    view: View,
    flows: Sequence[Flow],
    need: Sequence[bool],
    facts: Facts,
    picked: Picked,
    kept: list[Absorbed] | None,
) -> list[Messages]:
    """The messages of one view: relevance travels as such where it can, all else goes through the picked rule."""
    result: list[Messages] = []
    g = [f.c for f in flows]
    if any(f.r is not None for f in flows):
        if carries_relevance(view, need, picked.rule):
            moved = carried(Context(b, view, [f.r for f in flows], need, facts))
            result.append([None if m is None else Relevance(m) for m in moved])
        else:
            g = [f.c if f.r is None else f.cotangent(b, view.out(i)) for i, f in enumerate(flows)]
            if kept is not None:  # relevance of a value that is 0 is no multiple of it, and ends here
                ends = [(b.Equal(view.out(i), 0.0), f.r) for i, f in enumerate(flows) if f.r is not None]
                kept += [Absorbed(b.where(is_zero, r, 0.0, like=r), "other") for is_zero, r in ends]
    if any(c is not None for c in g):
        result.append(picked.rule(Context(b, view, g, need, facts, picked.parameters, kept)))
    return result


def carries_relevance(view: View, need: Sequence[bool], rule: Rule) -> bool:
    """True where R passes as R: layout ops, casts, maxima that one input wins, and with one data input rounding,
    elementwise affine ops, and activations under the rule that says so."""
    row = registry.info(view)
    if row.layout:
        return True
    if view.domain or sum(need) != 1:
        return False
    if view.op in WINNERS:
        return rule in [registry.RULES[name] for name in ("default", "gradient", "winner")]
    return view.op in AFFINE | ROUNDING or (row.derivative is not None and rule is registry.RULES["pass"])


def carried(ctx: Context) -> list[Tensor | None]:
    """R moved by the transpose of a layout op or a maximum, or kept as it is by another op."""
    if registry.info(ctx.node).layout or ctx.node.op in WINNERS:
        return [m if isinstance(m, Tensor) else None for m in ctx.vjp()]
    return [ctx.c if n else None for n in ctx.need]


def summed(b: Builder, messages: Sequence[Message]) -> Flow:
    """All that arrived at a tensor, one Sum each for cotangents and relevance."""
    c = [m for m in messages if isinstance(m, Tensor)]
    r = [m.r for m in messages if isinstance(m, Relevance)]
    return Flow(total(b, c), total(b, r))


def total(b: Builder, terms: Sequence[Tensor]) -> Tensor | None:
    """Their sum, None for none; in half precision nothing infinite goes on."""
    return None if not terms else terms[0] if len(terms) == 1 else held(b, b.add_all(terms))


def fitted(b: Builder, x: Tensor, m: Tensor | Relevance) -> Message:
    """The message with x's own shape: broadcast axes are summed here and nowhere else."""
    if isinstance(m, Relevance):
        return Relevance(held(b, b.unbroadcast(m.r, x)))
    return held(b, b.unbroadcast(m, x))


def as_cotangent(b: Builder, x: Tensor, r: Tensor) -> Tensor:
    """R/x, 0 where x is 0 (spec 1.9)."""
    is_zero = b.Equal(x, 0.0)
    return b.where(is_zero, 0.0, r / b.where(is_zero, 1.0, x, like=x), like=x)
