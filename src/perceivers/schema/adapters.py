"""The adapters of all inputs and of all outputs, by name; core/interfaces.py defines what each one provides."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core import layers
from perceivers.core.arguments import about, check_batches
from perceivers.core.bottleneck import KL
from perceivers.core.config import ChannelAlignmentRule, Config
from perceivers.core.interfaces import InputAdapter
from perceivers.core.layers import dtype_of, in_own_range, plain_linear, trained_vector
from perceivers.core.perceiver import Masking
from perceivers.core.precision import zero_where_absent
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment, Tokens
from perceivers.modalities.modality import Modality

CLOSED = 1e-8
"""Root of the weight of an input whose gate is 0."""


class ChannelAlignment(nn.Module):
    """Alignment of segments to one width, `channels`, so that they can be concatenated along the token axis.

    "project": a linear map each; adding a segment changes no other weight. "pad": a trained vector after each segment
    narrower than the widest plus `min_padding` (official `MultimodalPreprocessor` and `MultimodalDecoder`).
    """

    def __init__(self, widths: Mapping[str, int], rule: ChannelAlignmentRule, channels: int, min_padding: int) -> None:
        super().__init__()
        self.channels = channels if rule == "project" else max(widths.values(), default=0) + min_padding
        self.projections, self.paddings = nn.ModuleDict(), nn.ParameterDict()
        for name, width in widths.items():
            if rule == "project":
                self.projections[name] = plain_linear(width, channels)
            elif missing := self.channels - width:
                self.paddings[name] = trained_vector(missing)

    def forward(self, name: str, segment: Segment) -> Segment:
        """Return the segment in the common width."""
        if name not in self.projections:
            return replace(segment, padding=self.paddings[name]) if name in self.paddings else segment
        projection = self.projections[name]
        known = None if layers.fast is None else layers.fast.known_linear_map(projection)
        if known is not None:  # applied when the tokens are assembled
            return replace(segment, projection=known)
        with in_own_range(segment.device):
            tokens = projection(segment.dense(dtype_of(projection)))
        return replace(segment, content=tokens, positions=None)


def mask_probs(inputs: Mapping[str, Any]) -> dict[str, tuple[float, bool]]:
    """Return the masking probability of each input that has a mask token, and whether it holds in evaluation too."""
    return {name: (spec.mask_prob, spec.mask_at_eval) for name, spec in inputs.items() if spec.mask_prob is not None}


def build_inputs(specs: Mapping[str, Modality], config: Config) -> "tuple[InputAdapters, Conditioning | None]":
    """Build the adapter of all inputs, and the module that makes the condition (None: nothing conditions the model).

    The tokens of an input that only serves queries keep their width: they are not read.
    """
    encoder, d = config.encoder, config.latents.channels
    adapters = {name: spec.build_input() for name, spec in specs.items()}
    widths = {name: adapter.channels for name, adapter in adapters.items() if specs[name].role != "query"}
    align = ChannelAlignment(widths, encoder.channel_alignment, encoder.input_channels or d, encoder.min_padding)
    gated = [name for name, spec in specs.items() if spec.gate]
    check_gates(specs, gated, config)
    inputs = InputAdapters(adapters, align, mask_probs(specs), gated)
    return inputs, Conditioning.of(specs, config, inputs.channels)


def check_gates(specs: Mapping[str, Modality], gated: Iterable[str], config: Config) -> None:
    """Raise a ValueError for a gate that nothing reads through."""
    for name in gated:
        if specs[name].role != "read":
            raise ValueError(f"{name}: gate has no effect with role: {specs[name].role}: leave it out")
        if config.trunk != "perceiver":
            raise ValueError(f"{name}: gate is for inputs that latents read, not for trunk: {config.trunk}")
        if config.encoder.attention_dropout:
            raise ValueError(f"{name}: gate does not go with encoder.attention_dropout: leave one of them out")


def build_queries(specs: Mapping[str, Modality], config: Config, inputs: Mapping[str, InputAdapter]) -> "OutputQueries":
    """Build the queries of all outputs; where the decoder has no attention, they are made of the latents."""
    decoder, latents = config.decoder, config.latents
    if config.bottleneck is not None and KL in specs:
        raise ValueError(f"output {KL!r} has the name of the loss of config.bottleneck: rename the output")
    queries: dict[str, Any] = {name: spec.build_query(inputs) for name, spec in specs.items()}
    if decoder.kind == "query":
        widths = {name: query.channels for name, query in queries.items()}
        width = decoder.query_channels or latents.channels
        align = ChannelAlignment(widths, decoder.channel_alignment, width, decoder.min_padding)
        return OutputQueries(queries, align, inputs)
    for name, query in queries.items():
        arguments = (latents.num_latents, latents.channels, decoder.kind == "average")
        queries[name] = about("output", name, query.of_latents, *arguments)
    widths = dict.fromkeys(queries, latents.channels)
    return OutputQueries(queries, ChannelAlignment(widths, "pad", latents.channels, 0), inputs)


def build_outputs(
    specs: Mapping[str, Modality], config: Config, channels: int, inputs: Mapping[str, InputAdapter]
) -> "OutputAdapters":
    """Build the adapter of all outputs, whose heads take what the decoder computes, `channels` wide."""
    outputs = {name: spec.build_output(channels, inputs) for name, spec in specs.items()}
    if config.decoder.kind == "average":  # official `ProjectionDecoder`
        for parameter in chain(*(output.head.parameters() for output in outputs.values())):
            nn.init.zeros_(parameter)
    return OutputAdapters(outputs)


class InputAdapters(nn.Module):
    """Adapters of all inputs: from raw tensors by name to one set of tokens, with mask tokens as the schema says."""

    def __init__(
        self,
        adapters: Mapping[str, nn.Module],
        alignment: ChannelAlignment,
        mask_probs: dict[str, tuple[float, bool]],
        gated: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.adapters, self.alignment, self.mask_probs = nn.ModuleDict(adapters), alignment, dict(mask_probs)
        self.channels = alignment.channels
        self.mask_tokens = nn.ParameterDict({name: trained_vector(alignment.channels) for name in mask_probs})
        self.gates = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in gated})

    def forward(
        self, raw: Mapping[str, Any], missing: Iterable[str] | None = None, masking: Masking | None = None
    ) -> tuple[Tokens, dict[str, Segment]]:
        """Return all tokens in one width, and each input's segment before alignment and masking.

        An input that is not given is masked if it has a mask token, else left out; so is each sample that lacks it.
        With `missing`, only these absent inputs are masked. A sample that lacks a part of an input then stays unmasked,
        since another part may have its tokens. Outside training, only `masking` masks tokens at random.
        """
        # Make each input's tokens, in the input's own width.
        given = {n: about("input", n, adapter, raw[n]) for n, adapter in self.adapters.items() if n in raw}
        if not given and not missing:
            raise ValueError(f"no input given: the model reads {', '.join(self.adapters)}")
        check_batches("inputs", {name: segment.batch_size for name, segment in given.items()})
        # Align all inputs to one width; put mask tokens where tokens are masked or missing.
        aligned = {}
        for name in self.adapters:
            segment = given.get(name)
            if segment is None and (missing is None or name in missing):
                segment = self._absent(name)
            if segment is None:
                continue
            aligned[name] = self.alignment(name, segment)
            if name in self.mask_probs:
                aligned[name] = self._mask(name, aligned[name], name not in given, masking)
                if missing is None or segment.extent is None:
                    aligned[name] = self._mask_lacking(name, aligned[name])
            if name in self.gates:
                aligned[name] = replace(aligned[name], log_weight=log_weight(self.gates[name]))
        return Tokens(aligned), given

    def gated(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return attention maps [B, H, N, M] of inputs in which no gate counted, with the gates."""
        if not self.gates:
            return dict(maps)
        weighted = {
            n: x * log_weight(self.gates[n]).exp().to(x.dtype) if n in self.gates else x for n, x in maps.items()
        }
        total = torch.stack([x.sum(-1, keepdim=True) for x in weighted.values()]).sum(0)
        return {name: x / torch.where(total > 0, total, 1) for name, x in weighted.items()}

    def _absent(self, name: str) -> Segment | None:
        adapter: Any = self.adapters[name]
        found: Segment | None = adapter.absent(self.mask_tokens[name].device) if name in self.mask_probs else None
        return found

    def _mask(self, name: str, segment: Segment, absent: bool, masking: Masking | None) -> Segment:
        if segment.content is None:
            return segment
        (prob, at_eval), shape, device = self.mask_probs[name], segment.content.shape[:2], segment.content.device
        if self.training:
            # Draw even for probabilities 0 and 1: uniform numbers are never below 0 and always below 1.
            masked = torch.rand(shape, device=device) < (1.0 if absent else prob)
        elif absent or masking is None:  # a prediction masks only what is always masked
            masked = torch.full(shape, absent or (at_eval and prob == 1), device=device)
        else:
            masked = masking(name, shape, device)
        # Masked values may be NaN or too large: put 0 in their place.
        hides = not absent and (self.training or masking is not None or (at_eval and prob == 1))
        content = zero_where_absent(segment.content, ~masked) if hides else segment.content
        return replace(segment, content=content, mask_token=self.mask_tokens[name], masked=masked)

    def _mask_lacking(self, name: str, segment: Segment) -> Segment:
        """Give each sample without tokens as many mask tokens as if the whole batch lacked the input."""
        mask, masked, absent = segment.mask, segment.masked, self._absent(name)
        if mask is None or masked is None or absent is None:
            return segment
        usual = torch.arange(segment.num_tokens, device=mask.device) < absent.num_tokens
        lacking = ~mask.any(dim=1, keepdim=True) & usual
        return replace(segment, mask=mask | lacking, masked=masked | lacking)


