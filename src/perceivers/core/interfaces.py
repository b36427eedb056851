"""Interfaces that a modality implements: the adapter of an input; the query and the adapter of an output."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment


class InputAdapter(nn.Module, ABC):
    """Adapter that turns one raw input into tokens."""

    channels: int
    """Width of the tokens, C."""
    is_set: bool = False
    """True for a set, which may be read in chunks: no token depends on its position."""

    @abstractmethod
    def forward(self, raw: Any) -> Segment:
        """Return the tokens of a raw batch; ValueError if it does not fit."""

    def absent(self, device: torch.device) -> Segment | None:
        """Return as many tokens as the input usually has, with arbitrary content; None if that number is not fixed."""
        return None


class OutputQuery(nn.Module, ABC):
    """Module that makes the queries of one output."""

    channels: int
    """Width of the queries, F."""
    source: str | None = None
    """Name of the input whose tokens are the queries; None: no input."""

    @abstractmethod
    def forward(self, encoded: Encoded, points: Any) -> Segment:
        """Return queries for these points; None: for everything. ValueError for points that the output lacks."""

    def of_latents(self, num_latents: int, channels: int, mean: bool) -> "OutputQuery":
        """Return queries that are the latents, or the single one that is their mean; ValueError if these do not fit."""
        raise ValueError("the queries of this output are not as many as the latents: it needs decoder.kind: query")


class OutputAdapter(nn.Module, ABC):
    """Adapter that arranges decoded queries as one raw output; its head has all of its parameters."""

    head: nn.Module
    """Head, applied by the decoder: [B, O, E] to [B, O, e]."""
    mixes_neighbours: bool = False
    """True if a value depends on several queries: then the output is decoded whole."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b o e"], queries: Segment) -> Any:
        """Return the raw output: whole where the queries form their grid, else one value for each query."""

    def bound_head(self, inputs: Any) -> Callable[[Tensor], Tensor]:
        """Return the head, bound to modules that it shares with the input adapters (tied logits: an embedding)."""
        return self.head


@dataclass(frozen=True)
class BoundHead:
    """A head that shares weights with modules of the inputs: head(x, *shared), each query independently."""

    head: nn.Module
    """The head."""
    shared: tuple[nn.Module, ...]
    """Modules of the input adapters."""

    def __call__(self, x: Float[Tensor, "b o e"]) -> Float[Tensor, "b o _"]:
        """Return head(x, *shared)."""
        found: Tensor = self.head(x, *self.shared)
        return found
