"""The samples of `xaicompile evaluate`: photos and arrays, labels, masks, planted marks; and what users do wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.graphs import net, run
from xaicompile.cli import cli
from xaicompile.errors import ModelError, RuleError
from xaicompile.evaluation.artifact import planted
from xaicompile.evaluation.data import Dataset
from xaicompile.evaluation.plan import presets, read_preset
from xaicompile.evaluation.store import Store
from xaicompile.images import Preprocess
from xaicompile.runtime import Port

pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

RANDOM = np.random.default_rng(0)
PORT = Port("x", np.dtype(np.float32), ("N", 3, 8, 8))
W = RANDOM.normal(size=(192, 3)).astype(np.float32)
MODEL = net("(float[N,3,8,8] x) => (float[N,3] y)", "f = Flatten(x) y = MatMul(f, w)", w=W)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos, twice as large as the model's input; one more that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.jpg", "more/d.png"):
        Image.fromarray(RANDOM.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / name)
    return folder


# --- reading ----------------------------------------------------------------------------------------------------------


def test_photos(photos: Path) -> None:
    """In the order of their names, those in folders too, resized, cropped and normalised as photos are elsewhere."""
    data = Dataset(photos, [PORT], preprocess=Preprocess((127.0,), (128.0,)))
    assert data.names == ["a.png", "b.png", "c.jpg", "more/d.png"] and len(data) == 4
    sample = data[1]
    assert sample.name == "b.png" and sample.feed["x"].shape == (1, 3, 8, 8) and sample.feed["x"].dtype == np.float32
    assert sample.pixels is not None and sample.label == -1 and sample.mask is None
    want = (sample.pixels.astype(np.float64).transpose(2, 0, 1) - 127) / 128
    np.testing.assert_allclose(sample.feed["x"][0], want, atol=1e-6)
    assert Dataset(photos, [PORT], samples=2).names == ["a.png", "b.png"]


def test_labels(photos: Path, tmp_path: Path) -> None:
    """By name, with or without its folder and ending, as index or class; else in order."""
    (tmp_path / "by_name.csv").write_text("name,label\nb.png,2\nd,cat\nmissing.png,1\n")
    data = Dataset(photos, [PORT], labels=tmp_path / "by_name.csv", classes=["dog", "Cat", "cow"])
    assert [data[i].label for i in range(4)] == [-1, 2, -1, 1]
    (photos / "labels.csv").write_text("a.png,0\nb.png,1\nc.jpg,2\nmore/d.png,0\n")
    assert list(Dataset(photos, [PORT]).labels.values()) == [0, 1, 2, 0]
    (tmp_path / "rows.txt").write_text("2\n1\n0\n2\n")
    assert list(Dataset(photos, [PORT], labels=tmp_path / "rows.txt").labels.values()) == [2, 1, 0, 2]
    (tmp_path / "headed.csv").write_text("label\n2\n1\n0\n2\n")
    assert list(Dataset(photos, [PORT], labels=tmp_path / "headed.csv").labels.values()) == [2, 1, 0, 2]
    np.save(tmp_path / "rows.npy", np.array([1, 1, 2, 0]))
    assert list(Dataset(photos, [PORT], labels=tmp_path / "rows.npy").labels.values()) == [1, 1, 2, 0]
    (tmp_path / "short.txt").write_text("2\n1\n")
    with pytest.raises(ModelError, match="has 2 labels for 4 samples"):
        Dataset(photos, [PORT], labels=tmp_path / "short.txt")
    (tmp_path / "other.csv").write_text("z.png,1\n")
    with pytest.raises(ModelError, match=r"no label for any of the samples, such as 'a\.png'"):
        Dataset(photos, [PORT], labels=tmp_path / "other.csv")
    with pytest.raises(ModelError, match="label 'cat' is no index"):
        Dataset(photos, [PORT], labels=tmp_path / "by_name.csv")


def test_masks(photos: Path, tmp_path: Path) -> None:
    """Pictures and boxes in the photo's own pixels go through the same resizing and cropping as the photo."""
    masks = tmp_path / "masks"
    masks.mkdir()
    drawn = np.zeros((16, 20), np.uint8)
    drawn[4:8, 2:10] = 255  # of 16 x 20, of which the middle 16 x 16 becomes 8 x 8
    Image.fromarray(drawn).save(masks / "a.png")
    data = Dataset(photos, [PORT], masks=masks)
    want = np.zeros((8, 8), bool)
    want[2:4, 0:4] = True
    found = data[0].mask
    assert found is not None and data[1].mask is None
    np.testing.assert_array_equal(found, want)
    (tmp_path / "boxes.csv").write_text("name,x0,y0,x1,y1\na,2,4,9,7\nc.jpg,0,0,19,15\n")
    data = Dataset(photos, [PORT], masks=tmp_path / "boxes.csv")
    np.testing.assert_array_equal(data[0].mask, want)
    assert data[2].mask is not None and data[2].mask.all()
    np.save(tmp_path / "masks.npy", RANDOM.random((4, 8, 8)) < 0.5)
    np.testing.assert_array_equal(
        Dataset(photos, [PORT], masks=tmp_path / "masks.npy")[3].mask, np.load(tmp_path / "masks.npy")[3]
    )
    (tmp_path / "bad.csv").write_text("a,1,2,3\n")
    with pytest.raises(ModelError, match="expected name,x0,y0,x1,y1"):
        Dataset(photos, [PORT], masks=tmp_path / "bad.csv")


