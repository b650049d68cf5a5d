"""More float64 operators for the tests, of normalisations and of what samples images.

What is wrong in onnx 1.23's own evaluator:

* ``LpNormalization`` leaves out the absolute value, which shows for p = 1.
* ``GridSample``, and through it ``DeformConv``, rounds coordinates to float32, and moves coordinates to the border even
  where the kernel is cubic, unlike ONNX Runtime and torch; ``AffineGrid`` computes in float32.
* ``CausalConvWithState`` rounds to float32 under an activation; ``Scatter`` and
  ``MaxRoiPool`` are missing.
* ``GroupNormalization`` and ``MeanVarianceNormalization`` are function bodies that mix in float32.
"""

from __future__ import annotations

import math

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_causal_conv_with_state import CausalConvWithState as Plain


class LpNormalization(OpRun):
    def _run(self, x, axis=None, p=None):  # type: ignore[no-untyped-def]
        norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
        return ((x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class GroupNormalization(OpRun):
    def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):  # type: ignore[no-untyped-def]
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(axis=2, keepdims=True)
        n = (centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)).reshape(x.shape)
        scale, bias = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias))
        return ((n * scale + bias).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    def _run(self, x, axes=None):  # type: ignore[no-untyped-def]
        over = tuple(axes or (0, 2, 3))
        centred = x - x.mean(axis=over, keepdims=True)
        return ((centred / (np.sqrt((centred**2).mean(axis=over, keepdims=True)) + 1e-9)).astype(x.dtype),)


def _cubic(d: np.ndarray) -> np.ndarray:
    d, a = np.abs(d), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, np.where(d < 2, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a, 0))


def _mirror(i: int, size: int, centres: bool) -> int:
    """One position, walked back and forth step by step until it is inside."""
    while not 0 <= i < size:
        i = (-i if i < 0 else 2 * (size - 1) - i) if centres else (-1 - i if i < 0 else 2 * size - 1 - i)
    return i


def sampled(image: np.ndarray, at: np.ndarray, mode: str, padding: str, centres: bool) -> float:
    """One value of an image [*size] at one point, in pixels: a sum over every pixel near it."""
    steps = {"nearest": (0, 1), "linear": (0, 2), "cubic": (-1, 3)}[mode]
    base = np.rint(at) if mode == "nearest" else np.floor(at)
    total = 0.0
    for step in np.ndindex(*[steps[1] - steps[0]] * image.ndim):
        place = base + np.asarray(step) + steps[0]
        d = at - place
        weight = 1.0 if mode == "nearest" else float(np.prod(1 - np.abs(d) if mode == "linear" else _cubic(d)))
        where = [int(p) for p in place]
        if padding == "zeros" and not all(0 <= p < n for p, n in zip(where, image.shape, strict=True)):
            continue
        if padding == "border":
            where = [min(max(p, 0), n - 1) for p, n in zip(where, image.shape, strict=True)]
        if padding == "reflection":
            where = [_mirror(p, n, centres) for p, n in zip(where, image.shape, strict=True)]
        total += weight * float(image[tuple(where)])
    return total


class GridSample(OpRun):
    def _run(self, x, grid, mode=None, padding_mode=None, align_corners=None):  # type: ignore[no-untyped-def]
        size, mode = np.asarray(x.shape[2:]), mode.removeprefix("bi")
        at = (grid[..., ::-1] + 1) / 2 * (size - 1) if align_corners else ((grid[..., ::-1] + 1) * size - 1) / 2
        y = np.zeros((*x.shape[:2], *grid.shape[1:-1]), x.dtype)
        for n, c, *place in np.ndindex(*y.shape):
            y[(n, c, *place)] = sampled(x[n, c], at[(n, *place)], mode, padding_mode, bool(align_corners))
        return (y,)


class AffineGrid(OpRun):
    def _run(self, theta, size, align_corners=None):  # type: ignore[no-untyped-def]
        each = [(2 * np.arange(n) / (n - 1) if align_corners else (2 * np.arange(n) + 1) / n) - 1 for n in size[2:]]
        grid = np.meshgrid(*each, indexing="ij")
        points = np.stack([*grid[::-1], np.ones(grid[0].shape)], axis=-1).astype(theta.dtype)
        return (np.einsum("...j,nij->n...i", points, theta),)


