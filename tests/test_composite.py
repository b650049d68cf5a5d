"""Rule sets: matchers, parameters, `extends`, what is refused, and which rule each node of a model gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import xaicompile
from tests.graphs import data, net, run, weight
from tests.nets import cnn
from xaicompile import composite
from xaicompile.compiler import compile_model
from xaicompile.errors import RuleError


def model() -> onnx.ModelProto:
    """Two branches of different depth that meet, then two dense layers."""
    return net(
        "(float[N,3,6,6] x) => (float[N,4] y)",
        """
        [stem] c0 = Conv(x, w0)
        [stem_relu] r0 = Relu(c0)
        [left] c1 = Conv(r0, w1)
        [right_a] c2 = Conv(r0, w1)
        [right_relu] r2 = Tanh(c2)
        [right_b] c3 = Conv(r2, w1)
        [join] j = Add(c1, c3)
        [flat] f = Flatten(j)
        [hidden] h = MatMul(f, w2)
        [hidden_relu] a = Relu(h)
        [head] y = Gemm(a, w3)
        """,
        w0=weight(4, 3, 1, 1),
        w1=weight(4, 4, 1, 1),
        w2=weight(144, 5),
        w3=weight(5, 4),
    )


def rules(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def assigned(path: str | Path, **parameters: Any) -> dict[str, str]:
    return {a.node: a.rule for a in compile_model(model(), path, parameters=parameters or None).assignments}


REST = '[[rules]]\nrule = "default"\n'


@pytest.mark.parametrize(
    ("match", "nodes"),
    [
        ('op = "Conv"', {"stem", "left", "right_a", "right_b"}),
        ('op = ["Gemm", "MatMul"]', {"hidden", "head"}),
        ('op = "*m*"', {"head"}),
        ('name = "right_*", op = "Conv"', {"right_a", "right_b"}),
        ('name = ["stem", "he?d"]', {"stem", "head"}),
        ('kind = "linear"', {"stem", "left", "right_a", "right_b", "hidden", "head"}),
        ('place = "first-linear"', {"stem"}),
        ('place = "last-linear"', {"head"}),
        ("depth = 1, kind = 'linear'", {"left", "right_a"}),
        ("depth = [2, 3], kind = 'linear'", {"right_b", "hidden"}),
        ("rank = 4, kind = 'linear'", {"stem", "left", "right_a", "right_b"}),
        ("rank = [1, 3], kind = 'linear'", {"hidden", "head"}),
        ('given = "gamma", kind = "linear"', set()),
    ],
)
def test_matchers(tmp_path: Path, match: str, nodes: set[str]) -> None:
    path = rules(tmp_path, f'[[rules]]\nmatch = {{ {match} }}\nrule = "epsilon"\n{REST}')
    assert {node for node, rule in assigned(path).items() if rule == "epsilon"} == nodes


def test_kinds(tmp_path: Path) -> None:
    text = "".join(
        f'[[rules]]\nmatch = {{ kind = "{kind}" }}\nrule = "{rule}"\n'
        for kind, rule in (
            ("linear", "epsilon"),
            ("activation", "gradient"),
            ("layout", "default"),
            ("other", "norm"),
        )
    )
    assert assigned(rules(tmp_path, text)) == {
        "stem": "epsilon", "stem_relu": "gradient", "left": "epsilon", "right_a": "epsilon", "right_relu": "gradient",
        "right_b": "epsilon", "join": "norm", "flat": "default", "hidden": "epsilon", "hidden_relu": "gradient",
        "head": "epsilon",
    }  # fmt: skip


def test_a_matcher_may_ask_whether_a_parameter_is_given() -> None:
    assert assigned("lrp-gamma")["stem"] == "gamma"
    assert assigned("lrp-gamma", low=-1.0)["stem"] == "gamma"
    assert assigned("lrp-gamma", low=-1.0, high=1.0)["stem"] == "z-box"


def test_the_first_that_matches_wins_and_says_why(tmp_path: Path) -> None:
    path = rules(
        tmp_path,
        '[[rules]]\nmatch = { name = "left" }\nrule = "flat"\n[[rules]]\nmatch = { op = "Conv" }\nrule = "gamma"\n'
        + REST,
    )
    found = {a.node: (a.rule, a.reason) for a in compile_model(model(), path).assignments}
    assert found["left"] == ("flat", "mine.toml rule 1: name=left")
    assert found["stem"] == ("gamma", "mine.toml rule 2: op=Conv")
    assert found["head"] == ("default", "mine.toml rule 3: everything else")


# --- parameters -------------------------------------------------------------------------------------------------------


def parameters_of(path: str | Path, node: str, **given: Any) -> dict[str, Any]:
    from xaicompile import ir
    from xaicompile.facts import Facts

    p = ir.load(model())
    facts = Facts(p, ["x"])
    choices = composite.assign(composite.load(path, given), p.views, facts)
    return {view.name: dict(choice.picked.parameters) for view, choice in choices.items()}[node]


def test_whose_parameter_counts(tmp_path: Path) -> None:
    """An entry's own, then the user's, then the set's, then the base's, then the rule's default."""
    base = rules(tmp_path, '[parameters]\ngamma = 0.5\n[[rules]]\nrule = "gamma"\n', "base.toml")
    text = """extends = "base"
        [parameters]
        epsilon = 0.1
        [[rules]]
        match = { name = "stem" }
        rule = "gamma"
        gamma = 0.9
        [[rules]]
        match = { op = "Gemm" }
        rule = "epsilon"
        """
    mine = rules(tmp_path, text)
    bias = {"bias": "absorb"}
    assert parameters_of(base, "stem") == {"gamma": 0.5, **bias}
    assert parameters_of(mine, "stem", gamma=0.2) == {"gamma": 0.9, **bias}
    assert parameters_of(mine, "left", gamma=0.2, bias="ignore") == {"gamma": 0.2, "bias": "ignore"}
    assert parameters_of(mine, "left") == {"gamma": 0.5, **bias}
    assert parameters_of(mine, "head") == {"epsilon": 0.1, "stabiliser": "absolute", **bias}
    assert parameters_of("lrp-0", "head") == {"epsilon": 0.0, "stabiliser": "absolute", **bias}


