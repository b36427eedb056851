"""The base of outputs that are decoded from one query, with the query and the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear
from perceivers.core.tokens import Segment
from perceivers.modalities.class_rows import Classes, ClassRows, RowGroup
from perceivers.modalities.modality import Modality, Unit, denormalised, input_of
from perceivers.modalities.queries import InputQuery, LearnedQuery


@dataclass(frozen=True, kw_only=True)
class SingleQueryModality(Modality):
    """A property of the whole sample; as an output it is decoded from one query."""

    query_channels: int = 256
    """As an output: width of the trained query."""
    of: str | None = None
    """As an output: input whose token number `token` is the query, such as BERT's CLS; None: a trained query."""
    token: int = 0
    """As an output with `of`: number of the token."""
    hidden_channels: int | None = None
    """As an output: width of a layer with tanh before the last (GLUE: paper F.4); None: the last layer only."""

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build the query: a trained vector, or a token of an input."""
        if self.of is None:
            return LearnedQuery(1, self.query_channels)
        return InputQuery(self.of, input_of(inputs, self.of).channels, self.token)

    def build_head(self, channels: int, width: int) -> nn.Module:
        """Build the head: `channels` decoded numbers to `width`."""
        if self.hidden_channels is None:
            return plain_linear(channels, width)
        first, last = plain_linear(channels, self.hidden_channels), plain_linear(self.hidden_channels, width)
        return nn.Sequential(first, nn.Tanh(), last)


class SingleQueryOutput(OutputAdapter):
    """Adapter of an output with one query: the head's numbers, in the data's units if they have a mean or std."""

    def __init__(self, head: nn.Module, mean: Unit = None, std: Unit = None, classes: Classes = 0) -> None:
        super().__init__()
        self.head = head
        self.mean, self.std, self.classes = mean, std, classes

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters, of outputs that are classes: those of the last linear map."""
        if not self.classes:
            return {}
        last = f"head.{len(self.head) - 1}" if isinstance(self.head, nn.Sequential) else "head"
        rows = ClassRows(0, (RowGroup(classes=self.classes),))
        return {f"{last}.weight": rows, f"{last}.bias": rows}

    def forward(self, x: Float[Tensor, "b 1 e"], queries: Segment) -> Float[Tensor, "b e"]:
        """Return [B, e]."""
        return denormalised(x[:, 0], self.mean, self.std) if self.mean or self.std else x[:, 0]


def stack_known(values: Sequence[np.ndarray | None]) -> Tensor:
    """Stack arrays of one shape; NaN for None."""
    known = next(value for value in values if value is not None)
    return torch.from_numpy(np.stack([np.full_like(known, np.nan) if value is None else value for value in values]))
