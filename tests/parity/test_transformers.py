"""Transformers built from a configuration with random weights: the gradient at the embeddings against torch autograd.

Relevance has the shape of the token ids (of the pixels for ViT); with rule gradient-x-input it is the sum over features
of embedding times gradient, which autograd gives too. Bound: 1e-4 of the largest value (float32).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from xaicompile.compiler import compile_model  # noqa: E402
from xaicompile.runtime import Session  # noqa: E402

BOUND = 1e-4
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "attn_implementation": "eager"}
TEXT = {"vocab_size": 200, "max_position_embeddings": 64, **SMALL}


class Wrapped(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model with plain tensors in and one tensor out."""

    def __init__(self, model: Any, call: Callable[..., Any], embedding: Any = None) -> None:
        super().__init__()
        self.model, self.call, self.embedding = model, call, embedding

    def forward(self, *args: Any) -> Any:
        return self.call(self.model, *args)


def bert() -> Wrapped:
    config = hf.BertConfig(hidden_size=32, intermediate_size=64, num_labels=3, **TEXT)
    model = hf.BertForSequenceClassification(config)
    call = lambda m, i, a: m(input_ids=i, attention_mask=a).logits  # noqa: E731
    return Wrapped(model, call, model.bert.embeddings.word_embeddings)


def distilbert() -> Wrapped:
    config = hf.DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=3, attn_implementation="eager"
    )
    model = hf.DistilBertForSequenceClassification(config)
    call = lambda m, i, a: m(input_ids=i, attention_mask=a).logits  # noqa: E731
    return Wrapped(model, call, model.distilbert.embeddings.word_embeddings)


def gpt2() -> Wrapped:
    config = hf.GPT2Config(
        vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False, attn_implementation="eager",
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = hf.GPT2LMHeadModel(config)
    return Wrapped(model, lambda m, i, a: m(input_ids=i, attention_mask=a).logits[:, -1], model.transformer.wte)


def llama() -> Wrapped:
    config = hf.LlamaConfig(hidden_size=32, num_key_value_heads=2, intermediate_size=64, use_cache=False, **TEXT)
    model = hf.LlamaForCausalLM(config)
    return Wrapped(model, lambda m, i, a: m(input_ids=i, attention_mask=a).logits[:, -1], model.model.embed_tokens)


def t5_encoder() -> Wrapped:
    config = hf.T5Config(
        vocab_size=200, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=64, attn_implementation="eager"
    )
    model = hf.T5EncoderModel(config)
    call = lambda m, i, a: m(input_ids=i, attention_mask=a).last_hidden_state.mean(1)  # noqa: E731
    return Wrapped(model, call, model.encoder.embed_tokens)


def vit() -> Wrapped:
    config = hf.ViTConfig(hidden_size=32, intermediate_size=64, image_size=32, patch_size=8, num_labels=5, **SMALL)
    return Wrapped(hf.ViTForImageClassification(config), lambda m, x: m(pixel_values=x).logits)


MODELS = {f.__name__: f for f in (bert, distilbert, gpt2, llama, t5_encoder, vit)}
QUICK = {("bert", "legacy"), ("llama", "legacy"), ("llama", "dynamo")}


def rows() -> list[Any]:
    return [
        pytest.param(name, exporter, marks=pytest.mark.parity if (name, exporter) in QUICK else pytest.mark.parity_full)
        for name in MODELS
        for exporter in ("legacy", "dynamo")
    ]


def built(name: str) -> tuple[Wrapped, tuple[Any, ...]]:
    """The model with weights large enough that attention is not uniform, and a padded batch."""
    torch.manual_seed(0)
    net = MODELS[name]().eval()
    for p in net.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.15)
        else:
            p.data += 0.1 * torch.randn_like(p)
    if net.embedding is None:
        return net, (torch.randn(2, 3, 32, 32),)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return net, (torch.randint(3, 200, (2, 7)), mask)


def autograd(net: Wrapped, args: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Prediction, and input (or embedding) times gradient of the largest output."""
    seen: list[Any] = []

    def keep(_module: Any, _args: Any, out: Any) -> None:
        out.retain_grad()
        seen.append(out)

    if net.embedding is None:
        args = (args[0].clone().requires_grad_(),)
        seen.append(args[0])
    else:
        net.embedding.register_forward_hook(keep)
    out = net(*args)
    out.max(1).values.sum().backward()
    product = seen[0] * seen[0].grad
    return out.detach().numpy(), (product if net.embedding is None else product.sum(-1)).detach().numpy()


def exported(net: Wrapped, args: tuple[Any, ...], exporter: str, path: Path) -> None:
    names = ["input_ids", "attention_mask"] if len(args) == 2 else ["pixel_values"]
    axes = {0: "N", 1: "T"} if len(args) == 2 else {0: "N"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "legacy":
            dynamic = {**dict.fromkeys(names, axes), "out": {0: "N"}}
            torch.onnx.export(
                net, args, path, dynamo=False, opset_version=17, input_names=names, output_names=["out"],
                dynamic_axes=dynamic,
            )  # fmt: skip
        else:
            free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
            torch.onnx.export(
                net, args, path, dynamo=True, input_names=names, output_names=["out"],
                dynamic_shapes=[tuple(free for _ in args)], verbose=False,
            )  # fmt: skip


@pytest.mark.parametrize(("name", "exporter"), rows())
def test_gradient_at_the_embeddings(name: str, exporter: str, tmp_path: Path) -> None:
    net, args = built(name)
    path = tmp_path / "model.onnx"
    exported(net, args, exporter, path)
    prediction, expected = autograd(net, args)
    for rule in ("gradient-x-input", "lrp-gamma"):
        compiled = compile_model(path, rule, ledger=True)
        assert list(compiled.relevance.values()) == ["relevance"]
        compiled.save(tmp_path / "explained.onnx")
        session = Session(tmp_path / "explained.onnx")
        feeds = {port.name: a.numpy() for port, a in zip(session.inputs, args, strict=False)}
        found = session.run(feeds)
        np.testing.assert_allclose(found["out"], prediction, rtol=1e-4, atol=1e-5)
        relevance = found["relevance"]
        assert relevance.shape == args[0].shape
        if rule == "gradient-x-input":
            assert np.abs(relevance - expected).max() <= BOUND * np.abs(expected).max()
        gap = relevance.reshape(2, -1).sum(1) + found["ledger"] - found["explained"]
        largest = np.abs(found["ledger_by_node"]).max(1)
        assert (np.abs(gap) <= 1e-4 * np.maximum(np.abs(found["explained"]), largest)).all()
