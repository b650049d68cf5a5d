"""The demo's classifier with its real weights: the torch class of efficientnet-lite-pytorch, and the ONNX file.

Nothing here imports xaicompile.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from .packages import doubled, fetcher

NAME = "efficientnet-lite0"
LOW, HIGH = -127 / 128, 1.0


@cache
def weights() -> dict[str, np.ndarray]:
    """The checkpoint's arrays by name."""
    arrays: dict[str, np.ndarray] = fetcher().read_checkpoint(io.BytesIO(fetcher().fetch(fetcher().WEIGHTS)))
    return arrays


def build() -> nn.Module:
    """The torch class of efficientnet-lite-pytorch 0.1.0 with the checkpoint's weights.

    The batch norms' constant, 1e-3, is rounded to float32, which is all that an ONNX attribute can hold.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(NAME).eval()
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights().items()})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(np.float32(module.eps))
    return network


@cache
def images() -> Tensor:
    """The demo's photo of a cat, and the same in a mirror."""
    from PIL import Image

    file = fetcher().HERE / "chelsea.png"
    photo = Image.open(file if file.exists() else io.BytesIO(fetcher().fetch(fetcher().PHOTO))).convert("RGB")
    scale = 256 / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
    pixels = np.asarray(photo.crop((left, top, left + 224, top + 224)), np.float32).transpose(2, 0, 1)
    x = torch.from_numpy((pixels - 127) / 128)
    return torch.stack([x, x.flip(2)])


def file(dtype: torch.dtype) -> onnx.ModelProto:
    """The ONNX file: the one beside the demo's script, or made anew from the packages; in float64 if wanted."""
    path = fetcher().HERE / f"{NAME}.onnx"
    model = onnx.load(path) if path.exists() else onnx.load_from_string(fetcher().make_model())
    if dtype == torch.float64:
        doubled(model.graph)
    return model
