"""The report of an evaluation: one page that opens offline, with every number in it, and its plots."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xaicompile.errors import OutputError, RuntimeMissingError
from xaicompile.evaluation import page, plots
from xaicompile.evaluation.columns import COLUMNS, number, percent

RULES = ("lrp-gamma", "smooth-integrated-gradients", "gradient-x-input", "occlusion")


def interval(mean: float, width: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def curve(x: np.ndarray, fall: float) -> dict[str, list[float]]:
    y = 9.0 * np.exp(-fall * x)
    return {"mean": y.tolist(), "low": (y - 0.5 * x).tolist(), "high": (y + 0.5 * x).tolist()}


def sample_rule(rng: np.random.Generator, place: int, x: np.ndarray) -> dict[str, Any]:
    """A made-up rule with every number of the report; no number occurs twice."""

    def draw(width: float = 0.1) -> dict[str, float]:
        return interval(float(rng.uniform(1, 9)), width)

    return {
        "doc": f"Made up, number {place}.",
        "cite": f"Nobody {1990 + place}",
        "parameters": {"gamma": 0.25 + place},
        "fidelity": {
            "morf": curve(x, 12.0 - 2 * place),
            "lerf": curve(x, 0.5),
            **{key: draw() for key in ("aopc", "aopc_lerf", "abpc", "aoc", "deletion", "insertion", "over_random")},
            "beats_random": True,
            **(
                {"over_random": {"mean": 0.02, "low": -0.11, "high": 0.14}, "beats_random": False} if place == 2 else {}
            ),
        },
        "understandability": {
            "png_bytes": interval(float(rng.uniform(1e3, 9e4)), 500.0),
            "png_bytes_clipped": interval(float(rng.uniform(1e3, 9e4)), 500.0),
            "bytes_per_value": float(rng.uniform(0.1, 0.9)),
            "entropy": draw(),
            "gini": interval(float(rng.uniform(0.3, 0.9)), 0.01),
        },
        "sufficiency": {
            **{
                k: interval(float(rng.uniform(0.2, 0.8)), 0.05) for k in ("mass_inside", "area_inside", "pointing_game")
            },
            "artifact": {
                "effect": draw(),
                "mass_inside": interval(float(rng.uniform(0.2, 0.8)), 0.05),
                "pointing_game": interval(float(rng.uniform(0.2, 0.8)), 0.05),
                "area": float(rng.uniform(0.01, 0.1)),
            },
        },
        "overhead": {
            "identical": place != 3,
            "difference": 0.0 if place != 3 else 3.2e-7,
            "growth_bytes": int(rng.integers(5_000, 90_000)),
            "source_bytes": 18_600_000 + place,
            "peak_bytes": int(rng.integers(10**8, 9 * 10**8)),
            "source_peak_bytes": 123_000_000,
            "memory_ratio": float(rng.uniform(1, 3)),
        },
        "runtime": {"ratio": 2.0 + 7 * place, "low": 1.9 + 7 * place, "high": 2.2 + 7 * place}
        | {"source_ms": 11.3, "explained_ms": 11.3 * (2.0 + 7 * place)},
        "sanity": {
            "layers": [
                {"layer": f"_blocks.{15 - i}._depthwise_conv.weight", "similarity": interval(0.9 / (1 + i + place))}
                for i in range(6)
            ],
            "class_sensitivity": interval(0.2 + 0.1 * place, 0.03),
        },
    }


def sample_report(rules: tuple[str, ...] = RULES, unit: str = "pixels", score: str = "logit") -> dict[str, Any]:
    """A made-up report with every section, seeded."""
    rng = np.random.default_rng(7)
    x = np.linspace(0, 1, 101)
    found = {name: sample_rule(rng, place, x) for place, name in enumerate(rules)}
    leaders = []
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        loss = {name: float(rng.uniform(2, 8)) for name in rules}
        leaders.append(
            {"fraction": share, "rule": max(loss, key=lambda n: loss[n]), "loss": {**loss, "random baseline": share}}
        )
    return {
        "title": "efficientnet-lite0.onnx",
        "model": "models/efficientnet-lite0.onnx",
        "source_sha256": "7d4c" * 16,
        "data": "photos/",
        "created": "2026-11-27T23:00:00Z",
        "version": "0.1.0",
        "runtime": "onnxruntime 1.32",
        "device": "cpu",
        "command": "xaicompile evaluate models/efficientnet-lite0.onnx --data photos/ -o report/",
        "preset": "tutorial",
        "target": "predicted",
        "samples": 18,
        "labelled": 17,
        "accuracy": 0.941,
        "skipped": [{"name": "broken.jpg", "reason": "not a picture that can be read: truncated"}],
        "failed": [{"rule": "deeplift", "reason": "GlobalMaxPool has no rescale rule"}],
        "flipping": {"steps": 100, "fraction": 1.0, "patch": 1, "replacement": "zero", "score": score, "seed": 0}
        | {"unit": unit, "units": 50176},
        "x": x.tolist(),
        "rules": found,
        "random": {"seeds": 10, "morf": curve(x, 2.0), "aopc": interval(3.456), "aoc": interval(0.321, 0.01)},
        "leaders": leaders,
        "examples": [],
    }


def with_examples(report: dict[str, Any], folder: Path, count: int = 2) -> dict[str, Any]:
    """The same with pictures of made-up samples."""
    rng = np.random.default_rng(3)
    for index in range(count):
        image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        maps = {name: rng.standard_normal((32, 48)) for name in report["rules"]}
        entry = {"name": f"cat-{index}.png", "target": 282 + index, "class": "tiger cat", "score": 9.125, "label": 285}
        report["examples"].append(entry | plots.example_maps(folder, index, image, maps))
    return report


class Reader(HTMLParser):
    """Checks that every tag is closed in order, and keeps the text and the addresses."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [given[key] or "" for key in ("src", "href") if key in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        assert tag != "img" or given.get("alt")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


