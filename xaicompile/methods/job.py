"""What a method is given, and the loop over its points.

The loop is a Scan: one pass forward and back in each step, whatever the number of steps, with the results summed up on
the way. So memory does not grow with the steps, and the nodes stand in the file once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xaicompile.backward import Ledger, Tap, backward
from xaicompile.composite import Composite
from xaicompile.errors import RuleError
from xaicompile.explained import End, Explained, Given
from xaicompile.facts import Facts
from xaicompile.images import channels_last, read_arrays
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.ir.steps import StepBuilder, replayed
from xaicompile.methods.chunks import check_chunks, in_chunks, joined, parted, size_in, usual
from xaicompile.outputs import Outputs, result_of
from xaicompile.passes import control
from xaicompile.ruled import Ruled, ruled

MOST = 1_000_000  # steps, samples


@dataclass
class Job:
    """One explanation by a method.

    Attributes:
        starts: The tensors whose relevance is asked for.
        seed: What is explained.
        extra: Defaults of new inputs, by name.
        chunk: How many points are evaluated in one pass.
        free: Whether nobody said how many, so that a loop over points may choose.
        fed: Inputs made so far, by parameter and start; all maps share them.
        ruled: The rules of the steps, once they are chosen.
        books: Whether a ledger is kept, by methods that can.
        outputs: What is given out, by methods whose relevance is not that of one input.
    """

    p: Program
    rules: Composite
    end: End
    inputs: Sequence[Given]
    seed: Explained
    notes: list[str] = field(default_factory=list)
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    chunk: int = 1
    free: bool = False
    fed: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    ruled: Ruled | None = None
    books: bool = False
    outputs: Outputs = field(default_factory=dict)

    @property
    def starts(self) -> list[Tensor]:
        """Where the explanation ends."""
        return [t for given in self.inputs for t in given.starts]

    def parameter(self, key: str) -> Any:
        """A parameter of the method."""
        return self.rules.accepted[key]

    def count(self, key: str) -> int:
        """A parameter that is a whole number of at least 1.

        Raises:
            RuleError: It is not.
        """
        value = self.parameter(key)
        if value != int(value) or value < 1:
            raise RuleError(f"parameter '{key}' is {value}; it must be a whole number of at least 1")
        if value > MOST:
            raise RuleError(f"parameter '{key}' is {value}; it must not be larger than {MOST}")
        return int(value)

    def rng(self) -> np.random.Generator:
        """Random numbers, the same for the same seed on every machine.

        Raises:
            RuleError: The seed is no whole number.
        """
        seed = self.parameter("seed")
        if seed != int(seed):
            raise RuleError(f"parameter 'seed' is {seed}; it must be a whole number")
        return np.random.default_rng(int(seed))

    def sample_shape(self, t: Tensor) -> tuple[int, ...]:
        """The shape of one sample, for numbers that are drawn beforehand.

        Raises:
            RuleError: It is not known.
        """
        dims = (t.shape or ())[1:] if self.seed.batched else t.shape or ()
        known = tuple(d for d in dims if isinstance(d, int))
        if t.shape is None or len(known) != len(dims):
            raise RuleError(f"rule '{self.rules.name}' draws numbers for each value of {t!r}, its sizes must be known")
        return known

    def given(self, key: str, t: Tensor) -> Tensor:
        """A baseline or a root: zero, each sample's own mean (per channel), a number, a file, or an input `<key>`.

        Raises:
            RuleError: The file's array does not fit.
        """
        b, value = self.p.builder, self.parameter(key)
        if value == "zero":
            return b.const(np.zeros((), t.dtype))
        if value == "mean":
            rank = t.rank or 2
            axes = [1, 2] if channels_last(t.shape) else list(range(2, rank)) if rank > 2 else [rank - 1]
            return b.mean_axes(t, axes)
        if value == "input":
            if (key, t.name) not in self.fed:
                self.fed[key, t.name] = self.feed(key, t)
            return self.fed[key, t.name]
        return b.const(array_of(key, value, t))

    def feed(self, key: str, t: Tensor, dtype: Any = None) -> Tensor:
        """A new input, zero unless it is fed: shaped like a tensor, of any size along axis 0 and wherever that is open.

        Raises:
            RuleError: The tensor's rank is not known.
        """
        dtype = np.dtype(dtype or t.dtype)
        if t.shape is None:
            raise RuleError(f"input '{key}': the rank of {t!r} must be known")
        p, name = self.p, self.p.builder.unique(key)
        sizes = [d if i and isinstance(d, int) else f"{name}_{i}" if i else f"{name}s" for i, d in enumerate(t.shape)]
        self.extra[name] = np.zeros([d if isinstance(d, int) else 1 for d in sizes], dtype)
        p.tensors[name] = p.builder.outside(name, dtype, tuple(sizes))
        return p.tensors[name]

    def away(self, t: Tensor, base: Tensor, multiplier: Tensor) -> Tensor:
        """A start's difference to a baseline times a multiplier, of the start's shape."""
        return self.p.builder.op("Mul", t - base, multiplier, shape=t.shape)

    def zeros(self, t: Tensor) -> Tensor:
        """Zeros of a start's shape, to sum up in."""
        return self.p.builder.zeros_like(t)


