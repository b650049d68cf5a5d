"""What the report's tables show: each measure with its place in the report, its direction and its definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GROUPS = ("Fidelity", "Understandability", "Sufficiency", "Low overhead", "Runtime efficiency")
SIZES = tuple((one, f"\N{NO-BREAK SPACE}{unit}") for one, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


@dataclass(frozen=True)
class Column:
    """One measure of a rule.

    Attributes:
        group: The desideratum that it belongs to, of GROUPS.
        path: Where it stands in a rule of the report: an interval, a number or a truth value.
        heading: Above the column.
        better: 1: high is good, -1: low is good, 0: neither.
        meaning: Its definition.
        form: "number", "size" (bytes), "share", "times" or "yes" (a truth value).
        headline: Whether the scorecard shows it; the tables of all numbers show the others, too.
    """

    group: str
    path: tuple[str, ...]
    heading: str
    better: int
    meaning: str
    form: str = "number"
    headline: bool = True

    def read(self, rule: Mapping[str, Any]) -> dict[str, float | None] | None:
        """The interval {"mean", "low", "high"} in a rule; `low` and `high` are None of a single number."""
        found: Any = rule
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            return dict(found) if found.get("mean") is not None else None
        if found is None:
            return None
        section = rule[self.path[0]] if self.path == ("runtime", "ratio") else {}
        return {"mean": found, "low": section.get("low"), "high": section.get("high")}

    def text(self, value: float | None) -> str:
        """A value as the page writes it."""
        if value is None:
            return "–"
        if self.form == "yes":
            return "yes" if value else "no"
        one, unit = self.unit(value)
        return f"{number(value / one)}{unit}"

    def ends(self, value: Mapping[str, float | None] | None) -> str:
        """An interval's ends in the unit of its mean, or nothing."""
        mean, low, high = ((value or {}).get(key) for key in ("mean", "low", "high"))
        if mean is None or low is None or high is None:
            return ""
        one, _ = self.unit(mean)
        return f"[{number(low / one)}, {number(high / one)}]"

    def unit(self, value: float) -> tuple[float, str]:
        """How much one unit is, and what is written behind the number."""
        if self.form == "size":
            return next((pair for pair in SIZES if abs(value) >= pair[0]), SIZES[-1])
        return {"share": (0.01, "\N{NO-BREAK SPACE}%"), "times": (1.0, "×")}.get(self.form, (1.0, ""))

    def best(self, rules: Iterable[Mapping[str, Any]]) -> str | None:
        """What the best rule's value is written as; None where there is nothing to choose between."""
        means = [float(v["mean"]) for rule in rules if (v := self.read(rule)) and v["mean"] is not None]
        if not self.better or len({self.text(v) for v in means}) < 2:
            return None
        return self.text(max(means, key=lambda v: v * self.better))


def number(value: float) -> str:
    """Three digits, of small numbers two, with a proper minus sign."""
    size = abs(value)
    if size >= 999.5:
        text = f"{size:,.0f}"
    elif size >= 0.9995:
        text = f"{size:#.3g}".rstrip(".")
    else:
        text = f"{size:.3f}" if size >= 0.01 else f"{size:.2g}".replace("e-0", "e-")
    return f"−{text}" if value < 0 else text


