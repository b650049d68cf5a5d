"""What belongs together in a sample: the values of a pixel, of a square of pixels, of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xaicompile.errors import RuleError
from xaicompile.images import channel_axis
from xaicompile.ir import Builder, Tensor


@dataclass(frozen=True)
class Grid:
    """Positions of an image over all its channels, or squares of them; features of a table; tokens."""

    b: Builder
    start: Tensor
    relevance: Tensor
    patch: int
    tokens: bool

    @property
    def channels(self) -> int | None:
        """Axis of the channels, or of a token's features, which are flipped together; None for tables."""
        return 2 if self.tokens and self.start.rank != 2 else channel_axis(self.start.shape)

    @property
    def axes(self) -> list[int]:
        """Axes of the positions in the start."""
        return [a for a in range(1, 2 if self.tokens else self.start.rank or 0) if a != self.channels]

    @property
    def sizes(self) -> list[int]:
        """Positions along each of these axes."""
        found = [(self.start.shape or ())[a] for a in self.axes]
        if not found or any(not isinstance(d, int) for d in found):
            raise RuleError(f"the positions of {self.start!r} are told apart, so its sizes must be known")
        return [d for d in found if isinstance(d, int)]

    @property
    def cells(self) -> list[int]:
        """Patches along each axis; the last may be cut off."""
        return [-(-d // self.patch) for d in self.sizes]

    @property
    def count(self) -> int:
        """How many units there are."""
        return int(np.prod(self.cells))

    def units(self) -> Tensor:
        """Relevance summed over channels and patches, [N, count]."""
        b, r = self.b, self.relevance
        if not self.tokens and self.channels is not None:
            r = b.sum_axes(r, [self.channels])
        if self.patch > 1:
            ends = [c * self.patch - d for c, d in zip(self.cells, self.sizes, strict=True)]
            if any(ends):
                r = b.Pad(r, [0] * (len(ends) + 1) + [0, *ends])
            split = [n for c in self.cells for n in (c, self.patch)]
            r = b.sum_axes(b.Reshape(r, [0, *split]), [2 + 2 * i for i in range(len(ends))])
        return b.Reshape(r, [0, self.count])

    def spread(self, units: Tensor) -> Tensor:
        """One number a patch as one a position, of a shape that broadcasts over the start."""
        b, cells, sizes = self.b, self.cells, self.sizes
        t = b.Reshape(units, [0, *cells])
        if self.patch > 1:
            t = b.Unsqueeze(t, [2 + 2 * i for i in range(len(cells))])
            t = b.op("Tile", t, [1, *(n for _ in cells for n in (1, self.patch))])
            t = b.Reshape(t, [0, *(c * self.patch for c in cells)])
            t = b.op("Slice", t, [0] * len(sizes), sizes, list(range(1, 1 + len(sizes))))
        return t if self.channels is None else b.Unsqueeze(t, [self.channels])

    def as_image(self, b: Builder, made: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """What a function makes of images with the channels in front, whichever way these lie."""
        if self.channels != 3:
            return made(b, *tensors)
        found = made(b, *(b.Transpose(t, perm=[0, 3, 1, 2]) for t in tensors))
        return b.op("Transpose", found, perm=[0, 2, 3, 1], shape=self.start.shape)
