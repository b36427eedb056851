"""Sizes of a model; its inputs and outputs are in the schema."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Literal

from perceivers.core.block_config import RANGES, BlockConfig
from perceivers.core.checks import COUNT, SIZE, check_fields, check_ranges
from perceivers.core.layers import INIT_STD

ChannelAlignmentRule = Literal["pad", "project"]
Sharing = Literal["none", "all", "all_but_first"]

MOST_LAYERS = 4096
"""Largest number of self-attention layers that a sample passes through."""


@dataclass(frozen=True)
class LatentAxis:
    """The places of latents along a named axis: the middles of `count` equal parts of a range."""

    name: str
    """Name of the axis."""
    start: float
    """Begin of the range, in units of the coordinates."""
    stop: float
    """End of the range."""
    count: int
    """Number of places."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)


@dataclass(frozen=True)
class LatentsConfig:
    """The latents at the start: learned, at places or without, or taken from the tokens of an input."""

    num_latents: int = 128
    """Number of latents, N."""
    channels: int = 256
    """Width of a latent, D."""
    init_std: float = INIT_STD
    """Standard deviation of their truncated normal initialisation."""
    sinusoidal_length: int | None = None
    """Length of the sequence that initial sines and cosines span; None: random initialisation (official)."""
    places: tuple[LatentAxis, ...] = ()
    """Axes of a grid of places, row-major, which give the latents coordinates; (): latents have none."""
    per_place: int | None = None
    """Number of learned vectors, the same ones at each place; None: each latent has its own vector."""
    taken_from: str | None = None
    """Input whose tokens are the latents at the start; None: latents are learned."""
    rule: Literal["last", "strided", "random", "farthest"] = "last"
    """N tokens: the last; evenly spaced; random (outside training always the same); each farthest from those before."""
    token_map: bool = False
    """True: a linear map leads from tokens to latents; False: the tokens must be as wide as the latents."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        if self.init_std <= 0:
            raise ValueError(f"init_std = {self.init_std} must be above 0")
        names = [axis.name for axis in self.places]
        if len({*names}) < len(names):
            raise ValueError(f"latents.places = {names} must name each axis once")
        if self.num_latents % (places := self.num_places):
            raise ValueError(f"num_latents = {self.num_latents} is not a multiple of the {places} places")
        if self.per_place is not None and (not names or self.num_latents != places * self.per_place):
            right = f"{places} places x per_place = {self.per_place} are {places * self.per_place} latents"
            raise ValueError(f"num_latents = {self.num_latents}, but {right}" if names else "per_place needs places")
        if self.taken_from is None and (self.rule != "last" or self.token_map):
            raise ValueError("latents.rule and token_map have no effect without taken_from: leave them out")
        if self.taken_from is not None and (names or self.sinusoidal_length is not None):
            raise ValueError("latents taken from tokens have the places of the tokens: leave out places and sines")

    @property
    def num_places(self) -> int:
        """Number of places; 1 without a grid."""
        return math.prod([axis.count for axis in self.places])  # a list: compilers take no generator


@dataclass(frozen=True)
class EncoderConfig(BlockConfig):
    """Reading: latents attend to tokens."""

    query_residual: bool = True
    """Residual connection: the result of attention is added to the latents."""
    channel_alignment: ChannelAlignmentRule = "project"
    """Alignment of inputs to one width: "project", a linear map each, or "pad", a trained vector (released models)."""
    input_channels: int | None = None
    """Common width C under "project"; None: the latents' width."""
    min_padding: int = 0
    """Number of trained channels appended to the widest input, under "pad"."""
    num_reads: int = 1
    """Number of reads, each before a processor block; more than 1 is the original Perceiver."""
    share_reads: Sharing = "all_but_first"
    """Sharing of weights among the reads."""
    attend_latents: bool = False
    """True: the latents attend to the tokens and to one another at once; needs tokens as wide as latents."""


