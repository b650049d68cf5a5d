"""The report of an evaluation as one page that opens offline, and as JSON."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.errors import RuntimeMissingError
from xaicompile.evaluation import plots
from xaicompile.evaluation.columns import COLUMNS, GROUPS, Column, number, percent

TEMPLATE = "report.html.j2"
LISTED = 50  # skipped samples that the page names


def write_page(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` and the plots that it shows.

    Args:
        report: What `report.json` holds; any number may be None or NaN, any section None or absent.
        folder: The report's folder, which exists and holds the pictures that `examples` names.

    Returns:
        The page, with every picture in it.

    Raises:
        RuntimeMissingError: matplotlib or Jinja2 isn't installed.
        OutputError: A file can't be written.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise RuntimeMissingError(plots.MISSING) from error
    folder, found = Path(folder), cleaned(report)
    rules = found.get("rules") or {}
    tables = {group: table(found, [c for c in COLUMNS if c.group == group]) for group in GROUPS}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=written, percent=percent, interval=interval)
    source = resources.files("xaicompile.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        report=found,
        rules=rules,
        flipping=found.get("flipping") or {},
        unit=plots.units(found),
        bars=(found.get("flipping") or {}).get("unit") in ("features", "tokens"),
        score=plots.score(found),
        styles={name: plots.style_of(place) for place, name in enumerate(rules)},
        pictures={key: data_uri(path) for key, path in plots.draw_all(found, folder).items()},
        examples=[_example(entry, folder) for entry in found.get("examples") or []],
        summary=summary(found),
        scorecard=table(found, [c for c in COLUMNS if c.headline]),
        tables={group: made for group, made in tables.items() if made},
        floors=[floor for entry in found.get("leaders") or [] if (floor := _floor(entry, rules)) is not None],
        compared={name: part for name, part in sections(found, "fidelity").items() if part.get("over_random")},
        against_random=against_random(found),
        sanity=sections(found, "sanity"),
        columns=[c for c in COLUMNS if measured(found, c)],
        listed=LISTED,
    )
    path = folder / "report.html"
    plots.write(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def write_json(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON, NaN and infinity as null.

    Raises:
        OutputError: It can't be written.
    """
    text = json.dumps(cleaned(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    plots.write(path, lambda part: part.write_text(text, encoding="utf-8"))


def cleaned(value: Any) -> Any:
    """The same with plain numbers and lists for NumPy's, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return cleaned(value.tolist())
    if isinstance(value, list | tuple):
        return [cleaned(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def data_uri(path: Path) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def written(value: float | Mapping[str, float | None] | None) -> str:
    """A number, or the mean of an interval; a dash for None."""
    mean = value.get("mean") if isinstance(value, Mapping) else value
    return "–" if mean is None else number(mean)


def interval(value: Mapping[str, float | None] | None) -> str:
    """Both ends of an interval, or nothing."""
    low, high = ((value or {}).get(end) for end in ("low", "high"))
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def sections(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One section of each rule that has it."""
    return {rule: part[name] for rule, part in (report.get("rules") or {}).items() if part.get(name)}


def measured(report: Mapping[str, Any], column: Column) -> bool:
    """Whether some rule has a value."""
    return any(column.read(rule) for rule in (report.get("rules") or {}).values())


def table(report: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any] | None:
    """Rules by measures, of those measures that some rule has a value of.

    Returns:
        `groups` ([name, columns in it]), `columns`, `rows` (by rule, a cell a column: `text`, `interval`, `best`) and
        `random` (the cells of the random baseline, or None). None where nothing was measured.
    """
    columns = [c for c in columns if measured(report, c)]
    if not columns:
        return None
    rules = report.get("rules") or {}
    best = [c.best(rules.values()) for c in columns]

    def cells(rule: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = []
        for column, winner in zip(columns, best, strict=True):
            value = column.read(rule)
            text = column.text(value["mean"] if value else None)
            found.append({"text": text, "interval": column.ends(value), "best": text == winner})
        return found

    random = {"fidelity": {key: (report.get("random") or {}).get(key) for key in ("aopc", "aoc")}}
    return {
        "groups": [(group, len(list(members))) for group, members in groupby(columns, lambda c: c.group)],
        "columns": columns,
        "rows": {name: cells(rule) for name, rule in rules.items()},
        "random": cells(random) if any(c.read(random) for c in columns) else None,
    }


def summary(report: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences; none about what was not measured."""
    parts = (_steepest, _widest, _ahead, against_random, _plainest, _fastest, _unchanged)
    return [text for part in parts if (text := part(report))]


def _means(report: Mapping[str, Any], *path: str) -> dict[str, float]:
    """One measure by rule, the best first."""
    column = next(c for c in COLUMNS if c.path == path)
    found = {name: value["mean"] for name, rule in (report.get("rules") or {}).items() if (value := column.read(rule))}
    ordered = sorted(found, key=lambda name: -column.better * float(found[name] or 0))
    return {name: float(found[name] or 0) for name in ordered}


def _steepest(report: Mapping[str, Any]) -> str | None:
    names = list(_means(report, "fidelity", "aopc"))
    if not names:
        return None
    parts = {name: part["aopc"] for name, part in sections(report, "fidelity").items() if part.get("aopc")}
    first = parts[names[0]]
    text = (
        f"Highest AOPC, most relevant first: {names[0]}, {written(first)}" if names[1:] else f"AOPC: {written(first)}"
    )
    if interval(first):
        text += f" (95 % interval {interval(first)})"
    random = (report.get("random") or {}).get("aopc")
    text += f"; random order {written(random)}." if random else "."
    near = [n for n in names[1:] if interval(first) and interval(parts[n]) and parts[n]["high"] >= first["low"]]
    near_text = f" Its interval overlaps with that of {', '.join(near)}." if near else ""
    return text + near_text


def _widest(report: Mapping[str, Any]) -> str | None:
    found = _means(report, "fidelity", "abpc")
    if len(found) < 2:
        return None
    name = next(iter(found))
    return f"Widest gap between most and least relevant first (ABPC): {name}, {number(found[name])}."


def _ahead(report: Mapping[str, Any]) -> str | None:
    runs = [(rule, list(run)) for rule, run in groupby(report.get("leaders") or [], lambda entry: entry["rule"])]
    if not runs or len(report.get("rules") or {}) < 2:
        return None
    parts = []
    for rule, run in runs:
        shares = [percent(entry["fraction"]) for entry in run]
        parts.append(f"with {rule} after {' to '.join(dict.fromkeys([shares[0], shares[-1]]))}")
    return f"The score has fallen most {', '.join(parts)} of the {plots.units(report)}."


def against_random(report: Mapping[str, Any]) -> str | None:
    """Which rules beat the random baseline, and by how much the others don't."""
    found = {n: f for n, f in sections(report, "fidelity").items() if f.get("beats_random") is not None}
    failed = {n: f.get("over_random") for n, f in found.items() if not f["beats_random"]}
    if not found:
        return None
    if not failed:
        return "Every rule beats random order." if len(found) > 1 else f"{next(iter(found))} beats random order."
    texts = []
    for name, over in failed.items():
        worse = bool(over) and (over.get("high") or 0) < 0
        numbers = f": AOPC over random {written(over)}, 95 % interval {interval(over)}" if over else ""
        texts.append(f"{name} {'is worse than' if worse else 'does not beat'} random order{numbers}.")
    return " ".join(texts)


def _plainest(report: Mapping[str, Any]) -> str | None:
    found = _means(report, "understandability", "png_bytes")
    if len(found) < 2:
        return None
    name = next(iter(found))
    column = next(c for c in COLUMNS if c.path == ("understandability", "png_bytes"))
    text = f"The plainest maps are those of {name} ({column.text(found[name])} as PNG)"
    if (sections(report, "fidelity").get(name) or {}).get("beats_random") is False:
        return f"{text}, which does not beat random order: small is no merit by itself."
    return f"{text}. A constant map would be smallest: read it beside fidelity."


def _fastest(report: Mapping[str, Any]) -> str | None:
    found = [f"{name} ({number(ratio)}×)" for name, ratio in _means(report, "runtime", "ratio").items()]
    if not found:
        return None
    ends = f"from {found[0]} to {found[-1]}" if len(found) > 1 else found[0]
    return f"Time of a run, relative to the prediction alone: {ends}."


def _unchanged(report: Mapping[str, Any]) -> str | None:
    found = {n: o["identical"] for n, o in sections(report, "overhead").items() if o.get("identical") is not None}
    if not found:
        return None
    changed = [name for name, same in found.items() if not same]
    if changed:
        return f"The prediction is not bit-identical with {', '.join(changed)}."
    return "The prediction stays bit-identical" + (" with every rule." if len(found) > 1 else ".")


def _floor(entry: Mapping[str, Any], rules: Mapping[str, Any]) -> float | None:
    """The random baseline's loss in an entry of `leaders`, whatever it is called there."""
    return next((loss for name, loss in (entry.get("loss") or {}).items() if name not in rules), None)


def _example(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An example with its pictures; None where there is no file."""

    def picture(name: str | None) -> str | None:
        return data_uri(folder / name) if name and (folder / name).is_file() else None

    maps = {rule: picture(name) for rule, name in (entry.get("maps") or {}).items()}
    return {**entry, "picture": picture(entry.get("picture")), "maps": maps}
