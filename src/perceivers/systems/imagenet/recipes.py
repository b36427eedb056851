"""Recipes of image classification: Fourier, learned and convolutional features (paper section 4.5, A.1, A.2, Table 7).

`perceivers train images --out runs/images --set data.folder=FASHION-MNIST`: clothes of 28 x 28 pixels, 20 minutes on
two cores. `images-fourier`, `images-learned`, `images-conv`: the paper's three types of features, 5 minutes each.
`clip-art`: pictures of any size in one folder for each class, with the paper's augmentation, 5 minutes. Baseline:
logistic regression. `imagenet-fourier-paper`, `imagenet-learned-paper`, `imagenet-conv-paper`: the paper's runs, for
about 64 accelerators. `imagenet-finetune-paper --from MODEL`: its fine-tuning after pre-training on a larger data set.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import Idx, ImageFolder
from perceivers.media.resampling import CENTRE
from perceivers.modalities import Image, Label
from perceivers.modalities.augmentation import Augmentation
from perceivers.modalities.position_encodings import Fourier, Learned
from perceivers.modalities.randaugment import RandAugment
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.systems.imagenet.model import Features, config_b, imagenet
from perceivers.training.mixup import Mixup
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

CLOTHES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
"""Classes of Fashion-MNIST, by number."""


def paper(features: Features) -> Recipe:
    """Return the paper's training from scratch (A.1): 110 epochs on ImageNet, in the folder `imagenet`; no warm-up."""
    return _of_imagenet(imagenet(features), num_steps=137_625, constant_fraction=0.5)


def finetuning() -> Recipe:
    """Return the paper's fine-tuning of its larger model (A.2): `--from` pre-training, except the last linear map.

    Weight decay, clipping and augmentation, on which the paper is silent, are those of training from scratch.
    """
    preset = config_b()
    preset = replace(preset, schema=preset.schema.changed("image", embed=256))
    return _of_imagenet(preset, num_steps=131_000, constant_fraction=70 / 131)


def _of_imagenet(preset: Preset, num_steps: int, constant_fraction: float) -> Recipe:
    schema = preset.schema.changed("image", crop=CENTRE, augmentation=Augmentation())
    return Recipe(
        data=ImageFolder(folder="imagenet"),
        schema=schema.changed("label", classes=(), smoothing=0.1),
        config=preset.config,
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=1024,
            mixup=Mixup(),
            optimiser=OptimiserConfig(
                kind="lamb", learning_rate=5e-4, base_batch_size=256, weight_decay=0.1, max_norm=10.0
            ),
            schedule=ScheduleConfig(kind="constant_cosine", constant_fraction=constant_fraction),
            num_workers=16,
        ),
    )


def small(features: Features = "fourier", num_steps: int = 5500) -> Recipe:
    """Return a recipe for clothes, a token for each pixel (`conv`: for each 4 x 4), evaluated at other sizes too."""
    image = {
        "fourier": Image(positions=Fourier(num_bands=8, max_resolution=28)),
        "learned": Image(embed=32, positions=Learned(channels=32, project=32)),
        "conv": Image(stem="conv", patch=4, embed=64, positions=Fourier(num_bands=4, max_resolution=7)),
    }[features]
    image = replace(
        image,
        size=28,
        channels=1,
        crop=1.0,
        augmentation=Augmentation(area=None, rand_augment=None),
        value_range=(0.0, 255.0),
    )
    return Recipe(
        data=Idx(),
        schema=Schema(inputs={"image": image}, outputs={"label": Label(classes=CLOTHES, query_channels=128)}),
        config=_small_config(),
        training=_small_training(num_steps),
        evaluations={f"{side} x {side}": {"image": {"size": side}} for side in (20, 36, 56)},
    )


def clip_art() -> Recipe:
    """Return a recipe for the eight largest folders of the Open Clip Art library, with pictures up to 4 megapixels.

    The augmentation is the paper's, with RandAugment's distances halved: most pictures are 100 to 200 pixels wide.
    """
    image = Image(
        size=48,
        patch=2,
        positions=Fourier(num_bands=12, max_resolution=24),
        crop=CENTRE,
        augmentation=Augmentation(rand_augment=RandAugment(translation=50, cutout=20)),
        mean=(127.5,),
        std=(127.5,),
        value_range=(0.0, 255.0),
    )
    return Recipe(
        data=ImageFolder(folder="openclipart", largest=8, max_pixels=4_000_000),
        schema=Schema(inputs={"image": image}, outputs={"label": Label(query_channels=128, smoothing=0.1)}),
        config=_small_config(),
        training=replace(_small_training(700), mixup=Mixup(), num_workers=1),
        evaluations={f"{side} x {side}": {"image": {"size": side}} for side in (32, 64, 96)},
    )


def _small_config() -> Config:
    return Config(
        latents=LatentsConfig(num_latents=32, channels=128),
        encoder=EncoderConfig(channel_alignment="pad"),
        processor=ProcessorConfig(num_layers=4, num_heads=4),
        decoder=DecoderConfig(query_residual=True),
    )


def _small_training(num_steps: int) -> TrainingConfig:
    return TrainingConfig(
        num_steps=num_steps,
        batch_size=64,
        optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.05, max_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        log_every=50,
    )


PAPER: dict[str, Callable[[], Recipe]] = {
    **{f"imagenet-{features}-paper": partial(paper, features) for features in get_args(Features)},
    "imagenet-finetune-paper": finetuning,
}
"""Recipes of the paper's runs, whose data are too large for the baselines."""

RECIPES: dict[str, Callable[[], Recipe]] = {
    "images": small,
    "images-fourier": partial(small, "fourier", 1400),
    "images-learned": partial(small, "learned", 1100),
    "images-conv": partial(small, "conv", 1700),
    "clip-art": clip_art,
    **PAPER,
}
"""Recipes by name on the command line; the numbers of steps make the three variants take equally long."""
