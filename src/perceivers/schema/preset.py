"""A preset: the schema and the config of a model, without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.files.messages import one_line
from perceivers.modalities import Text
from perceivers.modalities.modality import named
from perceivers.schema import Schema
from perceivers.schema.memory import check_memory, num_bytes


@dataclass(frozen=True)
class Preset:
    """Schema and config: everything that is needed to build a model."""

    schema: Schema
    """Inputs and outputs."""
    config: Config
    """Sizes."""

    def build(self, device: str = "cpu") -> PerceiverIO:
        """Build the model, newly initialised; on device "meta" only shapes are made, which takes no time and no memory.

        ValueError if no model can have these sizes, or if they do not fit into this machine's memory.
        """
        if device != "meta":
            parameters = dict(self.build("meta").named_parameters())
            largest = max(parameters, key=lambda name: parameters[name].numel())
            shape = list(parameters[largest].shape)
            check_memory(f"the model's weights (the largest, {largest}, are {shape})", num_bytes(parameters))
            check_memory("inputs of this size", num_bytes(self.schema.dummy_input(1, torch.device("meta"))))
        with torch.device(device), only_value_errors():
            return PerceiverIO(self.schema, self.config)


@contextmanager
def only_value_errors() -> Iterator[None]:
    """Turn any error that torch raises for impossible sizes into a ValueError."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError, MemoryError) as error:
        raise ValueError(f"no model has these sizes: {one_line(error)}") from None


class TokenShape(NamedTuple):
    """Shape of an input's tokens or an output's queries, for one sample of the trained size."""

    size: int
    """Number of tokens or queries."""
    channels: int
    """Width of the tokens or queries, before the alignment with other inputs or outputs."""


def token_shapes(schema: Schema) -> tuple[dict[str, TokenShape], dict[str, TokenShape]]:
    """Return the shapes of inputs' tokens and outputs' queries, by name; ValueError if the schema is not fitted."""
    device = torch.device("meta")
    with device, torch.no_grad(), only_value_errors():
        raw, points = schema.dummy_input(1, device)
        inputs = {name: named(name, spec.build_input) for name, spec in schema.inputs.items()}
        segments = {name: adapter(raw[name]) for name, adapter in inputs.items()}
        encoded = Encoded(torch.zeros(1, 1, 1), segments)
        queries = {name: named(name, spec.build_query, inputs) for name, spec in schema.outputs.items()}
        query_segments = {name: query(encoded, points.get(name)) for name, query in queries.items()}
    tokens = {name: TokenShape(segment.num_tokens, inputs[name].channels) for name, segment in segments.items()}
    return tokens, {
        name: TokenShape(segment.num_tokens, queries[name].channels) for name, segment in query_segments.items()
    }


def auto_config(schema: Schema) -> Config:
    """Return sizes that suit a schema (`config: auto`), from M, the number of tokens of all inputs of one sample.

    Latents: M / 2, rounded up to a power of two, between 16 and 256. Channels: 128 for M up to 512, else 256. Four
    layers of processing, heads of 32 channels. Queries are as wide as the latents, or as the embeddings of a text
    that an output restores. An output that writes new text has a query residual: only its queries tell positions apart.
    """
    num_tokens = sum(tokens.size for tokens in token_shapes(schema)[0].values())
    num_latents = min(max(1 << (num_tokens // 2 - 1).bit_length(), 16), 256) if num_tokens > 1 else 16
    channels = 128 if num_tokens <= 512 else 256
    restored = [schema.inputs[spec.of] for spec in schema.outputs.values() if isinstance(spec, Text) and spec.of]
    widths = [source.channels for source in restored if isinstance(source, Text)]
    written = any(isinstance(spec, Text) and spec.of is None for spec in schema.outputs.values())
    heads = channels // 32
    return Config(
        latents=LatentsConfig(num_latents=num_latents, channels=channels),
        encoder=EncoderConfig(num_heads=heads),
        processor=ProcessorConfig(num_layers=4, num_heads=heads),
        decoder=DecoderConfig(num_heads=heads, query_channels=widths[0] if widths else None, query_residual=written),
    )
