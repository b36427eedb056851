"""START HERE. The architecture: tokens are read into latents, latents are processed, outputs are decoded from them.

    tokens  = input_adapter(raw)                 # [B, M, C]
    latents = trunk(tokens)                      # [B, N, D]: read (encode), then process, from the latents at the start
    queries = output_query(encoded, points)      # [B, O, F]
    written = decoder(queries, latents, heads)   # [B, O, e] by output: attention, then the output's head
    raw_out = output_adapter(written, queries)

Letters, here and everywhere: B batch, M tokens, C token width, N latents, D latent width, O queries, F query width,
E decoder width, e width after a head, H heads. Source: Perceiver IO (Jaegle et al. 2022), official perceiver.py.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.core.attention import plan_attention
from perceivers.core.config import Config
from perceivers.core.decoder import Decoder, LatentDecoder
from perceivers.core.latents import Latents
from perceivers.core.reading import Encoded, Reading
from perceivers.core.tokens import Segment, Tokens, token_dtype
from perceivers.core.trunk import Transformer, Trunk

Masking = Callable[[str, torch.Size, torch.device], Tensor]
"""Function of an input's name, shape [B, M] and device: True for the tokens that an evaluation masks."""

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
        self.schema, self.config = schema, config or Config()
        self.input_adapter, self.conditioning = schema.build_inputs(self.config)
        trunk = Transformer if self.config.trunk == "transformer" else Trunk
        self.trunk: Trunk | Transformer = trunk(self.config, self.input_adapter.channels)
        inputs: Any = dict(self.input_adapter.adapters.items())
        self.output_query = schema.build_queries(self.config, inputs)
        decoder = Decoder if self.config.decoder.kind == "query" else LatentDecoder
        self.decoder: Decoder | LatentDecoder = decoder(self.config, self.output_query.channels)
        self.output_adapter = schema.build_outputs(self.config, self.decoder.output_channels, inputs)

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

        Each read takes at most `memory_limit` in addition to inputs and model; `algorithm` forces an attention
        algorithm: both change only run time, memory and rounding. `masking` selects what an evaluation masks, `latents`
        replaces those at the start (`start`), `noise` [B, N, z] makes the sample of the bottleneck.
        """
        if self.schema.guard.comes_in_parts(raw):
            self.schema.guard.parts(masking, noise, latents, self.conditioning)
            start = None if latents is None else self._started(Tokens(), latents)[1]
            return self.process(self._read_parts(raw, memory_limit, algorithm, start))
        tokens, segments = self.tokens(raw, None, masking)
        tokens, start = self._started(tokens, latents)
        start = replace(start, noise=self.schema.guard.noise(noise, self.config, tokens))
        found = self.trunk(tokens, self._plan(memory_limit, algorithm), start)
        return Encoded.of(found, self.output_query.sources_of(segments), self.trunk)

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
        return self._started(self.tokens(raw, ())[0], latents)[1]

    def read(
        self, raw: Any, memory_limit: Limit = None, algorithm: str | None = None, start: Latents | None = None
    ) -> Reading:
        """Return the softmax states of these inputs, a reading that can be added to readings of other inputs.

        An input given as None is read as missing. Parts need the `start` of the whole where it depends on inputs.
        ValueError if the model reads more than once.
        """
        trunk, plan = self._trunk(), self._plan(memory_limit, algorithm)
        missing = [name for name in raw if raw[name] is None] if isinstance(raw, Mapping) else []
        tokens, segments = self.tokens(raw, missing)
        is_own = start is None and self.conditioning is None and trunk.latents is not None
        tokens, start = self._started(tokens, start)
        adapters: Any = self.input_adapter.adapters
        parts = {n: (segments[n].extent if n in segments else None,) for n in tokens.segments if not adapters[n].is_set}
        return Reading(
            trunk.read(tokens, plan, start), self.output_query.sources_of(segments), parts, None if is_own else start
        )

    def process(self, reading: Reading) -> Encoded:
        """Process the latents after all reading: the same result as `encode` of the same inputs."""
        self.schema.guard.reading(reading)
        latents = self._trunk().process(self._completed(reading).total(), reading.start)
        return Encoded.of(latents, reading.sources, self.trunk)

    def decode(
        self,
        encoded: Encoded,
        points: Mapping[str, Any] | None = None,
        outputs: Iterable[str] | None = None,
        memory_limit: Limit = None,
        algorithm: str | None = None,
        share: tuple[int, int] | None = None,
        condition: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Decode these outputs (None: all), each at its points (None: everywhere); limit and algorithm as in `encode`.

        `share` (rank, world): decode only one process's part of each output; a grid is split along its first axis.
        `condition`: raw inputs that condition the decoder in place of the encoded ones, for one sample or for each.
        """
        guard = self.schema.guard
        guard.encoded(encoded, self.config.latents.channels, self.output_query.sources)
        points, names = guard.points(points, encoded.latents.device), guard.output_names(outputs)
        whole = self.decoder.mixes_queries
        queries = guard.share(self.output_query(encoded, points, names), share, self.output_adapter.adapters, whole)
        heads = self.output_adapter.heads(self.input_adapter.adapters)
        latents = encoded.around or Latents(encoded.latents)
        if condition is not None:
            given, _ = self.tokens(guard.condition(condition, self.conditioning), ())
            latents = guard.conditioned(latents, self.conditioning(given))
        written = self.decoder(queries, latents, heads, self._plan(memory_limit, algorithm))
        return self.output_adapter(guard.written(written, queries), queries)

    def attention_maps(self, raw: Any, points: Mapping[str, Any] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return attention maps: "encoder" [B, H, N, M] by input at the first read, "decoder" [B, H, O, N] by output.

        A transformer trunk has no "encoder" maps, a decoder without attention no "decoder" maps.
        """
        tokens, segments = self.tokens(raw)
        (tokens, start), maps = self._started(tokens), {}
        if isinstance(self.trunk, Trunk):
            maps["encoder"] = self.input_adapter.gated(self.trunk.attention_map(tokens, start))
        if isinstance(self.decoder, Decoder):
            latents = self.trunk(tokens, None, start)
            where = self.schema.guard.points(points, latents.array.device)
            queries = self.output_query(Encoded.of(latents, segments), where)
            maps["decoder"] = self.decoder.attention_map(queries, latents)
        return maps

    def _trunk(self) -> Trunk:
        if not isinstance(self.trunk, Trunk):
            raise ValueError("a transformer attends to all tokens at once: it cannot read in parts")
        return self.trunk

    def _started(self, tokens: Tokens, latents: Any = None) -> tuple[Tokens, Latents]:
        """Return the tokens that are read, and the latents that read them, with the condition that others make."""
        roles, weight = {name: spec.role for name, spec in self.schema.inputs.items()}, next(self.parameters())
        read = Tokens({name: x for name, x in tokens.segments.items() if roles[name] == "read"})
        if not isinstance(latents, Latents):
            condition = None if self.conditioning is None else self.conditioning(tokens)
            given = self.schema.guard.latents(latents, self.config, weight, read)
            latents = replace(self.schema.guard.carried(self.trunk.start(read, given), latents), condition=condition)
        self.schema.guard.start(read, latents)
        return read, latents

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
