"""Writes the golden numbers of the headline: zennit's EpsilonPlusFlat of two models, native, with its canonizers.

    python -m tests.parity.golden

Nothing here imports xaicompile. Beside the golden maps it keeps what the usual way round makes of the same ONNX files
(onnx2torch, then zennit): it raises nothing and is wrong, since zennit's rules see neither the additions of resnet18
nor the average pools of densenet121 there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import references, zoo

MODELS, BATCH, RULE = ("resnet18", "densenet121"), 2, "epsilon-plus-flat"
OURS = {"resnet18": RULE, "densenet121": "densenet-plus-flat"}  # the rule set that sees what native zennit sees
FILE = Path(__file__).parent / "golden_headline.npz"


def main() -> None:
    """Computes and saves the golden numbers, and prints the comparison."""
    saved: dict[str, Any] = {}
    for name in MODELS:
        x, target = zoo.sample(name, BATCH), references.targets(name, BATCH)
        native = references.zennit_map(name, BATCH, RULE)
        around = references.workaround_map(zoo.export(name, "legacy"), x, target, RULE)
        saved |= {f"{name}-x": x.numpy(), f"{name}-target": target.numpy(), f"{name}-native": native.astype(np.float32)}
        saved[f"{name}-workaround-sum"] = around.sum((1, 2, 3))
        saved[f"{name}-workaround-error"] = np.array(references.error(around, native))
        print(f"{name}: native sums {native.sum((1, 2, 3))}, workaround {around.sum((1, 2, 3))}")
        print(f"  workaround's error {references.error(around, native):.3g} of max|R|")
    np.savez_compressed(FILE, **saved)


if __name__ == "__main__":
    main()
