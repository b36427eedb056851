"""AudioSet: sounds and pictures of a clip to all the labels that fit (paper section C, Table 10).

`perceivers train sounds --out runs/sounds --set data.folder=SPOKEN_DIGITS`: who says which digit while which one is
shown, from samples and pixels; `sounds-mel`: from a log-mel spectrogram and pixels. 5 minutes each on two cores; expect
nearly all speakers, most digits said, and nothing of the digit shown, whose moving picture takes longer to learn.
`audioset-paper`, `audioset-mel-paper`: the paper's runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.positions import Fourier
from perceivers.data import AudioSet, DataSet, SpokenDigits
from perceivers.data.dataset import evenly
from perceivers.data.published.clip_windows import Clips
from perceivers.data.published.spoken_digits import GROUPS
from perceivers.media.html_report import Report
from perceivers.modalities import Audio, Labels, Spectrogram, Video
from perceivers.schema import Record, Schema
from perceivers.schema.preset import Preset
from perceivers.tasks.published import published
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import SHOWN, add_losses, add_scores, predict
from perceivers.training.metrics import Scores, answers, gathered, scored
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.plots import draw_samples
from perceivers.training.sampler import evaluation_batches
from perceivers.training.training_config import TrainingConfig

FRAMES, SIDE, SAMPLES, CLASSES = 32, 224, 61440, 527

CLIPS = 1_700_000
"""Of the training part, which the paper passes over 100 times."""

BATCH = 64
"""Records of a batch in evaluation."""

SMALL_STEPS = 5000
"""Of the small recipes, 5 minutes."""

COUNTED = 500
"""Training records, at equal distances, in which labels are counted."""


def audioset(channels: int = 512, original: bool = False, mel: bool = False) -> Preset:
    """Sound, raw or as a mel spectrogram, and video into 512 latents of this width.

    `original`: the mean of the latents instead of a query.
    """
    config = published(
        (512, channels), layers=12, decoder=DecoderConfig(join="pad", kind="average" if original else "query")
    )
    # The paper does not say how many bands the sound's positions have; they change no count below the common width.
    # Of the spectrogram it tells the number of tokens alone, 4,800: 60 steps of 80 bands are ours.
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


def paper(channels: int = 512, mel: bool = False) -> Recipe:
    """100 passes over the clips, a window of 32 frames at a time, 16 windows averaged in evaluation (paper).

    Ours, where the paper is silent: batch, LAMB and its rate, cosine, decay, clipping, mean and spread of spectrograms.
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
    """Three labels at once: digit said, speaker, digit shown. All sizes are ours."""
    num_steps, batch_size = SMALL_STEPS, 16
    data = SpokenDigits(num_training=num_steps * batch_size, shown="any")
    raw = Audio(
        size=data.samples,
        patch=32,
        positions=Fourier(num_bands=32),
        mean=(0.0,),  # measured, as all six
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
"""By name on the command line."""


def further_scores(run: Path) -> dict[str, Scores]:
    """Scores of whole clips, the mean over their windows; and of how often labels occur, a rival that never looks."""
    recipe, model = load_run(run)
    training, held_out = recipe.data.training(), recipe.data.held_out()
    logits, fitting = gathered(answers(model, recipe.schema, held_out))["labels"]
    chances, truth = by_clip(recipe.data, logits.sigmoid(), fitting)
    frequency = label_frequency(recipe.schema, training).expand_as(chances)
    return {
        "whole clips": {"labels": label_scores(recipe, chances, truth)},
        "frequency of labels": {"labels": label_scores(recipe, frequency, truth)},
    }


def by_clip(
    data: DataSet, chances: Float[Tensor, "n classes"], truth: Int[Tensor, "n classes"]
) -> tuple[Float[Tensor, "clips classes"], Int[Tensor, "clips classes"]]:
    """The mean of a clip's windows, which follow one another (paper: 16); other records are clips themselves."""
    windows = data.windows if isinstance(data, Clips) else 1
    return chances.unflatten(0, (-1, windows)).mean(dim=1), truth[::windows]


def label_frequency(schema: Schema, records: Sequence[Record]) -> Float[Tensor, "1 classes"]:
    """In what part of the records each label occurs."""
    batches = evaluation_batches(schema, evenly(records, COUNTED), BATCH)
    return torch.cat([batch["targets"]["labels"] for batch in batches]).mean(dim=0, keepdim=True)


def label_scores(
    recipe: Recipe, chances: Float[Tensor, "n classes"], truth: Int[Tensor, "n classes"]
) -> dict[str, float]:
    """The output's own metrics; of spoken digits also how often the most probable label of a group is the right one."""
    scores = scored(recipe.schema.outputs, [("labels", (chances, truth))])["labels"]
    if isinstance(recipe.data, SpokenDigits):
        names = label_names(recipe)
        for group, members in GROUPS.items():
            own = [names.index(name) for name in members]
            scores[f"{group}, accuracy"] = float((chances[:, own].argmax(1) == truth[:, own].argmax(1)).float().mean())
    return scores


def label_names(recipe: Recipe) -> Sequence[str]:
    """Names of the labels, by number."""
    spec = recipe.schema.outputs["labels"]
    assert isinstance(spec, Labels)
    if isinstance(recipe.data, AudioSet):
        return recipe.data.names()
    return [str(number) for number in range(spec.classes)] if isinstance(spec.classes, int) else spec.classes


def report(run: Path) -> Path:
    """Scores, and some held-out clips with their labels, those that fit and those that are most probable."""
    recipe, model = load_run(run)
    page = Report(f"Sounds and pictures to labels: run {run.name}")
    add_scores(page, run)
    held_out, names = recipe.data.held_out(), label_names(recipe)
    batch, predictions = predict(model.cpu(), recipe.schema, evenly(held_out, SHOWN))
    page.heading("Held-out clips")
    page.figure(draw_samples(recipe.schema, {**batch, "targets": {}}, {}), "What is heard and seen.")
    rows = {}
    for number, logits in enumerate(predictions["labels"].float()):
        fitting = batch["targets"]["labels"][number].nonzero()[:, 0].tolist()
        chances, likely = logits.sigmoid().topk(min(SHOWN, len(logits)))
        told = [f"{names[n]} {chance:.2f}" for n, chance in zip(likely.tolist(), chances.tolist(), strict=True)]
        rows[f"clip {number + 1}"] = [", ".join(names[n] for n in fitting), ", ".join(told)]
    page.table(["", "labels", "most probable"], rows)
    add_losses(page, run)
    return page.write(run / "report.html")
