"""If, Loop and Scan: the reverse loop runs inside the subgraphs, with the rules that the rule set gives their nodes.

The way back through a Loop or a Scan is one of the same kind, from the last step to the first. The node is run once
more to keep every step's states; the steps' nodes are emitted anew inside the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from xaicompile.backward import Flow, Ledger, backward
from xaicompile.carry import ended
from xaicompile.ir import Tensor
from xaicompile.ir.body import Type, described, renamed, stacked
from xaicompile.passes.control import Body
from xaicompile.registry import RELEVANCE, Absorbed, Context, Message, Messages, Relevance, stop, vjp

stop("If", 0)
stop("Loop", 0, 1)


def captures(ctx: Context) -> list[int]:
    """The captured inputs that want a message, each tensor once."""
    first = {x.name: i for i, x in reversed(list(enumerate(ctx.node.x))) if i >= ctx.node.own and x is not None}
    return sorted(i for i in first.values() if ctx.need[i])


def seeds_of(body: Body, given: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Cotangents by the name of the tensor that they reach."""
    terms: dict[str, list[Tensor]] = {}
    for y, c in given:
        terms.setdefault(y.name, []).append(c)
    return {name: body.builder.add_all(cs) for name, cs in terms.items()}


def messages_of(body: Body, seeds: dict[str, Tensor], wrt: Sequence[str], ledger: Ledger | None) -> dict[str, Flow]:
    """Runs the reverse loop over one subgraph."""
    return backward(body.program, body.facts, seeds, wrt, body.pick, ledger=ledger)


@vjp("If")
def branch(ctx: Context) -> Messages:
    """An If on the same condition; each branch runs its nodes anew and then backwards."""
    b, node = ctx.b, ctx.node
    wanted = captures(ctx)
    found: list[list[Flow]] = []
    for body in node.bodies:
        given = [
            (y, body.builder.adopt(c))
            for y, c in zip(body.outputs, ctx.g, strict=True)
            if c is not None and body.facts.on_path(y)
        ]
        arrived = messages_of(body, seeds_of(body, given), [node.inp(i).name for i in wanted], None)
        found.append([arrived[node.inp(i).name] for i in wanted])
    as_relevance = [any(flows[k].r is not None for flows in found) for k in range(len(wanted))]
    graphs = []
    for key, body, flows in zip(("then_branch", "else_branch"), node.bodies, found, strict=True):
        ends = [outcome(body, flow, node.inp(i), r) for i, flow, r in zip(wanted, flows, as_relevance, strict=True)]
        graphs.append((key, body.builder.graph(key, [], body.builder.ends(ends))))
    types: list[Type] = [(node.inp(i).dtype, node.inp(i).shape) for i in wanted]
    made = b.typed("If", [node.inp(0)], types, **dict(graphs))
    result: list[Message] = ctx.nothing()
    for i, t, r in zip(wanted, made, as_relevance, strict=True):
        result[i] = Relevance(t) if r else t
    account(ctx, result)
    return result


def outcome(body: Body, flow: Flow, x: Tensor, as_relevance: bool) -> Tensor:
    """What has arrived at a captured tensor, in the subgraph."""
    b = body.builder
    return flow.relevance(b, b.adopt(x)) if as_relevance else flow.cotangent(b, b.adopt(x))


def account(ctx: Context, messages: Messages) -> None:
    """Enters in the ledger what came in and did not go on."""
    ctx.absorb_difference(messages)
    for m in messages:
        if isinstance(m, Relevance):
            ctx.absorb(lambda m=m: -m.r)  # type: ignore[misc]


@dataclass
class Back:
    """The subgraph of the way back, while it is put together.

    Attributes:
        states: Values handed from step to step: what is given at the start and what each step reads.
        ends: What each step hands on, one for each state.
        per_step: What each step gives out, and the axis and direction along which that is put together.
    """

    body: Body
    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    per_step: list[tuple[Tensor, int, int]] = field(default_factory=list)
    scanned: list[tuple[Tensor, Tensor, int, int]] = field(default_factory=list)

    def state(self, start: Tensor, stem: str, like: Tensor) -> Tensor:
        """One more value handed from step to step."""
        t = self.body.builder.input(stem, like.dtype, like.shape)
        self.states.append((start, t))
        return t

    def step(self, stack: Tensor, axis: int, direction: int, into: Tensor | None = None) -> Tensor:
        """One more value read at every step, along an axis of a stack."""
        shape = None if stack.shape is None else without(stack.shape, axis)
        t = into or self.body.builder.input("step", stack.dtype, shape)
        self.scanned.append((stack, t, axis, direction))
        return t


