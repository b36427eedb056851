"""ImageNet classification with Fourier, learned and convolutional features (paper section 4.5, A.1, A.2, Table 7)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from perceivers.core.arguments import check_positive
from perceivers.core.config import DecoderConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import Fourier, Learned
from perceivers.media.resampling import imagenet_crop
from perceivers.modalities import Image, Label
from perceivers.modalities.patches import as_sizes
from perceivers.schema import Schema, find_kind
from perceivers.schema.preset import Preset
from perceivers.tasks.published import published
from perceivers.training.metrics import check_guesses, inference

Features = Literal["fourier", "learned", "conv"]

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of pixels from 0 to 255 (official dataset.py)."""


def imagenet(features: Features = "fourier") -> Preset:
    """The three released models: 8 blocks of the same 6 layers over 512 x 1024 latents."""
    # The official notebook reads the learned model without the residual that the other two have.
    decoder = DecoderConfig(join="pad", query_residual=features != "learned")
    return Preset(_schema(_image(features)), published((512, 1024), layers=6, blocks=8, decoder=decoder))


def original_perceiver(features: Features = "fourier") -> Preset:
    """The first Perceiver as the paper compares it: one read, the mean of the latents, no query."""
    decoder = DecoderConfig(kind="average", join="pad")
    return Preset(_schema(_image(features)), published((512, 1024), layers=6, blocks=8, decoder=decoder))


def config_b() -> Preset:
    """The larger model that the paper trains on JFT: 16 layers of their own, MLPs four times as wide."""
    preset = imagenet("fourier")
    processor = replace(preset.config.processor, num_blocks=1, num_layers=16, widening_factor=4)
    return replace(preset, config=replace(preset.config, processor=processor))


def _image(features: Features) -> Image:
    own = {
        "fourier": Image(positions=Fourier(num_bands=64, max_resolution=224)),
        "learned": Image(embed=256, positions=Learned(channels=256, project=256)),
        "conv": Image(stem="conv", patch=4, embed=64, positions=Fourier(num_bands=64, max_resolution=56)),
    }[features]
    return Image(
        size=224,
        patch=own.patch,
        stem=own.stem,
        embed=own.embed,
        positions=own.positions,
        mean=MEAN,
        std=STD,
        value_range=(0.0, 255.0),
    )


def _schema(image: Image) -> Schema:
    return Schema(inputs={"image": image}, outputs={"label": Label(classes=1000, query_channels=1024)})


def classify(
    model: PerceiverIO, images: Iterable[UInt8[np.ndarray, "h w 3"]], num_classes: int = 5
) -> Iterator[list[tuple[str, float]]]:
    """The most probable classes of each picture, cut and resized as the paper's are for evaluation."""
    check_positive("num_classes", num_classes)
    name, picture = find_kind(model.schema.inputs, Image)
    output, label = find_kind(model.schema.outputs, Label)
    height, width = as_sizes(picture.size, 2, "size")
    if height != width or picture.channels != 3:
        found = f"{height} x {width} x {picture.channels}"
        raise ValueError(f"pictures can be cut for square models of 3 channels, not for {found}")
    parameter = next(model.parameters())
    for number, image in enumerate(images):
        raw = torch.from_numpy(imagenet_crop(image, height))[None].to(parameter)
        with inference(model):
            logits = model({name: raw})[output]
        check_guesses(output, logits, number, "picture")
        yield label.ranking(logits[0].double().softmax(dim=-1), num_classes)
