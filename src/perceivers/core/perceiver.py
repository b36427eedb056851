"""START HERE. The architecture: tokens are read into latents, latents are processed, outputs are decoded from them.

    tokens  = input_adapter(raw)                 # [B, M, C]
    latents = trunk(tokens)                      # [B, N, D]: read (encode), then process, from the latents at the start
    queries = output_query(encoded, points)      # [B, O, F]
    written = decoder(queries, latents, heads)   # [B, O, e] by output: attention, then the output's head
    raw_out = output_adapter(written, queries)

Letters, here and everywhere: B batch, M tokens, C token width, N latents, D latent width, O queries, F query width,
E decoder width, e width after a head, H heads. Source: Perceiver IO (Jaegle et al. 2022), official perceiver.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, nn

from perceivers.core.adapters import (
    ChannelAlignment,
    Conditioning,
    InputAdapters,
    Masking,
    OutputAdapters,
    OutputQueries,
    mask_probs,
)
from perceivers.core.attention import plan_attention
from perceivers.core.bottleneck import KL, checked_noise
from perceivers.core.checks import about
from perceivers.core.config import Config
from perceivers.core.decoder import Decoder, LatentDecoder
from perceivers.core.latents import Latents
from perceivers.core.reading import Encoded, Reading
from perceivers.core.tokens import Segment, Tokens, token_dtype
from perceivers.core.trunk import Transformer, Trunk

Limit = int | str | None
"""A memory limit: bytes, or text such as "200MB"; None: no limit, so the fastest algorithm runs."""


class PerceiverIO(nn.Module):
    """The model of a schema (`schema.Schema`): `model(raw)` returns raw outputs by name.

    Arrays, lists and Pillow images are accepted in place of tensors; a value that does not fit is a ValueError.
    """

    memory_limit: Limit = None
    """Default memory limit of a call, for reading and for writing each, in addition to the inputs and the model."""

    def __init__(self, schema: Any, config: Config | None = None) -> None:
        super().__init__()
        config = config or Config()
        self.schema, self.config = schema, config
        encoder, decoder, d = config.encoder, config.decoder, config.latents.channels
        if config.bottleneck is not None and KL in schema.outputs:
            raise ValueError(f"output {KL!r} has the name of the loss of config.bottleneck: rename the output")
        # Inputs: an adapter each, and the alignment of their tokens to one width.
        inputs = {name: spec.build_input() for name, spec in schema.inputs.items()}
        widths = {name: adapter.channels for name, adapter in inputs.items()}
        align = ChannelAlignment(widths, encoder.channel_alignment, encoder.input_channels or d, encoder.min_padding)
        self.input_adapter = InputAdapters(inputs, align, mask_probs(schema.inputs))
        self.conditioning = Conditioning.of(schema.inputs, config, self.input_adapter.channels)
        # Trunk: tokens to latents.
        trunk = Transformer if config.trunk == "transformer" else Trunk
        self.trunk: Trunk | Transformer = trunk(config, self.input_adapter.channels)
        # Queries of all outputs, and the decoder; without attention, the queries are made of the latents.
        queries: dict[str, Any] = {n: spec.build_query(inputs) for n, spec in schema.outputs.items()}
        self.decoder: Decoder | LatentDecoder
        if decoder.kind != "query":
            latents, mean = config.latents, decoder.kind == "average"
            for name, query in queries.items():
                queries[name] = about("output", name, query.of_latents, latents.num_latents, latents.channels, mean)
            self.output_query = OutputQueries(queries, ChannelAlignment(dict.fromkeys(queries, d), "pad", d, 0))
            self.decoder = LatentDecoder(config)
        else:
            widths = {name: query.channels for name, query in queries.items()}
            align = ChannelAlignment(
                widths, decoder.channel_alignment, decoder.query_channels or d, decoder.min_padding
            )
            self.output_query = OutputQueries(queries, align)
            self.decoder = Decoder(config, align.channels)
        # Outputs: an adapter each, whose head maps what the decoder computes.
        channels = self.decoder.output_channels
        outputs = {name: spec.build_output(channels, inputs) for name, spec in schema.outputs.items()}
        self.output_adapter = OutputAdapters(outputs)
        if decoder.kind == "average":  # official `ProjectionDecoder`
            for parameter in chain(*(output.head.parameters() for output in outputs.values())):
                nn.init.zeros_(parameter)
        self._source_names = {query.source for query in queries.values() if query.source is not None}

    def forward(
        self,
        raw: Mapping[str, Any] | Any,
        points: Mapping[str, Any] | None = None,
        memory_limit: Limit = None,
        algorithm: str | None = None,
        masking: Masking | None = None,
        latents: Any = None,
    ) -> dict[str, Any]:
        """Return raw outputs by name, everywhere or at `points`, for raw inputs by name (or for the only input)."""
        encoded = self.encode(raw, memory_limit, algorithm, masking, latents)
        return self.decode(encoded, points, None, memory_limit, algorithm)

    def encode(
        self,
        raw: Any,
        memory_limit: Limit = None,
        algorithm: str | None = None,
        masking: Masking | None = None,
        latents: Any = None,
        noise: Tensor | None = None,
    ) -> Encoded:
        """Read and process the inputs; an iterable of parts of the inputs is read one part at a time.

        Each read takes at most `memory_limit` in addition to inputs and model. `algorithm` forces an attention
        algorithm. Both change only run time, memory and rounding. `masking` selects what an evaluation masks.
        `latents` replaces the latents at the start (`start`). `noise` [B, N, z], standard normal numbers, makes the
        sample of the bottleneck; None: in training torch's random numbers do, and elsewhere the mean is decoded.
        """
        if self.schema.guard.comes_in_parts(raw):
            if masking is not None or noise is not None:
                raise ValueError("masking and noise are for whole inputs: give them whole, not in parts")
            start = None if latents is None else self.start({}, latents)
            return self.process(self._read_parts(raw, memory_limit, algorithm, start))
        tokens, segments = self.tokens(raw, None, masking)
        tokens, condition = self._conditioned(tokens)
        start = replace(self._start(tokens, condition, latents), noise=checked_noise(noise, self.config))
        found = self.trunk(tokens, self._plan(memory_limit, algorithm), start)
        return Encoded.of(found, self._sources(segments), self._redrawn)

    def tokens(
        self, raw: Any, missing: Iterable[str] | None = None, masking: Masking | None = None
    ) -> tuple[Tokens, dict[str, Segment]]:
        """Return all inputs' tokens, aligned and masked, and each input's segment before alignment and masking."""
        weight = next(self.parameters())
        tokens, segments = self.input_adapter(self.schema.guard.tensors(raw, weight.device), missing, masking)
        return self.schema.guard.tokens(tokens, token_dtype(weight.dtype)), segments

    def start(self, raw: Any, latents: Any = None) -> Latents:
        """Return the latents before they read: the model's, chosen from the inputs, or given, with their condition.

        `latents`: vectors [B, N, D] or an Encoded, whose latents carry on; numbers [B, N] of the tokens that become
        latents, where the config takes latents from an input; or what `start` has returned.
        """
        if isinstance(latents, Latents):
            return latents
        tokens, condition = self._conditioned(self.tokens(raw, ())[0])
        return self._start(tokens, condition, latents)

    def read(
        self, raw: Any, memory_limit: Limit = None, algorithm: str | None = None, start: Latents | None = None
    ) -> Reading:
        """Return the softmax states of these inputs, a reading that can be added to readings of other inputs.

        An input given as None is read as missing. ValueError if the model reads more than once. Where latents or their
        condition depend on inputs, parts need the `start` of the whole.
        """
        trunk, plan = self._trunk(), self._plan(memory_limit, algorithm)
        missing = [name for name in raw if raw[name] is None] if isinstance(raw, Mapping) else []
        tokens, segments = self.tokens(raw, missing)
        tokens, condition = self._conditioned(tokens)
        is_own = start is None and condition is None and trunk.latents is not None
        start = start or self._start(tokens, condition)
        adapters: Any = self.input_adapter.adapters
        parts = {n: (segments[n].extent if n in segments else None,) for n in tokens.segments if not adapters[n].is_set}
        states = trunk.read(tokens, plan, start)
        return Reading(states, self._sources(segments), parts, None if is_own else start)

    def process(self, reading: Reading) -> Encoded:
        """Process the latents after all reading: the same result as `encode` of the same inputs."""
        if not isinstance(reading, Reading):
            raise ValueError(f"processing takes a Reading, as `read` gives, not {type(reading).__name__}")
        latents = self._trunk().process(self._completed(reading).total(), reading.start)
        return Encoded.of(latents, reading.sources, self._redrawn)

    def decode(
        self,
        encoded: Encoded,
        points: Mapping[str, Any] | None = None,
        outputs: Iterable[str] | None = None,
        memory_limit: Limit = None,
        algorithm: str | None = None,
        share: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Decode these outputs (None: all), each at its points (None: everywhere); limit and algorithm as in `encode`.

        `share` (rank, world): decode only the part of each output that falls to one of several processes, if any; a
        grid is split along its first axis.
        """
        self._check_encoded(encoded)
        guard = self.schema.guard
        points, names = guard.points(points, encoded.latents.device), guard.output_names(outputs)
        if share is not None and self.decoder.mixes_queries:
            raise ValueError("decoder.self_attention: queries attend to one another, on one process: give no share")
        queries = guard.share(self.output_query(encoded, points, names), share, self.output_adapter.adapters)
        heads = self.output_adapter.heads(self.input_adapter.adapters)
        written = self.decoder(queries, encoded.around, heads, self._plan(memory_limit, algorithm))
        return self.output_adapter(guard.written(written, queries), queries)

    def attention_maps(self, raw: Any, points: Mapping[str, Any] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return attention maps: "encoder" [B, H, N, M] by input at the first read, "decoder" [B, H, O, N] by output.

        A transformer trunk has no "encoder" maps, a decoder without attention no "decoder" maps.
        """
        tokens, segments = self.tokens(raw)
        tokens, condition = self._conditioned(tokens)
        start, maps = self._start(tokens, condition), {}
        if isinstance(self.trunk, Trunk):
            maps["encoder"] = self.trunk.attention_map(tokens, start)
        if isinstance(self.decoder, Decoder):
            encoded = Encoded.of(self.trunk(tokens, None, start), segments)
            queries = self.output_query(encoded, self.schema.guard.points(points, encoded.latents.device))
            maps["decoder"] = self.decoder.attention_map(queries, encoded.around)
        return maps

    def _trunk(self) -> Trunk:
        if not isinstance(self.trunk, Trunk):
            raise ValueError("a transformer attends to all tokens at once: it cannot read in parts")
        return self.trunk

    def _conditioned(self, tokens: Tokens) -> tuple[Tokens, Tensor | None]:
        """Return the tokens that are read, and the condition that others make."""
        condition = None if self.conditioning is None else self.conditioning(tokens)
        roles = {name: spec.role for name, spec in self.schema.inputs.items()}
        return Tokens({name: x for name, x in tokens.segments.items() if roles[name] == "read"}), condition

    def _start(self, tokens: Tokens, condition: Tensor | None, latents: Any = None) -> Latents:
        given = latents.latents if isinstance(latents, Encoded) else latents
        if isinstance(given, Latents):
            return given
        weight = next(self.parameters())
        given = self.schema.guard.latents(given, weight.device, weight.dtype)
        return replace(self.trunk.start(tokens, given), condition=condition)

    def _redrawn(self, latents: Latents, drawn: Tensor) -> Latents:
        return self._trunk().redrawn(latents, drawn)

    def _plan(self, memory_limit: Limit, algorithm: str | None) -> Any:
        return plan_attention(self.memory_limit if memory_limit is None else memory_limit, algorithm)

    def _read_parts(self, chunks: Iterable[Any], limit: Limit, algorithm: str | None, start: Latents | None) -> Reading:
        reading = Reading()
        for chunk in chunks:
            reading = reading + self.read(chunk, limit, algorithm, start)
        missing = {name: None for name in self.input_adapter.mask_probs if name not in reading.states}
        return reading + self.read(missing, limit, algorithm, reading.start) if missing else reading

    def _completed(self, reading: Reading) -> Reading:
        """Add the mask tokens of samples that lack an input in all of the parts that were read."""
        states = dict(reading.states)
        for name, extents in reading.parts.items():
            if name in self.input_adapter.mask_probs and any(extents):
                state, missing = states[name], self.read({name: None}, start=reading.start).states.get(name)
                if missing is not None:
                    states[name] = state + missing.where(state.sum_exp == 0)
        return replace(reading, states=states)

    def _check_encoded(self, encoded: Encoded) -> None:
        if not isinstance(encoded, Encoded):
            raise ValueError(f"decoding takes an Encoded, as `encode` gives, not {type(encoded).__name__}")
        adapters: Any = self.input_adapter.adapters
        widths = {name: adapters[name].channels for name in self._source_names}
        other = [name for name, segment in encoded.sources.items() if segment.raw_channels != widths.get(name)]
        if encoded.latents.ndim != 3 or encoded.latents.shape[-1] != self.config.latents.channels or other:
            raise ValueError(f"latents {tuple(encoded.latents.shape)} of another model: decode what this one encoded")

    def _sources(self, segments: Mapping[str, Segment]) -> dict[str, Segment]:
        return {name: segment for name, segment in segments.items() if name in self._source_names}
