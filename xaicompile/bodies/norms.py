"""Bodies of group normalisations: the runtime's (domain `com.microsoft`), and one that the standard has withdrawn."""

from __future__ import annotations

import numpy as np

from xaicompile.bodies.contrib import Outputs, contrib, given, only, plus
from xaicompile.bodies.record import body
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.apart import APART
from xaicompile.vjp.shape import in_groups


@body(APART, "GroupNormalization")
def group_normalization(b: Builder, v: View) -> Outputs:
    """As it was before opset 21: scale and bias are one a group, each of which is an instance of one channel."""
    x = v.inp(0)
    grouped = in_groups(b, x, int(v.attrs["num_groups"]))
    n = b.InstanceNormalization(grouped, v.inp(1), v.inp(2), epsilon=float(v.attrs.get("epsilon", 1e-5)))
    return [b.reshape_like(n, x)]


@contrib("GroupNorm")
def group_norm(b: Builder, v: View) -> Outputs | None:
    """Scale and bias one a channel, then perhaps SiLU."""
    y = normalised(b, v, v.inp(0))
    return None if y is None else [y]


@contrib("SkipGroupNorm")
def skip_group_norm(b: Builder, v: View) -> Outputs | None:
    """The same of x + skip + bias, and that sum as the second output."""
    x, skip = v.inp(0), v.inp(3)
    if not v.attrs.get("channels_last", 1) or skip.rank is None:
        return None
    total = plus(x + (b.Unsqueeze(skip, [1, 2]) if skip.rank == 2 else skip), given(v, 4))
    y = normalised(b, v, total)
    return None if y is None else only(v, y, total)


def normalised(b: Builder, v: View, x: Tensor) -> Tensor | None:
    """x normalised by groups of channels, which are the last axis unless said otherwise."""
    if x.rank is None or x.dtype is None:
        return None
    last, groups, spatial = v.attrs.get("channels_last", 1), int(v.attrs["groups"]), list(range(2, x.rank))
    first = b.Transpose(x, perm=[0, x.rank - 1, *range(1, x.rank - 1)]) if last else x
    ones = b.const(np.ones(groups, x.dtype))
    epsilon = float(v.attrs.get("epsilon", 1e-5))
    n = b.InstanceNormalization(in_groups(b, first, groups), ones, ones * 0.0, epsilon=epsilon)
    scale, shift = (b.Unsqueeze(b.CastLike(v.inp(i), x), list(range(1, len(spatial) + 1))) for i in (1, 2))
    y = b.reshape_like(n, first) * scale + shift
    y = y * b.Sigmoid(y) if v.attrs.get("activation", 0) else y
    return b.Transpose(y, perm=[0, *spatial, 1]) if last else y
