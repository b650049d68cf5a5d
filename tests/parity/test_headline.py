"""The headline: from their ONNX files resnet18 and densenet121 equal native zennit; the usual way round does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import canonizers, golden, measure, references, zoo

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def saved() -> dict[str, np.ndarray]:
    return dict(np.load(golden.FILE))


def sums(relevance: np.ndarray) -> str:
    """What the maps sum to."""
    return " / ".join(f"{value:.2f}" for value in relevance.sum((1, 2, 3)))


@pytest.mark.parametrize("name", golden.MODELS)
def test_golden_numbers_are_current(name: str, saved: dict[str, np.ndarray]) -> None:
    """The committed numbers are those of the installed zennit."""
    assert np.array_equal(saved[f"{name}-target"], references.targets(name, golden.BATCH).numpy())
    assert np.allclose(saved[f"{name}-x"], zoo.sample(name, golden.BATCH).numpy(), atol=1e-6)
    native = references.zennit_map(name, golden.BATCH, golden.RULE)
    assert references.error(saved[f"{name}-native"], native) <= 1e-5


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", golden.MODELS)
def test_equals_native_zennit(name: str, exporter: str) -> None:
    """Element by element, in float64 and, in ONNX Runtime, in float32."""
    native = references.zennit_map(name, golden.BATCH, golden.RULE)
    found = measure.explain64(name, exporter, golden.BATCH, golden.OURS[name]).relevance
    assert references.error(found, native) <= measure.FLOAT64
    found = measure.explain32(name, exporter, golden.BATCH, golden.OURS[name]).relevance
    error, sums = (
        references.error(found, native),
        [" / ".join(f"{v:.2f}" for v in r.sum((1, 2, 3))) for r in (native, found)],
    )
    print(
        f"{golden.RULE} on {name} ({exporter}): sum R {sums[0]} by zennit, {sums[1]} here, error {error:.1e} of max|R|"
    )
    assert error <= measure.zennit_bound(name, golden.BATCH, golden.RULE)


@pytest.mark.parametrize(("name", "least"), [("resnet18", 100), ("densenet121", 0.3)])
def test_workaround_is_silently_wrong(name: str, least: float, saved: dict[str, np.ndarray]) -> None:
    """Run today: onnx2torch + zennit raises nothing and is off by this much of the map's largest value."""
    x, target = zoo.sample(name, golden.BATCH), references.targets(name, golden.BATCH)
    around = references.workaround_map(zoo.export(name, "legacy"), x, target, golden.RULE)
    error = references.error(around, references.zennit_map(name, golden.BATCH, golden.RULE))
    print(
        f"{golden.RULE} on {name}: onnx2torch + zennit gives sum R {around.sum((1, 2, 3))}, {error:.2g} of max|R| off"
    )
    assert error > least
    assert np.allclose(error, saved[f"{name}-workaround-error"], rtol=1e-3)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_what_is_folded_in_densenet(exporter: str) -> None:
    """Native zennit merges exactly the pairs that the exporters folded: 59 of 121, and 62 are left in the file."""
    network = references.model("densenet121", torch.float64)
    names = {name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    merged = {norm for _, norm in canonizers.densenet_pairs(network)}
    left = [
        n for n in measure.source("densenet121", exporter, torch.float32).graph.node if n.op_type.startswith("Batch")
    ]
    assert merged < names and len(merged) == 59 and len(names - merged) == len(left) == 62
