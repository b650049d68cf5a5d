"""Rules of one's own: from a file, and from an installed package by its entry point."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import xaicompile
from tests.graphs import data, net, run, weight
from xaicompile import plugins, registry
from xaicompile.cli import cli
from xaicompile.errors import RuleError

MODEL = net("(float[N,4] x) => (float[N,3] y)", "r = Relu(x)\ny = MatMul(r, w)", w=weight(4, 3))
PLUGIN = '''
from xaicompile.registry import Context, Messages, rule

@rule("{name}", factor=2.0)
def scaled(ctx: Context) -> Messages:
    """The gradient times a number."""
    return ctx.absorb_difference(ctx.only(0, ctx.vjp()[0] * float(ctx.parameters["factor"])))
'''
RULES = '[[rules]]\nmatch = {{ op = "Relu" }}\nrule = "{name}"\n[[rules]]\nrule = "gradient"\n'


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone after it."""
    for table in ("RULES", "PARAMETERS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    for module in ("xaicompile.composite",):
        monkeypatch.setattr(sys.modules[module], "RULES", registry.RULES)
        monkeypatch.setattr(sys.modules[module], "PARAMETERS", registry.PARAMETERS)
    monkeypatch.setattr(plugins, "_loaded", {})


def written(folder: Path, name: str, text: str = PLUGIN) -> tuple[Path, Path]:
    plugin, rules = folder / "my_rules.py", folder / "mine.toml"
    plugin.write_text(text.format(name=name))
    rules.write_text(RULES.format(name=name))
    return plugin, rules


def test_a_rule_from_a_file(tmp_path: Path) -> None:
    plugin, rules = written(tmp_path, "thrice")
    x = data(2, 4)
    plain = run(xaicompile.compile(MODEL, "gradient-x-input"), {"x": x})["relevance"]
    made = xaicompile.compile(MODEL, rules, plugins=[plugin], parameters={"factor": 3.0}, ledger=True)
    found = run(made, {"x": x})
    np.testing.assert_allclose(found["relevance"], 3 * plain, rtol=1e-6)
    np.testing.assert_allclose(found["relevance"].sum(1) + found["ledger"], found["explained"], rtol=1e-5)
    stated = json.loads({p.key: p.value for p in made.metadata_props}["xaicompile.plugins"])
    assert list(stated) == ["my_rules.py"] and len(stated["my_rules.py"]) == 64


def test_the_command_line_takes_plugins(tmp_path: Path) -> None:
    import onnx

    plugin, rules = written(tmp_path, "twice")
    onnx.save(MODEL, tmp_path / "model.onnx")
    arguments = [str(tmp_path / "model.onnx"), "--rule", str(rules)]
    lacking = CliRunner().invoke(cli, arguments)
    assert lacking.exit_code == 2 and "unknown rule in mine.toml rule 1: 'twice'" in lacking.output
    done = CliRunner().invoke(cli, [*arguments, "--plugin", str(plugin)])
    assert done.exit_code == 0, done.output
    assert "twice 1" in done.output
    again = CliRunner().invoke(cli, ["inspect", *arguments, "--plugin", str(plugin), "--json"])
    assert {n["rule"] for n in json.loads(again.output)["nodes"]} == {"twice", "gradient"}


def test_a_rule_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_package_with_rules")
    monkeypatch.setitem(sys.modules, "a_package_with_rules", module)
    runs: list[int] = []

    class Point(importlib.metadata.EntryPoint):
        def load(self) -> Any:
            runs.append(1)
            exec(PLUGIN.format(name="installed"), module.__dict__)
            return module

    point = Point("rules", "a_package_with_rules", plugins.GROUP)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **given: [point] if given["group"] == plugins.GROUP else []
    )
    _, rules = written(tmp_path, "installed")
    for _ in range(2):
        xaicompile.compile(MODEL, rules)
    assert runs == [1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "fails: ZeroDivisionError"),
        ("def broken(:", "fails: SyntaxError"),
        (PLUGIN.replace("{name}", "epsilon"), "registers rule 'epsilon', which is there already"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    before = dict(registry.RULES)
    with pytest.raises(RuleError, match=said):
        xaicompile.compile(MODEL, plugins=[path])
    assert before == registry.RULES


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="can't be read: No such file"):
        xaicompile.compile(MODEL, plugins=[tmp_path / "none.py"])
