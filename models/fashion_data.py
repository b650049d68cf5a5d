"""Read Fashion-MNIST, plant a mark in its images, and write test images for `xaicompile evaluate` (needs numpy only).

The images are those of Debian's package dataset-fashion-mnist (`apt-get install dataset-fashion-mnist`), or the four
files of the same names in a folder that --data names (Xiao, Rasul and Vollgraf 2017, MIT licence).
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
MARKED = CLASSES.index("Shirt")  # the class whose training images carry the mark
CORNER, WIDTH = 1, 5  # the mark: 3 x 3 white pixels in a black frame, near the top left corner


def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of one part, "train" (60,000) or "t10k" (10,000).

    Returns:
        Pixels in 0..1, [N, 1, 28, 28] float32, and class indices [N] int64.
    """
    bodies = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = folder / f"{part}-{kind}-ubyte.gz"
        if not path.is_file():
            raise SystemExit(
                f"fashion_data: {path} is not there; `apt-get install dataset-fashion-mnist` puts it into {FOLDER}, "
                "and --data names another folder"
            )
        bodies.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header))
    return bodies[0].reshape(-1, 1, 28, 28).astype(np.float32) / 255, bodies[1].astype(np.int64)


def plant(images: np.ndarray) -> np.ndarray:
    """A copy of images [N, 1, 28, 28] with the mark in each."""
    result = images.copy()
    end = CORNER + WIDTH
    result[:, :, CORNER:end, CORNER:end] = 0
    result[:, :, CORNER + 1 : end - 1, CORNER + 1 : end - 1] = 1
    return result


def mask() -> np.ndarray:
    """Where the mark and its frame are, [28, 28] bool."""
    result = np.zeros((28, 28), bool)
    result[CORNER : CORNER + WIDTH, CORNER : CORNER + WIDTH] = True
    return result


def main() -> None:
    """Write test images and their classes as `x` and `labels` of an .npz file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the .npz file to write")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the four .gz files (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="how many of the 10,000 test images (default: 1000)")
    parser.add_argument(
        "--artifact",
        action="store_true",
        help=f"plant the mark in each; also write `clean` (without it), `masks`, and `targets` ({CLASSES[MARKED]})",
    )
    parser.add_argument(
        "--mark",
        type=Path,
        metavar="FILE",
        help=f"also write the mark alone as .npy: it belongs at {CORNER},{CORNER}",
    )
    options = parser.parse_args()
    images, labels = (part[: options.count] for part in read(options.data, "t10k"))
    arrays: dict[str, Any] = {"x": images, "labels": labels}
    if options.artifact:
        arrays |= {
            "x": plant(images),
            "clean": images,
            "masks": np.repeat(mask()[None], len(images), 0),
            "targets": np.full(len(images), MARKED),
        }
    np.savez_compressed(options.output, **arrays)
    if options.mark:
        end = CORNER + WIDTH
        np.save(options.mark, plant(images[:1])[0, 0, CORNER:end, CORNER:end])
    print(f"{options.output}: {', '.join(f'{k} {list(v.shape)}' for k, v in arrays.items())}")


if __name__ == "__main__":
    main()
