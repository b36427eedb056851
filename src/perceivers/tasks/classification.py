"""Training image classification: Fourier, learned and convolutional features (paper section 4.5, A.1, A.2, Table 7).

`perceivers train images --out runs/images --set data.folder=FASHION-MNIST`: clothes of 28 x 28 pixels, 20 minutes on
two cores. `images-fourier`, `images-learned`, `images-conv`: the paper's three ways, 5 minutes each. `clip-art`:
pictures of any size in folders of classes, with the paper's augmentation, 5 minutes. Logistic regression stands beside.
`imagenet-fourier-paper`, `imagenet-learned-paper`, `imagenet-conv-paper`: the paper's runs, for 64 accelerators or so;
`imagenet-finetune-paper --from MODEL`: its fine-tuning of what was trained on a larger data set.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import Fourier, Learned
from perceivers.data import Idx, ImageFolder
from perceivers.media.drawing import drawable
from perceivers.media.html_report import Report
from perceivers.media.resampling import CENTRE
from perceivers.modalities import Image, Label
from perceivers.modalities.augmentation import Augmentation
from perceivers.modalities.randaugment import RandAugment
from perceivers.schema import Record, Schema, find_kind
from perceivers.schema.preset import Preset
from perceivers.tasks.imagenet import Features, config_b, imagenet
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import add_losses, add_scores, predict
from perceivers.training.metrics import Scores, answers, gathered, scored
from perceivers.training.mixup import Mixing, mixed
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.plots import SHOWN, draw_samples, subplots
from perceivers.training.sampler import PreparedRecords, evaluation_batches
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOTHES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
"""Classes of Fashion-MNIST, in their order."""

BATCH = 128
"""Pictures of a batch in evaluation."""


def paper(features: Features) -> Recipe:
    """The paper's training from scratch (A.1): 110 epochs of ImageNet, in the folder `imagenet`; no warm-up."""
    return _of_imagenet(imagenet(features), num_steps=137_625, constant_fraction=0.5)


def finetuning() -> Recipe:
    """The paper's fine-tuning of its larger model (A.2), all but the last linear map `--from` pre-training.

    Ours, where the paper is silent: weight decay, clipping and augmentation are those of training from scratch.
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
            mixing=Mixing(),
            optimiser=OptimiserConfig(
                kind="lamb", learning_rate=5e-4, base_batch_size=256, weight_decay=0.1, max_norm=10.0
            ),
            schedule=ScheduleConfig(kind="constant_cosine", constant_fraction=constant_fraction),
            num_workers=16,
        ),
    )


def small(features: Features = "fourier", num_steps: int = 5500) -> Recipe:
    """Clothes, each pixel a token but for the convolutional stem; evaluated at other sizes too."""
    own = {
        "fourier": Image(positions=Fourier(num_bands=8, max_resolution=28)),
        "learned": Image(embed=32, positions=Learned(channels=32, project=32)),
        "conv": Image(stem="conv", patch=4, embed=64, positions=Fourier(num_bands=4, max_resolution=7)),
    }[features]
    image = replace(
        own,
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
    """The eight largest folders of the Open Clip Art library: pictures of up to 4 million pixels over white.

    The paper's augmentation; RandAugment's distances are halved (ours), since most pictures are 100 to 200 pixels wide.
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
        training=replace(_small_training(700), mixing=Mixing(), num_workers=1),
        evaluations={f"{side} x {side}": {"image": {"size": side}} for side in (32, 64, 96)},
    )


