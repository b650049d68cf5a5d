"""GNN-LRP: relevant walks in graph networks (Schnake et al. 2022; spec section 11).

A walk goes from node to node, one step in each interaction layer. Its relevance is what a backward pass brings to its
first node if only its nodes pass behind each layer. One Scan goes over the walks; the forward pass and the rules'
denominators stand outside it and are worked out once.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xaicompile.backward import backward
from xaicompile.composite import Composite, Entry
from xaicompile.errors import RuleError
from xaicompile.facts import Facts
from xaicompile.half import held
from xaicompile.ir import Program, Tensor, View
from xaicompile.methods import edges, topwalks
from xaicompile.methods.job import Job, Result
from xaicompile.methods.masked import by_node, only, passes
from xaicompile.methods.structure import as_if_fed, interactions, made_of, names_of, taken_as_given
from xaicompile.outputs import relevance_outputs, result_of
from xaicompile.passes import canonical
from xaicompile.registry import method
from xaicompile.ruled import ruled


@method("gnn-lrp", structure="", relevance=1, edges=1, walks=1, subgraph=1, all_walks=0, top_walks=0, beam=128)
def gnn_lrp(job: Job) -> Result:
    """Relevance of the nodes' features, of nodes, of walks and of what happens inside sets of nodes.

    The explained input is [nodes, features], or [N, nodes, features] for several graphs. With T interaction layers,
    an input `walks` [walks, T + 1] names the nodes of each walk, first the one whose features are read; -1 stands for
    any node. An input `subgraph` [sets, nodes] weighs the nodes of each set: 1 inside, 0 outside.

    Gives `relevance`, `node_relevance` [nodes], `walk_relevance` [walks] and `subgraph_relevance` [sets], the sum over
    all walks inside each set, and `edge_relevance` [ops, receivers, senders], or [ops, edges] for lists of edges, of
    each op that passes messages: one a layer, as a rule. All but the first have [N, ...] in front for several graphs.
    The parameters relevance (of features and nodes), edges, walks and subgraph leave out what they are 0 for.
    Structure `attention` takes tokens for nodes and holds the weights of attention fixed.
    What a layer hands on beside its structure (x + A x) is no edge; edges from a sender and that sum to its relevance.

    Raises:
        RuleError: No such structure, no interaction layer, an explained input of another rank, chunks, no output.
    """
    if job.chunk > 1:
        raise RuleError(f"--chunk {job.chunk}: gnn-lrp does walks and sets of nodes one by one")
    p, b, start = job.p, job.p.builder, only_start(job)
    several = start.rank == 3
    names = taken_as_given(p, names_of(p, job.parameter("structure")))
    as_if_fed(p, names)
    canonical.run(p, job.end.tensor.name)
    if messages_first(p, start, names):
        canonical.run(p, job.end.tensor.name)
    facts = Facts(p, [start.name])
    layers = interactions(p, facts, start, job.end.tensor, names, job.parameter("structure"))
    job.notes.append(f"interaction layers: {len(layers)} ({', '.join(str(layer.mixes[-1].view) for layer in layers)})")
    mixes = [glob.escape(mix.view.name) for layer in layers for mix in layer.mixes]
    unsplit = Entry("default", {"name": mixes}, {}, "messages by structure")
    job.rules = replace(job.rules, entries=[unsplit, *job.rules.entries])
    chosen = ruled(p, facts, job.rules, job.end.tensor)
    passing, of_edges = edges.passing(facts, layers) if job.parameter("edges") else [], dict[str, Tensor]()
    taps, state = edges.watching(b, passing, of_edges, several), layers[-1].state
    seeds = {job.end.tensor.name: job.seed.cotangent}
    flows = backward(p, facts, seeds, [start.name, state.name], chosen.pick, taps)
    relevance = held(b, result_of(p, "relevance", start, flows[start.name]))
    walks, sets = inputs(job, start, len(layers))
    nodes = b.Range(b.const(np.asarray(0)), b.Squeeze(b.dim(start, -2), [0]), b.const(np.asarray(1)))

    if job.parameter("relevance"):
        job.outputs |= relevance_outputs(b, job.inputs, [], {start.name: relevance})
        job.outputs["node_relevance"] = b.sum_axes(relevance, [-1])
    if passing:
        job.outputs["edge_relevance"] = edges.stacked(b, passing, of_edges, several)
    elif job.parameter("edges"):
        job.notes.append("no edge_relevance: not all layers have the same edges")
    for key, rows, masks in (
        ("walk", walks, lambda inner, walk: only(inner, nodes, walk, start)),
        ("subgraph", sets, lambda _, weights: [weights] * (len(layers) + 1)),
    ):
        if rows is not None:
            found = passes(job, layers, rows, masks)
            job.outputs[f"{key}_relevance"] = b.Transpose(found, perm=[1, 0]) if several else found
    if job.parameter("all_walks"):
        job.outputs["all_walks_relevance"] = topwalks.all_walks(job, layers, nodes)
    if job.parameter("top_walks"):
        last = by_node(b, result_of(p, "relevance", state, flows[state.name]), layers[-1].axis, several)
        top = topwalks.top_walks(job, layers, nodes, last, job.count("top_walks"), job.count("beam"))
        job.outputs["top_walks"], job.outputs["top_walk_relevance"] = top
    if not job.outputs:
        raise RuleError("gnn-lrp: of relevance, edges, walks and subgraph one must be given")
    job.ruled = chosen
    return {}


def adjust(
    rules: Composite, structure: str | Sequence[str] | None, all_walks: bool = False, top_walks: int | None = None
) -> None:
    """Applies the options that this method alone takes, and refuses them for others.

    Raises:
        RuleError: The rule set takes no structure.
    """
    names = ",".join([structure] if isinstance(structure, str) else structure or ())
    if rules.method != "gnn-lrp":
        many = None if top_walks is None else f"--top-walks {top_walks}"
        for option in (names and f"--structure {names}", all_walks and "--all-walks", many):
            if option:
                raise RuleError(f"{option} is for --rule gnn-lrp; rule '{rules.name}' knows no graph")
        return
    asked = {"structure": names, "all_walks": int(all_walks), "top_walks": top_walks}
    rules.set({key: value for key, value in asked.items() if value})


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


def inputs(job: Job, start: Tensor, layers: int) -> tuple[Tensor | None, Tensor | None]:
    """The inputs `walks` and `subgraph`, the same for all maps: by default one walk, all at node 0, and all nodes.

    None for one whose output is not asked for.
    """
    b, count = job.p.builder, (start.shape or (None, None))[-2]
    size = count if isinstance(count, int) else 1
    defaults = {"walks": np.zeros((1, layers + 1), np.int64), "subgraph": np.ones((1, size), start.dtype)}
    for key, default in defaults.items():
        if not job.parameter(key):
            continue
        if (key, start.name) not in job.fed:
            name = b.unique(key)
            sizes = (f"{name}_count", layers + 1 if key == "walks" else count if size != 1 else f"{name}_nodes")
            job.fed[key, start.name] = b.outside(name, default.dtype, sizes)
            job.p.tensors[name] = job.fed[key, start.name]
        job.extra[job.fed[key, start.name].name] = default
    return job.fed.get(("walks", start.name)), job.fed.get(("subgraph", start.name))


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
