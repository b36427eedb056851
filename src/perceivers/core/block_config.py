"""Settings of an attention block: its attention, its MLP, its norms, and what acts on its residual branches."""

from dataclasses import dataclass
from typing import Literal

from perceivers.core.checks import COUNT, FRACTION, SIZE, check_fields
from perceivers.core.layers import NORM_EPSILON

SIZES = "num_heads num_kv_heads qk_channels v_channels per_place channels sinusoidal_length num_blocks count"
RANGES = {
    **dict.fromkeys([*SIZES.split(), "input_channels", "query_channels", "output_channels"], SIZE),
    **dict.fromkeys(("min_padding", "widening_factor", "num_layers"), COUNT),
    **dict.fromkeys(("dropout", "attention_dropout", "stochastic_depth", "share"), FRACTION),
    "num_latents": (1.0, 2.0**20),  # with latents at places, no weight has to have this size
}
"""Valid ranges of the numeric fields below, by field name."""


@dataclass(frozen=True)
class Axis:
    """A named axis of coordinates, with the wavelengths at which `Rotary` resolves it."""

    name: str
    """Name, as the inputs, outputs and latents that have coordinates along the axis give it."""
    min_wavelength: float = 1.0
    """Shortest wavelength, in units of the coordinates."""
    max_wavelength: float = 1000.0
    """Longest wavelength, in units of the coordinates; the others are spaced logarithmically."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.min_wavelength <= self.max_wavelength:
            found = f"{self.min_wavelength} and {self.max_wavelength}"
            raise ValueError(f"axis {self.name!r}: wavelengths of {found} must be above 0, the shortest first")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: channels of queries and keys are rotated by coordinates times frequencies.

    Each axis has its own slice of a head's channels, and acts only between tokens that both have coordinates along it.
    """

    axes: tuple[Axis, ...]
    """Axes of coordinates."""
    share: float = 0.5
    """Share of a head's channels that is rotated, divided equally among the axes."""
    values: bool = False
    """True: values are rotated too, and the result of attention is rotated back by the query's coordinates."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        names = [axis.name for axis in self.axes]
        if not names or len({*names}) < len(names):
            raise ValueError(f"rotary.axes = {names} must name at least one axis, and each once")


@dataclass(frozen=True)
class BlockConfig:
    """Settings common to all attention blocks; the defaults are those of the released models."""

    num_heads: int = 1
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    num_kv_heads: int | None = None
    """Heads of keys and values, each of which serves several heads of queries; None: `num_heads`."""
    qk_channels: int | None = None
    """Width of the queries, all heads together; None: the width of the tokens attended to."""
    v_channels: int | None = None
    """Width of the attended values, all heads together; None: the width of the queries."""
    qk_norm: bool = False
    """True: queries and keys are normed, head by head, before their product."""
    rotary: Rotary | None = None
    """Rotary positions; None: coordinates have no effect here."""
    widening_factor: int = 1
    """Hidden width of the MLP, as a multiple of its input width; 0: no MLP."""
    activation: Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "squared_relu", "silu"] = "gelu_tanh"
    """Activation of the MLP; the released models were trained with tanh GELU."""
    gated: bool = False
    """True: a second hidden map, through the activation, multiplies the first (GEGLU; SwiGLU with silu)."""
    norm: Literal["layer", "rms"] = "layer"
    """Kind of all norms: layer norm, or RMS norm, which has no mean and no shift."""
    norm_epsilon: float = NORM_EPSILON
    """Number added to the variance in all norms."""
    qkv_bias: bool = True
    """True: the maps to queries, keys and values have biases."""
    output_bias: bool = True
    """True: the map behind the attention has a bias."""
    mlp_bias: bool = True
    """True: the maps of the MLP have biases."""
    conditioned: bool = False
    """True: the inputs that condition the model scale, shift and gate the block (role: condition)."""
    layer_scale: float | None = None
    """Initial value of a trained scale of each channel of the attention's and the MLP's results; None: no scale."""
    stochastic_depth: float = 0.0
    """Probability that a sample skips the attention, or the MLP, in training, where a residual replaces it."""
    dropout: float = 0.0
    """Probability of dropout after attention and after the MLP, in training."""
    qk_init_gain: float | None = None
    """Initial key weights as a multiple of the query weights, so that like attends to like; None: random (official)."""
    attention_dropout: float = 0.0
    """Probability of dropout of the attention weights, in training."""

    def __post_init__(self) -> None:
        check_fields(self, RANGES)
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}")
        if self.norm_epsilon <= 0:
            raise ValueError(f"norm_epsilon = {self.norm_epsilon} must be above 0")
        if self.stochastic_depth == 1:
            raise ValueError("stochastic_depth = 1 would skip every block: it must be below 1")
