"""`xaicompile explain` on two inputs: which lines are drawn where, matrices, numbers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import xaicompile
from tests.graphs import data, net, run, weight
from tests.nets import cnn
from tests.test_bad_input import refused
from xaicompile import pairs, report
from xaicompile.cli import cli

matplotlib = pytest.importorskip("matplotlib")
TEXT = """
    e = Gather(table, ids)
    m = CastLike(mask, e)
    c = Unsqueeze(m, last)
    k = Mul(e, c)
    s = ReduceSum<keepdims=0>(k, one)
    y = Relu(s)
"""


def compiled(folder: Path, model: Any, **options: Any) -> Path:
    path = folder / "pair.onnx"
    path.write_bytes(xaicompile.compile(model, "bilrp", **options).SerializeToString())
    return path


def images(folder: Path) -> list[Path]:
    for i, name in enumerate(("first.npy", "second.npy")):
        np.save(folder / name, data(3, 12, 12, seed=i))
    return [folder / "first.npy", folder / "second.npy"]


def text(folder: Path) -> tuple[Path, list[Path]]:
    model = net(
        "(int64[N,T] ids, int64[N,T] mask) => (float[N,4] y)", TEXT,
        table=weight(11, 4), last=np.array([-1]), one=np.array([1]),
    )  # fmt: skip
    np.savez(folder / "first.npz", ids=[[1, 2, 3]], mask=[[1, 1, 1]])
    np.savez(folder / "second.npz", ids=[[4, 1]], mask=[[1, 1]])
    return compiled(folder, model), [folder / "first.npz", folder / "second.npz"]


def explain(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(cli, ["explain", *(str(a) for a in arguments), "--json"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.output)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would be written."""
    figures: list[Any] = []
    monkeypatch.setattr(report, "write", lambda figure, path: figures.append(figure))
    return figures


def test_lines_join_the_middles_of_the_strongest_pairs(drawn: list[Any]) -> None:
    """Of pictures of 4 by 6 and 6 by 4 pixels in squares of 4, of which some are cut off."""
    relevance = np.array([[0.0, 2.0], [-4.0, 0.0]])
    pairs.draw_lines("a.png", relevance, "title", [np.zeros((4, 6, 3)), np.zeros((6, 4))], 4)
    (axis,) = drawn[0].axes
    (lines,) = axis.collections
    np.testing.assert_array_equal(lines.get_segments()[-1], [[5, 2], [6 + 0 + 2, 2]])  # -4: region 1 with region 0
    np.testing.assert_array_equal(lines.get_segments()[-2], [[2, 2], [6 + 0 + 2, 5]])
    np.testing.assert_array_equal(lines.get_colors()[-2:], [[1, 0, 0, 0.5], [0, 0, 1, 1]])
    assert [tuple(image.get_extent()) for image in axis.images] == [(0, 6, 4, 0), (6, 10, 6, 0)]


def test_no_more_lines_than_said(drawn: list[Any]) -> None:
    relevance = data(36, 36, dtype=np.float64)
    pairs.draw_lines("a.png", relevance, "title", [np.zeros((12, 12, 3))] * 2, 2)
    (lines,) = drawn[0].axes[0].collections
    found = np.sort(lines.get_colors()[:, 3]) * np.abs(relevance).max()
    np.testing.assert_allclose(found, np.sort(np.abs(relevance), axis=None)[-pairs.LINES :], rtol=1e-12)


def test_the_picture_of_nothing(tmp_path: Path) -> None:
    pairs.draw_lines(tmp_path / "a.png", np.zeros((4, 4)), "title", [np.zeros((8, 8, 3))] * 2, 4)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_two_images(tmp_path: Path) -> None:
    model, sources = compiled(tmp_path, cnn(), pool=4), images(tmp_path)
    found = explain(model, *sources, "-o", tmp_path / "a.png")
    want = run(str(model), {"x": np.load(sources[0])[None], "other": np.load(sources[1])[None]})
    assert found["similarity"] == pytest.approx(float(want["similarity"][0]), rel=1e-5)
    assert found["relevance_sum"] == pytest.approx(float(want["relevance"].sum()), rel=1e-4, abs=1e-6)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_two_photos_of_one_side(tmp_path: Path) -> None:
    """Both are prepared as the model remembers."""
    image = pytest.importorskip("PIL.Image")
    numbers = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    for name, pixels in zip("ab", numbers, strict=True):
        image.fromarray(pixels).save(tmp_path / f"{name}.png")
    model = compiled(tmp_path, cnn(), pool=4, preprocess={"mean": 127.0, "std": 128.0})
    found = explain(model, tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "c.png")
    x, y = ((n.transpose(2, 0, 1)[None] - np.float32(127)) / np.float32(128) for n in numbers)
    want = run(str(model), {"x": x, "other": y})
    assert found["similarity"] == pytest.approx(float(want["similarity"][0]), rel=1e-5)


