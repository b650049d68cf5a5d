"""The samples of an evaluation: photos of a folder, or arrays; what can't be read is told one by one."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, RuleError
from xaicompile.images import ARRAYS, Preprocess, channel_axis, fit, is_array, read_arrays, read_photo, read_picture
from xaicompile.runtime import Port

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RESERVED = ("labels", "masks", "names")
NO_LABEL = -1


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        feed: The model's inputs by name, with a batch axis of 1.
        label: Index of its class, -1 where it has none.
        mask: Where relevance should lie, of the positions of the explained input; None where nothing says so.
        pixels: The photo, as the model sees it, before it is normalised; None for arrays.
    """

    index: int
    name: str
    feed: Mapping[str, np.ndarray]
    label: int = NO_LABEL
    mask: np.ndarray | None = None
    pixels: np.ndarray | None = None


class Dataset:
    """Samples by index. Opening one may fail; the others are not touched by it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        ports: Sequence[Port],
        *,
        labels: str | os.PathLike[str] | None = None,
        masks: str | os.PathLike[str] | None = None,
        preprocess: Preprocess | None = None,
        classes: Sequence[str] | None = None,
        samples: int | None = None,
    ) -> None:
        """Find the samples.

        Args:
            path: A folder of photos and `.npy` files, its sub-folders with it, in the order of their names; or a
                `.npy` or `.npz` file with the samples along axis 0 (`labels`, `masks` and `names` may be in it).
            ports: The model's inputs; the first is the explained one.
            labels: CSV of names and labels, or a text or `.npy` file with one a sample; None takes `labels` from the
                `.npz`, or the folder's `labels.csv`.
            masks: Folder with pictures of the samples' names (what is not black is inside), CSV of boxes (name, x0,
                y0, x1, y1 in the photo's pixels), or `.npy` file [samples, positions...].
            preprocess: How photos are read.
            classes: Names of the classes, for labels that are names.
            samples: Only the first that many.

        Raises:
            ModelError: There is no sample, or a file can't be read.
        """
        self.path, self.ports, self.preprocess, self.classes = Path(path), list(ports), preprocess, classes
        self.arrays: dict[str, np.ndarray] = {}
        self.files: list[Path] = []
        own: dict[str, np.ndarray] = {}
        if self.path.is_dir():
            found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in (*PICTURES, ".npy"))
            self.files = found[:samples]
            self.names = [p.relative_to(self.path).as_posix() for p in self.files]
            if labels is None and (self.path / "labels.csv").is_file():
                labels = self.path / "labels.csv"
        elif is_array(self.path):
            own = self._open()
            count = min((len(a) for a in self.arrays.values()), default=0)
            count = count if samples is None else min(count, samples)
            self.names = [str(n) for n in own.get("names", np.arange(count))[:count]]
        else:
            raise ModelError(f"'{path}' is no folder, and no .npy or .npz file: give one of them as --data")
        if not self.names:
            kinds = f"pictures ({', '.join(PICTURES)}) or .npy files" if self.files == [] and not own else "samples"
            raise ModelError(f"'{path}' holds no {kinds}")
        self.labels = self._labels(labels, own.get("labels"))
        self.masks = self._masks(masks, own.get("masks"))

    def __len__(self) -> int:
        return len(self.names)

    def _open(self) -> dict[str, np.ndarray]:
        """Reads a file of arrays: the inputs, and what else is in it."""
        read = read_arrays(self.path)
        if isinstance(read, np.ndarray):
            self.arrays = {self.ports[0].name: read}
            return {}
        wanted = [p.name for p in self.ports]
        own = {k: v for k, v in read.items() if k in RESERVED and k not in wanted}
        given = {k: v for k, v in read.items() if k not in own}
        if len(wanted) == 1 and len(given) == 1:
            given = {wanted[0]: next(iter(given.values()))}
        missing = [name for name in wanted if name not in given]
        if missing:
            raise ModelError(f"'{self.path}' holds {', '.join(read) or 'nothing'}; the model reads '{missing[0]}'")
        self.arrays = {name: given[name] for name in wanted}
        return own

    def _labels(self, path: str | os.PathLike[str] | None, own: np.ndarray | None) -> dict[str, int]:
        """Labels by name; those of a file go by order if it gives no names."""
        if path is None:
            return {} if own is None else self._in_order(own.tolist(), self.path)
        file = Path(path)
        if file.suffix.lower() in ARRAYS:
            values = read_arrays(file)
            values = values if isinstance(values, np.ndarray) else values.get("labels", next(iter(values.values())))
            return self._in_order(values.reshape(-1).tolist(), file)
        rows = table(file)
        if all(len(row) == 1 for row in rows):
            return self._in_order([row[0] for row in rows], file)
        known = {row[0]: row[1] for row in rows if len(row) > 1}
        found = {n: known.get(n, known.get(Path(n).name, known.get(Path(n).stem))) for n in self.names}
        if not any(v is not None for v in found.values()):
            raise ModelError(f"'{file}' has no label for any of the samples, such as '{self.names[0]}'")
        return {n: self._index(v, file) for n, v in found.items() if v is not None}

    def _in_order(self, values: Sequence[Any], path: Path) -> dict[str, int]:
        if len(values) < len(self.names):
            raise ModelError(f"'{path}' has {len(values)} labels for {len(self.names)} samples")
        return {n: self._index(v, path) for n, v in zip(self.names, values, strict=False)}

    def _index(self, label: Any, path: Path) -> int:
        """A label as an index of the classes."""
        try:
            return int(label)
        except ValueError:
            pass
        lower = [c.lower() for c in self.classes or ()]
        if str(label).strip().lower() not in lower:
            hint = "the model has no class names (--classes gives them)" if not lower else "it is none of the classes"
            raise ModelError(f"'{path}': label '{label}' is no index, and {hint}")
        return lower.index(str(label).strip().lower())

    def _masks(self, path: str | os.PathLike[str] | None, own: np.ndarray | None) -> dict[str, Any]:
        """Masks by name: an array, a file, or boxes."""
        if path is None:
            return {} if own is None else dict(zip(self.names, own, strict=False))
        file = Path(path)
        if file.is_dir():
            files = {p.stem: p for p in sorted(file.rglob("*")) if p.suffix.lower() in PICTURES}
            found: dict[str, Any] = {n: files[Path(n).stem] for n in self.names if Path(n).stem in files}
        elif file.suffix.lower() in ARRAYS:
            values = read_arrays(file)
            values = values if isinstance(values, np.ndarray) else values.get("masks", next(iter(values.values())))
            found = dict(zip(self.names, values, strict=False))
        else:
            found = {}
            for row in table(file):
                matching = [n for n in self.names if row[0] in (n, Path(n).name, Path(n).stem)]
                for n in matching:
                    found.setdefault(n, []).append(box(row, file))
        if not found:
            raise ModelError(f"'{file}' has no mask for any of the samples, such as '{self.names[0]}'")
        return found

    def __getitem__(self, i: int) -> Sample:
        """One sample.

        Raises:
            ModelError: It can't be read, has another shape than the model's input, or holds NaN or infinity.
        """
        name, port, pixels = self.names[i], self.ports[0], None
        if self.arrays:
            values = {p.name: self.arrays[p.name][i][None] for p in self.ports}
        elif is_array(self.files[i]):
            read = read_arrays(self.files[i])
            assert isinstance(read, np.ndarray)
            values = {port.name: read[None] if read.ndim == len(port.shape) - 1 else read}
        else:
            if len(self.ports) > 1:
                raise ModelError("the model has several inputs; give them by name in a .npz file")
            photo = read_photo(self.files[i], port.shape, port.dtype, self.preprocess)
            values, pixels = {port.name: photo.values}, photo.pixels
        feed = {p.name: fitting(values[p.name], p) for p in self.ports}
        mask = self._mask(name, feed[port.name])
        return Sample(i, name, feed, self.labels.get(name, NO_LABEL), mask, pixels)

    def _mask(self, name: str, values: np.ndarray) -> np.ndarray | None:
        """The mask of a sample, of its positions."""
        given = self.masks.get(name)
        if given is None:
            return None
        channels = channel_axis(values.shape)
        positions = tuple(d for a, d in enumerate(values.shape) if a not in (0, channels))
        if isinstance(given, np.ndarray):
            mask = given if given.shape == positions else given.reshape(-1, *positions)[0] if given.size else given
        else:
            mask = photo_mask(given, self.files[self.names.index(name)], positions, self.preprocess)
        if mask.shape != positions:
            raise ModelError(f"the mask is {list(mask.shape)}, the sample's positions are {list(positions)}")
        return np.asarray(mask != 0)


def fitting(values: np.ndarray, port: Port) -> np.ndarray:
    """A sample as the model reads it.

    Raises:
        ModelError: Another shape, or values that are no numbers.
    """
    wanted = ["N" if i == 0 else d for i, d in enumerate(port.shape)]
    fits = len(port.shape) == values.ndim and all(
        not isinstance(d, int) or d == n for d, n in zip(port.shape[1:], values.shape[1:], strict=True)
    )
    if not fits:
        raise ModelError(f"its shape is {list(values.shape)}, input '{port.name}' is {wanted}")
    if values.dtype.kind not in "biuf":
        raise ModelError(f"its values are {values.dtype}, input '{port.name}' is {port.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ModelError(f"it holds {np.count_nonzero(~np.isfinite(values))} NaN or infinite values")
    return np.ascontiguousarray(values, dtype=port.dtype)


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV or text file, a heading left out.

    Raises:
        ModelError: It can't be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(f"can't read '{path}': {error}") from error
    heading = bool(rows) and rows[0][0].lower() in ("name", "file", "filename", "image", "label")
    return rows[1:] if heading else rows


def box(row: Sequence[str], path: Path) -> tuple[float, float, float, float]:
    """Corners of a box of a CSV: name, x0, y0, x1, y1.

    Raises:
        ModelError: They are no numbers.
    """
    try:
        x0, y0, x1, y1 = (float(v) for v in row[1:5])
    except ValueError:
        raise ModelError(f"'{path}': expected name,x0,y0,x1,y1, not {','.join(row)}") from None
    return x0, y0, x1, y1


def photo_mask(given: Any, photo: Path, size: tuple[int, ...], preprocess: Preprocess | None) -> np.ndarray:
    """A picture of a mask, or boxes in a photo's pixels, resized and cropped as the photo is."""
    from PIL import Image, ImageDraw

    if isinstance(given, Path):
        picture = read_picture(given, 1)
    else:
        picture = Image.new("L", read_picture(photo, 3).size)
        for corners in given:
            ImageDraw.Draw(picture).rectangle(corners, fill=255)
    try:
        return np.asarray(fit(picture, preprocess or Preprocess(), size)) > 127
    except RuleError as error:
        raise ModelError(f"the mask does not fit: {error}") from error
