"""Embeddings, and logits that are tied to them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from perceivers.core.interfaces import BoundHead
from perceivers.core.layers import linear, truncated_normal_


def embedding(num_embeddings: int, channels: int) -> nn.Embedding:
    """Return an embedding, a trained vector for each id, initialised like haiku's hk.Embed."""
    layer = nn.Embedding(num_embeddings, channels)
    truncated_normal_(layer.weight, 1.0)
    return layer


class TiedHead(nn.Module):
    """Head whose logits are products with an input's embeddings plus a trained bias (official `EmbeddingDecoder`)."""

    def __init__(self, source: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.source, self.size = source, size
        self.bias = nn.Parameter(torch.zeros(size[0]))

    def forward(self, x: Float[Tensor, "b o e"], embedding: nn.Module) -> Float[Tensor, "b o v"]:
        """Return a logit for each id; ValueError if the embedding has another shape."""
        table = _table(embedding, self.size[0], x.device)
        if table.shape != self.size:
            shape = tuple(table.shape)
            raise ValueError(f"the embedding of input {self.source!r} is {shape}, its tied output needs {self.size}")
        return linear(x, table, self.bias)


def bound_to_embedding(head: nn.Module, source: str, inputs: Any) -> BoundHead:
    """Return a head bound to the current embedding of an input; ValueError if the input has none."""
    module = getattr(inputs[source], "embedding", None)
    if not isinstance(module, nn.Module):
        raise ValueError(f"input {source!r} has no embedding any more, and output logits are tied to it")
    return BoundHead(head, (module,))


def _table(module: nn.Module, count: int, device: torch.device) -> Tensor:
    """Return the current vectors of `count` ids: the weight of a plain embedding, else the result of a call."""
    plain = type_before_parametrizations(module) is nn.Embedding and "forward" not in module.__dict__
    if plain and all(type(x) in (Tensor, nn.Parameter) for x in (*module.parameters(), *module.buffers())):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight
    result: Tensor = module(torch.arange(count, device=device))
    return result
