"""Float64 operators for the tests, for where ``onnx.reference`` is wrong, imprecise, missing or too slow.

What is wrong in onnx 1.23's own evaluator (each seen against ONNX Runtime, see ``test_reference_ops.py``):

* ``ConvTranspose`` raises for more than one group; ``Conv`` and the pools are loops in Python, minutes for one image.
* the pools put half of the padding that ``ceil_mode`` adds in front of the image, ignore dilations under ``auto_pad``,
  and ``MaxPool`` numbers its ``Indices`` wrongly for some pads.
* ``LRN`` loops over the batch where it means the channels.
* ``GlobalMaxPool`` reduces the wrong axes unless the input has four dimensions; ``GlobalLpPool`` does not exist.
* ``Pad`` refuses negative pads (they crop); ``GatherElements`` refuses negative indices and indices of a smaller shape.
* ``Erf``, and with it ``Gelu``, computes in float32 whatever the input type is.
* ``Softmax`` below opset 13 does not flatten; ``BatchNormalization`` below opset 14 takes the batch's statistics.
* ``Mean`` adds in place, so a first operand that has to be broadcast raises.

Every class is named after the operator it replaces: pass ``NEW_OPS`` as ``new_ops=``, or use ``evaluator``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests import reference_recurrent as recurrent
from tests.reference_more import MORE_OPS

_erf = np.vectorize(math.erf, otypes=["d"])


def spatial_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """Returns the padding before and after each spatial axis, ``auto_pad`` resolved."""
    rank = len(size)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
        return result
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * rank
    return [(pads[i], pads[rank + i]) for i in range(rank)]


def windows(
    x: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
    fill: float,
    ceil_mode: bool = False,
) -> np.ndarray:
    """Returns the windows of ``x`` [N, C, *size] as [N, C, *out, *kernel]; what ``ceil_mode`` adds is at the end."""
    width, out = [(0, 0), (0, 0)], []
    for n, k, s, d, (begin, end) in zip(x.shape[2:], kernel, strides, dilations, pads, strict=True):
        reach = d * (k - 1) + 1
        room = n + begin + end - reach
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + begin:  # a window must start before the image ends
            count -= 1
        out.append(slice(0, count))
        width.append((begin, max(end, (count - 1) * s + reach - n - begin)))
    padded = np.pad(x, width, constant_values=fill)
    reach_all = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, reach_all, axis=tuple(range(2, x.ndim)))
    step, inner = [slice(None, None, s) for s in strides], [slice(None, None, d) for d in dilations]
    return view[(slice(None), slice(None), *step, *inner)][(slice(None), slice(None), *out)]


def _defaults(rank: int, strides: Any, dilations: Any) -> tuple[list[int], list[int]]:
    return list(strides or [1] * rank), list(dilations or [1] * rank)


class Conv(OpRun):
    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None
    ):
        rank = x.ndim - 2
        strides, dilations = _defaults(rank, strides, dilations)
        kernel, group = w.shape[2:], group or 1
        pad = spatial_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad or "NOTSET")
        view = windows(x, kernel, strides, dilations, pad, 0.0)
        n, out = x.shape[0], view.shape[2 : 2 + rank]
        # [N, g, C/g, *out, *k] x [g, M/g, C/g, *k]
        view = view.reshape(n, group, x.shape[1] // group, math.prod(out), math.prod(kernel))
        weight = w.reshape(group, w.shape[0] // group, w.shape[1], math.prod(kernel))
        y = np.einsum("ngcok,gmck->ngmo", view, weight, optimize=True).reshape(n, w.shape[0], *out)
        if b is not None:
            y = y + b.reshape(-1, *[1] * rank)
        return (y.astype(x.dtype),)


class ConvTranspose(OpRun):
    def _run(  # type: ignore[no-untyped-def]
        self,
        x,
        w,
        b=None,
        auto_pad=None,
        dilations=None,
        group=None,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        rank = x.ndim - 2
        strides, dilations = _defaults(rank, strides, dilations)
        extra, group = list(output_padding or [0] * rank), group or 1
        full = [
            (n - 1) * s + d * (k - 1) + 1 + e
            for n, s, d, k, e in zip(x.shape[2:], strides, dilations, w.shape[2:], extra, strict=True)
        ]
        if output_shape is not None:  # more than there is: zeros behind
            full = [max(f, o) for f, o in zip(full, output_shape[-rank:], strict=True)]
        pad = self._pads(full, x.shape[2:], strides, pads, auto_pad or "NOTSET", output_shape)
        n, channels = x.shape[0], w.shape[1] * group
        xg = x.reshape(n, group, x.shape[1] // group, *x.shape[2:])
        wg = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        y = np.zeros((n, channels, *full), dtype=np.result_type(x, w))
        for tap in np.ndindex(*w.shape[2:]):
            part = np.einsum("ngc...,gcm->ngm...", xg, wg[(slice(None), slice(None), slice(None), *tap)])
            where = [
                slice(t * d, t * d + (size - 1) * s + 1, s)
                for t, d, size, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
            ]
            y[(slice(None), slice(None), *where)] += part.reshape(n, channels, *x.shape[2:])
        y = y[(slice(None), slice(None), *[slice(a, f - c) for f, (a, c) in zip(full, pad, strict=True)])]
        if b is not None:
            y = y + b.reshape(-1, *[1] * rank)
        return (y.astype(x.dtype),)

    @staticmethod
    def _pads(full, size, strides, pads, auto_pad, output_shape):  # type: ignore[no-untyped-def]
        rank = len(full)
        if output_shape is None and auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return [(0, 0)] * rank if not pads else [(pads[i], pads[rank + i]) for i in range(rank)]
        wanted = output_shape or [n * s for n, s in zip(size, strides, strict=True)]
        result = []
        for f, o in zip(full, wanted, strict=True):
            total = max(0, f - o)
            small, large = total // 2, total - total // 2
            result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
        return result


def _pool(x: np.ndarray, fill: float, attrs: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Returns the windows [N, C, *out, elements] of a pooling node and its spatial rank."""
    kernel = list(attrs["kernel_shape"])
    strides, dilations = _defaults(len(kernel), attrs.get("strides"), attrs.get("dilations"))
    auto_pad = attrs.get("auto_pad") or "NOTSET"
    pads = spatial_pads(x.shape[2:], kernel, strides, dilations, attrs.get("pads"), auto_pad)
    view = windows(x, kernel, strides, dilations, pads, fill, bool(attrs.get("ceil_mode")))
    return view.reshape(*view.shape[: x.ndim], -1), len(kernel)


