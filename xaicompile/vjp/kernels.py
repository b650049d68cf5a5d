"""The message for a convolution's kernel, where that is data."""

from __future__ import annotations

from math import prod

import numpy as np

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Builder, Tensor
from xaicompile.vjp.shape import positions, size_of, sized


def into_kernel(
    b: Builder, image: Tensor, out: Tensor, w: Tensor, steps: tuple[list[int], list[int]], group: int
) -> Tensor:
    """What the kernel [M, C/g, k...] gets for out [N, M, o...] that it read off a padded image [N, C, i...].

    The transpose of a convolution has image and out the other way round. `steps` are strides and dilations.
    """
    if w.static is None:
        raise UnsupportedError(f"no gradient for a kernel whose size is not known ('{w.name}')")
    (made, per_group, *kernel), n = w.static, len(w.static) - 2
    windows = image
    for i in range(n):  # each spatial axis becomes two: the place in the kernel, and which window
        starts = b.Unsqueeze(positions(b, out, 2 + i), [0]) * steps[0][i]
        inside = b.const(np.arange(kernel[i], dtype=np.int64)[:, None] * steps[1][i])
        windows = b.Gather(windows, starts + inside, axis=2 + 2 * i)
    order = [0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2)]
    columns, split = (
        sized(b, t, [b.dim(out, 0), b.const(np.asarray([group, rows], np.int64)), size_of(b, out, 2)])
        for t, rows in ((b.Transpose(windows, perm=order), per_group * prod(kernel)), (out, made // group))
    )
    products = b.MatMul(split, b.Transpose(columns, perm=[0, 1, 3, 2]))
    return b.Reshape(b.ReduceSum(products, [0], keepdims=0), list(w.static))
