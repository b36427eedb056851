"""What a kind of structure must provide to go in or to come out, and how an output is asked."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment


@dataclass(frozen=True)
class Indices:
    """Ask for some of an output's places, counted row-major."""

    index: Int[Tensor, "*b o"] | Any
    """[O] for the whole batch, or [B, O]; a tensor, an array or a list."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a place is asked for; None: all are."""


@dataclass(frozen=True)
class Coordinates:
    """Ask at any coordinates, in the units of the data."""

    coordinates: Float[Tensor, "*b o axes"] | Any
    """[O, axes] for the whole batch, or [B, O, axes]; finite numbers in a tensor, an array or lists."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a place is asked for; None: all are."""


@dataclass(frozen=True)
class Queries:
    """Ask with query vectors of the caller's own."""

    queries: Float[Tensor, "*b o f"] | Any
    """[O, F] for the whole batch, or [B, O, F]; a tensor, an array or lists."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a query exists; None: all do."""


Points = Indices | Coordinates | Queries
"""How an output is asked; None in its place means everything."""


@dataclass(frozen=True)
class Part:
    """Neighbouring values of an input on a grid, to be read apart from the others."""

    values: Any
    """As the whole input would be given."""
    start: tuple[int, ...] | Any
    """Where along each axis of the whole they begin."""
    size: tuple[int, ...] | None = None
    """Size of the whole; None: the size it is trained at."""


class InputAdapter(nn.Module, ABC):
    """Turns one raw input into tokens."""

    channels: int
    """Width of the tokens, C."""
    reads_parts: bool = False
    """Whether it takes a Part: no token depends on its neighbours, and each knows its place."""

    is_set: bool = False
    """True for a set, which may be read in chunks: no token depends on its place."""

    @abstractmethod
    def forward(self, raw: Any) -> Segment:
        """Tokens of a raw batch; ValueError if it does not fit."""

    def absent(self, device: torch.device) -> Segment | None:
        """As many tokens as the input usually has, content irrelevant; None where that number is not fixed."""
        return None


class OutputQuery(nn.Module, ABC):
    """Makes the queries that ask for one output."""

    channels: int
    """Width of the queries, F."""
    source: str | None = None
    """The input whose tokens it asks with."""

    @abstractmethod
    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Queries for these points; None: for everything. ValueError for points it cannot be asked at."""


class OutputAdapter(nn.Module, ABC):
    """Arranges the decoder's rows into one raw output; its head is all it learns."""

    head: nn.Module
    """Applied to each row by the decoder: [B, O, E] to [B, O, e]. Parameters of other modules are in its `borrowed`;
    None there: it is called once, with all rows."""
    mixes_neighbours: bool = False
    """Whether a value depends on several rows: then it is decoded whole."""

    @abstractmethod
    def forward(self, rows: Float[Tensor, "b o e"], queries: Segment) -> Any:
        """The raw output: whole where the queries form their grid, else rows as they were asked for."""


@runtime_checkable
class InputSpec(Protocol):
    """A declared input."""

    @property
    def mask_prob(self) -> float | None:
        """Probability that a token is replaced by a trained mask token; None: there is none."""
        ...

    @property
    def mask_at_eval(self) -> bool:
        """Mask outside training too."""
        ...

    def build_input(self) -> InputAdapter:
        """Its adapter, newly initialised."""
        ...


@runtime_checkable
class OutputSpec(Protocol):
    """A declared output."""

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Its queries, newly initialised; `inputs` for those that ask with an input."""
        ...

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Its adapter with a head from this width; `inputs` (always the model's own) for heads tied to one."""
        ...


@runtime_checkable
class SchemaLike(Protocol):
    """Named inputs and outputs."""

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """What goes in."""
        ...

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """What comes out."""
        ...
