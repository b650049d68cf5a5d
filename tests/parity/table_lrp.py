"""The parity table's sections on LRP: zennit's composites, captum's LRP, the headline, and what is not reproduced.

Numbers are kept as they come, in the folder that XAICOMPILE_ZOO names, and taken from there on `--resume`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import captum_lrp, golden, kinks, lite, measure, references, zoo

ROWS = zoo.cache_dir() / "table_lrp.json"
BATCH = 2
Numbers = dict[str, Any]

ZENNIT = f"""## Zennit 1.0.0

All of zennit's named composites, element by element against zennit in float64 with its canonizers, and below them
rules that none of them has (tests/parity/composites). Torchvision's classifiers with random weights, and the demo's
{lite.NAME} with its real ones on its photo; batch {BATCH}: the largest logit of one sample, the smallest of the
other. Two numbers: the files of the legacy and of the dynamo exporter. "zennit f32" is what zennit makes of float32
itself.
"flips" counts what ONNX Runtime's float32 puts on the other side of a kink and can move this map: max-pool winners,
for guided backprop ReLUs, for what cuts at clips those too.
Bounds: f64 {measure.FLOAT64:.0e}, with the gamma rule {measure.ZENNIT:.0e} (zennit has a stabiliser of 1e-6 there, and
none is needed); f32 {measure.ZENNIT:.0e} or ten times zennit's own float32 error, {measure.FLIPPED:.0e} at most and
where a kink flips.
Relevance starts at the logit; guided backprop, deconvnet and beta-smooth are gradients and start at 1.

Zennit needs help to see what is in the file (tests/parity/canonizers.py): for resnets its ResNetCanonizer, for vggs
its SequentialMergeBatchNorm; for beta-smooth on resnets a ReLU module for each call; for {lite.NAME}, whose
additions are functions, a canonizer that makes them zennit's Sum, and the names of its 49 batch norms.
"""
CAPTUM = f"""## Captum 0.9.0

Captum's LRP, where it supports the model: EpsilonRule (1e-9) everywhere, against `lrp-epsilon` with epsilon = 1e-9;
resnet18 with captum's Addition_Module. GammaRule on convolutions and dense layers against the gamma rule there, and
Alpha1_Beta0_Rule against `lrp-zplus`, where they coincide: no input is negative, a positive logit is explained, and
biases are left out (set_bias_to_zero, here bias = "ignore") or all of the sign that both leave as it is.
Bounds: f64 {measure.CAPTUM:.0e} (captum's stabiliser is in pools, sums and batch norms too; with 1e-12 in place of 1e-9
the difference falls a thousandfold), f32 {measure.ZENNIT:.0e} or ten times captum's own float32 error.
"""
CAPTUM_DIFFERS = """
Elsewhere captum differs, and is not followed (tests/parity/test_captum_lrp.py shows each):

- It modifies weights, and not contributions: with a negative input GammaRule boosts, and Alpha1_Beta0_Rule keeps,
  contributions that are negative. The rules here go by the sign of the contribution.
- It leaves biases as they are. Here they follow the rule: gamma boosts them too, z+ leaves out negative ones.
- GammaRule boosts positive contributions to a negative logit; the generalised rule here boosts those of its sign.
- An addition that is a function copies all relevance to both operands (resnet18 as it is in torchvision: values of
  1e12), without a word. Here every Add is seen.
- It refuses models with layers that it has no rule for (nn.Flatten, BatchNorm1d, ReLU6, LayerNorm, ...).
"""
HEADLINE = f"""## From ONNX files: native zennit, onnx2torch + zennit, and xaicompile

