"""Writes the golden numbers of the headline: resnet18 under gamma and flat, by native zennit with its canonizers.

    python -m tests.parity.golden

Nothing here imports xaicompile. Beside the golden map it keeps what the usual way round makes of the same ONNX file
(onnx2torch, then zennit): it raises nothing and is wrong, since zennit's rules do not see the additions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import references, zoo

NAME, BATCH = "resnet18", 2
FILE = Path(__file__).parent / "golden_resnet18.npz"
RULES = ("zennit-gamma-flat", "epsilon-plus-flat")


def main() -> None:
    """Computes and saves the golden numbers, and prints the comparison."""
    x, target = zoo.sample(NAME, BATCH), references.targets(NAME, BATCH)
    path = zoo.export(NAME, "legacy")
    saved: dict[str, Any] = {"x": x.numpy(), "target": target.numpy()}
    for rule in RULES:
        native = references.zennit_map(NAME, BATCH, rule)
        around = references.workaround_map(path, x, target, rule)
        saved[f"{rule}"] = native.astype(np.float32)
        saved[f"{rule}-workaround-sum"] = around.sum((1, 2, 3))
        saved[f"{rule}-workaround-error"] = np.array(references.error(around, native))
        print(f"{rule}: native sums {native.sum((1, 2, 3))}, workaround {around.sum((1, 2, 3))}")
        print(f"  workaround's error {references.error(around, native):.3g} of max|R|")
    np.savez_compressed(FILE, **saved)


if __name__ == "__main__":
    main()
