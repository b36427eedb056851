"""AudioSet: sounds and pictures of a clip to all the labels that fit (paper section C, Table 10)."""

from dataclasses import replace

from perceivers.core.config import DecoderConfig
from perceivers.core.positions import Fourier
from perceivers.modalities import Audio, Labels, Video
from perceivers.preset import Preset
from perceivers.schema import Schema
from perceivers.tasks.published import published

FRAMES, SIDE, SAMPLES, CLASSES = 32, 224, 61440, 527


def audioset(channels: int = 512, original: bool = False) -> Preset:
    """Raw sound and video into 512 latents of this width; `original`: the mean of the latents instead of a query."""
    config = published(
        (512, channels), layers=12, decoder=DecoderConfig(join="pad", kind="average" if original else "query")
    )
    return Preset(
        schema=Schema(
            inputs={
                # The paper does not say how many bands the sound has; they change no count below the common width.
                "audio": Audio(size=SAMPLES, patch=128, positions=Fourier(num_bands=128, max_resolution=SAMPLES)),
                "video": Video(size=(FRAMES, SIDE, SIDE), patch=(2, 8, 8), positions=Fourier(num_bands=16)),
            },
            outputs={"labels": Labels(classes=CLASSES, query_channels=1024)},
        ),
        config=replace(config, encoder=replace(config.encoder, min_padding=4)),
    )
