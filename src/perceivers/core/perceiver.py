"""START HERE. The architecture: tokens are read into latents, latents are processed, queries write from them.

Letters, here and everywhere: B batch, M inputs, C input width, N latents, D latent width, O queries, F query width,
E output width, H heads. Source: Perceiver IO (Jaegle et al. 2022) and its official perceiver.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core import orders
from perceivers.core.attention import BlockConfig, CrossAttention, Mask, SelfAttention
from perceivers.core.initialisers import POSITION_STD, plain_linear, sines, trained_vector, zero_
from perceivers.core.interfaces import Points, SchemaLike
from perceivers.core.joining import InputAdapters, Join, JoinRule, OutputAdapters, OutputQueries, check_new_name
from perceivers.core.plan import FASTEST, Choice, Order, Plan, plan_reading, plan_states, plan_writing
from perceivers.core.queries import no_query
from perceivers.core.reading import Encoded, Reading, ReadState, sum_states
from perceivers.core.tokens import Segment, Tokens, as_tokens

Sharing = Literal["none", "all", "all_but_first"]


@dataclass(frozen=True)
class LatentsConfig:
    """The array of latents."""

    num_latents: int = 128
    """N."""
    channels: int = 256
    """D."""
    init_std: float = POSITION_STD
    """Standard deviation of their truncated normal start."""
    num_places: int | None = None
    """They begin as sines of places spread evenly over so many (a text's length); None: at random (official)."""


@dataclass(frozen=True)
class EncoderConfig(BlockConfig):
    """Reading: latents attend to tokens."""

    query_residual: bool = True
    """Add what was read to the latents."""
    join: JoinRule = "project"
    """How inputs come to one width: a linear map each, or padding with a trained vector (released models)."""
    input_channels: int | None = None
    """C under "project"; None: the latents' width."""
    min_padding: int = 0
    """Under "pad": trained channels behind the widest input."""
    num_reads: int = 1
    """How often the inputs are read, each time before a processor block; more than 1 is the original Perceiver."""
    share_reads: Sharing = "all_but_first"
    """Which reads have the same weights."""


@dataclass(frozen=True)
class ProcessorConfig(BlockConfig):
    """Processing: latents attend to one another."""

    num_heads: int = 8
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    num_layers: int = 6
    """Self-attention layers of a block."""
    num_blocks: int = 1
    """Blocks, one after the other."""
    share_blocks: Sharing = "all"
    """Which blocks have the same weights."""


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """Writing: queries attend to latents."""

    kind: Literal["query", "average"] = "query"
    """"average": no queries, the mean of the latents goes to the heads (original Perceiver)."""
    query_residual: bool = False
    """Add what was found to the queries."""
    join: JoinRule = "project"
    """How queries come to one width: a linear map each, or padding with a trained vector (released models)."""
    query_channels: int | None = None
    """F under "project"; None: the latents' width."""
    min_padding: int = 0
    """Under "pad": trained channels behind the widest query."""
    output_channels: int | None = None
    """E: width of a linear map before the heads; None: no such map, E is F."""


@dataclass(frozen=True)
class Config:
    """Sizes of a Perceiver IO, apart from what goes in and out."""

    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """The array of latents."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Reading."""
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    """Processing."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Writing."""

    def __post_init__(self) -> None:
        if not 1 <= self.encoder.num_reads <= self.processor.num_blocks:
            raise ValueError(
                f"encoder.num_reads = {self.encoder.num_reads} must be from 1 to processor.num_blocks = "
                f"{self.processor.num_blocks}: each read stands before a block"
            )
        for stage, width, name in (
            (self.encoder, self.encoder.input_channels, "encoder.input_channels"),
            (self.decoder, self.decoder.query_channels, "decoder.query_channels"),
        ):
            if stage.join == "pad" and width is not None:
                raise ValueError(f"{name} has no effect under join: pad, which takes the widest; leave it out")


class Read(nn.Module):
    """A stage: the latents attend to the tokens."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        encoder = config.encoder
        self.cross_attention = CrossAttention(config.latents.channels, input_channels, encoder, encoder.query_residual)

    def forward(
        self,
        latents: Float[Tensor, "#b n d"],
        tokens: Tokens,
        plan: Plan = FASTEST,
    ) -> Float[Tensor, "b n d"]:
        """Updated latents; in the cheapest order that the plan allows."""
        choices = plan_reading(self.cross_attention, latents, tokens, plan)
        if not choices:
            return self.cross_attention(latents, tokens.dense(latents.dtype), Mask(keys=tokens.mask()))
        return self.update(latents, sum_states(self._states(latents, tokens, choices).values()))

    def states(self, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Plan) -> dict[str, ReadState]:
        """What the latents take from each segment, to be added up."""
        choices = plan_states(self.cross_attention, latents, tokens, plan)
        if choices is None:
            raise ValueError("dropout of attention weights in training: read everything at once, or in evaluation")
        return self._states(latents, tokens, choices)

    def update(self, latents: Float[Tensor, "#b n d"], state: ReadState) -> Float[Tensor, "b n d"]:
        """Latents updated with all that they have taken."""
        found = self.cross_attention.attention.output(state.attended().to(latents.dtype))
        return self.cross_attention.finish(latents, found)

    def _states(
        self, latents: Float[Tensor, "#b n d"], tokens: Tokens, choices: Mapping[str, Choice]
    ) -> dict[str, ReadState]:
        return {
            name: orders.read(self.cross_attention, latents, segment, choices[name].order, choices[name].block_size)
            for name, segment in tokens.segments.items()
        }

    def attention_map(self, latents: Float[Tensor, "#b n d"], tokens: Tokens) -> dict[str, Float[Tensor, "b h n m"]]:
        """How much each latent takes from each token of each input."""
        weights = self.cross_attention.weights(latents, tokens.dense(latents.dtype), Mask(keys=tokens.mask()))
        return tokens.split(weights, dim=-1)


class Process(nn.Module):
    """A stage: the latents attend to one another, layer after layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttention(config.latents.channels, config.processor) for _ in range(config.processor.num_layers)
        )

    def forward(self, latents: Float[Tensor, "#b n d"]) -> Float[Tensor, "b n d"]:
        """Updated latents."""
        for layer in self.layers:
            latents = layer(latents)
        return latents


