"""Bad input: one clear line on stderr, the documented exit code, and nothing written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import xaicompile
from tests.nets import cast, cnn, external
from xaicompile import checks
from xaicompile.cli import cli
from xaicompile.compiler import compile_model
from xaicompile.errors import OutputError, RuleError, XaiCompileError
from xaicompile.runtime import Session


def refused(folder: Path, *arguments: str | Path, code: int) -> str:
    """Run the program, expect one line of error and no change in the folder, and return that line."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert result.exit_code == code, result.output + repr(result.exception)
    assert after == before, "something was written"
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return lines[0]


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_no_such_file(tmp_path: Path) -> None:
    assert "missing.onnx" in refused(tmp_path, tmp_path / "missing.onnx", code=3)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", bytes(range(256)) * 8])
def test_not_a_protobuf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "model.onnx" in refused(tmp_path, tmp_path / "model.onnx", code=3)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
def test_truncated(tmp_path: Path, part: float) -> None:
    data = cnn().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data[: int(len(data) * part)])
    assert "model.onnx" in refused(tmp_path, tmp_path / "model.onnx", code=3)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    assert str(tmp_path) in refused(tmp_path, tmp_path, "-o", tmp_path / "out.onnx", code=3)


def test_external_data_is_missing(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refused(tmp_path, path, code=3)


def test_external_data_is_cut_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert "weights.bin" in refused(tmp_path, path, code=3)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", ""])
def test_external_data_leaves_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 16))
    line = refused(tmp_path, external(folder, location), code=3)
    assert "leaves" in line and location in line


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    assert "leaves" in refused(tmp_path, path, code=3)


def chain(*ops: tuple[str, str]) -> onnx.ModelProto:
    """Nodes of one input and one output after another, unchecked."""
    nodes = [helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], f"n{i}", domain=d) for i, (op, d) in enumerate(ops)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("t0", f"t{len(ops)}")]
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in {d for _, d in ops} - {""})]
    return helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8)


def test_unknown_operators_are_all_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, chain(("Relu", ""), ("Wobble", "my.domain"), ("Tanh", ""), ("Frobnicate", "other")))
    line = refused(tmp_path, path, code=4)
    assert "Wobble" in line and "n1" in line and "Frobnicate" in line and "n3" in line


def test_unknown_operator_of_the_standard(tmp_path: Path) -> None:
    path = saved(tmp_path, chain(("Wobble", ""), ("Relu", ""), ("Frobnicate", "")))
    line = refused(tmp_path, path, code=3)
    assert "Wobble" in line and "Frobnicate" in line


def test_cyclic_graph(tmp_path: Path) -> None:
    model = chain(("Relu", ""), ("Tanh", ""), ("Relu", ""))
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["t0", "t2"], ["t1"], "n0"))
    assert "cycle" in refused(tmp_path, saved(tmp_path, model), code=3)


def test_a_tensor_that_nothing_makes(tmp_path: Path) -> None:
    model = chain(("Relu", ""), ("Tanh", ""))
    model.graph.node[1].input[0] = "nowhere"
    assert "nowhere" in refused(tmp_path, saved(tmp_path, model), code=3)


def test_no_floating_point_input(tmp_path: Path) -> None:
    path = saved(tmp_path, cast(TensorProto.INT64, TensorProto.FLOAT))
    assert "no floating-point input" in refused(tmp_path, path, code=3)


def test_integer_output_only(tmp_path: Path) -> None:
    path = saved(tmp_path, cast(TensorProto.FLOAT, TensorProto.INT64))
    assert "no output is floating-point" in refused(tmp_path, path, code=3)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--rule", "lrp-gama"), "lrp-gamma"),
        (("--rule", "missing.toml"), "missing.toml"),
        (("--set", "gama=0.1"), "gamma"),
        (("--set", "gamma"), "KEY=VALUE"),
        (("--set", "gamma=abc"), "'gamma' is a number"),
        (("--set", "gamma=-1"), "negative"),
        (("--set", "gamma=1,2"), "'gamma' is a number"),
        (("--set", "gamma=nan"), "'gamma' is a number"),
        (("--set", "low=a,b"), "one a channel"),
        (("--target", "first"), "first"),
        (("--mean", "a,b"), "a,b"),
        (("--size", "0"), "--size"),
        (("--std", "0"), "std"),
    ],
)
def test_unknown_rule_or_parameter(tmp_path: Path, options: tuple[str, str], hint: str) -> None:
    assert hint in refused(tmp_path, saved(tmp_path, cnn()), *options, code=2)


