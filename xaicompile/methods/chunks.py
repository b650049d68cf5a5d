"""Several points in one pass: put behind each other as one batch, and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir import Builder, Tensor, View
from xaicompile.ir.graph import Dim
from xaicompile.passes import control
from xaicompile.samples import Samples, back, find, front, shaped

if TYPE_CHECKING:
    from xaicompile.methods.job import Job

USUAL = 2  # weights are read once for both; memory: below 3 times the gradient's as measured, up to 4.8 with 4
LOOPS = ("If", "Loop", "Scan")
FILLED = ("ConstantOfShape", "Expand")  # the same values for each sample, however many there are


def usual(job: Job, views: Sequence[View], steps: int) -> int:
    """How many points one pass evaluates where nobody said: 2 where samples are proven to stay apart, else 1."""
    return 1 if steps % USUAL or refusal(job, views) or not apart_in(job, views) else USUAL


def apart_in(job: Job, views: Sequence[View]) -> bool:
    """True if it is proven that no node lets samples meet or counts on how many there are."""
    p, end, batches = job.p, job.end.tensor, {(t.shape or (None,))[0] for t in job.starts}
    if len(job.starts) > 1 and (len(batches) > 1 or None in batches):
        return False
    found, decided = samples_of(job), shaped(p.views)
    way, axes = list(found.views.values()), found.axes
    beside = [v for v in views if all(v is not other for other in way)]
    counts = [y for v in beside if v.op not in FILLED for y in v.y if y is not None and y.is_float]
    values = [y for v in beside for y in v.y if y is not None and y.name not in decided]
    if counts or values or any(v.op in LOOPS for v in views):
        return False
    sizes = [size_along(t, axes[t.name]) for v in way for t in v.y if t is not None and t.name in axes]
    return axes.get(end.name) == back(end, 0) and not any(isinstance(size, int) for size in sizes)


def samples_of(job: Job) -> Samples:
    """Where samples are on the way from the explained inputs to what is explained, and whether they meet."""
    facts = Facts(job.p, [t.name for t in job.starts])
    return find(control.on_the_way(job.p, facts, [job.end.tensor]), facts, job.starts, job.end.tensor)


def size_along(t: Tensor, axis: int) -> Dim:
    """Size or symbol of an axis, counted from the back."""
    return None if t.shape is None else t.shape[front(t, axis)]


def refusal(job: Job, views: Sequence[View]) -> str:
    """Why several points can't be put behind each other as a batch, "" if they can."""
    starts, made = job.starts, {t.name for t in job.starts} | {y.name for v in views for y in v.y if y is not None}
    read = [t for v in views for t in (*v.x, *v.captures) if t is not None and t.name not in made]
    other = next((t for t in read if not t.constant and t.value is None), None)
    if not job.seed.batched:
        return "axis 0 is no batch here"
    if any(t.shape is None or isinstance(t.shape[0], int) for t in starts):
        return "the model's batch is fixed"
    return f"'{other.name}' would have to be repeated" if other is not None else ""


def check_chunks(job: Job, views: Sequence[View]) -> None:
    """Refuses several points at a time where they can't be put behind each other as a batch, or would meet there.

    Where it is only not proven that they stay apart, as in the attention of some exporters, there is a note.

    Raises:
        RuleError: Says why.
    """
    samples = samples_of(job)
    why = refusal(job, views) or (samples.mixed if samples.met else "")
    if why:
        raise RuleError(f"--chunk {job.chunk}: {why}; use --chunk 1")
    if samples.mixed:
        job.notes.append(f"--chunk {job.chunk} holds if samples stay apart, which is not proven: {samples.mixed}")


def in_chunks(b: Builder, scanned: Tensor, chunk: int) -> Tensor:
    """What the steps are given, [steps / chunk, chunk, ...].

    Raises:
        RuleError: The chunks don't fill the steps.
    """
    steps = (scanned.static or (1,))[0]
    if steps % chunk:
        raise RuleError(f"--chunk {chunk}: {steps} steps can't be done {chunk} at a time")
    return b.Reshape(scanned, [steps // chunk, chunk, *(scanned.static or (1,))[1:]])


def joined(b: Builder, job: Job, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
    """The points of a chunk behind each other, as one batch, whose size is one symbol: so sizes are known to agree."""
    alike = [b.op("Identity", x, shape=like.shape) for x in pieces]
    if len(alike) == 1:
        return alike[0]
    return b.op("Concat", *alike, axis=0, shape=(several(job), *(like.shape or ())[1:]))


def batch_of(job: Job) -> str:
    """The symbol of the batch that is explained."""
    size = (job.starts[0].shape or (None,))[0]
    return size if isinstance(size, str) else job.starts[0].name


def several(job: Job) -> str:
    """The symbol of a chunk's batch."""
    return f"{job.chunk}_{batch_of(job)}"


def size_in(job: Job, size: Dim) -> Dim:
    """What a size of the model, or its symbol, is in a chunk: what depends on the batch has another symbol there.

    Sizes that agree in any run of the model agree in that of a chunk, too.
    """
    others = {d for t in job.p.inputs for d in (t.shape or ())[1:]} - {batch_of(job)}
    return size if job.chunk == 1 or not isinstance(size, str) or size in others else f"{job.chunk}_{size}"


def parted(b: Builder, t: Tensor, chunk: int) -> Sequence[Tensor]:
    """What belongs to each point of a chunk."""
    return [t] if chunk == 1 else b.many("Split", chunk, t, axis=0, num_outputs=chunk)
