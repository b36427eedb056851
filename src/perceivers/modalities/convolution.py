"""Convolutional stems and upsamplers with the official padding; channels come last in inputs and outputs.

Source: `Conv2DDownsample`, `Conv2DUpsample`, `Conv3DUpsample` of the official io_processors.py.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.layers import truncated_normal_
from perceivers.modalities.patches import pad_same

ConvPadding = Literal["same", "symmetric"]


class ConvStem(nn.Module):
    """Layers of 7x7 convolution, batch norm, ReLU and 3x3 max-pool; each makes both axes four times smaller.

    "same" pads like JAX, an odd element at the end. "symmetric" pads like transformers, 3 elements on either side of
    the convolution's input and none around the pool's: 224 x 224 pixels become 55 x 55 tokens instead of 56 x 56.
    """

    def __init__(self, in_channels: int, channels: int, downsample: int, padding: ConvPadding = "same") -> None:
        super().__init__()
        num_layers = stem_layers(downsample)
        self.padding = padding
        widths = [in_channels] + [channels] * num_layers
        self.convolutions = nn.ModuleList(
            convolution_(nn.Conv2d(c_in, c_out, 7, stride=2, bias=False)) for c_in, c_out in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1) for _ in range(num_layers))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x k"]:
        """Return the features of an image."""
        x = x.movedim(-1, 1)
        same = self.padding == "same"
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(pad_same(x, (7, 7), (2, 2)) if same else F.pad(x, (3, 3, 3, 3)))).relu()
            x = F.max_pool2d(pad_same(x, (3, 3), (2, 2), value=-math.inf) if same else x, 3, stride=2)
        return x.movedim(1, -1)


def stem_layers(downsample: int) -> int:
    """Return the number of layers that make an image `downsample` times smaller; ValueError for other factors."""
    num_layers = round(math.log(downsample, 4))
    if num_layers < 1 or 4**num_layers != downsample:
        raise ValueError(f"a convolutional stem makes images 4, 16, 64, ... times smaller, not {downsample}")
    return num_layers


def symmetric_size(size: int, downsample: int) -> int:
    """Return the size of an axis after a stem with symmetric padding."""
    for _ in range(stem_layers(downsample)):
        size = ((size + 1) // 2 - 1) // 2
    return size


class ConvUpsample(nn.Module):
    """Transposed convolutions of width 4 with ReLU between them; they make the axes `factors` times as large."""

    def __init__(self, in_channels: int, channels: int, factors: Sequence[int]) -> None:
        super().__init__()
        doublings = [round(math.log2(factor)) for factor in factors]
        if max(doublings) < 1 or [2**n for n in doublings] != list(factors):
            raise ValueError(f"patch {tuple(factors)} of a convolutional output must be powers of two, not all 1")
        layer: Any = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(doublings)]
        num_layers = max(doublings)
        widths = [in_channels] + [channels * 2 ** (num_layers - 1 - layer) for layer in range(num_layers)]
        # An axis that is already large enough keeps its size: stride 1.
        self.strides = [[2 if layer < n else 1 for n in doublings] for layer in range(num_layers)]
        self.convolutions = nn.ModuleList(
            convolution_(layer(c_in, c_out, 4, stride=tuple(stride), padding=1))
            for (c_in, c_out), stride in zip(itertools.pairwise(widths), self.strides, strict=True)
        )

    def forward(self, x: Float[Tensor, "b *tokens c"]) -> Float[Tensor, "b *size k"]:
        """Return the values of the larger grid."""
        x = x.movedim(-1, 1)
        for number, (convolution, stride) in enumerate(zip(self.convolutions, self.strides, strict=True)):
            size = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
            x = convolution(x.relu() if number else x)
            # With stride 1 torch's symmetric padding gives one element more than "SAME": cut it off.
            x = x[(slice(None), slice(None), *map(slice, size))]
        return x.movedim(1, -1)


def convolution_(layer: nn.Module) -> nn.Module:
    """Initialise a convolution like haiku's Conv2D or its transpose: fan-in is kernel area times input channels."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
    channels = weight.shape[0] if transposed else weight.shape[1]
    truncated_normal_(weight, 1 / math.sqrt(channels * math.prod(weight.shape[2:])))
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
    return layer
