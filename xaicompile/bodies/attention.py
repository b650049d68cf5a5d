"""Bodies of the runtime's attention ops (domain `com.microsoft`)."""

from __future__ import annotations

import math

import numpy as np

from xaicompile.bodies.contrib import Outputs, contrib, given, only, plus, swapped
from xaicompile.ir import Builder, Tensor, View
from xaicompile.vjp.shape import flat_from


@contrib("Attention")
def attention(b: Builder, v: View) -> Outputs | None:
    """Self-attention with one merged projection to queries, keys and values."""
    if v.attrs.get("do_rotary") or v.has(6):
        return None
    projected = plus(b.MatMul(v.inp(0), v.inp(1)), given(v, 2))
    return self_attention(b, v, projected, given(v, 3), given(v, 4), given(v, 5))


def self_attention(
    b: Builder, v: View, projected: Tensor, mask: Tensor | None, past: Tensor | None, bias: Tensor | None
) -> Outputs | None:
    """Attention between queries, keys and values that lie side by side."""
    sizes = list(v.attrs.get("qkv_hidden_sizes") or [])
    if not sizes:
        total = (v.inp(1).shape or (None, None))[1]
        if not isinstance(total, int):
            return None
        sizes = [total // 3] * 3
    q, k, value = b.many("Split", 3, projected, sizes, axis=-1)
    heads = int(v.attrs["num_heads"])
    q, k, value = (in_heads(b, t, heads) for t in (q, k, value))
    if past is not None:  # [2, batch, heads, past, size]
        before = [b.Squeeze(t, [0]) for t in b.many("Split", 2, past, axis=0, num_outputs=2)]
        k, value = (b.Concat(p, t, axis=2) for p, t in zip(before, (k, value), strict=True))
    y = attended(b, v, q, k, value, mask, bias)
    present = b.Concat(b.Unsqueeze(k, [0]), b.Unsqueeze(value, [0]), axis=0) if len(v.y) > 1 else None
    return None if y is None else only(v, y, present)


@contrib("MultiHeadAttention")
def multi_head_attention(b: Builder, v: View) -> Outputs | None:
    """Attention between given queries, keys and values."""
    if any(v.has(i) for i in (8, 9)) or len(v.y) > 3:
        return None
    heads = int(v.attrs["num_heads"])
    parts = separated(b, v, heads)
    if parts is None:
        return None
    q, k, value = parts
    if v.has(6) and v.has(7):
        k, value = b.Concat(v.inp(6), k, axis=2), b.Concat(v.inp(7), value, axis=2)
    y = attended(b, v, q, k, value, given(v, 4), given(v, 5))
    return None if y is None else only(v, y, k, value)


def separated(b: Builder, v: View, heads: int) -> list[Tensor] | None:
    """Queries, keys and values, each [batch, heads, length, size]; None for a form that is not known."""
    query, key, value, bias = v.inp(0), given(v, 1), given(v, 2), given(v, 3)
    packed = query if query.rank == 5 else key if key is not None and key.rank == 5 else None
    if packed is not None and bias is None:  # side by side for each head
        several = [b.Transpose(t, perm=[0, 2, 1, 3]) for t in apart(b, packed)]
        return several if packed is query else [in_heads(b, query, heads), *several]
    if query.rank != 3 or key is None or key.rank not in (3, 4) or value is None:
        return None
    if bias is not None:
        sizes = [(t.shape or (None,))[-1] for t in (query, query, value)]
        if not all(isinstance(s, int) for s in sizes):
            return None
        shifts = b.many("Split", 3, bias, [int(s or 0) for s in sizes], axis=0)
        query = query + shifts[0]
        key = key + shifts[1] if key.rank == 3 else key + per_head(b, shifts[1], heads)
        value = value + shifts[2] if value.rank == 3 else value + per_head(b, shifts[2], heads)
    return [in_heads(b, t, heads) if t.rank == 3 else t for t in (query, key, value)]


def apart(b: Builder, packed: Tensor) -> list[Tensor]:
    """[batch, length, heads, size] each, out of [batch, length, heads, how many, size]."""
    count = 3 if (packed.shape or ())[3] == 3 else 2
    return [b.Squeeze(t, [3]) for t in b.many("Split", count, packed, axis=3, num_outputs=count)]


def per_head(b: Builder, bias: Tensor, heads: int) -> Tensor:
    """A [heads * size] bias as [heads, 1, size]."""
    return b.Unsqueeze(b.Reshape(bias, [heads, -1]), [1])


def in_heads(b: Builder, t: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    batch, length, width = t.shape or (None, None, None)
    size = width // heads if isinstance(width, int) else None
    split = b.op("Reshape", t, [0, 0, heads, -1 if size is None else size], shape=(batch, length, heads, size))
    return b.Transpose(split, perm=[0, 2, 1, 3])


def attended(
    b: Builder, v: View, q: Tensor, k: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    """softmax(q k' scale + bias + mask) value, heads merged; None for a form of mask that is not known."""
    size = (q.shape or (None,))[-1]
    scale = float(v.attrs.get("scale") or 0.0)
    if scale:
        scores = b.MatMul(q, swapped(b, k)) * scale
    elif isinstance(size, int):
        scores = b.MatMul(q, swapped(b, k)) * (1 / math.sqrt(size))
    else:
        return None
    low = float(v.attrs.get("mask_filter_value", -10000.0))
    if int(v.attrs.get("unidirectional", 0)):
        count, total = b.dim(q, 2), b.dim(k, 2)
        rows = b.Unsqueeze(counted(b, count), [1]) + (total - count)
        scores = b.where(b.Unsqueeze(counted(b, total), [0]) <= rows, scores, low, like=scores)
    if mask is not None:
        hidden = masked(b, mask, k)
        if hidden is None:
            return None
        scores = scores + b.Cast(hidden, to=1 if scores.dtype == np.float32 else 10) * low
    if bias is not None:
        scores = scores + bias
    y = b.MatMul(b.Softmax(scores, axis=-1), value)
    return flat_from(b, b.Transpose(y, perm=[0, 2, 1, 3]), 2)


def masked(b: Builder, mask: Tensor, k: Tensor) -> Tensor | None:
    """Where a mask hides a key: booleans that broadcast over [batch, heads, queries, keys]."""
    if mask.rank == 2:
        return b.Unsqueeze(b.Equal(mask, 0), [1, 2])
    if mask.rank == 3:
        return b.Unsqueeze(b.Equal(mask, 0), [1])
    if mask.rank == 1 and same_batch(mask, k):
        place = b.Cast(counted(b, b.dim(k, 2)), to=6)
        return b.Unsqueeze(b.Unsqueeze(place, [0]) >= b.Unsqueeze(mask, [1]), [1, 2])
    return None


def same_batch(mask: Tensor, k: Tensor) -> bool:
    """True if a one-dimensional mask holds one length per sample (the other forms hold starts and ends)."""
    return bool(mask.shape and k.shape and mask.shape[0] is not None and mask.shape[0] == k.shape[0])


def counted(b: Builder, n: Tensor) -> Tensor:
    """0, 1, ... n-1 for a one-element int64 vector."""
    zero, one = (b.const(np.asarray(i, np.int64)) for i in (0, 1))
    return b.Range(zero, b.Squeeze(n, [0]), one)
