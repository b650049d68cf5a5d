"""Ops outside the standard domain, read as the standard ops that they compute.

A body is a few lines that emit those ops beside the node, as a rule does; what it asks for is recorded as views, with
the node's own outputs in place of what the body emits for them. The node itself stays for the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xaicompile.facts import fold
from xaicompile.ir import Program, Tensor, View
from xaicompile.ir.body import BODIES, Body, types_of
from xaicompile.ir.build import merged
from xaicompile.ir.graph import Shape
from xaicompile.ir.model import CONTROL
from xaicompile.ir.types import MISREAD

PLAIN = (int, float, str, bytes, list, tuple)


def body(domain: str, *ops: str) -> Callable[[Body], Body]:
    """Registers the body of an op: its outputs, or None for a variation that can't be written out."""

    def add(function: Body) -> Body:
        BODIES.update({(domain, op): function for op in ops})
        return function

    return add


class Recorder:
    """Turns what a body emitted into views, each tensor made by one view.

    Attributes:
        own: The node's own output, by the name of the tensor that its body emitted for it.
    """

    def __init__(self, p: Program) -> None:
        self.p = p
        self.own: dict[str, Tensor] = {}
        self._made: set[str] = set()

    def read(self, t: Tensor | None) -> Tensor | None:
        """The tensor that views read for t."""
        return None if t is None else self.own.get(t.name, t)

    def views(self, node: View, recorded: Sequence[View], results: Sequence[Tensor | None] = ()) -> list[View]:
        """The recorded views that are new and depend on data; `results` are what they make of the node's outputs."""
        fresh = []
        for view in recorded:
            fold(view)
            names = {y.name for y in view.y if y is not None}
            if not names <= self._made and not all(y is None or y.constant for y in view.y):
                self._made |= names
                fresh.append(view)
        made = {y.name for view in fresh for y in view.y if y is not None}
        for t, y in zip(results, node.y, strict=False):
            if t is None or y is None or t is y:
                continue
            y.dtype, y.shape = y.dtype or t.dtype, merged(t.shape, y.shape)  # what is computed, not what is stated
            if t.constant:
                y.constant, y.value = True, t.value
            elif t.name in made and t.name not in self.own:
                self.own[t.name] = y
            else:
                fresh.append(View("Identity", [t], [y], since=self.p.opset))
        for i, view in enumerate(fresh):
            view.x, view.y = [self.read(t) for t in view.x], [self.read(t) for t in view.y]
            view.name, view.nodes = f"{node.name}/{view.op}_{i}", node.nodes
        return fresh


def run(p: Program) -> bool:
    """Replaces every view that has a body by the views of that body. Returns whether there was any."""
    recorder, b = Recorder(p), p.builder
    views: list[View] = []
    changed = False
    for view in p.views:
        infer(p, view)
        written = BODIES.get((view.domain, view.op))
        results = None
        if written is not None:
            with b.scope(view.name), b.recorded() as recorded:
                results = written(b, view)
        if results is None:
            views.append(view)
        else:
            views += recorder.views(view, recorded, results)
            changed = True
    p.views = views
    return changed


def infer(p: Program, view: View) -> None:
    """Types what shape inference has left without a type, since it knows nothing of the ops before it.

    Also the model's outputs, whose stated shapes may be wrong: runtimes do not mind.
    """
    stated = {t.name for t in p.outputs}
    lacking = [y for y in view.y if y is not None and (y.dtype is None or y.shape is None or y.name in stated)]
    plain = all(isinstance(v, PLAIN) for v in view.attrs.values())
    if not lacking or view.domain or not (plain or view.op in CONTROL):
        return
    if any(x is not None and x.dtype is None for x in view.x):
        return
    try:
        if plain:
            found = p.builder.infer(view.op, len(view.y), view.x, {**MISREAD.get(view.op, {}), **view.attrs})
        else:
            captured = {name: t for name, t in zip(view.captured, view.x[view.own :], strict=True) if t is not None}
            found = types_of(p.builder, view.op, view.attrs, view.x[: view.own], captured)
    except Exception:  # what can't be inferred stays unknown
        return
    for y, (dtype, shape) in zip(view.y, found, strict=True):
        if y is not None:
            y.dtype, y.shape = y.dtype or dtype, undisputed(shape, y.shape)


def undisputed(computed: Shape | None, stated: Shape | None) -> Shape | None:
    """What is known of a shape; nothing of sizes in which the two differ, since inference may be wrong as well."""
    both = merged(computed, stated)
    if both is None or computed is None or stated is None or len(computed) != len(stated):
        return both
    pairs = zip(computed, stated, both, strict=True)
    return tuple(None if isinstance(a, int) and isinstance(b, int) and a != b else c for a, b, c in pairs)
