"""Models of AudioSet: sounds, raw or as a spectrogram, and pictures to labels (paper section C, Table 10)."""

from dataclasses import replace
from functools import partial

from perceivers.core.config import DecoderConfig
from perceivers.modalities import Audio, Labels, Spectrogram, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.presets import Published, published
from perceivers.schema import Schema
from perceivers.schema.preset import Preset

FRAMES, SIDE, SAMPLES, CLASSES = 32, 224, 61440, 527


def audioset(channels: int = 512, original: bool = False, mel: bool = False) -> Preset:
    """Return a model of sound, raw or as a mel spectrogram, and video, with 512 latents [512, channels].

    `original`: decode the mean of the latents, without a query.
    """
    config = published(
        (512, channels),
        layers=12,
        decoder=DecoderConfig(channel_alignment="pad", kind="average" if original else "query"),
    )
    # The paper does not state the number of bands of the sound's positions. This number does not change the number
    # of parameters as long as the tokens stay below the common width. Of the spectrogram the paper states only the
    # number of tokens, 4,800: 60 steps of 80 bands are ours.
    spectrogram = Spectrogram(size=(60, 80), rate=48_000, hop=1024, window=2048, positions=Fourier(num_bands=64))
    raw = Audio(size=SAMPLES, patch=128, positions=Fourier(num_bands=128, max_resolution=SAMPLES))
    return Preset(
        schema=Schema(
            inputs={
                "audio": spectrogram if mel else raw,
                "image": Video(size=(FRAMES, SIDE, SIDE), patch=(2, 8, 8), positions=Fourier(num_bands=16)),
            },
            outputs={"labels": Labels(classes=CLASSES, query_channels=1024)},
        ),
        config=replace(config, encoder=replace(config.encoder, min_padding=4)),
    )


PRESETS = {
    "audioset-512": Published(partial(audioset, 512), None, "25.0M", "52.9B"),
    "audioset-1024": Published(partial(audioset, 1024), None, "88.2M", "129.5B"),
    "audioset-mel-1024": Published(partial(audioset, 1024, mel=True), None, "88.2M", "129.5B"),
    "audioset-perceiver-512": Published(partial(audioset, 512, original=True), None, "21.0M", "52.3B"),
}
"""Published models by name, with the parameters and FLOPs that the paper states."""
