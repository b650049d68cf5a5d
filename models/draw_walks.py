"""Draws walks in a tree and in a graph with cycles, side by side, beside itself: walks.jpg.

    python models/draw_walks.py

Needs the `report` extra, ONNX Runtime, and torch (for train_graphs.py, which says what the graphs are). What is drawn
is relevance for growth 1, a tree, against growth 2, of the first graph of each kind that train_graphs.py measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from train_graphs import EXPLAINED, NODES, drawn

from xaicompile.compiler import compile_model
from xaicompile.graph_pictures import Picture, draw_graphs, once
from xaicompile.graphs import strongest
from xaicompile.runtime import Session

HERE = Path(__file__).resolve().parent
OPTIONS = {"structure": "adjacency", "parameters": {"gamma": 1}, "target": 0, "contrast": "runner-up", "top_walks": 100}
NAMES = ("a tree (growth 1)", "growth 2")


def main() -> None:
    """Draw the picture, and write the two graphs as .npz files if a folder for them is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=2, help="of the graphs")
    parser.add_argument("--graphs", type=Path, help="folder to write growth1.npz and growth2.npz to")
    options = parser.parse_args()
    session = Session(compile_model(HERE / "graphs.onnx", "gnn-lrp", **OPTIONS).model)  # type: ignore[arg-type]
    pictures = []
    for growth, adjacency in enumerate(drawn(EXPLAINED, options.seed)[0][:2], 1):
        feed = {"x": np.ones((NODES, 1), np.float32), "adjacency": adjacency}
        if options.graphs:
            np.savez(options.graphs / f"growth{growth}.npz", **feed)  # type: ignore[arg-type]
        out = session.run(feed)
        margin = out["logits"][0, 0] - out["logits"][0, 1]
        title = f"{NAMES[growth - 1]}: logits differ by {margin:+.2f}, sum of relevance {out['relevance'].sum():+.2f}"
        walks, relevance, count = strongest(out, None, False)
        pictures.append(Picture(once(np.argwhere(adjacency)), out["node_relevance"], walks, relevance, title, count))
    draw_graphs(HERE / "walks.jpg", pictures)


if __name__ == "__main__":
    main()
