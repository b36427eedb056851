"""Recipes of AudioSet: multi-label classification of clips from sound and pictures (paper section C, Table 10).

`perceivers train sounds --out runs/sounds --set data.folder=SPOKEN_DIGITS`: the speaker, the spoken digit and the digit
in the moving picture, from samples and pixels; `sounds-mel`: from a log-mel spectrogram and pixels. 5 minutes each on
two cores. Expect nearly all speakers and most spoken digits right, and chance level for the digit in the picture, which
takes longer to learn. `audioset-paper`, `audioset-mel-paper`: the paper's runs.
"""

from collections.abc import Callable
from functools import partial

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import AudioSet, SpokenDigits
from perceivers.data.published.spoken_digits import GROUPS
from perceivers.modalities import Audio, Labels, Spectrogram, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.systems.audioset.model import audioset
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

CLIPS = 1_700_000
"""Number of training clips; the paper trains for 100 epochs."""

SMALL_STEPS = 5000
"""Number of steps of the small recipes, 5 minutes."""


def paper(channels: int = 512, mel: bool = False) -> Recipe:
    """Return the paper's training: 100 epochs, one window of 32 frames of a clip; evaluation averages 16 windows.

    Ours, where the paper is silent: batch size, LAMB and its rate, cosine, decay, clipping, normalisation.
    """
    preset = audioset(channels, mel=mel)
    units = (-4.0, 4.0) if mel else (0.0, 1.0)
    schema = preset.schema.changed("audio", mean=units[:1], std=units[1:], value_range=(-1.0, 1.0))
    batch_size = 1024
    return Recipe(
        data=AudioSet(),
        schema=schema.changed("image", mean=(0.0,), std=(1.0,), value_range=(0.0, 1.0)),
        config=preset.config,
        training=TrainingConfig(
            num_steps=100 * CLIPS // batch_size,
            batch_size=batch_size,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=2e-3, weight_decay=0.1, max_norm=10.0),
            schedule=ScheduleConfig(kind="constant_cosine"),
            num_workers=16,
        ),
    )


def small(mel: bool = False) -> Recipe:
    """Return a recipe of three labels at once: spoken digit, speaker, digit in the picture. All sizes are ours."""
    num_steps, batch_size = SMALL_STEPS, 16
    # Two variants of the sound: samples, and a log-mel spectrogram.
    data = SpokenDigits(num_training=num_steps * batch_size, shown="any")
    raw = Audio(
        size=data.samples,
        patch=32,
        positions=Fourier(num_bands=32),
        mean=(0.0,),  # means and standard deviations here are measured on the data
        std=(0.065,),
        value_range=(-1.0, 1.0),
    )
    spectrogram = Spectrogram(
        size=(data.samples // 128, 40),
        patch=(1, 8),
        rate=data.rate,
        hop=128,
        window=256,
        positions=Fourier(num_bands=16),
        mean=(-6.7,),
        std=(4.8,),
        value_range=(-14.0, 8.0),
    )
    image = Video(
        size=(data.frames, data.side, data.side),
        channels=1,
        patch=(1, 8, 8),
        positions=Fourier(num_bands=8),
        mean=(0.077,),
        std=(0.2,),
        value_range=(0.0, 1.0),
    )
    # All groups of labels are one output.
    labels = Labels(classes=tuple(name for names in GROUPS.values() for name in names), query_channels=64)
    return Recipe(
        data=data,
        schema=Schema({"audio": spectrogram if mel else raw, "image": image}, {"labels": labels}),
        config=Config(
            latents=LatentsConfig(num_latents=32, channels=64),
            encoder=EncoderConfig(num_heads=4),
            processor=ProcessorConfig(num_heads=4, num_layers=4),
            decoder=DecoderConfig(num_heads=4),
        ),
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=batch_size,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.05, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "sounds": small,
    "sounds-mel": partial(small, mel=True),
    "audioset-paper": paper,
    "audioset-mel-paper": partial(paper, 1024, mel=True),
}
"""Recipes by name on the command line."""
