"""What is explained: the output, the inputs, and the cotangent that the backward pass starts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xaicompile import tokens
from xaicompile.bodies.refused import reason
from xaicompile.errors import ModelError, RuleError, UnsupportedError
from xaicompile.facts import Facts
from xaicompile.gaps import gap
from xaicompile.half import is_half, narrowed, widened
from xaicompile.ir import Builder, Program, Tensor, View
from xaicompile.passes.heads import logits_of, scaled_to_one
from xaicompile.registry import nearest
from xaicompile.samples import Samples, find

CUT = {"Softmax", "LogSoftmax", "Sigmoid", "ZipMap", "ArgMax"}


@dataclass
class End:
    """The explained tensor and what was cut behind it.

    Attributes:
        score: Under which name a neuralized model gives out the explained scalars, if it does not yet; "" for others.
        ratio: What is explained of the tensor's elements: "" one of them, "softmax" the log-likelihood ratio of one,
            with the elements as logits.
        constants: Numbers given out beside the score.
    """

    tensor: Tensor
    cut: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    score: str = ""
    ratio: str = ""
    constants: dict[str, float] = field(default_factory=dict)


def choose_output(p: Program, name: str | None, any_type: bool = False) -> End:
    """The named tensor exactly as it is, or the logits behind the first output that leads to any.

    Args:
        any_type: Take the first output if none leads to floating-point scores, as labels of clusters do.

    Raises:
        ModelError: No output is a floating-point tensor or leads to one.
        UnsupportedError: The op that makes the scores has no gradient.
        RuleError: No tensor of that name.
    """
    if name is not None:
        if name not in p.tensors:
            raise nearest(name, p.tensors, "tensor to explain")
        if not p.tensors[name].is_float and not any_type:
            raise RuleError(f"--explain-output: '{name}' is {p.tensors[name].dtype}, not floating-point")
        return End(p.tensors[name])
    producers = p.producers()
    ends = [behind(t, producers) for t in p.outputs]
    chosen = next((e for e, t in zip(ends, p.outputs, strict=True) if t.is_float), None)
    chosen = chosen or next((e for e in ends if e.tensor.is_float), None)
    if chosen is None and any_type:
        return End(p.outputs[0])
    if chosen is None:
        refused = [v for e in ends if (v := producers.get(e.tensor.name)) is not None and reason(v)]
        if refused:  # its scores are of no type that inference knows
            raise UnsupportedError(f"{refused[0]!r}: {reason(refused[0])}", [gap(refused[0], reason(refused[0]))])
        kinds = ", ".join(f"'{t.name}' {t.dtype}" for t in p.outputs)
        raise ModelError(f"no output is floating-point ({kinds}); name a tensor with --explain-output")
    if len(p.outputs) > 1:
        chosen.notes.append(f"explains '{chosen.tensor.name}'; --explain-output names another tensor")
    return chosen


def behind(t: Tensor, producers: dict[str, View]) -> End:
    """The tensor in front of trailing Softmax, Sigmoid and the like, and of rounding."""
    end, here = End(t), t
    while (view := producers.get(here.name)) is not None and view.x and view.x[0] is not None:
        logits = logits_of(view, producers)
        if logits is not None:
            end.cut.append(f"Softmax written out up to {view!r}")
            end.tensor = here = logits
            continue
        probabilities = scaled_to_one(view, producers)
        if probabilities is not None:
            end.cut.append(f"sum to one in {view!r}")
            end.tensor = here = probabilities
            continue
        here = view.inp(0)
        before = producers.get(here.name)
        if view.op == "QuantizeLinear" and before is not None and before.name == view.name:
            end.cut.append(repr(view))  # with the clip to the range that it has
            end.tensor = here = before.inp(0)
        elif view.op in CUT:
            end.cut.append(repr(view))
            end.tensor = here
        elif not same_values(view):
            break
    return end


def same_values(view: View) -> bool:
    """True for ops that hand on each sample's values, rounded or in another shape at most."""
    x, y = view.inp(0), view.out(0)
    if view.op == "Reshape":  # around a Softmax of before opset 13, which flattens
        first, same = (x.shape or (None,))[0], (y.shape or (None,))[0]
        return first is not None and first == same
    return view.op in ("Identity", "QuantizeLinear") or (view.op == "Cast" and x.is_float)


@dataclass(frozen=True)
class Given:
    """An explained input: itself, and the float tensors in which it begins (itself, or the embeddings of its ids)."""

    tensor: Tensor
    starts: list[Tensor]

    @property
    def tokens(self) -> bool:
        """True for integer ids."""
        return self.starts[0] is not self.tensor


