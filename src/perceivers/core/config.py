"""Sizes of a model, apart from what goes in and out."""

import warnings
from dataclasses import dataclass, field
from typing import Literal

from perceivers.core.checks import COUNT, FRACTION, SIZE, check_fields, check_ranges
from perceivers.core.layers import INIT_STD

ChannelAlignmentRule = Literal["pad", "project"]
Sharing = Literal["none", "all", "all_but_first"]

MOST_LAYERS = 4096
"""Self-attention layers that a sample may run through."""

SIZES = "num_heads qk_channels v_channels widening_factor num_latents channels sinusoidal_length num_blocks"
RANGES = {
    **dict.fromkeys([*SIZES.split(), "input_channels", "query_channels", "output_channels"], SIZE),
    **dict.fromkeys(("min_padding", "num_layers"), COUNT),
    **dict.fromkeys(("dropout", "attention_dropout"), FRACTION),
}
"""Ranges of the numbers below, by the name of the field."""


@dataclass(frozen=True)
class BlockConfig:
    """Settings that all attention blocks have."""

    num_heads: int = 1
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    qk_channels: int | None = None
    """Width of queries and keys; None: that of what is attended to."""
    v_channels: int | None = None
    """Width of values; None: that of queries and keys."""
    widening_factor: int = 1
    """Hidden width of the MLP over its width."""
    activation: Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    """Activation of the MLP; the released models were trained with tanh GELU."""
    dropout: float = 0.0
    """Dropout after attention and after the MLP, in training."""
    qk_init_gain: float | None = None
    """Keys' weights start as this multiple of the queries', so that like attends to like; None: random (official)."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights, in training."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class LatentsConfig:
    """The array of latents."""

    num_latents: int = 128
    """N."""
    channels: int = 256
    """D."""
    init_std: float = INIT_STD
    """Standard deviation of their truncated normal start."""
    sinusoidal_length: int | None = None
    """Length of the text over which initial sines and cosines are spread; None: a random start (official)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, RANGES)
        if self.init_std <= 0:
            raise ValueError(f"init_std = {self.init_std} must be above 0")


@dataclass(frozen=True)
class EncoderConfig(BlockConfig):
    """Reading: latents attend to tokens."""

    query_residual: bool = True
    """Add what was read to the latents."""
    channel_alignment: ChannelAlignmentRule = "project"
    """Map of inputs to one width: a linear map each, or padding with a trained vector (released models)."""
    input_channels: int | None = None
    """C under "project"; None: the latents' width."""
    min_padding: int = 0
    """Under "pad": trained channels behind the widest input."""
    num_reads: int = 1
    """Number of reads, each before a processor block; more than 1 is the original Perceiver."""
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
    channel_alignment: ChannelAlignmentRule = "project"
    """Map of queries to one width: a linear map each, or padding with a trained vector (released models)."""
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
    trunk: Literal["perceiver", "transformer"] = "perceiver"
    """"transformer": every token is a latent; of latents and encoder only widths and alignment have an effect."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (layers := max(self.processor.num_layers, 1) * self.processor.num_blocks) > MOST_LAYERS:
            raise ValueError(f"processor.num_layers x num_blocks = {layers} layers must be at most {MOST_LAYERS}")
        aligned = {name: getattr(self.encoder, name) for name in ("channel_alignment", "input_channels", "min_padding")}
        used = LatentsConfig(channels=self.latents.channels), EncoderConfig(**aligned)
        if self.trunk == "transformer" and used != (self.latents, self.encoder):
            warnings.warn("trunk: transformer reads no latents: other settings of theirs have no effect", stacklevel=3)
        reads, blocks = self.encoder.num_reads, self.processor.num_blocks
        if not 1 <= reads <= blocks:
            raise ValueError(f"encoder.num_reads = {reads} must be from 1 to processor.num_blocks = {blocks}")
        for stage, width, name in (
            (self.encoder, self.encoder.input_channels, "encoder.input_channels"),
            (self.decoder, self.decoder.query_channels, "decoder.query_channels"),
        ):
            if stage.channel_alignment == "pad" and width is not None:
                raise ValueError(f"{name} has no effect under channel_alignment: pad, which takes the widest: drop it")


def shared(number: int, sharing: Sharing) -> int:
    """Return which weights the stage of this number (from 0) has."""
    return {"none": number, "all": 0, "all_but_first": min(number, 1)}[sharing]
