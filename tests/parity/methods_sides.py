"""Methods that average gradients, in float64 on the side of every kink that ONNX Runtime's float32 takes.

A gradient jumps where a ReLU's input is 0 up to rounding, and at twenty points on a path some are. As in kinks.py the
sides are read from ONNX Runtime's own run of the emitted model: from its loop, one step after the other. A run of the
source model at the same points does not do, since float32 rounds otherwise there: the emitted path begins behind the
first affine ops, and what ONNX Runtime fuses in a loop is not what it fuses outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from xaicompile.methods.path import quadrature

from . import kinks, measure
from .methods_peers import Sample, noise
from .replay import replay

Combined = Callable[[Sequence[Tensor]], Tensor]


def walk(rule: str, given: dict[str, Any], s: Sample) -> tuple[list[Tensor], Combined]:
    """The float32 points of our steps, and the map in float64 from the gradient at each."""
    s = s if rule == "shap-gradient" or "baseline" in given else replace(s, base=torch.zeros_like(s.x))
    x, base = s.x.double(), s.base.double()
    if rule == "gradient":
        return [s.x], lambda g: g[0]
    if rule == "shap-gradient":
        rng = np.random.default_rng(0)
        chosen, where = rng.integers(0, len(s.base), given["samples"]), rng.uniform(size=given["samples"])
        points = [s.base[b] + (s.x - s.base[b]) * np.float32(t) for b, t in zip(chosen, where, strict=True)]
        return points, lambda g: torch.stack([(x - base[b]) * v for b, v in zip(chosen, g, strict=True)]).mean(0)
    t, w = quadrature(given["quadrature"] if rule == "integrated-gradients" else "midpoint", given.get("steps", 1))
    if rule == "integrated-gradients":
        points = [s.base + (s.x - s.base) * np.float32(a) for a in t]
        return points, lambda g: (x - base) * sum(b * v for b, v in zip(w, g, strict=True))
    width: Any = given["sigma"]
    if given["noise"] == "relative":
        axes = tuple(range(1, s.x.dim()))
        width = (s.x.amax(axes, keepdim=True) - s.x.amin(axes, keepdim=True)) * width
    at = [s.x + n * width for n in noise(s.x, given["samples"])]
    if rule == "smooth-integrated-gradients":
        points = [s.base + (a - s.base) * np.float32(b) for a in at for b in t]
        parts = [(a.double() - base) * b / len(at) for a in at for b in w]
        return points, lambda g: torch.stack([p * v for p, v in zip(parts, g, strict=True)]).sum(0)
    ends: dict[str, Combined] = {
        "smoothgrad": lambda g: torch.stack(list(g)).mean(0),
        "gradient-squared": lambda g: (torch.stack(list(g)) ** 2).mean(0),
        "vargrad": lambda g: torch.stack(list(g)).var(0, correction=0),
    }
    return at, ends[rule]


def on_side(
    made: onnx.ModelProto,
    feed: Mapping[str, Tensor],
    double: onnx.ModelProto,
    rule: str,
    given: dict[str, Any],
    s: Sample,
) -> tuple[np.ndarray, int]:
    """The map, and the number of kinks that float64 takes on the other side.

    Args:
        made: The emitted model in float32.
        feed: What it is fed.
        double: The source model in float64.
        rule: Our rule set.
        given: Its parameters.
        s: In float32.
    """
    points, combined = walk(rule, given, s)
    seen = at_kinks(made, feed, double, len(points))
    found = [gradient(double, point, s.target, values) for point, values in zip(points, seen, strict=True)]
    return combined([slope for slope, _ in found]).numpy(), sum(flips for _, flips in found)


def kinked(model: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes with kinks on the way forward; a max-pool that gives indices stands on the way back."""
    return [n for n in model.node if n.op_type in kinks.KINKED and len(n.output) == 1]


def read_at(node: onnx.NodeProto) -> str:
    """The tensor that tells the sides of a node."""
    return node.input[0] if node.op_type == "MaxPool" else node.output[0]


def at_kinks(
    made: onnx.ModelProto, feed: Mapping[str, Tensor], source: onnx.ModelProto, count: int
) -> list[dict[str, Tensor]]:
    """What ONNX Runtime finds at the kinks of each point, by the source model's names.

    The loop runs through the source's ops in the source's order, so that the kinks of one are those of the other.
    """
    made = onnx.ModelProto.FromString(made.SerializeToString())
    loops = [n for n in made.graph.node if n.op_type == "Scan"]
    graph = next(a.g for a in loops[0].attribute if a.name == "body") if loops else made.graph
    inside, outside = kinked(graph), kinked(source.graph)
    assert [n.op_type for n in inside] == [n.op_type for n in outside]
    tapped = {t: f"tapped_{i}" for i, t in enumerate(dict.fromkeys(read_at(n) for n in inside))}
    if loops:
        for tensor, name in tapped.items():
            graph.node.append(onnx.helper.make_node("Identity", [tensor], [f"in_loop_{name}"]))
            graph.output.append(onnx.ValueInfoProto(name=f"in_loop_{name}"))
            loops[0].output.append(name)
    else:
        tapped = {t: t for t in tapped}
    runtime = measure.session(kinks.with_outputs(made, list(tapped.values())))
    values = measure.run_ort(runtime, {k: v.numpy() for k, v in feed.items()})
    batch, found = len(feed["x"]), dict[str, Tensor]()
    for a, b in zip(inside, outside, strict=True):
        value = torch.from_numpy(values[tapped[read_at(a)]]).double()
        found[read_at(b)] = value.reshape(count, batch, *value.shape[2 if loops else 1 :])
    return [{name: value[i] for name, value in found.items()} for i in range(count)]


def gradient(double: onnx.ModelProto, point: Tensor, target: Tensor, seen: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The gradient in float64 on the sides that were seen at a point, and how many are not float64's own."""
    nodes = kinked(double.graph)
    output, leaf = double.graph.output[0].name, point.double().requires_grad_()
    with torch.no_grad():
        calm = replay(double, {"x": point}, sorted({read_at(n) for n in nodes}))
    sides = {n.output[0]: kinks._side(n, seen) for n in nodes}
    flips = sum(int((sides[n.output[0]] != kinks._side(n, calm)).sum()) for n in nodes)
    value = replay(double, {"x": leaf}, [output], sides)[output]
    (slope,) = torch.autograd.grad(value.gather(1, target[:, None]).sum(), leaf)
    return slope, flips
