"""Every published model by name, beside what the paper says of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from perceivers.schema.preset import Preset
from perceivers.tasks.audioset import audioset
from perceivers.tasks.imagenet import config_b, imagenet, original_perceiver
from perceivers.tasks.language import language
from perceivers.tasks.multimodal import multimodal
from perceivers.tasks.optical_flow import optical_flow


@dataclass(frozen=True)
class Published:
    """A published model."""

    preset: Callable[[], Preset]
    """Makes its schema and sizes."""
    parameters: int | None
    """Exact count, measured on the official code or on the released weights; None: only what the paper rounds to."""
    paper_parameters: str
    """The paper's count."""
    paper_flops: str
    """The paper's count of one forward pass."""
    released: bool = False
    """Whether DeepMind released its weights."""


PRESETS = {
    "language": Published(language, 201_108_230, "201M", "113B", released=True),
    "language-sentencepiece": Published(partial(language, length=512, vocab_size=32000), 223_155_456, "223M", "119B"),
    "language-large": Published(partial(language, (256, 1536), 40), 425_607_430, "425M", "241B"),
    "language-128x1920": Published(partial(language, (128, 1920)), 430_132_230, "-", "120B"),
    "language-512x896": Published(partial(language, (512, 896)), 105_849_862, "-", "125B"),
    "imagenet-fourier": Published(partial(imagenet, "fourier"), 48_440_627, "48.4M", "407B", released=True),
    "imagenet-learned": Published(partial(imagenet, "learned"), 62_255_848, "62.3M", "407B", released=True),
    "imagenet-conv": Published(partial(imagenet, "conv"), 48_646_522, "48.6M", "369B", released=True),
    "imagenet-config-b": Published(config_b, 212_170_035, "212M", "213B"),
    "perceiver-fourier": Published(partial(original_perceiver, "fourier"), 42_135_859, "42.1M", "404B"),
    "perceiver-learned": Published(partial(original_perceiver, "learned"), 55_951_080, "55.9M", "404B"),
    "perceiver-conv": Published(partial(original_perceiver, "conv"), None, "42.1M", "367B"),
    # The paper prints the light model's 27.9M and 987B for the large one (facts: its own numbers tell).
    "optical-flow": Published(optical_flow, 41_057_134, "27.9M", "987B", released=True),
    "optical-flow-light": Published(partial(optical_flow, (1024, 512), 16), 27_908_974, "27.9M", "987B"),
    "multimodal": Published(multimodal, 19_858_855, "20.0M", "6.85T", released=True),
    "multimodal-392": Published(partial(multimodal, 392), 19_658_151, "-", "-"),
    "multimodal-196": Published(partial(multimodal, 196), 19_557_799, "-", "-"),
    "audioset-512": Published(partial(audioset, 512), None, "25.0M", "52.9B"),
    "audioset-1024": Published(partial(audioset, 1024), None, "88.2M", "129.5B"),
    "audioset-mel-1024": Published(partial(audioset, 1024, mel=True), None, "88.2M", "129.5B"),
    "audioset-perceiver-512": Published(partial(audioset, 512, original=True), None, "21.0M", "52.3B"),
}
"""Every published model."""
