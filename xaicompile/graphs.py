"""Runs a model that explains walks in a graph: which of them to draw, on which edges."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from xaicompile import heatmap, images, report
from xaicompile.checks import proto_of
from xaicompile.errors import ModelError, RuleError
from xaicompile.graph_pictures import Picture, draw_graphs, once
from xaicompile.runtime import Session, adapt

LINES = 100  # how many of the strongest walks are drawn


def structure_of(metadata: Mapping[str, str]) -> list[str] | None:
    """Names of what holds the graph; None for a model that explains no walks."""
    structure = json.loads(metadata.get("xaicompile.parameters", "{}")).get("structure")
    return None if structure is None else [name for name in str(structure).split(",") if name]


def is_graph(model: str | os.PathLike[str]) -> bool:
    """Say whether a compiled model explains walks in a graph."""
    return structure_of({p.key: p.value for p in proto_of(model).metadata_props}) is not None


def explain_graph(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str | None = None,
    classes: str | os.PathLike[str] | None = None,
    walks: str | os.PathLike[str] | None = None,
    subgraphs: Sequence[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """Explain one graph with a compiled model.

    Args:
        model: The compiled model, of a rule set that explains walks.
        source: A `.npz` file with an array for each input, or a `.npy` file with the nodes' features if that is the
            only one. Of several graphs the first is drawn.
        output: A picture (the ending says which format), or `.npy` or `.npz` for the numbers of all graphs.
        target: As in `xaicompile.heatmap.explain_file`.
        classes: As there.
        walks: A `.npy` file [K, T + 1] of walks to draw in place of those that the model finds, or that the source
            names.
        subgraphs: Sets of nodes, their numbers with commas between, whose relevance is wanted.
        device: `cpu` or `cuda`.

    Returns:
        What `explain_file` returns, and `walks` and `subgraphs`, each with `nodes` and `relevance`.

    Raises:
        ModelError: The model explains no walks, or the source doesn't fit it.
        RuleError: No such target or node.
        RuntimeMissingError: A library for running or drawing isn't installed.
        OutputError: The output can't be written there.
    """
    session = Session(model, device=device)
    structure, explained = (
        structure_of(session.metadata),
        json.loads(session.metadata.get("xaicompile.relevance", "{}")),
    )
    if structure is None or not explained:
        raise ModelError(f"{os.fspath(model)} explains no walks; compile with --rule gnn-lrp")
    x, name = next(iter(explained.items()))
    feed, _ = heatmap.feed_of(session, source, None)
    if walks is not None:
        feed["walks"] = read_walks(walks)
    nodes = feed[x].shape[-2] if feed[x].ndim > 1 else 0
    asked = [numbers(text, nodes) for text in subgraphs]
    if asked:
        feed["subgraph"] = np.stack([np.isin(np.arange(nodes), inside) for inside in asked])
    check(session, feed, nodes)
    arrays = {key: feed[key] for key in structure if key in feed} or stored(model, structure)
    edges = edges_of(arrays, nodes)
    names = report.read_classes(classes, session.metadata)
    maps = json.loads(session.metadata.get("xaicompile.maps", "null"))
    wanted = heatmap.choose_targets(session, model, target, names, feed)
    result = session.run(adapt(session, feed))
    outputs = [port.name for port in session.outputs]
    ours = outputs[outputs.index(name) :]
    shown, facts = [], []
    for k, t in enumerate(wanted or [heatmap.ARGMAX]):
        first = {key: np.asarray(result[key]) for key in ours}
        first = {key: r[0] if feed[x].ndim > 2 and r.ndim else r for key, r in first.items()}
        first = {key: r[k] if maps else r for key, r in first.items()}
        scores = heatmap.score(session, result, set(ours), t, names)
        total = float(first[name].sum(dtype=np.float64))
        scores["title"] = f"{scores['title']}; sum of relevance {total:.4g}"
        found, relevance, count = strongest(first, feed.get("walks"), walks is not None)
        of_nodes = np.asarray(first["node_relevance"], np.float64)
        shown.append(Picture(edges, of_nodes, found, relevance, scores["title"], count))
        lines = [{"nodes": w.tolist(), "relevance": float(r)} for w, r in zip(found, relevance, strict=True)]
        sums = first["subgraph_relevance"].tolist() if asked else []
        sets = [{"nodes": s, "relevance": r} for s, r in zip(asked, sums, strict=True)]
        facts.append({**scores, "relevance_sum": total, "walks": lines, "subgraphs": sets})
    if Path(output).suffix.lower() == ".npy":
        heatmap.save(output, {name: result[name]})
    elif Path(output).suffix.lower() == ".npz":
        heatmap.save(
            output, {key: result[key] for key in ours} | {k: feed[k] for k in ("walks", "subgraph") if k in feed}
        )
    else:
        draw_graphs(output, shown)
    if not maps:
        return {"output": os.fspath(output), **facts[0]}
    titles, total = "; ".join(p.title for p in shown), sum(f["relevance_sum"] for f in facts)
    return {"output": os.fspath(output), "title": titles, "relevance_sum": total, "maps": facts}


def read_walks(path: str | os.PathLike[str]) -> np.ndarray:
    """Walks of a `.npy` file."""
    found = images.read_arrays(path)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "iu" or not len(found):
        raise ModelError(f"'{os.fspath(path)}' holds no walks: one .npy array of whole numbers, a walk in each row")
    return found


def numbers(text: str, nodes: int) -> list[int]:
    """The nodes of a set.

    Raises:
        RuleError: It holds what is no node.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise RuleError(f"--subgraph {text}: expected numbers of nodes, such as 0,3,5") from None
    for node in found:
        if not 0 <= node < nodes:
            raise RuleError(f"--subgraph {text}: there is no node {node}; the graph has {nodes}, from 0 on")
    return found


