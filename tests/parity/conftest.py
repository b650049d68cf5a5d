"""Left out where torch and its libraries are missing; one thread for torch, which a busy machine does best with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

NEEDED = ("torch", "torchvision", "zennit", "captum", "onnx2torch")
collect_ignore_glob = [] if all(find_spec(name) for name in NEEDED) else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