def start_of(latents: LatentsConfig) -> nn.Parameter:
    """Latents before training."""
    if latents.num_places is not None:
        return sines(latents.num_latents, latents.num_places, latents.channels)
    return trained_vector(latents.num_latents, latents.channels, std=latents.init_std)


class Resampler(nn.Module):
    """Reads any number of tokens into N latents and processes them: the trunk of every Perceiver, of use alone too."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        latents, encoder, processor = config.latents, config.encoder, config.processor
        read_of = [_shared(i, encoder.share_reads) for i in range(encoder.num_reads)]
        block_of = [_shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        self.latents = start_of(latents)
        self.encoder = nn.ModuleList(Read(config, input_channels) for _ in range(max(read_of) + 1))
        self.processor = nn.ModuleList(Process(config) for _ in range(max(block_of) + 1))
        self._read_of, self._block_of = read_of, block_of

    @property
    def stages(self) -> list[nn.Module]:
        """Reads and processes in the order they run; shared ones appear again."""
        stages: list[nn.Module] = []
        for number, block in enumerate(self._block_of):
            stages += [self.encoder[self._read_of[number]]] if number < len(self._read_of) else []
            stages += [self.processor[block]]
        return stages

    def forward(
        self,
        tokens: Tokens | Float[Tensor, "b m c"],
        mask: Bool[Tensor, "b m"] | None = None,
        plan: Plan = FASTEST,
    ) -> Float[Tensor, "b n d"]:
        """Latents from tokens [B, M, C]; the mask is True where a token exists."""
        tokens, latents = as_tokens(tokens, mask), self.latents[None]
        for stage in self.stages:
            latents = stage(latents, tokens, plan) if isinstance(stage, Read) else stage(latents)
        return latents

    def read(self, tokens: Tokens, plan: Plan = FASTEST) -> dict[str, ReadState]:
        """What the first read takes from each segment; ValueError if there are more reads, which depend on it."""
        first, *later = (stage for stage in self.stages if isinstance(stage, Read))
        if later:
            raise ValueError(
                f"the inputs are read {1 + len(later)} times: states of one read alone cannot be processed"
            )
        return first.states(self.latents[None], tokens, plan)

    def process(self, state: ReadState) -> Float[Tensor, "b n d"]:
        """Latents from the sum of all states that were read."""
        read, *processes = self.stages
        assert isinstance(read, Read)
        latents = read.update(self.latents[None], state)
        for process in processes:
            latents = process(latents)
        return latents


class Decoder(nn.Module):
    """Queries attend to the latents once; each output's head turns its rows into numbers."""

    def __init__(self, config: Config, query_channels: int) -> None:
        super().__init__()
        decoder, latent_channels = config.decoder, config.latents.channels
        self.cross_attention = CrossAttention(query_channels, latent_channels, decoder, decoder.query_residual)
        self.output_channels = decoder.output_channels or query_channels
        self.output = plain_linear(query_channels, self.output_channels) if decoder.output_channels else nn.Identity()

    def forward(
        self,
        queries: Tokens,
        latents: Float[Tensor, "#b n d"],
        heads: Mapping[str, nn.Module],
        plan: Plan = FASTEST,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Rows [B, O, e] of each output, after its head."""
        tails = {name: (self.output, heads[name]) for name in queries.segments}
        rows = {
            name: orders.write(
                self.cross_attention, queries.segments[name], latents, tails[name], choice.order, choice.block_size
            )
            for name, choice in plan_writing(self.cross_attention, latents, queries, tails, plan).items()
        }
        dense = Tokens({name: segment for name, segment in queries.segments.items() if name not in rows})
        if dense.segments:
            x = self.cross_attention(dense.dense(latents.dtype), latents, Mask(queries=dense.mask()))
            rows |= {name: heads[name](part) for name, part in dense.split(self.output(x)).items()}
        return {name: rows[name] for name in queries.segments}

    def attention_map(self, queries: Tokens, latents: Float[Tensor, "#b n d"]) -> dict[str, Float[Tensor, "b h _ n"]]:
        """How much each query of each output takes from each latent."""
        weights = self.cross_attention.weights(queries.dense(latents.dtype), latents, Mask(queries=queries.mask()))
        return queries.split(weights, dim=-2)


class AverageDecoder(nn.Module):
    """The head of the original Perceiver: every query gets the mean of the latents (official `ProjectionDecoder`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.output_channels = config.latents.channels

    def forward(
        self,
        queries: Tokens,
        latents: Float[Tensor, "#b n d"],
        heads: Mapping[str, nn.Module],
        plan: Plan = FASTEST,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Rows [B, O, e] of each output, after its head; there is nothing to limit."""
        mean = latents.mean(dim=1, keepdim=True)
        return {name: heads[name](mean.expand(-1, q.num_tokens, -1)) for name, q in queries.segments.items()}


class PerceiverIO(nn.Module):
    """One model for what a schema declares: `model(raw)` gives raw outputs by name."""

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
        masks = {n: (s.mask_prob, s.mask_at_eval) for n, s in schema.inputs.items() if s.mask_prob is not None}
        join = Join(widths, encoder.join, encoder.input_channels or width, encoder.min_padding)
        self.input_adapter = InputAdapters(inputs, join, masks)

        self.trunk = Resampler(config, self.input_adapter.channels)

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
        outputs = {name: spec.build_output(channels, inputs) for name, spec in schema.outputs.items()}
        self.output_adapter = OutputAdapters(outputs)
        if decoder.kind == "average":  # official `ProjectionDecoder`
            zero_(*self.output_adapter.heads.values())
        self._asked_with = {query.source for query in queries.values() if query.source is not None}

    def forward(
        self,
        raw: Mapping[str, Any] | Tensor,
        points: Mapping[str, Points] | None = None,
        memory_limit: int | None = None,
        order: Order | None = None,
    ) -> dict[str, Any]:
        """Raw inputs by name (or the only one) to raw outputs by name, everywhere or at points."""
        return self.decode(self.encode(raw, memory_limit, order), points, None, memory_limit, order)

    def encode(
        self,
        raw: Mapping[str, Any] | Tensor | Iterable[Mapping[str, Any]],
        memory_limit: int | None = None,
        order: Order | None = None,
    ) -> Encoded:
        """Read and process the inputs; chunk after chunk if they come as an iterable of parts of them.

        Beside inputs and model, each reading takes `memory_limit` bytes at most; `order` forces how attention is
        computed (core/orders.py). Both change the time and the last bits alone.
        """
        if not isinstance(raw, Mapping | Tensor):
            reading = Reading()
            for chunk in raw:
                reading = reading + self.read(chunk, memory_limit, order)
            missing = {name: None for name in self.input_adapter.mask_probs if name not in reading.states}
            return self.process(reading + self.read(missing, memory_limit, order) if missing else reading)
        tokens, own = self.input_adapter(raw)
        return Encoded(self.trunk(tokens, None, self._plan(memory_limit, order)), self._sources(own))

    def read(
        self, raw: Mapping[str, Any] | Tensor, memory_limit: int | None = None, order: Order | None = None
    ) -> Reading:
        """What the latents take from these inputs alone, to be added to what they take from others.

        An input given as None is read as missing. ValueError if the model reads more than once.
        """
        tokens, own = self.input_adapter(
            raw, missing=[] if isinstance(raw, Tensor) else [n for n in raw if raw[n] is None]
        )
        return Reading(self.trunk.read(tokens, self._plan(memory_limit, order)), self._sources(own))

    def process(self, reading: Reading) -> Encoded:
        """What `encode` gives for all that was read."""
        return Encoded(self.trunk.process(reading.total()), reading.sources)

    def decode(
        self,
        encoded: Encoded,
        points: Mapping[str, Points] | None = None,
        outputs: Iterable[str] | None = None,
        memory_limit: int | None = None,
        order: Order | None = None,
        share: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Write these outputs (None: all), each at its points (None: everywhere); limit and order: `encode`.

        `share` (rank, world): of each output the part of one of several processes, if it gets any; of a grid slices of
        its first axis.
        """
        queries = self.output_query(encoded, points or {}, outputs)
        queries = queries if share is None else self.output_adapter.share(queries, *share)
        rows = self.decoder(queries, encoded.latents, self.output_adapter.heads, self._plan(memory_limit, order))
        return self.output_adapter(rows, queries)

    def attention_maps(
        self, raw: Mapping[str, Any] | Tensor, points: Mapping[str, Points] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Under "encoder" [B, H, N, M] of each input at the first read, under "decoder" [B, H, O, N] of each output."""
        tokens, own = self.input_adapter(raw)
        read = self.trunk.encoder[0]
        assert isinstance(read, Read)
        maps = {"encoder": read.attention_map(self.trunk.latents[None], tokens)}
        if isinstance(self.decoder, Decoder):
            encoded = Encoded(self.trunk(tokens), own)
            maps["decoder"] = self.decoder.attention_map(
                self.output_query(encoded, points or {}, None), encoded.latents
            )
        return maps

    def _plan(self, memory_limit: int | None, order: Order | None) -> Plan:
        return Plan(self.memory_limit if memory_limit is None else memory_limit, order)

    def _sources(self, own: Mapping[str, Segment]) -> dict[str, Segment]:
        return {name: segment for name, segment in own.items() if name in self._asked_with}


def _shared(number: int, sharing: Sharing) -> int:
    return {"none": number, "all": 0, "all_but_first": min(number, 1)}[sharing]
