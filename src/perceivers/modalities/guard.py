"""The guard of a model, which turns a caller's arguments into tensors or raises a ValueError of one line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.arguments import about, check_batches, check_names, require
from perceivers.core.checks import is_whole
from perceivers.core.config import Config
from perceivers.core.latents import Latents
from perceivers.core.precision import in_range, nan_where_out_of_range
from perceivers.core.reading import Encoded, Reading
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

    def latents(self, given: Any, config: Config, weight: Tensor, read: Tokens) -> Tensor | None:
        """Return a caller's latents: vectors [B, N, D] like the weight (or an Encoded), or numbers [B, N] of tokens."""
        given, latents = given.latents if isinstance(given, Encoded) else given, config.latents
        if given is None:
            return None
        if config.trunk == "transformer":
            raise ValueError("trunk: transformer has no latents of its own: give it no latents")
        x = about("argument", "latents", as_tensor, given, weight.device)
        right = (latents.num_latents, latents.channels) if x.is_floating_point() else (latents.num_latents,)
        x = x[None] if x.ndim == len(right) else x
        if x.shape[1:] != right or x.dtype == torch.bool:
            shape = ", ".join(map(str, ("B", *right)))
            what = f"vectors [{shape}]" if x.is_floating_point() else f"numbers [{shape}] of tokens"
            raise ValueError(f"latents of shape {tuple(x.shape)} and type {x.dtype}, expected {what}")
        if not x.is_floating_point() and latents.taken_from is None:
            raise ValueError("latents by token numbers need latents.taken_from, the input whose tokens they are")
        if x.is_floating_point():
            return x.to(weight.dtype)
        if (segment := read.segments.get(latents.taken_from or "")) is not None:
            inside, what = (x >= 0) & (x < segment.num_tokens), f"{segment.num_tokens} tokens of {latents.taken_from!r}"
            require(inside.all(), lambda: f"latents: number {int(x[~inside][0])} is outside the {what}, from 0")
        return x.long()

    def carried(self, start: Latents, previous: Any) -> Latents:
        """Return latents at the start with the coordinates and mask of the Encoded whose latents they are, if any."""
        around = previous.around if isinstance(previous, Encoded) else None
        return start if around is None else replace(start, coordinates=around.coordinates, mask=around.mask)

    def start(self, read: Tokens, latents: Latents) -> None:
        """Raise a ValueError unless the latents at the start are of as many samples as the inputs that they read."""
        sizes = {"latents": latents.segment.batch_size}
        sizes |= {} if latents.condition is None else {"condition": latents.condition.shape[0]}
        check_batches("inputs", sizes | {name: x.batch_size for name, x in read.segments.items()})

    def conditioned(self, latents: Latents, condition: Tensor) -> Latents:
        """Return encoded latents under another condition, of as many samples."""
        check_batches("inputs", {"what was encoded": latents.array.shape[0], "condition": condition.shape[0]})
        return replace(latents, condition=condition)

    def parts(self, masking: Any, noise: Any, latents: Any, conditioning: Any) -> None:
        """Raise a ValueError for arguments that inputs in parts cannot have."""
        if masking is not None or noise is not None:
            raise ValueError("masking and noise are for whole inputs: give them whole, not in parts")
        if latents is not None and conditioning is not None and not isinstance(latents, Latents):
            raise ValueError("parts of inputs, and a condition: give latents=model.start(raw, latents)")

    def reading(self, reading: Any) -> None:
        """Raise a ValueError unless this is a Reading."""
        if not isinstance(reading, Reading):
            raise ValueError(f"processing takes a Reading, as `read` gives, not {type(reading).__name__}")

    def noise(self, noise: Tensor | None, config: Config, tokens: Tokens) -> Tensor | None:
        """Return the noise of a bottleneck; ValueError if the model has none, or for another shape than [B, N, z]."""
        if noise is None:
            return None
        if config.bottleneck is None or config.trunk == "transformer":
            raise ValueError("noise makes a sample of the bottleneck, which the model lacks: set config.bottleneck")
        size = (config.latents.num_latents, config.bottleneck.channels)
        if noise.ndim != 3 or noise.shape[1:] != size:
            raise ValueError(f"noise of shape {tuple(noise.shape)}, expected [B, {size[0]}, {size[1]}]")
        check_batches("inputs", {**{n: x.batch_size for n, x in tokens.segments.items()}, "noise": len(noise)})
        return noise

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

    def share(self, queries: Tokens, share: Any, adapters: Any, mixes_queries: bool = False) -> Tokens:
        """Return the queries of one of several processes, share = (rank, world); None: all queries.

        ValueError for an output that can only be decoded whole.
        """
        if share is None:
            return queries
        rank, world = share if isinstance(share, tuple | list) and len(share) == 2 else (-1, 0)
        if not (is_whole(rank) and is_whole(world)) or not 0 <= rank < world:
            raise ValueError(f"share = {share!r:.99} must be (rank, world), whole numbers with 0 <= rank < world")
        if mixes_queries:
            raise ValueError("decoder.self_attention: queries attend to one another, on one process: give no share")
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
