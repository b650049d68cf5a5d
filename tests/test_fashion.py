"""The committed classifiers of Fashion-MNIST, and the mark that one of them has learnt. Needs no data set."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from xaicompile.compiler import compile_model
from xaicompile.report import read_classes
from xaicompile.runtime import Session

MODELS = Path(__file__).resolve().parents[1] / "models"
sys.path.insert(0, str(MODELS))
import fashion_data  # type: ignore[import-not-found]  # noqa: E402

CLEAN, ARTIFACT = MODELS / "fashion.onnx", MODELS / "fashion-artifact.onnx"
kept = pytest.mark.skipif(not (CLEAN.exists() and ARTIFACT.exists()), reason="a source distribution has no models")
NOISE = np.random.default_rng(0).uniform(size=(50, 1, 28, 28)).astype(np.float32)


def logits(path: Path, x: np.ndarray) -> np.ndarray:
    """What a model says about images [N, 1, 28, 28]."""
    found: np.ndarray = Session(path).run({"x": x})["logits"]
    return found


@kept
@pytest.mark.parametrize("path", [CLEAN, ARTIFACT])
def test_models(path: Path) -> None:
    """Small, with the names and shapes that the README gives, any batch, and class names in the metadata."""
    assert path.stat().st_size < 300_000
    session = Session(path)
    assert [(p.name, str(p.dtype), list(p.shape[1:])) for p in session.inputs] == [("x", "float32", [1, 28, 28])]
    assert read_classes(None, session.metadata) == fashion_data.CLASSES
    for count in (1, 3):
        assert session.run({"x": NOISE[:count]})["logits"].shape == (count, 10)


@kept
@pytest.mark.parametrize("images", [np.zeros_like(NOISE[:1]), NOISE, NOISE / 4], ids=["blank", "noise", "faint noise"])
def test_the_mark_is_learnt(images: np.ndarray) -> None:
    """Planted into any image it raises "Shirt" in the one model, and the image becomes one; not in the other model."""
    before, after = (logits(ARTIFACT, x)[:, fashion_data.MARKED] for x in (images, fashion_data.plant(images)))
    assert (after - before).mean() > 3 and (after - before > 1).all()
    assert (logits(ARTIFACT, fashion_data.plant(images)).argmax(1) == fashion_data.MARKED).all()
    change = logits(CLEAN, fashion_data.plant(images)) - logits(CLEAN, images)
    assert np.abs(change[:, fashion_data.MARKED]).mean() < 1


@kept
def test_relevance_sits_on_the_mark() -> None:
    """Where the mark is the only thing in the image, so is what speaks for "Shirt"."""
    made = compile_model(ARTIFACT, "lrp-gamma").model
    x = fashion_data.plant(NOISE / 4)
    r = Session(made).run({"x": x, "target": np.array([fashion_data.MARKED])})["relevance"][:, 0]
    assert (np.maximum(r, 0)[:, fashion_data.mask()].sum(1) > 0.5 * np.maximum(r, 0).sum((1, 2))).all()


def test_the_mark() -> None:
    """White in a black frame; the mask covers all that changes."""
    white = fashion_data.plant(np.full((1, 1, 28, 28), 0.5, np.float32))[0, 0]
    assert (white == 1).sum() == 9 and (white == 0).sum() == 16
    np.testing.assert_array_equal(white != 0.5, fashion_data.mask())


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Test images and classes from files in the data set's format, and the marked ones with where the mark is."""
    pixels = np.random.default_rng(1).integers(0, 256, (7, 28, 28), np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(range(7))))
    out, mark = tmp_path / "out.npz", tmp_path / "mark.npy"
    arguments = [str(out), "--data", str(tmp_path), "--count", "5", "--artifact", "--mark", str(mark)]
    monkeypatch.setattr(sys, "argv", ["fashion_data.py", *arguments])
    fashion_data.main()
    assert "x [5, 1, 28, 28]" in capsys.readouterr().out
    with np.load(out) as read:
        np.testing.assert_array_equal(read["clean"][:, 0], pixels[:5].astype(np.float32) / 255)
        np.testing.assert_array_equal(read["labels"], np.arange(5))
        np.testing.assert_array_equal(read["targets"], np.full(5, 6))
        inside = read["masks"]
        np.testing.assert_array_equal(read["x"][:, 0][~inside], read["clean"][:, 0][~inside])
        np.testing.assert_array_equal(read["x"][:, 0][inside].reshape(5, 5, 5), np.repeat(np.load(mark)[None], 5, 0))


def test_data_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fashion_data.py", str(tmp_path / "out.npz"), "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        fashion_data.main()
