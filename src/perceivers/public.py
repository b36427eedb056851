"""The public names of the package."""

from perceivers.core.attention import Mask
from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.core.fast.plan_report import attention_plan
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded, Reading, SoftmaxState
from perceivers.core.resampler import Resampler, ResamplerConfig
from perceivers.core.tokens import Segment, Tokens
from perceivers.modalities import (
    Audio,
    Events,
    Flow,
    FramePair,
    Image,
    Label,
    Labels,
    Numbers,
    PointSet,
    ProbabilisticRegression,
    Records,
    Series,
    Spectrogram,
    Text,
    Vectors,
    Video,
)
from perceivers.modalities.fields import CategoryField, DateField, NumberField
from perceivers.modalities.points import Coordinates, Indices, Part, Points, Queries
from perceivers.modalities.position_encodings import Fourier, Learned
from perceivers.pretrained.hub import from_pretrained, push_to_hub, save_pretrained
from perceivers.pretrained.new_classes import extend_vocabulary, reduce_vocabulary
from perceivers.pretrained.relatives import from_state_dict
from perceivers.schema import Schema
from perceivers.schema.example import from_example

__all__ = [
    "Audio",
    "Axis",
    "BottleneckConfig",
    "CategoryField",
    "Config",
    "Coordinates",
    "DateField",
    "DecoderConfig",
    "Encoded",
    "EncoderConfig",
    "Events",
    "Flow",
    "Fourier",
    "FramePair",
    "Image",
    "Indices",
    "Label",
    "Labels",
    "LatentAxis",
    "LatentsConfig",
    "Learned",
    "Mask",
    "NumberField",
    "Numbers",
    "Part",
    "PerceiverIO",
    "PointSet",
    "Points",
    "ProbabilisticRegression",
    "ProcessorConfig",
    "Queries",
    "Reading",
    "Records",
    "Resampler",
    "ResamplerConfig",
    "Rotary",
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
    "extend_vocabulary",
    "from_example",
    "from_pretrained",
    "from_state_dict",
    "push_to_hub",
    "reduce_vocabulary",
    "save_pretrained",
]