class MaxPool(OpRun):
    def _run(self, x, **attrs):  # type: ignore[no-untyped-def]
        view, _ = _pool(x, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min, attrs)
        if len(self.onnx_node.output) == 1:
            return (view.max(axis=-1).astype(x.dtype),)
        where = np.arange(x[0, 0].size, dtype=np.int64).reshape(1, 1, *x.shape[2:])
        if attrs.get("storage_order"):
            where = np.arange(x[0, 0].size).reshape(x.shape[2:][::-1]).T.reshape(1, 1, *x.shape[2:])
        place, _ = _pool(where.astype(np.float64), -1, attrs)
        first = view.argmax(axis=-1)[..., None]
        place = np.take_along_axis(np.broadcast_to(place, view.shape), first, axis=-1)[..., 0].astype(np.int64)
        planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2)) * x[0, 0].size
        return np.take_along_axis(view, first, axis=-1)[..., 0], place + planes


class AveragePool(OpRun):
    def _run(self, x, **attrs):  # type: ignore[no-untyped-def]
        view, _ = _pool(x, 0.0, attrs)
        return ((view.sum(axis=-1) / self._count(x, attrs)).astype(x.dtype),)

    @staticmethod
    def _count(x, attrs):  # type: ignore[no-untyped-def]
        """How many elements each window averages: the padding if it is to count, never what ``ceil_mode`` added."""
        ones = np.ones((1, 1, *x.shape[2:]))
        kernel = attrs["kernel_shape"]
        if attrs.get("count_include_pad"):
            strides, dilations = _defaults(len(kernel), attrs.get("strides"), attrs.get("dilations"))
            auto_pad = attrs.get("auto_pad") or "NOTSET"
            pads = spatial_pads(x.shape[2:], kernel, strides, dilations, attrs.get("pads"), auto_pad)
            ones = np.pad(ones, [(0, 0), (0, 0), *pads], constant_values=1.0)
            view = windows(ones, kernel, strides, dilations, [(0, 0)] * len(kernel), 0.0, bool(attrs.get("ceil_mode")))
            # the same number of windows as over the image
            out = _pool(x[:1, :1], 0.0, attrs)[0].shape[2:-1]
            view = view[(slice(None), slice(None), *[slice(0, o) for o in out])]
            return view.reshape(1, 1, *out, -1).sum(axis=-1)
        return _pool(ones, 0.0, attrs)[0].sum(axis=-1)


