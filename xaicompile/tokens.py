"""Integer inputs that are looked up in an embedding, or turned into one-hot vectors: explained where floats begin.

The relevance of a token is the sum over its features (spec 7.5). Masks, position and segment ids carry nothing.
"""

from __future__ import annotations

import numpy as np

from xaicompile.ir import Builder, Program, Tensor, View

# Ops after which an element still stands for the same token
KEEPS_TOKENS = {"Identity", "Cast", "Reshape", "Expand", "Flatten", "Squeeze", "Unsqueeze", "Clip", "Max", "Min"}
SHIFTS = {"Add", "Sub", "Mod", "Where"}  # by or between constants
NOT_TEXT = ("mask", "position", "token_type", "segment")


def starts_of(p: Program, ids: Tensor) -> list[Tensor]:
    """The float tensors in which the tokens of an integer input begin: [..., features] for ids of shape [...].

    These are the outputs of Gathers of rows of a constant table, of OneHot, and of comparisons with every id.
    """
    same, starts = {ids.name}, []
    for view in p.views:
        y = view.y[0] if view.y else None
        if y is None or view.domain or not any(t is not None and t.name in same for t in view.x):
            continue
        if begins_here(view, same, ids):
            starts.append(y)
        elif not y.is_float and keeps_tokens(view, same):
            same.add(y.name)
    return starts


def keeps_tokens(view: View, same: set[str]) -> bool:
    """True if the view's elements are the same tokens, renumbered perhaps, or comparisons of them."""
    others = [t for t in view.x if t is not None and t.name not in same]
    if view.op in KEEPS_TOKENS:
        return True
    return view.op in (*SHIFTS, "Equal") and all(t.constant for t in others)


def begins_here(view: View, same: set[str], ids: Tensor) -> bool:
    """True for the op that turns ids into vectors."""
    y = view.out()
    if view.op == "Gather":
        table = view.inp(0)
        return table.is_float and table.constant and (table.rank or 0) >= 2 and int(view.attr("axis")) == 0
    if not y.is_float or y.rank is None or ids.rank is None or y.rank != ids.rank + 1:
        return False
    return view.op == "OneHot" or (view.op == "Cast" and view.inp(0).dtype == np.bool_)


def is_text(name: str) -> bool:
    """False for inputs whose names say that they hold no content."""
    return not any(word in name.lower() for word in NOT_TEXT)


def per_token(b: Builder, ids: Tensor, starts: list[Tensor], relevance: list[Tensor]) -> Tensor:
    """Relevance summed over features and over all places where the ids are looked up, of the ids' shape."""
    sums = []
    for start, r in zip(starts, relevance, strict=True):
        with b.scope(start.name):
            sums.append(b.reshape_like(b.sum_axes(r, [-1]), ids))
    return b.add_all(sums)
