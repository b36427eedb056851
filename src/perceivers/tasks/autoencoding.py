"""Training video, sound and label through one set of latents (paper section 4.3, I), and rivals.

`perceivers train autoencode --out runs/autoencode --set data.folder=SPOKEN_DIGITS`: spoken digits with moving pictures
of the same digit, 20 minutes on two cores; `autoencode-2x`, `autoencode-4x`: half and a quarter of the latents, five
minutes each. Expect 98 digits of 100 to be told when the label is not shown, films that can be recognised, and no sound
yet (docs/results.md). `kinetics-paper`, `kinetics-paper-2x`, `kinetics-paper-4x`: the paper's runs, 784, 392 and 196
latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.positions import Fourier
from perceivers.data import DataSet, Kinetics, SpokenDigits
from perceivers.data.dataset import evenly
from perceivers.data.published.clip_windows import Clips
from perceivers.media.audio_files import write_audio
from perceivers.media.drawing import show_image
from perceivers.media.html_report import Report
from perceivers.media.video_files import Clip, write_video
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.grid import Grid
from perceivers.schema import Batch, Record, Schema
from perceivers.tasks.multimodal import multimodal
from perceivers.tasks.recipe import Recipe, changed_schema, load_run
from perceivers.tasks.report import SHOWN, add_losses, add_scores, predict
from perceivers.training.metrics import Scores, guess_scores
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.sampler import evaluation_batches
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERIES = 512
"""Pixels, and samples of sound, that a training example is asked for (paper)."""

UNSEEN = "label unseen"
"""The evaluation that counts: what kind of clip it is, told from picture and sound alone."""

EVALUATIONS = {UNSEEN: {"label": {"mask_prob": 1.0, "mask_at_eval": True}}}
"""Beside the one that sees it."""

BATCH = 64
"""Records of a batch of a rival."""

SMALL_BATCH = 16
"""Records of a step of the small recipes."""

PLAYED_SIDE = 128
"""Pixels to which smaller films are enlarged."""

FITTED = 4096
"""Training records, at equal distances, that a rival is fitted to at most."""

FITTED_VALUES = 1 << 28
"""Values of records that a rival is fitted to at most."""

CODED = ("image", "audio")
"""What a rival writes beside the class."""

Values = Mapping[str, Any]
"""Raw outputs by name."""


def paper(num_latents: int = 784) -> Recipe:
    """The released model on Kinetics-700-2020: batch 1024, rate 1e-3, losses 0.03, 1 and 0.0001 (paper).

    Ours, where the paper is silent: LAMB, 100,000 steps, cosine, decay and clipping as elsewhere in the paper.
    """
    preset = multimodal(num_latents)
    as_is = {"mean": (0.0,), "std": (1.0,)}  # values come from 0 or -1 to 1: there is nothing to fit
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
            memory_limit=2000,
        ),
        evaluations=EVALUATIONS,
    )


def small(num_latents: int = 32, num_steps: int = 16_000) -> Recipe:
    """Of 12,288 pixels and samples 32 latents keep a sixth, as the paper's 784 do; all weights and sizes are ours."""
    data = SpokenDigits(num_training=num_steps * SMALL_BATCH)
    film, sound = (data.frames, data.side, data.side), data.samples
    image = Video(
        size=film,
        channels=1,
        patch=(1, 8, 8),
        positions=Fourier(num_bands=8),
        mean=(0.077,),  # measured, as the other three
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
"""By name on the command line."""


def further_scores(run: Path) -> dict[str, Scores]:
    """What a run's held-out clips are to the mean of the training clips, and to PCA with as many numbers as latents."""
    recipe, _ = load_run(run)
    assert isinstance(recipe.config, Config)
    numbers = recipe.config.latents.num_latents * recipe.config.latents.channels
    return rivals(recipe.schema, recipe.data.training(), recipe.data.held_out(), numbers)


def rivals(schema: Schema, training: Sequence[Record], held_out: Sequence[Record], numbers: int) -> dict[str, Scores]:
    """Scores of both, beside the most frequent class; fitted to at most FITTED training records."""
    from sklearn.decomposition import PCA

    size = sum(np.size(held_out[0][name]) for name in CODED)
    fitted = evenly(training, min(FITTED, max(FITTED_VALUES // size, 2)))
    parts = [batch["targets"] for batch in evaluation_batches(schema, fitted, BATCH)]
    rows = np.concatenate([rows_of(schema, part) for part in parts])
    pca = PCA(min(numbers, len(rows)), svd_solver="full").fit(rows)
    label = schema.outputs["label"]
    assert isinstance(label, Label)
    classes = torch.cat([part["label"] for part in parts]).bincount(minlength=label.num_classes).float()

    def mean(batch: Batch) -> dict[str, Tensor]:
        targets = batch["targets"]
        same = np.broadcast_to(pca.mean_, (len(targets["label"]), len(pca.mean_)))
        return {**grids_of(schema, same, targets), "label": classes.expand(len(same), -1)}

    def coded(batch: Batch) -> dict[str, Tensor]:
        targets = batch["targets"]
        return grids_of(schema, pca.inverse_transform(pca.transform(rows_of(schema, targets))), targets)

    guesses = {"mean clip, most frequent class": mean, f"PCA, {pca.n_components_} numbers": coded}
    batches = evaluation_batches(schema, held_out, BATCH)
    return {rival: guess_scores(schema, batches, guess) for rival, guess in guesses.items()}


def rows_of(schema: Schema, targets: Values) -> Float[np.ndarray, "b n"]:
    """Pictures and sound of each clip in one row, in the units that losses have."""
    return torch.cat([grid_of(schema, name).normalise(targets[name]).flatten(1) for name in CODED], dim=1).numpy()


def grids_of(schema: Schema, rows: Float[np.ndarray, "b n"], targets: Values) -> dict[str, Tensor]:
    """The same back in the shapes of the targets, in the data's units."""
    sizes = [targets[name][0].numel() for name in CODED]
    parts = torch.from_numpy(rows.astype(np.float32)).split(sizes, dim=1)
    return {
        name: grid_of(schema, name).denormalise(part.view_as(targets[name]))
        for name, part in zip(CODED, parts, strict=True)
    }


def grid_of(schema: Schema, name: str) -> Grid:
    """An output that is a grid."""
    spec = schema.outputs[name]
    assert isinstance(spec, Grid)
    return spec


def report(run: Path) -> Path:
    """Scores beside the rivals', held-out clips beside what was written of them; both also as files, to play."""
    recipe, model = load_run(run)
    page = Report(f"Video, sound and label: run {run.name}")
    add_scores(page, run)
    unseen = changed_schema(recipe.schema, recipe.evaluations[UNSEEN])
    shown = evenly(recipe.data.held_out(), SHOWN)
    batch, predictions = predict(model.cpu(), unseen, shown)
    folder = write_clips(run / "reconstructed", recipe.data, batch["targets"], predictions)
    page.heading("Held-out clips, the label unseen")
    drawn = draw_clips(unseen, batch["targets"], predictions)
    page.figure(drawn, f"True frames and sound above, written ones below; the class. To play them: {folder.name}/.")
    add_losses(page, run)
    return page.write(run / "report.html")


def draw_clips(schema: Schema, true: Values, written: Values) -> "Figure":
    """A row for each clip: frames, true above written; waves, likewise and of one scale; the most probable classes."""
    from matplotlib.figure import Figure

    count = len(true["label"])
    figure = Figure(figsize=(12, 2 * count), layout="constrained")
    for row, (frames, wave, label) in enumerate(figure.subplots(count, 3, squeeze=False, width_ratios=[8, 4, 2])):
        films = [np.concatenate(list(side["image"][row].numpy()), axis=1) for side in (true, written)]
        show_image(frames, np.concatenate(films), (0.0, 1.0))
        sounds = [side["audio"][row, :, 0].numpy() for side in (true, written)]
        full = float(max(np.abs(sound).max() for sound in sounds))
        for place, sound in enumerate(sounds):
            wave.plot(sound - 2 * full * place, linewidth=0.4, color=f"C{place}")
        wave.set_axis_off()
        schema.outputs["label"].picture(label, written["label"][row])
        label.set_title(f"true: {int(true['label'][row])}", fontsize=9)
    return figure


def write_clips(folder: Path, data: DataSet, true: Values, written: Values) -> Path:
    """N-true.mp4 and .wav, N-written.mp4 and .wav of each clip of a batch."""
    assert isinstance(data, SpokenDigits | Clips)
    for side, batch in (("true", true), ("written", written)):
        for number, (film, sound) in enumerate(zip(batch["image"].numpy(), batch["audio"].numpy(), strict=True)):
            times = max(PLAYED_SIDE // film.shape[1], 1)
            frames = (film.clip(0, 1) * 255).round().astype(np.uint8).repeat(times, 1).repeat(times, 2)
            clip = Clip(np.broadcast_to(frames, (*frames.shape[:3], 3)), data.fps, sound.clip(-1, 1), data.rate)
            write_video(folder / f"{number}-{side}.mp4", clip)
            write_audio(folder / f"{number}-{side}.wav", sound, data.rate)
    return folder
