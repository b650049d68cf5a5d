"""`xaicompile ops`: the table of operators, which README's table is made from."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from xaicompile import optable
from xaicompile.cli import cli

README = Path(__file__).parent.parent / "README.md"


def test_json_has_the_documented_keys() -> None:
    result = CliRunner().invoke(cli, ["ops", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert all(set(row) == {"domain", "op", "since", "gradient", "lrp"} for row in rows)
    by_op = {row["op"]: row for row in rows if row["domain"] == ""}
    assert by_op["Conv"]["gradient"] == "exact" and by_op["Conv"]["lrp"] == "linear"
    assert by_op["Tanh"]["lrp"] == "identity" and by_op["Sigmoid"]["lrp"] == "secant"
    assert by_op["Floor"]["gradient"] == "zero" and by_op["Attention"]["gradient"] == "body"
    read = {(row["domain"], row["op"]) for row in rows if row["lrp"] == "read"}
    assert {("com.microsoft", "SkipLayerNormalization"), ("ai.onnx.ml", "SVMRegressor"), ("", "QLinearConv")} <= read


def test_text_lists_every_operator() -> None:
    lines = CliRunner().invoke(cli, ["ops"]).stdout.splitlines()
    assert len(lines) == len(optable.rows()) + 1 and lines[0].split() == ["domain", "op", "since", "gradient", "lrp"]


def test_readme_shows_this_table() -> None:
    """To renew it: python -m tests.test_optable."""
    assert optable.markdown() in README.read_text(encoding="utf-8")


def renew() -> None:
    """Writes the table between README's markers."""
    text = README.read_text(encoding="utf-8")
    begin, end = "<!-- operators -->\n", "\n<!-- end of operators -->"
    head, rest = text.split(begin)
    README.write_text(f"{head}{begin}{optable.markdown()}{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    renew()
