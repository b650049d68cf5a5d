"""Who does the blocks: this process, or the actors of a Ray cluster. Both call `Scorer` and write the same files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xaicompile.errors import RuntimeMissingError
from xaicompile.evaluation.plan import Plan
from xaicompile.evaluation.score import Scorer
from xaicompile.evaluation.store import Store

ENGINES = ("local", "ray")


def local(scorer: Scorer, store: Store, blocks: Sequence[int]) -> Iterator[int]:
    """Does the blocks one after the other; gives the number of each that is done."""
    for block in blocks:
        store.write(block, scorer(block))
        yield block


class Actor:
    """A worker that holds the sessions, and does the blocks that it is handed."""

    def __init__(self, folder: str, rules: Mapping[str, str]) -> None:
        self.store = Store(folder)
        values: dict[str, Any] = json.loads(self.store.plan_path.read_text(encoding="utf-8"))
        values.pop("fingerprint")
        plan = Plan.from_dict(values)
        models = self.store.folder / "models"
        self.scorer = Scorer(plan, models, {name: Path(path) for name, path in rules.items()})

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does the blocks `item` of a batch, those that are not done."""
        for block in batch["item"]:
            if not self.store.block(int(block)).exists():
                self.store.write(int(block), self.scorer(int(block)))
        return batch


def by_ray(store: Store, rules: Mapping[str, Path], blocks: Sequence[int], workers: int) -> Iterator[int]:
    """Does the blocks with Ray Data: actors that load the models once, and are started again if they die.

    A block is written by the actor that did it, whole or not at all. So whatever dies, nothing that is finished is
    lost; a broken run goes on with the blocks that have no file. The folder must be one that all machines see.

    Raises:
        RuntimeMissingError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeMissingError('--engine ray needs Ray; run `pip install "xaicompile[ray]"`') from error
    if not blocks:
        return
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items([int(b) for b in blocks], override_num_blocks=len(blocks))
    done = items.map_batches(
        Actor,
        fn_constructor_args=(str(store.folder.resolve()), {n: str(p.resolve()) for n, p in rules.items()}),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(1, min(workers, len(blocks)))),
    )
    for row in done.iter_rows():
        yield int(row["item"])
