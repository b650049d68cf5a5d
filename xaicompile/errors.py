"""One family of errors: every message is one clear line that says what, where and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class XaiCompileError(Exception):
    """Base of every error that a user can cause; the command line prints it and exits with `exit_code`."""

    exit_code = 1


class CheckFailed(XaiCompileError):
    """A self-check found that an emitted model does not keep its contract."""

    exit_code = 1


class RuleError(XaiCompileError):
    """Unknown or malformed rule, parameter or option."""

    exit_code = 2


class ModelError(XaiCompileError):
    """The source model can't be read, or is not a valid model."""

    exit_code = 3


@dataclass(frozen=True)
class Gap:
    """A node that can't be explained.

    Attributes:
        since: Opset version of the domain.
        kind: "no rule" (a standard operator without a gradient, or not in this variation), "subgraph" (something inside
            an If, Loop or Scan that can't be passed), or "domain" (an operator of another domain that is not known).
        reason: Why, and what can be done, as far as that is known.
    """

    node: str
    op: str
    domain: str
    since: int
    kind: str
    reason: str


class UnsupportedError(XaiCompileError):
    """The model holds nodes that no rule covers; the message lists all of them.

    Attributes:
        gaps: These nodes, if it is nodes that are the reason.
        assignments: What the rule set says of the explained nodes, as far as that has been worked out.
    """

    exit_code = 4

    def __init__(self, message: str, gaps: Sequence[Gap] = (), assignments: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.gaps, self.assignments = tuple(gaps), tuple(assignments)


class OutputError(XaiCompileError):
    """The result can't be written where it should go."""

    exit_code = 5


class RuntimeMissingError(XaiCompileError):
    """ONNX Runtime, or another optional library, is needed and not installed."""

    exit_code = 6
