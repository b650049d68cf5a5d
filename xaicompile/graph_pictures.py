"""Draws walks on a graph, red for and blue against, as Schnake et al. 2022 do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from xaicompile import report
from xaicompile.errors import RuntimeMissingError

NAMED = 60  # nodes up to which each has its number in it
LARGE = 500  # nodes from which networkx's usual layout needs scipy
SEEDS = 10  # of layouts, of which the clearest is taken
POINTS = 40  # of a walk's line, for each step
BLUR = 6  # of its corners, in points
LANES = (0.006, 0.036)  # how far beside an edge walks go; as all lengths here, in halves of the picture's side
GOLDEN = 0.618  # from one walk's lane to the next's, so that those of similar strength lie apart
LOOP = 0.04  # radius of a step from a node to itself
MARGIN = 0.09  # around all that is drawn


@dataclass(frozen=True)
class Picture:
    """What is drawn of one explanation.

    Attributes:
        edges: [E, 2], each once. Where there are none, those that the walks use are drawn.
        nodes: Relevance of the nodes.
        walks: [K, T + 1], the strongest first; -1 stands for any node.
        relevance: Of these walks, [K].
        title: Line above the picture.
        count: How many walks there are; None if that isn't known.
    """

    edges: np.ndarray
    nodes: np.ndarray
    walks: np.ndarray
    relevance: np.ndarray
    title: str
    count: int | None = None

    @property
    def subtitle(self) -> str:
        """What the lines are."""
        drawn = len(self.walks)
        if not drawn:
            return "no walks"
        some = f"all {drawn} walks" if drawn == self.count else f"the {drawn} strongest walks"
        some += " found" if self.count is None else "" if self.count == drawn else f" of {self.count:,}"
        return f"{some}, up to {self.relevance[np.abs(self.relevance).argmax()]:+.3g}"


def draw_graphs(path: str | os.PathLike[str], pictures: Sequence[Picture]) -> None:
    """Graphs side by side, and walks on them; one scale for all walks, and one for all nodes.

    Args:
        path: Where to write; the ending says the format.
        pictures: Each graph with its walks.

    Raises:
        RuntimeMissingError: networkx or matplotlib isn't installed.
        OutputError: The picture can't be written there.
    """
    figure = report.new_figure(5.4 * len(pictures) + 0.8, 5.6)
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    axes = figure.subplots(1, len(pictures), squeeze=False)[0]
    limit = max(float(np.abs(p.nodes).max(initial=0.0)) for p in pictures) or 1.0
    light = ListedColormap(colormaps["bwr"](np.linspace(0.22, 0.78, 256)))  # a number can be read on it
    colours = ScalarMappable(Normalize(-limit, limit), light)
    most = max(float(np.abs(p.relevance).max(initial=0.0)) for p in pictures) or 1.0
    for axis, picture in zip(axes, pictures, strict=True):
        draw_graph(axis, picture, most, colours)
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.6, aspect=30)
    bar.set_label("relevance of nodes (red: for, blue: against)")
    report.write(figure, path)


def draw_graph(axis: Any, picture: Picture, most: float, colours: Any) -> None:
    """One graph.

    Args:
        axis: Where to draw.
        picture: The graph and its walks.
        most: |R| of a walk that is drawn at full width and colour.
        colours: Of the nodes, by relevance.
    """
    from matplotlib.collections import LineCollection

    pairs = [pair for walk in picture.walks for pair in pairwise(walk) if min(pair) >= 0]
    edges = picture.edges if len(picture.edges) else once(np.asarray(pairs, np.int64).reshape(-1, 2))
    places = layout(len(picture.nodes), edges)
    axis.add_collection(LineCollection(list(places[edges]), colors="0.75", linewidths=1.0, zorder=1))
    free = outwards(places, edges)
    lines, sizes = [], []
    lanes = LANES[0] + (LANES[1] - LANES[0]) * (GOLDEN * np.arange(len(picture.walks)) % 1)
    for walk, relevance, lane in reversed(list(zip(picture.walks, picture.relevance, lanes, strict=True))):
        for part in stretches(walk.tolist()):
            lines.append(curve(part, places, free, lane))
            sizes.append(relevance / most)
    size = np.abs(np.asarray(sizes, np.float64))
    paint = np.zeros((len(lines), 4))
    paint[:, 0], paint[:, 2] = np.asarray(sizes) > 0, np.asarray(sizes) < 0
    paint[:, 3] = 0.6 * size
    bands = LineCollection(lines, colors=paint, linewidths=0.4 + 1.2 * size, zorder=2, capstyle="round")
    axis.add_collection(bands)
    few = len(picture.nodes) <= NAMED
    axis.scatter(
        *places.T, s=150 if few else 20, c=colours.to_rgba(picture.nodes), edgecolors="0.3", linewidths=0.8, zorder=3
    )
    for node, (x, y) in enumerate(places if few else ()):
        axis.text(x, y, str(node), ha="center", va="center_baseline", fontsize=7.5, zorder=4)
    every = np.concatenate([places, *lines])
    low, high = every.min(0), every.max(0)
    middle, half = (low + high) / 2, (high - low).max() / 2 + MARGIN
    axis.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half], aspect="equal")
    axis.axis("off")
    axis.set_title(f"{picture.title}\n{picture.subtitle}", fontsize="medium")


def once(edges: np.ndarray) -> np.ndarray:
    """Edges whatever their direction, without those from a node to itself."""
    edges = np.unique(np.sort(edges, 1), axis=0)
    return np.asarray(edges[edges[:, 0] != edges[:, 1]], np.int64)


def layout(nodes: int, edges: np.ndarray) -> np.ndarray:
    """Places of the nodes [nodes, 2], between -1 and 1; the same each time.

    Raises:
        RuntimeMissingError: networkx isn't installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise RuntimeMissingError('drawing graphs needs networkx; run `pip install "xaicompile[report]"`') from error
    graph = networkx.empty_graph(nodes)
    graph.add_edges_from(edges.tolist())
    if nodes < LARGE:
        tries = [networkx.spring_layout(graph, seed=seed, iterations=200) for seed in range(SEEDS)]
    else:
        tries = [networkx.forceatlas2_layout(graph, seed=0)]
    found = [centred(np.array([places[node] for node in range(nodes)]).reshape(nodes, 2)) for places in tries]
    return max(found, key=lambda places: clearance(places, edges)) if len(found) > 1 else found[0]


