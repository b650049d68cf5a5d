"""One row per ONNX operator that the replay knows, each a function of (attributes, inputs) in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import Tensor

Attributes = dict[str, Any]
Op = Callable[[Attributes, Sequence[Any]], Any]
OPS: dict[str, Op] = {}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_DTYPES = {TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32, TensorProto.BOOL: torch.bool}
_DTYPES |= dict.fromkeys(_FLOATS, torch.float64)


def to_tensor(proto: TensorProto) -> Tensor:
    """A constant, in float64 if it is of floating point."""
    value = torch.from_numpy(np.array(numpy_helper.to_array(proto)))
    return value.double() if value.is_floating_point() else value


def op(*names: str) -> Callable[[Op], Op]:
    """Decorator: the function is the row of these operators."""

    def register(function: Op) -> Op:
        OPS.update(dict.fromkeys(names, function))
        return function

    return register


def _elementwise(name: str, function: Callable[..., Any]) -> None:
    OPS[name] = lambda a, x: function(*x)


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Identity": lambda x: x,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Sin": torch.sin,
    "Reciprocal": torch.reciprocal,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "MatMul": torch.matmul,
    "Pow": torch.pow,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Where": lambda condition, x, y: torch.where(condition, x, y),
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
    "Size": lambda x: torch.tensor(x.numel()),
    "Reshape": lambda x, shape: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())]),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist()))),
    "Tile": lambda x, repeats: x.repeat(repeats.tolist()),
    "Range": lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "NonZero": lambda x: torch.nonzero(x).T.contiguous(),
}
for _name, _function in _SIMPLE.items():
    _elementwise(_name, _function)

OPS["Sum"] = lambda a, x: sum(x[1:], x[0])
OPS["Max"] = lambda a, x: x[0] if len(x) == 1 else torch.maximum(x[0], OPS["Max"](a, x[1:]))
OPS["Min"] = lambda a, x: x[0] if len(x) == 1 else torch.minimum(x[0], OPS["Min"](a, x[1:]))
OPS["Mean"] = lambda a, x: sum(x[1:], x[0]) / len(x)
OPS["Dropout"] = lambda a, x: (x[0], torch.ones_like(x[0], dtype=torch.bool))
OPS["Constant"] = lambda a, x: _constant(a)
OPS["LeakyRelu"] = lambda a, x: F.leaky_relu(x[0], a.get("alpha", 0.01))
OPS["Elu"] = lambda a, x: F.elu(x[0], a.get("alpha", 1.0))
OPS["HardSigmoid"] = lambda a, x: (a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5)).clamp(0, 1)
OPS["Gelu"] = lambda a, x: F.gelu(x[0], approximate=a.get("approximate", b"none").decode())
OPS["Softmax"] = lambda a, x: torch.softmax(x[0], a.get("axis", -1))
OPS["LogSoftmax"] = lambda a, x: torch.log_softmax(x[0], a.get("axis", -1))
OPS["Concat"] = lambda a, x: torch.cat(list(x), a["axis"])
OPS["Transpose"] = lambda a, x: x[0].permute(list(a.get("perm", reversed(range(x[0].dim())))))
OPS["Mod"] = lambda a, x: torch.fmod(*x) if a.get("fmod") else torch.remainder(*x)
OPS["Einsum"] = lambda a, x: torch.einsum(a["equation"].decode(), *x)
OPS["Shape"] = lambda a, x: torch.tensor(x[0].shape)[a.get("start", 0) : a.get("end")]
OPS["CastLike"] = lambda a, x: x[0].to(x[1].dtype)
OPS["Cast"] = lambda a, x: x[0].to(_DTYPES[a["to"]])
OPS["GlobalAveragePool"] = lambda a, x: x[0].mean(tuple(range(2, x[0].dim())), keepdim=True)
OPS["GlobalMaxPool"] = lambda a, x: x[0].amax(tuple(range(2, x[0].dim())), keepdim=True)
OPS["SequenceConstruct"] = lambda a, x: torch.stack(list(x))  # of members of one shape
OPS["SequenceLength"] = lambda a, x: torch.tensor(len(x[0]))
OPS["ConstantOfShape"] = lambda a, x: (to_tensor(a["value"]) if "value" in a else torch.zeros(1).double()).expand(
    x[0].tolist()
)


def _constant(a: Attributes) -> Tensor:
    if "value" in a:
        return to_tensor(a["value"])
    value = next(v for k, v in a.items() if k.startswith("value_"))
    kind = torch.float64 if any(k.startswith("value_float") for k in a) else torch.int64
    return torch.tensor(value, dtype=kind)


@op("Div")
def _div(a: Attributes, x: Sequence[Any]) -> Any:
    return x[0] / x[1] if x[0].is_floating_point() else torch.div(x[0], x[1], rounding_mode="trunc")


@op("Clip")
def _clip(a: Attributes, x: Sequence[Any]) -> Any:
    low, high = (*x[1:], None, None)[:2]
    return x[0].clamp(low, high)


@op("Gemm")
def _gemm(a: Attributes, x: Sequence[Any]) -> Any:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    y = a.get("alpha", 1.0) * (left @ right)
    return y + a.get("beta", 1.0) * x[2] if len(x) > 2 and x[2] is not None else y


def _pads(a: Attributes, size: Sequence[int], kernel: Sequence[int], s: Sequence[int], d: Sequence[int]) -> list[int]:
    """Pads of a window operator, in ONNX order, with auto_pad resolved."""
    n, mode = len(kernel), a.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        total = [
            max((math.ceil(w / t) - 1) * t + e * (k - 1) + 1 - w, 0)
            for w, k, t, e in zip(size, kernel, s, d, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return small + large if mode == "SAME_UPPER" else large + small
    return list(a.get("pads", [0] * 2 * n))


def _pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the trailing axes by ONNX pads (all begins, then all ends); negative pads crop."""
    n = len(pads) // 2
    return F.pad(x, [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])], value=value)


