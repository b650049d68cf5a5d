"""Rules from outside: from installed packages, by entry point, and from files of one's own.

A plugin is Python that registers rules with `xaicompile.registry.rule`; rule sets then name them. An installed package
states its module under the entry point group `xaicompile.rules`. Loading a plugin runs its code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xaicompile import registry
from xaicompile.errors import RuleError

GROUP = "xaicompile.rules"
_loaded: dict[str, str] = {}


def load(files: Sequence[str | os.PathLike[str]] = ()) -> dict[str, str]:
    """Loads installed plugins and these files, each once, and returns the files' names with their hashes.

    Raises:
        RuleError: A plugin can't be read or fails, or registers a rule of a name that is taken.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.value not in _loaded:
            _guarded(f"plugin '{point.name}' ({point.value})", point.load)
            _loaded[point.value] = ""
    return {Path(file).name: _file(Path(file)) for file in files}


def _file(path: Path) -> str:
    """Runs a plugin file, and returns the hash of its text."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RuleError(f"plugin {path} can't be read: {error.strerror}") from error
    digest, key = hashlib.sha256(text).hexdigest(), str(path.resolve())
    if _loaded.get(key) != digest:
        name = f"xaicompile_plugin_{digest[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise RuleError(f"plugin {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader = spec.loader
        _guarded(f"plugin {path}", lambda: loader.exec_module(module))
        _loaded[key] = digest
    return digest


def _guarded(what: str, run: object) -> None:
    """Runs a plugin's code; what it raises becomes one line, and rules that were there stay as they are."""
    before = dict(registry.RULES)
    try:
        assert callable(run)
        run()
    except Exception as error:
        raise RuleError(f"{what} fails: {type(error).__name__}: {error}") from error
    taken = [name for name, rule in before.items() if registry.RULES[name] is not rule]
    registry.RULES.update(before)
    if taken:
        raise RuleError(f"{what} registers rule '{taken[0]}', which is there already; give it another name")
