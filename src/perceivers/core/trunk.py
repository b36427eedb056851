"""The trunk: tokens are read into latents, and latents are processed."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core import orders
from perceivers.core.attention import CrossAttention, Mask, SelfAttention
from perceivers.core.config import Config, LatentsConfig, shared
from perceivers.core.initialisers import plain_linear, sines, trained_vector
from perceivers.core.linear_map import apply_linear, is_hooked
from perceivers.core.plan import FASTEST, Choice, Plan, check_dense, plan_reading, plan_states
from perceivers.core.reading import ReadState, sum_states
from perceivers.core.tokens import Tokens, as_tokens, token_dtype


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
        if plan.always_dense or is_hooked(self.cross_attention, sharding=False):  # hooks see arrays
            if plan.is_limited:
                check_dense(self.cross_attention, latents, tokens, plan)
            return self.cross_attention(latents, tokens.dense(token_dtype(latents.dtype)), Mask(keys=tokens.mask()))
        return self.cross_attention(latents, tokens, algorithm=partial(_read, plan=plan))

    def states(self, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Plan) -> dict[str, ReadState]:
        """What the latents take from each segment, to be added up."""
        self._check_parts()
        return self.cross_attention(latents, tokens, algorithm=partial(_read_states, plan=plan))

    def update(self, latents: Float[Tensor, "#b n d"], state: ReadState) -> Float[Tensor, "b n d"]:
        """Latents updated with all that they have taken."""
        self._check_parts()
        return self.cross_attention(latents, state, algorithm=_update)

    def attention_map(self, latents: Float[Tensor, "#b n d"], tokens: Tokens) -> dict[str, Float[Tensor, "b h n m"]]:
        """How much each latent takes from each token of each input."""
        weights = partial(CrossAttention.weights, mask=Mask(keys=tokens.mask()))
        found = self.cross_attention(latents, tokens.dense(token_dtype(latents.dtype)), algorithm=weights)
        return tokens.split(found, dim=-1)

    def _check_parts(self) -> None:
        _check_unhooked(self, self.cross_attention, sharding=False)
        _check_unhooked(self.cross_attention.attention)


def _check_unhooked(*modules: nn.Module, sharding: bool = True) -> None:
    """Raise a ValueError for a hook on a module that reading in parts does not call as a whole."""
    for module in modules:
        if is_hooked(module, sharding=sharding):
            kind = type(module).__name__
            raise ValueError(f"a hook on {kind} needs all that it is given: read everything at once, with encode")


def _read(cross: CrossAttention, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Plan) -> Tensor:
    """Latents updated with all tokens, by the cheapest algorithm."""
    choices = plan_reading(cross, latents, tokens, plan)
    if not choices:
        return cross.dense(latents, tokens.dense(token_dtype(latents.dtype)), Mask(keys=tokens.mask()))
    return _update(cross, latents, sum_states(_states(cross, latents, tokens, choices).values()))


def _read_states(
    cross: CrossAttention, latents: Float[Tensor, "#b n d"], tokens: Tokens, plan: Plan
) -> dict[str, ReadState]:
    """Return the softmax state of each segment, each by the cheapest algorithm."""
    choices = plan_states(cross, latents, tokens, plan)
    if choices is None:
        raise ValueError("dropout of attention weights in training: read everything at once, or in evaluation")
    return _states(cross, latents, tokens, choices)


def _states(
    cross: CrossAttention, latents: Float[Tensor, "#b n d"], tokens: Tokens, choices: Mapping[str, Choice]
) -> dict[str, ReadState]:
    states = {}
    for name, segment in tokens.segments.items():
        choice = choices[name]
        if choice.order == "dense":
            array = segment.dense(token_dtype(latents.dtype))
            states[name] = cross.softmax_state(latents, array, Mask(keys=segment.mask))
        else:
            states[name] = orders.read(cross, latents, segment, choice.order, choice.block_size)
    return states


def _update(cross: CrossAttention, latents: Float[Tensor, "#b n d"], state: ReadState) -> Float[Tensor, "b n d"]:
    """Latents updated with all that they have taken."""
    found = apply_linear(cross.attention.output, state.attended().to(latents.dtype))
    return cross.finish(latents, found)


class Process(nn.Module):
    """A stage: the latents attend to one another, layer after layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttention(config.latents.channels, config.processor) for _ in range(config.processor.num_layers)
        )

    def forward(self, latents: Float[Tensor, "#b n d"], mask: Mask | None = None) -> Float[Tensor, "b n d"]:
        """Updated latents."""
        for layer in self.layers:
            latents = layer(latents, mask)
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
        read_of = [shared(i, encoder.share_reads) for i in range(encoder.num_reads)]
        block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        self.latents = start_of(latents)
        self.encoder = nn.ModuleList(Read(config, input_channels) for _ in range(max(read_of) + 1))
        self.processor = nn.ModuleList(Process(config) for _ in range(max(block_of) + 1))
        self.input_channels = input_channels
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
        tokens: Tokens | Any,
        mask: Bool[Tensor, "b m"] | Any = None,
        plan: Plan = FASTEST,
    ) -> Float[Tensor, "b n d"]:
        """Latents from tokens [B, M, C]; the mask is True (or 1) where a token exists."""
        latents = self.latents[None]
        if not isinstance(tokens, Tokens):
            tokens = as_tokens(tokens, mask, self.input_channels, latents.device).in_range(token_dtype(latents.dtype))
        for stage in self.stages:
            latents = stage(latents, tokens, plan) if isinstance(stage, Read) else stage(latents)
        return latents

    def read(self, tokens: Tokens, plan: Plan = FASTEST) -> dict[str, ReadState]:
        """What the first read takes from each segment; ValueError if there are more reads, which depend on it."""
        _check_unhooked(self, sharding=False)
        first, *later = (stage for stage in self.stages if isinstance(stage, Read))
        if later:
            raise ValueError(
                f"the inputs are read {1 + len(later)} times: states of one read alone cannot be processed"
            )
        return first.states(self.latents[None], tokens, plan)

    def attention_map(self, tokens: Tokens) -> dict[str, Float[Tensor, "b h n m"]]:
        """How much each latent takes from each token of each input at the first read."""
        first = self.encoder[0]
        assert isinstance(first, Read)
        return first.attention_map(self.latents[None], tokens)

    def process(self, state: ReadState) -> Float[Tensor, "b n d"]:
        """Latents from the sum of all states that were read."""
        _check_unhooked(self, sharding=False)
        read, *processes = self.stages
        assert isinstance(read, Read)
        latents = read.update(self.latents[None], state)
        for process in processes:
            latents = process(latents)
        return latents


