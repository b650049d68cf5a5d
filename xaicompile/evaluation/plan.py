"""What is compared, on what and how: the settings of one evaluation, from options and from a preset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from xaicompile.composite import folders, read_toml
from xaicompile.errors import ModelError, RuleError
from xaicompile.evaluation.flipping import Flipping, settings
from xaicompile.registry import nearest

KEYS = {"name", "doc", "cite", "flipping", "data", "rules"}
DATA = {"mean", "std", "range", "resize", "crop", "target", "batch", "samples", "random_seeds"}
PREPROCESS = ("mean", "std", "range", "resize", "crop")


@dataclass(frozen=True)
class Compared:
    """One explanation technique: a rule set, its parameters, and what the report calls it."""

    name: str
    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """One evaluation. Workers read it from its folder, so all of it is plain data.

    Attributes:
        model: Path of the source model.
        rules: What is compared.
        data: A folder of photos or arrays, or a `.npy` or `.npz` file.
        labels: File with the samples' labels; None: `labels` in the data, if there are any.
        masks: Folder or file that says where in a sample the relevance should lie; None: `masks` in the data.
        target: "predicted" (the largest output), "label", or the index of an output: what is explained.
        flipping: How values are flipped; the order is both.
        preprocess: How photos are read, see `xaicompile.images.Preprocess`.
        random_seeds: How many random orders make the baseline.
        samples: Only the first that many; None: all.
        batch: How many samples are done at once; one batch is one block of results.
        artifact: What is planted into each sample to see whether relevance finds it (`path`, `at`, `blend`, `target`,
            see `xaicompile.evaluation.artifact`); None: nothing.
    """

    model: str
    rules: tuple[Compared, ...]
    data: str
    labels: str | None = None
    masks: str | None = None
    target: str | int = "predicted"
    flipping: Flipping = field(default_factory=Flipping)
    preprocess: Mapping[str, Any] | None = None
    random_seeds: int = 10
    samples: int | None = None
    batch: int = 16
    artifact: Mapping[str, Any] | None = None
    explain_output: str | None = None
    explain_input: str | None = None
    device: str = "cpu"
    threads: int | None = None
    preset: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """What `to_dict` wrote."""
        rules = tuple(Compared(**r) for r in values["rules"])
        return cls(**{**values, "rules": rules, "flipping": Flipping(**values["flipping"])})

    def fingerprint(self) -> str:
        """Hash of all that decides the results: blocks of another evaluation are not taken for this one's."""
        decides = {k: v for k, v in self.to_dict().items() if k not in ("device", "threads", "preset")}
        source = hashlib.sha256(Path(self.model).read_bytes()).hexdigest()
        read = [file_state(p) for p in (self.data, self.labels, self.masks, *(c.rule for c in self.rules))]
        return hashlib.sha256(json.dumps([decides, source, read], sort_keys=True).encode()).hexdigest()


def file_state(path: str | None) -> list[Any]:
    """Size and time of a file, or of the files in a folder; nothing for what is no path."""
    if path is None or not Path(path).exists():
        return []
    files = [Path(path)] if Path(path).is_file() else sorted(p for p in Path(path).rglob("*") if p.is_file())
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def presets() -> dict[str, Path]:
    """Shipped presets by name."""
    return {p.stem: p for folder in folders() for p in sorted((folder / "evaluation").glob("*.toml"))}


def read_preset(preset: str) -> dict[str, Any]:
    """Settings of a preset, by name or by path to a TOML file: arguments of `Plan`, and `doc`.

    Raises:
        RuleError: Unknown name, key or value.
    """
    path = presets().get(preset) or Path(preset)
    if path.suffix != ".toml":
        raise nearest(preset, presets(), "preset")
    _, data = read_toml(path, "preset", KEYS)
    given = table(data, "data", path)
    for key in given:
        if key not in DATA:
            raise nearest(key, DATA, f"key of [data] in {path.name}:")
    found: dict[str, Any] = {k: v for k, v in given.items() if k not in PREPROCESS}
    prepared = {k: v for k, v in given.items() if k in PREPROCESS}
    rules = data.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(r, dict) and isinstance(r.get("rule"), str) for r in rules):
        raise RuleError(f'{path.name}: rules is a list of tables with rule = "NAME", [[rules]]')
    return {
        **found,
        "preset": str(data.get("name", path.stem)),
        "preprocess": prepared or None,
        "flipping": table(data, "flipping", path),
        "rules": [named_rule(r, path) for r in rules],
    }


def table(data: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A table of a preset, empty if it is not there."""
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise RuleError(f"{path.name}: {key} is a table, [{key}]")
    return value


def named_rule(values: Mapping[str, Any], path: Path) -> Compared:
    """One [[rules]] table; a rule file is looked for beside the preset."""
    for key in values:
        if key not in ("rule", "name", "parameters"):
            raise nearest(key, ["rule", "name", "parameters"], f"key of [[rules]] in {path.name}:")
    rule = str(values["rule"])
    beside = path.parent / rule
    return Compared(
        str(values.get("name", rule)),
        str(beside) if rule.endswith(".toml") and beside.is_file() else rule,
        dict(table(values, "parameters", path)),
    )


def flipping_of(*given: Mapping[str, Any]) -> Flipping:
    """How values are flipped, later settings over earlier ones.

    Raises:
        RuleError: What is no setting of pixel flipping, or the order, which is both.
    """
    merged = {k: v for values in given for k, v in values.items()}
    if "order" in merged:
        raise RuleError("--set order: both orders are evaluated, most and least relevant first")
    found, left = settings(merged)
    for key in left:
        raise nearest(key, [f for f in asdict(found) if f != "order"], "setting of pixel flipping")
    return found


def distinct(rules: Sequence[Compared]) -> tuple[Compared, ...]:
    """The rules, once each.

    Raises:
        RuleError: None at all, or two different ones of one name.
    """
    if not rules:
        raise RuleError("nothing to compare: give --rule (repeatable), or a --preset")
    found: dict[str, Compared] = {}
    for r in rules:
        if found.setdefault(r.name, r) != r:
            raise RuleError(f"two rules are called '{r.name}'; give one of them another name")
    if "random baseline" in found:
        raise RuleError("'random baseline' is the report's own; give the rule another name")
    return tuple(found.values())


def check_files(plan: Plan) -> None:
    """Says before the work what is not there.

    Raises:
        ModelError: Names the file.
    """
    mark = None if plan.artifact is None else plan.artifact["path"]
    for path in (plan.model, plan.data, plan.labels, plan.masks, mark):
        if path is not None and not Path(path).exists():
            raise ModelError(f"no such file: '{path}'")


def resolved(plan: Plan) -> Plan:
    """The plan with absolute paths, as workers need it who run elsewhere."""

    def full(path: str | None) -> str | None:
        return None if path is None else str(Path(path).resolve())

    mark = None if plan.artifact is None else {**plan.artifact, "path": full(plan.artifact["path"])}
    return replace(
        plan,
        model=str(Path(plan.model).resolve()),
        data=str(Path(plan.data).resolve()),
        labels=full(plan.labels),
        masks=full(plan.masks),
        artifact=mark,
    )
