"""Second-order explanations of networks exported from torch, in float32, against torch's own Hessians."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian

import xaicompile
from tests.graphs import run

FLOAT32 = 1e-5  # of the largest entry
pytestmark = pytest.mark.parity


def table() -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))


def image(activation: type[nn.Module]) -> nn.Module:
    """Two convolutions, a normalisation of channels, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), activation(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8),
        activation(), nn.Flatten(), nn.Linear(32, 8), activation(), nn.Linear(8, 3),
    )  # fmt: skip


class Attention(nn.Module):
    """One block of a transformer over six tokens of eight features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        return torch.as_tensor(self.mlp(x + weights @ v).mean(1))


NETWORKS = {
    "tanh mlp": (table, (12,)),
    "softplus cnn": (lambda: image(nn.Softplus), (2, 8, 8)),
    "gelu cnn": (lambda: image(nn.GELU), (2, 8, 8)),
    "attention": (Attention, (6, 8)),
}
TARGET = (1, 2)


def exported(network: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """The network's file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (x,), file, dynamo=True, input_names=["x"], output_names=["y"], dynamic_shapes=({0: "N"},)
        )
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("name", NETWORKS)
def test_hessians_are_those_of_torch(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(2, *shape)
    model, size = exported(network, x), int(np.prod(shape))
    path = tmp_path_factory.mktemp("groups") / "each.npy"
    np.save(path, np.arange(size).reshape(shape))
    found = run(
        xaicompile.compile(model, "hessian-x-input", parameters={"group": str(path)}),
        {"x": x.numpy(), "target": np.asarray(TARGET)},
    )["interaction"]
    product = xaicompile.compile(model, "hessian-vector-product")
    v = torch.randn(2, *shape)
    rows = run(product, {"x": x.numpy(), "target": np.asarray(TARGET), "v": v.numpy()})["hvp"]
    for i, target in enumerate(TARGET):

        def scalar(sample: torch.Tensor, target: int = target) -> torch.Tensor:
            return torch.as_tensor(network(sample[None])[0, target])

        full = hessian(scalar, x[i]).reshape(size, size).numpy()
        flat = x[i].reshape(-1).numpy()
        expected = 0.5 * full * flat[:, None] * flat
        off = np.abs(found[i] - expected).max() / np.abs(expected).max()
        towards = full @ v[i].reshape(-1).numpy()
        off_rows = np.abs(rows[i].reshape(-1) - towards).max() / np.abs(towards).max()
        print(f"{name}: interaction {off:.1e}, product {off_rows:.1e}")
        assert off <= FLOAT32
        assert off_rows <= FLOAT32