class Transformer(nn.Module):
    """The trunk that Perceiver IO replaces (BERT, AlphaStar's entities): every token is a latent, all attend to all.

    Its cost grows with the square of the number of tokens; it knows one order of attention, the dense one.
    """

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        processor = config.processor
        self.input_channels = input_channels
        self._block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        self.encoder = plain_linear(input_channels, config.latents.channels)
        self.processor = nn.ModuleList(Process(config) for _ in range(max(self._block_of) + 1))

    def forward(
        self,
        tokens: Tokens | Any,
        mask: Bool[Tensor, "b m"] | Any = None,
        plan: Plan = FASTEST,
    ) -> Float[Tensor, "b m d"]:
        """A row for each token [B, M, C]; the mask is True where a token exists."""
        if plan.memory_limit is not None or plan.order not in (None, "dense"):
            raise ValueError("a transformer attends to all tokens at once: it takes no memory limit and no order")
        weight = next(self.parameters())
        if not isinstance(tokens, Tokens):
            tokens = as_tokens(tokens, mask, self.input_channels, weight.device).in_range(token_dtype(weight.dtype))
        rows = apply_linear(self.encoder, tokens.dense(weight.dtype))
        exist = Mask(keys=tokens.mask())
        for block in self._block_of:
            rows = self.processor[block](rows, exist)
        return rows
