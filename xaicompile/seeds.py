"""Which scalar of each sample is explained, and the cotangent that the backward pass starts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from xaicompile.errors import RuleError
from xaicompile.explained import End, Explained, is_batched
from xaicompile.ir import Builder, Program, Tensor
from xaicompile.ir.logs import log_sum_exp

Reduce = Literal["sum", "mean", "max"]
Contrast = Literal["runner-up", "others"]
Target = int | Sequence[int] | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Question:
    """What is asked of the explained tensor.

    Attributes:
        target: Default of the target input; None: the largest output, or the largest ones.
        reduce: Explain the sum, mean or maximum of a sample's outputs instead of one element.
        maps: How many targets a sample has; None: one, without an axis for it.
        contrast: What the target is held against: the largest of the other outputs, or all others, weighted by their
            softmax.
        normalise: Divide by the explained value, so that it becomes 1.
    """

    target: Target = None
    reduce: Reduce | None = None
    maps: int | None = None
    contrast: Contrast | None = None
    normalise: bool = False

    def check(self) -> None:
        """Refuses what does not go together.

        Raises:
            RuleError: Names the options.
        """
        if self.maps is not None and self.maps < 1:
            raise RuleError(f"--maps {self.maps}: at least one")
        for option, given in (("--maps", self.maps), ("--contrast", self.contrast), ("--target", self.target)):
            if self.reduce is not None and given is not None:
                raise RuleError(f"{option} chooses among outputs, of which --explain-reduce leaves one")
        if self.contrast not in (None, "runner-up", "others"):
            raise RuleError(f"--contrast is runner-up or others, not {self.contrast!r}")


@dataclass
class Seeds:
    """The starts of the backward passes, one a map.

    Attributes:
        each: What is explained, by map.
        stacked: True if the maps get an axis of their own, behind the batch.
        target: Name of the target input, "" if there is none.
        default: The target's default.
    """

    each: list[Explained]
    stacked: bool
    target: str
    default: np.ndarray
    notes: list[str]


def seeds_of(p: Program, end: End, data: Tensor, asked: Question, pool: str | None = None) -> Seeds:
    """Emits the choice of the explained elements and the cotangents that select them.

    A target outside [0, K) selects nothing: cotangent and value are zero. -1 is the largest output; where several maps
    are asked for, -2 is the second largest, and so on. `pool` is the pooling rule of a log-likelihood ratio.
    """
    asked.check()
    if end.ratio and (asked.contrast or asked.reduce):
        raise RuleError("--contrast and --explain-reduce: the log-ratio of a class is a contrast itself")
    b, t = p.builder, end.tensor
    batched = is_batched(t, data)
    notes = [] if batched else [f"'{t.name}' has no batch axis: it is explained as one sample"]
    with b.scope("seed"):
        flat = b.Unsqueeze(t, [1]) if batched and t.rank == 1 else b.Flatten(t, axis=1 if batched else 0)
        count = None if flat.shape is None else flat.shape[1]
        default, name = default_target(asked, count, t), ""
        if asked.reduce in ("sum", "mean"):
            ones = b.expand_like(b.const(np.ones((), t.dtype)), flat)
            weights = [ones if asked.reduce == "sum" else ones / b.CastLike(b.dim(flat, 1), flat)]
        elif asked.reduce == "max":
            weights = [hot(b, b.ArgMax(flat, axis=1, keepdims=0), flat)]
        else:
            name = b.unique("target")
            given = b.outside(name, np.dtype(np.int64), (f"{name}s", asked.maps)[: default.ndim])
            weights = [hot(b, index, flat) for index in indices(b, given, flat, asked.maps)]
        weights = [against(b, w, flat, asked.contrast) for w in weights] if asked.contrast else weights
        batch = (t.shape or (None,))[0] if batched else None
        if end.ratio:
            ratios = [ratio(b, w, flat, pool or "v-act") for w in weights]
            each = [started(b, w, flat, t, asked.normalise, batch, batched, value) for w, value in ratios]
        else:
            each = [started(b, w, flat, t, asked.normalise, batch, batched) for w in weights]
    return Seeds(each, asked.maps is not None, name, default, notes)


def default_target(asked: Question, count: int | str | None, t: Tensor) -> np.ndarray:
    """The default of the target input: [targets], or [targets, maps].

    Raises:
        RuleError: More maps or contrast than there are outputs, or a target that does not fit or is none.
    """
    if isinstance(count, int) and (asked.maps or 1) > count:
        raise RuleError(f"--maps {asked.maps}: '{t.name}' has {count} value{'s' if count > 1 else ''} a sample")
    if asked.contrast and count == 1:
        raise RuleError(f"--contrast: '{t.name}' has one value a sample, and no other to hold it against")
    given = () if asked.target is None else np.ravel(asked.target).tolist()
    outside = next((n for n in given if n < -(asked.maps or 1) or (isinstance(count, int) and n >= count)), None)
    if outside is not None:
        known = count if isinstance(count, int) else "an open number of"
        raise RuleError(f"--target {outside}: '{t.name}' has {known} values a sample, from 0 on")
    if asked.maps is None:
        return np.atleast_1d(np.asarray(-1 if asked.target is None else asked.target, np.int64))
    largest = -1 - np.arange(asked.maps, dtype=np.int64)
    rows = np.atleast_2d(np.asarray(largest if asked.target is None else asked.target, np.int64))
    if rows.ndim != 2 or rows.shape[1] != asked.maps:
        raise RuleError(f"--target: {rows.size} given, but --maps asks for {asked.maps} a sample")
    return rows


def indices(b: Builder, given: Tensor, flat: Tensor, maps: int | None) -> list[Tensor]:
    """The index of each map, [N] or [1]."""
    if maps is None:
        return [b.Where(b.Equal(given, [-1]), b.ArgMax(flat, axis=1, keepdims=0), given)]
    ranked = b.many("TopK", 2, flat, [maps], axis=1)[1]  # [N, maps], the largest first
    found = []
    for k in range(maps):
        wanted = b.Gather(given, b.const(np.asarray(k, np.int64)), axis=1)
        rank = b.Neg(wanted) - 1  # 0 for -1
        inside = b.And(rank >= 0, rank < maps)
        place = b.Unsqueeze(b.Where(inside, rank, [0]), [1])
        at = b.GatherElements(ranked, b.Expand(place, b.Concat(b.dim(ranked, 0), [1], axis=0)), axis=1)
        found.append(b.Where(inside, b.Squeeze(at, [1]), wanted))
    return found


def hot(b: Builder, index: Tensor, flat: Tensor) -> Tensor:
    """[N, K], 1 at each sample's index and 0 elsewhere."""
    count = None if flat.shape is None else flat.shape[1]
    if isinstance(count, int):
        positions = b.const(np.arange(count, dtype=np.int64))
    else:
        scalar = b.Squeeze(b.dim(flat, 1), [0])
        positions = b.Range(b.const(np.asarray(0, np.int64)), scalar, b.const(np.asarray(1, np.int64)))
    chosen = b.Equal(b.Unsqueeze(index, [1]), b.Unsqueeze(positions, [0]))
    return b.Cast(chosen, to=onnx.helper.np_dtype_to_tensor_dtype(flat.dtype))


