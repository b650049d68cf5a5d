"""Small networks for tests of the whole program, made with onnx.helper and seeded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def he(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights that keep the scale of their input."""
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def finish(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
    **model: object,
) -> onnx.ModelProto:
    """A checked model of opset 18."""
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, **model)
    onnx.checker.check_model(made, full_check=True)
    return made


def cnn(softmax: bool = False, batch: str | int = "N", channels: int = 3) -> onnx.ModelProto:
    """Conv, ReLU, Conv, residual Add, max-pool, average and Gemm on `[N, 3, 12, 12]`, five classes."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": he(rng, 6, channels, 3, 3),
        "b1": he(rng, 6, 1)[:, 0] * np.float32(0.1),
        "w2": he(rng, 6, 6, 3, 3),
        "b2": he(rng, 6, 1)[:, 0] * np.float32(0.1),
        "w3": he(rng, 5, 6),
        "b3": he(rng, 5, 1)[:, 0] * np.float32(0.1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["z1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["z1"], ["a1"], name="relu1"),
        helper.make_node("Conv", ["a1", "w2", "b2"], ["z2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["z2", "a1"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["a2"], name="relu2"),
        helper.make_node("MaxPool", ["a2"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["prob"], name="prob", axis=1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, 12, 12])
    y = helper.make_tensor_value_info("prob" if softmax else "logits", TensorProto.FLOAT, [batch, 5])
    return finish(nodes, [x], [y], weights)


def cast(before: int, after: int) -> onnx.ModelProto:
    """One Cast on `[N, 4]`."""
    x = helper.make_tensor_value_info("x", before, ["N", 4])
    y = helper.make_tensor_value_info("y", after, ["N", 4])
    return finish([helper.make_node("Cast", ["x"], ["y"], name="cast", to=after)], [x], [y], {})


def external(folder: Path, location: str = "weights.bin") -> Path:
    """The small CNN with its weights in a file beside it."""
    path = folder / "external.onnx"
    onnx.save(cnn(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path
