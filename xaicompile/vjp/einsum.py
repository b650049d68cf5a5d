"""Einsum: the message for an operand is the sum of products of c and the other operands."""

from __future__ import annotations

from xaicompile.errors import UnsupportedError
from xaicompile.ir import Tensor
from xaicompile.registry import Context, Message, Messages, vjp

DOTS = "..."


def terms_of(equation: str) -> tuple[list[str], str]:
    """The operands' subscripts and the result's, which may be left out: then it is every letter that occurs once."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = left.replace(DOTS, "").replace(",", "")
        right = (DOTS if DOTS in left else "") + "".join(sorted(s for s in set(letters) if letters.count(s) == 1))
    return left.split(","), right


@vjp("Einsum")
def einsum(ctx: Context) -> Messages:
    """Swaps an operand and the result; axes that were summed in one operand alone get the same c everywhere."""
    terms, result = terms_of(ctx.attr("equation"))
    if any(len(set(t.replace(DOTS, ""))) < len(t.replace(DOTS, "")) for t in terms):
        raise UnsupportedError(
            f"{ctx.node}: no gradient for a repeated letter in one operand ('{ctx.attr('equation')}')"
        )
    return [into(ctx, i, terms, result) if needed else None for i, needed in enumerate(ctx.need)]


def into(ctx: Context, i: int, terms: list[str], result: str) -> Message:
    """The message for operand i."""
    b, others = ctx.b, [t for j, t in enumerate(terms) if j != i]
    operands: list[Tensor] = [ctx.c, *(ctx.node.inp(j) for j in range(len(terms)) if j != i)]
    given = {s for t in (*others, result) for s in t.replace(DOTS, "")}
    target = "".join(s for s in terms[i].replace(DOTS, "") if s in given)
    dotted = any(DOTS in t for t in (*others, result))
    before, dots, _ = terms[i].partition(DOTS)
    if dotted:  # an operand without dots gets them in front, where the loop sums them
        at = len([s for s in before if s in given]) if dots else 0
        target = target[:at] + DOTS + target[at:]
    message = b.Einsum(*operands, equation=f"{','.join([result, *others])}->{target}")
    alone = [s for s in terms[i].replace(DOTS, "") if s not in given]
    if not alone:
        return message
    if dots or dotted:
        raise UnsupportedError(
            f"{ctx.node}: no gradient for dots and a letter that one operand alone has ('{terms[i]}')"
        )
    widened = b.Unsqueeze(message, [terms[i].index(s) for s in alone])
    return b.expand_like(widened, ctx.node.inp(i))