def centred(places: np.ndarray) -> np.ndarray:
    """The middle at 0, and all between -1 and 1."""
    places = places - (places.max(0) + places.min(0)) / 2
    return np.asarray(places / (np.abs(places).max() or 1.0))


def clearance(places: np.ndarray, edges: np.ndarray) -> float:
    """The smallest distance of a node to another, or to an edge that isn't its own."""
    count = np.arange(len(places))
    starts, ends = (np.concatenate([places[edges[:, i]], places]) for i in range(2))
    own = [np.concatenate([edges[:, i], count]) for i in range(2)]
    way = ends - starts
    along = ((places[:, None] - starts) * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12)
    far = np.linalg.norm(places[:, None] - starts - along.clip(0, 1)[..., None] * way, axis=-1)
    far[(count[:, None] == own[0]) | (count[:, None] == own[1])] = np.inf
    return float(far.min(initial=np.inf))


def outwards(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """For each node the direction, of length 1, in which it has the most room: away from its neighbours."""
    away = places * 1e-3 + [0.0, 1e-6]
    for a, b in (*edges, *edges[:, ::-1]):
        way = places[a] - places[b]
        away[a] += way / (np.linalg.norm(way) or 1.0)
    return np.asarray(away / np.linalg.norm(away, axis=1, keepdims=True))


def stretches(walk: Sequence[int]) -> list[list[int]]:
    """The parts of a walk, two nodes or more, that lie between steps to any node."""
    parts: list[list[int]] = [[]]
    for node in walk:
        if node < 0:
            parts.append([])
        else:
            parts[-1].append(node)
    return [part for part in parts if len(part) > 1]


def curve(walk: Sequence[int], places: np.ndarray, free: np.ndarray, lane: float) -> np.ndarray:
    """A walk as a smooth line: on the right of each edge, so that there and back are two lines; a loop at a node.

    Args:
        walk: Its nodes.
        places: Of all nodes.
        free: The direction of each node's loop.
        lane: How far beside the edges.
    """
    t = np.linspace(0, 1, POINTS)[:, None]
    steps = []
    for a, b in pairwise(walk):
        if a == b:
            out = free[a]
            turn = 2 * np.pi * t
            steps.append(places[a] + (LOOP + lane) * ((1 - np.cos(turn)) * out + np.sin(turn) * [out[1], -out[0]]))
        else:
            way = places[b] - places[a]
            side = np.array([way[1], -way[0]]) / (np.linalg.norm(way) or 1.0)
            steps.append(places[a] + t * way + lane * side)
    line = np.concatenate(steps)
    weights = np.exp(-0.5 * (np.arange(-3 * BLUR, 3 * BLUR + 1) / BLUR) ** 2)
    padded = np.pad(line, ((3 * BLUR, 3 * BLUR), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(padded[:, i], weights / weights.sum(), mode="valid") for i in range(2)], 1)
