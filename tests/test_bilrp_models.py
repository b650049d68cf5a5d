"""BiLRP of models that compare two inputs by themselves, and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import xaicompile
from tests.graphs import data, exact, net, weight
from tests.nets import cnn
from tests.test_bad_input import refused, saved
from tests.test_bilrp import EXACT, OTHER, X, encoder
from xaicompile.cli import cli
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError

F64 = np.float64

SIDE = "{0}z = MatMul({0}, w1) {0}a = Relu({0}z) {0}e = MatMul({0}a, w2)"
COMPARED = {
    "sum of a product": "p = Mul(le, re) y = ReduceSum<keepdims=0>(p, one)",
    "the same, kept": "p = Mul(re, le) y = ReduceSum<keepdims=1>(p, last)",
    "einsum": 'y = Einsum<equation="nm,nm->n">(le, re)',
    "rows times columns": "lr = Unsqueeze(le, one) rr = Unsqueeze(re, two) d = MatMul(lr, rr) y = Flatten(d)",
    "scaled": "p = Mul(le, re) d = ReduceSum<keepdims=0>(p, one) s = Mul(d, scale) y = Identity(s)",
    "cosine": """
        ln = ReduceL2<keepdims=0>(le, one)
        rn = ReduceL2<keepdims=0>(re, one)
        n = Mul(ln, rn)
        m = Max(n, small)
        p = Mul(le, re)
        d = ReduceSum<keepdims=0>(p, one)
        y = Div(d, m)
    """,
    "cosine of unit vectors": """
        lu = LpNormalization<axis=1>(le)
        ru = LpNormalization<axis=1>(re)
        p = Mul(lu, ru)
        y = ReduceSum<keepdims=0>(p, one)
    """,
}
HIDDEN, LAST = weight(4, 9, dtype=F64), weight(9, 3, dtype=F64)
NUMBERS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "last": np.array([-1]),
    "scale": np.array(3.0),
    "small": np.array(1e-8),
}


def twins(comparison: str, shape: str = "N", swapped: bool = False) -> onnx.ModelProto:
    """Two branches of shared weights, and a comparison of what they make of the inputs l and r."""
    lines = " ".join([SIDE.format("l"), SIDE.format("r"), comparison]).replace(") ", ")\n")
    given = "double[N,4] r, double[N,4] l" if swapped else "double[N,4] l, double[N,4] r"
    used = {k: v for k, v in NUMBERS.items() if f"{k})" in comparison}
    return net(f"({given}) => (double[{shape}] y)", lines, w1=HIDDEN, w2=LAST, **used)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", COMPARED)
def test_a_model_that_compares_two_inputs_keeps_them(name: str, chunk: int) -> None:
    shape = "N,1" if name in ("the same, kept", "rows times columns") else "N"
    model = twins(COMPARED[name], shape)
    made = compile_model(model, "bilrp", parameters=EXACT, ledger=True, chunk=chunk)
    assert [i.name for i in made.model.graph.input] == ["l", "r"]
    x, y = data(5, 4, dtype=F64), data(5, 4, seed=1, dtype=F64)
    found = exact(made.model, {"l": x, "r": y})
    single = net("(double[N,4] x) => (double[N,3] xe)", SIDE.format("x").replace(") ", ")\n"), w1=HIDDEN, w2=LAST)
    similarity = "cosine" if name.startswith("cosine") else "dot"
    want = exact(
        compile_model(single, "bilrp", parameters={**EXACT, "similarity": similarity}).model, {"x": x, "other": y}
    )
    scale = 3.0 if name == "scaled" else 1.0
    np.testing.assert_array_equal(found["similarity"], found["y"].reshape(-1))
    np.testing.assert_allclose(found["similarity"], scale * want["similarity"], rtol=1e-9)
    np.testing.assert_allclose(found["relevance"], scale * want["relevance"], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(
        found["relevance"].sum((1, 2)) + found["ledger"], found["similarity"], rtol=1e-8, err_msg="sum"
    )


def test_the_first_axis_of_pairs_is_that_of_the_first_input() -> None:
    x, y = data(5, 4, dtype=F64), data(5, 4, seed=1, dtype=F64)
    found = [
        exact(compile_model(twins(COMPARED["einsum"], swapped=s), "bilrp").model, {"l": x, "r": y})
        for s in (False, True)
    ]
    np.testing.assert_allclose(found[0]["relevance"], found[1]["relevance"].transpose(0, 2, 1), rtol=0, atol=1e-14)


NOT_COMPARED = {
    "a sum": "p = Add(le, re) y = ReduceSum<keepdims=0>(p, one)",
    "over the samples": "p = Mul(le, re) y = ReduceSum<keepdims=0>(p, zero)",
    "all with all": "t = Transpose(re) q = MatMul(le, t) y = ReduceSum<keepdims=0>(q, one)",
    "with itself": "p = Mul(le, le) d = ReduceSum<keepdims=0>(p, one) s = ReduceSum<keepdims=0>(re, one) y = Mul(d, s)",
    "mixed": "m = Add(le, re) p = Mul(m, re) y = ReduceSum<keepdims=0>(p, one)",
    "a distance": "s = Sub(le, re) p = Mul(s, s) y = ReduceSum<keepdims=0>(p, one)",
}


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_other_models_of_two_inputs_are_refused(name: str) -> None:
    model = twins(NOT_COMPARED[name], "N" if name != "over the samples" else "3")
    with pytest.raises(RuleError, match=r"bilrp"):
        compile_model(model, "bilrp")


def test_a_similarity_of_its_own_takes_no_other() -> None:
    for parameters in ({"project": 2}, {"similarity": "cosine"}):
        with pytest.raises(RuleError, match="a similarity as it is"):
            compile_model(twins(COMPARED["einsum"]), "bilrp", parameters=parameters)


# --- the command line ---------------------------------------------------------------------------------------------


def test_options_of_the_command_line(tmp_path: Path) -> None:
    path = saved(tmp_path, cnn())
    options = ("--rule", "bilrp", "--pool", "4", "--inner", "lrp-0", "--project", "6", "--ledger", "--chunk", "3")
    result = CliRunner().invoke(cli, [str(path), *options])
    assert result.exit_code == 0, result.output
    assert "the second is fed as 'other'" in result.output and "outputs: logits, similarity, relevance" in result.output
    written = onnx.load(path.with_name("model.explained.onnx"))
    parameters = {"pool": 4, "project": 6}
    made = xaicompile.compile(cnn(), "bilrp", inner="lrp-0", parameters=parameters, ledger=True, chunk=3)
    assert written.graph == made.graph
    metadata = {m.key: m.value for m in made.metadata_props}
    assert metadata["xaicompile.rule"] == "bilrp-lrp-0"
    assert json.loads(metadata["xaicompile.pairs"]) == {"x": "other"}
    again = CliRunner().invoke(cli, ["check", str(path.with_name("model.explained.onnx")), "--against", str(path)])
    assert again.exit_code == 0 and "ok         ledger" in again.output, again.output


@pytest.mark.parametrize("inner", ["lrp-gamma", "lrp-zplus"])
def test_the_inner_rule_set(tmp_path: Path, inner: str) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "{inner}"\nmethod = "bilrp"\n[parameters]\npool = 2\n')
    own = exact(compile_model(encoder(), tmp_path / "mine.toml", parameters=EXACT).model, {"x": X, "other": OTHER})
    found = exact(compile_model(encoder(), "bilrp", inner=inner, pool=2, parameters=EXACT).model,
                  {"x": X, "other": OTHER})  # fmt: skip
    np.testing.assert_array_equal(found["relevance"], own["relevance"])
    (tmp_path / "inner.toml").write_text(f'extends = "{inner}"\n')
    file = compile_model(encoder(), "bilrp", inner=tmp_path / "inner.toml", pool=2, parameters=EXACT).model
    np.testing.assert_array_equal(exact(file, {"x": X, "other": OTHER})["relevance"], own["relevance"])


REFUSED = {
    "--target 3": "takes no target",
    "--maps 2": "takes no target",
    "--contrast others": "takes no target",
    "--explain-reduce sum": "takes no target",
    "--normalise": "takes no target",
    "--layers z1": "--layers",
    "--concepts z1": "--concepts",
    "--smooth 3": "--smooth",
    "--neuralize log-ratio": "neuralized",
    "--evaluate pixel-flipping": "--evaluate",
    "--chunk 2": "5 units can't be done 2 at a time",
    "--project 4 --chunk 3": "4 units can't be done 3 at a time",
    "--pool 0": "'pool' is 0",
    "--pool v-act": "is for neuralized models",
    "--inner smoothgrad": "in one pass",
    "--inner integrated-gradients": "in one pass",
    "--inner neuralized-kde": "in one pass",
    "--inner gradient": "in one pass",
    "--inner nix": "'nix'",
    "--inner lrp-0 --set gamma=1": "'gamma'",
    "--set similarity=angle": "dot or cosine",
    "--set project=1.5": "whole number",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_it_does_not_give(tmp_path: Path, options: str) -> None:
    line = refused(tmp_path, saved(tmp_path, cnn()), "--rule", "bilrp", *options.split(), code=2)
    assert REFUSED[options] in line


def test_books_of_two_inputs_are_not_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", data(1, 3, 12, 12))
    given = ("inspect", saved(tmp_path, cnn()), "--rule", "bilrp", "--data", tmp_path / "x.npy")
    assert "inspect --data: rule 'bilrp'" in refused(tmp_path, *given, code=2)


@pytest.mark.parametrize("options", ["--pool 4", "--inner lrp-0", "--project 3", "--rule lrp-0 --pool 4"])
def test_options_that_are_for_bilrp_alone(tmp_path: Path, options: str) -> None:
    assert "is for --rule bilrp" in refused(tmp_path, saved(tmp_path, cnn()), *options.split(), code=2)


def test_models_that_it_can_not_compare(tmp_path: Path) -> None:
    given = ("--rule", "bilrp")
    several = "a = Add(x, z) y = Add(a, v)"
    model = saved(tmp_path, net("(float[N,3] x, float[N,3] z, float[N,3] v) => (float[N,3] y)", several))
    assert "--explain-input" in refused(tmp_path, model, *given, code=2)
    assert "--explain-input" in refused(tmp_path, model, *given, "--explain-input", "x", "--explain-input", "z", code=2)
    model = saved(tmp_path, net("(float[N,K] x) => (float[N,K] y)", "y = Relu(x)"))
    assert "its size must be known" in refused(tmp_path, model, *given, code=2)
    model = saved(tmp_path, net("(float[N,4500] x) => (float[N,4500] y)", "y = Relu(x)"))
    assert "4500 x 4500 pairs" in refused(tmp_path, model, *given, code=2)