def percent(share: float) -> str:
    """A share in per cent, with no more digits than it has."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


COLUMNS = (
    Column(
        "Fidelity",
        ("fidelity", "aopc"),
        "AOPC",
        1,
        "Area over the curve while the most relevant is flipped first: the mean of y₀ − yₖ over all points k, where y₀ "
        "is the score of the clean sample and yₖ that after k steps. High: the model needs what the map calls relevant "
        "(Samek et al. 2017).",
    ),
    Column(
        "Fidelity",
        ("fidelity", "aopc_lerf"),
        "AOPC LeRF",
        -1,
        "The same while the least relevant is flipped first. Low: the model does not miss what the map calls "
        "irrelevant. Negative: the score rises.",
    ),
    Column(
        "Fidelity",
        ("fidelity", "abpc"),
        "ABPC",
        1,
        "Area between the two curves, AOPC − AOPC LeRF.",
    ),
    Column(
        "Fidelity",
        ("fidelity", "aoc"),
        "AOC",
        1,
        "AOPC as a share of the mean score y₀ before anything is flipped, so that models compare. 1: all is lost at "
        "once; above 1: the score falls below 0.",
    ),
    Column(
        "Fidelity",
        ("fidelity", "over_random"),
        "over random",
        1,
        "AOPC less that of random orders on the same samples. A rule beats random if its 95 % interval lies above 0.",
        headline=False,
    ),
    Column(
        "Fidelity",
        ("fidelity", "deletion"),
        "deletion",
        -1,
        "Area under the curve while the most relevant is deleted first (Petsiuk et al. 2018).",
        headline=False,
    ),
    Column(
        "Fidelity",
        ("fidelity", "insertion"),
        "insertion",
        1,
        "Area under the curve while the most relevant is put back first into a sample that is flipped as a whole "
        "(Petsiuk et al. 2018).",
        headline=False,
    ),
    Column(
        "Understandability",
        ("understandability", "png_bytes"),
        "PNG size",
        -1,
        "Mean file size of the map as an 8-bit grey PNG on a symmetric scale up to max |R|; a stand-in for how "
        "plain it is to look at. A constant map is smallest: read beside fidelity. Occlusion maps are small by "
        "construction, as they hold one value for each window.",
        form="size",
    ),
    Column(
        "Understandability",
        ("understandability", "png_bytes_clipped"),
        "PNG size, clipped",
        -1,
        "The same on a scale up to the 99.5 % quantile of |R|, as the maps below are drawn: on the other scale a "
        "single outlier makes all the rest grey, and the file small.",
        form="size",
        headline=False,
    ),
    Column(
        "Understandability",
        ("understandability", "bytes_per_value"),
        "bytes per value",
        -1,
        "The PNG size divided by the number of values in the map.",
        headline=False,
    ),
    Column(
        "Understandability",
        ("understandability", "entropy"),
        "entropy (bits)",
        -1,
        "Shannon entropy of |R| / Σ|R|: log₂ n if spread evenly over n values, 0 if all lies in one.",
        headline=False,
    ),
    Column(
        "Understandability",
        ("understandability", "gini"),
        "Gini",
        1,
        "Gini index of |R|: 0 if all values are equal, near 1 if few have all; high is sparse (Hurley & Rickard 2009).",
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "mass_inside"),
        "mass inside",
        1,
        "Share of the positive relevance that lies inside the marked object; read beside its share of the area.",
        form="share",
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "area_inside"),
        "area inside",
        0,
        "Share of the area that the marked object takes: what relevance spread evenly would have inside.",
        form="share",
        headline=False,
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "pointing_game"),
        "pointing game",
        1,
        "Share of the samples whose largest relevance lies inside the marked object (Zhang et al. 2018).",
        form="share",
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "artifact", "mass_inside"),
        "mass on artifact",
        1,
        "Share of the positive relevance on a mark that was planted into the sample.",
        form="share",
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "artifact", "pointing_game"),
        "points at artifact",
        1,
        "Share of the samples whose largest relevance lies on the planted mark.",
        form="share",
        headline=False,
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "artifact", "area"),
        "artifact's area",
        0,
        "Share of the area that the planted mark takes.",
        form="share",
        headline=False,
    ),
    Column(
        "Sufficiency",
        ("sufficiency", "artifact", "effect"),
        "artifact's effect",
        0,
        "How far the planted mark moves the explained score. Where it moves nothing, relevance need not find it.",
        headline=False,
    ),
    Column(
        "Low overhead",
        ("overhead", "identical"),
        "same output",
        1,
        "Whether the model that also explains gives the prediction of the original, bit by bit.",
        form="yes",
    ),
    Column(
        "Low overhead",
        ("overhead", "difference"),
        "largest difference",
        -1,
        "The largest absolute difference of any output.",
        headline=False,
    ),
    Column(
        "Low overhead",
        ("overhead", "growth_bytes"),
        "file grows by",
        -1,
        "Size of the model that also explains, less that of the original.",
        form="size",
    ),
    Column(
        "Low overhead",
        ("overhead", "source_bytes"),
        "original file",
        0,
        "Size of the original model, with its external data.",
        form="size",
        headline=False,
    ),
    Column(
        "Low overhead",
        ("overhead", "memory_ratio"),
        "memory",
        -1,
        "Peak memory of the run that also explains, relative to that of the prediction alone, both less what the "
        "libraries hold.",
        form="times",
    ),
    Column(
        "Low overhead",
        ("overhead", "peak_bytes"),
        "peak memory",
        -1,
        "Peak memory of the run that also explains.",
        form="size",
        headline=False,
    ),
    Column(
        "Low overhead",
        ("overhead", "source_peak_bytes"),
        "original's peak",
        0,
        "Peak memory of the prediction alone.",
        form="size",
        headline=False,
    ),
    Column(
        "Runtime efficiency",
        ("runtime", "ratio"),
        "time",
        -1,
        "Time of one run that also explains, relative to that of the prediction alone.",
        form="times",
    ),
    Column(
        "Runtime efficiency",
        ("runtime", "explained_ms"),
        "with relevance (ms)",
        -1,
        "Time of one run that also explains.",
        headline=False,
    ),
    Column(
        "Runtime efficiency",
        ("runtime", "source_ms"),
        "prediction alone (ms)",
        0,
        "Time of one run of the original.",
        headline=False,
    ),
)