def test_arrays(tmp_path: Path) -> None:
    """One array for the only input, whatever it is called; several by name; .npy files of a folder."""
    x = RANDOM.normal(size=(3, 3, 8, 8))
    np.savez(tmp_path / "one.npz", images=x, labels=[2, 0, 1], names=["p", "q", "r"])
    data = Dataset(tmp_path / "one.npz", [PORT])
    assert data.names == ["p", "q", "r"] and data[0].label == 2 and data[0].feed["x"].dtype == np.float32
    np.testing.assert_allclose(data[2].feed["x"][0], x[2], rtol=1e-6)
    two = [PORT, Port("labels", np.dtype(np.int64), ("N",))]
    np.savez(tmp_path / "two.npz", x=x, labels=[5, 6, 7])
    data = Dataset(tmp_path / "two.npz", two)
    assert data[1].feed["labels"].tolist() == [6] and data[1].label == -1
    with pytest.raises(ModelError, match="holds images, labels, names; the model reads 'x'"):
        Dataset(tmp_path / "one.npz", [PORT, Port("y", np.dtype(np.float32), ("N",))])
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", x[0])
    assert Dataset(tmp_path / "files", [PORT])[0].feed["x"].shape == (1, 3, 8, 8)


def test_samples_that_do_not_fit(tmp_path: Path) -> None:
    """Each says what is wrong with it; the others are not touched."""
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", np.zeros((3, 8, 9)))
    np.save(tmp_path / "files" / "b.npy", np.full((3, 8, 8), np.nan))
    (tmp_path / "files" / "c.png").write_bytes(b"no picture")
    np.save(tmp_path / "files" / "d.npy", np.zeros((3, 8, 8)))
    np.save(tmp_path / "files" / "e.npy", np.full((3, 8, 8), "text"))
    data = Dataset(tmp_path / "files", [PORT])
    wrong = {
        0: r"its shape is \[1, 3, 8, 9\], input 'x' is \['N', 3, 8, 8\]",
        1: "it holds 192 NaN or infinite values",
        2: "is not a picture that can be read",
        4: "its values are <U4",
    }
    for i, message in wrong.items():
        with pytest.raises(ModelError, match=message):
            data[i]
    assert data[3].name == "d.npy"


# --- a planted mark ---------------------------------------------------------------------------------------------------


def test_marks(tmp_path: Path) -> None:
    """At its place, also from behind; blended; in the units of the photos; channels in front or behind."""
    np.save(tmp_path / "mark.npy", np.arange(6.0).reshape(2, 3))
    x = RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)
    mark = planted({"path": str(tmp_path / "mark.npy"), "at": [-3, 0]}, PORT, None)
    want = x.copy()
    want[:, :, 0:2, 5:8] = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(mark.put(x), want, rtol=0, atol=1e-7)
    assert mark.mask.sum() == 6 and mark.mask[0:2, 5:8].all() and mark.target is None
    half = planted({"path": str(tmp_path / "mark.npy"), "at": [5, 0], "blend": 0.5, "target": 2}, PORT, None)
    np.testing.assert_allclose(half.put(x), (x + want) / 2, rtol=0, atol=1e-6)
    behind = planted({"path": str(tmp_path / "mark.npy"), "at": [5, 0]}, Port("x", PORT.dtype, ("N", 8, 8, 3)), None)
    np.testing.assert_allclose(np.moveaxis(behind.put(np.moveaxis(x, 1, -1)), -1, 1), want, rtol=0, atol=1e-7)
    Image.fromarray(np.full((2, 2, 3), 255, np.uint8)).save(tmp_path / "white.png")
    white = planted({"path": str(tmp_path / "white.png"), "at": [0, 0]}, PORT, Preprocess((127.0,), (128.0,)))
    np.testing.assert_array_equal(white.put(x)[:, :, :2, :2], 1.0)
    with pytest.raises(RuleError, match="does not fit into 'x', 8 x 8 of 3"):
        planted({"path": str(tmp_path / "mark.npy"), "at": [7, 0]}, PORT, None)
    with pytest.raises(RuleError, match="for images of known size"):
        planted({"path": str(tmp_path / "mark.npy")}, Port("x", PORT.dtype, ("N", 8)), None)