class LpPool(OpRun):
    def _run(self, x, p=None, **attrs):  # type: ignore[no-untyped-def]
        view, _ = _pool(x, 0.0, attrs)
        p = 2 if p is None else p
        return (((np.abs(view) ** p).sum(axis=-1) ** (1.0 / p)).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    def _run(self, x):  # type: ignore[no-untyped-def]
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    def _run(self, x, p=None):  # type: ignore[no-untyped-def]
        p = 2 if p is None else p
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p),)


class LRN(OpRun):
    def _run(self, x, alpha=None, beta=None, bias=None, size=None):  # type: ignore[no-untyped-def]
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        padded = np.pad(x**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum(padded[:, i : i + x.shape[1]] for i in range(size))
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


class Pad(OpRun):
    def _run(self, x, pads, value=None, axes=None, mode=None):  # type: ignore[no-untyped-def]
        axes = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        width = np.zeros((x.ndim, 2), dtype=np.int64)
        width[list(axes)] = np.asarray(pads).reshape(2, -1).T
        crop = [slice(max(0, -b), n - max(0, -e)) for n, (b, e) in zip(x.shape, width, strict=True)]
        options = {"constant_values": 0 if value is None else np.asarray(value).item()} if mode == "constant" else {}
        return (np.pad(x[tuple(crop)], np.maximum(width, 0), mode=mode, **options),)


class GatherElements(OpRun):
    def _run(self, x, indices, axis=None):  # type: ignore[no-untyped-def]
        index = list(np.indices(indices.shape))
        index[axis] = indices
        return (x[tuple(index)],)


class Erf(OpRun):
    def _run(self, x):  # type: ignore[no-untyped-def]
        return (np.asarray(_erf(x) if np.size(x) else x).astype(x.dtype),)


class Gelu(OpRun):
    def _run(self, x, approximate=None):  # type: ignore[no-untyped-def]
        if approximate == "tanh":
            inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        else:
            inner = np.asarray(_erf(x / math.sqrt(2)))
        return ((0.5 * x * (1 + inner)).astype(x.dtype),)


class Softmax(OpRun):
    def _run(self, x, axis=None):  # type: ignore[no-untyped-def]
        old = self.run_params["opsets"][""] < 13
        if all(a.name != "axis" for a in self.onnx_node.attribute):
            axis = 1 if old else -1
        over = tuple(range(axis % x.ndim, x.ndim)) if old else axis
        powers = np.exp(x - x.max(axis=over, keepdims=True))
        return (powers / powers.sum(axis=over, keepdims=True),)


class LogSoftmax(Softmax):
    def _run(self, x, axis=None):  # type: ignore[no-untyped-def]
        return (np.log(super()._run(x, axis)[0]),)


class BatchNormalization(OpRun):
    def _run(  # type: ignore[no-untyped-def]
        self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=None, **_
    ):  # fmt: skip
        running = ()
        if training_mode:
            over = (0, *range(2, x.ndim))
            old, (mean, var) = (mean, var), (x.mean(axis=over), x.var(axis=over))
            running = tuple(o * momentum + v * (1 - momentum) for o, v in zip(old, (mean, var), strict=True))
        each = [v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var)]
        return (((x - each[2]) / np.sqrt(each[3] + epsilon) * each[0] + each[1]).astype(x.dtype), *running)


class Mean(OpRun):
    def _run(self, *args):  # type: ignore[no-untyped-def]
        total = args[0]
        for arg in args[1:]:
            total = total + arg
        return ((total / len(args)).astype(args[0].dtype),)


NEW_OPS: list[type[OpRun]] = [
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    LpPool,
    GlobalMaxPool,
    GlobalLpPool,
    LRN,
    Pad,
    GatherElements,
    Erf,
    Gelu,
    Softmax,
    LogSoftmax,
    BatchNormalization,
    Mean,
]


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Returns an evaluator of ``model`` that computes in the model's own types, float64 included."""
    return ReferenceEvaluator(model, new_ops=[*NEW_OPS, *MORE_OPS, *recurrent.OPS])
