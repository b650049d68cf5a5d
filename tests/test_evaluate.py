"""`xaicompile evaluate`: its rows against models compiled one by one, its numbers against numpy, its resumption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import net, run
from tests.nets import cnn
from xaicompile.compiler import compile_model
from xaicompile.errors import OutputError
from xaicompile.evaluation.flipping import Flipping
from xaicompile.evaluation.plan import Compared, Plan
from xaicompile.evaluation.run import evaluate
from xaicompile.evaluation.scorecard import Bootstrap
from xaicompile.evaluation.store import Store

pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(10, 3, 12, 12)).astype(np.float32)
RULES = (
    Compared("LRP", "lrp-gamma", {"gamma": 0.1}),
    Compared("IG", "integrated-gradients", {"steps": 4}),
    Compared("guided", "guided-backprop-x-input"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, samples and what is known about them."""
    folder = tmp_path_factory.mktemp("evaluate")
    onnx.save(cnn(), folder / "cnn.onnx")
    masks = RANDOM.random((10, 12, 12)) < 0.3
    np.savez(folder / "data.npz", x=IMAGES, labels=RANDOM.integers(0, 4, 10), masks=masks)
    return folder


def plan(folder: Path, **more: Any) -> Plan:
    """An evaluation in two or three blocks."""
    given = {"flipping": Flipping(steps=9), "batch": 4, "random_seeds": 3, "rules": RULES, **more}
    return Plan(model=str(folder / "cnn.onnx"), data=given.pop("data", str(folder / "data.npz")), **given)


def quick(made: Plan, output: Path, **more: Any) -> dict[str, Any]:
    """The report without what takes time."""
    return evaluate(made, output, **{"costs": False, "checks": False, "examples": 0, **more})


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return quick(plan(folder), folder / "report")


def curve(rule: Compared, order: str, x: np.ndarray, **more: Any) -> dict[str, np.ndarray]:
    """What a model gives that is compiled with the rule and the evaluation in it."""
    own = {f"rule.{k}": v for k, v in rule.parameters.items()}
    made = compile_model(cnn(), rule.rule, evaluate="pixel-flipping", parameters={"steps": 9, "order": order, **own})
    return run(made.model, {"x": x, **more})


def test_rows_are_those_of_compiled_models(folder: Path, report: dict[str, Any]) -> None:
    """Curves that a rule's own model makes in the graph; in blocks of 4, the same to rounding."""
    rows = Store(folder / "report").read().to_pylist()
    assert len(rows) == 10 * (3 + 3) and len(list((folder / "report" / "blocks").iterdir())) == 3
    for rule in RULES:
        for order in ("morf", "lerf"):
            want = curve(rule, order, IMAGES)["flipping_curve"]
            found = np.array([r[order] for r in rows if r["rule"] == rule.name])
            np.testing.assert_allclose(found, want, rtol=0, atol=2e-6)
    masks = np.load(folder / "data.npz")["masks"]
    r = curve(RULES[0], "morf", IMAGES)["relevance"].sum(1, dtype=np.float64)
    positive = np.maximum(r, 0)
    found = [row["mass_inside"] for row in rows if row["rule"] == "LRP"]
    np.testing.assert_allclose(found, (positive * masks).sum((1, 2)) / positive.sum((1, 2)), rtol=1e-6)


def test_the_baseline_is_the_mean_of_random_orders(folder: Path, report: dict[str, Any]) -> None:
    """Each seed and sample has its own order, the same for all who ask."""
    curves = []
    for seed in range(3):
        drawn = [np.random.default_rng([seed, i]).standard_normal((3, 12, 12)) for i in range(10)]
        given = np.stack(drawn).astype(np.float32)
        curves.append(curve(Compared("given", "given"), "morf", IMAGES, given=given)["flipping_curve"])
    np.testing.assert_allclose(report["random"]["morf"]["mean"], np.mean(curves, (0, 1)), rtol=0, atol=2e-6)