def check(session: Session, feed: Mapping[str, np.ndarray], nodes: int) -> None:
    """Says what does not fit in what is fed.

    Raises:
        ModelError: Walks or sets of nodes don't fit the model or the graph, or an input has another rank.
        RuleError: An option is given that the model has no input for.
    """
    ports = {port.name: port for port in (*session.inputs, *session.overridable)}
    if not nodes:
        raise ModelError("the graph has no nodes")
    for name, values in feed.items():
        if name not in ports:  # of an option; what the source holds is known
            raise RuleError(f"--{name}: the model has no input '{name}'; it was compiled without")
        shape = ports[name].shape
        fixed = [isinstance(want, int) and want != got for want, got in zip(shape, values.shape, strict=False)]
        if values.ndim != len(shape) or any(fixed):
            raise ModelError(f"input '{name}' has the shape {list(values.shape)}, the model takes {in_words(shape)}")
    walks, sets = feed.get("walks"), feed.get("subgraph")
    if walks is not None and walks.size and not -1 <= walks.min() <= walks.max() < nodes:
        wrong = int(walks.max() if walks.max() >= nodes else walks.min())
        raise ModelError(f"a walk names node {wrong}, but the graph has {nodes}, from 0 on (-1 stands for any)")
    if sets is not None and sets.shape[-1] != nodes:
        raise ModelError(f"input 'subgraph' has {sets.shape[-1]} nodes, the graph has {nodes}")


def in_words(shape: Sequence[int | str | None]) -> str:
    """A shape with its free sizes by name."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def stored(model: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """What the model itself holds of its structure, as far as it lies in the file: initializers and Constants."""
    graph = proto_of(model).graph
    held = {t.name: t for t in graph.initializer}
    held |= {
        node.output[0]: a.t
        for node in graph.node
        if node.op_type == "Constant"
        for a in node.attribute
        if a.HasField("t")
    }
    found = {name: held[name] for name in names if name in held and not held[name].external_data}
    return {name: numpy_helper.to_array(t) for name, t in found.items()}


def edges_of(arrays: Mapping[str, np.ndarray], nodes: int) -> np.ndarray:
    """The edges [E, 2] of the first graph, each once and none from a node to itself; none if they can't be told.

    Args:
        arrays: The structure: lists of edges, [2, E] or two of [E], or a dense matrix.

    Raises:
        ModelError: A matrix or a list is of another graph.
    """
    found, ends = np.zeros((0, 2), np.int64), []
    for name, values in arrays.items():
        whole, first = values.dtype.kind in "iu", values[0] if values.ndim > 2 else values
        if first.ndim == 2 and whole and len(first) == 2:
            found = first.T
            break
        if first.ndim == 2 and first.shape[0] == first.shape[1]:
            if len(first) != nodes:
                raise ModelError(f"'{name}' is of a graph of {len(first)} nodes, the features are of {nodes}")
            found = np.argwhere(first)
            break
        ends += [first] if first.ndim == 1 and whole else []
    if not len(found) and len(ends) == 2 and len(ends[0]) == len(ends[1]):
        found = np.stack(ends, 1)
    if found.size and not 0 <= found.min() <= found.max() < nodes:
        wrong = int(found.max() if found.max() >= nodes else found.min())
        raise ModelError(f"an edge names node {wrong}, but the graph has {nodes}, from 0 on")
    return once(found)


def strongest(
    found: Mapping[str, np.ndarray], fed: np.ndarray | None, given: bool
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """The walks to draw, at most `LINES`, the strongest first; their relevance; and of how many they are.

    Args:
        found: What the model gives out, of one map of one graph.
        fed: The walks that the model was fed.
        given: Whether these are wanted in any case.
    """
    if "top_walks" in found and not given:
        walks, relevance = found["top_walks"], found["top_walk_relevance"]
        real = (walks >= 0).all(1)
        return walks[real][:LINES], np.asarray(relevance[real][:LINES], np.float64), None
    if "all_walks_relevance" in found and not given:
        every = found["all_walks_relevance"]
        order = ordered(every)
        walks = np.stack(np.unravel_index(order, every.shape), 1)
    elif fed is not None:
        every = found["walk_relevance"]
        order = ordered(every)
        walks = fed[order]
    else:
        return np.zeros((0, 2), np.int64), np.zeros(0), 0
    return walks, np.asarray(every.ravel()[order], np.float64), int(np.count_nonzero(every))


def ordered(relevance: np.ndarray) -> np.ndarray:
    """Places of the strongest that are not 0."""
    size = np.abs(relevance).ravel()
    order = np.argsort(-size, kind="stable")[:LINES]
    return np.asarray(order[size[order] > 0])