def array_of(key: str, value: Any, t: Tensor, several: bool = False) -> np.ndarray:
    """Numbers, or those of a file, that broadcast over a tensor.

    Args:
        several: Whether axis 0 may have any size.

    Raises:
        RuleError: They don't.
    """
    if isinstance(value, str | os.PathLike):
        if not Path(value).is_file():
            raise RuleError(f"parameter '{key}' is zero, mean, input, a number or a .npy or .npz file, not {value!r}")
        read = read_arrays(value)
        if not isinstance(read, np.ndarray) and not read:
            raise RuleError(f"parameter '{key}': '{value}' holds no array")
        numbers = read if isinstance(read, np.ndarray) else read.get(t.name, next(iter(read.values())))
    else:
        numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise RuleError(f"parameter '{key}': not all of its values are finite real numbers")
    if numbers.ndim > (t.rank or numbers.ndim) or not numbers.size:
        raise RuleError(f"parameter '{key}': numbers of shape {list(numbers.shape)} don't fit {t!r}")
    for size, d in zip(numbers.shape[::-1], (t.shape or ())[::-1], strict=False):
        if isinstance(d, int) and size not in (1, d):
            raise RuleError(f"parameter '{key}': numbers of shape {list(numbers.shape)} don't fit {t!r}")
    whole = (1,) * ((t.rank or 0) - numbers.ndim) + numbers.shape
    for axis, (size, d) in enumerate(zip(whole, t.shape or (), strict=False)):
        if size != 1 and not isinstance(d, int) and not (several and axis == 0):
            what = f"{size} samples" if axis == 0 else f"a size of {size} along axis {axis}"
            fed = "" if several else f", or let --set {key}=input take it when the model runs"
            raise RuleError(
                f"parameter '{key}' has {what}, where {t!r} is open: it holds one for all, of size 1 there; fix the "
                f"model's sizes{fed}"
            )
    return numbers.astype(t.dtype or np.float32)