def choose_inputs(p: Program, names: str | Sequence[str] | None, notes: list[str]) -> list[Given]:
    """The named inputs, or every floating-point input and every input of token ids.

    Raises:
        ModelError: There is no such input.
        RuleError: A named input does not exist, or holds neither floats nor ids that are looked up.
    """
    known = {t.name: t for t in p.inputs if t.name in p.required}
    if names is not None:
        return [named_input(p, known, n) for n in ([names] if isinstance(names, str) else names)]
    found = []
    for t in known.values():
        starts = [t] if t.is_float else tokens.starts_of(p, t)
        if starts and (t.is_float or tokens.is_text(t.name)):
            found.append(Given(t, starts))
        elif starts:
            notes.append(f"'{t.name}' is looked up in an embedding, but not explained; --explain-input names it")
    if not found:
        kinds = ", ".join(f"'{t.name}' {t.dtype}" for t in known.values()) or "none at all"
        raise ModelError(f"no floating-point input and no token ids to explain (inputs: {kinds})")
    return found


def named_input(p: Program, known: dict[str, Tensor], name: str) -> Given:
    """The input of that name."""
    if name not in known:
        raise nearest(name, known, "input")
    t = known[name]
    starts = [t] if t.is_float else tokens.starts_of(p, t)
    if not starts:
        raise RuleError(f"--explain-input: '{name}' is {t.dtype}, and no embedding looks it up")
    return Given(t, starts)


@dataclass
class Explained:
    """The explained scalar of each sample.

    Attributes:
        cotangent: Where the backward pass starts, of the explained tensor's shape.
        value: The explained scalars, [N].
        batch: Symbol or size of the batch axis, None where the output is one sample.
        batched: True if axis 0 of input and output is the batch.
        surplus: By how much the cotangent times the explained tensor exceeds the value, [N]; None: not at all.
    """

    cotangent: Tensor
    value: Tensor
    batch: int | str | None
    batched: bool
    surplus: Tensor | None = None


def is_batched(end: Tensor, data: Tensor) -> bool:
    """True if axis 0 is the batch in both: the same symbol, both unknown, or equal sizes (design of `target`)."""
    if not end.shape or not data.shape:
        return end.shape is None
    a, b = end.shape[0], data.shape[0]
    return a == b if isinstance(a, int) and isinstance(b, int) else not isinstance(a, int) and not isinstance(b, int)


def apart(views: Sequence[View], facts: Facts, inputs: Sequence[Given], end: Tensor) -> Samples:
    """Whether each sample can have a ledger of its own: none has more rows than another, none meets another."""
    odd = next((given.tensor for given in inputs if not is_batched(end, given.tensor)), None)
    if odd is not None:
        return Samples(mixed=f"axis 0 of '{odd.name}' is not that of '{end.name}'")
    return find(views, facts, [t for given in inputs for t in given.starts], end)


def all_together(b: Builder, seed: Explained) -> Explained:
    """The same with all samples as one."""
    value, surplus = (
        None if t is None else b.Reshape(b.op("ReduceSum", t, keepdims=0), [1]) for t in (seed.value, seed.surplus)
    )
    assert value is not None
    return replace(seed, value=value, surplus=surplus, batched=False, batch=None)


def total_per_sample(b: Builder, amount: Tensor, seed: Explained, axis: int) -> Tensor:
    """An amount summed to one number per sample, [N], in the explained tensor's type; `axis` holds the samples."""
    if amount.dtype != seed.value.dtype and not is_half(seed.value):
        amount = b.CastLike(amount, seed.value)
    amount = widened(b, amount)
    if not seed.batched:
        return narrowed(b, b.Reshape(b.op("ReduceSum", amount, keepdims=0), [1]), seed.value)
    if axis:
        amount = b.Transpose(amount, perm=[axis, *(i for i in range(amount.rank or 0) if i != axis)])
    if seed.batch is None or (amount.shape or (None,))[0] != seed.batch:  # other axes may be merged with it, as inner
        count = b.shape_of(seed.value)
        each = b.Div(b.Reshape(b.Size(amount), [1]), b.Max(count, 1))
        amount = b.Reshape(amount, b.Concat(count, each, axis=0), allowzero=1)
    flat = b.Flatten(amount, axis=1) if amount.rank is None else amount
    return narrowed(b, b.sum_axes(flat, list(range(1, amount.rank or 2))), seed.value)
