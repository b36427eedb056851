"""The trunk: tokens are read into latents, and latents are processed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core import layers
from perceivers.core.attention import Mask, plan_attention
from perceivers.core.blocks import CrossAttention, SelfAttention
from perceivers.core.bottleneck import Bottleneck
from perceivers.core.config import Config, TrunkConfig, shared
from perceivers.core.coordinates import UNTURNED
from perceivers.core.latents import Latents, chosen_tokens, place_coordinates
from perceivers.core.layers import apply_linear, norm_layer, plain_linear, sines, trained_vector
from perceivers.core.reading import Reading, SoftmaxState
from perceivers.core.tokens import Tokens, token_dtype


class Read(nn.Module):
    """A stage: the latents attend to the tokens, and perhaps to one another."""

    def __init__(self, config: TrunkConfig, input_channels: int) -> None:
        super().__init__()
        encoder, d = config.encoder, config.latents.channels
        reads = (encoder.query_residual, encoder.attend_latents)
        self.cross_attention = CrossAttention(d, input_channels, encoder, *reads, condition=d)

    def forward(self, latents: Latents, tokens: Tokens, plan: Any = None) -> Latents:
        """Return the updated latents. Without a plan (`plan_attention`) attention is dense."""
        cross = self.cross_attention
        if any(segment.log_weight is not None for segment in tokens.segments.values()):
            return self.update(latents, Reading(self.states(latents, tokens, plan)).total())
        if plan is not None and not plan.needs_dense(cross, latents, tokens):
            return replace(latents, array=cross(latents, tokens, compute=plan.read))
        return replace(latents, array=cross(*reading_arguments(cross, latents, tokens)))

    def states(self, latents: Latents, tokens: Tokens, plan: Any = None) -> dict[str, SoftmaxState]:
        """Return the softmax state of each segment; states can be added."""
        attention = self.cross_attention.attention
        if attention.training and attention.dropout:
            raise ValueError("dropout of attention weights in training: read everything at once, or in evaluation")

        found = self.cross_attention(latents, tokens, compute=dense_states if plan is None else plan.states)
        weights = {name: x.log_weight for name, x in tokens.segments.items() if x.log_weight is not None}
        return found | {name: replace(found[name], max_score=found[name].max_score + w) for name, w in weights.items()}

    def update(self, latents: Latents, state: SoftmaxState) -> Latents:
        """Return the latents updated with the state of everything that was read."""
        return replace(latents, array=self.cross_attention(latents, state, compute=CrossAttention.update))


def reading_arguments(cross: CrossAttention, latents: Latents, tokens: Tokens) -> tuple[Any, ...]:
    """Return the arguments of a dense cross-attention of latents to tokens."""
    keys = Tokens({**tokens.segments, "": latents.segment}) if cross.attends_queries else tokens
    array, mask = tokens.dense(token_dtype(latents.array.dtype)), Mask(keys=keys.mask())
    return latents.array, array, mask, cross.rotation(latents.segment, keys), latents.condition


def dense_states(cross: CrossAttention, latents: Latents, tokens: Tokens) -> dict[str, SoftmaxState]:
    """Return the softmax state of each segment, computed densely."""
    dtype, at = token_dtype(latents.array.dtype), latents.segment
    return {
        name: cross.softmax_state(latents, x.dense(dtype), Mask(keys=x.mask), cross.rotation(at, x))
        for name, x in tokens.segments.items()
    }


class Process(nn.Module):
    """A stage: the latents attend to one another, layer after layer."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        d, processor = config.latents.channels, config.processor
        self.layers = nn.ModuleList(SelfAttention(d, processor, d) for _ in range(processor.num_layers))

    def forward(self, latents: Latents) -> Latents:
        """Return the updated latents."""
        x, mask = latents.array, None if latents.mask is None else Mask(keys=latents.mask)
        layers: Any = self.layers
        rotation = layers[0].rotation(latents.segment, latents.segment) if layers else UNTURNED
        for layer in layers:
            x = layer(x, mask, rotation, latents.condition)
        return replace(latents, array=x)