@pytest.mark.parametrize(
    "text",
    ["this is [no toml", 'name = "x"\nrulez = []', '[[rules]]\nmatch = { opp = "Conv" }\nrule = "gamma"', "\xff\xfe"],
)
def test_broken_rule_set(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.toml").write_text(text, encoding="latin-1")
    line = refused(tmp_path, saved(tmp_path, cnn()), "--rule", tmp_path / "own.toml", code=2)
    assert "own.toml" in line


@pytest.mark.parametrize("option", ["--explain-output", "--explain-input", "--layers"])
def test_names_that_are_not_in_the_model(tmp_path: Path, option: str) -> None:
    line = refused(tmp_path, saved(tmp_path, cnn()), option, "nothing_like_this", code=2)
    assert "nothing_like_this" in line


def test_output_cannot_be_written(tmp_path: Path) -> None:
    path = saved(tmp_path, cnn())
    assert "no such folder" in refused(tmp_path, path, "-o", tmp_path / "none" / "out.onnx", code=5)
    assert "folder" in refused(tmp_path, path, "-o", path / "out.onnx", code=5)
    assert "folder" in refused(tmp_path, path, "-o", tmp_path, code=5)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folder_is_read_only(tmp_path: Path) -> None:
    path = saved(tmp_path, cnn())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    assert "out.onnx" in refused(tmp_path, path, "-o", closed / "out.onnx", code=5)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, cnn())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in refused(tmp_path, path, "-o", tmp_path / "out.onnx", code=5)


def test_a_disk_that_fills_up_leaves_no_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    path = external(tmp_path / "source")
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if str(target).endswith(".onnx"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in refused(tmp_path / "other", path, "-o", tmp_path / "other" / "out.onnx", code=5)


def test_output_is_the_input(tmp_path: Path) -> None:
    path = saved(tmp_path, cnn())
    assert "is the input itself" in refused(tmp_path, path, "-o", path, code=5)
    (tmp_path / "link.onnx").symlink_to(path)
    assert "is the input itself" in refused(tmp_path, path, "-o", tmp_path / "link.onnx", code=5)
    result = CliRunner().invoke(cli, [str(path), "-o", str(path), "--force"])
    assert result.exit_code == 0, result.output
    assert "relevance" in [o.name for o in onnx.load(path).graph.output]


def test_save_from_python_does_not_replace_the_source(tmp_path: Path) -> None:
    path = saved(tmp_path, cnn())
    with pytest.raises(OutputError, match="is the input itself"):
        compile_model(path).save(path)


def test_a_failed_self_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, cnn())
    report = checks.CheckReport([checks.Item("prediction", False, "'logits' differs")])
    monkeypatch.setattr(checks, "check", lambda *_, **__: report)
    result = CliRunner().invoke(cli, [str(path)])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.splitlines()[-1] == "Error: prediction: 'logits' differs; nothing was written"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_target_out_of_range_gives_zeros() -> None:
    session = Session(xaicompile.compile(cnn(), "gradient"))
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    usual = session.run({"x": x})
    assert np.any(usual["relevance"][0]) and np.any(usual["relevance"][1])
    for target in ([5], [2**40], [-7]):
        result = session.run({"x": x, "target": np.array(target)})
        assert np.array_equal(result["logits"], usual["logits"])
        assert result["relevance"].shape == x.shape and not np.any(result["relevance"])
    mixed = session.run({"x": x, "target": np.array([1, 99])})["relevance"]
    assert np.any(mixed[0]) and not np.any(mixed[1])