def test_parameters_change_the_numbers_and_are_remembered() -> None:
    x = data(1, 3, 12, 12)
    made = [xaicompile.compile(cnn(), "lrp-gamma", parameters={"gamma": g}) for g in (0.25, 1.0)]
    assert np.abs(run(made[0], {"x": x})["relevance"] - run(made[1], {"x": x})["relevance"]).max() > 1e-4
    kept = [json.loads({p.key: p.value for p in m.metadata_props}["xaicompile.parameters"]) for m in made]
    assert [k["gamma"] for k in kept] == [0.25, 1.0]


# --- extends ----------------------------------------------------------------------------------------------------------


def test_extends_a_shipped_set(tmp_path: Path) -> None:
    path = rules(tmp_path, 'extends = "lrp-gamma"\n[[rules]]\nmatch = { place = "last-linear" }\nrule = "flat"\n')
    base, mine = assigned("lrp-gamma"), assigned(path)
    assert {node for node in base if base[node] != mine[node]} == {"head"} and mine["head"] == "flat"
    resolved = composite.load(path)
    assert resolved.cite == composite.load("lrp-gamma").cite and resolved.name == "mine"
    assert composite.load("lrp-gamma").text in resolved.text


def test_extends_a_file_beside_and_inherits_the_output(tmp_path: Path) -> None:
    rules(tmp_path, f'output = "cotangent"\n{REST}', "base.toml")
    (tmp_path / "deeper").mkdir()
    assert composite.load(rules(tmp_path, 'extends = "base"')).output == "cotangent"
    assert composite.load(rules(tmp_path, 'extends = "base.toml"\noutput = "relevance"')).output == "relevance"
    assert composite.load(rules(tmp_path, 'extends = "../base"', "deeper/far.toml")).output == "cotangent"


def test_a_set_of_ones_own_may_refine_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    path = rules(tmp_path, 'extends = "lrp-gamma"\n[parameters]\ngamma = 3\n', "lrp-gamma.toml")
    assert composite.load(path).parameters["gamma"] == 3


def test_a_file_that_is_called_like_a_shipped_set_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gradient").write_bytes(b"\x00 not a rule set")
    monkeypatch.chdir(tmp_path)
    assert composite.load("gradient").output == "cotangent"


