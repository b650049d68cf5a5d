"""Explanations that evaluate a rule set at many points: paths, noise, occlusion. Importing this fills their table."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xaicompile import registry
from xaicompile.composite import Composite
from xaicompile.direct import Made, Wanted
from xaicompile.errors import RuleError
from xaicompile.explained import End, Given
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Program, Tensor
from xaicompile.methods import given, noise, occlusion, path, products, randomly, reference, second, similarity, walks
from xaicompile.methods.job import Job
from xaicompile.outputs import Outputs, relevance_outputs, stacked
from xaicompile.passes import control
from xaicompile.ruled import Ruled
from xaicompile.samples import Samples
from xaicompile.seeds import Question, Seeds, seeds_of
from xaicompile.timefirst import behind_time, seeds_behind_time

__all__ = [
    "by_method",
    "given",
    "noise",
    "occlusion",
    "path",
    "products",
    "randomly",
    "reference",
    "second",
    "similarity",
    "smoothed",
    "walks",
]


WITHOUT_TARGET = ("bilrp",)
SECOND_ORDER = ("hessian-x-input", "hessian-vector-product", "integrated-hessians")  # of outputs as they are
WHEREVER = ("integrated-gradients", "taylor", "deeplift")  # find each sample's own wherever samples lie


def by_method(
    p: Program, rules: Composite, end: End, inputs: Sequence[Given], asked: Question, wanted: Wanted, chunk: int | None
) -> Made:
    """Emits the explanation of a rule set with a method, once for each map that is asked for.

    Raises:
        RuleError: Something is wanted that a method does not give.
    """
    alone = rules.method in WITHOUT_TARGET
    if alone and (asked.target, asked.reduce, asked.maps, asked.contrast, asked.normalise) != (None,) * 4 + (False,):
        raise RuleError(f"rule '{rules.name}' explains all of an embedding: it takes no target, maps or contrast")
    asked = Question(reduce="sum") if alone else asked
    if rules.method in SECOND_ORDER and (asked.normalise or asked.contrast == "others"):
        raise RuleError(f"rule '{rules.name}' explains outputs as they are: no --normalise, no --contrast others")
    for option, asked_for in (
        ("--ledger", wanted.books and not alone),
        ("inspect --data", wanted.audit and alone),
        ("--layers", wanted.layers),
        ("--concepts", wanted.concepts),
    ):
        if asked_for:
            raise RuleError(f"{option}: rule '{rules.name}' explains inputs only, by {rules.method}")
    samples = time_first(p, end, inputs)
    if samples is None:
        seeds = seeds_of(p, end, inputs[0].tensor, asked)
    else:
        seeds = one_sample(p, rules, end, inputs[0], asked, samples)
    made: list[Outputs] = []
    fed: dict[tuple[str, str], Tensor] = {}
    chosen = Ruled([], {}, [])
    extra: dict[str, np.ndarray] = {}
    for seed in seeds.each:
        job = Job(p, rules, end, inputs, seed, chunk=chunk or 1, free=chunk is None, fed=fed, books=wanted.books)
        found = {name: held(p.builder, t) for name, t in registry.METHODS[rules.method](job).items()}
        made.append(job.outputs or relevance_outputs(p.builder, inputs, [], found))
        chosen, extra = job.ruled or chosen, extra | job.extra
        seeds.notes += [note for note in job.notes if note not in seeds.notes]
    outputs = stacked(p.builder, made, int(seeds.each[0].batched)) if seeds.stacked else made[0]
    pairs = {x: t.name for (key, x), t in fed.items() if key == similarity.OTHER}
    return Made(outputs, seeds, chosen, extra, {"pairs": pairs} if pairs else {})


def time_first(p: Program, end: End, inputs: Sequence[Given]) -> Samples | None:
    """Where the samples are, if axis 0 of the inputs is time; else None."""
    facts = Facts(p, [t.name for given in inputs for t in given.starts])
    views = control.on_the_way(p, facts, [end.tensor])
    control.open_bodies(p, facts, views)
    return behind_time(views, facts, inputs, end.tensor)


def one_sample(p: Program, rules: Composite, end: End, given: Given, asked: Question, samples: Samples) -> Seeds:
    """The seeds of a model that reads time first: to the method all is one sample.

    Raises:
        RuleError: The method would mix several samples.
    """
    data, alone = given.tensor, (given.starts[0].shape or (None, None))[1] == 1
    if rules.method not in WHEREVER and not (alone and rules.method != "shap-gradient"):
        fixed = "" if rules.method == "shap-gradient" else "fix the model's batch at 1, or "
        raise RuleError(
            f"{rules.method}: axis 0 of '{data.name}' is time, and the samples along axis 1 would be taken for "
            f"one; {fixed}use {', '.join(WHEREVER[:2])}, a gradient or an LRP rule, which explain each by itself"
        )
    seeds = seeds_behind_time(p, end, data, asked, rules.pool, samples, by_axis_0=False)
    seeds.each = [replace(seed, batched=False) for seed in seeds.each]
    return seeds


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
