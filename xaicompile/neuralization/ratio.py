"""The head of a classifier, whose log-likelihood ratio is explained (spec section 9.5)."""

from __future__ import annotations

from dataclasses import dataclass

from xaicompile.ir import Tensor, View
from xaicompile.neuralization.reading import RESHAPED, Differs, Reader
from xaicompile.passes.heads import logits_of, scaled_to_one


@dataclass(frozen=True)
class Head:
    """Scores z of classes.

    Attributes:
        exclusive: One of the classes is right (softmax): log p/(1-p) is z less the log-sum-exp of the others. Else
            each has a probability of its own (sigmoid), and log p/(1-p) is z.
    """

    logits: Tensor
    exclusive: bool


def head(reader: Reader, t: Tensor) -> Head:
    """The classes' scores behind a probability.

    Raises:
        Differs: There is no Softmax, LogSoftmax or Sigmoid.
    """
    here: Tensor | None = t
    while here is not None and (view := reader.maker(here)) is not None:
        if view.op in ("Softmax", "LogSoftmax") and not view.domain:
            return checked(Head(view.inp(0), True), view)
        if view.op == "Sigmoid" and not view.domain:
            return Head(view.inp(0), False)
        logits = logits_of(view, reader.producers)
        if logits is not None:
            return checked(Head(logits, True), view)
        if view.op == "Concat" and not view.domain and len(view.x) == 2:
            return complement(reader, view)
        passed = scaled_to_one(view, reader.producers)
        if passed is None and view.op not in (*RESHAPED, "ArgMax", "ZipMap", "Log"):
            break
        here = passed if passed is not None else view.x[0]
    raise Differs(
        f"{reader.at(here or t)} is neither Softmax, LogSoftmax nor Sigmoid, and leads to none; if these are logits "
        "[N, classes], say so with --neuralize log-ratio"
    )


def checked(found: Head, view: View) -> Head:
    """The head, if its classes stand in the last of two axes."""
    rank = found.logits.rank
    if rank is not None and (rank != 2 or int(view.attr("axis", -1) if view.op != "Div" else -1) % rank != 1):
        raise Differs(f"{view!r} is not over the classes of [N, classes], but {found.logits!r}")
    return found


def complement(reader: Reader, view: View) -> Head:
    """Both probabilities 1 - p and p of a Sigmoid, side by side, as binary classifiers give them."""
    ends = []
    for x in view.x:
        above = reader.maker(x)
        if above is not None and above.op == "Sub" and not above.domain and reader.scalar(above.x[0]) == 1:
            ends.append((reader.source(above.inp(1)), True))
        elif x is not None:
            ends.append((reader.source(x), False))
    sigmoid = reader.maker(ends[0][0]) if len(ends) == 2 and ends[0][0] is ends[1][0] else None
    if sigmoid is None or sigmoid.op != "Sigmoid" or sigmoid.domain or ends[0][1] == ends[1][1]:
        raise Differs(f"{view!r} joins other things than 1 - p and p of one Sigmoid")
    z, b = sigmoid.inp(0), reader.b
    return Head(b.Concat(*(-z if negative else z for _, negative in ends), axis=int(view.attr("axis"))), False)
