"""The trunk: tokens are read into latents, and latents are processed."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core import layers
from perceivers.core.attention import CrossAttention, Mask, SelfAttention, attention_map, plan_attention
from perceivers.core.config import Config, shared
from perceivers.core.layers import apply_linear, plain_linear, sines, trained_vector
from perceivers.core.reading import SoftmaxState
from perceivers.core.tokens import Tokens, token_dtype


class Read(nn.Module):
    """A stage: the latents attend to the tokens."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        encoder = config.encoder
        self.cross_attention = CrossAttention(config.latents.channels, input_channels, encoder, encoder.query_residual)

    def forward(self, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Any = None) -> Float[Tensor, "b n d"]:
        """Return the updated latents. Without a plan (`plan_attention`) attention is dense."""
        if plan is not None and not plan.needs_dense(self.cross_attention, latents, tokens):
            return self.cross_attention(latents, tokens, compute=plan.read)
        return self.cross_attention(latents, tokens.dense(token_dtype(latents.dtype)), Mask(keys=tokens.mask()))

    def states(self, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Any = None) -> dict[str, SoftmaxState]:
        """Return the softmax state of each segment; states can be added."""
        attention = self.cross_attention.attention
        if attention.training and attention.dropout:
            raise ValueError("dropout of attention weights in training: read everything at once, or in evaluation")
        return self.cross_attention(latents, tokens, compute=_dense_states if plan is None else plan.states)

    def update(self, latents: Float[Tensor, "#b n d"], state: SoftmaxState) -> Float[Tensor, "b n d"]:
        """Return the latents updated with the state of everything that was read."""
        return self.cross_attention(latents, state, compute=CrossAttention.update)


def _dense_states(cross: CrossAttention, latents: Float[Tensor, "#b n d"], tokens: Tokens) -> dict[str, SoftmaxState]:
    dtype, segments = token_dtype(latents.dtype), tokens.segments.items()
    return {name: cross.softmax_state(latents, x.dense(dtype), Mask(keys=x.mask)) for name, x in segments}


class Process(nn.Module):
    """A stage: the latents attend to one another, layer after layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttention(config.latents.channels, config.processor) for _ in range(config.processor.num_layers)
        )

    def forward(self, latents: Float[Tensor, "#b n d"], mask: Mask | None = None) -> Float[Tensor, "b n d"]:
        """Return the updated latents."""
        for layer in self.layers:
            latents = layer(latents, mask)
        return latents


class Trunk(nn.Module):
    """Trunk that reads any number of tokens into N latents and processes the latents."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        encoder, processor = config.encoder, config.processor
        self._read_of = [shared(i, encoder.share_reads) for i in range(encoder.num_reads)]
        self._block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        latents = config.latents
        if latents.sinusoidal_length is None:
            self.latents = trained_vector(latents.num_latents, latents.channels, std=latents.init_std)
        else:
            self.latents = sines(latents.num_latents, latents.sinusoidal_length, latents.channels)
        self.encoder = nn.ModuleList(Read(config, input_channels) for _ in range(max(self._read_of) + 1))
        self.processor = nn.ModuleList(Process(config) for _ in range(max(self._block_of) + 1))

    @property
    def stages(self) -> list[nn.Module]:
        """Reads and processes in the order they run; shared stages are repeated."""
        stages: list[nn.Module] = []
        for number, block in enumerate(self._block_of):
            stages += [self.encoder[self._read_of[number]]] if number < len(self._read_of) else []
            stages += [self.processor[block]]
        return stages

    def forward(self, tokens: Tokens, plan: Any = None) -> Float[Tensor, "b n d"]:
        """Return latents from tokens; the plan (`plan_attention`) chooses the algorithms of attention."""
        latents, plan = self.latents[None], plan or plan_attention()
        for stage in self.stages:
            latents = stage(latents, tokens, plan) if isinstance(stage, Read) else stage(latents)
        return latents

    def read(self, tokens: Tokens, plan: Any = None) -> dict[str, SoftmaxState]:
        """Return the softmax state of each segment at the first read; ValueError if there are later reads."""
        if layers.fast is not None:  # reading in parts bypasses module calls, so hooks would not run
            layers.fast.check_unhooked(self, self.encoder[0])
        first, *later = (stage for stage in self.stages if isinstance(stage, Read))
        if later:
            raise ValueError(f"inputs are read {1 + len(later)} times: states of one read alone cannot be processed")
        return first.states(self.latents[None], tokens, plan)

    def process(self, state: SoftmaxState) -> Float[Tensor, "b n d"]:
        """Return latents from the sum of the states of everything that was read."""
        if layers.fast is not None:  # reading in parts bypasses module calls, so hooks would not run
            layers.fast.check_unhooked(self, self.encoder[0])
        read, *processes = self.stages
        assert isinstance(read, Read)
        latents = read.update(self.latents[None], state)
        for process in processes:
            latents = process(latents)
        return latents

    def attention_map(self, tokens: Tokens) -> dict[str, Float[Tensor, "b h n m"]]:
        """Return the attention map of the first read, by input."""
        read: Any = self.encoder[0]
        latents = self.latents[None]
        array, mask = tokens.dense(token_dtype(latents.dtype)), Mask(keys=tokens.mask())
        return tokens.split(attention_map(read.cross_attention, latents, array, mask), dim=-1)


class Transformer(nn.Module):
    """The trunk that Perceiver IO replaces (BERT, AlphaStar's entities): each token is a latent and attends to all.

    Its cost grows with the square of the number of tokens, and its attention is always dense.
    """

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        processor = config.processor
        self._block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        self.encoder = plain_linear(input_channels, config.latents.channels)
        self.processor = nn.ModuleList(Process(config) for _ in range(max(self._block_of) + 1))

    def forward(self, tokens: Tokens, plan: Any = None) -> Float[Tensor, "b m d"]:
        """Return a latent for each token."""
        if plan is not None and (plan.memory_limit is not None or plan.algorithm not in (None, "dense")):
            raise ValueError("a transformer attends to all tokens at once: it takes no memory limit and no algorithm")
        latents = apply_linear(self.encoder, tokens.dense(next(self.parameters()).dtype))
        exist = Mask(keys=tokens.mask())
        for block in self._block_of:
            latents = self.processor[block](latents, exist)
        return latents
