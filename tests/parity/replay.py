"""A small interpreter of ONNX graphs in torch, in float64: an executor that is independent of ONNX Runtime.

ONNX Runtime has no float64 convolution on the CPU and ``onnx.reference`` takes minutes for a whole network, so the
exact comparisons of whole models run here. Everything is ordinary torch, so autograd works through a replay too.
Nothing here imports xaicompile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from .replay_ops import OPS, Attributes, to_tensor


def replay(
    model: onnx.ModelProto,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str] | None = None,
    kinks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a model in float64 torch.

    Args:
        model: The model; its float constants are converted to float64.
        inputs: The graph's inputs by name; an initializer of the same name is overridden.
        outputs: The tensors to return, by default the graph's outputs.
        kinks: On which side of its kink every element of a piecewise linear op is to be taken to be, by the name of
            the op's output: a mask for Relu and Clip, flat indices of the winners for MaxPool.

    Returns:
        The tensors by name.
    """
    graph = model.graph
    wanted = list(outputs) if outputs is not None else [o.name for o in graph.output]
    values: dict[str, Any] = {"": None}
    values |= {i.name: to_tensor(i) for i in graph.initializer if i.name not in inputs}
    values |= {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    uses = Counter(name for node in graph.node for name in (*node.input, *_captured(node)))
    uses.update(wanted)
    for node in graph.node:
        if node.op_type not in OPS and node.op_type != "Scan":
            raise NotImplementedError(f"replay has no row for {node.op_type} ({node.name!r})")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes["_outputs"] = len(node.output)
        operands = [values[name] for name in node.input]
        if node.op_type == "Scan":
            results: Any = _scan(attributes, operands, values)
        elif kinks and node.output[0] in kinks:
            results = _on_side(node.op_type, operands, attributes, kinks[node.output[0]])
        else:
            results = OPS[node.op_type](attributes, operands)
        for name, value in zip(node.output, results if isinstance(results, tuple | list) else (results,), strict=False):
            values[name] = value
        for name in (*node.input, *_captured(node)):
            uses[name] -= 1
            if name and not uses[name]:
                values.pop(name, None)
    return {name: values[name] for name in wanted}


def _captured(node: onnx.NodeProto) -> list[str]:
    """What a Scan's body reads from the graph around."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [name for body in bodies for inner in body.node for name in (*inner.input, *_captured(inner))]


def _scan(a: Attributes, x: Sequence[Any], around: Mapping[str, Any]) -> list[Tensor]:
    """The states after the last step; a body that gives out nothing at each step, along axis 0."""
    body, count = a["body"], len(x) - a["num_scan_inputs"]
    states, names = list(x[:count]), [i.name for i in body.input]
    if len(body.output) != count:
        raise NotImplementedError("Scan with outputs at each step")
    read = {name for node in body.node for name in (*node.input, *_captured(node))} - set(names)
    outer = {name: around[name] for name in read if name in around and around[name] is not None}
    model = onnx.ModelProto(graph=body)
    for step in zip(*x[count:], strict=True):
        states = list(replay(model, {**outer, **dict(zip(names, [*states, *step], strict=True))}).values())
    return states


def _on_side(op_type: str, x: Sequence[Any], a: Attributes, side: Tensor) -> Any:
    """A piecewise linear op on the given side of its kinks."""
    if op_type == "MaxPool":
        return x[0].flatten()[side]
    if op_type == "Relu":
        return x[0] * side
    return torch.where(side, x[0], OPS[op_type](a, x).detach())
