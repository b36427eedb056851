"""The tasks of the ablations: a recipe each, with the paper's block, and the places of its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples import points
from perceivers.core.block_config import Axis
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentAxis, LatentsConfig, ProcessorConfig
from perceivers.data import Arrays, Idx, Table, Texts
from perceivers.modalities import Image, Label, Numbers, PointSet, Records, Text
from perceivers.modalities.fields import CategoryField, Field, NumberField
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

DIAMONDS = ("cut", "color", "clarity")
"""Categories of a diamond; its other columns are numbers."""


@dataclass(frozen=True)
class Task:
    """A task, its score, and the axes along which its inputs have places."""

    title: str
    """Title in the tables."""
    recipe: Recipe
    """Recipe with the paper's block; the number of steps is set by the time that a step takes."""
    score: tuple[str, str]
    """Output and metric that are compared."""
    higher: bool
    """True: a higher score is better."""
    axes: tuple[Axis, ...] = ()
    """Axes of the inputs' coordinates, with the wavelengths for rotary positions."""
    places: tuple[LatentAxis, ...] = ()
    """Grid of places for the latents along these axes."""
    asked_at: bool = False
    """True: the output's queries have coordinates along these axes too."""
    positions: tuple[str, ...] = ()
    """Fields that set position features, which rotary positions may replace."""
    taken_from: tuple[str, str] | None = None
    """Input from whose tokens latents may be taken, and the rule."""


def bytes_task(folder: Path) -> Task:
    """Return masked language modelling on 128 bytes of Python's documentation."""
    length, axis = 128, "index"
    text = Text(length=length, channels=128, mask_words=0.15, mask_at_eval=True, axis_names=(axis,))
    restored = Text(key="text", length=length, channels=128, of="text", tied=False, unmasked_loss_weight=0.1)
    return Task(
        "masked bytes",
        Recipe(
            data=Texts(
                folder=str(folder / "documents"),
                length=length,
                held_out_every=10,
                num_training=100_000,
                num_held_out=1000,
            ),
            schema=Schema({"text": text}, {"restored": restored}),
            config=paper_config(num_latents=32),
            training=training(batch_size=32, shuffle=False),
        ),
        score=("restored", "bits_per_token"),
        higher=False,
        axes=(Axis(axis, 4.0, 512.0),),
        places=(LatentAxis(axis, 0.0, float(length), 32),),
        asked_at=True,
        positions=("schema.inputs.text.positions",),
        taken_from=("text", "strided"),
    )


def fashion(folder: Path) -> Task:
    """Return the classification of Fashion-MNIST, a token for each of 784 pixels."""
    image = Image(
        size=28,
        channels=1,
        positions=Fourier(num_bands=8, max_resolution=28),
        value_range=(0.0, 255.0),
        axis_names=("y", "x"),
    )
    return Task(
        "Fashion-MNIST",
        Recipe(
            data=Idx(folder=str(folder / "fashion-mnist")),
            schema=Schema({"image": image}, {"label": Label(classes=points.NAMES)}),
            config=paper_config(num_latents=36),
            training=training(batch_size=64),
        ),
        score=("label", "accuracy"),
        higher=True,
        axes=pixels(),
        places=grid(28, 6),
        positions=("schema.inputs.image.positions",),
        taken_from=("image", "strided"),
    )


def diamonds(folder: Path) -> Task:
    """Return the price of a diamond from nine columns, three of which are categories."""
    fields: dict[str, Field] = {name: CategoryField() for name in DIAMONDS}
    fields |= {name: NumberField() for name in ("carat", "depth", "table", "x", "y", "z")}
    row = Records(key="*", fields=fields, tokens="field", max_records=1)
    return Task(
        "diamonds (table)",
        Recipe(
            data=Table(file=str(folder / "diamonds.csv")),
            schema=Schema({"row": row}, {"price": Numbers(count=1)}),
            config=paper_config(num_latents=16, channels=64),
            training=training(batch_size=128),
        ),
        score=("price", "r2"),
        higher=True,
    )


def pictures(folder: Path) -> Task:
    """Return the grey of 128 pixels of a picture, from 78 others, a set of points."""
    known = PointSet(
        axes=2,
        channels=1,
        bounds=((0.0, 27.0), (0.0, 27.0)),
        mean=(73.0,),
        std=(90.0,),
        positions=Fourier(num_bands=14, max_resolution=28),
        axis_names=("y", "x"),
    )
    return Task(
        "pictures from points",
        Recipe(
            data=Arrays(str(folder / "points/train.npz"), str(folder / "points/test.npz")),
            schema=Schema({"known": known}, {"asked": known}),
            config=paper_config(num_latents=36, channels=64),
            training=training(batch_size=32),
        ),
        score=("asked", "rmse"),
        higher=False,
        axes=pixels(),
        places=grid(28, 6),
        asked_at=True,
        positions=("schema.inputs.known.positions", "schema.outputs.asked.positions"),
        taken_from=("known", "farthest"),
    )


TASKS: dict[str, Callable[[Path], Task]] = {
    "bytes": bytes_task,
    "fashion": fashion,
    "diamonds": diamonds,
    "points": pictures,
}
"""Tasks by name; each takes the folder of the data."""


def paper_config(num_latents: int, channels: int = 128) -> Config:
    """Return the paper's block at a small size: four layers; one head in both cross-attentions."""
    return Config(
        latents=LatentsConfig(num_latents=num_latents, channels=channels),
        encoder=EncoderConfig(),
        processor=ProcessorConfig(num_layers=4, num_heads=4),
        decoder=DecoderConfig(),
    )


def training(batch_size: int, shuffle: bool = True) -> TrainingConfig:
    """Return AdamW with a cosine, the same for all tasks; rate and number of steps are set for each run."""
    return TrainingConfig(
        batch_size=batch_size,
        shuffle=shuffle,
        optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.05, max_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        checkpoint_every=200,
        accelerator="cpu",
    )


def pixels() -> tuple[Axis, ...]:
    """Return the axes of a picture, with wavelengths from two pixels to four times its side."""
    return tuple(Axis(name, 2.0, 112.0) for name in ("y", "x"))


def grid(side: int, count: int) -> tuple[LatentAxis, ...]:
    """Return `count` x `count` places over a square picture."""
    return tuple(LatentAxis(name, 0.0, float(side), count) for name in ("y", "x"))