class Trunk(nn.Module):
    """Trunk that reads any number of tokens into N latents and processes the latents."""

    latents: nn.Parameter | None

    def __init__(self, config: TrunkConfig, input_channels: int) -> None:
        super().__init__()
        encoder, processor = config.encoder, config.processor
        self.config = config
        self._read_of = [shared(i, encoder.share_reads) for i in range(encoder.num_reads)]
        self._block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        # The learned latents, or the map from tokens to latents.
        latents = config.latents
        d, count = latents.channels, latents.per_place or latents.num_latents
        self.latents, self.latent_map = None, None
        if latents.sinusoidal_length is not None:
            self.latents = sines(count, latents.sinusoidal_length, d)
        elif latents.taken_from is None:
            self.latents = trained_vector(count, d, std=latents.init_std)
        elif latents.token_map:
            self.latent_map = plain_linear(input_channels, d)
        elif input_channels != d:
            widths = f"tokens are {input_channels} wide and latents {d}"
            raise ValueError(f"latents.taken_from: {widths}: set token_map, or make them equally wide")
        # The stages.
        self.encoder = nn.ModuleList(Read(config, input_channels) for _ in range(max(self._read_of) + 1))
        self.bottleneck: Any = None if config.bottleneck is None else Bottleneck(d, config.bottleneck)
        self.processor = nn.ModuleList(Process(config) for _ in range(max(self._block_of) + 1))
        self.final_norm = norm_layer(d, processor) if processor.final_norm else None

    @property
    def stages(self) -> list[nn.Module]:
        """Reads and processes in the order they run, with the bottleneck; shared stages are repeated."""
        stages: list[nn.Module] = []
        for number, block in enumerate(self._block_of):
            stages += [self.encoder[self._read_of[number]]] if number < len(self._read_of) else []
            stages += [self.bottleneck] if self.bottleneck is not None and not number else []
            stages += [self.processor[block]]
        return stages

    def start(self, tokens: Tokens | None = None, given: Tensor | None = None) -> Latents:
        """Return the latents before the first read; `given`: vectors [B, N, D] in their place, or tokens by number."""
        config = self.config.latents
        if given is None and self.latents is not None:
            given = self.latents[None]
            given = given if config.per_place is None else given.repeat(1, config.num_places, 1)
        if given is None or not given.is_floating_point():
            return self._taken(tokens, given)
        return Latents(given, place_coordinates(config, given.device))

    def _taken(self, tokens: Tokens | None, index: Tensor | None) -> Latents:
        """Return latents from tokens, by their numbers or by the rule of the config."""
        config, exists = self.config.latents, None
        segment = None if tokens is None else tokens.segments.get(config.taken_from or "")
        if segment is None:
            raise ValueError(f"latents are taken from input {config.taken_from!r}: give it, or start=model.start(raw)")
        if index is None:
            index, exists = chosen_tokens(segment, config, self.training)
        taken, dtype = segment.at(index), next(self.parameters()).dtype
        array = taken.dense(token_dtype(dtype)).to(dtype)
        array = array if self.latent_map is None else apply_linear(self.latent_map, array)
        return Latents(array, taken.coordinates, taken.mask if exists is None else exists)

    def forward(self, tokens: Tokens, plan: Any = None, start: Latents | None = None) -> Latents:
        """Return latents from tokens; the plan (`plan_attention`) chooses the algorithms of attention."""
        latents, plan = start or self.start(tokens), plan or plan_attention()
        return self._through(self.stages, latents, tokens, plan)

    def read(self, tokens: Tokens, plan: Any = None, start: Latents | None = None) -> dict[str, SoftmaxState]:
        """Return the softmax state of each segment at the first read; ValueError if there are later reads."""
        self._check_unhooked()
        first, *later = (stage for stage in self.stages if isinstance(stage, Read))
        if later:
            raise ValueError(f"inputs are read {1 + len(later)} times: states of one read alone cannot be processed")
        return first.states(start or self.start(), tokens, plan)

    def process(self, state: SoftmaxState, start: Latents | None = None) -> Latents:
        """Return latents from the sum of the states of everything that was read."""
        self._check_unhooked()
        read, *rest = self.stages
        assert isinstance(read, Read)
        return self._through(rest, read.update(start or self.start(), state))

    def redrawn(self, latents: Latents, drawn: Float[Tensor, "b n z"]) -> Latents:
        """Return the latents at the end of the trunk for another sample of the bottleneck."""
        if len(self._read_of) > 1:
            raise ValueError("a model that reads again behind its bottleneck cannot decode another sample alone")
        return self._through(self.stages[2:], self.bottleneck.decoded(latents, drawn))

    def attention_map(self, tokens: Tokens, start: Latents | None = None) -> dict[str, Float[Tensor, "b h n m"]]:
        """Return the attention map of the first read, by input; with `attend_latents` also of the latents, ""."""
        read: Any = self.encoder[0]
        cross, latents = read.cross_attention, start or self.start(tokens)
        own = {"": latents.segment} if cross.attends_queries else {}
        found = cross.attention_map(*reading_arguments(cross, latents, tokens))
        return Tokens({**tokens.segments, **own}).split(found, dim=-1)

    def _check_unhooked(self) -> None:
        if layers.fast is not None:  # reading in parts bypasses module calls, so hooks would not run
            layers.fast.check_unhooked(self.encoder[0].cross_attention, self, self.encoder[0])

    def _through(self, stages: Iterable[nn.Module], latents: Latents, tokens: Any = None, plan: Any = None) -> Latents:
        for stage in stages:
            latents = stage(latents, tokens, plan) if isinstance(stage, Read) else stage(latents)
        return self.ended(latents)

    def ended(self, latents: Latents) -> Latents:
        """Return the latents behind the last stage, normed if there is a final norm."""
        return latents if self.final_norm is None else replace(latents, array=self.final_norm(latents.array))


class Transformer(nn.Module):
    """The trunk that Perceiver IO replaces (BERT, AlphaStar): each token is a latent, and attends to all, densely."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__()
        processor = config.processor
        self._block_of = [shared(i, processor.share_blocks) for i in range(processor.num_blocks)]
        self.is_rotated = processor.rotary is not None
        self.encoder = plain_linear(input_channels, config.latents.channels)
        self.processor = nn.ModuleList(Process(config) for _ in range(max(self._block_of) + 1))
        self.final_norm = norm_layer(config.latents.channels, processor) if processor.final_norm else None

    def start(self, tokens: Tokens, given: Tensor | None = None) -> Latents:
        """Return a latent for each token."""
        if self.is_rotated and tokens.coordinates() is None:
            raise ValueError("trunk: transformer with rotary needs inputs that all have the same axes of coordinates")
        array = apply_linear(self.encoder, tokens.dense(next(self.parameters()).dtype))
        return Latents(array, tokens.coordinates(), tokens.mask())

    def forward(self, tokens: Tokens, plan: Any = None, start: Latents | None = None) -> Latents:
        """Return a latent for each token."""
        if plan is not None and (plan.memory_limit is not None or plan.algorithm not in (None, "dense")):
            raise ValueError("a transformer attends to all tokens at once: it takes no memory limit and no algorithm")
        latents = start or self.start(tokens)
        for block in self._block_of:
            latents = self.processor[block](latents)
        return latents if self.final_norm is None else replace(latents, array=self.final_norm(latents.array))
