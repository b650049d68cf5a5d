"""Integrated gradients whose path begins behind the affine ops in front: it is the same, and less runs in a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import data, exact, net, weight
from xaicompile.compiler import compile_model

F64 = np.float64
CONV = "Conv<pads=[1,1,1,1]>"
TRAINING = "BatchNormalization<training_mode=1>"
HEAD = "g = ReduceMean<keepdims=0>(e, spatial) \n y = MatMul(g, out)"
FRONTS = {  # from the photo x to z, by what stands in front of the ReLU; and whether it stays in each step
    "one convolution": (f"z = {CONV}(x, w1, b1)", False),
    "scaled photos": (f"c = Sub(x, mean) \n d = Div(c, std) \n z = {CONV}(d, w1, b1)", False),
    "pixels behind": (f"t = Transpose<perm=[0,3,1,2]>(u) \n z = {CONV}(t, w1)", False),
    "padded": (f"p = Pad(x, pads) \n q = Slice(p, from, to) \n z = {CONV}(q, w1)", False),
    "two convolutions": (f"c = {CONV}(x, w1) \n d = Add(c, b) \n z = {CONV}(d, w2)", False),
    "a convolution and its input": (f"c = {CONV}(x, same) \n z = Add(c, x)", False),
    "normalised": (f"c = {CONV}(x, w1) \n z = BatchNormalization(c, b1, b1, b1, scales)", False),
    "normalised by the batch": (f"c, m, v = {TRAINING}(x, ones, ones, ones, ones) \n z = {CONV}(c, w1)", True),
    "squares": (f"c = Mul(x, x) \n z = {CONV}(c, w1)", True),
    "largest first": (f"c, i = TopK<axis=1>(x, three) \n z = {CONV}(c, w1)", True),
    "passed by": (f"c = {CONV}(x, same) \n r = Relu(c) \n z = Add(r, x)", True),
    "only scaled": ("z = Div(x, std)", True),  # nothing is gained
}


def photo_net(front: str) -> onnx.ModelProto:
    """A front, ReLU, a convolution, ReLU, the mean over the positions and three classes, in float64."""
    channels = 3 if front in ("a convolution and its input", "passed by", "only scaled") else 4
    held = {
        "w1": weight(4, 3, 3, 3, dtype=F64),
        "b1": weight(4, dtype=F64),
        "w2": weight(4, 4, 3, 3, seed=2, dtype=F64),
        "same": weight(3, 3, 3, 3, seed=3, dtype=F64),
        "w3": weight(5, channels, 3, 3, seed=4, dtype=F64),
        "scales": np.abs(data(4, dtype=F64)) + 0.5,
        "ones": np.ones(3),
        "b": data(4, 1, 1, dtype=F64),
        "mean": data(3, 1, 1, dtype=F64),
        "std": np.abs(data(3, 1, 1, seed=1, dtype=F64)) + 0.5,
        "out": weight(5, 3, dtype=F64),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "from": np.array([0, 0, 1, 1]),
        "to": np.array([2**63 - 1, 2**63 - 1, 7, 7]),
        "three": np.array([3]),
        "spatial": np.array([2, 3]),
    }
    text = f"{FRONTS[front][0]} \n a = Relu(z) \n s = {CONV}(a, w3) \n e = Relu(s) \n {HEAD}"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    x = "double[N,6,6,3] u" if front == "pixels behind" else "double[N,3,6,6] x"
    return net(f"({x}) => (double[N,3] y)", text, **{k: v for k, v in held.items() if k in words})


def forward_in_a_step(model: onnx.ModelProto) -> list[str]:
    """The convolutions that a step does forward, and what else it takes from the model."""
    (scan,) = (n for n in model.graph.node if n.op_type == "Scan")
    ops = ("Conv", "Relu", "Sub", "Div", "TopK", "Transpose", "Pad", "Slice", "BatchNormalization")
    path = ("/step/Sub", "/step/Mul", "/step/Add")
    nodes = [n for n in scan.attribute[0].g.node if "/step/" in n.name and not n.name.startswith(path)]
    return [n.op_type for n in nodes if n.op_type in ops]


@pytest.mark.parametrize(("baseline", "chunk"), [("zero", 1), ("zero", 3), (0.3, None), ("mean", None), ("mean", 1)])
@pytest.mark.parametrize("front", list(FRONTS))
def test_the_path_behind_the_front_gives_what_a_loop_over_gradients_gives(
    front: str, baseline: str | float, chunk: int | None
) -> None:
    model = photo_net(front)
    name, steps = model.graph.input[0].name, 6
    x = data(*((2, 6, 6, 3) if name == "u" else (2, 3, 6, 6)), dtype=F64)
    axes = (1, 2) if name == "u" else (2, 3)
    base = {"zero": 0.0, "mean": x.mean(axes, keepdims=True)}.get(str(baseline), baseline)
    target = np.array([1, 2])
    parameters = {"steps": steps, "baseline": baseline}
    chunk = None if front == "normalised by the batch" else chunk  # where several points would meet
    made = compile_model(model, "integrated-gradients", parameters=parameters, chunk=chunk)
    found = exact(made.model, {name: x, "target": target})
    gradient = compile_model(model, "gradient").model
    slopes = [
        exact(gradient, {name: base + (x - base) * ((k + 0.5) / steps), "target": target})["relevance"]
        for k in range(steps)
    ]
    expected = (x - base) * np.mean(slopes, 0)
    np.testing.assert_allclose(found["relevance"], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("front", list(FRONTS))
def test_only_what_bends_runs_in_each_step(front: str) -> None:
    made = compile_model(photo_net(front), "integrated-gradients", parameters={"steps": 6})
    text, kept = FRONTS[front]
    ops = [line.split("=")[1].split("<")[0].split("(")[0].strip() for line in text.split("\n")]
    stays = [op for op in ops if op not in ("Mul", "Add")] if kept else []
    assert forward_in_a_step(made.model) == [*stays, "Relu", "Conv", "Relu"]
    assert {a.op for a in made.assignments} >= set(ops), "the front is listed among the nodes that have a rule"


@pytest.mark.parametrize("chunk", [1, 3])
def test_several_points_at_a_time_begin_behind_the_front_too(chunk: int) -> None:
    made = compile_model(photo_net("one convolution"), "integrated-gradients", parameters={"steps": 6}, chunk=chunk)
    assert forward_in_a_step(made.model) == ["Relu", "Conv", "Relu"]


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_path_behind_which_time_comes_first_is_not_joined_along_time(chunk: int | None) -> None:
    body = "s = Transpose<perm=[1,0,2]>(x) \n m = MatMul(s, w) \n q = Tanh(m) \n r = ReduceSum<keepdims=0>(q, zero) \n"
    weights = {"w": weight(5, 3, dtype=F64), "v": weight(3, 4, dtype=F64), "zero": np.array([0])}
    model = net("(double[N,T,5] x) => (double[N,4] y)", f"{body} y = MatMul(r, v)", **weights)
    feed = {"x": data(2, 4, 5, dtype=F64)}
    one_by_one, made = (
        compile_model(model, "integrated-gradients", parameters={"steps": 6}, chunk=k).model for k in (1, chunk)
    )
    expected, found = (exact(m, feed)["relevance"] for m in (one_by_one, made))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_other_rules_keep_the_front_in_each_step(tmp_path: Path) -> None:
    text = 'name = "guided"\nextends = "guided-backprop"\nmethod = "integrated-gradients"\noutput = "relevance"\n'
    (tmp_path / "guided.toml").write_text(text)
    made = compile_model(photo_net("one convolution"), tmp_path / "guided.toml")
    assert forward_in_a_step(made.model) == ["Conv", "Relu", "Conv", "Relu"]
