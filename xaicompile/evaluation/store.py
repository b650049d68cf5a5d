"""Results on disk: one Parquet file a block, written whole or not at all, so that a broken run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import OutputError, RuntimeMissingError
from xaicompile.evaluation import plots
from xaicompile.evaluation.plan import Plan
from xaicompile.evaluation.score import Row

WHOLE = ("index", "seed", "label", "target", "predicted", "png_bytes", "png_bytes_clipped", "values")
TEXT = ("sample", "rule", "reason")
CURVES = ("morf", "lerf")
FLAGS = ("pointing", "artifact_pointing")
NUMBERS = (
    *(
        "relevance_sum",
        "entropy",
        "gini",
        "mass_inside",
        "area_inside",
        "artifact_effect",
        "artifact_mass",
        "artifact_area",
    ),
)


def arrow() -> Any:
    """The library that reads and writes Parquet.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeMissingError(
            'keeping the results needs pyarrow; run `pip install "xaicompile[report]"`'
        ) from error
    return pyarrow


class Store:
    """The folder of one evaluation."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def refuse(self, plan: Plan, force: bool = False) -> None:
        """Say before the work that the folder can't be used.

        Raises:
            OutputError: It is a file, or holds something else.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder} is a file; give a folder")
        if force or not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        if not self.plan_path.exists():
            raise OutputError(f"{self.folder} is not empty, and no evaluation; choose another folder, or --force")
        try:
            known = json.loads(self.plan_path.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            known = ""
        if known != plan.fingerprint():
            raise OutputError(
                f"{self.folder} holds another evaluation (other settings, model or data); choose another folder, or "
                "--force to start it anew"
            )

    def open(self, plan: Plan, force: bool = False) -> None:
        """Make the folder, or go on in it; `force` takes away what an earlier evaluation left there.

        Raises:
            OutputError: It can't be written.
        """
        try:
            old = ("blocks/*.parquet", "models/*", "maps/*.png", "plan.json") if force else ()
            for pattern in ("blocks/*.part*", *old):
                for path in self.folder.glob(pattern):
                    path.unlink()
            for name in ("blocks", "models"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't write into {self.folder}: {error.strerror or error}") from error
        text = json.dumps({"fingerprint": plan.fingerprint(), **plan.to_dict()}, indent=2)
        plots.write(self.plan_path, lambda part: part.write_text(text, encoding="utf-8"))

    @property
    def plan_path(self) -> Path:
        """Where the settings are."""
        return self.folder / "plan.json"

    def block(self, number: int) -> Path:
        """The file of a block."""
        return self.folder / "blocks" / f"{number:06d}.parquet"

    def missing(self, blocks: int) -> list[int]:
        """Blocks that are not done yet."""
        return [n for n in range(blocks) if not self.block(n).exists()]

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Keep the rows of a block.

        Raises:
            OutputError: They can't be written.
        """
        pa = arrow()
        types = {
            **dict.fromkeys(WHOLE, pa.int64()),
            **dict.fromkeys(TEXT, pa.string()),
            **dict.fromkeys(FLAGS, pa.bool_()),
            **dict.fromkeys(NUMBERS, pa.float64()),
            **dict.fromkeys(CURVES, pa.list_(pa.float32())),
        }
        plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in r.items()} for r in rows]
        found = pa.Table.from_pylist(plain, schema=pa.schema(list(types.items())))
        part = self.block(number).with_suffix(f".part{os.getpid()}")
        try:
            pa.parquet.write_table(found, part, compression="zstd")
            part.replace(self.block(number))
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"can't write {self.block(number)}: {error.strerror or error}") from error

    def read(self) -> Any:
        """All rows of all blocks, as one table in the order of the samples."""
        pa = arrow()
        return pa.concat_tables([pa.parquet.read_table(p) for p in sorted(self.folder.glob("blocks/*.parquet"))])
