"""Models that packages carry: what the table says of each is so. More on the sentence encoder and the graph network."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skl2onnx")
pytest.importorskip("transformers")

from tests.graphs import Arrays
from xaicompile.checks import check
from xaicompile.compiler import compile_model
from xaicompile.runtime import Session

from . import minilm
from .real_files import TOKENS, AbsentError, Loaded, Real, member, reals, two_graphs
from .real_gradients import relative
from .real_models import judged

TABLE = Path(__file__).with_name("REAL_MODELS.md")
REALS = {f"{real.package}, {real.name}": real for real in reals()}
CLOSURE = 1e-5


@cache
def stated() -> dict[tuple[str, str], tuple[str, str]]:
    """Verdict and remark of each model in the table, by package and name."""
    found, package = {}, ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            package = line[3:]
        elif line.startswith("| ") and not line.startswith("| model"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[package, cells[0]] = cells[2], cells[-1].replace("\\|", "|")
    return found


def rows() -> list[object]:
    return [
        pytest.param(real, marks=pytest.mark.parity if real.quick else pytest.mark.parity_full, id=name)
        for name, real in REALS.items()
    ]


@pytest.mark.parity
def test_the_table_has_every_model() -> None:
    """Of the packages in the versions that it names."""
    packages = {package for package, _ in stated()}
    there = {(real.package, real.name) for real in REALS.values() if real.package in packages}
    assert there == {(package, name) for package, name in stated() if package in {p for p, _ in there}}
    assert {package.partition("==")[0] for package in packages} == {
        r.package.partition("==")[0] for r in REALS.values()
    }


@pytest.mark.parametrize("real", rows())
def test_what_the_table_says(real: Real) -> None:
    """Nothing is wrong, and what is refused is refused for the reason that stands there."""
    row = judged(real)
    if row.verdict == "absent":
        pytest.skip(row.remark)
    assert row.verdict in ("right", "refused", "not run", "runtime"), row.remark
    assert row.verdict == "right" or row.remark
    if (real.package, real.name) in stated():  # else in another version than the table's
        verdict, remark = stated()[real.package, real.name]
        assert row.verdict == verdict, row.remark
        assert verdict == "right" or row.remark == remark


def loaded(word: str) -> Loaded:
    """The model with this word in its name; skips where its package can't be fetched."""
    (real,) = (real for name, real in REALS.items() if word in name)
    try:
        return real.load()
    except AbsentError as error:
        pytest.skip(str(error))


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_the_encoder_knows_what_sentences_mean() -> None:
    """Weights, tokens and export are those of the package, whose similarities are known."""
    given = loaded("MiniLM")
    net, feed, model = minilm.encoder(member)
    y = Session(model).run(given.feed or {})["embedding"]
    np.testing.assert_allclose(y, minilm.autograd(net, feed, "word_embeddings")[0], atol=1e-5)
    assert y[0] @ y[1] == pytest.approx(0.76, abs=0.01) and y[0] @ y[2] < 0.1


@pytest.mark.parity
def test_gradients_where_ids_become_vectors() -> None:
    """Of both inputs that are looked up, vector by vector, and times the vector per token."""
    given = loaded("MiniLM")
    net, feed, model = minilm.encoder(member)
    tables = {"input_ids": "word_embeddings", "token_type_ids": "token_type_embeddings"}
    layers = [minilm.vectors(model, table) for table in tables.values()]
    gradient = compile_model(model, "gradient", explain_input=list(tables), layers=layers)
    product = compile_model(model, "gradient-x-input", explain_input=list(tables))
    assert product.relevance == {name: f"relevance_{name}" for name in tables}
    slopes, products = (Session(c.model).run(given.feed or {}) for c in (gradient, product))
    for (name, table), layer in zip(tables.items(), layers, strict=True):
        _, value, slope = minilm.autograd(net, feed, table)
        assert relative(slopes[f"relevance_{layer}"], slope) <= TOKENS
        assert relative(products[f"relevance_{name}"], (value * slope).sum(-1)) <= TOKENS


@pytest.mark.parity
@pytest.mark.parametrize("rule", ["gradient-x-input", "lrp-gamma", "attnlrp"])
def test_a_relevance_for_each_token_of_each_sentence(rule: str) -> None:
    """Of three text inputs the ids alone are explained; padding gets nothing; each sentence has its ledger."""
    given = loaded("MiniLM")
    feed = given.feed or {}
    compiled = compile_model(given.model, rule, ledger=True)
    assert compiled.relevance == {"input_ids": "relevance"}
    out = Session(compiled.model).run(feed)
    relevance, there = out["relevance"], feed["attention_mask"].astype(bool)
    assert relevance.shape == feed["input_ids"].shape and not there.all()
    assert np.abs(relevance[~there]).max() <= 1e-6 * np.abs(relevance).max() and (relevance[there] != 0).all()
    gap = relevance.sum(1) + out["ledger"] - out["explained"]
    assert (np.abs(gap) <= CLOSURE * np.abs(out["ledger_by_node"]).max(1)).all()
    report = check(compiled.model, given.model)
    assert report.passed and not report.skipped, [(i.name, i.detail) for i in report.items if not i.ok]


# --- graphs -----------------------------------------------------------------------------------------------------------


def single(feed: Arrays, nodes: slice) -> Arrays:
    """One of the two graphs alone."""
    inside = (feed["edge_index"][0] >= nodes.start) & (feed["edge_index"][0] < nodes.stop)
    by_node = ("feat", "laplacian_eigvec", "laplacian_eigval", "rw_return_probs")
    return {
        **{name: feed[name][nodes] for name in by_node},
        "edge_feat": feed["edge_feat"][inside],
        "edge_index": feed["edge_index"][:, inside] - nodes.start,
        "batch": feed["batch"][nodes] * 0,
        "graph_slots": feed["graph_slots"][:1],
    }


@pytest.mark.parity
@pytest.mark.parametrize("rule", ["lrp-gamma", "gradient-x-input"])
def test_the_graph_network_explains_each_graph_and_keeps_one_ledger(rule: str) -> None:
    """Relevance of a graph is the same alone; the ledger of two graphs is the sum of the ledgers of each."""
    given, feed = loaded("minimol"), two_graphs()
    compiled = compile_model(given.model, rule, ledger=True)
    assert any("one ledger for all samples together" in note for note in compiled.notes)
    session = Session(compiled.model)
    both, parts = session.run(feed), [session.run(single(feed, nodes)) for nodes in (slice(0, 4), slice(4, 9))]
    names = list(compiled.relevance.values())
    for out in (both, *parts):
        assert out["explained"].shape == out["ledger"].shape == (1,)
        gap = sum(float(out[name].sum()) for name in names) + out["ledger"] - out["explained"]
        assert np.abs(gap) <= CLOSURE * np.abs(out["ledger_by_node"]).max()
    best = both["fingerprint"].max(1)
    np.testing.assert_allclose(both["explained"], best.sum(keepdims=True), rtol=1e-6)
    for i, (out, nodes) in enumerate(zip(parts, (slice(0, 4), slice(4, 9)), strict=True)):
        largest = np.abs(both["relevance_feat"]).max()
        np.testing.assert_allclose(both["relevance_feat"][nodes], out["relevance_feat"], atol=1e-4 * largest)
        np.testing.assert_allclose(out["explained"], best[i : i + 1], rtol=1e-5)
    np.testing.assert_allclose(both["ledger"], sum(out["ledger"] for out in parts), rtol=1e-3)
