"""Methods that average gradients, in float64 on the side of every kink that ONNX Runtime's float32 takes.

A gradient jumps where a ReLU's input is 0 up to rounding, and at twenty points on a path some are. As in kinks.py the
sides are read from ONNX Runtime's own run, at the very float32 points that the emitted model steps through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    name: str, single: onnx.ModelProto, double: onnx.ModelProto, rule: str, given: dict[str, Any], s: Sample
) -> tuple[np.ndarray, int]:
    """The map, and the number of kinks that float64 takes on the other side.

    Args:
        name: Of the model.
        single: The source model in float32.
        double: The source model in float64.
        rule: Our rule set.
        given: Its parameters.
        s: In float32.
    """
    points, combined = walk(rule, given, s)
    found = [gradient(name, single, double, point, s.target) for point in points]
    return combined([slope for slope, _ in found]).numpy(), sum(flips for _, flips in found)


SEEN: dict[tuple[str, bytes], tuple[Tensor, int]] = {}  # several methods go through the same points


def gradient(
    name: str, single: onnx.ModelProto, double: onnx.ModelProto, point: Tensor, target: Tensor
) -> tuple[Tensor, int]:
    """The gradient in float64 on the sides that ONNX Runtime takes at a point, and how many are not float64's own."""
    key = (name, point.numpy().tobytes())
    if key in SEEN:
        return SEEN[key]
    nodes = [n for n in double.graph.node if n.op_type in kinks.KINKED]
    watched = sorted({t for n in nodes for t in (n.output[0], *([n.input[0]] if n.op_type == "MaxPool" else []))})
    runtime = measure.session(kinks.with_outputs(single, watched))
    seen = {k: torch.from_numpy(v).double() for k, v in measure.run_ort(runtime, {"x": point.numpy()}).items()}
    output, leaf = double.graph.output[0].name, point.double().requires_grad_()
    with torch.no_grad():
        calm = replay(double, {"x": point}, watched)
    sides = {n.output[0]: kinks._side(n, seen) for n in nodes}
    flips = sum(int((sides[n.output[0]] != kinks._side(n, calm)).sum()) for n in nodes)
    value = replay(double, {"x": leaf}, [output], sides)[output]
    (slope,) = torch.autograd.grad(value.gather(1, target[:, None]).sum(), leaf)
    SEEN[key] = slope, flips
    return SEEN[key]
