"""Train a graph network to tell trees from graphs with cycles, export it to ONNX, and measure what its walks say.

Needs torch, onnx and onnxruntime. The graphs are Barabasi and Albert's (1999), of growth 1 (trees) or 2 (with cycles),
as in the experiments of Schnake et al. 2022. The network is a GIN of three blocks (Xu et al. 2019); its inputs are the
nodes' features, all 1, and the adjacency matrix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F

from xaicompile.compiler import compile_model

HERE = Path(__file__).resolve().parent
NODES, WIDTH, BLOCKS = 20, 16, 3
GRAPHS, TESTS, EXPLAINED = 2000, 1000, 200
EPOCHS, BATCH, RATE = 10, 50, 5e-3


class Gin(nn.Module):
    """H <- MLP(H + A H), three times; the mean over the nodes; two logits, of growth 1 and of growth 2."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1] + [WIDTH] * BLOCKS
        self.first = nn.ModuleList(nn.Linear(size, WIDTH) for size in sizes[:-1])
        self.second = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """[N, nodes, 1] and [N, nodes, nodes] to [N, 2]; without N, to [1, 2]."""
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(second(F.relu(first(x + adjacency @ x))))
        return self.out(x.mean(-2, keepdim=x.dim() == 2))  # type: ignore[no-any-return]


def grown(nodes: int, growth: int, rng: np.random.Generator) -> np.ndarray:
    """The adjacency matrix [nodes, nodes] of a graph that grows by nodes, which join others by preferential attachment.

    Each new node joins `growth` others, drawn by how many edges they have. The first nodes make a star.
    """
    a = np.zeros((nodes, nodes), np.float32)
    for new in range(1, nodes):
        degrees = a[:new].sum(1)
        others = [0] if new <= growth else rng.choice(new, growth, replace=False, p=degrees / degrees.sum())
        a[new, others] = a[others, new] = 1
    return a


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency matrices [count, nodes, nodes] and their labels: 0 for growth 1, 1 for growth 2."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    return np.stack([grown(NODES, int(label) + 1, rng) for label in labels]), labels


def train(seed: int) -> Gin:
    """Adam with one cycle of the learning rate."""
    torch.manual_seed(seed)
    graphs, labels = (torch.from_numpy(t) for t in drawn(GRAPHS, seed))
    net, ones = Gin(), torch.ones(BATCH, NODES, 1)
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, epochs=EPOCHS, steps_per_epoch=GRAPHS // BATCH)
    for epoch in range(EPOCHS):
        for some in torch.split(torch.randperm(GRAPHS), BATCH):
            loss = F.cross_entropy(net(ones, graphs[some]), labels[some])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        if epoch % 5 == 4:
            print(f"  epoch {epoch + 1}: loss of the last batch {loss.item():.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def accuracy(net: Gin, seed: int) -> float:
    """On graphs that were not trained on."""
    graphs, labels = drawn(TESTS, seed)
    found = net(torch.ones(TESTS, NODES, 1), torch.from_numpy(graphs)).numpy()
    return float((found.argmax(1) == labels).mean())


def export(net: Gin, path: Path, accurate: float) -> None:
    """Write the network as ONNX for one graph of any size, the classes and the accuracy in the metadata."""
    torch.onnx.export(
        net,
        (torch.ones(NODES, 1), torch.zeros(NODES, NODES)),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x", "adjacency"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "nodes"}, "adjacency": {0: "nodes", 1: "nodes"}},
    )
    model = onnx.load(path)
    helper.set_model_props(
        model, {"classes": '["growth 1", "growth 2"]', "licence": "Apache-2.0", "accuracy": f"{accurate:.4f}"}
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    print(f"  {path}: {path.stat().st_size:,} bytes")


def all_walks(adjacency: np.ndarray) -> np.ndarray:
    """Every walk through the blocks, [walks, 4]; a node also sends to itself."""
    sends, walks = adjacency + np.eye(len(adjacency)), np.arange(len(adjacency))[:, None]
    for _ in range(BLOCKS):
        at, to = np.nonzero(sends[walks[:, -1]])
        walks = np.concatenate([walks[at], to[:, None]], 1)
    return walks


def kinds(walks: np.ndarray) -> dict[str, np.ndarray]:
    """Which walks close a cycle by their last step, which are paths, and which stay at a node or go back."""
    a, b, c, d = walks.T
    closes = (a == d) & (a != b) & (b != c) & (c != d)
    path = (np.diff(np.sort(walks, 1), axis=1) > 0).all(1)
    return {"that close a cycle": closes, "along a path": path, "that stay or go back": ~closes & ~path}


def measure(path: Path, gamma: float, seed: int) -> None:
    """Print the mean relevance of walks that close a cycle, of paths, and of all others."""
    options = {"structure": "adjacency", "parameters": {"gamma": gamma}, "target": 0, "contrast": "runner-up"}
    compiled = compile_model(path, "gnn-lrp", **options).model  # type: ignore[arg-type]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = ort.InferenceSession(compiled.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    graphs, labels = drawn(EXPLAINED, seed)
    means: dict[str, list[float]] = {}
    more = []
    for adjacency, label in zip(graphs, labels, strict=True):
        walks = all_walks(adjacency)
        feed = {"x": np.ones((NODES, 1), np.float32), "adjacency": adjacency, "walks": walks}
        (relevance,) = session.run(["walk_relevance"], feed)
        found = {what: float(relevance[which].mean()) for what, which in kinds(walks).items() if which.any()}
        for what, value in found.items():
            for of in ("all graphs", f"growth {label + 1}"):
                means.setdefault(f"{of}, walks {what}", []).append(value)
        if "that close a cycle" in found:
            more.append(found["that close a cycle"] < found["along a path"])
    print(f"  relevance for growth 1 against growth 2 (gamma {gamma:g}, {EXPLAINED} graphs, {BLOCKS} steps a walk):")
    for what, values in sorted(means.items()):
        share = np.mean(np.asarray(values) > 0)
        print(f"    {what}: mean {np.mean(values):+.5f}, positive in {share:.0%} of {len(values)} graphs")
    print(f"    walks that close a cycle lie below paths in {np.mean(more):.0%} of {len(more)} graphs that have any")


def main() -> None:
    """Train, measure and export the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--measure", action="store_true", help="measure the network that is there already")
    options = parser.parse_args()
    path = options.to / "graphs.onnx"
    torch.set_num_threads(1)
    if not options.measure:
        net = train(options.seed)
        accurate = accuracy(net, options.seed + 1)
        print(f"  accuracy on {TESTS} other graphs: {accurate:.4f}")
        export(net, path, accurate)
    measure(path, options.gamma, options.seed + 2)


if __name__ == "__main__":
    main()
