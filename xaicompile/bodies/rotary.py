"""Bodies of what decoders of text are made of: rotary positions, and attention of several queries to one key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from xaicompile.bodies.attention import counted
from xaicompile.bodies.contrib import Outputs, contrib, given, only, simplified, swapped
from xaicompile.ir import Builder, Tensor, View
from xaicompile.vjp.linear import ints
from xaicompile.vjp.shape import sized

REFUSED = ("sliding_window_cache", "qk_output", "smooth_softmax")  # attributes of GroupQueryAttention that change much
LEFT_OUT = (9, 11, 12, 13, 16)  # inputs: positions, sinks, scales of a quantised past, lengths of chunks


@contrib("RotaryEmbedding")
def rotary_embedding(b: Builder, v: View) -> Outputs | None:
    """Pairs of features turned by an angle that grows with the position."""
    x, ids, cos, sin = (v.inp(i) for i in range(4))
    half, rotated = (cos.shape or (None, None))[1], int(v.attrs.get("rotary_embedding_dim", 0))
    if x.rank not in (3, 4) or ids.rank not in (1, 2) or not isinstance(half, int) or v.attrs.get("is_packed_batching"):
        return None
    if float(v.attrs.get("scale", 1.0)) != 1.0 or (rotated and x.rank == 3 and not v.attrs.get("num_heads")):
        return None
    t = x
    if x.rank == 3:
        sizes = [int(v.attrs["num_heads"]), -1] if rotated else [-1, 2 * half]
        t = b.Transpose(b.Reshape(x, [0, 0, *sizes]), perm=[0, 2, 1, 3])
    if ids.rank == 1:
        ids = b.Unsqueeze(counted(b, b.dim(t, 2)) + ids, [0])
    y = turned(b, t, ids, cos, sin, bool(v.attrs.get("interleaved", 0)))
    return [y if x.rank == 4 else b.reshape_like(b.Transpose(y, perm=[0, 2, 1, 3]), x)]


def turned(b: Builder, x: Tensor, ids: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """[batch, heads, length, size] turned by the angles of the positions ids [batch or 1, length]."""
    half = int((cos.shape or (None, 0))[1] or 0)
    c, s = (b.Unsqueeze(b.Gather(table, ids, axis=0), [1]) for table in (cos, sin))
    pairs = b.Slice(x, [0], [2 * half], [-1])
    if interleaved:
        left, right = (b.Slice(pairs, [i], [2 * half], [-1], [2]) for i in (0, 1))
    else:
        left, right = b.Slice(pairs, [0], [half], [-1]), b.Slice(pairs, [half], [2 * half], [-1])
    parts = [left * c - right * s, left * s + right * c]
    if interleaved:
        y = b.reshape_like(b.Concat(*(b.Unsqueeze(p, [-1]) for p in parts), axis=-1), pairs)
    else:
        y = b.Concat(*parts, axis=-1)
    if x.shape is not None and x.shape[-1] == 2 * half:
        return y
    return b.Concat(y, b.Slice(x, [2 * half], [2**63 - 1], [-1]), axis=-1)


@contrib("GroupQueryAttention")
def group_query_attention(b: Builder, v: View) -> Outputs | None:
    """Attention in which each key serves a group of queries, with rotary positions and what was seen before."""
    if any(v.has(i) for i in LEFT_OUT) or any(int(v.attrs.get(k, 0)) > 0 for k in REFUSED):
        return None
    heads, key_heads = int(v.attrs["num_heads"]), int(v.attrs["kv_num_heads"])
    parts, bias = separated(b, v, heads, key_heads), given(v, 10)
    if parts is None or (bias is not None and (bias.shape is None or not isinstance(bias.shape[1], int))):
        return None
    q, k, value = parts
    size = int((q.shape or (0,))[-1] or 0)
    seen = Seen.of(b, v, q)
    if v.attrs.get("do_rotary"):
        places = b.Unsqueeze(seen.before, [1]) + counted(b, b.dim(q, 2))
        q, k = (turned(b, t, places, v.inp(7), v.inp(8), bool(v.attrs.get("rotary_interleaved"))) for t in (q, k))
    if not seen.nothing:
        k, value = (seen.appended(b, v.inp(i), t) for i, t in ((3, k), (4, value)))
    length = b.dim(q, 2)
    batch = b.dim(q, 0)
    grouped = sized(b, q, [batch, ints(b, [key_heads, heads // key_heads]), length, ints(b, [size])])
    scale = float(v.attrs.get("scale") or 0.0) or 1 / math.sqrt(size)
    scores = b.MatMul(grouped, swapped(b, b.Unsqueeze(k, [2]))) * scale
    cap = float(v.attrs.get("softcap", 0.0))
    scores = b.Tanh(scores / cap) * cap if cap else scores
    if bias is not None:
        across = bias.shape is not None and bias.shape[1] == 1
        split = [b.dim(bias, 0), [key_heads, heads // key_heads], b.shape_of(bias, 2)]
        scores = scores + (b.Unsqueeze(bias, [1]) if across else b.Reshape(bias, b.Concat(*split, axis=0)))
    low = float(np.finfo(np.float16 if q.dtype == np.float16 else np.float32).min)
    scores = b.where(b.Unsqueeze(seen.visible(b, v, q, k), [1, 2]), scores, low, like=scores)
    y = b.MatMul(b.Softmax(scores, axis=-1), b.Unsqueeze(value, [2]))
    merged = b.Transpose(sized(b, y, [batch, ints(b, [heads]), length, ints(b, [size])]), perm=[0, 2, 1, 3])
    return only(v, b.Reshape(merged, [0, 0, heads * size]), k, value)


def separated(b: Builder, v: View, heads: int, key_heads: int) -> list[Tensor] | None:
    """Queries, keys and values, [batch, heads, length, size] each, normalised where that is asked for."""
    counts, parts = [heads, key_heads, key_heads], [v.inp(0), given(v, 1), given(v, 2)]
    packed = parts[1] is None
    width = (v.inp(0).shape or (None,))[-1]
    if not isinstance(width, int):
        return None
    size = width // (sum(counts) if packed else heads)
    if packed:
        parts = list(b.many("Split", 3, v.inp(0), [n * size for n in counts], axis=-1))
    found = []
    for t, count, weight, name in zip(parts, counts, (14, 15, None), ("q", "k", ""), strict=True):
        if t is None or t.rank != 3:
            return None
        split = b.Transpose(b.Reshape(t, [0, 0, count, size]), perm=[0, 2, 1, 3])
        if weight is not None and v.has(weight):
            epsilon = float(v.attrs.get(f"{name}_norm_epsilon") or v.attrs.get("qk_norm_epsilon", 1e-6))
            split = simplified(b, split, v.inp(weight), epsilon)[0]
        found.append(split)
    return found


@dataclass(frozen=True)
class Seen:
    """What a sample has seen before this call.

    Attributes:
        nothing: Whether that is known to be nothing.
        before: How much, [batch]; the first call has none.
        lengths: That and what is new, without padding, [batch].
        total: The longest of these, [1].
    """

    nothing: bool
    before: Tensor
    lengths: Tensor
    total: Tensor

    @staticmethod
    def of(b: Builder, v: View, q: Tensor) -> Seen:
        """Read from the node."""
        nothing = not v.has(3) or (v.inp(3).shape is not None and v.inp(3).shape[2] == 0)  # type: ignore[index]
        lengths = b.Reshape(b.Cast(v.inp(5), to=7), [-1]) + 1
        total, length = b.Reshape(b.Cast(v.inp(6), to=7), [1]), b.dim(q, 2)
        before = (lengths - length) * b.Cast(b.Not(b.Equal(total, length)), to=7)
        return Seen(nothing, before, lengths, total)

    def appended(self, b: Builder, past: Tensor, new: Tensor) -> Tensor:
        """The new behind what each sample has of the past, [batch, heads, total, size]."""
        both = b.Transpose(b.Concat(past, new, axis=2), perm=[0, 2, 1, 3])
        place, before = b.Unsqueeze(counted(b, self.total), [0]), b.Unsqueeze(self.before, [1])
        at = b.where(place < before, place, place - before + b.dim(past, 2), like=place)
        at = b.Min(at, b.dim(both, 1) - 1)
        read = b.GatherND(both, b.Unsqueeze(at, [2]), batch_dims=1)
        return b.op("Transpose", read, perm=[0, 2, 1, 3], shape=(*(new.shape or ())[:2], None, (new.shape or ())[-1]))

    def visible(self, b: Builder, v: View, q: Tensor, k: Tensor) -> Tensor:
        """Which keys a query reads, [batch, queries, keys]."""
        key = b.Unsqueeze(counted(b, b.dim(k, 2)), [0, 1])
        if not int(v.attrs.get("causal", 1)):
            return key < b.Unsqueeze(self.lengths, [1, 2])
        query = b.Unsqueeze(b.Unsqueeze(self.before, [1]) + counted(b, b.dim(q, 2)), [2])
        window = int(v.attrs.get("local_window_size", -1))
        seen = key <= query
        return b.And(seen, key > query - window) if window > 0 else seen
