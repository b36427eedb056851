"""Models of ImageNet: Fourier, learned and convolutional features (paper section 4.5, A.1, A.2, Table 7)."""

from dataclasses import replace
from functools import partial
from typing import Literal

from perceivers.core.config import DecoderConfig
from perceivers.modalities import Image, Label
from perceivers.modalities.position_encodings import Fourier, Learned
from perceivers.runs.presets import Published, published
from perceivers.schema import Schema
from perceivers.schema.preset import Preset

Features = Literal["fourier", "learned", "conv"]

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Mean and standard deviation of red, green and blue, from 0 to 255 (official dataset.py)."""


def imagenet(features: Features = "fourier") -> Preset:
    """Return one of the three released models: 8 blocks of the same 6 layers over 512 x 1024 latents."""
    # The official notebook builds the learned model without the query residual that the other two have.
    decoder = DecoderConfig(channel_alignment="pad", query_residual=features != "learned")
    return Preset(_schema(_image(features)), published((512, 1024), layers=6, blocks=8, decoder=decoder))


def original_perceiver(features: Features = "fourier") -> Preset:
    """Return the original Perceiver as in the paper's comparison: one read, mean of the latents, no query."""
    decoder = DecoderConfig(kind="average", channel_alignment="pad")
    return Preset(_schema(_image(features)), published((512, 1024), layers=6, blocks=8, decoder=decoder))


def config_b() -> Preset:
    """Return the larger model that the paper trains on JFT: 16 layers without weight sharing, wider MLPs."""
    preset = imagenet("fourier")
    processor = replace(preset.config.processor, num_blocks=1, num_layers=16, widening_factor=4)
    return replace(preset, config=replace(preset.config, processor=processor))


def _image(features: Features) -> Image:
    image = {
        "fourier": Image(positions=Fourier(num_bands=64, max_resolution=224)),
        "learned": Image(embed=256, positions=Learned(channels=256, project=256)),
        "conv": Image(stem="conv", patch=4, embed=64, positions=Fourier(num_bands=64, max_resolution=56)),
    }[features]
    return Image(
        size=224,
        patch=image.patch,
        stem=image.stem,
        embed=image.embed,
        positions=image.positions,
        mean=MEAN,
        std=STD,
        value_range=(0.0, 255.0),
    )


def _schema(image: Image) -> Schema:
    return Schema(inputs={"image": image}, outputs={"label": Label(classes=1000, query_channels=1024)})


PRESETS = {
    "imagenet-fourier": Published(partial(imagenet, "fourier"), 48_440_627, "48.4M", "407B", released=True),
    "imagenet-learned": Published(partial(imagenet, "learned"), 62_255_848, "62.3M", "407B", released=True),
    "imagenet-conv": Published(partial(imagenet, "conv"), 48_646_522, "48.6M", "369B", released=True),
    "imagenet-config-b": Published(config_b, 212_170_035, "212M", "213B"),
    "perceiver-fourier": Published(partial(original_perceiver, "fourier"), 42_135_859, "42.1M", "404B"),
    "perceiver-learned": Published(partial(original_perceiver, "learned"), 55_951_080, "55.9M", "404B"),
    "perceiver-conv": Published(partial(original_perceiver, "conv"), None, "42.1M", "367B"),
}
"""Published models by name, with the parameters and FLOPs that the paper states."""