def test_numbers_of_the_report(folder: Path, report: dict[str, Any]) -> None:
    """AOPC, AOC, ABPC, deletion and insertion from the curves, by their definitions; P1: AOPC + AUC = y0."""
    rows = Store(folder / "report").read().to_pylist()
    floor = {
        i: np.mean(
            [r["morf"][0] - np.mean(r["morf"]) for r in rows if r["rule"] == "random baseline" and r["index"] == i]
        )
        for i in range(10)
    }
    for rule in RULES:
        mine = [r for r in rows if r["rule"] == rule.name]
        y, z = (np.array([r[o] for r in mine]) for o in ("morf", "lerf"))
        fidelity = report["rules"][rule.name]["fidelity"]
        aopc, aopc_lerf = (y[:, :1] - y).mean(1), (z[:, :1] - z).mean(1)
        wanted = {
            "aopc": aopc.mean(),
            "aopc_lerf": aopc_lerf.mean(),
            "abpc": (aopc - aopc_lerf).mean(),
            "aoc": aopc.mean() / y[:, 0].mean(),
            "deletion": y.mean(),
            "insertion": z.mean(),
            "over_random": (aopc - list(floor.values())).mean(),
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(fidelity[name]["mean"], value, rtol=1e-9, atol=1e-9)
            assert fidelity[name]["low"] <= value <= fidelity[name]["high"]
        np.testing.assert_allclose(fidelity["morf"]["mean"], y.mean(0), rtol=1e-9)
        np.testing.assert_allclose(wanted["aopc"] + wanted["deletion"], y[:, 0].mean(), rtol=1e-9)
        assert fidelity["beats_random"] == (fidelity["over_random"]["low"] > 0)
    lead = report["leaders"][-1]
    losses = {
        n: e["fidelity"]["morf"]["mean"][0] - e["fidelity"]["morf"]["mean"][4] for n, e in report["rules"].items()
    }
    assert lead["fraction"] == pytest.approx(4 / 9) and lead["rule"] == max(losses, key=lambda n: losses[n])
    labels = np.load(folder / "data.npz")["labels"]
    assert report["accuracy"] == np.mean(run(cnn(), {"x": IMAGES})["logits"].argmax(1) == labels)
    assert report["labelled"] == report["samples"] == 10 and report["x"] == pytest.approx(np.arange(10) / 9)


def test_bootstrap_intervals() -> None:
    """Of normal numbers they are the mean +- 1.96 standard errors; of one number alone they are that number."""
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = Bootstrap(400).interval(values)
    error = values.std() / 20
    assert found is not None and found["mean"] == pytest.approx(values.mean(), abs=1e-12)
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert Bootstrap(1).interval(values[:1]) == dict.fromkeys(("mean", "low", "high"), pytest.approx(values[0]))
    some = np.where(np.arange(400) % 2, values, np.nan)
    half = Bootstrap(400).interval(some)
    assert half is not None and half["mean"] == pytest.approx(values[1::2].mean(), abs=1e-12)
    assert Bootstrap(4).interval(np.full(4, np.nan)) is None


# --- going on, and starting anew --------------------------------------------------------------------------------------


def test_a_broken_run_goes_on(folder: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    """Only what is missing is done again; what comes out is the same as in one go."""

    class StopError(Exception):
        pass

    def one(blocks: Any, total: int) -> Any:
        yield next(blocks)
        raise StopError

    with pytest.raises(StopError):
        quick(plan(folder), tmp_path / "r", progress=one)
    (first,) = (tmp_path / "r" / "blocks").iterdir()
    before, totals = first.stat().st_mtime_ns, []
    again = quick(plan(folder), tmp_path / "r", progress=lambda blocks, total: totals.append(total) or blocks)
    assert totals == [2] and first.stat().st_mtime_ns == before
    assert again["rules"] == report["rules"] and again["random"] == report["random"]
    quick(plan(folder), tmp_path / "r", progress=lambda blocks, total: totals.append(total) or blocks)
    assert totals == [2, 0]


def test_another_evaluation_is_not_mixed_in(folder: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(OutputError, match="holds another evaluation"):
        quick(plan(folder, flipping=Flipping(steps=8)), folder / "report")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        quick(plan(folder), tmp_path)
    anew = quick(plan(folder), tmp_path, force=True)
    assert anew["rules"] == report["rules"] and (tmp_path / "mine.txt").exists()
    assert len(quick(plan(folder, flipping=Flipping(steps=8)), tmp_path, force=True)["x"]) == 9
    with pytest.raises(OutputError, match="is a file"):
        quick(plan(folder), tmp_path / "mine.txt")


# --- what is explained ------------------------------------------------------------------------------------------------


def test_targets(folder: Path, tmp_path: Path) -> None:
    """The predicted class, the label, or one output of all samples: the first point of the curve is its score."""
    logits = run(cnn(), {"x": IMAGES})["logits"]
    labels = np.load(folder / "data.npz")["labels"]
    wanted: Mapping[str | int, np.ndarray] = {
        "predicted": logits.max(1),
        "label": logits[np.arange(10), labels],
        2: logits[:, 2],
    }
    for target, scores in wanted.items():
        made = plan(folder, rules=RULES[:1], target=target, random_seeds=1)
        quick(made, tmp_path / str(target))
        rows = Store(tmp_path / str(target)).read().to_pylist()
        np.testing.assert_allclose([r["morf"][0] for r in rows if r["rule"] == "LRP"], scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose([r["morf"][0] for r in rows if r["rule"] != "LRP"], scores, rtol=0, atol=1e-6)


def test_the_first_samples_only(folder: Path, tmp_path: Path) -> None:
    assert quick(plan(folder, samples=5, random_seeds=0), tmp_path / "r")["samples"] == 5


def test_tables_and_tokens(tmp_path: Path) -> None:
    """Features and token ids are flipped one by one."""
    w = RANDOM.normal(size=(6, 3)).astype(np.float32)
    onnx.save(net("(float[N,6] x) => (float[N,3] y)", "y = MatMul(x, w)", w=w), tmp_path / "table.onnx")
    table = RANDOM.normal(size=(20, 6)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    rules = (Compared("gxi", "gradient-x-input"),)
    made = Plan(str(tmp_path / "table.onnx"), rules, str(tmp_path / "table.npy"), flipping=Flipping(steps=6))
    found = quick(made, tmp_path / "table")
    k = (table @ w).argmax(1)
    lost = np.sort(table * w[:, k].T, 1)[:, ::-1].cumsum(1).mean(0)
    curve = np.array(found["rules"]["gxi"]["fidelity"]["morf"]["mean"])
    np.testing.assert_allclose(curve[0] - curve[1:], lost, rtol=0, atol=1e-5)
    assert found["flipping"]["unit"] == "features" and found["flipping"]["units"] == 6
    embedding = RANDOM.normal(size=(11, 4)).astype(np.float32)
    text = net(
        "(int64[N,5] input_ids) => (float[N,3] y)",
        "e = Gather(table, input_ids) s = ReduceSum<keepdims=0>(e, one) y = MatMul(s, w)",
        table=embedding,
        one=np.array([1]),
        w=w[:4],
    )
    onnx.save(text, tmp_path / "text.onnx")
    np.savez(tmp_path / "text.npz", input_ids=RANDOM.integers(0, 11, (7, 5)))
    made = Plan(str(tmp_path / "text.onnx"), rules, str(tmp_path / "text.npz"), flipping=Flipping(steps=5))
    found = quick(made, tmp_path / "text")
    assert found["flipping"]["unit"] == "tokens" and found["samples"] == 7
    ids = np.load(tmp_path / "text.npz")["input_ids"]
    logits = embedding[ids].sum(1) @ w[:4]
    each = (embedding[ids] @ w[:4])[np.arange(7), :, logits.argmax(1)]
    curve = np.array(found["rules"]["gxi"]["fidelity"]["morf"]["mean"])
    np.testing.assert_allclose(curve[0] - curve[1:], np.sort(each, 1)[:, ::-1].cumsum(1).mean(0), rtol=0, atol=1e-5)


def test_json_is_the_report(folder: Path, report: dict[str, Any]) -> None:
    read = json.loads((folder / "report" / "report.json").read_text())
    assert read["rules"].keys() == report["rules"].keys() and read["rules"]["IG"]["sanity"] is None
    np.testing.assert_allclose(
        read["rules"]["IG"]["fidelity"]["aopc"]["mean"], report["rules"]["IG"]["fidelity"]["aopc"]["mean"]
    )


def test_costs_sanity_and_examples(folder: Path, tmp_path: Path) -> None:
    """All that is not a row of a sample: what an explanation costs, whether it depends on the weights, and its maps."""
    rules = (RULES[0], Compared("random", "random"))
    made = evaluate(plan(folder, rules=rules, random_seeds=1), tmp_path / "r", examples=2)
    for name in ("LRP", "random"):
        cost, time = made["rules"][name]["overhead"], made["rules"][name]["runtime"]
        assert cost["identical"] and cost["growth_bytes"] > 0 and cost["source_bytes"] > 0 and time["ratio"] > 0
    lrp, noise = (made["rules"][name]["sanity"] for name in ("LRP", "random"))
    assert [entry["layer"] for entry in lrp["layers"]] == ["fc", "conv2", "conv1"] and lrp["samples"] == 8
    assert lrp["layers"][-1]["similarity"]["mean"] < 0.5 and lrp["class_sensitivity"]["mean"] < 0.999
    assert noise["layers"][-1]["similarity"]["mean"] == noise["class_sensitivity"]["mean"] == pytest.approx(1)
    logits = run(cnn(), {"x": IMAGES})["logits"]
    assert [e["target"] for e in made["examples"]] == logits[:2].argmax(1).tolist()
    assert [e["score"] for e in made["examples"]] == pytest.approx(logits[:2].max(1).tolist(), rel=1e-5)
    for example in made["examples"]:
        for picture in (example["picture"], *example["maps"].values()):
            assert (tmp_path / "r" / picture).is_file()
    page = (tmp_path / "r" / "report.html").read_text()
    assert "random order" in page and "Sanity checks" in page and "fc" in page
