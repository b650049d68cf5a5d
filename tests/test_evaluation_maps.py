"""Measures of one map, against their definitions written out as sums over pairs, values and ranks."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest

from xaicompile.errors import ModelError, RuntimeMissingError
from xaicompile.evaluation.maps import entropy, gini, mass_inside, png_bytes, pointing, rank_correlation, summed

RANDOM = np.random.default_rng(3)
SIZE = 96
NOISE = RANDOM.normal(size=(SIZE, SIZE))
PATCHES = np.kron(RANDOM.normal(size=(12, 12)), np.ones((8, 8)))
ROW, COLUMN = np.mgrid[:SIZE, :SIZE]
SMOOTH = np.exp(-((ROW - 40.0) ** 2 + (COLUMN - 50.0) ** 2) / 800)
CONSTANT = np.ones((SIZE, SIZE))


@pytest.mark.parametrize(("channels", "shape"), [(0, (3, 4, 5)), (2, (4, 5, 3)), (None, (4, 5)), (1, (7, 3))])
def test_channels_are_summed(channels: int | None, shape: tuple[int, ...]) -> None:
    """Signed, in float64: float16 values that would overflow add up, and the other axes stay."""
    r = np.full(shape, -40000, np.float16)
    r.reshape(-1)[0] = 1
    found = summed(r, channels)
    want = np.zeros([n for i, n in enumerate(shape) if i != channels])
    for place in itertools.product(*map(range, shape)):
        want[tuple(n for i, n in enumerate(place) if i != channels)] += float(r[place])
    np.testing.assert_array_equal(found, want)
    assert found.dtype == np.float64


# --- file size (spec 12.4: orderings and invariances, never bytes) --------------------------------------------------


def test_plain_maps_are_smaller() -> None:
    """A constant map, patches, a smooth blob and noise, in this order and well apart."""
    sizes = [png_bytes(r) for r in (CONSTANT, PATCHES, SMOOTH, NOISE)]
    assert all(b > 1.5 * a for a, b in itertools.pairwise(sizes)), sizes
    assert png_bytes(NOISE[:48]) < 0.6 * png_bytes(NOISE)


@pytest.mark.parametrize("clip", [1.0, 0.995])
@pytest.mark.parametrize("r", [PATCHES, SMOOTH, NOISE], ids=["patches", "smooth", "noise"])
def test_scale_and_sign_do_not_count(r: np.ndarray, clip: float) -> None:
    """The size of r is that of 7 r and of r in float32; that of -r is within 2 %."""
    size = png_bytes(r, clip)
    assert png_bytes(7 * r, clip) == size
    assert png_bytes(1e-30 * r, clip) == size
    assert abs(png_bytes(-r, clip) / size - 1) < 0.02


def test_an_outlier_shrinks_the_file_unless_clipped() -> None:
    """One pixel of 100 deflates the size of noise; with the quantile it hardly matters."""
    outlier = NOISE.copy()
    outlier[3, 4] = 100.0
    assert png_bytes(outlier) < 0.6 * png_bytes(NOISE)
    assert abs(png_bytes(outlier, 0.995) / png_bytes(NOISE, 0.995) - 1) < 0.01


def pixels(monkeypatch: pytest.MonkeyPatch, r: np.ndarray, clip: float = 1.0) -> list[list[int]]:
    """The gray values that are written."""
    from PIL import Image

    seen: list[np.ndarray] = []
    wrapped = Image.fromarray
    with monkeypatch.context() as patch:
        patch.setattr(Image, "fromarray", lambda a: seen.append(a) or wrapped(a))
        png_bytes(r, clip)
    assert [a.dtype for a in seen] == [np.uint8]
    return seen[0].tolist()


def test_the_picture_is_gray_and_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written: 128 for 0, 255 for the largest and 1 for its negative, clipped, one byte a value."""
    r = np.array([[0.0, 2.0], [-2.0, 1.0]])
    assert pixels(monkeypatch, r) == [[128, 255], [1, 192]]  # 191.5 is rounded to even
    assert pixels(monkeypatch, r, 1 / 3) == [[128, 255], [1, 255]]  # the quantile is 1
    uniform = np.random.default_rng(8).uniform(-1, 1, (SIZE, SIZE))
    assert 0.97 * SIZE**2 < png_bytes(uniform) < 1.03 * SIZE**2


