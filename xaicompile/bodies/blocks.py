"""Bodies of ops whose weights are integers in blocks: unpacked to the floats that they stand for."""

from __future__ import annotations

from xaicompile.bodies.contrib import Outputs, contrib, given, plus
from xaicompile.ir import Builder, Tensor, View


@contrib("MatMulNBits")
def matmul_n_bits(b: Builder, v: View) -> Outputs | None:
    """x W' + b, each block of a row of W with a scale and a zero point of its own."""
    bits, n, k = int(v.attrs.get("bits", 4)), int(v.attrs["N"]), int(v.attrs["K"])
    q, scales, zero = v.inp(1), v.inp(2), given(v, 3)
    if bits not in (2, 4, 8) or v.attrs.get("weight_prepacked") or v.has(4) or not q.static or 0 in q.static:
        return None
    blocks, size = q.static[1], int(v.attrs["block_size"])
    whole = b.Reshape(unpacked(b, q, bits, scales), [n, blocks, size])
    offset: Tensor | float = float(2 ** (bits - 1))
    if zero is not None and zero.is_float:
        offset = b.Reshape(zero, [n, blocks, 1])
    elif zero is not None:
        rows = unpacked(b, b.Reshape(zero, [n, -1]), bits, scales)
        offset = b.Unsqueeze(b.Slice(rows, [0], [blocks], [1]), [2])
    w = b.Reshape((whole - offset) * b.Reshape(scales, [n, blocks, 1]), [n, blocks * size])
    w = w if blocks * size == k else b.Slice(w, [0], [k], [1])
    return [plus(b.MatMul(v.inp(0), b.Transpose(w, perm=[1, 0])), given(v, 5))]


def unpacked(b: Builder, q: Tensor, bits: int, like: Tensor) -> Tensor:
    """Whole numbers of a few bits out of bytes, the lowest bits first, as floats; the last axis grows."""
    rest, digits = b.CastLike(q, like), []
    if bits == 8:
        return rest
    for _ in range(8 // bits):
        above = b.Floor(rest / float(2**bits))
        digits.append(b.Unsqueeze(rest - above * float(2**bits), [-1]))
        rest = above
    return b.Reshape(b.Concat(*digits, axis=-1), [*(int(d or 0) for d in (q.shape or ())[:-1]), -1])
