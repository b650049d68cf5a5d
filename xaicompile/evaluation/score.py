"""One batch of samples in, one row of results for each sample and rule out. The same on one machine and on many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import ModelError, RuleError, XaiCompileError
from xaicompile.evaluation import artifact, maps
from xaicompile.evaluation.data import NO_LABEL, Dataset, Sample
from xaicompile.evaluation.plan import Plan
from xaicompile.images import Preprocess, channel_axis
from xaicompile.report import read_classes
from xaicompile.runtime import Port, Session

Row = dict[str, Any]
BASELINE = "random baseline"
CLIPPED = 0.995  # quantile of |R| at which the second file size clips


class Scorer:
    """The compiled models of an evaluation, loaded, and its data."""

    def __init__(self, plan: Plan, folder: Path, rules: Mapping[str, Path]) -> None:
        """Load what was compiled.

        Args:
            folder: Where `morf.onnx`, `lerf.onnx` and `clean.onnx` are: the source model with an input `given`, and
                the curve that flipping by it makes.
            rules: The explained model of each rule.
        """

        def load(path: Path) -> Session:
            return Session(path, device=plan.device, threads=plan.threads)

        self.plan = plan
        self.explained = {name: load(path) for name, path in rules.items()}
        self.flips = {order: load(folder / f"{order}.onnx") for order in ("morf", "lerf")}
        self.clean = load(folder / "clean.onnx") if plan.artifact else None
        any_one = self.flips["morf"]
        self.explains = next(iter(json.loads(any_one.metadata["xaicompile.relevance"])))
        self.target = any_one.metadata.get("xaicompile.target", "")
        self.classes = read_classes(None, any_one.metadata)
        preprocess = plan.preprocess or json.loads(any_one.metadata.get("xaicompile.preprocess") or "null")
        self.preprocess = Preprocess.from_dict(preprocess) if preprocess else None
        self.data = Dataset(
            plan.data,
            sorted(any_one.inputs, key=lambda port: port.name != self.explains),
            labels=plan.labels,
            masks=plan.masks,
            preprocess=self.preprocess,
            classes=self.classes,
            samples=plan.samples,
        )
        if plan.target == "label" and not self.data.labels:
            raise RuleError("--target label: no sample has a label; give --labels")
        self.outputs = size_of(scores_of(any_one))
        asked = (plan.target, plan.artifact and plan.artifact.get("target"))
        for target in (t for t in asked if isinstance(t, int) and not -1 <= t < (self.outputs or t + 1)):
            raise RuleError(f"--target {target}: '{scores_of(any_one).name}' has {self.outputs} values a sample")
        self.port = self.data.ports[0]
        self.planted = artifact.planted(plan.artifact, self.port, self.preprocess) if plan.artifact else None
        self.single = isinstance(self.port.shape[0], int)

    @property
    def blocks(self) -> int:
        """How many batches there are."""
        return -(-len(self.data) // self.plan.batch)

    def __call__(self, block: int) -> list[Row]:
        """The rows of one batch; what can't be read is a row with a reason and no rule."""
        rows, samples = [], []
        for i in range(block * self.plan.batch, min((block + 1) * self.plan.batch, len(self.data))):
            try:
                sample = self.data[i]
                if self.plan.target == "label" and sample.label == NO_LABEL:
                    raise ModelError("it has no label, and --target label explains that")
                if self.plan.target == "label" and sample.label >= (self.outputs or sample.label + 1):
                    raise ModelError(f"its label is {sample.label}, the model has {self.outputs} outputs")
                samples.append(sample)
            except XaiCompileError as error:
                rows.append(row(i, self.data.names[i], reason=str(error)))
        for group in alike(samples, self.single):
            rows += self.scored(group)
        return rows

    def scored(self, samples: Sequence[Sample]) -> list[Row]:
        """The rows of samples that go through the models together."""
        feed = {name: np.concatenate([s.feed[name] for s in samples]) for name in samples[0].feed}
        targets = self.targets(samples)
        rows: list[Row] = []
        for name, session in self.explained.items():
            try:
                found = self.run(session, feed, targets)
                r, score = self.relevance(session, found), self.largest(session, found)
                curves = {order: self.curve(order, feed, targets, r) for order in self.flips}
                plants = self.artifact(session, feed, targets) if self.planted else [{}] * len(samples)
            except XaiCompileError as error:
                rows += [row(s.index, s.name, name, reason=str(error)) for s in samples]
                continue
            for i, sample in enumerate(samples):
                known = {"label": sample.label, "target": int(targets[i]), "predicted": int(score[i])}
                made = row(sample.index, sample.name, name, **known, **{o: c[i] for o, c in curves.items()})
                if np.isfinite(r[i]).all():
                    rows.append(made | measured(r[i], self.axis, sample.mask) | plants[i])
                else:
                    rows.append(row(sample.index, sample.name, name, reason="its relevance is not finite"))
        for seed in range(self.plan.random_seeds):
            drawn = [
                np.random.default_rng([seed, s.index]).standard_normal(feed[self.explains].shape[1:]) for s in samples
            ]
            curve = self.curve("morf", feed, targets, np.stack(drawn))
            rows += [
                row(s.index, s.name, BASELINE, seed=seed, label=s.label, target=int(targets[i]), morf=curve[i])
                for i, s in enumerate(samples)
            ]
        return rows

    @property
    def axis(self) -> int | None:
        """Axis of the channels in one sample's relevance, None if it has none."""
        axis = channel_axis(self.port.shape)
        return None if axis is None or not self.floating else axis - 1

    @property
    def floating(self) -> bool:
        """False for token ids, whose relevance has no channels."""
        return self.port.dtype is not None and np.issubdtype(self.port.dtype, np.floating)

    def targets(self, samples: Sequence[Sample]) -> np.ndarray:
        """What is explained of each sample: -1 for the largest output."""
        wanted = self.plan.target
        if wanted == "label":
            return np.array([s.label for s in samples], np.int64)
        return np.full(len(samples), -1 if wanted == "predicted" else int(wanted), np.int64)

    def run(self, session: Session, feed: Mapping[str, np.ndarray], targets: np.ndarray, **more: np.ndarray) -> Any:
        """All outputs of a compiled model."""
        chosen = {self.target: targets} if self.target else {}
        return session.run({**feed, **chosen, **more})

    def relevance(self, session: Session, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """Relevance of the explained input, with the batch in front."""
        name = json.loads(session.metadata["xaicompile.relevance"])[self.explains]
        return np.asarray(found[name])

    def curve(self, order: str, feed: Mapping[str, np.ndarray], targets: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Scores as values are flipped by r, [N, steps + 1]."""
        session = self.flips[order]
        port = next(p for p in session.overridable if p.name.startswith("given"))
        return np.asarray(self.run(session, feed, targets, **{port.name: r.astype(port.dtype)})["flipping_curve"])

    def largest(self, session: Session, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """Index of the largest output of each sample; 0 where nothing is to be told apart."""
        values = np.asarray(found[scores_of(session).name])
        return values.reshape(len(values), -1).argmax(1) if values.ndim > 1 else np.zeros(max(values.shape, default=1))

    def artifact(self, session: Session, feed: Mapping[str, np.ndarray], targets: np.ndarray) -> list[Row]:
        """How much relevance finds what is planted, and how much that changes the explained score."""
        assert self.planted is not None and self.clean is not None
        marked = {**feed, self.explains: self.planted.put(feed[self.explains])}
        if self.planted.target is not None:
            targets = np.full_like(targets, self.planted.target)
        elif (targets < 0).any():
            targets = self.largest(session, self.run(session, marked, targets)).astype(np.int64)
        r = self.relevance(session, self.run(session, marked, targets))
        before, after = (self.run(self.clean, f, targets)["flipping_curve"][:, 0] for f in (feed, marked))
        mask = self.planted.mask
        flat = [maps.summed(values, self.axis) for values in r]
        return [
            {
                "artifact_area": float(mask.mean()),
                "artifact_effect": float(after[i] - before[i]),
                "artifact_mass": maps.mass_inside(flat[i], mask),
                "artifact_pointing": maps.pointing(flat[i], mask),
            }
            for i in range(len(r))
        ]


def row(index: int, name: str, rule: str = "", **values: Any) -> Row:
    """One row."""
    return {"index": index, "sample": name, "rule": rule, "seed": 0, "label": NO_LABEL, **values}


def measured(relevance: np.ndarray, channels: int | None, mask: np.ndarray | None) -> Row:
    """What is measured on one map."""
    r = maps.summed(relevance, channels)
    found = {
        "relevance_sum": float(np.sum(r, dtype=np.float64)),
        "png_bytes": maps.png_bytes(r),
        "png_bytes_clipped": maps.png_bytes(r, CLIPPED),
        "values": int(r.size),
        "entropy": maps.entropy(r),
        "gini": maps.gini(r),
    }
    if mask is not None and mask.any():
        found |= {
            "mass_inside": maps.mass_inside(r, mask),
            "area_inside": float(mask.mean()),
            "pointing": maps.pointing(r, mask),
        }
    return found


def alike(samples: Sequence[Sample], single: bool) -> list[list[Sample]]:
    """Samples that can go through a model together: of the same sizes, and one by one if the batch is fixed."""
    if single:
        return [[s] for s in samples]
    groups: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for s in samples:
        groups.setdefault(tuple(v.shape for v in s.feed.values()), []).append(s)
    return list(groups.values())


def size_of(port: Port) -> int | None:
    """How many values a sample has, None if that is open."""
    sizes = [d for d in port.shape[1:] if isinstance(d, int)]
    return int(np.prod(sizes)) if len(sizes) == len(port.shape) - 1 else None


def scores_of(session: Session) -> Port:
    """The output that holds the scores.

    Raises:
        ModelError: The model gives none.
    """
    ours = set(json.loads(session.metadata.get("xaicompile.relevance") or "{}").values())
    floats = [p for p in session.outputs if p.name not in ours and p.dtype is not None and p.dtype.kind == "f"]
    if not floats:
        raise ModelError("the model has no output of scores")
    explained = session.metadata.get("xaicompile.explain_output", "")
    return next((p for p in floats if p.name == explained), floats[0])