def test_tokens_are_a_matrix(tmp_path: Path, drawn: list[Any]) -> None:
    model, sources = text(tmp_path)
    explain(model, *sources, "-o", tmp_path / "a.png")
    axis = drawn[0].axes[0]
    assert axis.images[0].get_array().shape == (3, 2)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["1", "2", "3"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["4", "1"]
    assert "first" in axis.get_ylabel() and "second" in axis.get_xlabel()


def test_features_are_a_matrix(tmp_path: Path, drawn: list[Any]) -> None:
    model = compiled(tmp_path, net("(float[N,50] x) => (float[N,3] y)", "y = MatMul(x, w)", w=weight(50, 3)))
    for i, name in enumerate(("a.npy", "b.npy")):
        np.save(tmp_path / name, data(50, seed=i))
    explain(model, tmp_path / "a.npy", tmp_path / "b.npy", "-o", tmp_path / "a.png")
    assert drawn[0].axes[0].images[0].get_array().shape == (50, 50)


def test_a_model_that_compares_by_itself(tmp_path: Path, drawn: list[Any]) -> None:
    body = 'y = Einsum<equation="nm,nm->n">(a, b)'
    model = compiled(tmp_path, net("(float[N,3] a, float[N,3] b) => (float[N] y)", body))
    for i, name in enumerate(("a.npy", "b.npy")):
        np.save(tmp_path / name, data(3, seed=i))
    found = explain(model, tmp_path / "a.npy", tmp_path / "b.npy", "-o", tmp_path / "a.png")
    assert found["similarity"] == pytest.approx(float(data(3) @ data(3, seed=1)), rel=1e-5)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_numbers(tmp_path: Path, name: str) -> None:
    model, sources = compiled(tmp_path, cnn(), pool=4), images(tmp_path)
    explain(model, *sources, "-o", tmp_path / name)
    read = np.load(tmp_path / name)
    relevance = read if name == "a.npy" else read["relevance"]
    assert relevance.shape == (1, 9, 9)
    if name == "a.npz":
        assert read["similarity"].shape == (1,)


def test_what_is_refused(tmp_path: Path) -> None:
    model, sources = compiled(tmp_path, cnn()), images(tmp_path)
    out = ("-o", tmp_path / "a.png")
    assert "compares two inputs" in refused(tmp_path, "explain", model, sources[0], *out, code=3)
    assert "no classes" in refused(tmp_path, "explain", model, *sources, *out, "--target", "1", code=2)
    assert "is an input" in refused(tmp_path, "explain", model, *sources, "-o", sources[1], code=5)
    assert "'gone.npy'" in refused(tmp_path, "explain", model, sources[0], "gone.npy", *out, code=3)
    np.save(tmp_path / "wrong.npy", data(3, 5, 5))
    refused(tmp_path, "explain", model, sources[0], tmp_path / "wrong.npy", *out, code=3)
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(xaicompile.compile(cnn(), "lrp-0").SerializeToString())
    assert "compares no two inputs" in refused(tmp_path, "explain", plain, *sources, *out, code=3)


def test_what_is_missing(tmp_path: Path) -> None:
    model, sources = text(tmp_path)
    np.savez(tmp_path / "half.npz", ids=[[4, 1]])
    out = ("-o", tmp_path / "a.png")
    assert "'other_mask' is missing" in refused(
        tmp_path, "explain", model, sources[0], tmp_path / "half.npz", *out, code=3
    )
    np.savez(tmp_path / "odd.npz", ids=[[4, 1]], mask=[[1, 1]], more=[1])
    assert "'more'" in refused(tmp_path, "explain", model, sources[0], tmp_path / "odd.npz", *out, code=3)
    np.save(tmp_path / "alone.npy", np.array([[1, 2]]))
    assert "is missing" in refused(tmp_path, "explain", model, sources[0], tmp_path / "alone.npy", *out, code=3)