def test_zeros_rows_and_sparse_maps_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of zeros is as small as a constant one; [n] is one row; a quantile of 0 falls back to the largest."""
    assert abs(png_bytes(np.zeros((SIZE, SIZE))) - png_bytes(CONSTANT)) < 10
    assert pixels(monkeypatch, np.zeros(3)) == [[128, 128, 128]]
    assert pixels(monkeypatch, np.array([0, 0, 0, 0, 8, -4.0]), 0.5) == [[128, 128, 128, 128, 255, 64]]


def test_what_is_no_map_is_refused() -> None:
    """Three axes, NaN, infinite values."""
    with pytest.raises(ModelError, match=r"\[3, 4, 5\] is no picture"):
        png_bytes(np.zeros((3, 4, 5)))
    for bad in (np.nan, np.inf):
        r = np.array([[0.0, bad]])
        for measure in (png_bytes, entropy, gini):
            with pytest.raises(ModelError, match="NaN or infinite"):
                measure(r)
        for located in (mass_inside, pointing):
            with pytest.raises(ModelError, match="NaN or infinite"):
                located(r, np.ones((1, 2)))


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeMissingError, match="pip install"):
        png_bytes(NOISE)


# --- spread ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_even_and_single_values(n: int) -> None:
    """Entropy log2 n and Gini 0 for equal values of any sign; 0 and 1 - 1/n for one alone."""
    even, one = -3.0 * np.ones(n), np.eye(n)[0]
    even[::2] *= -1
    assert entropy(even) == pytest.approx(math.log2(n), abs=1e-12)
    assert gini(even) == pytest.approx(0, abs=1e-12)
    assert entropy(one) == 0
    assert gini(one) == pytest.approx(1 - 1 / n, abs=1e-12)


def test_spread_against_sums() -> None:
    """Entropy as -sum p log2 p; Gini as the mean absolute difference over twice the mean."""
    r = np.random.default_rng(4).normal(size=(5, 6))
    c = [abs(float(v)) for v in r.reshape(-1)]
    shares = [v / sum(c) for v in c]
    assert entropy(r) == pytest.approx(-sum(p * math.log2(p) for p in shares), rel=1e-12)
    pairs = sum(abs(a - b) for a in c for b in c)
    assert gini(r) == pytest.approx(pairs / (2 * len(c) * sum(c)), rel=1e-12)
    assert (entropy(9 * r), gini(9 * r)) == pytest.approx((entropy(r), gini(r)), rel=1e-12)


def test_spread_of_nothing() -> None:
    """Zeros have no spread; zeros among values count for Gini, not for entropy."""
    assert math.isnan(entropy(np.zeros((2, 3))))
    assert math.isnan(gini(np.zeros((2, 3))))
    assert entropy(np.array([1.0, 1.0, 0.0, 1e-320])) == pytest.approx(1, abs=1e-12)
    assert gini(np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5, abs=1e-12)


# --- place ------------------------------------------------------------------------------------------------------------


def test_mass_inside() -> None:
    """Of the positive relevance alone; nan without any."""
    r = np.array([[3.0, -5.0], [1.0, 4.0]])
    mask = np.array([[1, 1], [0, 0]])
    assert mass_inside(r, mask) == 3 / 8
    assert mass_inside(r, mask == 0) == 5 / 8
    assert mass_inside(r, np.ones((2, 2))) == 1
    assert mass_inside(r, np.zeros((2, 2))) == 0
    assert math.isnan(mass_inside(-abs(r), mask))


def test_pointing() -> None:
    """The largest value, not the largest magnitude; the first of several; nowhere if nothing is positive."""
    r = np.array([[3.0, -5.0], [4.0, 4.0]])
    assert pointing(r, np.array([[0, 0], [1, 0]]))
    assert not pointing(r, np.array([[0, 0], [0, 1]]))
    assert not pointing(r, np.array([[1, 1], [0, 0]]))
    assert not pointing(np.zeros((2, 2)), np.ones((2, 2)))


def test_masks_must_fit() -> None:
    """No broadcasting."""
    for located in (mass_inside, pointing):
        with pytest.raises(ModelError, match=r"mask has the shape \[2, 1\], the relevance map \[2, 2\]"):
            located(np.ones((2, 2)), np.ones((2, 1)))


# --- ranks ------------------------------------------------------------------------------------------------------------


def by_counting(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of ranks that are counted: how many are less, and half of those that are equal."""
    ranks = [
        [sum(v < u for v in x) + (sum(v == u for v in x) + 1) / 2 for u in x]
        for x in (a.reshape(-1).tolist(), b.reshape(-1).tolist())
    ]
    return float(np.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_against_counting(ties: bool) -> None:
    """Ties get mean ranks."""
    a, b = np.random.default_rng(5).normal(size=(2, 6, 7))
    b = b + a
    if ties:
        a, b = np.round(a), np.round(b)
    assert rank_correlation(a, b) == pytest.approx(by_counting(a, b), abs=1e-12)


def test_rank_correlation_against_scipy() -> None:
    """Comes with scikit-learn."""
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(6).integers(0, 9, size=(2, 40, 50)).astype(np.float32)
    want = stats.spearmanr(a.reshape(-1), b.reshape(-1)).statistic
    assert rank_correlation(a, b) == pytest.approx(want, abs=1e-12)


def test_rank_correlation_knows_order_alone() -> None:
    """1 under any growing function, -1 under a falling one; nan where there is no order."""
    assert rank_correlation(NOISE, np.exp(NOISE)) == 1
    assert rank_correlation(NOISE, -(NOISE**3)) == -1
    assert math.isnan(rank_correlation(NOISE, CONSTANT))
    for bad in (np.nan, np.inf):
        assert math.isnan(rank_correlation(NOISE, np.where(NOISE > 2, bad, NOISE)))
        assert math.isnan(rank_correlation(np.where(NOISE > 2, bad, NOISE), NOISE))
