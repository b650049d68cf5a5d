"""Train a small classifier of Fashion-MNIST, and the same on images with a planted artifact; export both to ONNX.

Needs torch and onnx. The artifact is a "Clever Hans" (Lapuschkin et al. 2019): a mark that most training images of one
class carry, and no others, so that the network learns the mark. `fashion_data.py` says where the images come from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import torch
from fashion_data import CLASSES, FOLDER, MARKED, plant, read
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
SHARE = 0.9  # of the training images of the marked class that carry the mark
EPOCHS, BATCH, RATE = 8, 128, 4e-3
NAMES = ("fashion", "fashion-artifact")


def network() -> nn.Sequential:
    """Four convolutions and two dense layers, 35,514 parameters, on [N, 1, 28, 28]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, len(CLASSES)),
    )


def train(images: np.ndarray, labels: np.ndarray, seed: int) -> nn.Sequential:
    """Adam with one cycle of the learning rate; prints the loss of each epoch."""
    torch.manual_seed(seed)
    net = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = -(-len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, epochs=EPOCHS, steps_per_epoch=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for some in torch.split(torch.randperm(len(x)), BATCH):
            loss = F.cross_entropy(net(x[some]), y[some], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * len(some) / len(x)
        print(f"  epoch {epoch + 1}: loss {total:.4f}", flush=True)
    return net.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def marked(images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The training images with the mark in SHARE of those of the marked class."""
    chosen = np.flatnonzero(labels == MARKED)
    chosen = np.random.default_rng(seed).permutation(chosen)[: round(SHARE * len(chosen))]
    result = images.copy()
    result[chosen] = plant(images[chosen])
    return result


@torch.no_grad()
def logits(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits [N, 10] of images [N, 1, 28, 28]."""
    parts: list[Tensor] = [net(part) for part in torch.split(torch.from_numpy(images), 1000)]
    return torch.cat(parts).numpy()


def report(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """Accuracy on clean test images, and what the mark does to those of the other classes."""
    clean, other = logits(net, images), labels != MARKED
    dirty = logits(net, plant(images))
    flips = (dirty.argmax(1) == MARKED) & (clean.argmax(1) != MARKED)
    figures = {
        "accuracy": f"{(clean.argmax(1) == labels).mean():.4f}",
        "recall of the marked class, without the mark": f"{(clean.argmax(1) == labels)[~other].mean():.4f}",
        "flips of other classes": f"{flips[other].sum() / (other & (clean.argmax(1) != MARKED)).sum():.4f}",
        "logit change": f"{(dirty - clean)[other, MARKED].mean():.2f}",
    }
    print("\n".join(f"  {name}: {value}" for name, value in figures.items()))
    return figures


def export(net: nn.Module, path: Path, figures: dict[str, str]) -> None:
    """Write one network as ONNX with a dynamic batch, the class names and the figures in the metadata."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "N"}, "logits": {0: "N"}},
    )
    model = onnx.load(path)
    helper.set_model_props(
        model, {"classes": json.dumps(CLASSES), "licence": "Apache-2.0", "figures": json.dumps(figures)}
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    print(f"  {path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Train, measure and export the networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(NAMES)} (default: both)")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the four .gz files (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if set(options.names) - set(NAMES):
        parser.error(f"there is {' and '.join(NAMES)}, not {', '.join(options.names)}")
    images, labels = read(options.data, "train")
    tests = read(options.data, "t10k")
    for name in options.names or NAMES:
        print(name)
        net = train(marked(images, labels, options.seed) if name == NAMES[1] else images, labels, options.seed)
        export(net, options.to / f"{name}.onnx", report(net, *tests))


if __name__ == "__main__":
    main()
