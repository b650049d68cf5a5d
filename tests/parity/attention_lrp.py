"""AttnLRP and CP-LRP of any torch model, in two forms, to compare maps of transformers with.

Both forms read the functions that a model calls and change what autograd does there, so they need no knowledge of the
model. `Gradients` is the form with modified gradients (LXT calls it efficient): relevance is input times gradient, no
stabiliser stands anywhere. `Relevances` is the explicit form: what autograd carries is relevance itself, by the rules
and with the stabilisers of LXT (z + 1e-6 or z + 1e-8, unsigned). Written from the papers' formulas (Achtibat et al.
2024, Ali et al. 2022); nothing here imports xaicompile or LXT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ACTIVATIONS = {"gelu", "silu", "tanh", "relu", "hardtanh", "sigmoid"}


class Double(TorchFunctionMode):  # type: ignore[misc]
    """Keeps in float64 what a model means to do in float32, as norms and softmax in half-precision models."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **kwargs)


class Changed(TorchFunctionMode):  # type: ignore[misc]
    """Calls the method of a function's name, where there is one, in place of the function."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.cp = {"attnlrp": False, "cp-lrp": True}[method]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.strip("_")
        name = {"bmm": "matmul", "rmul": "mul", "imul": "mul", "iadd": "add", "radd": "add", "div": "truediv"}.get(
            name, name
        )
        if name in ACTIVATIONS:
            more = {k: v for k, v in (kwargs or {}).items() if k != "inplace"}
            return self.activation(lambda x: func(x, *args[1:], **more), args[0], name)
        own = getattr(type(self), f"on_{name}", None)
        return func(*args, **(kwargs or {})) if own is None else own(self, func, *args, **(kwargs or {}))

    def activation(self, f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
        raise NotImplementedError

    def on_rsqrt(self, func: Any, x: Tensor) -> Tensor:
        """What a norm divides by is a constant."""
        return func(x.detach())

    def on_normalize(
        self, func: Any, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
    ) -> Tensor:
        with self:
            return x / x.detach().norm(p, dim, keepdim=True).clamp_min(eps)

    def on_scaled_dot_product_attention(
        self, func: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        with self:
            if enable_gqa:
                k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
            scores = torch.matmul(q, k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                scores = torch.where(attn_mask, scores, -torch.inf)
            elif attn_mask is not None:
                scores = scores + attn_mask
            return torch.matmul(torch.softmax(scores, -1), v)

    def on_multi_head_attention_forward(
        self, func: Any, q: Tensor, k: Tensor, v: Tensor, width: int, heads: int, weight: Tensor, bias: Tensor,
        *rest: Any, **more: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Self-attention on [length, batch, width]."""
        assert q is k is v
        out_weight, out_bias = rest[4:6]
        with self:
            split = (len(q), -1, heads, width // heads)
            parts = [t.reshape(split).permute(1, 2, 0, 3) for t in F.linear(q, weight, bias).chunk(3, -1)]
            mixed = F.scaled_dot_product_attention(*parts).permute(2, 0, 1, 3).flatten(2)
            return F.linear(mixed, out_weight, out_bias), None


def both(a: Any, b: Any) -> bool:
    """True for two factors that depend on what is explained."""
    return all(isinstance(t, Tensor) and t.requires_grad for t in (a, b))


class Gradients(Changed):
    """Modified gradients: f(x)/x for activations, half for each factor of a product, norms with a constant scale."""

    def activation(self, f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
        probe = torch.zeros((), dtype=x.dtype, requires_grad=True)
        with torch.enable_grad():
            start = f(probe)
            (slope,) = torch.autograd.grad(start, probe)
        y = f(x).detach()
        ratio = torch.where(x == 0, slope, (y - start.detach()) / torch.where(x == 0, 1, x)).detach()
        y = y + (x - x.detach()) * ratio
        y.activation = name
        return y

    def on_softmax(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return func(x.detach() if self.cp else x, *args, **kwargs)

    def on_mul(self, func: Any, a: Any, b: Any) -> Tensor:
        if not both(a, b):
            return func(a, b)
        if self.cp:
            for kind in ({"sigmoid"}, ACTIVATIONS):
                held = [getattr(t, "activation", None) in kind for t in (a, b)]
                if sum(held) == 1:
                    return func(*(t.detach() if h else t for t, h in zip((a, b), held, strict=True)))
        return func(halved(a), halved(b))

    def on_matmul(self, func: Any, a: Tensor, b: Tensor) -> Tensor:
        return func(halved(a), halved(b)) if both(a, b) else func(a, b)

    def on_einsum(self, func: Any, equation: str, *operands: Tensor) -> Tensor:
        return func(equation, *(halved(t) if both(*operands) else t for t in operands))

    def on_layer_norm(self, func: Any, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        return normalised(x, x, weight, bias, eps)


def halved(x: Tensor) -> Tensor:
    """x, of which half the gradient goes back."""
    return x / 2 + (x / 2).detach()


def normalised(x: Tensor, constant: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation of x over the last axis with the deviation of a constant."""
    deviation = (constant.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation * weight + bias


class Carry(torch.autograd.Function):  # type: ignore[misc]
    """A result, and how its relevance goes back to the tensors that it was made of."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, back: Callable[[Tensor], Any], *_: Tensor) -> Tensor:
        ctx.back = back
        return y.clone()

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Any:
        return None, None, *ctx.back(r)


class Relevances(Changed):
    """LXT's explicit rules; what only moves values moves relevance, since its gradient does.

    Args:
        method: "attnlrp" or "cp-lrp".
        stabiliser: What LXT's stabilisers are multiplied by; 0 leaves them out.
    """

    def __init__(self, method: str, stabiliser: float = 1.0) -> None:
        super().__init__(method)
        self.small, self.least = 1e-6 * stabiliser, 1e-8 * stabiliser

    def epsilon(self, f: Callable[..., Tensor], eps: float, *x: Tensor) -> Tensor:
        """x_k VJP_k(R / (z + eps)), with the share of whatever f holds beside x absorbed."""
        probes = [t.detach().requires_grad_() for t in x]
        with torch.enable_grad():
            z = f(*probes)

        def back(r: Tensor) -> list[Tensor]:
            s = r / (z.detach() + eps)
            slopes = torch.autograd.grad(z, probes, s, retain_graph=True)
            return [t.detach() * g for t, g in zip(x, slopes, strict=True)]

        return Carry.apply(z.detach(), back, *x)

    def activation(self, f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
        y = f(x).detach()
        return y if self.cp and name == "silu" else Carry.apply(y, lambda r: [r], x)

    def on_linear(self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.epsilon(lambda t: func(t, weight, bias), self.small, x)

    def on_addmm(self, func: Any, b: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self.epsilon(lambda t: func(b, t, w), self.small, x)

    def on_conv2d(self, func: Any, x: Tensor, *args: Any) -> Tensor:
        return self.epsilon(lambda t: func(t, *args), self.small, x)

    def on_mean(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The stabiliser is added to the sum."""
        z = func(x, *args, **kwargs)
        count = x.numel() / z.numel()
        return self.epsilon(lambda t: func(t, *args, **kwargs), self.small / count, x) if x.requires_grad else z

    def on_layer_norm(self, func: Any, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
        return self.epsilon(lambda t: normalised(t, x, weight, bias, eps), self.small, x)

    def on_matmul(self, func: Any, a: Tensor, b: Tensor) -> Tensor:
        if both(a, b):
            z = func(a, b).detach()

            def back(r: Tensor) -> list[Tensor]:
                s = r / (2 * z + self.least)
                return [a.detach() * (s @ b.detach().mT), b.detach() * (a.detach().mT @ s)]

            return Carry.apply(z, back, a, b)
        if b.requires_grad:
            return self.epsilon(lambda t: func(a, t), self.least, b)
        return self.epsilon(lambda t: func(t, b), self.least, a) if a.requires_grad else func(a, b)

    def on_softmax(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        s = func(x, *args, **kwargs).detach()
        if self.cp:
            return s
        axis = kwargs.get("dim", args[0] if args else -1)
        finite = torch.where(x.isinf(), 0, x).detach()
        return Carry.apply(s, lambda r: [finite * (r - s * r.sum(axis, keepdim=True))], x)

    def on_mul(self, func: Any, a: Any, b: Any) -> Tensor:
        """R/n to each of n factors that are data."""
        data = [t for t in (a, b) if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad():
            z = func(a, b)
        return Carry.apply(z, lambda r: [unbroadcast(r / len(data), t) for t in data], *data) if data else z

    on_truediv = on_mul

    def on_neg(self, func: Any, x: Tensor) -> Tensor:
        return Carry.apply(func(x).detach(), lambda r: [r], x) if x.requires_grad else func(x)

    def on_add(self, func: Any, a: Any, b: Any) -> Tensor:
        data = [t for t in (a, b) if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad():
            z = func(a, b) if func.__name__ != "__iadd__" else a + b
        back = lambda r: [unbroadcast(t.detach() * (r / (z + self.least)), t) for t in data]  # noqa: E731
        return Carry.apply(z, back, *data) if data else z


def unbroadcast(r: Tensor, t: Tensor) -> Tensor:
    """Relevance of a result summed to the shape of what was broadcast."""
    return r.sum_to_size(t.shape)


@contextmanager
def started_at(module: nn.Module | None, inputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Collects where relevance is read: the output of an embedding, or the input itself."""
    seen: list[Tensor] = []
    if module is None:
        seen.append(inputs[0].requires_grad_())
        yield seen
        return

    def keep(_module: Any, _args: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def explain(net: nn.Module, args: tuple[Tensor, ...], form: Changed) -> tuple[Tensor, Tensor]:
    """Prediction, and relevance of its largest value per sample, in float64.

    Args:
        net: A model in float64; its attribute `embedding`, if it has one, is where relevance is read.
        args: Its inputs.
        form: Gradients or Relevances.
    """
    for p in net.parameters():
        p.requires_grad_(False)
    explicit = isinstance(form, Relevances)
    args = tuple(a.detach().double() if a.is_floating_point() else a for a in args)
    embedding = getattr(net, "embedding", None)
    with started_at(embedding, list(args)) as seen, Double(), form:
        out = net(*args)
    value, index = out.max(1)
    seed = value.detach() if explicit else torch.ones_like(value)
    out.backward(torch.zeros_like(out).scatter(1, index[:, None], seed[:, None]))
    (start,) = seen
    r = start.grad if explicit else start * start.grad
    return out.detach(), (r.sum(-1) if embedding is not None else r).detach()
