"""START HERE. The architecture: tokens are read into latents, latents are processed, queries write from them.

Letters, here and everywhere: B batch, M inputs, C input width, N latents, D latent width, O queries, F query width,
E output width, H heads. Source: Perceiver IO (Jaegle et al. 2022) and its official perceiver.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor, nn

from perceivers.core.arguments import comes_in_parts
from perceivers.core.config import Config
from perceivers.core.decoder import AverageDecoder, Decoder
from perceivers.core.initialisers import zero_
from perceivers.core.interfaces import Points, SchemaLike
from perceivers.core.joining import (
    InputAdapters,
    Join,
    LiveInputs,
    Masking,
    OutputAdapters,
    OutputQueries,
    check_new_name,
    mask_probs,
)
from perceivers.core.plan import Order, Plan
from perceivers.core.queries import no_query
from perceivers.core.reading import Encoded, Reading
from perceivers.core.tokens import Segment, Tokens, token_dtype
from perceivers.core.trunk import Resampler, Transformer


class PerceiverIO(nn.Module):
    """One model for what a schema declares: `model(raw)` gives raw outputs by name.

    Arrays, lists and pictures of Pillow are taken in place of tensors; what does not fit is a ValueError.
    """

    memory_limit: int | None = None
    """Bytes that reading and writing may take where a call says nothing else; None: what is fastest."""

    def __init__(self, schema: SchemaLike, config: Config | None = None) -> None:
        super().__init__()
        config = config or Config()
        for what, names in (("input", schema.inputs), ("output", schema.outputs)):
            for name in names:
                check_new_name(what, name)
        self.schema, self.config = schema, config
        encoder, decoder, width = config.encoder, config.decoder, config.latents.channels

        inputs = {name: spec.build_input() for name, spec in schema.inputs.items()}
        widths = {name: adapter.channels for name, adapter in inputs.items()}
        join = Join(widths, encoder.join, encoder.input_channels or width, encoder.min_padding)
        self.input_adapter = InputAdapters(inputs, join, mask_probs(schema.inputs))

        trunk = Transformer if config.trunk == "transformer" else Resampler
        self.trunk: Resampler | Transformer = trunk(config, self.input_adapter.channels)

        queries = {name: spec.build_query(inputs) for name, spec in schema.outputs.items()}
        self.decoder: Decoder | AverageDecoder
        if decoder.kind == "average":
            queries = {name: no_query(name, query) for name, query in queries.items()}
            self.output_query = OutputQueries(queries, Join(dict.fromkeys(queries, 0), "pad", 0, 0))
            self.decoder = AverageDecoder(config)
        else:
            widths = {name: query.channels for name, query in queries.items()}
            join = Join(widths, decoder.join, decoder.query_channels or width, decoder.min_padding)
            self.output_query = OutputQueries(queries, join)
            self.decoder = Decoder(config, join.channels)

        channels = self.decoder.output_channels
        live = LiveInputs(self)
        outputs = {name: spec.build_output(channels, live) for name, spec in schema.outputs.items()}
        self.output_adapter = OutputAdapters(outputs)
        if decoder.kind == "average":  # official `ProjectionDecoder`
            zero_(*self.output_adapter.heads.values())
        self._asked_with = {query.source for query in queries.values() if query.source is not None}

    def forward(
        self,
        raw: Mapping[str, Any] | Any,
        points: Mapping[str, Points | None] | None = None,
        memory_limit: int | None = None,
        order: Order | None = None,
        masking: Masking | None = None,
    ) -> dict[str, Any]:
        """Raw inputs by name (or the only one) to raw outputs by name, everywhere or at points."""
        return self.decode(self.encode(raw, memory_limit, order, masking), points, None, memory_limit, order)

    def encode(
        self,
        raw: Mapping[str, Any] | Iterable[Mapping[str, Any]] | Any,
        memory_limit: int | None = None,
        order: Order | None = None,
        masking: Masking | None = None,
    ) -> Encoded:
        """Read and process the inputs; chunk after chunk if they come as an iterable of parts of them.

        Beside inputs and model, each reading takes `memory_limit` bytes at most; `order` forces how attention is
        computed (core/orders.py). Both change the time and the last bits alone. `masking`: what an evaluation masks.
        """
        if comes_in_parts(raw):
            if masking is not None:
                raise ValueError("masking draws for whole inputs: give them whole, not in parts")
            reading = Reading()
            for chunk in raw:
                reading = reading + self.read(chunk, memory_limit, order)
            missing = {name: None for name in self.input_adapter.mask_probs if name not in reading.states}
            return self.process(reading + self.read(missing, memory_limit, order) if missing else reading)
        tokens, own = self._tokens(raw, None, masking)
        latents = self.trunk(tokens, None, self._plan(memory_limit, order))
        return Encoded(latents, self._sources(own), self._mask(tokens))

    def read(
        self, raw: Mapping[str, Any] | Any, memory_limit: int | None = None, order: Order | None = None
    ) -> Reading:
        """What the latents take from these inputs alone, to be added to what they take from others.

        An input given as None is read as missing. ValueError if the model reads more than once.
        """
        trunk, plan = self._resampler(), self._plan(memory_limit, order)
        missing = [name for name in raw if raw[name] is None] if isinstance(raw, Mapping) else []
        tokens, own = self._tokens(raw, missing)
        states, extents = trunk.read(tokens, plan), self.input_adapter.extents(raw)
        parts = {name: (extent,) for name, extent in extents.items() if name in states}
        return Reading(states, self._sources(own), parts)

    def process(self, reading: Reading) -> Encoded:
        """What `encode` gives for all that was read."""
        if not isinstance(reading, Reading):
            raise ValueError(f"processing takes a Reading, as `read` gives, not {type(reading).__name__}")
        return Encoded(self._resampler().process(self._completed(reading).total()), reading.sources)

    def decode(
        self,
        encoded: Encoded,
        points: Mapping[str, Points | None] | None = None,
        outputs: Iterable[str] | None = None,
        memory_limit: int | None = None,
        order: Order | None = None,
        share: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Write these outputs (None: all), each at its points (None: everywhere); limit and order: `encode`.

        `share` (rank, world): of each output the part of one of several processes, if it gets any; of a grid slices of
        its first axis.
        """
        self._check_encoded(encoded)
        queries = self.output_query(encoded, {} if points is None else points, outputs)
        queries = queries if share is None else self.output_adapter.share(queries, share)
        plan, heads = self._plan(memory_limit, order), self.output_adapter.heads
        rows = self.decoder(queries, encoded.latents, heads, plan, encoded.mask)
        return self.output_adapter(rows, queries)

    def attention_maps(
        self, raw: Mapping[str, Any] | Any, points: Mapping[str, Points | None] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Under "encoder" [B, H, N, M] of each input at the first read, under "decoder" [B, H, O, N] of each output.

        Without what the model does not do: a transformer does not read, an averaging decoder does not ask.
        """
        tokens, own = self._tokens(raw)
        maps = {}
        if isinstance(self.trunk, Resampler):
            maps["encoder"] = self.trunk.attention_map(tokens)
        if isinstance(self.decoder, Decoder):
            encoded = Encoded(self.trunk(tokens), own, self._mask(tokens))
            queries = self.output_query(encoded, {} if points is None else points, None)
            maps["decoder"] = self.decoder.attention_map(queries, encoded.latents, encoded.mask)
        return maps

    def _resampler(self) -> Resampler:
        if not isinstance(self.trunk, Resampler):
            raise ValueError("a transformer attends to all tokens at once: it cannot read in parts")
        return self.trunk

    def _mask(self, tokens: Tokens) -> Tensor | None:
        return tokens.mask() if isinstance(self.trunk, Transformer) else None

    def _completed(self, reading: Reading) -> Reading:
        """Return what was read with the mask tokens of the samples that lack an input in all of its parts."""
        states = dict(reading.states)
        for name, extents in reading.parts.items():
            if name in self.input_adapter.mask_probs and any(extents):
                own, missing = states[name], self.read({name: None}).states.get(name)
                if missing is not None:
                    states[name] = own + missing.where(own.denominator == 0)
        return replace(reading, states=states)

    def _tokens(self, raw: Any, missing: Iterable[str] | None = None, masking: Masking | None = None) -> Any:
        weight = next(self.parameters())
        tokens, own = self.input_adapter(raw, missing, weight.device, masking)
        return tokens.in_range(token_dtype(weight.dtype)), own

    def _plan(self, memory_limit: int | None, order: Order | None) -> Plan:
        if order not in (None, *get_args(Order)):
            raise ValueError(f"unknown order {order!r}; there are {', '.join(get_args(Order))}")
        return Plan(self.memory_limit if memory_limit is None else memory_limit, order)

    def _check_encoded(self, encoded: Encoded) -> None:
        if not isinstance(encoded, Encoded):
            raise ValueError(f"decoding takes an Encoded, as `encode` gives, not {type(encoded).__name__}")
        widths = {name: self.input_adapter.adapters[name].channels for name in self._asked_with}
        other = [name for name, segment in encoded.sources.items() if segment.own_channels != widths.get(name)]
        if encoded.latents.ndim != 3 or encoded.latents.shape[-1] != self.config.latents.channels or other:
            raise ValueError(f"latents {tuple(encoded.latents.shape)} of another model: decode what this one encoded")

    def _sources(self, own: Mapping[str, Segment]) -> dict[str, Segment]:
        return {name: segment for name, segment in own.items() if name in self._asked_with}