EpsilonPlusFlat on resnet18 and densenet121. Native is zennit on the torch model, with its ResNetCanonizer, or with the
59 pairs of convolution and batch norm merged that the exporters fold. The usual way round reads the legacy exporter's
file back with onnx2torch and explains that with zennit: it raises no error, and its rules see neither the additions of
resnet18 nor the average pools of densenet121. (The dynamo exporter's files onnx2torch does not read.) Ours is compiled
from the file. Errors are against native zennit in float64; of its own float32 it makes the error in its row.

Torchvision's densenets end in functions, F.relu and F.adaptive_avg_pool2d, for which zennit has no rule. For the
comparison a rule file says so (tests/parity/composites/{golden.OURS["densenet121"]}.toml): the same relevance to all
of the last average pool, and ReLUs that pass relevance also where they are off, as those modules do that zennit sees.
`epsilon-plus-flat` as it is shipped treats this average pool like all others, and relevance that a batch norm's shift
puts on a unit that is 0 ends there.
"""
QUIRKS = """## What zennit does and is not reproduced

Each with a test, tests/parity/test_zennit_quirks.py unless another is named: the file of the network as it is written
gives here what zennit gives once the quirk is out of its way.

- A module that is called twice: BetaSmooth keeps one input per module, that of the last call. For torchvision's
  resnets, with one ReLU module a block, it is silently wrong (resnet18) or fails (resnet50).
- Functions that no hook sees: an addition copies all relevance to both operands (the sum of R doubles at each),
  F.adaptive_avg_pool2d gives the same relevance to all of its window. Here rules go by operators, not by modules.
- The first layer is the first that was registered, and only one is. Here it is each linear op that reads the input
  through no other, in the order of execution.
- SequentialMergeBatchNorm goes by the order of registration among modules without children: it merges none of
  efficientnet-lite's 49 batch norms without a word, and fails on densenets. Here a batch norm is folded where the graph
  has it behind a linear op.
- ExcitationBackprop has no rule for a batch norm that is not merged, nor for activations: relevance is multiplied by
  the scale, and by the derivative. Here a batch norm, a sigmoid and the like pass it; a ReLU and a clip are as there.
- Relevance on units that are 0 (a batch norm's shift above them) passes through a ReLU that is off. Here it ends
  there, in the ledger, unless a rule file says `pass` for ReLUs, as the headline's does.
- A stabiliser of 1e-6 in the gamma rule. Here it has none, as its denominator is never smaller than z.
- The square of the bias in WSquare's denominator. Here only with bias = "absorb", which test_lrp.py compares.
- Version 0.5.1 merges a batch norm without its epsilon, which leaves an error of up to 7e-3. This is version 1.0.0.
"""


def load(section: str, resume: bool) -> Numbers:
    """Numbers of an earlier run; those of a section to be measured anew are left out."""
    rows: Numbers = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    return rows if resume else {key: value for key, value in rows.items() if not key.startswith(section)}


def kept(rows: Numbers, key: str, work: Callable[[], Any]) -> Any:
    """The number of that key, measured now if it is not there yet."""
    if key not in rows:
        rows[key] = work()
        print(key, rows[key], file=sys.stderr, flush=True)
        ROWS.write_text(json.dumps(rows), encoding="utf-8")
    return rows[key]


def forget() -> None:
    """Lets go of models, which take gigabytes."""
    for cached in (measure.emitted_session, measure.source_session, measure.emitted, measure.source, references.model):
        cached.cache_clear()
    captum_lrp.network.cache_clear()
    gc.collect()


def show(value: float, bound: float) -> str:
    """A number, in bold if it is above its bound."""
    text = f"{value:.0e}"
    return text if value <= bound else f"**{text}**"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sums(relevance: Any) -> str:
    """What the maps sum to."""
    return " / ".join(f"{value:.3g}" for value in relevance.sum((1, 2, 3)))


def both(name: str, exporter: str, rule: str) -> list[Any]:
    """Our maps in float64 and float32."""
    return [explain(name, exporter, BATCH, rule).relevance for explain in (measure.explain64, measure.explain32)]


# zennit


def compared(name: str) -> list[str]:
    """The rule sets in which a model is compared with zennit."""
    return [*measure.COMPOSITES, *(measure.ZENNIT_RULES if name in measure.ZENNIT_MODELS else ())]


def by_zennit(name: str, rule: str) -> dict[str, Any]:
    """What zennit says, and makes of float32."""
    exact = references.zennit_map(name, BATCH, rule)
    single = references.zennit_map(name, BATCH, rule, dtype=torch.float32)
    return {"sum": sums(exact), "own": references.error(single, exact)}


def against_zennit(name: str, exporter: str, rule: str) -> list[float]:
    """Our errors, in float64 and float32, and the number of kinks that flip."""
    exact = references.zennit_map(name, BATCH, rule)
    errors = [references.error(relevance, exact) for relevance in both(name, exporter, rule)]
    return [*errors, kinks.that_matter(name, exporter, BATCH, rule)]


def zennit(rows: Numbers) -> str:
    """The section on zennit."""
    names = [name for name in measure.COMPOSITE_MODELS if name != lite.NAME or available()]
    for name in names:
        for exporter in zoo.exporters(name):
            for rule in compared(name):
                kept(rows, f"zennit: {name} {rule}", lambda name=name, rule=rule: by_zennit(name, rule))
                work = lambda name=name, exporter=exporter, rule=rule: against_zennit(name, exporter, rule)  # noqa: E731
                kept(rows, f"zennit: {name} {rule} {exporter}", work)
        forget()
    lines = []
    for name in names:
        for rule in compared(name):
            theirs = rows[f"zennit: {name} {rule}"]
            found = [rows[f"zennit: {name} {rule} {exporter}"] for exporter in zoo.exporters(name)]
            calm = min(max(measure.ZENNIT, 10 * theirs["own"]), measure.FLIPPED)
            double = " / ".join(show(f[0], measure.exact_bound(rule)) for f in found)
            single = " / ".join(show(f[1], measure.FLIPPED if f[2] else calm) for f in found)
            flips = " / ".join(str(f[2]) for f in found)
            total = "-" if rule in references.GRADIENT_LIKE else theirs["sum"]
            lines.append([name, rule, total, double, single, flips, f"{theirs['own']:.0e}"])
    return ZENNIT + "\n" + markdown(["model", "composite", "sum R", "f64", "f32", "flips", "zennit f32"], lines)


def available() -> bool:
    """Whether the demo's torch class is installed."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError:
        return False
    return True


# captum


def against_captum(case: captum_lrp.Case) -> list[float]:
    """Our errors in float64 and float32, and what captum makes of float32."""
    exact = captum_lrp.captum(case)
    maps = [measure.captum_case(case), measure.captum_case(case, torch.float32), captum_lrp.captum(case, torch.float32)]
    return [references.error(found, exact) for found in maps]


def captum(rows: Numbers) -> str:
    """The section on captum."""
    lines = []
    for case in captum_lrp.CASES:
        double, single, own = kept(rows, f"captum: {case}", lambda case=case: against_captum(case))
        forget()
        bound = min(max(measure.ZENNIT, 10 * own), measure.FLIPPED)
        biases = {"small-negative": "none positive", "small-positive": "none negative"}
        bias = biases.get(case.model, "as they are") if case.bias else "left out"
        rule = captum_lrp.CAPTUM[case.rule].__name__
        lines.append(
            [case.model.split("-")[0], rule, bias, show(double, measure.CAPTUM), show(single, bound), f"{own:.0e}"]
        )
    return CAPTUM + "\n" + markdown(["model", "rule", "biases", "f64", "f32", "captum f32"], lines) + CAPTUM_DIFFERS


# the headline


def headline_of(name: str) -> list[list[str]]:
    """Sums and errors of one model."""
    x, target = zoo.sample(name, BATCH), references.targets(name, BATCH)
    native = references.zennit_map(name, BATCH, golden.RULE)
    own = references.error(references.zennit_map(name, BATCH, golden.RULE, dtype=torch.float32), native)
    around = references.workaround_map(zoo.export(name, "legacy"), x, target, golden.RULE)
    bounds = (measure.FLOAT64, min(max(measure.ZENNIT, 10 * own), measure.FLIPPED))
    lines = [[name, "zennit, native", sums(native), "0", f"{own:.0e}"]]
    for exporter in zoo.EXPORTERS:
        found = both(name, exporter, golden.OURS[name])
        cells = [show(references.error(r, native), bound) for r, bound in zip(found, bounds, strict=True)]
        lines.append([name, f"xaicompile, {exporter}, {golden.OURS[name]}", sums(found[1]), *cells])
    if golden.OURS[name] != golden.RULE:
        found = both(name, "legacy", golden.RULE)
        cells = [f"{references.error(r, native):.2g}" for r in found]
        lines.append([name, f"xaicompile, legacy, {golden.RULE} as shipped", sums(found[1]), *cells])
    return [*lines, [name, "onnx2torch + zennit, legacy", sums(around), f"{references.error(around, native):.2g}", "-"]]


def headline(rows: Numbers) -> str:
    """The section on ONNX files."""
    lines = []
    for name in golden.MODELS:
        lines += kept(rows, f"headline: {name}", lambda name=name: headline_of(name))
        forget()
    return HEADLINE + "\n" + markdown(["model", "by", "sum R", "error f64", "error f32"], lines)