def test_the_hash_follows_the_text(tmp_path: Path) -> None:
    path = rules(tmp_path, REST)
    first = composite.load(path).sha256
    assert composite.load(rules(tmp_path, REST, "other.toml")).sha256 == first
    assert composite.load(rules(tmp_path, REST + "# a comment\n")).sha256 != first


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('docs = "x"\n' + REST, "unknown key in mine.toml: 'docs'; did you mean 'doc'"),
        ('[[rules]]\nrule = "gama"\n', "unknown rule in mine.toml rule 1: 'gama'; did you mean 'gamma'"),
        ('[[rules]]\nrule = "gamma"\ngama = 1\n', "parameter of 'gamma' in mine.toml rule 1: 'gama'; did you"),
        ('[[rules]]\nrule = "gradient"\ngamma = 1\n', "parameter of 'gradient'"),
        ('[[rules]]\nmatch = { ops = "Conv" }\nrule = "gamma"\n', "matcher in mine.toml rule 1: 'ops'; did you mean"),
        ('[[rules]]\nmatch = { place = "first" }\nrule = "gamma"\n', "did you mean 'first-linear'"),
        ('[[rules]]\nmatch = { kind = "liner" }\nrule = "gamma"\n', "did you mean 'linear'"),
        ('[[rules]]\nmatch = { depth = "3" }\nrule = "gamma"\n', "mine.toml rule 1: depth"),
        ('[[rules]]\nmatch = { depth = [] }\nrule = "gamma"\n', "mine.toml rule 1: depth"),
        ('[[rules]]\nmatch = { depth = true }\nrule = "gamma"\n', "mine.toml rule 1: depth"),
        ('[[rules]]\nmatch = { depth = [1, 2, 3] }\nrule = "gamma"\n', "mine.toml rule 1: depth"),
        ('[[rules]]\nmatch = { rank = 1.5 }\nrule = "gamma"\n', "mine.toml rule 1: rank"),
        ('[[rules]]\nmatch = { name = 3 }\nrule = "gamma"\n', "mine.toml rule 1: name"),
        ('[[rules]]\nmatch = "Conv"\nrule = "gamma"\n', "mine.toml rule 1: match"),
        ('[[rules]]\nrule = "gamma"\ngamma = "much"\n', "mine.toml rule 1: parameter 'gamma' is a number"),
        ('[[rules]]\nrule = "gamma"\ngamma = -1\n', "parameter 'gamma' is -1; it must not be negative"),
        ('[parameters]\ngama = 1\n[[rules]]\nrule = "gamma"\n', "did you mean 'gamma'"),
        ('parameters = 3\n[[rules]]\nrule = "gamma"\n', "mine.toml: parameters"),
        ('output = "map"\n' + REST, "output is 'relevance' or 'cotangent', not 'map'"),
        ('rules = ["gamma"]\n', "rules is a list of tables"),
        ("[[rules]]\ngamma = 1\n", 'needs rule = "NAME"'),
        ('doc = "nothing in it"\n', "holds no"),
        ('extends = "lrp-gama"\n', "did you mean 'lrp-gamma'"),
        ('extends = "mine"\n' + REST, "extends itself"),
        ("[[rules]\n", "is not TOML"),
    ],
)  # fmt: skip
def test_one_clear_line_for_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RuleError) as error:
        compile_model(model(), rules(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_circles_are_refused(tmp_path: Path) -> None:
    rules(tmp_path, 'extends = "b"\n', "a.toml")
    rules(tmp_path, f'extends = "../{tmp_path.name}/a"\n', "b.toml")
    with pytest.raises(RuleError, match="extends itself"):
        composite.load(tmp_path / "a.toml")


def test_a_node_without_a_rule_is_named(tmp_path: Path) -> None:
    path = rules(tmp_path, '[[rules]]\nmatch = { op = "Conv" }\nrule = "gamma"\n')
    with pytest.raises(RuleError, match="has no rule for Relu 'stem_relu'"):
        compile_model(model(), path)


def test_a_rule_for_linear_ops_alone_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"rule 'gamma' is for linear ops and can't be applied to Add 'join'"):
        compile_model(model(), rules(tmp_path, f'[[rules]]\nmatch = {{ op = "Add" }}\nrule = "gamma"\n{REST}'))


@pytest.mark.parametrize(
    ("name", "message"),
    [("lrp-gama", "did you mean 'lrp-gamma'"), ("nothing-like-it", "known: "), ("missing.toml", "can't be read")],
)
def test_unknown_sets(name: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        composite.load(name)


@pytest.mark.parametrize("name", sorted(composite.shipped()))
def test_every_shipped_set_is_documented_and_compiles(name: str) -> None:
    found = composite.load(name)
    assert found.name == name and len(found.doc) > 20 and found.doc.endswith(".") and found.cite
    if found.neuralize or found.method in ("gnn-lrp", "second-order-lrp"):
        return  # for other models: tests/test_neuralize.py, tests/test_walks.py, tests/test_second_order_lrp.py
    needed = {"low": -1.0, "high": 1.0, "background": np.zeros((2, 3, 6, 6))}
    given = {key: value for key, value in needed.items() if key in found.accepted}
    compiled = compile_model(model(), name, parameters=given)
    assert len(compiled.assignments) == (0 if found.method in ("random", "occlusion", "given") else 11)
    assert {a.rule for a in compiled.assignments} <= set(composite.RULES)


def test_a_set_runs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(composite.shipped()) >= 11
    assert all(os.path.isabs(path) for path in composite.shipped().values())