def against(b: Builder, chosen: Tensor, flat: Tensor, contrast: Contrast) -> Tensor:
    """The weights of the target minus those of what it is held against; nothing where there is no target.

    Against all others they are the gradient of log p / (1 - p) at the logits (spec 9.5).
    """
    taken = chosen > 0.0
    others = b.where(taken, float(np.finfo(flat.dtype).min), flat, like=flat)
    runner_up = contrast == "runner-up"
    rival = hot(b, b.ArgMax(others, axis=1, keepdims=0), flat) if runner_up else b.Softmax(others, axis=1)
    return chosen - rival * b.op("ReduceMax", chosen, [1], keepdims=1)


def ratio(b: Builder, chosen: Tensor, flat: Tensor, pool: str) -> tuple[Tensor, Tensor]:
    """log p/(1-p) = z_k - log sum exp z_j over the others, stable at p = 1, and the weights of the logits (spec 9.5).

    V-act: 1 at k and -p_j at the others, the gradient; V-out: p_j l/h_j of each h_j = z_k - z_j; winner: the largest
    of the others alone. A target that is none has ratio 0.
    """
    asked = b.op("ReduceMax", chosen, [1], keepdims=1)
    others = b.where(chosen > 0.0, float(np.finfo(flat.dtype).min), flat, like=flat)
    own = b.sum_axes(flat * chosen, [1], keepdims=True)
    value = (own - log_sum_exp(b, others)) * asked
    if pool == "winner":
        weights = (chosen - hot(b, b.ArgMax(others, axis=1, keepdims=0), flat)) * asked
    else:
        p = b.Softmax(others, axis=1) * asked
        if pool == "v-out":
            h = own - flat
            p = p * value / (h + b.where(h < 0.0, -1e-9, 1e-9, like=h))
        weights = chosen * b.sum_axes(p, [1], keepdims=True) - p
    return weights, b.Squeeze(value, [1])


def started(
    b: Builder,
    weights: Tensor,
    flat: Tensor,
    t: Tensor,
    normalise: bool,
    batch: int | str | None,
    batched: bool,
    exact: Tensor | None = None,
) -> Explained:
    """The scalar that the weights make of each sample, and where its backward pass starts.

    `exact` is the explained scalar where it is another; what the weights make beyond it goes to the ledger.
    """
    value = b.sum_axes(flat * weights, [1])
    surplus, value = (None, value) if exact is None else (value - exact, exact)
    if normalise:
        nothing = b.Equal(value, 0.0)
        inverse = b.where(nothing, 0.0, 1.0 / b.where(nothing, 1.0, value, like=value), like=value)
        weights, value = weights * b.Unsqueeze(inverse, [1]), value * inverse
        surplus = None if surplus is None else surplus * inverse
    return Explained(b.reshape_like(weights, t), value, batch, batched, surplus)
