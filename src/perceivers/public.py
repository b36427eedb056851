"""The public names, in the order of the dataflow."""

from perceivers.core.attention import Mask
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.fast.plan_report import attention_plan
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded, Reading, SoftmaxState
from perceivers.core.resampler import Resampler
from perceivers.core.tokens import Segment, Tokens
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
from perceivers.modalities.points import Coordinates, Indices, Part, Points, Queries
from perceivers.modalities.position_encodings import Fourier, Learned
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
    "Reading",
    "Records",
    "Resampler",
    "Schema",
    "Segment",
    "Series",
    "SoftmaxState",
    "Spectrogram",
    "Text",
    "Tokens",
    "Vectors",
    "Video",
    "attention_plan",
    "from_example",
    "from_pretrained",
    "push_to_hub",
    "save_pretrained",
]
