"""Rows of results in, the report's numbers out: means over the samples with 95 % bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xaicompile.evaluation.plan import Plan
from xaicompile.evaluation.score import BASELINE

RESAMPLES = 2000
LEVEL = 0.95
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the input, at which the report says who leads
Interval = dict[str, float]


class Bootstrap:
    """Means over samples with percentile intervals (Efron 1979), by one set of resamples: comparisons stay paired."""

    def __init__(self, samples: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(samples, np.full(samples, 1 / samples), RESAMPLES) / samples

    def curve(self, values: np.ndarray) -> dict[str, list[float]]:
        """Of curves [samples, points]."""
        low, high = np.quantile(self.weights @ values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return {"mean": values.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}

    def interval(self, values: np.ndarray) -> Interval | None:
        """Of one number a sample; NaN where a sample has none."""
        return self.ratio(values, np.ones(len(values)))

    def ratio(self, values: np.ndarray, over: np.ndarray) -> Interval | None:
        """Of the mean of one number a sample over the mean of another; samples that lack the first are left out."""
        has = np.isfinite(values)
        if not has.any() or not over[has].sum():
            return None
        above, below = (self.weights @ np.where(has, v, 0.0) for v in (values, over))
        low, high = np.quantile(above[below != 0] / below[below != 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return {"mean": float(values[has].sum() / over[has].sum()), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Curves:
    """What flipping by one rule did to each sample, [samples, steps + 1] each."""

    morf: np.ndarray
    lerf: np.ndarray

    @staticmethod
    def over(curves: np.ndarray) -> np.ndarray:
        """Area over the curve, AOPC = mean(y0 - yk), [samples]."""
        return np.asarray(curves[:, 0] - curves.mean(1))


def column(rows: Any, name: str) -> np.ndarray:
    """A column as float64, NaN where nothing is."""
    return np.asarray(rows.column(name).cast("float64").to_numpy(zero_copy_only=False), np.float64)


def curves_in(rows: Any, name: str) -> np.ndarray:
    """A column of curves."""
    flat = rows.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(rows.num_rows, -1)


def chosen(table: Any, rule: str) -> Any:
    """The rows of a rule that have results, by sample and seed."""
    names, reasons = (table.column(c).to_pylist() for c in ("rule", "reason"))
    keep = [n == rule and r is None for n, r in zip(names, reasons, strict=True)]
    return table.filter(keep).sort_by([("index", "ascending"), ("seed", "ascending")])


def scorecard(table: Any, plan: Plan, rules: Sequence[str]) -> dict[str, Any]:
    """The part of the report that comes from the samples.

    Args:
        table: Rows as `Scorer` makes them.
        rules: Names of the rules in the order of the report; those without any result are left out.

    Returns:
        `samples`, `labelled`, `accuracy`, `skipped`, `failed`, `x`, `rules`, `random` and `leaders`.
    """
    skipped = [r for r in table.select(["sample", "rule", "reason"]).to_pylist() if r["reason"] is not None]
    found = {name: part for name in rules if (part := chosen(table, name)).num_rows}
    base = chosen(table, BASELINE)
    seeds = plan.random_seeds
    steps = plan.flipping.steps
    report: dict[str, Any] = {
        "samples": base.num_rows // seeds if seeds else max((p.num_rows for p in found.values()), default=0),
        "skipped": [{"name": r["sample"], "reason": r["reason"]} for r in skipped if not r["rule"]],
        "failed": first_failures(skipped),
        "x": (np.arange(steps + 1) * plan.flipping.fraction / steps).tolist(),
        "rules": {},
        "random": None,
    }
    any_rule = next(iter(found.values()), None)
    labels = column(any_rule, "label") if any_rule is not None else np.zeros(0)
    report["labelled"] = int((labels >= 0).sum())
    right = labels == column(any_rule, "predicted") if any_rule is not None else labels
    report["accuracy"] = float(right[labels >= 0].mean()) if (labels >= 0).any() else None
    floor: dict[int, float] = {}
    losses: dict[str, np.ndarray] = {}
    if base.num_rows:
        curves = curves_in(base, "morf").reshape(-1, seeds, steps + 1).mean(1)
        boot = Bootstrap(len(curves))
        areas = Curves.over(curves)
        floor = dict(zip(column(base, "index")[::seeds].astype(int).tolist(), areas.tolist(), strict=True))
        report["random"] = {
            "seeds": seeds,
            "morf": boot.curve(curves),
            "aopc": boot.interval(areas),
            "aoc": boot.ratio(areas, curves[:, 0]),
        }
        losses[BASELINE] = (curves[:, :1] - curves).mean(0)
    for name, rows in found.items():
        curves = Curves(curves_in(rows, "morf"), curves_in(rows, "lerf"))
        report["rules"][name] = of_rule(rows, curves, floor, plan.flipping.fraction == 1)
        losses[name] = (curves.morf[:, :1] - curves.morf).mean(0)
    report["leaders"] = leaders(np.asarray(report["x"]), losses)
    return report


def first_failures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rules that failed on some samples: the first reason, and on how many."""
    found: dict[str, dict[str, Any]] = {}
    for r in rows:
        if r["rule"]:
            one = found.setdefault(
                r["rule"], {"rule": r["rule"], "reason": f"{r['sample']}: {r['reason']}", "samples": 0}
            )
            one["samples"] += 1
    return list(found.values())


