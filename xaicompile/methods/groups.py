"""Groups of a sample's values, between which interactions are summed: features, squares of pixels, or any numbering."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.grid import Grid
from xaicompile.images import read_arrays
from xaicompile.ir import Builder, Tensor
from xaicompile.ir.steps import adopted
from xaicompile.methods.job import Job

MOST = 20_000_000  # pairs of groups


class Groups(Protocol):
    """How values belong together."""

    @property
    def count(self) -> int:
        """How many groups there are."""

    def spread(self, b: Builder, weights: Tensor) -> Tensor:
        """One number a group, [K, count], as one a value, of a shape that broadcasts over K samples."""

    def sums(self, b: Builder, t: Tensor) -> Tensor:
        """The sum of each group's values, [N, count]."""


@dataclass(frozen=True)
class Squares:
    """Positions over all their channels, or squares of them; features of a table; tokens."""

    start: Tensor
    side: int
    tokens: bool

    def grid(self, b: Builder, t: Tensor) -> Grid:
        """The same squares of another tensor."""
        return Grid(b, self.start, t, self.side, self.tokens)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.grid(self.start.builder, self.start).count

    def spread(self, b: Builder, weights: Tensor) -> Tensor:
        """One number a square as one a value."""
        return self.grid(b, weights).spread(weights)

    def sums(self, b: Builder, t: Tensor) -> Tensor:
        """The sum over each square."""
        features = [self.grid(b, t).channels or 2] if self.tokens else []
        return self.grid(b, b.sum_axes(t, features)).units()


@dataclass(frozen=True)
class Numbered:
    """Values, or positions over all their channels, that are told apart by numbers from 0.

    Attributes:
        shape: Of one sample's numbers, with 1 in place of the channels where these go together.
        channels: Axis of such channels, None if each value has a number.
        table: [values, groups], 1 where a value belongs to a group.
    """

    shape: tuple[int, ...]
    channels: int | None
    table: Tensor

    @property
    def count(self) -> int:
        """The largest number, and 1."""
        return int((self.table.static or (0, 0))[1])

    def spread(self, b: Builder, weights: Tensor) -> Tensor:
        """One number a group as one a value."""
        return b.Reshape(b.MatMul(weights, b.Transpose(adopted(b, self.table), perm=[1, 0])), [0, *self.shape])

    def sums(self, b: Builder, t: Tensor) -> Tensor:
        """The sum of each group's values."""
        t = t if self.channels is None else b.sum_axes(t, [self.channels])
        return b.MatMul(b.Flatten(t, axis=1), adopted(b, self.table))


def groups_of(job: Job) -> Groups:
    """The groups that the parameter `group` names: the side of squares, or a file of numbers.

    Raises:
        RuleError: It is neither, or there are too many pairs.
    """
    start, given, tokens = job.starts[0], job.parameter("group"), job.inputs[0].tokens
    groups: Groups
    if isinstance(given, str | os.PathLike):
        groups = numbered(job.p.builder, start, Path(given), tokens)
    else:
        groups = Squares(start, job.count("group"), tokens)
    if groups.count**2 > MOST:
        raise RuleError(
            f"{job.rules.name}: {groups.count} x {groups.count} pairs are too many; take more values together "
            "(--set group=16)"
        )
    return groups


def numbered(b: Builder, start: Tensor, path: Path, tokens: bool) -> Numbered:
    """The groups of a .npy file: whole numbers from 0, one a value of a sample or one a position.

    Raises:
        RuleError: It holds something else, or the sample's sizes are not known.
    """
    if not path.is_file():
        raise RuleError(f"parameter 'group' is the side of squares or a .npy file of numbers, not '{path}'")
    numbers, grid = read_arrays(path), Grid(b, start, start, 1, tokens)
    sample, places = tuple((start.shape or ())[1:]), tuple(grid.sizes)
    if not isinstance(numbers, np.ndarray) or numbers.shape not in (sample, places):
        shape = list(numbers.shape) if isinstance(numbers, np.ndarray) else "a .npz file"
        raise RuleError(f"parameter 'group': one number a value {list(sample)} or position {list(places)}, not {shape}")
    if (numbers % 1 != 0).any() or numbers.min() < 0 or numbers.max() >= numbers.size:
        raise RuleError(f"parameter 'group': whole numbers from 0 to {numbers.size - 1}, the number of a value's group")
    channels = None if numbers.shape == sample else grid.channels
    count, flat = int(numbers.max()) + 1, b.const(numbers.astype(np.int32).reshape(-1, 1))
    table = b.CastLike(b.Equal(flat, np.arange(count, dtype=np.int32)[None]), start)
    shape = list(numbers.shape)
    if channels is not None:
        shape.insert(channels - 1, 1)
    return Numbered(tuple(shape), channels, table)