@pytest.mark.parametrize("target", [5, -2, [0, 5], [[0, 9]]])
def test_a_default_target_that_is_none_is_refused(target: Any) -> None:
    maps = {"maps": 2} if np.ndim(target) > 1 else {}
    with pytest.raises(RuleError, match=r"^--target -?\d+: 'logits' has 5 values a sample, from 0 on$"):
        xaicompile.compile(cnn(), "gradient", target=target, **maps)


@pytest.mark.parametrize("command", ["bench", "explain", "check"])
def test_no_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    path = saved(tmp_path, cnn())
    out = tmp_path / "out.onnx"
    compile_model(path, "gradient").save(out)
    np.save(tmp_path / "x.npy", np.ones((1, 3, 12, 12), np.float32))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = {
        "bench": ["bench", path],
        "explain": ["explain", out, tmp_path / "x.npy", "-o", tmp_path / "map.png"],
        "check": ["check", out, "--against", path],
    }[command]
    line = refused(tmp_path, *arguments, code=6)
    assert 'pip install "xaicompile[cpu]"' in line


def test_no_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    line = refused(tmp_path, "bench", saved(tmp_path, cnn()), "--device", "cuda", code=6)
    assert 'pip install "xaicompile[gpu]"' in line


def test_compiling_needs_no_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, cnn())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(cli, [str(path)])
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime is not installed" in result.stdout
    assert (tmp_path / "model.explained.onnx").exists()
    assert "pip install" in refused(tmp_path, path, "--check", "--force", code=6)


def test_explain_refuses(tmp_path: Path) -> None:
    path, out = saved(tmp_path, cnn()), tmp_path / "out.onnx"
    compile_model(path, "gradient").save(out)
    np.save(tmp_path / "x.npy", np.ones((1, 3, 12, 12), np.float32))
    np.save(tmp_path / "wrong.npy", np.ones((1, 7, 12, 12), np.float32))
    (tmp_path / "text.png").write_text("no picture")
    heatmap = ("-o", tmp_path / "map.png")
    assert "not compiled" in refused(tmp_path, "explain", path, tmp_path / "x.npy", *heatmap, code=3)
    assert "could not run" in refused(tmp_path, "explain", out, tmp_path / "wrong.npy", *heatmap, code=3)
    assert "text.png" in refused(tmp_path, "explain", out, tmp_path / "text.png", *heatmap, code=3)
    assert "none.png" in refused(tmp_path, "explain", out, tmp_path / "none.png", *heatmap, code=3)
    assert "is an input" in refused(tmp_path, "explain", out, tmp_path / "x.npy", "-o", tmp_path / "x.npy", code=5)
    assert "0 to 4" in refused(tmp_path, "explain", out, tmp_path / "x.npy", "--target", "5", *heatmap, code=2)
    assert "names" in refused(tmp_path, "explain", out, tmp_path / "x.npy", "--target", "cat", *heatmap, code=2)


def test_python_gives_the_same_errors(tmp_path: Path) -> None:
    with pytest.raises(XaiCompileError, match=r"missing\.onnx"):
        xaicompile.compile(tmp_path / "missing.onnx")
    with pytest.raises(XaiCompileError, match="lrp-gamma"):
        xaicompile.compile(cnn(), "lrp-gama")
    with pytest.raises(XaiCompileError, match="not an ONNX model"):
        xaicompile.compile(b"no model")


def test_shapes_that_fit_no_more_once_an_operator_is_written_out(tmp_path: Path) -> None:
    """As in the runtime's own logreg_iris.onnx: three classes of four features, of an input of two."""
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], name="sorted", domain="ai.onnx.ml", classlabels_ints=[0, 1, 2],
        coefficients=[0.5] * 12, intercepts=[0.0] * 3, post_transform="NONE",
    )  # fmt: skip
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [3]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [3, 3]),
    ]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)], ir_version=3)
    line = refused(tmp_path, saved(tmp_path, model), code=3)
    assert "'sorted'" in line and "don't fit" in line and "4 and 2" in line
