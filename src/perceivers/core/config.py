"""Sizes of a model; its inputs and outputs are in the schema."""

import warnings
from dataclasses import dataclass, field
from typing import Literal

from perceivers.core.checks import COUNT, FRACTION, SIZE, check_fields, check_ranges
from perceivers.core.layers import INIT_STD

ChannelAlignmentRule = Literal["pad", "project"]
Sharing = Literal["none", "all", "all_but_first"]

MOST_LAYERS = 4096
"""Largest number of self-attention layers that a sample passes through."""

SIZES = "num_heads qk_channels v_channels widening_factor num_latents channels sinusoidal_length num_blocks"
RANGES = {
    **dict.fromkeys([*SIZES.split(), "input_channels", "query_channels", "output_channels"], SIZE),
    **dict.fromkeys(("min_padding", "num_layers"), COUNT),
    **dict.fromkeys(("dropout", "attention_dropout"), FRACTION),
}
"""Valid ranges of the numeric fields below, by field name."""


@dataclass(frozen=True)
class BlockConfig:
    """Settings common to all attention blocks."""

    num_heads: int = 1
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    qk_channels: int | None = None
    """Width of queries and keys, all heads together; None: the width of the tokens attended to."""
    v_channels: int | None = None
    """Width of values, all heads together; None: the width of queries and keys."""
    widening_factor: int = 1
    """Hidden width of the MLP, as a multiple of its input width."""
    activation: Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    """Activation of the MLP; the released models were trained with tanh GELU."""
    dropout: float = 0.0
    """Probability of dropout after attention and after the MLP, in training."""
    qk_init_gain: float | None = None
    """Initial key weights as a multiple of the query weights, so that like attends to like; None: random (official)."""
    attention_dropout: float = 0.0
    """Probability of dropout of the attention weights, in training."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, RANGES)


@dataclass(frozen=True)
class LatentsConfig:
    """The array of latents."""

    num_latents: int = 128
    """Number of latents, N."""
    channels: int = 256
    """Width of a latent, D."""
    init_std: float = INIT_STD
    """Standard deviation of their truncated normal initialisation."""
    sinusoidal_length: int | None = None
    """Length of the sequence that initial sines and cosines span; None: random initialisation (official)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, RANGES)
        if self.init_std <= 0:
            raise ValueError(f"init_std = {self.init_std} must be above 0")


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


@dataclass(frozen=True)
class DecoderConfig(BlockConfig):
    """Writing: queries attend to latents."""

    kind: Literal["query", "average"] = "query"
    """Type of decoder; "average": no queries, the heads get the mean of the latents (original Perceiver)."""
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
class Config:
    """Sizes of a Perceiver IO model; its inputs and outputs are in the schema."""

    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """The array of latents."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Reading: latents attend to tokens."""
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    """Processing: latents attend to one another."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Writing: queries attend to latents."""
    trunk: Literal["perceiver", "transformer"] = "perceiver"
    """Trunk; "transformer": every token is a latent; only widths and alignment of `latents` and `encoder` apply."""

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
    """Return the index of the weights that stage `number` (from 0) uses."""
    return {"none": number, "all": 0, "all_but_first": min(number, 1)}[sharing]
