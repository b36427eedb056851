"""The public names, in the order of the dataflow."""

from perceivers.core.attention import Mask
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.explain import explain
from perceivers.core.interfaces import Coordinates, Indices, Part, Points, Queries
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import Fourier, Learned
from perceivers.core.reading import Encoded, Reading, ReadState
from perceivers.core.tokens import Segment, Tokens
from perceivers.core.trunk import Resampler
from perceivers.modalities import (
    Audio,
    Estimate,
    Flow,
    FramePair,
    Image,
    Label,
    Labels,
    Numbers,
    PointSet,
    Records,
    Series,
    Spectrogram,
    Text,
    Vectors,
    Video,
)
from perceivers.modalities.fields import Category, Date, Number
from perceivers.pretrained.hub import from_pretrained, push_to_hub, save_pretrained
from perceivers.schema import Schema
from perceivers.schema.example import from_example

__all__ = [
    "Audio",
    "Category",
    "Config",
    "Coordinates",
    "Date",
    "DecoderConfig",
    "Encoded",
    "EncoderConfig",
    "Estimate",
    "Flow",
    "Fourier",
    "FramePair",
    "Image",
    "Indices",
    "Label",
    "Labels",
    "LatentsConfig",
    "Learned",
    "Mask",
    "Number",
    "Numbers",
    "Part",
    "PerceiverIO",
    "PointSet",
    "Points",
    "ProcessorConfig",
    "Queries",
    "ReadState",
    "Reading",
    "Records",
    "Resampler",
    "Schema",
    "Segment",
    "Series",
    "Spectrogram",
    "Text",
    "Tokens",
    "Vectors",
    "Video",
    "explain",
    "from_example",
    "from_pretrained",
    "push_to_hub",
    "save_pretrained",
]