def of_rule(rows: Any, curves: Curves, floor: Mapping[int, float], whole: bool) -> dict[str, Any]:
    """Fidelity, understandability and sufficiency of one rule.

    Args:
        floor: AOPC of the random baseline by sample.
        whole: Whether all of the input is flipped in the end, so that inserting is deleting backwards.
    """
    boot = Bootstrap(rows.num_rows)
    interval = boot.interval
    aopc, other = Curves.over(curves.morf), Curves.over(curves.lerf)
    over = interval(aopc - np.array([floor.get(int(i), np.nan) for i in column(rows, "index")])) if floor else None
    values = column(rows, "values")
    fidelity = {
        "morf": boot.curve(curves.morf),
        "lerf": boot.curve(curves.lerf),
        "aopc": interval(aopc),
        "aopc_lerf": interval(other),
        "abpc": interval(aopc - other),
        "aoc": boot.ratio(aopc, curves.morf[:, 0]),
        "deletion": interval(curves.morf.mean(1)),
        "insertion": interval(curves.lerf.mean(1)) if whole else None,
        "over_random": over,
        "beats_random": over["low"] > 0 if over else None,
    }
    readable = {name: interval(column(rows, name)) for name in ("png_bytes", "png_bytes_clipped", "entropy", "gini")}
    readable["bytes_per_value"] = float((column(rows, "png_bytes") / values).mean())  # type: ignore[assignment]
    inside = {
        "mass_inside": interval(column(rows, "mass_inside")),
        "area_inside": interval(column(rows, "area_inside")),
        "pointing_game": interval(column(rows, "pointing")),
        "artifact": artifact(rows, interval),
    }
    return {
        "fidelity": fidelity,
        "understandability": readable,
        "sufficiency": inside if any(v is not None for v in inside.values()) else None,
    }


def artifact(rows: Any, interval: Any) -> dict[str, Any] | None:
    """What relevance did with what was planted."""
    effect = interval(column(rows, "artifact_effect"))
    if effect is None:
        return None
    return {
        "effect": effect,
        "mass_inside": interval(column(rows, "artifact_mass")),
        "area": float(np.nanmean(column(rows, "artifact_area"))),
        "pointing_game": interval(column(rows, "artifact_pointing")),
    }


def leaders(x: np.ndarray, losses: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Who has lost most of the score after some shares of the input, the random baseline left out."""
    found = []
    for share in SHARES:
        k = int(np.argmin(np.abs(x - share)))
        if k == 0 or share > x[-1] + 1e-9:
            continue
        lost = {name: float(loss[k]) for name, loss in losses.items()}
        ahead = {n: v for n, v in lost.items() if n != BASELINE}
        if ahead:
            found.append({"fraction": float(x[k]), "rule": max(ahead, key=lambda n: ahead[n]), "loss": lost})
    return found
