"""What an emitted model gives out beside the prediction: relevance, layers, the ledger; one map or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xaicompile import ir, tokens
from xaicompile.backward import Flow, Ledger
from xaicompile.explained import Explained, Given, total_per_sample
from xaicompile.half import held, narrowed, widened
from xaicompile.ir import Builder, Program, Tensor
from xaicompile.samples import Samples

Outputs = dict[str, Tensor]


def result_of(p: Program, kind: str, t: Tensor, flow: Flow) -> Tensor:
    """What is given out for a tensor: its relevance, or its cotangent."""
    with p.builder.scope(t.name):
        result = flow.cotangent(p.builder, t) if kind == "cotangent" else flow.relevance(p.builder, t)
        result.shape = ir.build.merged(t.shape, result.shape)
        return result


def input_names(inputs: Sequence[Given]) -> dict[str, str]:
    """The relevance output of each explained input."""
    return {g.tensor.name: "relevance" if len(inputs) == 1 else f"relevance_{g.tensor.name}" for g in inputs}


def relevance_outputs(
    b: Builder, inputs: Sequence[Given], layers: Sequence[Tensor], results: Mapping[str, Tensor]
) -> Outputs:
    """The relevance of the explained inputs, then that of the layers."""
    outputs, names = Outputs(), input_names(inputs)
    for given in inputs:
        t = results.get(given.tensor.name)
        if t is None:
            t = tokens.per_token(b, given.tensor, given.starts, [results[s.name] for s in given.starts])
        outputs[names[given.tensor.name]] = t
    return outputs | {f"relevance_{t.name}": results[t.name] for t in layers}


def ledger_outputs(b: Builder, seed: Explained, kept: Ledger, samples: Samples) -> tuple[Outputs, list[str]]:
    """`explained` [N], `ledger` [N] and `ledger_by_node` [N, nodes], and the nodes' names."""
    columns, names = [], []
    for node, amounts in reversed(kept.items()):
        if amounts:
            with b.scope(node):
                sums = [total_per_sample(b, a.amount, seed, samples.axis(node, a.amount)) for a in amounts]
                columns.append(b.Unsqueeze(held(b, b.add_all(sums)), [1]))
                names.append(node)
    if not columns:
        columns, names = [b.Unsqueeze(seed.value * 0.0, [1])], ["none"]
    by_node = joined(b, columns)
    whole = narrowed(b, b.sum_axes(widened(b, by_node), [1]), seed.value)
    return {"explained": seed.value, "ledger": whole, "ledger_by_node": by_node}, names


def joined(b: Builder, columns: Sequence[Tensor]) -> Tensor:
    """Columns side by side."""
    return b.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]


def stacked(b: Builder, maps: Sequence[Outputs], axis: int) -> Outputs:
    """The outputs of several maps, each along an axis of its own."""
    return {name: b.Concat(*(b.Unsqueeze(outputs[name], [axis]) for outputs in maps), axis=axis) for name in maps[0]}


def named(b: Builder, t: Tensor, name: str) -> Tensor:
    """The tensor as an output of a certain name (with a number behind it if the model has that name already)."""
    out = t if t.name in b.made else b.op("Identity", t)
    while out.name in b.outputs:  # one tensor under several names
        out = b.op("Identity", out)
    b.rename(out, b.unique(name))
    return out
