"""Speed: the emitted model's time as a ratio to the prediction alone, on torchvision architectures. Prints a table.

    python tests/benchmarks/speed.py [--models resnet50,vgg16] [--rules gradient,lrp-gamma] [--threads 2] [--rounds 20]

Random weights. Needs torch and torchvision (the `parity` extra). Source and emitted model take turns, the median of
the ratios counts, the quartiles say how quiet the machine was. `--limits` fails where a ratio is above its limit.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings

from xaicompile.bench import bench
from xaicompile.compiler import compile_model

LIMITS = {"gradient": 2.6, "lrp-gamma": 4.5}


def exported(name: str) -> bytes:
    """A torchvision architecture with seeded random weights as ONNX, dynamic batch."""
    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 224, 224),),
            file,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )
    return file.getvalue()


def main() -> None:
    """Print the table; with --limits exit with 1 if one is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet50,vgg16")
    parser.add_argument("--rules", default="gradient,lrp-gamma")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    missed = False
    print("| model | rule | prediction, ms | explained, ms | ratio | quartiles | growth, kB |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        source = exported(name)
        for rule in options.rules.split(","):
            made = compile_model(source, rule).model
            r = bench(made, source, threads=options.threads, rounds=options.rounds, batch=options.batch)
            missed |= options.limits and r.ratio > LIMITS.get(rule, float("inf"))
            times = f"{r.source_ms:.1f} | {r.explained_ms:.1f} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f}"
            print(f"| {name} | {rule} | {times} | {r.growth / 1e3:.0f} |", flush=True)
    raise SystemExit(int(missed))


if __name__ == "__main__":
    main()