class DeformConv(OpRun):
    def _run(  # type: ignore[no-untyped-def]
        self, x, w, offset, b=None, mask=None, dilations=None, group=None, kernel_shape=None, offset_group=None,
        pads=None, strides=None,
    ):  # fmt: skip
        strides, dilations, pads = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
        kernel, og, out = w.shape[2:], offset_group or 1, offset.shape[2:]
        offset = offset.reshape(x.shape[0], og, *kernel, 2, *out)
        mask = np.ones((x.shape[0], og, *kernel, *out)) if mask is None else mask.reshape(-1, og, *kernel, *out)
        seen = np.zeros((*x.shape[:2], *kernel, *out))
        for n, c, p, q, i, j in np.ndindex(*seen.shape):
            g = c // (x.shape[1] // og)
            plain = np.asarray([i, j]) * strides - pads[:2] + np.asarray([p, q]) * dilations
            value = sampled(x[n, c], plain + offset[n, g, p, q, :, i, j], "linear", "zeros", True)
            seen[n, c, p, q, i, j] = value * mask[n, g, p, q, i, j]
        split = seen.reshape(x.shape[0], group or 1, w.shape[1], *kernel, *out)
        weight = w.reshape(group or 1, -1, *w.shape[1:])
        y = np.einsum("ngcpqij,gocpq->ngoij", split, weight).reshape(x.shape[0], w.shape[0], *out)
        return ((y if b is None else y + b.reshape(-1, 1, 1)).astype(x.dtype),)


class MaxUnpool(OpRun):
    """The indices are those of the output, as ONNX Runtime has it, also where its shape is given."""

    def _run(self, x, indices, shape=None, kernel_shape=None, pads=None, strides=None):  # type: ignore[no-untyped-def]
        if shape is None:
            pads, strides, n = pads or [0] * 2 * len(kernel_shape), strides or [1] * len(kernel_shape), x.ndim - 2
            spatial = [(x.shape[2 + i] - 1) * strides[i] + kernel_shape[i] - pads[i] - pads[n + i] for i in range(n)]
            shape = [*x.shape[:2], *spatial]
        y = np.zeros(int(np.prod(shape)), x.dtype)
        y[indices.reshape(-1)] = x.reshape(-1)
        return (y.reshape(shape),)


class MaxRoiPool(OpRun):
    """What ONNX Runtime computes: boxes in whole pixels, both ends inside; 0 for a bin that lies outside."""

    def _run(self, x, boxes, pooled_shape=None, spatial_scale=None):  # type: ignore[no-untyped-def]
        y = np.zeros((len(boxes), x.shape[1], *pooled_shape), x.dtype)
        for r, box in enumerate(boxes):
            whole = [math.floor(abs(v) * spatial_scale + 0.5) * (1 if v > 0 else -1) for v in box[1:]]
            for place in np.ndindex(*pooled_shape):
                part = x[int(box[0])]
                for axis in (1, 0):  # x first, in the order of the corners
                    low, high = whole[1 - axis], whole[3 - axis]
                    step = max(high - low + 1, 1) / pooled_shape[axis]
                    first, last = math.floor(place[axis] * step) + low, math.ceil((place[axis] + 1) * step) + low
                    part = part.take(range(max(first, 0), max(min(last, part.shape[axis + 1]), 0)), axis + 1)
                if part.size:
                    y[(r, slice(None), *place)] = part.max(axis=(1, 2))
        return (y,)


class Scatter(OpRun):
    """What ScatterElements was called before opset 11, which the evaluator has not."""

    def _run(self, x, indices, updates, axis=None):  # type: ignore[no-untyped-def]
        y, places = x.copy(), list(np.indices(indices.shape))
        places[axis or 0] = indices
        y[tuple(places)] = updates
        return (y,)


class CausalConvWithState(Plain):
    def _run(self, *x, activation=None, **attrs):  # type: ignore[no-untyped-def]
        y, state = super()._run(*x, activation="none", **attrs)
        return (y if activation in (None, "none") else y / (1 + np.exp(-y))), state


MORE_OPS: list[type[OpRun]] = [
    AffineGrid,
    CausalConvWithState,
    DeformConv,
    LpNormalization,
    GroupNormalization,
    MeanVarianceNormalization,
    GridSample,
    MaxRoiPool,
    MaxUnpool,
    Scatter,
]
