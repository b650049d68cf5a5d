"""Kernel machines, clusterings and class probabilities as torch users write them, and what each computes in float64.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tests import kernel_machines as dense
from tests.kernel_machines import Array, Density

EXPORTERS = ("legacy", "dynamo")
GAMMA, WIDTH, RHO, CLUSTERS, FEATURES = 0.3, 0.5, 1.5, 3, 8
BY_MATMUL = "use_mm_for_euclid_dist"
POWER = 3.0  # beta over gamma of kernel k-means


class Machine(nn.Module):
    """Points with weights, in clusters, and a layer of class scores; behind a small CNN if it is deep."""

    points: Tensor
    weights: Tensor
    members: Tensor
    sizes: Tensor

    def __init__(self, names: list[str], deep: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.names = names
        self.cnn: nn.Module = nn.Identity()
        if deep:
            layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, FEATURES), nn.ReLU()]
            self.cnn = nn.Sequential(*layers)
        self.classes = nn.Linear(FEATURES, 5)
        for parameter in self.parameters():
            scale = 2.0 if parameter.ndim == 1 else parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) / scale
        self.register_buffer("points", torch.randn(40, FEATURES, generator=generator))
        self.register_buffer("weights", torch.rand(40, generator=generator) + 0.1)
        self.register_buffer("members", nn.functional.one_hot(torch.arange(40) % CLUSTERS, CLUSTERS).float())
        self.register_buffer("sizes", self.members.sum(0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.cnn(x)
        return tuple(WRITINGS[name].make(self, features) for name in self.names)


def differences(m: Machine, x: Tensor) -> Tensor:
    """Squared distances straight."""
    return ((x[:, None] - m.points) ** 2).sum(-1)


def expanded(m: Machine, x: Tensor) -> Tensor:
    """Squared distances as they are often written to save memory."""
    return (x**2).sum(1, keepdim=True) - 2 * x @ m.points.T + (m.points**2).sum(1)


def kernels(d: Tensor) -> Tensor:
    return torch.exp(-GAMMA * d)


def of_each_cluster(m: Machine, x: Tensor) -> Tensor:
    """A softmax over clusters, each with distances to its own points."""
    d = [((x[:, None] - m.points[c::CLUSTERS]) ** 2).sum(-1) for c in range(CLUSTERS)]
    return torch.softmax(torch.stack([torch.logsumexp(-GAMMA * e, 1) for e in d], 1) * POWER, 1)


def stacked(m: Machine, x: Tensor) -> Tensor:
    """A softmax over log-sum-exps of columns of the distances."""
    d = differences(m, x)
    logs = [torch.logsumexp(-GAMMA * d[:, c::CLUSTERS], 1) - m.sizes[c].log() for c in range(CLUSTERS)]
    return torch.softmax(torch.stack(logs, 1) * POWER, 1)


def powers(m: Machine, x: Tensor) -> Tensor:
    """Powers of kernel sums over the sum of them."""
    p = (kernels(expanded(m, x)) @ m.members / m.sizes) ** POWER
    return p / p.sum(1, keepdim=True)


@dataclass(frozen=True)
class Writing:
    """One way to write a machine.

    Attributes:
        kind: What it should be recognised as.
        make: The output, of the features.
        count: How many of the points it uses.
        root: The kernel is of distances, not of their squares.
        normed: The clusters' kernel sums are divided by their sizes.
        exclusive: One of the classes is right.
        exporters: Those that can write it: dynamo has no cdist of up to 25 points.
    """

    kind: str
    make: Callable[[Machine, Tensor], Tensor]
    count: int = 40
    root: bool = False
    normed: bool = True
    exclusive: bool = True
    exporters: tuple[str, ...] = EXPORTERS


WRITINGS: dict[str, Writing] = {
    "differences, matmul": Writing("kde", lambda m, x: kernels(differences(m, x)) @ m.weights),
    "differences, mul and sum": Writing("kde", lambda m, x: (kernels(differences(m, x)) * m.weights).sum(1)),
    "expanded, matmul": Writing("kde", lambda m, x: kernels(expanded(m, x)) @ m.weights),
    "cdist of few": Writing(
        "kde", lambda m, x: kernels(torch.cdist(x, m.points[:9]) ** 2) @ m.weights[:9], 9, exporters=("legacy",)
    ),
    "cdist by matmul": Writing(
        "kde", lambda m, x: kernels(torch.cdist(x, m.points[:9], 2.0, BY_MATMUL) ** 2) @ m.weights[:9], 9
    ),
    "cdist of many": Writing("kde", lambda m, x: kernels(torch.cdist(x, m.points) ** 2) @ m.weights),
    "logsumexp": Writing("kde", lambda m, x: torch.logsumexp(-GAMMA * differences(m, x) + m.weights.log(), 1)),
    "minus log": Writing("kde", lambda m, x: -torch.log(kernels(expanded(m, x)) @ m.weights[:, None])),
    "exponential": Writing(
        "kde", lambda m, x: torch.exp(-WIDTH * torch.sqrt(differences(m, x))) @ m.weights, root=True
    ),
    "threshold": Writing("one-class-svm", lambda m, x: (kernels(differences(m, x)) * m.weights).sum(1) - RHO),
    "threshold, expanded": Writing("one-class-svm", lambda m, x: kernels(expanded(m, x)) @ m.weights - RHO),
    "argmin": Writing("kmeans", lambda m, x: differences(m, x).argmin(1)),
    "argmin of cdist": Writing("kmeans", lambda m, x: torch.cdist(x, m.points).argmin(1)),
    "argmin of expanded": Writing("kmeans", lambda m, x: expanded(m, x).argmin(1)),
    "argmax of scores": Writing("kmeans", lambda m, x: (2 * x @ m.points.T - (m.points**2).sum(1)).argmax(1)),
    "stacked": Writing("kernel-kmeans", stacked),
    "powers": Writing("kernel-kmeans", powers),
    "log of sums": Writing(
        "kernel-kmeans",
        lambda m, x: torch.softmax(POWER * torch.log(kernels(differences(m, x)) @ m.members / m.sizes), 1),
    ),
    "log of sums less log of sizes": Writing(
        "kernel-kmeans",
        lambda m, x: torch.softmax(POWER * (torch.log(kernels(expanded(m, x)) @ m.members) - m.sizes.log()), 1),
    ),
    "of each cluster": Writing("kernel-kmeans", of_each_cluster, normed=False),
    "softmax": Writing("log-ratio", lambda m, x: torch.softmax(m.classes(x), 1)),
    "log_softmax": Writing("log-ratio", lambda m, x: torch.log_softmax(m.classes(x), 1)),
    "sigmoid": Writing("log-ratio", lambda m, x: torch.sigmoid(m.classes(x)), exclusive=False),
}


PAIRS = [(name, exporter) for name, writing in WRITINGS.items() for exporter in writing.exporters]


def export(model: nn.Module, x: Tensor, names: list[str], exporter: str) -> onnx.ModelProto:
    """The model with the input `x`, the batch dynamic."""
    given: dict[str, Any] = {"input_names": ["x"], "output_names": names}
    if exporter == "legacy":
        given |= {"dynamo": False, "dynamic_axes": {name: {0: "N"} for name in ("x", *names)}}
    else:
        given |= {"dynamo": True, "verbose": False, "dynamic_shapes": ({0: torch.export.Dim("N")},)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(Path(folder) / "model.onnx"), **given)
        return onnx.load(str(Path(folder) / "model.onnx"))


@dataclass(frozen=True)
class Wanted:
    """In float64: the explained score [N], its relevance for the features [N,d], and -log f of a kernel sum."""

    score: Array
    relevance: Array
    minus_log: Array | None = None


def wanted(machine: Machine, name: str, x: Tensor) -> Wanted:
    """What a writing computes, from the dense formulas, of features in float64.

    Args:
        x: [N,d].
    """
    writing, rows = WRITINGS[name], x.double().numpy()
    points = machine.points.double().numpy()[: writing.count]
    if writing.kind in ("kde", "one-class-svm"):
        weights = machine.weights.double().numpy()[: writing.count]
        density = Density(rows, points, weights, WIDTH if writing.root else GAMMA, writing.root)
        return Wanted(density.score, density.v_out(), density.score - np.log(weights.sum()))
    if writing.kind == "kmeans":
        evidence, d = dense.evidence(rows, points), dense.squares(rows, points).sum(-1)
        two = np.argsort(d, 1)[:, :2]
        pairs = [dense.midpoint(row[None], points, c, k)[0] for row, (c, k) in zip(rows, two, strict=True)]
        return Wanted(evidence.max(1), np.stack(pairs))
    if writing.kind == "kernel-kmeans":
        members = machine.members.double().numpy()
        return of_kernels(rows, points, members / members.sum(0) if writing.normed else members)
    weight, bias = (p.detach().double().numpy() for p in machine.classes.parameters())
    z = rows @ weight.T + bias
    odds = dense.log_odds(z) if writing.exclusive else z
    best = odds.argmax(1)
    own = np.eye(z.shape[1])[best]
    rivals = dense.soft(np.where(own > 0, np.inf, -z)) if writing.exclusive else 0.0
    return Wanted(odds.max(1), rows * ((own - rivals) @ weight))


def of_kernels(rows: Array, points: Array, members: Array) -> Wanted:
    """Kernel k-means, each cluster with its own soft minimum, and a soft minimum over the rivals of the best."""
    parts = dense.squares(rows, points)
    z = dense.kernel_logits(rows, points, members, GAMMA, POWER * GAMMA)
    best = np.eye(z.shape[1])[z.argmax(1)]
    rivals = dense.soft(np.where(best > 0, np.inf, -z))
    relevance = np.zeros_like(rows)
    for c, column in enumerate(members.T):
        mine = column > 0
        near = np.einsum("nm,nmd->nd", dense.soft(GAMMA * parts[:, mine].sum(-1)), parts[:, mine])
        relevance += POWER * GAMMA * (rivals - best)[:, c : c + 1] * near
    return Wanted(dense.log_odds(z).max(1), relevance)


def to_pixels(cnn: nn.Module, x: Tensor, relevance: Array) -> Array:
    """Relevance of the features handed on to the pixels by LRP-0, written out for this one network, in float64.

    What a unit that is off has of it passes its ReLU too (spec 9.8).
    """
    assert isinstance(cnn, nn.Sequential)
    conv, relu, flatten, linear, _ = cnn
    leaf = x.double().requires_grad_()
    v = conv(leaf)
    r = flatten(relu(v))
    z = linear(r)
    (message,) = torch.autograd.grad(z, r, torch.from_numpy(relevance) / z, retain_graph=True)
    (message,) = torch.autograd.grad(v, leaf, (r * message).reshape(v.shape) / v)
    found: Array = (leaf * message).detach().numpy()
    return found
