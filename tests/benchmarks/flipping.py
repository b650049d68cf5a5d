"""Cost of pixel flipping inside the emitted model: in predictions, and memory. Prints a table.

    python -m tests.benchmarks.flipping [--model FILE] [--rule lrp-gamma] [--steps 100] [--threads 2] [--rounds 5]

The emitted model makes the prediction, one relevance map and the steps + 1 predictions of the curve; the explained
model without the curve is timed as well, so that what the curve adds can be told. Each takes turns with the prediction,
the median of the ratios counts. Memory is what a process holds at most (VmHWM) that loads the model and runs it once,
less what it held with ONNX Runtime loaded (VmRSS).
"""

from __future__ import annotations

import argparse

from tests.benchmarks.neuralize import gigabytes
from xaicompile.bench import bench
from xaicompile.compiler import compile_model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/efficientnet-lite0.onnx")
    parser.add_argument("--rule", default="lrp-gamma")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| model | prediction, ms | whole, ms | predictions | quartiles | memory, GB |\n|---|---|---|---|---|---|")
    ways = {
        options.rule: {},
        f"{options.rule}, curve of {options.steps} steps": {
            "evaluate": "pixel-flipping",
            "parameters": {"steps": options.steps},
        },
    }
    for name, more in ways.items():
        made = compile_model(options.model, options.rule, **more).model  # type: ignore[arg-type]
        shape = [d.dim_value or 1 for d in made.graph.input[0].type.tensor_type.shape.dim]
        r = bench(made, options.model, threads=options.threads, rounds=options.rounds, batch=1)
        times = f"{r.source_ms:.1f} | {r.explained_ms:.1f} | {r.ratio:.2f} | {r.low:.2f} to {r.high:.2f}"
        print(f"| {name} | {times} | {gigabytes(made, shape, options.threads):.2f} |", flush=True)


if __name__ == "__main__":
    main()
