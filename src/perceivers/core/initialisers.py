"""The official initial distributions (facts of haiku's defaults): every weight of the model starts from one of them."""

import math

import torch
from torch import Tensor, nn

POSITION_STD = 0.02  # latents, learned positions, queries, paddings and mask tokens

# Standard deviation of a unit normal cut at +-2: haiku's VarianceScaling divides by it, its TruncatedNormal does not.
_CUT_STD = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill from a normal of this std cut at two of them (haiku TruncatedNormal: the result is 0.88 times as wide)."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def trained_vector(*shape: int, std: float = POSITION_STD) -> nn.Parameter:
    """A parameter that is not a layer's weight: latents, positions, queries, paddings, mask tokens."""
    return nn.Parameter(truncated_normal_(torch.empty(*shape), std))


def attention_linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear map inside attention or its MLP: std exactly 1 / sqrt(fan in), bias 0 (official `conv_1d`)."""
    return _linear(in_channels, out_channels, 1 / math.sqrt(in_channels) / _CUT_STD)


def plain_linear(in_channels: int, out_channels: int, zero: bool = False) -> nn.Linear:
    """Any other linear map (heads, projections, patches): haiku's hk.Linear; `zero` starts it at 0."""
    return _linear(in_channels, out_channels, 0.0 if zero else 1 / math.sqrt(max(in_channels, 1)))


def sines(count: int, num_places: int, channels: int) -> nn.Parameter:
    """Instead of `trained_vector`: sines and cosines of `count` places, spread evenly over `num_places`.

    Their mean square is 1, their wavelengths run from 2 pi places to 2 pi times all of them.
    """
    places = torch.arange(count)[:, None] * (num_places / count)
    angles = places * num_places ** -torch.linspace(0, 1, (channels + 1) // 2)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.Parameter(math.sqrt(2) * waves[:, :channels])


def zero_(*modules: nn.Module) -> None:
    """Set every parameter to 0."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def embedding(num_embeddings: int, channels: int) -> nn.Embedding:
    """A trained vector for each number, started as haiku's hk.Embed."""
    layer = nn.Embedding(num_embeddings, channels)
    truncated_normal_(layer.weight, 1.0)
    return layer


def convolution_(layer: nn.Module) -> nn.Module:
    """Initialise a convolution as haiku's Conv2D and its transpose: fan in is kernel area times input channels."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
    channels = weight.shape[0] if transposed else weight.shape[1]
    truncated_normal_(weight, 1 / math.sqrt(channels * math.prod(weight.shape[2:])))
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
    return layer


def _linear(in_channels: int, out_channels: int, std: float) -> nn.Linear:
    layer = nn.Linear(in_channels, out_channels)
    nn.init.zeros_(layer.bias)
    nn.init.zeros_(layer.weight) if std == 0 else truncated_normal_(layer.weight, std)
    return layer
