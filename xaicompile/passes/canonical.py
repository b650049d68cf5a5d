"""Canonical form as a reading of the forward graph: runs of nodes become one view, no node is changed.

Identity and Dropout are seen through; what follows a linear op and is affine per output channel (BatchNormalization,
Mul, Div, Add, Sub with constants) is read as part of it, with folded weights that are node chains on the original
initializers (spec section 2: fold first, always); activations and LayerNormalization written out in several nodes
become one op (spec section 6).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.passes import patterns
from xaicompile.registry import info
from xaicompile.vjp.norm import batch_norm_affine

AFFINE = {"Add", "Sub", "Mul", "Div", "BatchNormalization"}


def run(p: Program, ends: str | Collection[str], layers: Sequence[str] = ()) -> bool:
    """Reads patterns as views and returns whether anything was read.

    Args:
        ends: Name of the explained tensor, or names of a subgraph's outputs; they stay visible.
        layers: Names of tensors whose relevance is wanted. They don't change what is read as one op, since that
            would change the explanation; `p.hidden` says which tensors lie inside a view.
    """
    made_by = {y.name: v.name for v in p.views for y in v.y if y is not None}
    kept = {ends} if isinstance(ends, str) else set(ends)
    changed = see_through(p, {*kept, *layers})
    changed |= patterns.run(p, kept)
    changed |= fold_affine(p, kept)
    visible = {y.name for v in p.views for y in v.y if y is not None}
    reads = {node: v for v in p.views for node in v.nodes}
    p.hidden = {t: reads[node] for t, node in made_by.items() if t not in visible and node in reads}
    return changed


def see_through(p: Program, keep: Collection[str]) -> bool:
    """Lets readers of an Identity's or an idle Dropout's output read its input."""
    source: dict[str, Tensor] = {}
    rest = []
    for view in p.views:
        view.x = [source.get(x.name, x) if x is not None else None for x in view.x]
        x, y = (view.x[0] if view.x else None), (view.y[0] if view.y else None)
        if is_identity(view) and x is not None and y is not None and y.name not in keep:
            source[y.name] = x
        else:
            rest.append(view)
    captured, kept = {t.name for view in rest for t in view.captures}, set(rest)
    p.views = [v for v in p.views if v in kept or any(y and y.name in captured for y in v.y)]
    return bool(source)


def is_identity(view: View) -> bool:
    """True for Identity, and for Dropout outside training whose mask nobody asked for."""
    if view.domain or view.op not in ("Identity", "Dropout"):
        return False
    if view.op == "Identity":
        return True
    training = view.x[2] if view.has(2) else None
    idle = training is None or (training.value is not None and not bool(training.value.reshape(-1)[0]))
    return idle and not any(y is not None for y in view.y[1:])


def fold_affine(p: Program, keep: Collection[str]) -> bool:
    """Reads per-channel affine ops behind a linear op as part of it."""
    readers = p.consumers()
    gone: set[View] = set()
    changed = False
    for i, view in enumerate(p.views):
        if view in gone or not foldable(view):
            continue
        folding = Folding(p.builder, view)
        end = view
        while len(readers[end.out().name]) == 1 and end.out().name not in keep:
            following = readers[end.out().name][0]
            with p.builder.scope(view.name):
                if not folding.take(following, end.out()):
                    break
            gone.add(end)
            end = following
        if end is not view:
            with p.builder.scope(view.name):
                made = folding.view(end)
            p.views[p.views.index(end, i)] = made
            gone.discard(end)
            changed = True
    p.views = [v for v in p.views if v not in gone]
    return changed


def foldable(view: View) -> bool:
    """True for a linear op with a bias whose weight is a constant on its usual side and whose data is not."""
    at = info(view).linear
    if view.domain or at is None or at.weight is None or at.bias is None:
        return False
    if not view.has(at.weight) or not view.has(at.data):
        return False
    weight, data = view.inp(at.weight), view.inp(at.data)
    bias_ok = not view.has(at.bias) or view.inp(at.bias).constant
    return weight.constant and not data.constant and weight.static is not None and len(weight.static) >= 2 and bias_ok


@dataclass
class Folding:
    """A linear view z = x W + b on the way to x (W s) + (b s + t)."""

    b: Builder
    start: View
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        self.nodes = self.start.nodes
        self.bias = self.start.x[2] if self.start.has(2) else None
        if self.bias is not None and self.start.op == "Gemm":
            beta = float(self.start.attr("beta"))
            self.bias = self.bias if beta == 1 else self.bias * beta

    @property
    def channels(self) -> int | None:
        """Number of output channels."""
        w = self.start.inp(1).static
        assert w is not None
        if self.start.op == "Conv":
            return w[0]
        if self.start.op == "ConvTranspose":
            return w[1] if int(self.start.attr("group")) == 1 else None
        return w[0] if self.start.op == "Gemm" and int(self.start.attr("transB")) else w[-1]

    @property
    def channel_axis(self) -> int:
        """The channels' axis in z, counted from the back."""
        rank = self.start.out().rank or 2
        return 1 - rank if self.start.op in ("Conv", "ConvTranspose") else -1

    def take(self, view: View, z: Tensor) -> bool:
        """Folds one more node that reads z, if it is affine per channel with constants."""
        if view.domain or view.op not in AFFINE:
            return False
        if view.op == "BatchNormalization":
            if not all(view.inp(i).constant for i in range(1, 5)) or self.channel_axis != 1 - (z.rank or 0):
                return False
            if self.channels is None or any(view.y[1:]) or view.attr("training_mode"):
                return False
            self.multiply(batch_norm_affine(self.b, view)[0])
            self.add(batch_norm_affine(self.b, view)[1])
        else:
            left = view.x[0] is z
            other = view.inp(1 if left else 0)
            v = self.vector(other, z) if other is not z and other.constant else None
            if v is None or (view.op == "Div" and not left):
                return False
            if view.op in ("Mul", "Div"):
                self.multiply(v if view.op == "Mul" else 1.0 / v)
            elif view.op == "Sub" and not left:
                self.multiply(self.b.const(-np.ones(1, v.dtype)))
                self.add(v)
            else:
                self.add(v if view.op == "Add" else -v)
        self.nodes = (*self.nodes, *view.nodes)
        return True

    def vector(self, t: Tensor, z: Tensor) -> Tensor | None:
        """A constant as a [channels] vector or a scalar, if it is the same along every other axis of z."""
        if t.static is None or z.rank is None or len(t.static) > z.rank or t.dtype != z.dtype:
            return None
        wide = {i - len(t.static): n for i, n in enumerate(t.static) if n != 1}
        if not wide:
            return self.b.Reshape(t, [1]) if t.static != (1,) else t
        if set(wide) != {self.channel_axis} or self.channels is None or wide[self.channel_axis] != self.channels:
            return None
        return self.b.Reshape(t, [-1]) if len(t.static) != 1 else t

    def multiply(self, v: Tensor) -> None:
        """z -> z v."""
        self.scale = v if self.scale is None else self.scale * v
        self.bias = None if self.bias is None else self.bias * v

    def add(self, v: Tensor) -> None:
        """z -> z + v."""
        self.bias = v if self.bias is None else self.bias + v

    def view(self, end: View) -> View:
        """The folded view; its output is that of the last node read."""
        view, weight = self.start, self.start.inp(1)
        attrs = dict(view.attrs)
        if self.scale is not None:
            weight = weight * self.along_output(self.scale, weight)
        bias = self.bias
        if bias is not None and view.op in ("Conv", "ConvTranspose"):
            full = self.channels
            if full is not None and bias.static != (full,):
                bias = self.b.op("Expand", bias, [full], shape=(full,))
        if view.op == "Gemm":
            attrs["beta"] = 1.0
        return view.varied(x=[view.x[0], weight, bias], y=[end.out()], attrs=attrs, nodes=self.nodes)

    def along_output(self, v: Tensor, weight: Tensor) -> Tensor:
        """A [channels] vector shaped to broadcast along the weight's output axis."""
        if v.static == (1,):
            return v
        rank = len(weight.static or ())
        if self.start.op == "Conv":
            return self.b.Reshape(v, [-1] + [1] * (rank - 1))
        if self.start.op == "ConvTranspose":
            return self.b.Reshape(v, [-1] + [1] * (rank - 2))
        return self.b.Reshape(v, [-1, 1]) if self.start.op == "Gemm" and int(self.start.attr("transB")) else v
