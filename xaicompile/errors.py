"""One family of errors: every message is one clear line that says what, where and what to do next."""

from __future__ import annotations


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


class UnsupportedError(XaiCompileError):
    """The model holds nodes that no rule covers; the message lists all of them."""

    exit_code = 4


class OutputError(XaiCompileError):
    """The result can't be written where it should go."""

    exit_code = 5


class RuntimeMissingError(XaiCompileError):
    """ONNX Runtime, or another optional library, is needed and not installed."""

    exit_code = 6
