"""LSTM, GRU and RNN exported from torch: the gradient is autograd's, with padding, layers and both directions."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import xaicompile
from tests.graphs import exact, run

FLOAT64 = 1e-9
FLOAT32 = 1e-5
pytestmark = pytest.mark.parity
KINDS = ("LSTM", "GRU", "RNN")
LENGTHS = (6, 6, 4, 1)


class Padded(nn.Module):
    """A classifier over the steps of padded sequences, bidirectional."""

    def __init__(self, kind: str, layers: int) -> None:
        super().__init__()
        self.steps = getattr(nn, kind)(5, 4, layers, bidirectional=True, batch_first=True)
        self.end = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed, _ = self.steps(pack_padded_sequence(x, lengths, batch_first=True))
        y, _ = pad_packed_sequence(packed, batch_first=True)
        return self.end(y.sum(1))


class Whole(Padded):
    """The same over whole sequences."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.end(self.steps(x)[0].sum(1))


@functools.cache
def exported(kind: str, layers: int, padded: bool) -> tuple[nn.Module, onnx.ModelProto]:
    """A network in float64 and its file: by the legacy exporter with padding (the other has none), else by dynamo."""
    torch.manual_seed(layers)
    net = (Padded if padded else Whole)(kind, layers).double().eval()
    x, file = torch.randn(3, 6, 5, dtype=torch.float64), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if padded:
            axes = {"x": {0: "N", 1: "T"}, "lengths": {0: "N"}, "y": {0: "N"}}
            args, names = (x, torch.tensor([6, 4, 2])), ["x", "lengths"]
            torch.onnx.export(
                net,
                args,
                file,
                dynamo=False,
                opset_version=17,
                input_names=names,
                output_names=["y"],
                dynamic_axes=axes,
            )
        else:
            shapes = ({0: "N"},)  # it fixes the length
            torch.onnx.export(
                net, (x,), file, dynamo=True, input_names=["x"], output_names=["y"], dynamic_shapes=shapes
            )
    return net, onnx.load_from_string(file.getvalue())


def single(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float64 model in float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for i in graph.initializer:
        if i.data_type == onnx.TensorProto.DOUBLE:
            i.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(i).astype(np.float32), i.name))
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            v.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for a in (a for n in graph.node for a in n.attribute if a.HasField("t")):
        if a.t.data_type == onnx.TensorProto.DOUBLE:
            a.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(a.t).astype(np.float32)))
    return result


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_autograd(kind: str, layers: int, padded: bool) -> None:
    """For the winning class, on another batch than at export: float64 to rounding, then in ONNX Runtime."""
    net, model = exported(kind, layers, padded)
    x = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    lengths = torch.tensor(LENGTHS)
    y = net(x, lengths) if padded else net(x)
    (want,) = torch.autograd.grad(y.max(1).values.sum(), x)
    feed = {"x": x.detach().numpy(), **({"lengths": np.asarray(LENGTHS)} if padded else {})}
    scale = float(want.abs().max())
    got = exact(xaicompile.compile(model, "gradient"), feed)
    assert np.abs(got["y"] - y.detach().numpy()).max() <= FLOAT64
    assert np.abs(got["relevance"] - want.numpy()).max() <= FLOAT64 * scale
    feed["x"] = feed["x"].astype(np.float32)
    found = run(xaicompile.compile(single(model), "gradient"), feed)
    assert np.abs(found["relevance"] - want.numpy()).max() <= FLOAT32 * scale
    if padded:  # nothing reaches what lies behind the end of a sequence
        assert not found["relevance"][3, 1:].any() and found["relevance"][3, 0].all()


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_and_ledger_sum_to_the_logit_sample_by_sample(kind: str) -> None:
    _, model = exported(kind, 2, True)
    feed = {"x": np.random.default_rng(3).standard_normal((4, 6, 5)), "lengths": np.asarray(LENGTHS)}
    for rule in ("lrp-0", "lrp-epsilon"):
        got = exact(xaicompile.compile(model, rule, ledger=True), feed)
        total = got["relevance"].sum((1, 2)) + got["ledger"]
        np.testing.assert_allclose(total, got["explained"], rtol=0, atol=1e-9 * np.abs(got["ledger_by_node"]).max())
