"""Explanations that evaluate a rule set at many points: paths, noise, occlusion. Importing this fills their table."""

from collections.abc import Sequence

import numpy as np

from xaicompile import registry
from xaicompile.composite import Composite
from xaicompile.direct import Made, Wanted
from xaicompile.errors import RuleError
from xaicompile.explained import End, Given
from xaicompile.half import held
from xaicompile.ir import Program
from xaicompile.methods import noise, occlusion, path, randomly, reference
from xaicompile.methods.job import Job
from xaicompile.outputs import Outputs, relevance_outputs, stacked
from xaicompile.ruled import Ruled
from xaicompile.seeds import Question, seeds_of

__all__ = ["by_method", "noise", "occlusion", "path", "randomly", "reference", "smoothed"]


def by_method(
    p: Program, rules: Composite, end: End, inputs: Sequence[Given], asked: Question, wanted: Wanted, chunk: int | None
) -> Made:
    """Emits the explanation of a rule set with a method, once for each map that is asked for.

    Raises:
        RuleError: Something is wanted that a method does not give.
    """
    for option, given in (("--ledger", wanted.books), ("--layers", wanted.layers), ("--concepts", wanted.concepts)):
        if given:
            raise RuleError(f"{option}: rule '{rules.name}' explains inputs only, by {rules.method}")
    seeds = seeds_of(p, end, inputs[0].tensor, asked)
    made: list[Outputs] = []
    chosen = Ruled([], {}, [])
    extra: dict[str, np.ndarray] = {}
    for seed in seeds.each:
        job = Job(p, rules, end, inputs, seed, chunk=chunk or 1)
        found = {name: held(p.builder, t) for name, t in registry.METHODS[rules.method](job).items()}
        made.append(relevance_outputs(p.builder, inputs, [], found))
        chosen, extra = job.ruled or chosen, extra | job.extra
        seeds.notes += [note for note in job.notes if note not in seeds.notes]
    outputs = stacked(p.builder, made, int(seeds.each[0].batched)) if seeds.stacked else made[0]
    return Made(outputs, seeds, chosen, extra)


def smoothed(rules: Composite, samples: int | None, sigma: float | None) -> None:
    """Applies a rule set to noisy inputs and averages.

    Raises:
        RuleError: The rule set has a method that can't be smoothed.
    """
    if samples is None:
        if sigma is not None:
            raise RuleError("--sigma is the width of the noise of --smooth N; give that, too")
        return
    over = {"": "smoothgrad", "integrated-gradients": "smooth-integrated-gradients"}
    if rules.method not in over:
        raise RuleError(f"--smooth: rule '{rules.name}' is a method of its own")
    rules.method = over[rules.method]
    rules.set({"samples": samples, **({} if sigma is None else {"sigma": sigma})})