def log_weight(gate: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
    """Return the logarithm of the weight of an input's tokens: (gate + CLOSED)^2, in at least float32.

    A square is never negative, and its gradient does not vanish at a gate of 0, thanks to CLOSED.
    """
    gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return ((gate + CLOSED).square() + CLOSED**2 / 1e4).log()


class Conditioning(nn.Module):
    """The vector that conditions the blocks: a map of the sum of some inputs' mean tokens."""

    def __init__(self, names: Iterable[str], stages: Iterable[str], channels: int, condition_channels: int) -> None:
        super().__init__()
        self.names, self.stages, self.map = list(names), list(stages), plain_linear(channels, condition_channels)

    @classmethod
    def of(cls, inputs: Mapping[str, Any], config: Config, channels: int) -> "Conditioning | None":
        """Return the module for the inputs that condition the model; None if none does."""
        names = [name for name, spec in inputs.items() if spec.role == "condition"]
        stages = [name for name in ("encoder", "processor", "decoder") if getattr(config, name).conditioned]
        if bool(names) != bool(stages):
            lacking = f"input {names[0]!r} conditions no stage" if names else f"no input conditions the {stages[0]}"
            raise ValueError(f"{lacking}: role: condition of an input goes with conditioned: true of a stage")
        return cls(names, stages, channels, config.latents.channels) if names else None

    def forward(self, tokens: Tokens) -> Float[Tensor, "#b k"]:
        """Return the condition; an input that is not given adds nothing."""
        dtype = dtype_of(self)
        total = torch.zeros(1, self.map.in_features, dtype=dtype, device=self.map.weight.device)
        for name in self.names:
            if (segment := tokens.segments.get(name)) is not None:
                x = zero_where_absent(segment.dense(dtype), segment.mask)
                count = segment.num_tokens if segment.mask is None else segment.mask.sum(1, keepdim=True).clamp(min=1)
                total = total + x.sum(1) / count
        return F.silu(self.map(total))


class OutputQueries(nn.Module):
    """Queries of all outputs: from points by name to one set of queries."""

    def __init__(
        self, queries: Mapping[str, Any], alignment: ChannelAlignment, inputs: Mapping[str, InputAdapter]
    ) -> None:
        super().__init__()
        self.queries, self.alignment = nn.ModuleDict(queries), alignment
        self.channels = alignment.channels
        names = {query.source for query in queries.values() if query.source is not None}
        self.sources = {name: inputs[name].channels for name in names}
        """Width of the tokens of each input that serve as queries, by input."""

    def sources_of(self, segments: Mapping[str, Segment]) -> dict[str, Segment]:
        """Return the inputs' segments whose tokens serve as queries."""
        return {name: segment for name, segment in segments.items() if name in self.sources}

    def forward(self, encoded: Encoded, points: Mapping[str, Any], names: Iterable[str] | None = None) -> Tokens:
        """Return the queries of some outputs at these points, in one width; None: all whose source was given."""
        if names is None:
            names = [name for name, query in self.queries.items() if query.source in (None, *encoded.sources)]
        queries = {name: about("output", name, self.queries[name], encoded, points.get(name)) for name in names}
        check_batches("points", {"latents": encoded.latents.shape[0]} | {n: queries[n].batch_size for n in queries})
        return Tokens({name: self.alignment(name, segment) for name, segment in queries.items()})


class OutputAdapters(nn.Module):
    """Adapters of all outputs: from decoded arrays, after each output's head, to raw outputs by name."""

    def __init__(self, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)

    def heads(self, inputs: Any) -> dict[str, Any]:
        """Return the head of each output, bound to the modules that it shares with the input adapters."""
        adapters: Any = self.adapters
        return {name: adapter.bound_head(inputs) for name, adapter in adapters.items()}

    def forward(self, written: Mapping[str, Tensor], queries: Tokens) -> dict[str, Any]:
        """Return the raw outputs."""
        return {name: self.adapters[name](x, queries.segments[name]) for name, x in written.items()}
