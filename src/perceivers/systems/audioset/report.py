"""The report of a run on AudioSet or on spoken digits."""

from pathlib import Path

from perceivers.data.dataset import evenly
from perceivers.media.html_report import Report
from perceivers.runs.report import SHOWN, add_losses, add_score_table, predict
from perceivers.runs.run import Run
from perceivers.systems.audioset.baselines import label_names
from perceivers.training.plots import draw_samples


def report(run: Run) -> Path:
    """Write scores, and some held-out clips with their true and their most probable labels."""
    recipe, model = run.recipe, run.model
    page = Report(f"Sounds and pictures to labels: run {run.folder.name}")
    add_score_table(page, run)
    held_out, names = run.held_out, label_names(recipe)
    batch, predictions = predict(model.cpu(), recipe.schema, evenly(held_out, SHOWN))
    page.heading("Held-out clips")
    page.figure(draw_samples(recipe.schema, {**batch, "targets": {}}, {}), "Sound and pictures of the clips.")
    rows = {}
    for number, logits in enumerate(predictions["labels"].float()):
        true = batch["targets"]["labels"][number].nonzero()[:, 0].tolist()
        chances, likely = logits.sigmoid().topk(min(SHOWN, len(logits)))
        predicted = [f"{names[n]} {chance:.2f}" for n, chance in zip(likely.tolist(), chances.tolist(), strict=True)]
        rows[f"clip {number + 1}"] = [", ".join(names[n] for n in true), ", ".join(predicted)]
    page.table(["", "true labels", "most probable labels"], rows)
    add_losses(page, run)
    return page.write(run.folder / "report.html")