def without(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """A shape without one axis."""
    at = axis % len(shape)
    return shape[:at] + shape[at + 1 :]


@vjp("Scan")
@vjp("Loop")
def steps(ctx: Context) -> Messages:
    """The steps in reverse order; cotangents of states are handed on, those of captured tensors are summed up."""
    b, node, (body,) = ctx.b, ctx.node, ctx.node.bodies
    back, inner, loop = Back(body), body.builder, ctx.node.op == "Loop"
    first = 2 if loop else 0
    count = node.own - first - int(node.attrs.get("num_scan_inputs", 0))
    before, ends = body.inputs[first : first + count], body.outputs[1:] if loop else body.outputs
    kept: Ledger | None = None if ctx.ledger is None else {}
    result: list[Message] = ctx.nothing()

    given: list[tuple[Tensor, Tensor]] = []
    carried = [k for k in range(count) if body.facts.on_path(before[k])]
    for k in range(count):
        c = ctx.g[k]
        if k in carried:
            start = c if c is not None else b.zeros_like(node.inp(first + k))
            given.append((ends[k], back.state(start, "cotangent", before[k])))
        elif c is not None:
            ctx.absorb(lambda k=k, c=c: ctx.share(node.out(k), c))  # type: ignore[misc]
    for j, end in enumerate(ends[count:]):
        c = ctx.g[count + j]
        if c is not None:
            axis, direction = way(node.attrs, "output", j)
            step = back.step(c, axis, 1 - direction)
            if body.facts.on_path(end):
                given.append((end, step))
            elif kept is not None:
                lost = replace(ctx, b=inner, facts=body.facts).share(end, step)
                kept.setdefault(node.name, []).append(Absorbed(lost, "other"))
    wanted, scans = captures(ctx), range(first + count, node.own)
    summed = [back.state(b.zeros_like(node.inp(i)), "sum", node.inp(i)) for i in wanted]
    reached = [body.inputs[i] for i in scans if ctx.need[i]]
    names = [before[k].name for k in carried] + [t.name for t in reached] + [node.inp(i).name for i in wanted]
    given = [(y, c) for y, c in given if body.facts.on_path(y)]
    with inner.scope(node.name):
        found = messages_of(body, seeds_of(body, given), names, kept)
        for k in carried:
            flow = found[before[k].name]
            back.ends.append(flow.cotangent(inner, before[k]))
            if kept is not None and flow.r is not None:
                kept.setdefault(node.name, []).append(Absorbed(ended(inner, before[k], flow.r), "other"))
        for i, total in zip(wanted, summed, strict=True):
            flow = found[node.inp(i).name]
            back.ends.append(total + outcome(body, flow, node.inp(i), flow.r is not None))
        for i, t in zip([i for i in scans if ctx.need[i]], reached, strict=True):
            axis, direction = way(node.attrs, "input", i - first - count)
            flow = found[t.name]
            back.per_step.append((outcome(body, flow, t, flow.r is not None), axis, 1 - direction))
        amounts = [a for entries in (kept or {}).values() for a in entries]
        back.per_step += [(a.amount, 0, 0) for a in amounts]
        made = emitted(ctx, back)

    for k, total in zip(carried, made, strict=False):
        if ctx.need[first + k]:
            result[first + k] = total
        else:
            ctx.absorb(lambda k=k, total=total: ctx.share(node.inp(first + k), total))  # type: ignore[misc]
    for i, total in zip(wanted, made[len(carried) :], strict=False):
        result[i] = total if found[node.inp(i).name].r is None else Relevance(total)
    rest = made[len(back.states) :]
    for t, i, stack in zip(reached, [i for i in scans if ctx.need[i]], rest, strict=False):
        result[i] = stack if found[t.name].r is None else Relevance(stack)
    for stack, entry in zip(rest[len(reached) :], amounts, strict=True):
        ctx.absorb(lambda stack=stack: b.sum_axes(stack, [0]), entry.kind)  # type: ignore[misc]
    return result


def way(attrs: dict[str, Any], kind: str, j: int) -> tuple[int, int]:
    """Axis and direction of scan input or output j."""
    axes, directions = attrs.get(f"scan_{kind}_axes"), attrs.get(f"scan_{kind}_directions")
    return int(axes[j]) if axes else 0, int(directions[j]) if directions else 0


def emitted(ctx: Context, back: Back) -> tuple[Tensor, ...]:
    """The node of the way back: its final states, then what its steps gave out."""
    node, body, inner = ctx.node, back.body, back.body.builder
    loop = node.op == "Loop"
    ends = inner.ends([*back.ends, *(t for t, _, _ in back.per_step)])
    used = inner.needed(ends)
    first = 2 if loop else 0
    count = node.own - first - int(node.attrs.get("num_scan_inputs", 0))
    saved = [t for t in body.inputs[first : first + count] if t.name in used]
    stacks = history(ctx, [i for i, t in enumerate(body.inputs) if t in saved], loop)
    if loop:
        numbers, stacks = stacks[0], stacks[1:]
        return loop_back(ctx, back, ends, list(zip(stacks, saved, strict=True)), numbers)
    for stack, t in zip(stacks, saved, strict=True):
        back.step(stack, 0, 1, t)
    for i in range(count, node.own):
        if body.inputs[i].name in used or not back.scanned:
            axis, direction = way(node.attrs, "input", i - count)
            back.step(node.inp(i), axis, 1 - direction, body.inputs[i])
    scanned = back.scanned
    graph = inner.graph("back", [*(t for _, t in back.states), *(t for _, t, _, _ in scanned)], ends)
    return ctx.b.typed(
        "Scan",
        [*(start for start, _ in back.states), *(stack for stack, _, _, _ in scanned)],
        types_of(back),
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_axes=[axis for _, _, axis, _ in scanned],
        scan_input_directions=[direction for _, _, _, direction in scanned],
        **output_ways(back),
    )


def output_ways(back: Back) -> dict[str, list[int]]:
    """Axes and directions of a Scan's outputs, if there are any."""
    if not back.per_step:
        return {}
    return {
        "scan_output_axes": [axis for _, axis, _ in back.per_step],
        "scan_output_directions": [direction for _, _, direction in back.per_step],
    }


def types_of(back: Back) -> list[Type]:
    """Types of the outputs of the way back."""
    steps = [stacked((t.dtype, t.shape), axis) for t, axis, _ in back.per_step]
    return [*((t.dtype, t.shape) for _, t in back.states), *steps]


def loop_back(
    ctx: Context, back: Back, ends: list[Tensor], saved: list[tuple[Tensor, Tensor]], numbers: Tensor
) -> tuple[Tensor, ...]:
    """A Loop that counts down; what a step reads is gathered by its number."""
    b, inner, body = ctx.b, back.body.builder, back.body
    length = b.Squeeze(b.dim(numbers, 0), [0])
    step = inner.input("step", np.dtype(np.int64), ())
    condition = inner.input("condition", np.dtype(np.bool_), ())
    number = inner.input("number", np.dtype(np.int64), ())
    for stack, t in [*saved, *((stack, t) for stack, t, _, _ in back.scanned)]:
        inner.define(t, "Gather", inner.adopt(stack), number, axis=0)
    inner.define(body.inputs[0], "Identity", number)
    inner.define(body.inputs[1], "Identity", inner.const(np.asarray(True)))
    inner.define(number, "Sub", inner.adopt(length - 1), step)
    on = inner.ends([inner.const(np.asarray(True))])
    inputs = [step, condition, *(t for _, t in back.states)]
    graph = inner.graph("back", inputs, [*on, *ends])
    yes = b.const(np.asarray(True))
    return b.typed("Loop", [length, yes, *(start for start, _ in back.states)], types_of(back), body=graph)


def history(ctx: Context, saved: list[int], loop: bool) -> list[Tensor]:
    """Runs the node once more and stacks the inputs `saved` of its subgraph, one row for each step.

    A Loop also gives out the numbers of its steps, in front.
    """
    node, body = ctx.node, ctx.node.bodies[0]
    saved = [0, *saved] if loop else saved
    if not saved:
        return []
    captured = {name: t for name, t in zip(node.captured, node.x[node.own :], strict=True) if t is not None}
    graph: onnx.GraphProto = renamed(ctx.b, node.attrs["body"], captured)
    states = node.own - (1 if loop else int(node.attrs["num_scan_inputs"]))
    del graph.output[states:]
    for i in saved:
        name = ctx.b.unique(f"{body.inputs[i].name}/kept")
        graph.node.append(helper.make_node("Identity", [graph.input[i].name], [name]))
        graph.output.append(described(body.inputs[i], name))
    shown = body.outputs[1:states] if loop else body.outputs[:states]
    types: list[Type] = [(t.dtype, t.shape) for t in shown]
    types += [stacked((body.inputs[i].dtype, body.inputs[i].shape), 0) for i in saved]
    attrs = {k: v for k, v in node.attrs.items() if k != "body" and not k.startswith("scan_output")}
    made = ctx.b.typed(node.op, node.x[: node.own], types, body=graph, **attrs)
    return list(made[len(shown) :])


RELEVANCE.update({"If": branch, "Loop": steps, "Scan": steps})
