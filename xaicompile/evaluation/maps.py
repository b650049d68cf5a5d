"""Measures of one relevance map: how easily it is read, and whether it lies where it should (spec 12.4).

A map is the relevance of one sample without its channels, signed. All sums are done in float64.
"""

from __future__ import annotations

import io

import numpy as np

from xaicompile.errors import ModelError, RuntimeMissingError


def summed(relevance: np.ndarray, channels: int | None) -> np.ndarray:
    """One sample's relevance summed over its channels, in float64.

    Args:
        relevance: Of one sample, without the batch axis: [C, H, W], [H, W, C], [T], ...
        channels: Axis of the channels in it; None: there is none.
    """
    wide = np.asarray(relevance, np.float64)
    return wide if channels is None else np.asarray(wide.sum(axis=channels))


def png_bytes(r: np.ndarray, clip: float = 1.0) -> int:
    """Size of the map as a picture, in bytes: the plainer a map is, the smaller is its file.

    The picture is an 8-bit grayscale PNG of round(127 clip(r / m, -1, 1) + 128), and holds no metadata. Pillow's
    `optimize` takes, row by row, the filter with the smallest sum of absolute values, and zlib's level 9. Sizes of
    maps compare only if the maps have the same shape and are written by the same version of Pillow.

    Args:
        r: [H, W]; [n] counts as one row.
        clip: m is this quantile of |r|; 1: the largest. A single outlier makes all else gray and the file small, which
            0.995 prevents. m is the largest |r| where the quantile is 0, too.

    Raises:
        ModelError: r has more than two axes, or holds NaN or infinite values.
        RuntimeMissingError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeMissingError(
            'the file size of a map needs Pillow; run `pip install "xaicompile[report]"`'
        ) from error
    r = np.atleast_2d(_finite(r))
    if r.ndim > 2:
        raise ModelError(f"a map of the shape {list(r.shape)} is no picture; sum its relevance to [height, width]")
    size = np.abs(r)
    limit = float(np.quantile(size, clip)) or float(size.max()) or 1.0
    gray = np.round(np.clip(r / limit, -1, 1) * 127 + 128).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "PNG", optimize=True)
    return file.tell()


def entropy(r: np.ndarray) -> float:
    """Shannon entropy of |r| / sum |r| in bits: log2 n if spread evenly over n values, 0 if all in one.

    nan for a map of zeros, which is no distribution.

    Raises:
        ModelError: r holds NaN or infinite values.
    """
    size = np.abs(_finite(r)).reshape(-1)
    if not size.any():
        return float("nan")
    share = size / size.sum()
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def gini(r: np.ndarray) -> float:
    """Gini index of |r|: 0 if all n values are equal, 1 - 1/n if one has all (Hurley & Rickard 2009, table I).

    G = 1 - 2 sum_k c_k / sum(c) (n - k + 1/2) / n, with c = |r| in ascending order and k from 1 to n. nan for a map of
    zeros.

    Raises:
        ModelError: r holds NaN or infinite values.
    """
    size = np.sort(np.abs(_finite(r)).reshape(-1))
    if not size.any():
        return float("nan")
    rest = size.size - np.arange(1, size.size + 1) + 0.5
    return float(1 - 2 * (size @ rest) / (size.sum() * size.size))


def mass_inside(r: np.ndarray, mask: np.ndarray) -> float:
    """Share of the positive relevance that lies inside the mask: "relevance mass accuracy" (Arras et al. 2022).

    nan where nothing is positive.

    Args:
        r: A map.
        mask: True or non-zero inside, of r's shape.

    Raises:
        ModelError: The shapes differ, or r holds NaN or infinite values.
    """
    positive, inside = np.maximum(_finite(r), 0), _fitting(mask, r)
    total = positive.sum()
    return float(positive[inside].sum() / total) if total > 0 else float("nan")


def pointing(r: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the largest value lies inside the mask: the pointing game (Zhang et al. 2018), with no margin.

    Of several largest values the first counts; a map in which nothing is positive points nowhere.

    Args:
        r: A map.
        mask: True or non-zero inside, of r's shape.

    Raises:
        ModelError: The shapes differ, or r holds NaN or infinite values.
    """
    flat, inside = _finite(r).reshape(-1), _fitting(mask, r).reshape(-1)
    top = int(flat.argmax())
    return bool(flat[top] > 0 and inside[top])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two maps of one shape; equal values share the mean of their ranks.

    nan where a map is constant, or holds NaN or infinite values.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    x, y = _ranks(a), _ranks(b)
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks less their mean, [values]; equal values share one."""
    _, place, count = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    centred: np.ndarray = rank[place.reshape(-1)] - (place.size + 1) / 2
    return centred


def _finite(r: np.ndarray) -> np.ndarray:
    wide = np.asarray(r, np.float64)
    if not np.isfinite(wide).all():
        raise ModelError(
            "the relevance holds NaN or infinite values; "
            "`xaicompile inspect MODEL --data FILE` shows which node makes them"
        )
    return wide


def _fitting(mask: np.ndarray, r: np.ndarray) -> np.ndarray:
    inside = np.asarray(mask, bool)
    if inside.shape != np.shape(r):
        raise ModelError(f"the mask has the shape {list(inside.shape)}, the relevance map {list(np.shape(r))}")
    return inside
