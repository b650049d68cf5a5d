"""A cheaper order of a step's nodes: the same values, and the same gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from xaicompile.ir import Builder, Tensor, View
from xaicompile.vjp.blocked import BLOCK, STEEPEST


def pooled_first(views: Sequence[View], end: Tensor) -> list[View]:
    """The views with each max-pool in front of the ReLU that it stands behind, if nothing else reads that.

    A window's maximum goes through the ReLU as its values would. What comes back is the same, too: the first winner of
    a window is the same where it is positive, and where it is not, the ReLU lets nothing through. So the ReLU and its
    mask run on the pool's values alone, and one pool finds these and where they are.
    """
    read = Counter(t.name for v in views for t in (*v.x, *v.captures) if t is not None) + Counter([end.name])
    relus = {v.out().name: v for v in views if v.op == "Relu" and not v.domain and read[v.out().name] == 1}
    found: list[View] = []
    for view in views:
        relu = relus.get(view.inp().name) if is_plain_pool(view) else None
        if relu is None:
            found.append(view)
            continue
        y, between = view.out(), relu.out()
        most = Tensor(between.var, between.builder, y.dtype, y.shape)
        where = f"{between.name}/winners"
        winners = Tensor(gs.Variable(where, np.dtype(np.int64)), y.builder, np.dtype(np.int64), y.shape)
        found.remove(relu)
        found += [view.varied(x=[relu.inp()], y=[most, winners]), relu.varied(x=[most], y=[y])]
    return found


def is_plain_pool(view: View) -> bool:
    """True for a max-pool of which only the values are asked for."""
    values_alone = len([y for y in view.y if y is not None]) == 1
    return view.op == "MaxPool" and not view.domain and values_alone and not view.attr("storage_order")


def sums_in_place(b: Builder) -> None:
    """Lets a convolution that adds a ReLU's output do so in that output's memory, on ONNX Runtime's CPU.

    There a convolution in blocks of channels adds to what it is given where nobody reads that later, else to a copy,
    which one thread makes. The way back reads a ReLU's output later, for its mask. So the mask is made first, and what
    is added is the output times the mask: the same numbers.
    """
    masks = {n.inputs[0].name: n for n in b.nodes if is_mask(n)}
    makers = {y.name: n for n in b.nodes for y in n.outputs}
    for add in [n for n in b.nodes if n.op == "Add"]:
        for i, (skip, other) in enumerate([add.inputs, add.inputs[::-1]]):
            ops = [makers[t.name].op for t in (skip, other) if t.name in makers]
            if ops != ["Relu", "Conv"] or skip.name not in masks:
                continue
            mask, product = masks[skip.name], b.unique(f"{skip.name}/kept")
            add.inputs[i] = gs.Variable(product, skip.dtype, skip.shape)
            made = gs.Node("Mul", name=product, inputs=[skip, mask.outputs[0]], outputs=[add.inputs[i]])
            b.nodes.remove(mask)
            at = b.nodes.index(makers[skip.name]) + 1
            b.nodes[at:at] = [mask, made]
            break


def is_mask(node: gs.Node) -> bool:
    """True for the mask of a ReLU whose output is an image in blocks of channels."""
    if node.op != "HardSigmoid" or node.attrs["alpha"] != STEEPEST or node.attrs["beta"]:
        return False
    shape = node.inputs[0].shape
    return shape is not None and len(shape) == 4 and isinstance(shape[1], int) and shape[1] % BLOCK == 0
