"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

import xaicompile
from tests.nets import cnn, external, finish, he
from xaicompile.cli import cli
from xaicompile.runtime import Session
from xaicompile.summary import metadata_of

MEAN, STD = "0.5,0.4,0.3", "0.2,0.25,0.5"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a trailing Softmax and class names."""
    proto = cnn(softmax=True)
    helper.set_model_props(proto, {"classes": json.dumps(["ant", "bee", "cat", "dog", "eel"])})
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def test_no_subcommand_is_needed(model: Path) -> None:
    text = run(model)
    out = model.with_name("net.explained.onnx")
    assert str(out) in text
    assert "prob" in text and "cut" in text
    for line in ("ok         prediction: bit-identical", "ok         relevance: finite", "ok         target"):
        assert line in text
    assert [o.name for o in onnx.load(out).graph.output] == ["prob", "relevance"]


def test_options_before_the_model(model: Path, tmp_path: Path) -> None:
    run("--rule", "gradient", "-o", tmp_path / "a.onnx", model)
    run(model, "-o", tmp_path / "b.onnx", "-r", "gradient")
    run("compile", model, "-o", tmp_path / "c.onnx", "-r", "gradient")
    files = [(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_a_second_run_replaces_the_first(model: Path) -> None:
    run(model, "--rule", "gradient")
    run(model, "--rule", "lrp-0")
    assert metadata_of(onnx.load(model.with_name("net.explained.onnx")))["xaicompile.rule"] == "lrp-0"


def test_json(model: Path) -> None:
    result = json.loads(run(model, "--json", "--ledger"))
    assert result["output"] == str(model.with_name("net.explained.onnx"))
    assert sum(result["rules"].values()) >= 8
    assert result["relevance"] == {"x": "relevance"} and result["target"] == "target"
    assert len(result["cut"]) == 1 and "prob" in result["cut"][0]
    assert result["check"]["passed"] and result["check"]["complete"]
    assert "ledger" in [item["name"] for item in result["check"]["checks"]]


def test_no_check(model: Path) -> None:
    assert "not checked" in run(model, "--no-check")


def test_parameters_reach_the_rule(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    maps = {}
    for gamma in ("0", "0.25", "5"):
        out = tmp_path / f"g{gamma}.onnx"
        run(model, "--rule", "lrp-gamma", "--set", f"gamma={gamma}", "-o", out)
        assert json.loads(metadata_of(onnx.load(out))["xaicompile.parameters"])["gamma"] == float(gamma)
        maps[gamma] = Session(out).run({"x": x})["relevance"]
    run(model, "--rule", "lrp-gamma", "-o", tmp_path / "usual.onnx")
    np.testing.assert_array_equal(Session(tmp_path / "usual.onnx").run({"x": x})["relevance"], maps["0.25"])
    assert abs(maps["0"] - maps["5"]).max() > 1e-2 * abs(maps["0"]).max()


def test_mean_and_std_give_the_box(model: Path, tmp_path: Path) -> None:
    run(model, "--mean", MEAN, "--std", STD, "-o", tmp_path / "a.onnx")
    low, high = "-2.5,-1.6,-0.6", "2.5,2.4,1.4"
    run(model, "--set", f"low={low}", "--set", f"high={high}", "-o", tmp_path / "b.onnx")
    run(model, "-o", tmp_path / "c.onnx")
    metadata = metadata_of(onnx.load(tmp_path / "a.onnx"))
    np.testing.assert_allclose(json.loads(metadata["xaicompile.preprocess"])["mean"], [0.5, 0.4, 0.3])
    x = np.random.default_rng(0).uniform(-0.5, 1, (1, 3, 12, 12)).astype(np.float32)
    a, b, c = (Session(tmp_path / f"{name}.onnx").run({"x": x})["relevance"] for name in "abc")
    np.testing.assert_allclose(a, b, atol=1e-6 * abs(b).max())
    assert abs(a - c).max() > 1e-2 * abs(c).max()


def test_mean_and_std_give_the_box_in_python_too(model: Path, tmp_path: Path) -> None:
    run(model, "--mean", MEAN, "--std", STD, "--size", "16,12", "-o", tmp_path / "a.onnx")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5], "range": 1.0, "resize": 16, "crop": [12, 12]}
    proto = xaicompile.compile(model, "lrp-gamma", preprocess=preprocess)
    assert proto.SerializeToString() == (tmp_path / "a.onnx").read_bytes()
    kept = xaicompile.compile(model, parameters={"low": -9, "high": 9}, preprocess=preprocess)
    assert json.loads(metadata_of(kept)["xaicompile.parameters"])["low"] == -9


def test_mean_is_no_obstacle_for_a_rule_without_a_box(model: Path) -> None:
    run(model, "--rule", "gradient", "--mean", MEAN, "--std", STD)


def test_target_and_layers(model: Path, tmp_path: Path) -> None:
    run(model, "--rule", "gradient", "--target", "3", "--layers", "a1", "-o", tmp_path / "a.onnx")
    run(model, "--rule", "gradient", "-o", tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    session = Session(tmp_path / "a.onnx")
    assert "relevance_a1" in [port.name for port in session.outputs]
    got = session.run({"x": x})["relevance"]
    expected = Session(tmp_path / "b.onnx").run({"x": x, "target": np.array([3])})["relevance"]
    np.testing.assert_array_equal(got, expected)


def test_rules(model: Path) -> None:
    text = run("rules")
    names = [line.split()[0] for line in text.splitlines()]
    assert {"gradient", "guided-backprop", "deconvnet", "lrp-0", "lrp-epsilon", "lrp-gamma"} <= set(names)
    listed = {one["name"]: one for one in json.loads(run("rules", "--json"))}
    assert set(listed) == set(names)
    assert listed["lrp-gamma"]["parameters"]["gamma"] == 0.25
    assert all(one["doc"] for one in listed.values())


def test_inspect(model: Path) -> None:
    text = run("inspect", model, "--rule", "lrp-gamma")
    conv = next(line for line in text.splitlines() if line.startswith("conv1"))
    assert "Conv" in conv and "gamma" in conv
    nodes = json.loads(run("inspect", model, "--json"))["nodes"]
    assert {"conv1", "conv2", "pool", "fc"} <= {node["node"] for node in nodes}
    assert all(node["rule"] and node["reason"] for node in nodes)
    assert not model.with_name("net.explained.onnx").exists()


def test_a_rule_set_that_changes_nothing_says_so(model: Path, tmp_path: Path) -> None:
    proto = cnn()
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Tanh"
    (tmp_path / "tanh.onnx").write_bytes(proto.SerializeToString())
    text = run(tmp_path / "tanh.onnx", "--rule", "guided-backprop")
    assert "no node fits guided (op=Relu): 'guided-backprop' is the same as 'gradient' for this model" in text
    for path, rule in ((model, "guided-backprop"), (tmp_path / "tanh.onnx", "gradient"), (model, "lrp-gamma")):
        assert "no node fits" not in run(path, "--rule", rule, "-o", tmp_path / "out.onnx", "--force")


def test_check(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run(model, "-o", out, "--ledger", "--no-check")
    result = json.loads(run("check", out, "--against", model, "--json"))
    assert result["passed"] and result["complete"]
    names = {item["name"] for item in result["checks"]}
    assert {"operators", "outputs", "source hash", "rule hash", "prediction", "relevance", "ledger", "target"} <= names
    other = onnx.load(model)
    other.graph.doc_string = "another model"
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    assert "FAILED     source hash" in run("check", out, "--against", tmp_path / "other.onnx", code=1)


def test_check_compares_the_rule_set(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('extends = "lrp-gamma"\n[parameters]\ngamma = 1.0\n')
    out = tmp_path / "out.onnx"
    run(model, "--rule", own, "-o", out)
    assert "'own'" in run("check", out, "--against", model)
    run("check", out, "--against", model, "--rule", own)
    assert "FAILED     rule hash" in run("check", out, "--against", model, "--rule", "lrp-gamma", code=1)
    own.write_text('extends = "lrp-gamma"\n[parameters]\ngamma = 2.0\n')
    assert "FAILED     rule hash" in run("check", out, "--against", model, "--rule", own, code=1)


def test_check_fails_where_a_weight_was_changed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run(model, "-o", out)
    changed = onnx.load(out)
    weight = next(t for t in changed.graph.initializer if t.name == "w1")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w1"))
    out.write_bytes(changed.SerializeToString())
    assert "FAILED     prediction" in run("check", out, "--against", model, code=1)


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    run(path, "-o", tmp_path / "same.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["external.onnx", "same.onnx", "weights.bin"]
    (tmp_path / "other").mkdir()
    run(path, "-o", tmp_path / "other" / "out.onnx")
    run("check", tmp_path / "other" / "out.onnx", "--against", path)
    run("bench", path, "--rounds", "1")


def test_bench(model: Path) -> None:
    result = json.loads(run("bench", model, "--rule", "gradient", "--rounds", "3", "--threads", "1", "--json"))
    assert result["rounds"] == 3 and result["batch"] == 1 and result["ratio"] > 0
    assert result["source_bytes"] == model.stat().st_size
    assert result["growth_bytes"] == result["explained_bytes"] - result["source_bytes"] > 0
    assert "times the prediction" in run("bench", model, "--rounds", "2", "--batch", "3")
    assert sorted(p.name for p in model.parent.iterdir()) == ["net.onnx"]


def test_explain_an_array(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    run(model, "-o", out)
    x = np.random.default_rng(0).standard_normal((3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = json.loads(run("explain", out, tmp_path / "x.npy", "-o", tmp_path / "r.npy", "--json"))
    expected = Session(out).run({"x": x[None]})
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected["relevance"])
    winner = int(expected["prob"][0].argmax())
    assert (result["target"], result["class"]) == (winner, ["ant", "bee", "cat", "dog", "eel"][winner])
    assert result["score"] == pytest.approx(float(expected["prob"][0, winner]), rel=1e-6)
    assert result["softmax"] is None  # they are probabilities already
    other = json.loads(run("explain", out, tmp_path / "x.npy", "-o", tmp_path / "s.npy", "--target", "Dog", "--json"))
    assert (other["target"], other["class"]) == (3, "dog")
    named = Session(out).run({"x": x[None], "target": np.array([3])})["relevance"]
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), named)


def test_explain_names_the_target_that_was_compiled_in(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3, 12, 12)).astype(np.float32))
    out = tmp_path / "out.onnx"
    for target in ("1", "3"):
        run(model, "-o", out, "--target", target, "--force")
        result = json.loads(run("explain", out, tmp_path / "x.npy", "-o", tmp_path / "r.npy", "--json"))
        assert result["target"] == int(target)
    run(model, "-o", out, "--explain-reduce", "sum", "--force")
    result = json.loads(run("explain", out, tmp_path / "x.npy", "-o", tmp_path / "r.npy", "--json"))
    assert result["target"] is None and "reduced" in result["title"]
    run("explain", out, tmp_path / "x.npy", "-o", tmp_path / "s.npy", "--target", "3", code=2)


def test_half_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT16, ["N", k]) for n, k in (("x", 64), ("y", 3)))
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    weights = {"w": he(rng, 3, 64).astype(np.float16), "b": he(rng, 3, 1)[:, 0].astype(np.float16)}
    (tmp_path / "half.onnx").write_bytes(finish([node], [x], [y], weights).SerializeToString())
    assert "ok         ledger" in run(tmp_path / "half.onnx", "--ledger")


def test_a_source_that_does_not_run_here_is_not_checked(tmp_path: Path) -> None:
    proto = cnn()
    proto.graph.node.append(helper.make_node("Wobble", ["x"], ["wobbled"], domain="my.domain"))
    proto.graph.output.append(helper.make_tensor_value_info("wobbled", onnx.TensorProto.FLOAT, ["N", 3, 12, 12]))
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "skipped    prediction: the source model itself does not run here" in run(path)
    assert (tmp_path / "net.explained.onnx").exists()
    run("check", tmp_path / "net.explained.onnx", "--against", path, code=1)


def test_explain_a_photo_as_it_was_compiled(model: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "photo.png")
    out = tmp_path / "out.onnx"
    run(model, "-o", out, "--mean", MEAN, "--std", STD)
    run("explain", out, tmp_path / "photo.png", "-o", tmp_path / "r.npy")
    x = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    expected = Session(out).run({"x": x.transpose(2, 0, 1)[None].astype(np.float32)})["relevance"]
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), expected, atol=1e-4 * abs(expected).max())
    text = run("explain", out, tmp_path / "photo.png", "-o", tmp_path / "map.png")
    assert "map.png" in text and "score" in text
    picture = image.open(tmp_path / "map.png")
    assert picture.width > picture.height > 300


def test_help_and_version() -> None:
    text = run("--help")
    assert "Exit codes" in text and "--explain-output" in text and "inspect" in text
    for command in ("rules", "inspect", "check", "bench", "explain"):
        assert "Usage" in run(command, "--help")


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xaicompile", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("xaicompile "), done.stderr


def test_help_is_light() -> None:
    heavy = {"onnxruntime", "matplotlib", "PIL", "torch", "scipy"}
    code = f"import sys; from xaicompile.cli import cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