def _window(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads."""
    n = len(kernel)
    strides, dilations = list(a.get("strides", [1] * n)), list(a.get("dilations", [1] * n))
    return strides, dilations, _pads(a, x.shape[2:], kernel, strides, dilations)


@op("Conv")
def _conv(a: Attributes, x: Sequence[Any]) -> Any:
    n = x[0].dim() - 2
    strides, dilations, pads = _window(a, x[0], x[1].shape[2:])
    bias = x[2] if len(x) > 2 else None
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    if pads[:n] == pads[n:]:
        return conv(x[0], x[1], bias, strides, pads[:n], dilations, a.get("group", 1))
    return conv(_pad(x[0], pads), x[1], bias, strides, 0, dilations, a.get("group", 1))


@op("ConvTranspose")
def _conv_transpose(a: Attributes, x: Sequence[Any]) -> Any:
    n = x[0].dim() - 2
    if "output_shape" in a or a.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
    strides, dilations, pads = _window(a, x[0], x[1].shape[2:])
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    full = transposed(x[0], x[1], None, strides, 0, 0, a.get("group", 1), dilations)
    extra = a.get("output_padding", [0] * n)
    y = _pad(full, [-p for p in pads[:n]] + [e - p for e, p in zip(extra, pads[n:], strict=True)])
    return y + x[2].reshape(-1, *[1] * n) if len(x) > 2 and x[2] is not None else y


@op("MaxPool")
def _max_pool(a: Attributes, x: Sequence[Any]) -> Any:
    kernel = list(a["kernel_shape"])
    n, size = len(kernel), x[0].shape[2:]
    strides, dilations, pads = _window(a, x[0], kernel)
    padded = _pad(x[0], pads, -math.inf) if any(pads) else x[0]
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    y, index = pool(padded, kernel, strides, 0, dilations, bool(a.get("ceil_mode")), return_indices=True)
    if a["_outputs"] == 1:
        return (y,)
    place = torch.unravel_index(index, padded.shape[2:])  # indices within the padded plane -> flat over N, C, H, W
    flat = torch.arange(x[0].shape[0] * x[0].shape[1]).reshape(*x[0].shape[:2], *[1] * n)
    for axis in range(n):
        flat = flat * size[axis] + place[axis] - pads[axis]
    return y, flat


@op("AveragePool")
def _average_pool(a: Attributes, x: Sequence[Any]) -> Any:
    kernel = list(a["kernel_shape"])
    strides, _, pads = _window(a, x[0], kernel)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(a.get("ceil_mode"))
    ones = torch.ones_like(x[0])
    counted = _pad(ones, pads, 1.0 if a.get("count_include_pad") else 0.0)
    total = pool(_pad(x[0], pads), kernel, strides, 0, ceil)
    return total / pool(counted, kernel, strides, 0, ceil)


@op("BatchNormalization")
def _batch_norm(a: Attributes, x: Sequence[Any]) -> Any:
    data, scale, bias, mean, variance = x[:5]
    return F.batch_norm(data, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


@op("LayerNormalization")
def _layer_norm(a: Attributes, x: Sequence[Any]) -> Any:
    axis = a.get("axis", -1) % x[0].dim()
    axes = tuple(range(axis, x[0].dim()))
    mean = x[0].mean(axes, keepdim=True)
    inverse = ((x[0] - mean).square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt()
    y = (x[0] - mean) * inverse * x[1]
    return (y + x[2] if len(x) > 2 and x[2] is not None else y), mean, inverse


def _axes(a: Attributes, x: Sequence[Any]) -> tuple[int, ...]:
    """Axes of a reduction: second input, attribute, or all."""
    if len(x) > 1 and x[1] is not None and x[1].numel():
        return tuple(x[1].tolist())
    if a.get("axes"):
        return tuple(a["axes"])
    return () if a.get("noop_with_empty_axes") else tuple(range(x[0].dim()))


def _reduction(name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    def run(a: Attributes, x: Sequence[Any]) -> Any:
        axes = _axes(a, x)
        return function(x[0], axes, bool(a.get("keepdims", 1))) if axes else x[0]

    OPS[name] = run


_reduction("ReduceSum", lambda x, axes, keep: x.sum(axes, keep))
_reduction("ReduceMean", lambda x, axes, keep: x.mean(axes, keep))
_reduction("ReduceMax", lambda x, axes, keep: x.amax(axes, keep))
_reduction("ReduceMin", lambda x, axes, keep: x.amin(axes, keep))
_reduction("ReduceProd", lambda x, axes, keep: x.prod(axes[0], keep))  # of shapes only
_reduction("ReduceL1", lambda x, axes, keep: x.abs().sum(axes, keep))
_reduction("ReduceL2", lambda x, axes, keep: x.square().sum(axes, keep).sqrt())
_reduction("ReduceSumSquare", lambda x, axes, keep: x.square().sum(axes, keep))


@op("Flatten")
def _flatten(a: Attributes, x: Sequence[Any]) -> Any:
    axis = a.get("axis", 1) % (x[0].dim() + 1)
    return x[0].reshape(math.prod(x[0].shape[:axis]), -1)


@op("Squeeze")
def _squeeze(a: Attributes, x: Sequence[Any]) -> Any:
    axes = tuple(x[1].tolist()) if len(x) > 1 else a.get("axes")
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


@op("Unsqueeze")
def _unsqueeze(a: Attributes, x: Sequence[Any]) -> Any:
    axes = x[1].reshape(-1).tolist() if len(x) > 1 else a["axes"]
    rank = x[0].dim() + len(axes)
    y = x[0]
    for axis in sorted(i % rank for i in axes):
        y = y.unsqueeze(axis)
    return y


@op("Split")
def _split(a: Attributes, x: Sequence[Any]) -> Any:
    axis = a.get("axis", 0)
    if len(x) > 1 and x[1] is not None:
        return torch.split(x[0], x[1].tolist(), axis)
    return torch.split(x[0], math.ceil(x[0].shape[axis] / a["_outputs"]), axis)


@op("Slice")
def _slice(a: Attributes, x: Sequence[Any]) -> Any:
    starts, ends = x[1].tolist(), x[2].tolist()
    axes = x[3].tolist() if len(x) > 3 and x[3] is not None else range(len(starts))
    steps = x[4].tolist() if len(x) > 4 else [1] * len(starts)
    y = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = y.shape[axis]
        end = max(end, -size - 1)  # "up to the first" is written as a very small number
        places = range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))
        y = y.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return y


@op("Pad")
def _pad_op(a: Attributes, x: Sequence[Any]) -> Any:
    mode = a.get("mode", b"constant").decode()
    rank = x[0].dim()
    axes = [i % rank for i in x[3].tolist()] if len(x) > 3 else list(range(rank))
    pads = [0] * 2 * rank
    for i, axis in enumerate(axes):
        pads[axis], pads[axis + rank] = x[1][i].item(), x[1][i + len(axes)].item()
    if mode == "constant":
        return _pad(x[0], pads, x[2].item() if len(x) > 2 and x[2] is not None else 0.0)
    y = x[0]
    for axis in range(rank):
        place = np.pad(np.arange(y.shape[axis]), (pads[axis], pads[axis + rank]), mode=mode)  # type: ignore[call-overload]
        y = y.index_select(axis, torch.from_numpy(place))
    return y


@op("Gather")
def _gather(a: Attributes, x: Sequence[Any]) -> Any:
    axis = a.get("axis", 0) % x[0].dim()
    index = x[1] % x[0].shape[axis]
    picked = x[0].index_select(axis, index.reshape(-1))
    return picked.reshape([*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :]])


@op("GatherElements")
def _gather_elements(a: Attributes, x: Sequence[Any]) -> Any:
    axis = a.get("axis", 0)
    return torch.gather(x[0], axis, x[1] % x[0].shape[axis])


@op("ScatterElements")
def _scatter_elements(a: Attributes, x: Sequence[Any]) -> Any:
    axis, index = a.get("axis", 0), x[1] % x[0].shape[a.get("axis", 0)]
    if a.get("reduction", b"none") == b"add":
        return x[0].scatter_add(axis, index, x[2])
    return x[0].scatter(axis, index, x[2])


@op("GatherND")
def _gather_nd(a: Attributes, x: Sequence[Any]) -> Any:
    if a.get("batch_dims"):
        raise NotImplementedError("GatherND with batch_dims")
    return x[0][tuple(x[1].unbind(-1))]


@op("ScatterND")
def _scatter_nd(a: Attributes, x: Sequence[Any]) -> Any:
    return x[0].index_put(tuple(x[1].unbind(-1)), x[2], accumulate=a.get("reduction", b"none") == b"add")


@op("OneHot")
def _one_hot(a: Attributes, x: Sequence[Any]) -> Any:
    depth, rank = int(x[1].item()), x[0].dim() + 1
    axis = a.get("axis", -1) % rank
    classes = torch.arange(depth).reshape([depth if i == axis else 1 for i in range(rank)])
    index = torch.where(x[0] < 0, x[0] + depth, x[0]).unsqueeze(axis)
    return torch.where(index == classes, x[2][1], x[2][0])


@op("ArgMax")
def _arg_max(a: Attributes, x: Sequence[Any]) -> Any:
    return x[0].argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))


@op("CumSum")
def _cum_sum(a: Attributes, x: Sequence[Any]) -> Any:
    if a.get("exclusive") or a.get("reverse"):
        raise NotImplementedError("CumSum exclusive or reverse")
    return x[0].cumsum(x[1].item())


@op("DepthToSpace")
def _depth_to_space(a: Attributes, x: Sequence[Any]) -> Any:
    n, c, h, w = x[0].shape
    b = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return x[0].reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
    return x[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