Result = Mapping[str, Tensor]
Points = Callable[[StepBuilder, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
Summed = Callable[[StepBuilder, "Step"], Sequence[Tensor]]


@dataclass(frozen=True)
class Step:
    """One evaluation.

    Attributes:
        args: What this step was given.
        clean: The starts as they are.
        at: Where the graph is evaluated.
        end: The explained tensor there.
        found: The rule set's result for each start there; empty if none was asked for.
        sums: What the steps before have summed up.
    """

    args: Sequence[Tensor]
    clean: Sequence[Tensor]
    at: Sequence[Tensor]
    end: Tensor
    found: Sequence[Tensor]
    sums: Sequence[Tensor]


def over_steps(
    job: Job,
    scanned: Sequence[Tensor],
    sums: Sequence[Tensor],
    points: Points,
    summed: Summed,
    kind: str | None = "cotangent",
) -> tuple[Tensor, ...]:
    """Evaluates the graph at many points.

    Args:
        job: What is explained.
        scanned: Along axis 0 what each step is given.
        sums: Where the sums start.
        points: The starts' values in a step.
        summed: What a step adds to each sum.
        kind: "cotangent" or "relevance", for what the rule set finds in each step; None: the graph runs forward only.

    Returns:
        The sums after the last step.
    """
    p, starts = job.p, job.starts
    views = between(p, starts, job.end.tensor)
    if job.free:
        job.chunk = usual(job, views, (scanned[0].static or (1,))[0])
    chunk = job.chunk
    if chunk > 1:
        scanned = [in_chunks(p.builder, t, chunk) for t in scanned]
    if chunk > 1 and not job.free:
        check_chunks(job, views)
    b = StepBuilder(p.builder)
    with b.scope("step"):
        before = [b.input("sum", t.dtype, t.shape) for t in sums]
        args = [b.input("arg", t.dtype, (t.shape or (None,))[1:]) for t in scanned]
        clean, whole = [b.adopt(t) for t in starts], [b.unplanned(args[0]), *args[1:]]
        each = [whole] if chunk == 1 else [[b.Gather(a, np.asarray(k), axis=0) for a in whole] for k in range(chunk)]
        placed = [points(b, given, clean) for given in each]
        at = [joined(b, job, pieces, t) for pieces, t in zip(zip(*placed, strict=True), clean, strict=True)]
        known = {t.name: x for t, x in zip(starts, at, strict=True)}
        made = replayed(b, views, known, lambda size: size_in(job, size))
        end = known[job.end.tensor.name]
        sub = program(p, b, made, at, end)
        found = explained_in(job, sub, at, end, kind) if kind is not None else []
        pieces = [parted(b, t, chunk) for t in (end, *found)]
        now: Sequence[Tensor] = before
        for k in range(chunk):
            step = Step(each[k], clean, placed[k], pieces[0][k], [r[k] for r in pieces[1:]], now)
            now = [s + part for s, part in zip(now, summed(b, step), strict=True)]
        ends = b.ends(now)
    body = b.graph("steps", [*before, *args], ends)
    types = [(t.dtype, t.shape) for t in sums]
    return p.builder.typed("Scan", [*sums, *scanned], types, body=body, num_scan_inputs=len(scanned))


def program(p: Program, b: Builder, views: Sequence[View], starts: Sequence[Tensor], end: Tensor) -> Program:
    """Some views as a program of their own, whose explanation a builder emits."""
    sub = Program(p.source, p.opset, ())
    sub.builder, sub.domains, sub.views, sub.outputs = b, p.domains, list(views), [end]
    sub.tensors = {t.name: t for v in sub.views for t in (*v.x, *v.y) if t is not None}
    sub.tensors |= {t.name: t for t in (*starts, end)}
    return sub


def as_it_stands(p: Program, b: StepBuilder, views: Sequence[View], starts: Sequence[Tensor], end: Tensor) -> Program:
    """The forward pass as it stands outside a loop's body, to be explained in it: only cotangents change there."""
    read = [v.varied(x=[t and b.adopt(t) for t in v.x], y=[t and b.adopt(t) for t in v.y]) for v in views]
    return program(p, b, read, [b.adopt(t) for t in starts], b.adopt(end))


def explained_in(
    job: Job,
    sub: Program,
    at: Sequence[Tensor],
    end: Tensor,
    kind: str,
    cotangent: Tensor | None = None,
    ledger: Ledger | None = None,
    taps: Mapping[str, Tap] | None = None,
    inner: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The rule set's result for each start, in the body; the cotangent is the explained scalar's if none is given.

    `inner` are tensors whose result is given in place of the starts'.
    """
    b = sub.builder
    assert isinstance(b, StepBuilder)
    names = [t.name for t in at]
    control.prepare(sub, {end.name})
    sub.tensors |= {t.name: t for v in sub.views for t in (*v.x, *v.y) if t is not None}
    facts = Facts(sub, names)
    job.ruled = ruled(sub, facts, job.rules, end)
    if cotangent is None:
        cotangent = joined(b, job, [b.adopt(job.seed.cotangent)] * job.chunk, job.seed.cotangent)
    wanted = inner or at
    flows = backward(sub, facts, {end.name: cotangent}, [t.name for t in wanted], job.ruled.pick, taps, ledger)
    return [result_of(sub, kind, t, flows[t.name]) for t in wanted]


def between(p: Program, starts: Sequence[Tensor], end: Tensor) -> list[View]:
    """The views that the end needs and that depend on the starts, in graph order."""
    reached, found = {t.name for t in starts}, []
    for view in p.views:
        makes = {y.name for y in view.y if y is not None and y.value is None}
        if makes - reached and any(t is not None and t.name in reached for t in (*view.x, *view.captures)):
            found.append(view)
            reached |= makes
    wanted, needed = {end.name}, []
    for view in reversed(found):
        if any(y is not None and y.name in wanted for y in view.y):
            needed.append(view)
            wanted.update(t.name for t in (*view.x, *view.captures) if t is not None)
    return needed[::-1]


def score(b: StepBuilder, job: Job, end: Tensor) -> Tensor:
    """The explained scalar of each sample in a step, [N] (or [1])."""
    weighted = end * b.adopt(job.seed.cotangent)
    if job.seed.batched:
        return b.sum_axes(weighted, list(range(1, end.rank or 2)))
    return b.Reshape(b.op("ReduceSum", weighted, keepdims=0), [1])
