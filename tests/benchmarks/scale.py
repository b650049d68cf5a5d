"""Scale: time, peak memory and file growth of compiling large models. Prints a table; fails where a limit is passed.

    python tests/benchmarks/scale.py [--folder DIR] [NAME ...]

Each model is compiled by the command line in a process of its own (`--no-check`: nothing is run). Needs about 1.1 GB
of disk: the external data is a sparse file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels; 0 is a pool
WIDTH, LAYERS = 5000, 24  # of the 2.4 GB model


def model_of(
    nodes: list[onnx.NodeProto], weights: list[TensorProto], shape: list[int | str], out: list[int | str]
) -> onnx.ModelProto:
    """A model from the first node's input `x` to the last node's output."""
    x = helper.make_tensor_value_info("x", FLOAT, shape)
    y = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, out)
    graph = helper.make_graph(nodes, "scale", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def zeros(name: str, *dims: int) -> TensorProto:
    """A weight of zeros inside the file."""
    size = 4
    for d in dims:
        size *= d
    return TensorProto(name=name, data_type=FLOAT, dims=dims, raw_data=bytes(size))


def vgg16(folder: Path) -> Path:
    """VGG-16 with all its 138 M parameters in the file, 528 MB."""
    nodes, weights, last, channels = [], [], "x", 3

    def layer(op: str, *dims: int, **attributes: object) -> None:
        nonlocal last
        name = f"{op.lower()}{len(weights)}"
        weights.extend((zeros(f"{name}.w", *dims), zeros(f"{name}.b", dims[0])))
        nodes.append(helper.make_node(op, [last, f"{name}.w", f"{name}.b"], [name], name, **attributes))
        last = name

    def step(op: str, **attributes: object) -> None:
        nonlocal last
        nodes.append(helper.make_node(op, [last], [f"{op.lower()}_{len(nodes)}"], f"{op}_{len(nodes)}", **attributes))
        last = nodes[-1].output[0]

    for width in VGG16:
        if width:
            layer("Conv", width, channels, 3, 3, pads=[1, 1, 1, 1])
            step("Relu")
            channels = width
        else:
            step("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    step("Flatten")
    for width, fan_in in ((4096, 512 * 49), (4096, 4096), (1000, 4096)):
        layer("Gemm", width, fan_in, transB=1)
        if width != 1000:
            step("Relu")
    path = folder / "vgg16.onnx"
    path.write_bytes(model_of(nodes, weights, ["N", 3, 224, 224], ["N", 1000]).SerializeToString())
    return path


def external(folder: Path) -> Path:
    """Dense layers with 2.4 GB of weights in a (sparse) file beside the model."""
    nodes, weights, size = [], [], WIDTH * WIDTH * 4
    for i in range(LAYERS):
        t = TensorProto(name=f"w{i}", data_type=FLOAT, dims=[WIDTH, WIDTH], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "external.bin"), ("offset", str(i * size)), ("length", str(size))):
            t.external_data.add(key=key, value=value)
        weights.append(t)
        nodes.append(helper.make_node("MatMul", [f"a{i}" if i else "x", f"w{i}"], [f"z{i}"], f"dense{i}"))
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"a{i + 1}"], f"relu{i}"))
    with (folder / "external.bin").open("wb") as file:
        file.truncate(LAYERS * size)
    path = folder / "external.onnx"
    path.write_bytes(model_of(nodes, weights, ["N", WIDTH], ["N", WIDTH]).SerializeToString())
    return path


def nodes_10000(folder: Path) -> Path:
    """Ten thousand nodes: residual blocks of Conv, Relu, Conv, Add, Relu."""
    nodes, last = [], "x"
    weights = [TensorProto(name="w", data_type=FLOAT, dims=[4, 4, 3, 3], raw_data=bytes(4 * 4 * 9 * 4))]
    for i in range(2000):
        chain = [f"b{i}_{k}" for k in range(5)]
        conv = {"pads": [1, 1, 1, 1]}
        nodes += [
            helper.make_node("Conv", [last, "w"], [chain[0]], f"conv_a{i}", **conv),
            helper.make_node("Relu", [chain[0]], [chain[1]], f"relu_a{i}"),
            helper.make_node("Conv", [chain[1], "w"], [chain[2]], f"conv_b{i}", **conv),
            helper.make_node("Add", [chain[2], last], [chain[3]], f"add{i}"),
            helper.make_node("Relu", [chain[3]], [chain[4]], f"relu_b{i}"),
        ]
        last = chain[4]
    path = folder / "nodes.onnx"
    path.write_bytes(model_of(nodes, weights, ["N", 4, 8, 8], ["N", 4, 8, 8]).SerializeToString())
    return path


@dataclass(frozen=True)
class Row:
    """A model, the rule sets to compile it with, and its limits (None: none); `seconds` are the processor's.

    On a quiet machine the clock shows no more than the processor's seconds, as compiling uses one core.
    """

    make: Callable[[Path], Path]
    rules: tuple[str, ...]
    seconds: float | None = None
    peak_mb: float | None = None
    growth_mb: float | None = None


ROWS = {
    "vgg16": Row(vgg16, ("gradient", "lrp-gamma"), growth_mb=1.0),
    "external": Row(external, ("gradient", "lrp-gamma"), seconds=5.0, peak_mb=300.0, growth_mb=1.0),
    "nodes": Row(nodes_10000, ("gradient", "lrp-gamma"), seconds=10.0),
}


def measured(source: Path, rule: str) -> tuple[float, float, float, float]:
    """Seconds by the clock and of the processor, peak memory in MB and growth in MB of one run of the command line."""
    output = source.with_suffix(".explained.onnx")
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "xaicompile", str(source), "--rule", rule, "--no-check", "-o", str(output)]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    growth = (output.stat().st_size - source.stat().st_size) / 1e6
    output.unlink()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6, growth


def cell(value: float, limit: float | None) -> str:
    """A number and its limit."""
    return f"{value:.2f}" if limit is None else f"{value:.2f} (< {limit:g}{'' if value < limit else ', MISSED'})"


def main() -> None:
    """Print the table; exit with 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--folder", type=Path, help="where to write the models (default: a temporary folder)")
    parser.add_argument("--make", action="store_true", help="only write the models, into --folder")
    options = parser.parse_args()
    if options.make:
        print(*(ROWS[name].make(options.folder) for name in options.names))
        return
    missed = False
    print("| model | file, MB | rule | seconds | processor seconds | peak memory, MB | growth, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.names or ROWS:
            row = ROWS[name]
            # in a process of its own: a child's peak counts what its parent held when it started
            command = [sys.executable, __file__, "--make", "--folder", folder, name]
            source = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
            for rule in row.rules:
                values = measured(source, rule)
                limits = (None, row.seconds, row.peak_mb, row.growth_mb)
                missed |= any(limit is not None and v >= limit for v, limit in zip(values, limits, strict=True))
                cells = " | ".join(cell(v, limit) for v, limit in zip(values, limits, strict=True))
                print(f"| {name} | {source.stat().st_size / 1e6:.1f} | {rule} | {cells} |", flush=True)
            for file in Path(folder).iterdir():
                file.unlink()
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
