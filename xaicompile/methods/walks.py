"""GNN-LRP: relevant walks in graph networks (Schnake et al. 2022; spec section 11).

A walk goes from node to node, one step in each interaction layer. Its relevance is what a backward pass brings to its
first node if only its nodes pass behind each layer. One Scan goes over the walks; the forward pass and the rules'
denominators stand outside it and are worked out once.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xaicompile.backward import Flow, Tap, backward
from xaicompile.composite import Composite, Entry
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.ir.steps import StepBuilder
from xaicompile.methods import edges
from xaicompile.methods.job import Job, Result, as_it_stands, explained_in
from xaicompile.methods.structure import Interaction, as_if_fed, interactions, made_of, names_of
from xaicompile.outputs import relevance_outputs, result_of
from xaicompile.passes import canonical
from xaicompile.registry import method
from xaicompile.ruled import ruled

Masks = Callable[[StepBuilder, Tensor], Sequence[Tensor]]


@method("gnn-lrp", structure="")
def gnn_lrp(job: Job) -> Result:
    """Relevance of the nodes' features, of nodes, of walks and of what happens inside sets of nodes.

    The explained input is [nodes, features], or [N, nodes, features] for several graphs. With T interaction layers,
    an input `walks` [walks, T + 1] names the nodes of each walk, first the one whose features are read; -1 stands for
    any node. An input `subgraph` [sets, nodes] weighs the nodes of each set: 1 inside, 0 outside.

    Gives `relevance`, `node_relevance` [nodes], `walk_relevance` [walks] and `subgraph_relevance` [sets], the sum over
    all walks inside each set, and `edge_relevance` [ops, receivers, senders], or [ops, edges] for lists of edges, of
    each op that passes messages: one a layer, as a rule. All but the first have [N, ...] in front for several graphs.
    What a layer hands on beside its structure (x + A x) is no edge; edges from a sender and that sum to its relevance.

    Raises:
        RuleError: No such structure, no interaction layer, an explained input of another rank, or chunks.
    """
    if job.chunk > 1:
        raise RuleError(f"--chunk {job.chunk}: gnn-lrp does walks and sets of nodes one by one")
    p, b, start = job.p, job.p.builder, only_start(job)
    names = names_of(p, job.parameter("structure"))
    as_if_fed(p, names)
    canonical.run(p, job.end.tensor.name)
    if messages_first(p, start, names):
        canonical.run(p, job.end.tensor.name)
    facts = Facts(p, [start.name])
    layers = interactions(p, facts, start, job.end.tensor, names)
    job.notes.append(f"interaction layers: {len(layers)} ({', '.join(str(layer.mixes[-1].view) for layer in layers)})")
    mixes = [glob.escape(mix.view.name) for layer in layers for mix in layer.mixes]
    unsplit = Entry("default", {"name": mixes}, {}, "messages by structure")
    job.rules = replace(job.rules, entries=[unsplit, *job.rules.entries])
    chosen = ruled(p, facts, job.rules, job.end.tensor)
    passing, of_edges = edges.passing(facts, layers), dict[str, Tensor]()
    taps = edges.watching(b, passing, of_edges, start.rank == 3)
    flows = backward(p, facts, {job.end.tensor.name: job.seed.cotangent}, [start.name], chosen.pick, taps)
    relevance = held(b, result_of(p, "relevance", start, flows[start.name]))
    walks, sets = inputs(job, start, len(layers))
    nodes = b.Range(b.const(np.asarray(0)), b.Squeeze(b.dim(start, -2), [0]), b.const(np.asarray(1)))

    def of_walk(inner: StepBuilder, walk: Tensor) -> list[Tensor]:
        here = inner.Unsqueeze(walk, [1])
        hot = inner.Or(inner.Equal(here, inner.adopt(nodes)), inner.Equal(here, [-1]))
        hot = inner.CastLike(hot, inner.adopt(start))
        return [inner.Gather(hot, np.asarray(t), axis=0) for t in range(len(layers) + 1)]

    job.outputs |= relevance_outputs(b, job.inputs, [], {start.name: relevance})
    job.outputs["node_relevance"] = b.sum_axes(relevance, [-1])
    if passing:
        job.outputs["edge_relevance"] = edges.stacked(b, passing, of_edges, start.rank == 3)
    else:
        job.notes.append("no edge_relevance: not all layers have the same edges")
    job.outputs["walk_relevance"] = held(b, passes(job, layers, walks, of_walk))
    job.outputs["subgraph_relevance"] = held(b, passes(job, layers, sets, lambda _, s: [s] * (len(layers) + 1)))
    job.ruled = chosen
    return {}


def adjust(rules: Composite, structure: str | Sequence[str] | None) -> None:
    """Applies the option that this method alone takes, and refuses it for others.

    Raises:
        RuleError: The rule set takes no structure.
    """
    names = [structure] if isinstance(structure, str) else list(structure or ())
    if names and rules.method != "gnn-lrp":
        raise RuleError(f"--structure {','.join(names)} is for --rule gnn-lrp; rule '{rules.name}' knows no graph")
    if names:
        rules.set({"structure": ",".join(names)})


def features(p: Program, rules: Composite, asked: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """The inputs to explain: the named ones, or every floating-point input but the structure."""
    if rules.method != "gnn-lrp" or asked is not None:
        return asked
    structure = names_of(p, rules.accepted["structure"])
    return [t.name for t in p.inputs if t.name in p.required and t.is_float and t.name not in structure] or None


def only_start(job: Job) -> Tensor:
    """The nodes' features.

    Raises:
        RuleError: Not one floating-point tensor [nodes, features] or [N, nodes, features].
    """
    start = job.starts[0]
    if len(job.starts) > 1 or start.rank not in (2, 3):
        named = ", ".join(repr(t) for t in job.starts)
        raise RuleError(
            f"gnn-lrp explains one input, [nodes, features] or [N, nodes, features], not {named}; --explain-input "
            "names it, and --structure what belongs to the graph"
        )
    return start


def inputs(job: Job, start: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """The inputs `walks` and `subgraph`, the same for all maps: by default one walk, all at node 0, and all nodes."""
    b, count = job.p.builder, (start.shape or (None, None))[-2]
    size = count if isinstance(count, int) else 1
    defaults = {"walks": np.zeros((1, layers + 1), np.int64), "subgraph": np.ones((1, size), start.dtype)}
    for key, default in defaults.items():
        if (key, start.name) not in job.fed:
            name = b.unique(key)
            sizes = (f"{name}_count", layers + 1 if key == "walks" else count if size != 1 else f"{name}_nodes")
            job.fed[key, start.name] = b.outside(name, default.dtype, sizes)
            job.p.tensors[name] = job.fed[key, start.name]
        job.extra[job.fed[key, start.name].name] = default
    return job.fed["walks", start.name], job.fed["subgraph", start.name]


def messages_first(p: Program, start: Tensor, names: Sequence[str]) -> bool:
    """Reads A (H W) as (A H) W, so that a rule of W has the denominators of the whole layer (spec 11.1).

    Returns whether anything was read so.
    """
    facts, readers = Facts(p, [start.name]), p.consumers()
    structure, changed = made_of(p, facts, names), False
    for i, mix in enumerate(p.views):
        if mix.op != "MatMul" or mix.domain or mix.inp(0).name not in structure or not facts.on_path(mix.x[1]):
            continue
        combine = facts.producer(mix.x[1])
        if combine is None or not combines(combine, facts) or len(readers[combine.out().name]) > 1:
            continue
        with p.builder.scope(mix.name):
            messages = p.builder.MatMul(mix.inp(0), combine.inp(0))
        p.views[p.views.index(combine)] = mix.varied(x=[mix.x[0], combine.x[0]], y=[messages])
        p.views[i] = combine.varied(x=[messages, combine.x[1]], y=[mix.out()])
        p.tensors[messages.name] = messages
        changed = True
    return changed


def combines(view: View, facts: Facts) -> bool:
    """True for H W with a constant W and no bias."""
    plain = view.op == "MatMul" or (view.op == "Gemm" and not view.attr("transA"))
    own = [x for x in view.x if x is not None]
    return not view.domain and plain and len(own) == 2 and facts.on_path(own[0]) and own[1].constant


def passes(job: Job, layers: Sequence[Interaction], scanned: Tensor, masks_of: Masks) -> Tensor:
    """One backward pass for each row of what is scanned, and what it brings to the nodes of the first mask.

    Args:
        masks_of: The T + 1 masks [nodes] of a row: of the features, then behind each interaction layer.

    Returns:
        [rows], or [N, rows] for several graphs.
    """
    outer, start = job.p.builder, job.starts[0]
    b = StepBuilder(outer)
    with b.scope("walk"):
        row = b.input("row", scanned.dtype, (scanned.shape or ())[1:])
        first, *others = masks_of(b, row)
        taps = {layer.state.name: tap(b, layer, mask) for layer, mask in zip(layers, others, strict=True)}
        sub = as_it_stands(job.p, b, job.p.views, [start], job.end.tensor)
        at, end = b.adopt(start), b.adopt(job.end.tensor)
        (found,) = explained_in(job, sub, [at], end, "relevance", b.adopt(job.seed.cotangent), taps=taps)
        brought = b.sum_axes(b.sum_axes(found, [-1]) * first, [-1])
        ends = b.ends([brought])
    body = b.graph("walks", [row], ends)
    rows = (scanned.shape or (None,))[0]
    kind = [(start.dtype, (rows, *(start.shape or ())[:-2]))]
    (stacked,) = outer.typed("Scan", [scanned], kind, body=body, num_scan_inputs=1)
    return stacked if start.rank == 2 else outer.Transpose(stacked, perm=[1, 0])


def tap(b: Builder, layer: Interaction, mask: Tensor) -> Tap:
    """Lets pass what arrives at the nodes of a mask."""

    def masked(_: Tensor, flow: Flow) -> Flow:
        passing = b.Unsqueeze(mask, list(range(1, -layer.axis))) if layer.axis < -1 else mask
        return Flow(*(None if part is None else part * passing for part in (flow.c, flow.r)))

    return masked
