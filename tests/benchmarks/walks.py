"""Cost of GNN-LRP on graphs of 1,000 nodes, in predictions: one set of nodes, one walk, edges. Prints a table.

    python -m tests.benchmarks.walks [--nodes 1000] [--degree 3] [--layers 3] [--width 64] [--threads 1] [--rounds 40]

Graph convolutions with random weights over a random graph with loops, as lists of edges or as a dense matrix, a sum
over the nodes and linear scores. Each round times the prediction and every model in turn; the table has the medians.
"subgraph" is a model that gives the relevance of one set alone (`--set relevance=0 --set walks=0 --set edges=0`),
"both" that and the nodes' relevance, "walk" and "edges" one that gives these beside the nodes' relevance, "all" what
is given if nothing is said. `--limits` fails where "subgraph" takes more than 4 predictions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
from onnx import numpy_helper

from xaicompile.compiler import compile_model
from xaicompile.runtime import Session

LIMIT = 4.0  # predictions
MESSAGES = {
    "edges, ScatterElements": """
        s{i} = Gather<axis=0>({h}, source)
        n{i} = Mul(s{i}, values)
        size{i} = Shape({h})
        zero{i} = ConstantOfShape<value=float[1]{{0.0}}>(size{i})
        each{i} = Shape(s{i})
        at{i} = Expand(target_of_edge, each{i})
        m{i} = ScatterElements<axis=0,reduction="add">(zero{i}, at{i}, n{i})
    """,
    "edges, ScatterND": """
        s{i} = Gather<axis=0>({h}, source)
        n{i} = Mul(s{i}, values)
        size{i} = Shape({h})
        zero{i} = ConstantOfShape<value=float[1]{{0.0}}>(size{i})
        m{i} = ScatterND<reduction="add">(zero{i}, target_of_edge, n{i})
    """,
    "dense": "m{i} = MatMul(a, {h})",
}
GIVEN = {
    "relevance": {"walks": 0, "edges": 0, "subgraph": 0},
    "subgraph": {"relevance": 0, "walks": 0, "edges": 0},
    "both": {"walks": 0, "edges": 0},
    "walk": {"subgraph": 0, "edges": 0},
    "edges": {"walks": 0, "subgraph": 0},
    "all": {},
}


def network(kind: str, layers: int, width: int) -> onnx.ModelProto:
    """H <- ReLU(A H W), as lists of edges with weights, or with a dense A."""
    rng, body, h = np.random.default_rng(0), [], "x"
    sparse = kind != "dense"
    if sparse:
        body.append("""
            source = Gather<axis=0>(edges, first)
            ends = Gather<axis=0>(edges, second)
            target_of_edge = Unsqueeze(ends, last)
            values = Unsqueeze(weights, last)
        """)
    for i in range(layers):
        body.append(MESSAGES[kind].format(i=i, h=h))
        body.append(f"z{i} = MatMul(m{i}, w{i})\n h{i} = Relu(z{i})")
        h = f"h{i}"
    body.append(f"pooled = ReduceSum<keepdims=1>({h}, zero)\n y = MatMul(pooled, out)")
    held: dict[str, np.ndarray] = {f"w{i}": rng.standard_normal((width, width)) / np.sqrt(width) for i in range(layers)}
    held["out"] = rng.standard_normal((width, 2))
    graph = "int64[2,E] edges, float[E] weights" if sparse else "float[M,M] a"
    signature = f"(float[M,{width}] x, {graph}) => (float[1,2] y)"
    text = "\n".join(body)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> net {signature} {{ {text} }}')
    numbers = {name: np.asarray(value, np.float32) for name, value in held.items()}
    numbers |= {"zero": np.array([0])} | ({} if not sparse else {"last": np.array([-1])})
    numbers |= {} if not sparse else {"first": np.array(0), "second": np.array(1)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    return model


def fed(kind: str, nodes: int, degree: int, width: int) -> dict[str, np.ndarray]:
    """Random features, and a random graph with loops and about so many edges from each node."""
    rng = np.random.default_rng(1)
    source, target = rng.integers(0, nodes, (2, nodes * (degree - 1)))
    edges = np.stack([np.concatenate([source, np.arange(nodes)]), np.concatenate([target, np.arange(nodes)])])
    weights = np.asarray(rng.uniform(0.1, 1, edges.shape[1:]), np.float32)
    x = np.abs(rng.standard_normal((nodes, width))).astype(np.float32)
    if kind != "dense":
        return {"x": x, "edges": edges, "weights": weights}
    a = np.zeros((nodes, nodes), np.float32)
    a[edges[1], edges[0]] = weights
    return {"x": x, "a": a}


def milliseconds(session: Session, feed: dict[str, np.ndarray]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    session.run(feed)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Print the table; with --limits exit with 1 if one is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"nodes": 1000, "degree": 3, "layers": 3, "width": 64, "threads": 1, "rounds": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", default=";".join(MESSAGES))
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    missed = False
    print(f"{options.nodes} nodes, {options.layers} layers of width {options.width}, threads {options.threads}\n")
    print(f"| graph | prediction, ms | {' | '.join(GIVEN)} |")
    print(f"|---|---|{'---|' * len(GIVEN)}")
    for kind in options.kinds.split(";"):
        source = network(kind, options.layers, options.width)
        structure = ["a"] if kind == "dense" else ["edges", "weights"]
        made = {
            name: compile_model(source, "gnn-lrp", structure=structure, target=0, parameters=parameters).model
            for name, parameters in GIVEN.items()
        }
        sessions = {name: Session(model, threads=options.threads) for name, model in {"": source, **made}.items()}
        feed = fed(kind, options.nodes, options.degree, options.width)
        mask = (np.random.default_rng(2).random((1, options.nodes)) < 0.3).astype(np.float32)
        given = {
            name: {**feed, **({"subgraph": mask} if name in ("subgraph", "both", "all") else {})} for name in sessions
        }
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(options.rounds + 3):
            for name, session in sessions.items():
                took = milliseconds(session, given[name])
                if number >= 3:
                    times[name].append(took)
        ratios = {
            name: statistics.median(ours / one for ours, one in zip(times[name], times[""], strict=True))
            for name in GIVEN
        }
        missed |= ratios["subgraph"] > LIMIT
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
        print(f"| {kind} | {statistics.median(times['']):.2f} | {cells} |", flush=True)
    raise SystemExit(int(missed and options.limits))


if __name__ == "__main__":
    main()