@dataclass(frozen=True)
class BottleneckConfig:
    """A variational bottleneck: each latent becomes a normal distribution over fewer channels, and a sample of it."""

    channels: int = 64
    """Width of a sample."""
    weight: float = 1e-3
    """Weight of the loss "kl", the mean over latents and channels of the divergence from a unit normal, in nats."""
    free_bits: float = 0.0
    """Divergence of a channel, in bits, below which it adds nothing to the gradient."""
    warmup_steps: int = 0
    """Training steps over which the weight rises linearly from 0; validation uses the full weight."""
    sample: bool = True
    """In training: True for samples, False for means. Outside training the mean is decoded."""

    def __post_init__(self) -> None:
        check_fields(self, {"channels": SIZE, **dict.fromkeys(("weight", "free_bits", "warmup_steps"), COUNT)})


@dataclass(frozen=True)
class ProcessorConfig(BlockConfig):
    """Processing: latents attend to one another."""

    num_heads: int = 8
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    num_layers: int = 6
    """Number of self-attention layers in a block."""
    num_blocks: int = 1
    """Number of blocks, one after the other."""
    share_blocks: Sharing = "all"
    """Sharing of weights among the blocks."""
    final_norm: bool = False
    """True: the latents are normed after the last stage of the trunk."""


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """Writing: queries attend to latents."""

    kind: Literal["query", "average", "latents"] = "query"
    """Type of decoder; without queries, the heads get the latents, or their mean (original Perceiver)."""
    num_layers: int = 1
    """Number of cross-attentions, one after the other."""
    self_attention: bool = False
    """True: before each cross-attention, the queries of an output attend to one another; decoded whole."""
    final_norm: bool = False
    """True: the decoded queries are normed before `output_channels` and the heads."""
    query_residual: bool = False
    """Residual connection: the result of attention is added to the queries."""
    channel_alignment: ChannelAlignmentRule = "project"
    """Alignment of queries to one width: "project", a linear map each, or "pad", a trained vector (released models)."""
    query_channels: int | None = None
    """Common width F under "project"; None: the latents' width."""
    min_padding: int = 0
    """Number of trained channels appended to the widest query, under "pad"."""
    output_channels: int | None = None
    """Width E of a linear map before the heads; None: no such map, E = F."""


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of what leads from tokens to latents."""

    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """The latents at the start."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Reading: latents attend to tokens."""
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    """Processing: latents attend to one another."""
    bottleneck: BottleneckConfig | None = field(default=None, kw_only=True)
    """Bottleneck between the first read and the rest; None: there is none."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (layers := max(self.processor.num_layers, 1) * self.processor.num_blocks) > MOST_LAYERS:
            raise ValueError(f"processor.num_layers x num_blocks = {layers} layers must be at most {MOST_LAYERS}")
        reads, blocks = self.encoder.num_reads, self.processor.num_blocks
        if not 1 <= reads <= blocks:
            raise ValueError(f"encoder.num_reads = {reads} must be from 1 to processor.num_blocks = {blocks}")


@dataclass(frozen=True)
class Config(TrunkConfig):
    """Sizes of a Perceiver IO model; its inputs and outputs are in the schema."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Writing: queries attend to latents."""
    trunk: Literal["perceiver", "transformer"] = "perceiver"
    """Trunk; "transformer": every token is a latent; only widths and alignment of `latents` and `encoder` apply."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self.decoder, {"num_layers": (1.0, 64.0)})
        aligned = {name: getattr(self.encoder, name) for name in ("channel_alignment", "input_channels", "min_padding")}
        used = LatentsConfig(channels=self.latents.channels), EncoderConfig(**aligned), None
        if self.trunk == "transformer" and used != (self.latents, self.encoder, self.bottleneck):
            warnings.warn("trunk: transformer reads no latents: other settings of theirs have no effect", stacklevel=3)
        for stage, name in (("encoder", "input_channels"), ("decoder", "query_channels")):
            settings, place = getattr(self, stage), f"{stage}.{name}"
            if settings.channel_alignment == "pad" and getattr(settings, name) is not None:
                raise ValueError(f"{place} has no effect under channel_alignment: pad, which takes the widest: drop it")


def shared(number: int, sharing: Sharing) -> int:
    """Return the index of the weights that stage `number` (from 0) uses."""
    return {"none": number, "all": 0, "all_but_first": min(number, 1)}[sharing]
