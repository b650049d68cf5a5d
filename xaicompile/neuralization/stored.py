"""Estimators from files: pickles (.joblib, .pkl, .pickle), whose loading runs code, and skops files, which are safe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from xaicompile.errors import ModelError, RuntimeMissingError

PICKLES, SAFE = (".joblib", ".pkl", ".pickle"), ".skops"


def load(path: Path, trusted: Sequence[str], say: Callable[[str], None]) -> Any:
    """Reads an estimator.

    Args:
        trusted: Types that a skops file may hold besides those that skops trusts itself.
        say: Takes a line that the user should see.

    Raises:
        ModelError: The file is not there, is broken, is of another kind, or holds types that are not trusted.
        RuntimeMissingError: The library that reads it is not installed.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ModelError(f"no such file: {path}")
    if suffix not in (*PICKLES, SAFE):
        raise ModelError(f"{path} should be a fitted estimator: a {', '.join(PICKLES)} or {SAFE} file")
    if suffix != SAFE and trusted:
        raise ModelError(f"{path} is a pickle, of which no type can be trusted apart; --trust is for {SAFE} files")
    if suffix != SAFE:
        say("loading a pickle runs code in it; prefer skops")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = _read(path, lambda: _skops(path, trusted) if suffix == SAFE else _pickle(path))
    for line in dict.fromkeys(
        " ".join(str(w.message).split()) for w in caught if w.category.__module__[:7] == "sklearn"
    ):
        say(f"warning: {line}")
    return estimator


def _read(path: Path, read: Callable[[], Any]) -> Any:
    """What a library reads, its errors as ours."""
    try:
        return read()
    except (ModelError, RuntimeMissingError):
        raise
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("sklearn", "scipy"):
            raise _missing(path, "scikit-learn") from error
        raise ModelError(f"{path} needs the module {error.name}, which is not installed") from error
    except Exception as error:  # a broken file can raise anything
        raise ModelError(f"{path} can't be read: {type(error).__name__}: {error}") from error


def _missing(path: Path, library: str) -> RuntimeMissingError:
    return RuntimeMissingError(f'reading {path} needs {library}; run `pip install "xaicompile[sklearn]"`')


def _library(path: Path, name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise _missing(path, name.split(".")[0]) from error


def _pickle(path: Path) -> Any:
    return _library(path, "joblib").load(path)


def _skops(path: Path, trusted: Sequence[str]) -> Any:
    io = _library(path, "skops.io")
    unknown = sorted(set(io.get_untrusted_types(file=path)) - set(trusted))
    if unknown:
        options = " ".join(f"--trust {name}" for name in unknown)
        raise ModelError(f"{path} holds types that skops does not trust; if you do, add {options}")
    return io.load(path, trusted=list(trusted))
