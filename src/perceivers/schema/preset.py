"""A preset: the schema and the sizes of a model, before there are weights."""

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
    """All that a model needs to be built."""

    schema: Schema
    """Inputs and outputs."""
    config: Config
    """Sizes."""

    def build(self, device: str = "cpu") -> PerceiverIO:
        """The model, newly initialised; device "meta" makes shapes alone, in no time and no memory.

        ValueError for sizes that no model has, or that this machine's memory cannot hold.
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
    """Raise a ValueError for sizes that no model can have, whatever torch raises for them."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError, MemoryError) as error:
        raise ValueError(f"no model has these sizes: {one_line(error)}") from None


class Rows(NamedTuple):
    """The tokens of an input or the queries of an output, of one sample of the trained size."""

    size: int
    """Number of them."""
    channels: int
    """Width, before they are joined with others."""


def wiring(schema: Schema) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Tokens of each input and queries of each output, by name; ValueError for a schema that must be fitted first."""
    device = torch.device("meta")
    with device, torch.no_grad(), only_value_errors():
        raw, points = schema.dummy_input(1, device)
        inputs = {name: named(name, spec.build_input) for name, spec in schema.inputs.items()}
        segments = {name: adapter(raw[name]) for name, adapter in inputs.items()}
        encoded = Encoded(torch.zeros(1, 1, 1), segments)
        queries = {name: named(name, spec.build_query, inputs) for name, spec in schema.outputs.items()}
        asked = {name: query(encoded, points.get(name)) for name, query in queries.items()}
    tokens = {name: Rows(segment.num_tokens, inputs[name].channels) for name, segment in segments.items()}
    return tokens, {name: Rows(segment.num_tokens, queries[name].channels) for name, segment in asked.items()}


def auto_config(schema: Schema) -> Config:
    """Sizes that suit a schema (what `config: auto` means), from M, the tokens of all inputs of one sample.

    Latents: half of M, rounded up to a power of two, from 16 to 256. Channels: 128 up to 512 tokens, above them 256.
    Four layers of processing; heads of 32 channels. Queries are as wide as the latents, or as the embeddings of the
    text that an output restores; they are added to what they find where a text is written, whose places differ in
    nothing else.
    """
    num_tokens = sum(rows.size for rows in wiring(schema)[0].values())
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
