"""The guard of a model, which turns a caller's arguments into tensors or raises a ValueError of one line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.arguments import about, check_names
from perceivers.core.checks import is_whole
from perceivers.core.precision import in_range, nan_where_out_of_range
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Tokens
from perceivers.modalities.points import Part, Points, given_points, share_of
from perceivers.modalities.raw import as_tensor, given, is_picture


@dataclass(frozen=True)
class Guard:
    """Checks of the arguments of a model's calls, by the modalities of its inputs and outputs."""

    inputs: Mapping[str, Any]
    """Modality of each input."""
    outputs: Mapping[str, Any]
    """Modality of each output."""

    def tensors(self, raw: Any, device: torch.device) -> dict[str, Any]:
        """Return the inputs as tensors, by name. Arrays, lists and pictures go to the device; tensors must be there.

        `raw` is a dictionary, in which None stands for a missing input, or the value of the only input.
        """
        if not isinstance(raw, Mapping):
            if len(self.inputs) != 1:
                raise ValueError(f"several inputs: give a dictionary of {', '.join(self.inputs)}")
            raw = {next(iter(self.inputs)): raw}
        check_names("input", list(raw), self.inputs)
        present = {name: value for name, value in raw.items() if value is not None}
        return {name: about("input", name, _tensors, self.inputs[name], x, device) for name, x in present.items()}

    def latents(self, given: Any, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Return a caller's latents as a tensor: vectors [B, N, D] in this precision, or numbers of tokens [B, N]."""
        if given is None:
            return None
        x = about("argument", "latents", as_tensor, given, device)
        rank = 3 if x.is_floating_point() else 2
        x = x[None] if x.ndim == rank - 1 else x
        if x.ndim != rank or x.dtype == torch.bool:
            shape = f"{tuple(x.shape)} and type {x.dtype}"
            raise ValueError(f"latents of shape {shape}, expected vectors [B, N, D] or whole numbers of tokens [B, N]")
        return x.to(dtype) if rank == 3 else x.long()

    def condition(self, raw: Any, conditioning: Any) -> Any:
        """Return the inputs that condition the decoder; ValueError for others, and where other stages are conditioned.

        `conditioning`: the module that makes the condition (`schema.adapters.Conditioning`), if there is one.
        """
        if conditioning is None:
            raise ValueError("condition: no stage of the model is conditioned: leave it out")
        if others := [stage for stage in conditioning.stages if stage != "decoder"]:
            raise ValueError(f"condition: the {others[0]} is conditioned too: encode the inputs again")
        if not isinstance(raw, Mapping):
            raise ValueError(
                f"condition of type {type(raw).__name__}: give a dictionary of {', '.join(conditioning.names)}"
            )
        check_names("input in condition:", list(raw), conditioning.names)
        return raw

    def comes_in_parts(self, raw: Any) -> bool:
        """Return whether inputs come in chunks, that is, as an iterable whose items are each a valid input."""
        if isinstance(raw, Mapping | Tensor | np.ndarray | str) or is_picture(raw) or not isinstance(raw, Iterable):
            return False
        return not isinstance(raw, list | tuple) or all(isinstance(chunk, Mapping | Tensor) for chunk in raw)

    def encoded(self, encoded: Any, channels: int, sources: Mapping[str, int]) -> None:
        """Raise a ValueError unless these are encoded inputs of the model, given the widths of latents and sources."""
        if not isinstance(encoded, Encoded):
            raise ValueError(f"decoding takes an Encoded, as `encode` gives, not {type(encoded).__name__}")
        other = [name for name, segment in encoded.sources.items() if segment.raw_channels != sources.get(name)]
        if encoded.latents.ndim != 3 or encoded.latents.shape[-1] != channels or other:
            raise ValueError(f"latents {tuple(encoded.latents.shape)} of another model: decode what this one encoded")

    def points(self, points: Any, device: torch.device) -> dict[str, Points]:
        """Return the points by output, as tensors on the device. None, for all outputs or for one, means everywhere."""
        points = {} if points is None else points
        if not isinstance(points, Mapping):
            raise ValueError(f"points of type {type(points).__name__}: give a dictionary of {', '.join(self.outputs)}")
        check_names("output", list(points), self.outputs)
        present = {name: value for name, value in points.items() if value is not None}
        return {name: about("output", name, given_points, value, device) for name, value in present.items()}

    def output_names(self, names: Iterable[str] | None) -> list[str] | None:
        """Return the names of outputs; ValueError for an unknown one. None: all."""
        return None if names is None else check_names("output", names, self.outputs)

    def tokens(self, tokens: Tokens, dtype: torch.dtype) -> Tokens:
        """Return the tokens with NaN for numbers that are too large for layer norm in this precision."""
        return in_range(tokens, dtype)

    def written(self, written: Mapping[str, Float[Tensor, "b _ _"]], queries: Tokens) -> dict[str, Tensor]:
        """Return the decoded outputs with NaN where a query is NaN or too large."""
        return nan_where_out_of_range(written, queries)

    def share(self, queries: Tokens, share: Any, adapters: Mapping[str, Any] | Any) -> Tokens:
        """Return the queries of one of several processes, share = (rank, world); None: all queries.

        ValueError for an output that can only be decoded whole.
        """
        if share is None:
            return queries
        rank, world = share if isinstance(share, tuple | list) and len(share) == 2 else (-1, 0)
        if not (is_whole(rank) and is_whole(world)) or not 0 <= rank < world:
            raise ValueError(f"share = {share!r:.99} must be (rank, world), whole numbers with 0 <= rank < world")
        for name in queries.segments:
            if adapters[name].mixes_neighbours:
                raise ValueError(f"output {name!r} mixes neighbouring positions: decode it whole, on one process")
        shares = {name: share_of(segment, rank, world) for name, segment in queries.segments.items()}
        return Tokens({name: segment for name, segment in shares.items() if segment.num_tokens})


def _tensors(spec: Any, value: Any, device: torch.device) -> Any:
    if not isinstance(value, Part):
        return given(value, device)
    if not spec.reads_parts:
        raise ValueError("only a grid of independent tokens can be read in parts: give the whole input")
    return replace(value, values=given(value.values, device))
