"""Which cases continuous integration runs (`-m parity`) and which are run by hand (`-m parity_full`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from . import zoo

BIG = ("alexnet", "vgg16", "vgg11_bn")  # a quarter to half a gigabyte each
BOTH = ("resnet18", "squeezenet1_1", "shufflenet_v2_x1_0")  # small, or exported very differently
CI = {(name, zoo.EXPORTERS[i % 2]) for i, name in enumerate(zoo.ZOO) if name not in BIG}
CI |= {(name, exporter) for name in BOTH for exporter in zoo.EXPORTERS}


def cases(names: Iterable[str] = tuple(zoo.ZOO)) -> list[Any]:
    """Parameters (name, exporter), each marked `parity` or `parity_full`."""
    return [
        pytest.param(name, exporter, marks=pytest.mark.parity if (name, exporter) in CI else pytest.mark.parity_full)
        for name in names
        for exporter in zoo.EXPORTERS
    ]
