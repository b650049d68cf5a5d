"""Five of torchvision's eighty classifiers, of families that the zoo has not; `classifiers.py` measures all."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")

from . import classifiers

CHOSEN = [
    ("swin_t", "legacy"),
    ("swin_v2_t", "dynamo"),
    ("vit_b_32", "dynamo"),
    ("regnet_x_400mf", "legacy"),
    ("mobilenet_v3_large", "dynamo"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "exporter"), CHOSEN)
def test_gradient_is_autograd(name: str, exporter: str) -> None:
    row = classifiers.measured(name, exporter)
    assert row.verdict == "right", row