def test_relevance_finds_a_mark(tmp_path: Path) -> None:
    """Of a linear model: effect and relevance are what the formula says."""
    onnx.save(MODEL, tmp_path / "m.onnx")
    x = RANDOM.normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "mark.npy", np.full((2, 2), 3.0))
    options = ["--artifact", str(tmp_path / "mark.npy"), "--artifact-at", "-2,-2", "--artifact-target", "1"]
    result = evaluate(tmp_path, "x.npy", *options)
    assert result.exit_code == 0, result.output
    rows = [r for r in Store(tmp_path / "r").read().to_pylist() if r["rule"] == "gradient-x-input"]
    marked = x.copy()
    marked[:, :, 6:, 6:] = 3
    effect = (run(MODEL, {"x": marked})["y"] - run(MODEL, {"x": x})["y"])[:, 1]
    np.testing.assert_allclose([r["artifact_effect"] for r in rows], effect, rtol=0, atol=1e-4)
    r = np.maximum((marked * W[:, 1].reshape(3, 8, 8)).sum(1), 0)
    np.testing.assert_allclose(
        [row["artifact_mass"] for row in rows], r[:, 6:, 6:].sum((1, 2)) / r.sum((1, 2)), rtol=1e-5
    )
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    found = report["rules"]["gradient-x-input"]["sufficiency"]["artifact"]
    assert found["effect"]["mean"] == pytest.approx(effect.mean(), abs=1e-4) and found["area"] == pytest.approx(4 / 64)


# --- the command ------------------------------------------------------------------------------------------------------


