"""Einsum: the message for an operand is the sum of products of c and the other operands."""

from __future__ import annotations

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Linear, Message, Messages, vjp
from xaicompile.vjp.shape import positions, rank_of

DOTS = "..."


def terms_of(equation: str) -> tuple[list[str], str]:
    """The operands' subscripts and the result's, which may be left out: then it is every letter that occurs once."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(DOTS, "").replace(",", "")
        right = (DOTS if DOTS in left else "") + "".join(sorted(s for s in set(letters) if letters.count(s) == 1))
    return left.split(","), right


@vjp("Einsum", linear=Linear(bias=None, either=True))
def einsum(ctx: Context) -> Messages:
    """Swaps an operand and the result; axes that were summed in one operand alone get the same c everywhere."""
    terms, result = terms_of(ctx.attr("equation"))
    return [into(ctx, i, terms, result) if needed else None for i, needed in enumerate(ctx.need)]


def into(ctx: Context, i: int, terms: list[str], result: str) -> Message:
    """The message for operand i."""
    b, others = ctx.b, [t for j, t in enumerate(terms) if j != i]
    operands: list[Tensor] = [ctx.c, *(ctx.node.inp(j) for j in range(len(terms)) if j != i)]
    given = {s for t in (*others, result) for s in t.replace(DOTS, "")}
    own = "".join(dict.fromkeys(terms[i].replace(DOTS, "")))  # a letter that is repeated asks for the diagonal
    target = "".join(s for s in own if s in given)
    dotted = any(DOTS in t for t in (*others, result))
    before, dots, _ = terms[i].partition(DOTS)
    if dotted:  # an operand without dots gets them in front, where the loop sums them
        at = len([s for s in dict.fromkeys(before) if s in given]) if dots else 0
        target = target[:at] + DOTS + target[at:]
    message = b.Einsum(*operands, equation=f"{','.join([result, *others])}->{target}")
    alone = [s for s in own if s not in given]
    if alone and (dots or dotted):
        raise UnsupportedError(
            f"{ctx.node}: no gradient for dots and a letter that one operand alone has ('{terms[i]}')"
        )
    letters = axes_of(terms[i], rank_of(ctx.node.inp(i)))
    new = [axes[0] for s, axes in letters.items() if s in alone]
    new += [axis for axes in letters.values() for axis in axes[1:]]
    if not new:
        return message
    widened = b.Unsqueeze(message, sorted(new))
    for axes in letters.values():
        for later in axes[1:]:
            widened = widened * diagonal(ctx, i, axes[0], later)
    return b.expand_like(widened, ctx.node.inp(i))


def axes_of(term: str, rank: int) -> dict[str, list[int]]:
    """The axes that each letter names; those behind dots are counted from the back."""
    before, dots, behind = term.partition(DOTS)
    found: dict[str, list[int]] = {}
    start = rank - len(behind) if dots else 0
    for axis, letter in [*enumerate(before), *((start + k, s) for k, s in enumerate(behind))]:
        found.setdefault(letter, []).append(axis)
    return found


def diagonal(ctx: Context, i: int, first: int, later: int) -> Tensor:
    """1 where two axes of operand i are at the same place, 0 elsewhere, to be broadcast over the others."""
    b, x = ctx.b, ctx.node.inp(i)
    axes = range(rank_of(x))
    row, column = (b.Unsqueeze(positions(b, x, a), [k for k in axes if k != a]) for a in (first, later))
    return b.CastLike(b.Equal(row, column), x)
