"""Models with video, sound and label as inputs and as outputs (paper section 4.3, I)."""

from dataclasses import replace
from functools import partial

from perceivers.core.config import DecoderConfig
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.presets import Published, published
from perceivers.schema import Schema
from perceivers.schema.preset import Preset

FRAMES, SIDE, SAMPLES, CLASSES = 16, 224, 30720, 700
"""Sizes of a clip, at 25 frames and 48,000 samples a second."""


def multimodal(num_latents: int = 784) -> Preset:
    """Return the released model by default; the paper also has models with 392 and 196 latents."""
    video = Video(
        size=(FRAMES, SIDE, SIDE),
        patch=(1, 4, 4),
        positions=Fourier(num_bands=32, max_resolution=(FRAMES, SIDE // 4, SIDE // 4)),
        mask_prob=0.0,
        value_range=(0.0, 1.0),
    )
    audio = Audio(
        size=SAMPLES,
        patch=16,
        positions=Fourier(num_bands=192, max_resolution=SAMPLES),
        mask_prob=0.0,
        value_range=(-1.0, 1.0),
    )
    label = Label(classes=CLASSES, query_channels=1024)
    config = published(
        (num_latents, 512), layers=8, decoder=DecoderConfig(channel_alignment="pad", min_padding=2, output_channels=512)
    )
    return Preset(
        schema=Schema(
            inputs={
                "audio": audio,
                "image": video,
                # Outside training the released model always has its label masked.
                "label": replace(label, mask_prob=1.0, mask_at_eval=True),
            },
            outputs={
                "audio": replace(audio, mask_prob=None, coordinate_rule="exclusive", weight=1.0, loss_kind="l1"),
                "image": replace(
                    video, mask_prob=None, patch=1, coordinate_rule="exclusive", weight=0.03, loss_kind="l1"
                ),
                "label": replace(label, weight=0.0001),
            },
        ),
        config=replace(config, encoder=replace(config.encoder, min_padding=4)),
    )


PRESETS = {
    "multimodal": Published(multimodal, 19_858_855, "20.0M", "6.85T", released=True),
    "multimodal-392": Published(partial(multimodal, 392), 19_658_151, "-", "-"),
    "multimodal-196": Published(partial(multimodal, 196), 19_557_799, "-", "-"),
}
"""Published models by name, with the parameters and FLOPs that the paper states."""
