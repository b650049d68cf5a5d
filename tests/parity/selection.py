"""Which cases continuous integration runs (`-m parity`) and which are run by hand (`-m parity_full`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from . import zoo

BIG = ("vgg16", "vgg11_bn")  # half a gigabyte each
CI_BIG = {("vgg11_bn", "dynamo")}


def cases(
    names: Iterable[str] = tuple(zoo.ZOO), exporters: Sequence[str] = zoo.EXPORTERS, big: bool = False
) -> list[Any]:
    """Parameters (name, exporter), each marked `parity` or `parity_full`.

    Args:
        names: Models of the zoo.
        exporters: Exporters.
        big: Whether continuous integration takes its one big model too.
    """
    found = []
    for name in names:
        for exporter in exporters:
            ci = name not in BIG or (big and (name, exporter) in CI_BIG)
            found.append(pytest.param(name, exporter, marks=pytest.mark.parity if ci else pytest.mark.parity_full))
    return found
