"""The report of a run on clips, which also writes clips as files to play."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perceivers.data import DataSet
from perceivers.data.dataset import evenly
from perceivers.media.audio_files import write_audio
from perceivers.media.drawing import show_image
from perceivers.media.html_report import Report
from perceivers.media.video_files import Clip, write_video
from perceivers.runs.recipe import changed_schema
from perceivers.runs.report import SHOWN, add_losses, add_score_table, predict
from perceivers.runs.run import Run
from perceivers.schema import Schema
from perceivers.systems.multimodal.baselines import Values
from perceivers.systems.multimodal.recipes import UNSEEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAYED_SIDE = 128
"""Side in pixels that smaller films are enlarged to."""


def report(run: Run) -> Path:
    """Write scores with those of the baselines, and held-out clips with reconstructions, also as files to play."""
    recipe, model = run.recipe, run.model
    page = Report(f"Video, sound and label: run {run.folder.name}")
    add_score_table(page, run)
    unseen = changed_schema(recipe.schema, recipe.evaluations[UNSEEN])
    shown = evenly(run.held_out, SHOWN)
    batch, predictions = predict(model.cpu(), unseen, shown)
    folder = write_clips(run.folder / "reconstructed", recipe.data, batch["targets"], predictions)
    page.heading("Held-out clips, the label unseen")
    drawn = draw_clips(unseen, batch["targets"], predictions)
    page.figure(drawn, f"True frames and sound above, reconstructed ones below; class. Files to play: {folder.name}/.")
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_clips(schema: Schema, true: Values, written: Values) -> "Figure":
    """Draw a row for each clip: frames, true above reconstructed; waves likewise, on one scale; probable classes."""
    from matplotlib.figure import Figure

    count = len(true["label"])
    figure = Figure(figsize=(12, 2 * count), layout="constrained")
    for row, (frames, wave, label) in enumerate(figure.subplots(count, 3, squeeze=False, width_ratios=[8, 4, 2])):
        films = [np.concatenate(list(side["image"][row].numpy()), axis=1) for side in (true, written)]
        show_image(frames, np.concatenate(films), (0.0, 1.0))
        sounds = [side["audio"][row, :, 0].numpy() for side in (true, written)]
        full = float(max(np.abs(sound).max() for sound in sounds))
        for number, sound in enumerate(sounds):
            wave.plot(sound - 2 * full * number, linewidth=0.4, color=f"C{number}")
        wave.set_axis_off()
        schema.outputs["label"].picture(label, written["label"][row])
        label.set_title(f"true: {int(true['label'][row])}", fontsize=9)
    return figure


def write_clips(folder: Path, data: DataSet, true: Values, written: Values) -> Path:
    """Write N-true.mp4 and .wav, and N-written.mp4 and .wav, for clip N of a batch."""
    for side, batch in (("true", true), ("written", written)):
        for number, (film, sound) in enumerate(zip(batch["image"].numpy(), batch["audio"].numpy(), strict=True)):
            times = max(PLAYED_SIDE // film.shape[1], 1)
            frames = (film.clip(0, 1) * 255).round().astype(np.uint8).repeat(times, 1).repeat(times, 2)
            clip = Clip(np.broadcast_to(frames, (*frames.shape[:3], 3)), data.fps, sound.clip(-1, 1), data.rate)
            write_video(folder / f"{number}-{side}.mp4", clip)
            write_audio(folder / f"{number}-{side}.wav", sound, data.rate)
    return folder