def _small_config() -> Config:
    return Config(
        latents=LatentsConfig(num_latents=32, channels=128),
        encoder=EncoderConfig(join="pad"),
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
"""Recipes too large for rivals."""

RECIPES: dict[str, Callable[[], Recipe]] = {
    "images": small,
    "images-fourier": partial(small, "fourier", 1400),
    "images-learned": partial(small, "learned", 1100),
    "images-conv": partial(small, "conv", 1700),
    "clip-art": clip_art,
    **PAPER,
}
"""By name on the command line; the three of 5 minutes make the steps for which each takes about as long."""


def further_scores(run: Path) -> dict[str, Scores]:
    """What the most frequent class and logistic regression on the same pixels score on the same held-out records."""
    recipe, _ = load_run(run)
    if recipe.task in PAPER:
        return {}
    return rivals(recipe.schema, recipe.data.training(), recipe.data.held_out())


def rivals(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Their scores, as the label's own metrics have them."""
    name, label = find_kind(fitted.outputs, Label)
    pixels, classes = pixels_of(fitted, training)
    others, truth = pixels_of(fitted, held_out)
    frequencies = classes.bincount(minlength=label.num_classes) / len(classes)
    guesses = {
        "most frequent class": frequencies.expand(len(truth), -1),
        "logistic regression": logistic_regression(pixels, classes, others, label.num_classes),
    }
    return {rival: scored(fitted.outputs, [(name, (guess, truth))]) for rival, guess in guesses.items()}


def pixels_of(fitted: Schema, records: Sequence[Record]) -> tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]:
    """Pictures as the model is given them in evaluation, each as a row, and their classes."""
    (name, image), (output, _) = find_kind(fitted.inputs, Image), find_kind(fitted.outputs, Label)
    batches = list(evaluation_batches(fitted, records, BATCH))
    rows = [image.normalise(batch["inputs"][name]).flatten(1) for batch in batches]
    return torch.cat(rows), torch.cat([batch["targets"][output] for batch in batches])


def logistic_regression(
    pixels: Float[Tensor, "n p"], classes: Int[Tensor, " n"], others: Float[Tensor, "m p"], num_classes: int
) -> Float[Tensor, "m k"]:
    """Scikit-learn's probabilities, its regularisation chosen on a tenth of the training records."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, ShuffleSplit

    tenth = ShuffleSplit(1, test_size=0.1, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=100), {"C": [1e-4, 1e-2, 1.0]}, cv=tenth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of the optimum change no score
        search.fit(pixels.numpy(), classes.numpy())
    probabilities = torch.zeros(len(others), num_classes)
    probabilities[:, search.classes_] = torch.from_numpy(search.predict_proba(others.numpy())).float()
    return probabilities


def report(run: Path) -> Path:
    """Scores beside the rivals', what training sees, samples, and which classes are taken for which."""
    recipe, model = load_run(run)
    page = Report(f"Image classification: run {run.name}")
    add_scores(page, run)
    page.heading("What training sees")
    page.figure(draw_training(recipe), "Augmented pictures of the training part, with the classes they count as.")
    page.heading("Samples, held out")
    held_out = recipe.data.held_out()
    batch, predictions = predict(model.cpu(), recipe.schema, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
    page.figure(draw_samples(recipe.schema, batch, predictions), "Picture; true class; the three most probable ones.")
    page.heading("Which class is taken for which")
    _, label = find_kind(recipe.schema.outputs, Label)
    page.figure(
        draw_confusion(confusion(model, recipe.schema, held_out), label),
        "Held-out pictures of each true class (a row), by the class that is written; in percent of the row.",
    )
    add_losses(page, run)
    return page.write(run / "report.html")


def draw_training(recipe: Recipe, count: int = 8) -> "Figure":
    """Some training pictures as a step gets them."""
    schema, training = recipe.schema, recipe.data.training()
    prepared = PreparedRecords(schema, training, recipe.training.seed, training=True)
    chosen = np.random.default_rng(recipe.training.seed).permutation(len(training))[:count]
    torch.manual_seed(recipe.training.seed)
    batch = mixed(schema, schema.collate([prepared[int(number)] for number in chosen]), recipe.training.mixing)
    (name, image), (output, label) = find_kind(schema.inputs, Image), find_kind(schema.outputs, Label)
    titles = [_title(label, target) for target in batch["targets"][output]]
    figure, (row,) = subplots(1, titles, side=2.0)
    for axes, picture in zip(row, batch["inputs"][name], strict=True):
        image.picture(axes, picture)
    return figure


def _title(label: Label, target: Tensor) -> str:
    """A class, or the parts of those that a picture was mixed from."""
    if target.ndim == 0:
        return label.name_of(int(target))
    return "\n".join(f"{name} {part:.0%}" for name, part in label.ranking(target, 2) if part > 0.005)


def confusion(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> Int[Tensor, "k k"]:
    """Records by their true class (rows) and the most probable one of the model (columns)."""
    name, label = find_kind(schema.outputs, Label)
    counts = torch.zeros(label.num_classes, label.num_classes, dtype=torch.long)
    probabilities, truth = gathered(answers(model, schema, records))[name]
    return counts.index_put_((truth, probabilities.argmax(dim=-1)), torch.tensor(1), accumulate=True)


def draw_confusion(counts: Int[Tensor, "k k"], label: Label) -> "Figure":
    """Parts of each row, as shades; with numbers and names if there are few classes."""
    figure, ((axes,),) = subplots(1, ["true (rows), written (columns)"], side=6.0)
    percent = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100)
    if len(counts) <= 20:
        names = [drawable(label.name_of(number)) for number in range(len(counts))]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in np.ndindex(*counts.shape):
            shade = "white" if percent[row, column] > 50 else "black"
            axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    return figure
