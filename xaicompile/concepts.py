"""Concept-conditional relevance (CRP, Achtibat et al. 2023): channels of inner layers as concepts.

A mask on a layer's channels lets only the chosen ones pass in the backward pass, so that the relevance of the input is
that of these concepts; the largest sums over a channel say which concepts mattered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xaicompile.backward import Flow, Ledger, Tap
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.ir import Builder, Tensor
from xaicompile.registry import Absorbed, info

SPATIAL = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}


@dataclass(frozen=True)
class Layer:
    """A tensor whose channels are concepts.

    Attributes:
        axis: The axis of the channels.
        count: How many channels there are.
    """

    tensor: Tensor
    axis: int
    count: int


@dataclass(frozen=True)
class Mask:
    """The input that says how much of each concept passes: [concept sets, channels], by default all of each."""

    layer: Layer
    given: Tensor

    @property
    def default(self) -> np.ndarray:
        """Ones."""
        return np.ones((1, self.layer.count), self.layer.tensor.dtype)


def layer_of(facts: Facts, t: Tensor) -> Layer:
    """The channels of a tensor: axis 1, or the last axis of a sequence that no convolution makes.

    Raises:
        RuleError: The tensor has no axis of channels of known size.
    """
    axis = 1 if t.rank is None or t.rank != 3 or convolved(facts, t) else 2
    count = (t.shape or ())[axis] if t.rank is not None and t.rank > axis else None
    if not isinstance(count, int):
        raise RuleError(f"--concepts: {t!r} has no axis of channels of known size")
    return Layer(t, axis, count)


def convolved(facts: Facts, t: Tensor) -> bool:
    """True if a convolution makes the tensor, seen through activations and sums."""
    view = facts.producer(t)
    while view is not None and view.op not in SPATIAL and (info(view).derivative or view.op in ("Add", "Sum")):
        view = facts.producer(view.inp(0))
    return view is not None and view.op in SPATIAL


def masks_of(b: Builder, layers: Sequence[Layer]) -> list[Mask]:
    """An input `concepts`, or `concepts_<layer>` where there are several."""
    made = []
    for layer in layers:
        name = b.unique("concepts" if len(layers) == 1 else f"concepts_{layer.tensor.name}")
        made.append(Mask(layer, b.outside(name, np.dtype(layer.tensor.dtype), (f"{name}_sets", layer.count))))
    return made


def taps_of(b: Builder, masks: Sequence[Mask], arrived: dict[str, Flow], kept: Ledger | None) -> Mapping[str, Tap]:
    """Lets pass what the masks say. `arrived` is filled with what came to each layer; the rest goes to the ledger."""

    def tap(mask: Mask) -> Tap:
        def masked(t: Tensor, flow: Flow) -> Flow:
            arrived[t.name] = flow
            inserted = [i for i in range(1, t.rank or 2) if i != mask.layer.axis]
            passes = b.Unsqueeze(mask.given, inserted) if inserted else mask.given
            if kept is not None:
                rest = flow.relevance(b, t) * (1.0 - passes)
                kept.setdefault(mask.given.name, []).append(Absorbed(rest, "concepts"))
            return Flow(*(None if part is None else part * passes for part in (flow.c, flow.r)))

        return masked

    return {mask.layer.tensor.name: tap(mask) for mask in masks}


def top_outputs(b: Builder, layers: Sequence[Layer], relevance: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """`concept_relevance_<layer>` and `concept_ids_<layer>` [N, k]: the channels with the largest relevance.

    Raises:
        RuleError: A layer has fewer channels.
    """
    outputs = {}
    for layer in layers:
        name, rank = layer.tensor.name, layer.tensor.rank or 2
        if not 1 <= k <= layer.count:
            raise RuleError(f"--top-concepts {k}: '{name}' has {layer.count} channels")
        with b.scope(name):
            sums = b.sum_axes(relevance[name], [i for i in range(1, rank) if i != layer.axis])
            values, places = b.many("TopK", 2, sums, [k], axis=1)
        outputs[f"concept_relevance_{name}"] = values
        outputs[f"concept_ids_{name}"] = places
    return outputs
