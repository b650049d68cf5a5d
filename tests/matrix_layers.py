"""Linear layers of every kind, for tests of rules: ONNX text, a shape, and weights with all that is special."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.graphs import Arrays, exact, net
from tests.matrix_lrp import Matrix, jacobian
from tests.reference_ops import evaluator
from xaicompile.compiler import compile_model


@dataclass(frozen=True)
class Layer:
    """One node `z = ...` that reads `a`.

    Attributes:
        text: The node; `w` is the weight, `b` the bias, other names are in `constants`.
        shape: Of `a`. The batch, if `batch` says so, is axis 0.
        w: Shape of the weight, empty for none.
        b: Shape of the bias, None for none.
        out: Axis of the weight that the output units are counted on.
        loud: Size of the bias.
        signs: Signs of weight and bias: mixed, all positive, or all negative.
        average: For maxima: the same node as an average.
        offsets: Which of the constants are summands, not factors.
    """

    text: str
    shape: tuple[int, ...]
    w: tuple[int, ...] = ()
    b: tuple[int, ...] | None = None
    out: int = 0
    loud: float = 0.5
    signs: str = "mixed"
    batch: bool = True
    opset: int = 18
    constants: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    average: str = ""
    offsets: tuple[str, ...] = ("b",)

    def weights(self) -> Arrays:
        """Weight and bias, of mixed signs and with zeros.

        Unit 0 is all negative (dead behind a ReLU if inputs are positive), unit 1 all positive, unit 2 all zeros.
        """
        made, rng = dict(self.constants), np.random.default_rng(len(self.text))

        def signed(value: np.ndarray) -> np.ndarray:
            factor = {"plus": 1, "minus": -1}.get(self.signs)
            return value if factor is None else np.abs(value) * factor

        if self.w:
            value = rng.standard_normal(self.w)
            value[rng.random(self.w) < 0.1] = 0.0
            rows = np.moveaxis(value, self.out, 0)
            if len(rows) > 2:
                rows[0], rows[1], rows[2] = -np.abs(rows[0]), np.abs(rows[1]), 0.0
            made["w"] = signed(value)
        if self.b is not None:
            value = rng.standard_normal(self.b) * self.loud
            if value.size > 3:
                value.flat[[0, 3]] = -0.1, 0.0
            made["b"] = signed(value)
        return made

    def data(self) -> np.ndarray:
        """Mixed signs, each fifth value zero; the last sample is all zeros."""
        rng = np.random.default_rng(len(self.text) + 1)
        value = rng.standard_normal(self.shape)
        value[rng.random(self.shape) < 0.2] = 0.0
        if self.batch:
            value[-1] = 0.0
        return value


def conv(attrs: str, shape: tuple[int, ...], w: tuple[int, ...], bias: bool = True, **more: object) -> Layer:
    name, inner = attrs.split(" ", 1)
    out = 1 if name == "ConvTranspose" else 0
    units = w[out] * (int(inner.split("group=")[1].split(",")[0]) if out and "group=" in inner else 1)
    text = f"z = {name}<{inner}>(a, w{', b' if bias else ''})"
    return Layer(text, shape, w, (units,) if bias else None, out, **more)  # type: ignore[arg-type]


def pool(attrs: str, shape: tuple[int, ...], average: str = "", **more: object) -> Layer:
    name, inner = attrs.split(" ", 1)
    text = f"z = {name}<{inner}>(a)"
    return Layer(text, shape, average=text.replace("MaxPool", "AveragePool") if name == "MaxPool" else average, **more)  # type: ignore[arg-type]


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


CONVOLUTIONS = {
    "conv1": conv("Conv pads=[1,0], strides=[2]", (3, 3, 8), (4, 3, 3)),
    "conv1-groups-no-bias": conv("Conv group=2, dilations=[2], pads=[2,1]", (3, 4, 7), (4, 2, 3), bias=False),
    "conv2": conv("Conv pads=[1,1,1,1]", (3, 2, 4, 5), (4, 2, 3, 3)),
    "conv2-no-bias": conv("Conv pads=[1,1,1,1]", (3, 2, 4, 4), (4, 2, 3, 3), bias=False),
    "conv2-stride-groups": conv("Conv strides=[2,1], pads=[1,0,0,2], group=2", (3, 4, 5, 3), (6, 2, 3, 2)),
    "conv2-depthwise": conv("Conv group=3, pads=[1,1,1,1]", (3, 3, 4, 4), (6, 1, 3, 3)),
    "conv2-dilated-same": conv('Conv dilations=[2,1], auto_pad="SAME_UPPER"', (3, 2, 5, 4), (4, 2, 3, 2)),
    "conv2-same-lower": conv('Conv strides=[2,2], auto_pad="SAME_LOWER"', (3, 2, 5, 4), (4, 2, 3, 3)),
    "conv2-1x1": conv("Conv kernel_shape=[1,1]", (3, 4, 3, 3), (5, 4, 1, 1)),
    "conv2-big-kernel": conv("Conv strides=[2,2], pads=[3,3,3,3]", (3, 2, 4, 4), (4, 2, 4, 4)),
    "conv2-weights-positive": conv("Conv pads=[1,1,0,0]", (3, 2, 4, 4), (4, 2, 2, 2), signs="plus"),
    "conv2-weights-negative": conv("Conv pads=[0,0,1,1]", (3, 2, 4, 4), (4, 2, 2, 2), signs="minus"),
    "conv3": conv("Conv strides=[1,2,1], pads=[1,0,1,0,1,1]", (3, 2, 3, 4, 3), (4, 2, 2, 3, 2)),
    "conv3-groups": conv("Conv group=2, pads=[0,1,0,0,1,0]", (3, 2, 3, 3, 3), (4, 1, 2, 2, 2), bias=False),
    "deconv1": conv("ConvTranspose strides=[2], pads=[1,0], output_padding=[1]", (3, 3, 5), (3, 4, 3)),
    "deconv2": conv("ConvTranspose pads=[1,1,0,0]", (3, 2, 4, 3), (2, 4, 3, 3)),
    "deconv2-stride-groups": conv(
        "ConvTranspose strides=[2,3], pads=[0,1,1,1], output_padding=[1,0], group=2", (3, 4, 3, 3), (4, 2, 3, 2)
    ),
    "deconv2-dilated-no-bias": conv(
        "ConvTranspose dilations=[2,1], strides=[2,2], output_padding=[0,1]", (3, 2, 3, 3), (2, 4, 2, 3), bias=False
    ),
    "deconv2-output-shape": conv("ConvTranspose strides=[2,2], output_shape=[7,6]", (3, 2, 3, 3), (2, 4, 3, 3)),
    "deconv3": conv("ConvTranspose strides=[2,1,2], output_padding=[0,0,1]", (3, 2, 2, 3, 2), (2, 4, 2, 2, 3)),
}
DENSE = {
    "gemm": Layer("z = Gemm(a, w, b)", (3, 6), (6, 5), (5,), 1),
    "gemm-loud-bias": Layer("z = Gemm(a, w, b)", (3, 6), (6, 5), (5,), 1, loud=40.0),
    "gemm-no-bias": Layer("z = Gemm<transB=1>(a, w)", (3, 6), (5, 6)),
    "gemm-scaled": Layer("z = Gemm<transB=1, alpha=-0.7, beta=0.4>(a, w, b)", (3, 6), (5, 6), (1, 5)),
    "gemm-minus-bias": Layer("z = Gemm<alpha=1.5, beta=-2.0>(a, w, b)", (3, 6), (6, 5), (), 1),
    "gemm-turned": Layer("z = Gemm<transA=1, alpha=0.5>(a, w, b)", (6, 3), (6, 5), (3, 1), 1, batch=False),
    "gemm-data-right": Layer("z = Gemm<transA=1, alpha=-1.0>(w, a, b)", (6, 3), (6, 5), (3,), 1, batch=False),
    "gemm-data-right-turned": Layer("z = Gemm<transB=1>(w, a, b)", (3, 6), (5, 6), (5, 1), batch=False),
    "matmul": Layer("z = MatMul(a, w)", (3, 6), (6, 5), None, 1),
    "matmul-tokens": Layer("z = MatMul(a, w)", (3, 4, 5), (5, 4), None, 1),
    "matmul-stacked": Layer("z = MatMul(a, w)", (3, 2, 4, 5), (2, 5, 4), None, 2),
    "matmul-vector": Layer("z = MatMul(a, w)", (3, 4, 5), (5,)),
    "matmul-right": Layer("z = MatMul(w, a)", (3, 4, 5), (6, 4)),
    "matmul-right-matrix": Layer("z = MatMul(w, a)", (4, 3), (6, 4), batch=False),
    "einsum": Layer('z = Einsum<equation="bhk,hkm->bhm">(a, w)', (3, 2, 4), (2, 4, 5), None, 2),
    "einsum-right": Layer('z = Einsum<equation="mk,bkt->btm">(w, a)', (3, 4, 3), (5, 4)),
}
NORM = {"g": np.asarray([1.5, -0.5, 2.0, 0.3]), "t": np.asarray([0.1, -0.2, 0.0, 0.5])}
NORM |= {"m": np.asarray([0.3, 0.2, -0.1, 0.0]), "v": np.asarray([1.0, 0.5, 2.0, 3.0])}
PATTERNS = {  # several nodes that are read as one linear layer
    "matmul-add": Layer("i = MatMul(a, w)\nz = Add(b, i)", (3, 6), (6, 5), (5,), 1),
    "matmul-tokens-add": Layer("i = MatMul(a, w)\nz = Add(i, b)", (3, 2, 5), (5, 4), (4,), 1),
    "conv2-norm": Layer(
        "i = Conv<pads=[1,1,1,1]>(a, w, b)\nz = BatchNormalization(i, g, t, m, v)", (3, 2, 4, 4), (4, 2, 3, 3), (4,),
        constants=NORM, offsets=("b", "t", "m"),
    ),
}  # fmt: skip
AVERAGES = {
    "average2": pool("AveragePool kernel_shape=[2,2], strides=[2,2]", (3, 2, 4, 4)),
    "average1": pool("AveragePool kernel_shape=[3], strides=[2], pads=[1,0]", (3, 2, 8)),
    "average2-padding-counts": pool(
        "AveragePool kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1", (3, 2, 4, 5)
    ),
    "average2-ceil": pool("AveragePool kernel_shape=[3,2], strides=[2,2], pads=[1,0,0,1], ceil_mode=1", (3, 2, 6, 5)),
    "average3": pool("AveragePool kernel_shape=[2,1,2], pads=[1,0,0,0,0,1]", (3, 1, 3, 3, 4)),
    "global-average": Layer("z = GlobalAveragePool(a)", (3, 3, 4, 4)),
    "mean": Layer("z = ReduceMean<keepdims=0>(a, axes)", (3, 3, 4, 4), constants={"axes": ints(2, 3)}),
    "sum": Layer("z = ReduceSum(a, axes)", (3, 3, 4, 2), constants={"axes": ints(-1)}),
}
SIZES = {"sizes": ints(3, 2, 6, 5)}
RESIZES = {
    "nearest": Layer(
        'z = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(a, , scales)',
        (3, 2, 3, 3), constants={"scales": np.asarray([1, 1, 2, 2], np.float32)},
    ),
    "linear": Layer('z = Resize<mode="linear">(a, , , sizes)', (3, 2, 3, 4), constants=SIZES),
    "linear-corners": Layer(
        'z = Resize<mode="linear", coordinate_transformation_mode="align_corners">(a, , , sizes)',
        (3, 2, 4, 3), constants=SIZES,
    ),
}  # fmt: skip
MAXIMA = {
    "max1": pool("MaxPool kernel_shape=[3], strides=[2], pads=[1,1]", (3, 2, 8)),
    "max2": pool("MaxPool kernel_shape=[2,2], strides=[2,2]", (3, 2, 4, 4)),
    "max2-overlap": pool("MaxPool kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", (3, 2, 5, 5)),
    "max2-ceil": pool("MaxPool kernel_shape=[3,2], strides=[2,2], ceil_mode=1", (3, 2, 6, 5)),
    "max2-dilated": pool("MaxPool kernel_shape=[2,2], dilations=[2,1]", (3, 2, 4, 4), opset=19),
    "max3": pool("MaxPool kernel_shape=[2,2,2], strides=[1,2,1]", (3, 1, 3, 4, 3)),
    "global-max": Layer("z = GlobalMaxPool(a)", (3, 3, 4, 3), average="z = GlobalAveragePool(a)"),
    "reduce-max": Layer(
        "z = ReduceMax<keepdims=0>(a, axes)", (3, 4, 5), constants={"axes": ints(1)},
        average="z = ReduceMean<keepdims=0>(a, axes)",
    ),
}  # fmt: skip
LAYERS = {**CONVOLUTIONS, **DENSE, **PATTERNS, **AVERAGES, **RESIZES, **MAXIMA}


def forward(layer: Layer, text: str, a: np.ndarray, weights: Arrays) -> np.ndarray:
    """z, in float64."""
    return np.asarray(_evaluator(layer, text).run(None, {"a": a, **weights})[0])


@cache
def _evaluator(layer: Layer, text: str):  # type: ignore[no-untyped-def]
    """The layer alone, with its weights as inputs."""
    types = {"int64": "int64", "float32": "float", "float64": "double"}
    given = {"a": np.zeros(layer.shape), **layer.weights()}
    signature = ", ".join(f"{types[v.dtype.name]}[{','.join(map(str, v.shape))}] {k}" for k, v in given.items())
    source = f'<ir_version: 8, opset_import: ["" : {layer.opset}]> net ({signature}) => (double z) {{ {text} }}'
    return evaluator(onnx.parser.parse_model(source))


@cache
def matrix(layer: Layer) -> Matrix:
    """The layer as a matrix; of a maximum, that of the average in its place."""
    text, given = layer.average or layer.text, layer.weights()
    silent = {k: np.zeros_like(v) if k in layer.offsets else v for k, v in given.items()}
    offset = forward(layer, text, np.zeros(layer.shape), given)
    weight = jacobian(lambda unit: forward(layer, text, unit, silent), layer.shape)
    ones = weight
    if layer.w:
        alike = {**silent, "w": np.ones(layer.w)}
        ones = (jacobian(lambda unit: forward(layer, text, unit, alike), layer.shape) != 0).astype(float)
    return Matrix(weight, offset.ravel(), ones, len(offset))


@dataclass(frozen=True)
class Net:
    """A layer in a small net.

    Attributes:
        model: The net; its layer is called "layer".
        feed: Its inputs.
        read: Name of what the layer reads.
        a: What it reads.
        z: What it gives.
        c: The cotangent that arrives at z when the sum of a sample's outputs is explained.
    """

    model: onnx.ModelProto
    feed: Arrays
    read: str
    a: np.ndarray
    z: np.ndarray
    c: np.ndarray


BEFORE = {"mixed": "", "plus": "a = Relu(x)", "minus": "n = Relu(x)\na = Neg(n)"}
AFTER = {"alone": "p = Identity(z)", "relu": "[rectifier] p = Relu(z)", "add": "q = Add(z, s)\np = Relu(q)"}


Bound = float | tuple[float, ...]  # of all values, or one a channel


@cache
def placed(layer: Layer, before: str, after: str, clip: tuple[Bound, Bound] | None = None, free: bool = False) -> Net:
    """The layer in a small net, whose output is multiplied by an input of mixed signs that is not explained.

    Args:
        before: Signs of what it reads: "mixed" (the input itself), "plus" or "minus", which facts can prove.
        after: "alone", "relu", or "add": a second input is added in front of a ReLU.
        clip: Ends that the input is kept between.
        free: Leave the spatial sizes open.
    """
    x, rng = layer.data(), np.random.default_rng(5)
    if clip is not None:
        x = np.clip(x, *(np.reshape(end, (1, -1, *[1] * (x.ndim - 2))) for end in clip))
    a = {"mixed": x, "plus": np.maximum(x, 0.0), "minus": np.minimum(-x, 0.0)}[before]
    z = forward(layer, layer.text, a, layer.weights())
    feed = {"x": x, "c": rng.standard_normal(z.shape)}
    sizes = []
    for name, value in (("x", x), ("z", z)):
        dims = [f"{name}{i}" if free and i > 1 else size for i, size in enumerate(value.shape)]
        sizes.append(",".join(map(str, ("N" if layer.batch else len(value), *dims[1:]))))
    if after == "add":
        feed["s"] = rng.standard_normal(z.shape)
    read = "x" if before == "mixed" else "a"
    node = re.sub(r"\ba\b", read, layer.text)
    body = f"{BEFORE[before]}\n[layer] {node}\n{AFTER[after]}\n[readout] y = Mul(p, c)"
    inputs = ", ".join(f"double[{sizes[name != 'x']}] {name}" for name in feed)
    active = {"alone": np.ones_like(z), "relu": z > 0, "add": z + feed.get("s", 0.0) > 0}[after]
    made = net(f"({inputs}) => (double[{sizes[1]}] y)", body, opset=layer.opset, **layer.weights())
    return Net(made, feed, read, a, z, active * feed["c"])


# --- rules for them --------------------------------------------------------------------------------------------------

Rule = tuple[str, Mapping[str, Any]]


def rule_set(folder: Path, rule: str, parameters: Mapping[str, Any], **others: Rule) -> Path:
    """A rule for the node "layer", others by node, the default for all else."""
    path, text = folder / "rules.toml", ""
    for node, (name, given) in {"layer": (rule, parameters), **others}.items():
        text += f'[[rules]]\nmatch = {{ name = "{node}" }}\nrule = "{name}"\n'
        text += "".join(f"{key} = {value!r}\n" for key, value in given.items())
    path.write_text(text + '[[rules]]\nrule = "default"\n')
    return path


def relevance_of(net: Net, rules: Path, closes: bool = True) -> np.ndarray:
    """Relevance of what the layer reads; sum(R) + ledger = explained is seen to hold for the input on the way."""
    layers = [] if net.read == "x" else [net.read]
    made = compile_model(net.model, rules, explain_input="x", explain_reduce="sum", ledger=True, layers=layers)
    out = exact(made.model, net.feed)
    relevance = out[f"relevance_{net.read}" if layers else "relevance"]
    if closes:
        check_ledger(out, [out["relevance"]])
    return relevance


def check_ledger(out: Arrays, relevances: list[np.ndarray]) -> None:
    """sum(R) + ledger = explained for each sample, to 1e-9 of the largest of the terms."""
    samples = len(out["explained"])
    rows = np.concatenate([r.reshape(samples, -1) for r in relevances], axis=1)
    gap = np.abs(rows.sum(axis=1) + out["ledger"] - out["explained"])
    largest = np.abs(np.concatenate([rows, out["ledger_by_node"], out["explained"][:, None]], axis=1)).max(axis=1)
    assert (gap <= 1e-9 * largest).all(), (gap, largest)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-10 of the largest."""
    error = np.abs(found.ravel() - expected.ravel()).max()
    assert error <= 1e-10 * np.abs(expected).max(), error