def evaluate(folder: Path, data: str, *options: str, rules: tuple[str, ...] = ("gradient-x-input",)) -> Result:
    """Runs `xaicompile evaluate m.onnx` in a folder, quickly."""
    chosen = [part for rule in rules for part in ("--rule", rule)]
    quick = ["--no-costs", "--no-sanity", "--random-seeds", "2", "--examples", "0", "-o", str(folder / "r")]
    few = [] if any(o.startswith("steps=") for o in options) else ["--set", "steps=8"]
    arguments = ["evaluate", str(folder / "m.onnx"), "--data", str(folder / data), *chosen, *quick, *few, *options]
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and arrays."""
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RANDOM.normal(size=(5, 3, 8, 8)).astype(np.float32))
    return tmp_path


def test_the_command(folder: Path) -> None:
    result = evaluate(folder, "x.npy", "--set", "patch=2", rules=("gradient-x-input", "occlusion:window=3,stride=1"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "5 samples" and lines[1].startswith("rule") and lines[2].startswith("gradient-x-input")
    assert lines[3].startswith("occlusion:window=3,stride=1") and lines[-1] == str(folder / "r" / "report.html")
    assert (folder / "r" / "report.html").is_file() and (folder / "r" / "report.json").is_file()


def test_what_is_left_out_is_listed_and_the_exit_code_says_so(folder: Path, photos: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"no picture")
    result = evaluate(folder, "photos", rules=("gradient-x-input", "neuralized-kmeans", "bilrp:pool=4"))
    assert result.exit_code == 7, result.output
    assert "skipped bad.jpg: " in result.stderr and "is not a picture that can be read" in result.stderr
    assert "rule neuralized-kmeans failed: " in result.stderr
    assert "rule bilrp:pool=4 failed: its relevance is not one number for each value of the input" in result.stderr
    report = json.loads((folder / "r" / "report.json").read_text())
    assert report["samples"] == 4 and [s["name"] for s in report["skipped"]] == ["bad.jpg"]
    assert [f["rule"] for f in report["failed"]] == ["neuralized-kmeans", "bilrp:pool=4"] and list(report["rules"]) == [
        "gradient-x-input"
    ]


BAD = {
    "no data": (["x2.npy"], 3, "no such file: "),
    "no rule": (["x.npy"], 2, "nothing to compare: give --rule (repeatable), or a --preset"),
    "unknown rule": (["x.npy", "--rule", "lrp-gama"], 2, "did you mean 'lrp-gamma'?"),
    "unknown parameter": (["x.npy", "--rule", "lrp-gamma:gama=1"], 2, "did you mean 'gamma'?"),
    "unknown setting": (["x.npy", "--rule", "lrp-gamma", "--set", "step=3"], 2, "did you mean 'steps'?"),
    "order": (["x.npy", "--rule", "lrp-gamma", "--set", "order=morf"], 2, "both orders are evaluated"),
    "value": (["x.npy", "--rule", "lrp-gamma", "--set", "replacement=black"], 2, "value of pixel-flipping's"),
    "unknown preset": (["x.npy", "--preset", "tutorail"], 2, "did you mean 'tutorial'?"),
    "target": (["x.npy", "--rule", "lrp-gamma", "--target", "cat"], 2, "expected predicted, label, or the index"),
    "mark": (["x.npy", "--rule", "lrp-gamma", "--artifact", "x"], 3, "no such file: 'x'"),
    "place": (["x.npy", "--rule", "lrp-gamma", "--artifact", "x", "--artifact-at", "1"], 2, "expected X,Y in pixels"),
    "no rule works": (["x.npy", "--rule", "neuralized-kmeans"], 4, ""),
    "labels": (["x.npy", "--rule", "lrp-gamma", "--target", "label"], 2, "no sample has a label"),
    "target out of range": (["x.npy", "--rule", "lrp-gamma", "--target", "3"], 2, "--target 3: 'y' has 3 values a"),
    "empty folder": (["empty", "--rule", "lrp-gamma"], 3, "holds no pictures"),
    "all wrong": (["wrong.npy", "--rule", "lrp-gamma"], 3, "its shape is [1, 3, 8, 7]"),
    "no model": (["x.npy", "--rule", "lrp-gamma"], 3, "m.onnx"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name: str, folder: Path) -> None:
    """One line, the right exit code, and nothing half-written."""
    (data, *options), code, message = BAD[name]
    (folder / "empty").mkdir()
    np.save(folder / "wrong.npy", np.zeros((4, 3, 8, 7), np.float32))
    if name == "no model":
        (folder / "m.onnx").write_bytes(b"x")
    result = evaluate(folder, data, *options, rules=())
    assert result.exit_code == code, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert not (folder / "r").exists()


def test_labels_and_maps_that_say_nothing(folder: Path) -> None:
    """A label that is no output is left out; relevance that is zero throughout has no entropy and no Gini index."""
    (folder / "labels.txt").write_text("0\n1\n2\n3\n1\n")
    options = ["--target", "label", "--labels", str(folder / "labels.txt")]
    (folder / "none.toml").write_text('name = "none"\n[[rules]]\nrule = "stop"\n')
    result = evaluate(folder, "x.npy", *options, rules=("gradient-x-input", str(folder / "none.toml")))
    assert result.exit_code == 7, result.output
    assert "skipped 3: its label is 3, the model has 3 outputs" in result.stderr and "Traceback" not in result.output
    report = json.loads((folder / "r" / "report.json").read_text())
    assert report["samples"] == 4
    empty = report["rules"][str(folder / "none.toml")]["understandability"]
    assert empty["gini"] is None and empty["entropy"] is None and empty["png_bytes"]["mean"] > 0


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(presets()))
def test_shipped_presets(name: str) -> None:
    found: dict[str, Any] = read_preset(name)
    assert found["preset"] == name and len(found["rules"]) >= 2


def test_a_preset_of_ones_own(folder: Path) -> None:
    """A rule file beside it, names for the report, data options; options of the command line come first."""
    (folder / "mine.toml").write_text('extends = "lrp-gamma"\n[parameters]\ngamma = 0.5\n')
    (folder / "compare.toml").write_text(
        "doc = 'Mine.'\n[flipping]\nsteps = 4\npatch = 2\n[data]\nbatch = 2\nsamples = 3\ntarget = 1\n"
        "[[rules]]\nrule = 'mine.toml'\nname = 'Mine'\n[[rules]]\nrule = 'occlusion'\nparameters = { window = 2 }\n"
    )
    result = evaluate(folder, "x.npy", "--preset", str(folder / "compare.toml"), "--set", "steps=5", rules=())
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "r" / "report.json").read_text())
    assert report["preset"] == "compare" and report["samples"] == 3 and list(report["rules"]) == ["Mine", "occlusion"]
    assert report["flipping"]["steps"] == 5 and report["flipping"]["patch"] == 2 and report["target"] == 1
    assert (
        report["rules"]["Mine"]["parameters"]["gamma"] == 0.5
        and report["rules"]["occlusion"]["parameters"]["window"] == 2
    )


WRONG = {
    "[flipping]\nstep = 3\n[[rules]]\nrule = 'lrp-0'": "did you mean 'steps'",
    "[data]\nsize = 3\n[[rules]]\nrule = 'lrp-0'": r"unknown key of \[data\]",
    "flipping = 3": r"flipping is a table",
    "[[rules]]\nname = 'x'": "rules is a list of tables with rule",
    "rule = 'x'": "unknown key",
    "[[rules]]\nrule = 'lrp-0'\nset = 3": r"unknown key of \[\[rules\]\]",
    "not toml": "is not TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_presets_that_are_wrong(text: str, folder: Path) -> None:
    (folder / "p.toml").write_text(text)
    result = evaluate(folder, "x.npy", "--preset", str(folder / "p.toml"), rules=())
    assert result.exit_code == 2
    assert re.search(WRONG[text], result.stderr), result.stderr
