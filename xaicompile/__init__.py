"""Explanations as a compiler pass: an ONNX model in, the same prediction plus relevance out."""

from __future__ import annotations

from xaicompile._version import __version__
from xaicompile.api import compile, explain
from xaicompile.compiler import Assignment, Compiled
from xaicompile.errors import XaiCompileError
from xaicompile.neuralization.api import neuralize

__all__ = ["Assignment", "Compiled", "XaiCompileError", "__version__", "compile", "explain", "neuralize"]
