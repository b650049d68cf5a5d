"""Writes the table of methods, METHODS.md beside this file.

    python -m tests.parity.methods_table [--resume] [MODEL ...]

Named models are measured anew, by default all; that takes half an hour on two cores, and 8 GB of memory for vgg11.
Rows are kept in the folder that XAICOMPILE_ZOO names as they come; --resume measures only those that are missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from . import measure, zoo
from .methods_measure import AVERAGES, COUNT, MODELS, Numbers, measured
from .methods_peers import DEEP_LIFT, FILL, METHODS, RELATIVE, SIGMA
from .table_lrp import markdown, show

FILE = Path(__file__).parent / "METHODS.md"
ROWS = zoo.cache_dir() / "methods.json"
INTRODUCTION = f"""# Methods against captum 0.9.0 and zennit 1.0.0

Written by `python -m tests.parity.methods_table`. A network of tanh, resnet18 and vgg11 with random weights, and the
demo's efficientnet-lite0 with its real ones on its photo; two samples (of vgg11 one), a class of each fed as `target`
when the model runs, a baseline of each that is no plain image. Steps and noisy inputs:
{", ".join(f"{name} {count}" for name, count in COUNT.items())} (of integrated gradients of noisy inputs, 2 and 2);
noise of {SIGMA:g}, zennit's of {RELATIVE:g} of the range; occlusion fills with {FILL:g}, in windows that overlap and
are cut off at the border. The peers are handed the noise, the points and the members that xaicompile draws.

An error is the largest absolute difference over the largest absolute value of the sample's map by the peer in float64,
of the worst sample. f64: the emitted graph replayed in torch; f32: in ONNX Runtime on the CPU; "peer f32": what the
peer makes of float32 itself. Where f32 is above {measure.ZENNIT:.0e} and the method averages gradients: "flips", the
number of kinks (ReLUs, clips, winners of max-pools) at all points of the method that ONNX Runtime takes on the other
side than float64, and "same side", the error against float64 with those kinks put where ONNX Runtime put them, which
is below {measure.ZENNIT:.0e} without exception. A value above its bound is in bold: there the peer's own is, too.
Bounds: f64 {measure.FLOAT64:.0e}; f32 {measure.ZENNIT:.0e} or ten times the peer's own error, {measure.FLIPPED:.0e} at
most, and where a kink flips.
"""
DIFFERENCES = """
What the peers define in another way, and is not followed (tests/parity/test_methods_differences.py shows each):

- captum holds its points and weights, the noise's width and the counts of occlusion in float32 also where the model is
  in float64, which costs 6e-8 or so. The f64 column is with these in float64, too.
- captum's trapezoid has weights that sum to (n - 1) / n. Here, and in the row above, they sum to 1.
- captum's noise is absolute and drawn anew for each sample of a batch; here the width is relative to the sample's range
  by default, and the noise the same for all samples.
- captum's vargrad is the mean square less the square of the mean, which cancels: see its own error for the network of
  tanh. Here it is a running variance.
- captum's DeepLIFT does not sum to the difference of the outputs where there are max-pools; it knows no ReLU6 (it takes
  the gradient, with a warning), and refuses a module that is called twice. The rows are with averages in place of
  max-pools, ReLU6 under the rule of ReLU, and a module for each call.
- captum refuses an occlusion whose stride is larger than its window. Here what no window covers gets 0.
- zennit's SmoothGrad counts the input without noise as the last of its n samples. The row takes that one out.
- zennit's Occlusion keeps the window and fills the rest, and adds up the output itself; windows go round the border,
  and where they overlap they are summed, not averaged. The row is with windows side by side, filled, and what is lost.
- zennit starts at all outputs, weighted by themselves, unless it is told otherwise; here one output is explained.
"""


def rows(names: Sequence[str], resume: bool) -> dict[str, Numbers]:
    """Measures models; what is known of the others is taken from the file."""
    kept: dict[str, dict[str, float]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for name in MODELS:
        for key in METHODS:
            network = name + AVERAGES if key in DEEP_LIFT and name != "tanh" else name
            title = f"{key} | {network}"
            if name in names and not (resume and title in kept):
                kept[title] = asdict(measured(network, key))
                print(title, kept[title], file=sys.stderr, flush=True)
                ROWS.write_text(json.dumps(kept), encoding="utf-8")
    return {title: Numbers(**numbers) for title, numbers in kept.items()}  # type: ignore[arg-type]


def cells(title: str, n: Numbers) -> list[str]:
    """One row."""
    side = show(n.on_side, measure.ZENNIT) if n.flips else "-"
    found = [show(n.double, measure.FLOAT64), show(n.single, n.bound), f"{n.own:.0e}", f"{n.bound:.0e}"]
    return [*title.split(" | "), *found, str(n.flips or "-"), side]


def main(arguments: Sequence[str]) -> None:
    """Writes the file."""
    torch.set_num_threads(1)
    names = [a for a in arguments if not a.startswith("-")] or MODELS
    found = rows(names, "--resume" in arguments)
    order = [f"{key} | {name}{end}" for key in METHODS for name in MODELS for end in ("", AVERAGES)]
    header = ["method", "model", "f64", "f32", "peer f32", "bound", "flips", "same side"]
    table = markdown(header, [cells(title, found[title]) for title in order if title in found])
    FILE.write_text(f"{INTRODUCTION}\n{table}{DIFFERENCES}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
