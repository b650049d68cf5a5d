"""Reads the compiler's own source: which functions emit which operators."""

from __future__ import annotations

import ast
from pathlib import Path

import xaicompile

ROOT = Path(xaicompile.__file__).parent


def calls() -> list[tuple[str, str, str]]:
    """(file, function, name) of each call; for `b.op("Conv", ...)` also the name of the operator."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                names = {name for call in ast.walk(function) if isinstance(call, ast.Call) for name in called(call)}
                found += [(str(path.relative_to(ROOT)), function.name, name) for name in sorted(names)]
    return found


def called(call: ast.Call) -> set[str]:
    """What a call goes by: the function's or attribute's name, and a literal first argument of `op` and `many`."""
    names = {getattr(call.func, "attr", ""), getattr(call.func, "id", "")}
    if names & {"op", "many"} and call.args and isinstance(call.args[0], ast.Constant):
        names.add(str(call.args[0].value))
    return names - {""}


def functions_that_call(*wanted: str) -> set[tuple[str, str]]:
    """(file, function) of each function that calls, or emits an operator of, one of these names."""
    return {(file, function) for file, function, name in calls() if name in wanted}
