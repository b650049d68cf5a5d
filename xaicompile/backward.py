"""The only reverse loop. Gradient, guided backprop and every LRP rule are this loop with another rule per node.

What flows is the cotangent c; relevance is a*c, taken at the end (spec 1.1). The loop, not the rules, sums at
fan-out, reduces broadcast axes, skips nodes off the path and never asks for a message that nobody needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xaicompile import carry, registry
from xaicompile.errors import Gap, UnsupportedError
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.registry import Absorbed, Context, Message, Messages, Relevance, Rule


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
        terms = [t for t in (self.c, None if self.r is None else carry.as_cotangent(b, x, self.r)) if t is not None]
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
        ctx = Context(b, view, [f.r for f in flows], need, facts, picked.parameters, kept)
        if carry.carries(ctx, picked.rule):
            result.append([None if m is None else Relevance(m) for m in carry.carried(ctx, picked.rule)])
        else:
            read = [carry.value(ctx, i) if f.r is not None else None for i, f in enumerate(flows)]
            g = [f.c if x is None else f.cotangent(b, x) for f, x in zip(flows, read, strict=True)]
            for x, f in zip(read, flows, strict=True):
                if x is not None and f.r is not None:
                    ctx.absorb(lambda x=x, r=f.r: carry.ended(b, x, r))  # type: ignore[misc]
    if any(c is not None for c in g):
        result.append(picked.rule(Context(b, view, g, need, facts, picked.parameters, kept)))
    return result


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
