"""Recipes of video, sound and label through one set of latents (paper section 4.3, I).

`perceivers train autoencode --out runs/autoencode --set data.folder=SPOKEN_DIGITS`: spoken digits with moving pictures
of the same digit, 20 minutes on two cores. `autoencode-2x`, `autoencode-4x`: half and a quarter of the latents, five
minutes each. Expect 98 % of the digits right when the label is masked, recognisable films, and no sound yet
(docs/results.md). `kinetics-paper`, `kinetics-paper-2x`, `kinetics-paper-4x`: the paper's runs, with 784, 392 and 196
latents.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import Kinetics, SpokenDigits
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.systems.multimodal.model import multimodal
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

QUERIES = 512
"""Number of pixels, and of samples of sound, that are decoded for each training example (paper)."""

UNSEEN = "label unseen"
"""Name of the main evaluation: the class is predicted from picture and sound alone."""

EVALUATIONS = {UNSEEN: {"label": {"mask_prob": 1.0, "mask_at_eval": True}}}
"""Evaluations in addition to the default one, in which the label is an input."""

SMALL_BATCH = 16
"""Batch size of the small recipes."""


def paper(num_latents: int = 784) -> Recipe:
    """Return the released model on Kinetics-700-2020: batch 1024, rate 1e-3, losses 0.03, 1 and 0.0001 (paper).

    Ours, where the paper is silent: LAMB, 100,000 steps, cosine, decay and clipping as elsewhere in the paper.
    """
    preset = multimodal(num_latents)
    as_is = {"mean": (0.0,), "std": (1.0,)}  # values are from 0 or -1 to 1 already: nothing needs to be fitted
    schema = preset.schema.changed("audio", **as_is, num_points=QUERIES // 16)
    schema = schema.changed("image", **as_is, num_points=QUERIES)
    return Recipe(
        data=Kinetics(),
        schema=schema.changed("label", mask_prob=0.5, mask_at_eval=False),
        config=preset.config,
        training=TrainingConfig(
            num_steps=100_000,
            batch_size=1024,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=1e-3, weight_decay=0.1, max_norm=10.0),
            schedule=ScheduleConfig(kind="cosine"),
            num_workers=16,
            memory_limit="2GB",
        ),
        evaluations=EVALUATIONS,
    )


def small(num_latents: int = 32, num_steps: int = 16_000) -> Recipe:
    """Return a recipe whose 32 latents have a sixth as many values as a clip (12,288): the paper's ratio, our sizes."""
    data = SpokenDigits(num_training=num_steps * SMALL_BATCH)
    film, sound = (data.frames, data.side, data.side), data.samples
    # Inputs are normalised; outputs are decoded at some points of each training example.
    image = Video(
        size=film,
        channels=1,
        patch=(1, 8, 8),
        positions=Fourier(num_bands=8),
        mean=(0.077,),  # this and the other three are measured on the data
        std=(0.2,),
        value_range=(0.0, 1.0),
    )
    audio = Audio(
        size=sound,
        patch=32,
        positions=Fourier(num_bands=32),
        mean=(0.0,),
        std=(0.065,),
        value_range=(-1.0, 1.0),
    )
    label = Label(classes=10, query_channels=64)
    return Recipe(
        data=data,
        schema=Schema(
            inputs={"audio": audio, "image": image, "label": replace(label, mask_prob=0.5)},
            outputs={
                "audio": replace(audio, num_points=32),
                "image": replace(image, patch=(1, 4, 4), num_points=64),
                "label": replace(label, weight=0.2),
            },
        ),
        config=Config(
            latents=LatentsConfig(num_latents=num_latents, channels=64),
            encoder=EncoderConfig(num_heads=4),
            processor=ProcessorConfig(num_heads=4, num_layers=4),
            decoder=DecoderConfig(num_heads=4, query_residual=True, widening_factor=2),
        ),
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=SMALL_BATCH,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=3e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
        evaluations=EVALUATIONS,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "autoencode": small,
    "autoencode-2x": partial(small, 16, 4_000),
    "autoencode-4x": partial(small, 8, 4_000),
    "kinetics-paper": paper,
    "kinetics-paper-2x": partial(paper, 392),
    "kinetics-paper-4x": partial(paper, 196),
}
"""Recipes by name on the command line."""
