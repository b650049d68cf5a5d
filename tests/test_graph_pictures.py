"""`xaicompile explain` on graphs: which walks are drawn where, on which edges, numbers, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import xaicompile
from tests.graphs import run
from tests.nets import cnn
from tests.test_bad_input import refused
from tests.test_walks import LAMBDA, NODES, X, feed, gcn, walks
from tests.test_walks_constant import baked
from xaicompile import graph_pictures, graphs, report
from xaicompile.cli import cli
from xaicompile.graph_pictures import Picture

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("networkx")
EDGES = [[0, 1], [0, 4], [1, 2], [1, 3], [2, 3]]  # of LAMBDA
EVERY = walks(2)


def compiled(folder: Path, model: onnx.ModelProto | None = None, **options: Any) -> Path:
    path = folder / "walks.onnx"
    how = {"structure": "a", "target": 1, "parameters": {"epsilon": 0.0, "gamma": 0.0}, **options}
    path.write_bytes(xaicompile.compile(model or gcn(), "gnn-lrp", **how).SerializeToString())
    return path


def given(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "graph.npz", **{**feed(), **arrays})
    return folder / "graph.npz"


def explain(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(cli, ["explain", *(str(a) for a in arguments), "--json"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.output)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would be written."""
    figures: list[Any] = []
    monkeypatch.setattr(report, "write", lambda figure, path: figures.append(figure))
    return figures


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be drawn."""
    pictures: list[Any] = []
    monkeypatch.setattr(graphs, "draw_graphs", lambda path, found: pictures.extend(found))
    return pictures


def square() -> np.ndarray:
    return np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def line(walk: list[int], lane: float = 0.02) -> np.ndarray:
    places = square()
    return graph_pictures.curve(walk, places, graph_pictures.outwards(places, np.array([[0, 1], [1, 2]])), lane)


# --- drawing


def test_a_band_goes_along_its_nodes_on_the_right() -> None:
    band = line([0, 1, 2])
    np.testing.assert_allclose(band[[0, -1]], [[0, -0.02], [1.02, 1]], atol=1e-9)
    assert np.linalg.norm(band - [1, 0], axis=1).min() < 0.08
    assert band[:20, 1] == pytest.approx(-0.02, abs=1e-3) and band[-20:, 0] == pytest.approx(1.02, abs=1e-3)
    assert np.linalg.norm(np.diff(band, 2, axis=0), axis=1).max() < 0.004  # no corners


def test_there_and_back_are_two_lines() -> None:
    band = line([0, 1, 0])
    assert band[20, 1] == pytest.approx(-0.02, abs=1e-3) and band[-20, 1] == pytest.approx(0.02, abs=1e-3)


def test_a_step_that_stays_is_a_loop_away_from_the_neighbours() -> None:
    band = line([0, 0])
    assert band[:, 0].min() < -0.05 and band[:, 0].max() < 0.03  # its neighbour is to the right
    np.testing.assert_allclose(band[[0, -1]], [[0, 0], [0, 0]], atol=1e-6)
    assert np.ptp(band[:, 1]) > 0.05


def test_colours_and_order_of_the_bands(drawn: list[Any]) -> None:
    """The strongest is drawn last, red for and blue against; a step to any node has no line."""
    found = np.array([[0, 1, 2], [2, 1, 0], [-1, 3, 2], [1, -1, 3]])
    picture = Picture(np.array(EDGES), np.array([1.0, -2.0, 0, 0, 0]), found, np.array([-4.0, 2, 1, 1]), "title", 9)
    graph_pictures.draw_graphs("a.png", [picture, Picture(*[*vars(picture).values()][:3], np.zeros(4), "b", 4)])
    edges, bands, nodes = drawn[0].axes[0].collections
    assert len(edges.get_segments()) == len(EDGES)
    np.testing.assert_allclose(bands.get_colors(), [[1, 0, 0, 0.15], [1, 0, 0, 0.3], [0, 0, 1, 0.6]])
    assert np.all(np.diff(bands.get_linewidths()) > 0)
    assert [t.get_text() for t in drawn[0].axes[0].texts] == ["0", "1", "2", "3", "4"]
    red, blue, white = nodes.get_facecolors()[:3, [0, 2]]
    assert red[0] > red[1] and blue[0] < blue[1] and white[0] == pytest.approx(white[1], abs=0.02)
    assert np.all(drawn[0].axes[1].collections[1].get_colors()[:, 3] == 0)  # one scale for all
    assert "the 4 strongest walks of 9, up to -4" in drawn[0].axes[0].get_title()


def test_nothing_is_cut_off(drawn: list[Any]) -> None:
    picture = Picture(np.array(EDGES), np.ones(5), np.array([[i] * 3 for i in range(5)]), np.ones(5), "loops", 5)
    graph_pictures.draw_graphs("a.png", [picture])
    axis = drawn[0].axes[0]
    points = np.concatenate([band for c in axis.collections[:2] for band in c.get_segments()])
    for (low, high), at in zip((axis.get_xlim(), axis.get_ylim()), points.T, strict=True):
        assert low + 0.05 < at.min() and at.max() < high - 0.05
    assert np.ptp(axis.get_xlim()) == pytest.approx(np.ptp(axis.get_ylim()))


def test_a_layout_is_the_same_each_time_and_clear() -> None:
    """No node of a path of ten lies on another, or on an edge."""
    path = np.stack([np.arange(9), np.arange(1, 10)], 1)
    places = graph_pictures.layout(10, path)
    np.testing.assert_array_equal(places, graph_pictures.layout(10, path))
    assert np.abs(places).max() == pytest.approx(1) and graph_pictures.clearance(places, path) > 0.1
    on_an_edge = np.array([[0.0, 0], [1, 0], [0.5, 0.0]])
    assert graph_pictures.clearance(on_an_edge, np.array([[0, 1]])) == 0
    assert graph_pictures.clearance(
        on_an_edge + np.array([[0, 0], [0, 0], [0, 0.3]]), np.array([[0, 1]])
    ) == pytest.approx(0.3)


@pytest.mark.parametrize("nodes", [1, 2, graph_pictures.LARGE])
def test_graphs_of_any_size_without_scipy(nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in sys.modules if key.split(".")[0] == "scipy"] + ["scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    edges = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1) if nodes > 1 else np.zeros((0, 2), np.int64)
    none = np.zeros((0, 3), np.int64)
    graph_pictures.draw_graphs(tmp_path / "a.png", [Picture(edges, np.zeros(nodes), none, np.zeros(0), "title")])
    assert (tmp_path / "a.png").stat().st_size > 1000


# --- edges


@pytest.mark.parametrize("several", [False, True])
def test_edges_of_matrices_and_lists(several: bool) -> None:
    pairs = np.argwhere(LAMBDA)
    for form in ({"a": LAMBDA}, {"w": np.ones(13), "e": pairs.T}, {"a": (LAMBDA > 0).astype(np.int64)}):
        arrays = {key: np.stack([v, 0 * v]) if several and v.ndim > 1 else v for key, v in form.items()}
        assert graphs.edges_of(arrays, NODES).tolist() == EDGES
    assert graphs.edges_of({"to": pairs[:, 0], "from": pairs[:, 1], "w": np.ones(13)}, NODES).tolist() == EDGES
    assert not len(graphs.edges_of({"w": np.ones(13)}, NODES))


def test_edges_that_walks_use_where_no_others_are_known(drawn: list[Any]) -> None:
    found = np.array([[0, 1, 1], [3, 1, -1]])
    graph_pictures.draw_graphs("a.png", [Picture(np.zeros((0, 2), int), np.ones(5), found, np.ones(2), "title")])
    assert len(drawn[0].axes[0].collections[0].get_segments()) == 2


# --- the command


def test_walks_of_the_file(tmp_path: Path, shown: list[Any]) -> None:
    """The strongest of those that are fed, and what the title says."""
    model, source = compiled(tmp_path), given(tmp_path, walks=EVERY)
    found = explain(model, source, "-o", tmp_path / "a.png")
    want = run(str(model), {**feed(), "walks": EVERY})
    order = np.argsort(-np.abs(want["walk_relevance"]), kind="stable")[: np.count_nonzero(want["walk_relevance"])]
    assert [w["nodes"] for w in found["walks"]] == EVERY[order].tolist()
    assert [w["relevance"] for w in found["walks"]] == pytest.approx(want["walk_relevance"][order].tolist())
    total = float(want["relevance"].sum())
    assert found["relevance_sum"] == pytest.approx(total) and f"sum of relevance {total:.4g}" in found["title"]
    assert shown[0].edges.tolist() == EDGES
    np.testing.assert_allclose(shown[0].nodes, want["node_relevance"])
    assert shown[0].subtitle.startswith(f"all {len(order)} walks, up to ")


def test_a_picture(tmp_path: Path) -> None:
    explain(compiled(tmp_path), given(tmp_path, walks=EVERY), "-o", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_lists_of_edges(tmp_path: Path, shown: list[Any]) -> None:
    model = compiled(tmp_path, gcn(order="edges"), structure=["edges", "lam"])
    np.savez(tmp_path / "graph.npz", **feed("edges"), walks=EVERY)
    explain(model, tmp_path / "graph.npz", "-o", tmp_path / "a.png")
    want = run(str(compiled(tmp_path)), {**feed(), "walks": EVERY})
    assert shown[0].edges.tolist() == EDGES
    np.testing.assert_allclose(
        np.sort(shown[0].relevance), np.sort(want["walk_relevance"][want["walk_relevance"] != 0])
    )


def test_no_more_walks_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LINES", 3)
    relevance = np.array([0.0, 1, -5, 2, 3])
    found, values, count = graphs.strongest({"walk_relevance": relevance}, np.arange(10).reshape(5, 2), False)
    assert found.tolist() == [[4, 5], [8, 9], [6, 7]] and values.tolist() == [-5, 3, 2] and count == 4


def test_walks_that_the_model_finds() -> None:
    """Before those of the file, but not before those of --walks; -1 fills up what is missing."""
    fed, of_fed = np.array([[1, 1]]), {"walk_relevance": np.array([7.0])}
    top = {"top_walks": np.array([[0, 1], [1, 0], [-1, -1]]), "top_walk_relevance": np.array([3.0, -2.0, 0.0])}
    every = {"all_walks_relevance": np.array([[0.0, 2.0], [-3.0, 0.0]])}
    found, values, count = graphs.strongest({**of_fed, **every, **top}, fed, False)
    assert found.tolist() == [[0, 1], [1, 0]] and values.tolist() == [3, -2] and count is None
    found, values, count = graphs.strongest({**of_fed, **every}, fed, False)
    assert found.tolist() == [[1, 0], [0, 1]] and values.tolist() == [-3, 2] and count == 2
    assert (
        Picture(np.zeros(0), np.zeros(2), fed, np.array([7.0]), "").subtitle == "the 1 strongest walks found, up to +7"
    )
    assert graphs.strongest({**of_fed, **every, **top}, fed, True)[0].tolist() == [[1, 1]]
    assert len(graphs.strongest({"walk_relevance": np.ones(1)}, None, False)[0]) == 0


def test_walks_and_sets_by_options(tmp_path: Path, shown: list[Any]) -> None:
    model, source = compiled(tmp_path), given(tmp_path, walks=EVERY)
    np.save(tmp_path / "some.npy", np.array([[0, 1, 3]], np.int32))
    sets = ("--subgraph", "0,1,2", "--subgraph", "3")
    found = explain(model, source, "--walks", tmp_path / "some.npy", *sets, "-o", tmp_path / "a.png")
    want = run(str(model), {**feed(), "subgraph": np.array([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])})
    assert [w["nodes"] for w in found["walks"]] == [[0, 1, 3]]
    assert [s["nodes"] for s in found["subgraphs"]] == [[0, 1, 2], [3]]
    assert [s["relevance"] for s in found["subgraphs"]] == pytest.approx(want["subgraph_relevance"].tolist())
    text = CliRunner().invoke(cli, ["explain", *map(str, (model, source, *sets, "-o", tmp_path / "a.png"))]).output
    assert f"nodes 0,1,2: relevance {want['subgraph_relevance'][0]:.4g}" in text


def test_several_graphs_and_maps(tmp_path: Path, shown: list[Any]) -> None:
    """Of several graphs the first is drawn, and each map beside the others."""
    model = compiled(tmp_path, gcn(nodes=f"N,{NODES}"), maps=2, target=None)
    source = given(tmp_path, x=np.stack([X, 2 * X, 0 * X]), walks=EVERY)
    found = explain(model, source, "--target", "1,0", "-o", tmp_path / "a.png")
    for k, picture in enumerate(shown):
        alone = compiled(tmp_path, target=1 - k)
        want = run(str(alone), {**feed(), "walks": EVERY})
        np.testing.assert_allclose(picture.nodes, want["node_relevance"])
        np.testing.assert_allclose(
            picture.relevance[0], np.abs(want["walk_relevance"]).max() * np.sign(picture.relevance[0])
        )
        assert found["maps"][k]["relevance_sum"] == pytest.approx(float(want["relevance"].sum()))
    assert len(shown) == 2


@pytest.mark.parametrize("several", [False, True])
def test_walks_of_models_that_find_them(tmp_path: Path, shown: list[Any], several: bool) -> None:
    """The same walks from all, from the top and from those that are fed."""
    x, nodes = np.stack([X, 2 * X]) if several else X, f"N,{NODES}" if several else str(NODES)
    for options in ({"all_walks": True}, {"top_walks": 50}, {}):
        model = compiled(tmp_path, gcn(nodes=nodes), **options)
        explain(model, given(tmp_path, x=x, walks=EVERY), "-o", tmp_path / "a.png")
    every, top, fed = ({tuple(w): r for w, r in zip(p.walks, p.relevance, strict=True)} for p in shown)
    assert len(every) > 20 and every == pytest.approx(fed) and top == pytest.approx(fed)


@pytest.mark.parametrize("order", ["messages first", "edges"])
@pytest.mark.parametrize("node", [False, True])
def test_a_graph_in_the_model(tmp_path: Path, shown: list[Any], order: str, node: bool) -> None:
    """As an initializer or a Constant; the features alone are given."""
    structure = ["edges", "lam"] if order == "edges" else ["a"]
    model = compiled(tmp_path, baked(gcn(order=order), feed(order), node), structure=structure)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "every.npy", EVERY)
    explain(model, tmp_path / "x.npy", "--walks", tmp_path / "every.npy", "-o", tmp_path / "a.png")
    assert shown[0].edges.tolist() == EDGES and len(shown[0].walks) > 5


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_numbers(tmp_path: Path, name: str) -> None:
    explain(compiled(tmp_path), given(tmp_path, walks=EVERY), "-o", tmp_path / name)
    read = np.load(tmp_path / name)
    assert (read if name == "a.npy" else read["relevance"]).shape == X.shape
    if name == "a.npz":
        assert read["walk_relevance"].shape == (len(EVERY),) and read["walks"].tolist() == EVERY.tolist()
        assert {"node_relevance", "subgraph_relevance"} <= set(read.files)


# --- what is refused


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"walks": EVERY + 3}, "a walk names node 7, but the graph has 5"),
        ({"walks": EVERY - 2}, "a walk names node -2"),
        ({"walks": EVERY[:, :2]}, "'walks' has the shape [125, 2], the model takes [walks_count, 3]"),
        ({"walks": EVERY[0]}, "'walks' has the shape [3]"),
        ({"x": X[:, :2]}, "'x' has the shape [5, 2], the model takes [5, 3]"),
        ({"a": LAMBDA[:4, :4]}, "'a' has the shape [4, 4]"),
        ({"subgraph": np.ones((1, 4))}, "'subgraph' has"),
        ({"x": X[:0]}, "has no nodes"),
        ({"more": np.ones(1)}, "no input 'more'"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: Any, says: str) -> None:
    model, source = compiled(tmp_path), given(tmp_path, **arrays)
    assert says in refused(tmp_path, "explain", model, source, "-o", tmp_path / "a.png", code=3)


def test_edges_that_are_none() -> None:
    with pytest.raises(xaicompile.errors.ModelError, match="an edge names node 5, but the graph has 5"):
        graphs.edges_of({"e": np.array([[0, 1], [1, 5]])}, 5)
    with pytest.raises(xaicompile.errors.ModelError, match="'a' is of a graph of 4 nodes"):
        graphs.edges_of({"a": np.ones((4, 4))}, 5)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    model, source, out = compiled(tmp_path), given(tmp_path), ("-o", tmp_path / "a.png")
    assert "no node 5" in refused(tmp_path, "explain", model, source, *out, "--subgraph", "0,5", code=2)
    assert "expected numbers" in refused(tmp_path, "explain", model, source, *out, "--subgraph", "0;1", code=2)
    assert "holds no walks" in refused(tmp_path, "explain", model, source, *out, "--walks", source, code=3)
    assert "'gone.npy'" in refused(tmp_path, "explain", model, source, *out, "--walks", "gone.npy", code=3)
    assert "compares no two" in refused(tmp_path, "explain", model, source, source, *out, code=3)
    np.savez(tmp_path / "half.npz", x=X)
    assert "'a' is missing" in refused(tmp_path, "explain", model, tmp_path / "half.npz", *out, code=3)
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(xaicompile.compile(cnn(), "lrp-0").SerializeToString())
    for option in ("--walks", "--subgraph"):
        assert "explains no walks" in refused(tmp_path, "explain", plain, source, *out, option, "0", code=2)
    with pytest.raises(xaicompile.errors.ModelError, match="explains no walks"):
        graphs.explain_graph(plain, source, tmp_path / "a.png")


def test_options_that_the_model_was_compiled_without(tmp_path: Path) -> None:
    model = onnx.load(compiled(tmp_path))
    for name in ("walks", "subgraph"):
        (port,) = [i for i in model.graph.input if i.name == name]
        model.graph.input.remove(port)
    onnx.save(model, tmp_path / "walks.onnx")
    np.save(tmp_path / "some.npy", EVERY)
    given(tmp_path)
    for options in (("--walks", "some.npy"), ("--subgraph", "0,1")):
        value = tmp_path / options[1] if options[1].endswith("npy") else options[1]
        sources = (tmp_path / "walks.onnx", tmp_path / "graph.npz", "-o", tmp_path / "a.png")
        assert f"{options[0]}: the model has no input" in refused(
            tmp_path, "explain", *sources, options[0], value, code=2
        )


def test_networkx_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = compiled(tmp_path), given(tmp_path, walks=EVERY)
    monkeypatch.setitem(sys.modules, "networkx", None)
    line = refused(tmp_path, "explain", model, source, "-o", tmp_path / "a.png", code=6)
    assert 'pip install "xaicompile[report]"' in line and "networkx" in line
