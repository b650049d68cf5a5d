"""External data: never read, shared in the same folder, copied to another one, wherever in the model it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import xaicompile
from tests.graphs import data, run
from tests.nets import cnn, external
from xaicompile.compiler import compile_model

X = data(2, 3, 12, 12)


def test_external_data_is_shared_in_the_same_folder(tmp_path: Path) -> None:
    source = external(tmp_path)
    stamp = (tmp_path / "weights.bin").stat().st_mtime_ns
    compiled = compile_model(source)
    outside = [t for t in compiled.model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert len(outside) == 6 and not any(t.raw_data for t in outside)
    assert compiled.save(tmp_path / "out.onnx") == [tmp_path / "out.onnx"]
    assert (tmp_path / "weights.bin").stat().st_mtime_ns == stamp
    assert {p.name for p in tmp_path.iterdir()} == {"external.onnx", "weights.bin", "out.onnx"}
    check_external(tmp_path / "out.onnx")


def test_external_data_is_written_beside_the_output(tmp_path: Path) -> None:
    folder, into = tmp_path / "in", tmp_path / "out"
    folder.mkdir(), into.mkdir()
    compiled = compile_model(external(folder))
    assert compiled.save(into / "out.onnx") == [into / "out.onnx", into / "weights.bin"]
    (folder / "weights.bin").unlink()  # the output must not need the source
    check_external(into / "out.onnx")


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    folder, into = tmp_path / "in", tmp_path / "out"
    (folder / "data").mkdir(parents=True), into.mkdir()
    source = external(folder, "data/w.bin")
    (folder / "weights.bin").rename(folder / "data" / "w.bin")
    assert compile_model(source).save(into / "out.onnx") == [into / "out.onnx", into / "data" / "w.bin"]
    check_external(into / "out.onnx")


def check_external(path: Path) -> None:
    want = run(xaicompile.compile(cnn()), {"x": X})
    got = run(str(path), {"x": X})
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_external_data_runs_from_python(tmp_path: Path) -> None:
    got = xaicompile.explain(external(tmp_path), X)
    np.testing.assert_array_equal(got["relevance"], xaicompile.explain(cnn(), X)["relevance"])


def outside(tensor: onnx.TensorProto, folder: Path, location: str) -> onnx.TensorProto:
    """The tensor with its numbers in a file of its own."""
    (folder / location).write_bytes(tensor.raw_data)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(tensor.raw_data)))):
        tensor.external_data.add(key=key, value=value)
    tensor.ClearField("raw_data")
    return tensor


def test_external_data_of_constants_and_subgraphs(tmp_path: Path) -> None:
    folder, into = tmp_path / "in", tmp_path / "out"
    folder.mkdir(), into.mkdir()
    k, k2 = (numpy_helper.from_array(np.asarray(v, np.float32), n) for v, n in (([1, 2, 3], "k"), ([4, 5, 6], "k2")))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("a", "b")]
    yes = helper.make_graph(
        [helper.make_node("Identity", ["k2"], ["a"])], "yes", [], ends[:1], [outside(k2, folder, "2.bin")]
    )
    no = helper.make_graph([helper.make_node("Neg", ["k"], ["b"])], "no", [], ends[1:])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=outside(k, folder, "1.bin")),
        helper.make_node("Mul", ["x", "k"], ["h"]),
        helper.make_node("If", ["flag"], ["s"], then_branch=yes, else_branch=no),
        helper.make_node("Mul", ["h", "s"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info(*v) for v in (("x", TensorProto.FLOAT, ["N", 3]), ("flag", TensorProto.BOOL, []))
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    written = compile_model(folder / "in.onnx", "gradient").save(into / "out.onnx")
    assert sorted(p.name for p in written) == ["1.bin", "2.bin", "out.onnx"]
    feed = {"x": data(2, 3), "flag": np.asarray(True), "target": np.asarray([2])}
    np.testing.assert_array_equal(run(str(into / "out.onnx"), feed)["relevance"], [[0, 0, 18]] * 2)
