"""Photos become inputs as the model expects them, and relevance becomes a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xaicompile import report
from xaicompile.errors import ModelError, OutputError, RuleError
from xaicompile.images import Preprocess, bounds, layout, read_arrays, read_photo

Image = pytest.importorskip("PIL.Image")


def photo(path: Path, height: int, width: int) -> np.ndarray:
    """A photo with a different flat colour in each third, so that crops can be told apart."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 3] = (255, 0, 0)
    pixels[:, width // 3 : 2 * width // 3] = (0, 255, 102)
    pixels[:, 2 * width // 3 :] = (0, 0, 255)
    Image.fromarray(pixels).save(path)
    return pixels


def test_middle_is_cut_out_and_normalised(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 30, 90)
    preprocess = Preprocess(mean=(127.0,), std=(128.0,), resize=30, crop=(10, 10))
    got = read_photo(tmp_path / "a.png", ["N", 3, 10, 10], np.float32, preprocess)
    assert got.values.shape == (1, 3, 10, 10) and got.values.dtype == np.float32
    expected = (np.array([0, 255, 102], np.float32) - 127) / 128
    np.testing.assert_allclose(got.values[0].transpose(1, 2, 0), np.broadcast_to(expected, (10, 10, 3)), atol=1e-6)
    assert got.pixels.shape == (10, 10, 3)


def test_channels_last_and_units_of_one(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 30, 90)
    preprocess = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    got = read_photo(tmp_path / "a.png", [1, 8, 8, 3], np.float16, preprocess)
    assert got.values.shape == (1, 8, 8, 3) and got.values.dtype == np.float16
    expected = (np.array([0, 1, 0.4]) - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    np.testing.assert_allclose(got.values[0, 4, 4], expected, atol=2e-3)


def test_grey_model_gets_one_channel(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 30, 30)
    assert read_photo(tmp_path / "a.png", [1, 1, 12, 12], np.float32, None).values.shape == (1, 1, 12, 12)


def test_the_box_is_where_normalised_pixels_lie() -> None:
    low, high = Preprocess(mean=(127.0,), std=(128.0,)).box()
    assert (low, high) == ([-127 / 128], [1.0])
    low, high = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)).box()
    np.testing.assert_allclose(low, [-2.5, -1.6, -0.6], rtol=1e-12)
    np.testing.assert_allclose(high, [2.5, 2.4, 1.4], rtol=1e-12)
    assert Preprocess(span=255).box() == ([0.0], [255.0])


def test_metadata_round_trip() -> None:
    before = Preprocess(mean=(1.0, 2.0, 3.0), std=(4.0,), resize=256, crop=(224, 192))
    after = Preprocess.from_dict(before.to_dict())
    assert (after.mean, after.std, after.largest) == ((1.0, 2.0, 3.0), (4.0,), 255)
    assert (after.resize, after.crop) == (256, (224, 192))
    assert Preprocess(resize=9).to_dict() == {"resize": 9}
    assert Preprocess.from_dict({"mean": 0.5, "std": [1, 2]}) == Preprocess(mean=(0.5,), std=(1.0, 2.0))
    with pytest.raises(RuleError, match="size"):
        Preprocess.from_dict({"size": 3})


def test_bounds_are_known_only_where_the_scale_is() -> None:
    assert bounds(None) == bounds({}) == bounds({"resize": 256}) == {}
    assert bounds({"mean": [127], "std": 128}) == {"low": -127 / 128, "high": 1.0}
    assert bounds({"mean": 0}) == {"low": 0.0, "high": 1.0}
    assert bounds({"range": 255}) == {"low": 0.0, "high": 255.0}
    assert bounds({"mean": [0.5, 0.25], "std": 0.5}) == {"low": [-1.0, -0.5], "high": [1.0, 1.5]}


def test_options() -> None:
    assert Preprocess.from_options(None, None, None) is None
    got = Preprocess.from_options("127", "128", "256,224x192")
    assert got == Preprocess((127.0,), (128.0,), None, 256, (224, 192))
    assert Preprocess.from_options("0.485,0.456,0.406", "0.229,0.224,0.225", None) is not None


@pytest.mark.parametrize(
    ("mean", "std", "size"),
    [
        ("a", None, None),
        ("1,2", "1,2,3", None),
        (None, "0", None),
        (None, None, "x"),
        (None, None, "0"),
        ("nan", None, None),
    ],
)
def test_bad_options(mean: str | None, std: str | None, size: str | None) -> None:
    with pytest.raises(RuleError):
        Preprocess.from_options(mean, std, size)


def test_layout() -> None:
    assert layout(["N", 3, None, None]) == "NCHW"
    assert layout(["N", 224, 224, 3]) == "NHWC"
    with pytest.raises(ModelError, match="no image"):
        layout(["N", 10])
    with pytest.raises(ModelError, match="channels"):
        layout(["N", 7, 5, 5])


def test_crop_must_fit_the_model(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 30, 30)
    with pytest.raises(RuleError, match="takes 8x8"):
        read_photo(tmp_path / "a.png", [1, 3, 8, 8], np.float32, Preprocess(crop=(9, 9)))
    with pytest.raises(RuleError, match="too small"):
        read_photo(tmp_path / "a.png", [1, 3, 8, 8], np.float32, Preprocess(resize=4))


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "a.npy").write_text("no array")
    for name in ("a.png", "missing.png"):
        with pytest.raises(ModelError, match=name):
            read_photo(tmp_path / name, [1, 3, 8, 8], np.float32, None)
    for name in ("a.npy", "missing.npz"):
        with pytest.raises(ModelError, match=name):
            read_arrays(tmp_path / name)


def test_range_is_symmetric_and_ignores_an_outlier() -> None:
    relevance = np.full((40, 40), -0.5)
    relevance[0, 0] = 100
    assert report.symmetric_range(relevance) == 0.5
    assert report.symmetric_range(np.zeros((3, 3))) == 1.0
    assert report.symmetric_range(np.eye(100)) == 1.0
    single = np.zeros((40, 40))
    single[3, 3] = -7
    assert report.symmetric_range(single) == 7.0


def test_positive_is_red_and_negative_is_blue(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    relevance = np.ones((10, 10))
    relevance[:, 5:] = -1
    report.draw(tmp_path / "map.png", relevance, title="t")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    red, blue = (np.argwhere((pixels == colour).all(2)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert len(red) > 5000 and abs(len(red) - len(blue)) < 0.1 * len(red)
    assert np.median(red[:, 1]) < np.median(blue[:, 1])
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_a_picture_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OutputError, match="nowhere"):
        report.draw(tmp_path / "nowhere" / "map.png", np.ones((4, 4)), title="t")
    with pytest.raises(OutputError, match=r"map\.xyz"):
        report.draw(tmp_path / "map.xyz", np.ones((4, 4)), title="t")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space"):
        report.draw(tmp_path / "map.png", np.ones((4, 4)), title="t")
    assert list(tmp_path.iterdir()) == []