def written(report: dict[str, Any], folder: Path) -> tuple[Reader, str]:
    path = page.write_page(report, folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return Reader(html), html


def pictures(reader: Reader) -> list[Any]:
    """Every picture in the page."""
    return [decoded(a) for a in reader.addresses if a.startswith("data:image/png;base64,")]


def decoded(address: str) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def numbers_in(value: Any) -> Iterator[dict[str, Any] | float]:
    """Every interval, number and truth value in a rule's sections, but not the curves."""
    for key, entry in value.items():
        if key in ("morf", "lerf", "layers", "parameters", "doc", "cite"):
            continue
        if isinstance(entry, dict) and "mean" not in entry:
            yield from numbers_in(entry)
        else:
            yield entry


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Reader, str]:
    """The report with every section and the page of it."""
    folder = tmp_path_factory.mktemp("whole")
    report = with_examples(sample_report(), folder)
    return report, *written(report, folder)


@pytest.fixture
def text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without plots, which take a second each."""
    monkeypatch.setattr(plots, "draw_all", lambda report, folder: {})


def test_every_rule_and_number_is_there(whole: tuple[dict[str, Any], Reader, str]) -> None:
    report, reader, html = whole
    shown = {column.text(v["mean"]) for c in report["rules"].values() for column in COLUMNS if (v := column.read(c))}
    assert all(text in reader.text for text in shown)
    for name, rule in report["rules"].items():
        assert name in reader.text and rule["doc"] in reader.text and f"({rule['cite']})" in reader.text
        read = [v["mean"] for column in COLUMNS if (v := column.read(rule))]
        wanted = [
            e["mean"] if isinstance(e, dict) else e
            for key in rule
            if key != "cite"
            for e in numbers_in({key: rule[key]})
        ]
        missing = set(wanted) - set(read) - {rule["runtime"]["low"], rule["runtime"]["high"]}
        assert missing == {rule["fidelity"]["beats_random"], rule["sanity"]["class_sensitivity"]["mean"]} - set(read)
        aopc = rule["fidelity"]["aopc"]
        assert f"{number(aopc['mean'])}" in reader.text
        assert f"[{number(aopc['low'])}, {number(aopc['high'])}]" in reader.text
        assert number(rule["sanity"]["class_sensitivity"]["mean"]) in reader.text
        assert number(rule["sanity"]["layers"][-1]["similarity"]["mean"]) in reader.text
    for entry in report["leaders"]:
        assert percent(entry["fraction"]) in reader.text
        assert all(number(value) in reader.text for value in entry["loss"].values())
    for key in ("title", "model", "source_sha256", "data", "created", "version", "runtime", "device", "command"):
        assert report[key] in reader.text
    for text in (
        "3.46",
        "broken.jpg",
        "truncated",
        "deeplift",
        "no rescale rule",
        "cat-0.png",
        "tiger cat (282), score 9.12, labelled 285",
    ):
        assert text in reader.text
    for text in (
        "Samek",
        "Petsiuk",
        "Adebayo",
        "Hurley",
        "Zhang",
        "A constant map is smallest",
        percent(0.941),
        "50,176",
    ):
        assert text in reader.text
    assert len(pictures(reader)) == 5 + 2 * (1 + len(RULES))
    assert html.startswith("<!DOCTYPE html>")


def test_it_opens_offline(whole: tuple[dict[str, Any], Reader, str]) -> None:
    _, reader, html = whole
    assert all(a.startswith("data:image/png;base64,") or a[1:] in reader.ids for a in reader.addresses)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"url\(|@import|https?://", html)


def test_what_users_name_is_escaped(tmp_path: Path) -> None:
    report = sample_report(("<b>x</b>", "plain", "$_{$", "_hidden"))
    report["command"] = report["title"] = "</pre><script>alert(1)</script>"
    report["rules"]["plain"]["doc"] = 'a "quoted" & <i>doc</i>'
    report["skipped"] = [{"name": "<img src=x>", "reason": "<br>"}]
    reader, html = written(with_examples(report, tmp_path, 1), tmp_path)
    assert not {"b", "i", "script"} & (set(reader.tags) - {"b"}) and "<b>x</b>" not in html
    assert "<b>x</b>" in reader.text and 'a "quoted" & <i>doc</i>' in reader.text and "<img src=x>" in reader.text
    assert "$_{$" in reader.text and "_hidden" in reader.text
    assert plots.label("_hidden") == " _hidden"  # matplotlib may leave out what begins with _


@pytest.mark.usefixtures("text_only")
def test_the_best_is_marked(tmp_path: Path) -> None:
    report = sample_report(("a", "b"))
    for place, rule in enumerate(report["rules"].values()):
        rule["fidelity"]["aopc"] = interval([4.11, 3.22][place])
        rule["understandability"]["png_bytes"] = interval([5111.0, 5000.0][place], 500.0)
    made = page.table(report, COLUMNS)
    assert made is not None
    headings = [column.heading for column in made["columns"]]
    best = {
        name: {h for h, cell in zip(headings, cells, strict=True) if cell["best"]}
        for name, cells in made["rows"].items()
    }
    assert "AOPC" in best["a"] - best["b"] and "PNG size" in best["b"] - best["a"]
    assert "time" in best["a"] - best["b"]  # 2.0 against 9.0
    assert "largest difference" not in best["a"] | best["b"]  # 0 for both
    assert [cell["text"] for cell in made["random"][:5]] == ["3.46", "–", "–", "0.321", "–"]
    reader, _ = written(report, tmp_path)
    assert "random order 3.46 [3.36, 3.56]" in reader.text
    assert (
        "4.11 ● [4.01, 4.21]" in reader.text
        and "5.00\xa0kB ● [4.50, 5.50]" in reader.text
        and "3.22 ●" not in reader.text
    )


@pytest.mark.usefixtures("text_only")
def test_a_rule_that_does_not_beat_random_is_named(tmp_path: Path) -> None:
    report = sample_report()
    reader, _ = written(report, tmp_path)
    said = f"{RULES[2]} does not beat random order: AOPC over random 0.020, 95 % interval −0.110 to 0.140."
    assert reader.text.count(said) == 2
    report["rules"][RULES[2]]["fidelity"]["over_random"] = interval(-3.0)
    assert str(page.against_random(report)).startswith(f"{RULES[2]} is worse than random order: AOPC over random −3.00")
    report["rules"][RULES[2]]["fidelity"]["beats_random"] = True
    assert page.against_random(report) == "Every rule beats random order."


def test_one_rule(tmp_path: Path) -> None:
    reader, _ = written(sample_report(RULES[:1]), tmp_path)
    assert "lrp-gamma beats random order" in reader.text
    assert len(pictures(reader)) == 5
    assert "●" not in reader.text and "Highest AOPC" not in reader.text


@pytest.mark.parametrize("absent", [None, "key"])
def test_null_sections_leave_no_empty_tables(tmp_path: Path, absent: str | None) -> None:
    report = sample_report()
    for key in ("random", "leaders", "examples", "skipped", "failed", "x", "accuracy", "preset", "flipping"):
        del report[key]
        if absent is None:
            report[key] = None
    for rule in report["rules"].values():
        for key in ("fidelity", "sufficiency", "overhead", "runtime", "sanity"):
            del rule[key]
            if absent is None:
                rule[key] = None
    reader, _ = written(report, tmp_path)
    assert "Sufficiency" not in reader.text and "Fidelity" not in reader.text and "Gini" in reader.text
    assert not {"flipping", "random", "maps", "sanity", "skipped"} & set(reader.ids)
    assert not pictures(reader) and not list(tmp_path.glob("*.png"))
    assert all(a[1:] in reader.ids for a in reader.addresses)
    assert reader.tags.count("table") == 3  # rules, scorecard, understandability


def test_nothing_at_all(tmp_path: Path) -> None:
    reader, _ = written({}, tmp_path)
    assert "table" not in reader.tags and "How to read this" in reader.text


def test_nan_is_a_dash(tmp_path: Path) -> None:
    report = with_examples(sample_report(), tmp_path, 1)
    fidelity = report["rules"]["occlusion"]["fidelity"]
    fidelity["aopc"] = {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    fidelity["morf"]["mean"][3] = float("nan")
    fidelity["lerf"]["low"] = [None] * 101
    report["rules"]["occlusion"]["runtime"]["ratio"] = np.float64("nan")
    report["rules"]["occlusion"]["sanity"]["layers"][2]["similarity"] = None
    report["examples"][0] |= {"score": float("inf"), "maps": {"lrp-gamma": "maps/gone.png"}}
    report["leaders"][0]["loss"]["occlusion"] = float("nan")
    reader, _ = written(report, tmp_path)
    assert not re.search(r"\b(nan|inf|None)\b", reader.text) and "–" in reader.text
    assert "lrp-gamma: no map" in reader.text
    path = tmp_path / "report.json"
    page.write_json(report, path)
    back = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    assert back["rules"]["occlusion"]["fidelity"]["aopc"] == {"mean": None, "low": None, "high": None}
    assert back["rules"]["lrp-gamma"] == json.loads(json.dumps(report["rules"]["lrp-gamma"]))
    assert not list(tmp_path.glob(".*part*"))


@pytest.mark.usefixtures("text_only")
@pytest.mark.parametrize("unit", ["features", "tokens"])
def test_tables_and_tokens(tmp_path: Path, unit: str) -> None:
    report = sample_report(unit=unit, score="probability")
    rng = np.random.default_rng(1)
    maps = {name: rng.standard_normal(13) for name in RULES}
    drawn = plots.example_maps(tmp_path, 0, rng.standard_normal(13), maps)
    report["examples"] = [{"name": "row 0", "target": 0, "class": None, "score": 0.0} | drawn]
    reader, _ = written(report, tmp_path)
    assert f"{unit[:-1].capitalize()} flipping" in reader.text and "mean probability of the class" in reader.text
    assert "pixels" not in reader.text
    assert "class 0, score 0" in reader.text
    assert sum(picture.size == (510, 390) for picture in pictures(reader)) == 1 + len(RULES)
    assert plots.score(report) == "mean probability of the class" and plots.units(report) == unit


def test_plots_are_drawn(tmp_path: Path) -> None:
    report = sample_report()
    drawn = plots.draw_all(report, tmp_path)
    assert list(drawn) == ["curves", "zoom", "lerf", "areas", "sanity"]
    seen = {}
    for key, path in drawn.items():
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        wanted = {int(colour[1:], 16) for colour in plots.COLOURS[: len(RULES)]}
        assert wanted <= set((pixels @ np.array([1 << 16, 1 << 8, 1])).ravel().tolist()), key
        seen[key] = pixels.tobytes()
    assert len(set(seen.values())) == 5
    report["x"] = (np.linspace(0, 0.1, 101)).tolist()
    assert not plots.zoom(report, tmp_path / "none.png") and not (tmp_path / "none.png").exists()


def test_the_curve_that_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Per cent and the rule's own means, most or least relevant first."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    report = sample_report()
    report["flipping"]["patch"] = 8
    plots.curves(report, tmp_path / "a.png", order="lerf")
    plots.zoom(report, tmp_path / "b.png")
    for figure, order, points in zip(figures, ("lerf", "morf"), (101, 11), strict=True):
        (axis,) = figure.axes
        lines = axis.get_lines()
        assert len(lines) == len(RULES) + 1
        for name, line in zip(RULES, lines, strict=False):
            np.testing.assert_allclose(line.get_xdata(), np.arange(points), atol=1e-12)
            assert line.get_ydata().tolist() == report["rules"][name]["fidelity"][order]["mean"][:points]
        assert lines[-1].get_linestyle() == "--" and lines[-1].get_color() == plots.GREY
        assert lines[-1].get_ydata().tolist() == report["random"]["morf"]["mean"][:points]
        assert "8 × 8 patches flipped" in axis.get_xlabel() and axis.get_ylabel() == "mean logit of the class"
        assert len(axis.collections) == len(RULES) + 1
        entries = [text.get_text().replace("\n", "") for text in figure.legends[0].get_texts()]
        assert entries == [*RULES, "random order"]


def test_heatmaps(tmp_path: Path) -> None:
    """Red for, blue against, white at 0, full colour from the 99.5 % quantile of |R| on; all of one size."""
    relevance = np.zeros((20, 30))
    relevance[:10] = 1.0
    relevance[10:15] = -1.0
    relevance[0, 0] = 1e6
    relevance[19, 0] = np.nan
    relevance[18, 0] = 0.5
    image = np.linspace(0, 1, 600).reshape(20, 30, 1)
    found = plots.example_maps(tmp_path, 4, image, {"a": relevance, "A": -relevance, "zero/../x": 0 * relevance})
    assert found["picture"] == "maps/004-input.png" and len({p.lower() for p in found["maps"].values()}) == 3
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == sorted(
        Path(p).name for p in [found["picture"], *found["maps"].values()]
    )
    drawn = {name: np.asarray(Image.open(tmp_path / p).convert("RGB")) for name, p in found["maps"].items()}
    times = drawn["a"].shape[0] // 20
    assert {d.shape for d in drawn.values()} == {(20 * times, 30 * times, 3)} and 30 * times >= plots.SIDE
    small = drawn["a"][::times, ::times]
    assert small[5, 5].tolist() == small[0, 0].tolist() == [255, 0, 0]
    assert small[12, 5].tolist() == [0, 0, 255] and small[19, 5].tolist() == [255, 255, 255]
    assert small[19, 0].tolist() == [128, 128, 128]
    np.testing.assert_allclose(small[18, 0], [255, 127.5, 127.5], atol=2)
    np.testing.assert_array_equal(drawn["a"][: 10 * times], drawn["A"][: 10 * times, :, ::-1])
    assert (drawn["zero/../x"][: 19 * times] == 255).all()
    shown = np.asarray(Image.open(tmp_path / found["picture"]))[::times, ::times]
    assert shown.shape == (20, 30) and shown[0, 0] == 0 and shown[-1, -1] == 255


def test_feature_bars(tmp_path: Path) -> None:
    found = plots.example_maps(tmp_path, 0, None, {"a": np.array([1.0, -2.0, 0.0]), "b": np.ones((1, 40))})
    assert found["picture"] is None
    drawn = [np.asarray(Image.open(tmp_path / p).convert("RGB")) for p in found["maps"].values()]
    assert drawn[0].shape == drawn[1].shape
    red, blue = [0xD6, 0x27, 0x28], [0x1F, 0x77, 0xB4]
    assert [[bool((d == c).all(-1).any()) for c in (red, blue)] for d in drawn] == [[True, True], [True, False]]


def test_volumes_are_drawn_flat(tmp_path: Path) -> None:
    """The sum of relevance and the mean of the sample over the axes in front, as in other heatmaps."""
    rng = np.random.default_rng(2)
    volume, image = rng.standard_normal((3, 20, 30)), rng.uniform(size=(3, 20, 30, 1))
    found = [
        plots.example_maps(tmp_path, 0, image, {"a": volume}),
        plots.example_maps(tmp_path, 1, image.mean(0), {"a": volume.sum(0)}),
    ]
    drawn = [[(tmp_path / p).read_bytes() for p in (f["picture"], f["maps"]["a"])] for f in found]
    assert drawn[0] == drawn[1]


def test_what_the_summary_says() -> None:
    report = sample_report(("a", "b", "c"))
    for rule, aopc, abpc in zip(report["rules"].values(), (4.0, 6.0, 5.9), (3.0, 1.0, 2.0), strict=True):
        rule["fidelity"] |= {"aopc": interval(aopc), "abpc": interval(abpc), "beats_random": True}
        rule["understandability"]["png_bytes"] = interval(2000.0 * aopc)
        rule["overhead"]["identical"] = True
    report["leaders"] = [{"fraction": f, "rule": r, "loss": {}} for f, r in ((0.01, "a"), (0.02, "a"), (0.05, "b"))]
    said = [line.replace("\xa0", " ") for line in page.summary(report)]
    assert said == [
        "Highest AOPC, most relevant first: b, 6.00 (95 % interval 5.90 to 6.10); random order 3.46."
        " Its interval overlaps with that of c.",
        "Widest gap between most and least relevant first (ABPC): a, 3.00.",
        "The score has fallen most with a after 1 % to 2 %, with b after 5 % of the pixels.",
        "Every rule beats random order.",
        "The plainest maps are those of a (8.00 kB as PNG). A constant map would be smallest: read it beside fidelity.",
        "Time of a run, relative to the prediction alone: from a (2.00×) to c (16.0×).",
        "The prediction stays bit-identical with every rule.",
    ]
    report["rules"]["a"]["fidelity"]["beats_random"] = False
    report["rules"]["c"]["overhead"]["identical"] = False
    said = page.summary(report)
    assert said[4].endswith("which does not beat random order: small is no merit by itself.")
    assert said[6] == "The prediction is not bit-identical with c."


def test_numbers_are_written_short() -> None:
    texts = {0: "0", 3.14159: "3.14", -0.5: "−0.500", 123.4: "123", 12345.6: "12,346", 2e-5: "2e-5", 999.7: "1,000"}
    texts |= {0.99951: "1.00", 0.0123: "0.012", 0.00123: "0.0012", 3.26e-12: "3.3e-12"}
    assert {value: number(value) for value in texts} == texts
    sizes = next(column for column in COLUMNS if column.form == "size")
    texts = {118: "118 B", 8664: "8.66 kB", 18_600_000: "18.6 MB", -2000: "−2.00 kB", 0: "0 B"}
    assert {value: sizes.text(value).replace("\xa0", " ") for value in texts} == texts
    forms = {column.form: column for column in COLUMNS}
    assert forms["share"].text(0.353) == "35.3\xa0%" and forms["times"].text(2.0) == "2.00×"
    assert [forms["yes"].text(v) for v in (True, False)] == ["yes", "no"] and forms["yes"].text(None) == "–"
    assert sizes.ends({"mean": 1200.0, "low": 950.0, "high": 1300.0}) == "[0.950, 1.30]"
    assert [percent(v) for v in (0.01, 1.0, 0.125)] == ["1\xa0%", "100\xa0%", "12.5\xa0%"]


def test_which_way_is_better() -> None:
    high = {"AOPC", "ABPC", "AOC", "over random", "insertion", "Gini", "mass inside", "pointing game", "same output"}
    high |= {"mass on artifact", "points at artifact"}
    neither = {"area inside", "artifact's area", "artifact's effect"}
    neither |= {"original file", "original's peak", "prediction alone (ms)"}
    assert {c.heading for c in COLUMNS if c.better > 0} == high
    assert {c.heading for c in COLUMNS if c.better == 0} == neither


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("jinja2", "matplotlib.figure"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(RuntimeMissingError, match=r"the report needs matplotlib and Jinja2; run `pip install"):
                page.write_page(sample_report(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half(part: Path) -> None:
        part.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OutputError, match=r"can't write '.*a\.txt': disk full"):
        plots.write(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't write"):
        page.write_page({}, tmp_path / "nowhere")
    (tmp_path / "maps").write_text("a file in the way")
    with pytest.raises(OutputError, match="can't make the folder"):
        plots.example_maps(tmp_path, 0, None, {})
