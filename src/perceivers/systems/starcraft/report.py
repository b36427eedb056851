"""The report of a run on StarCraft II."""

from pathlib import Path

from perceivers.media.html_report import Report
from perceivers.modalities import Records
from perceivers.runs.report import SHOWN, add_losses, add_score_table, predict
from perceivers.runs.run import Run


def report(run: Run) -> Path:
    """Write scores with those of the baselines, and the predictions for the masked types of some snapshots."""
    recipe, model = run.recipe, run.model
    page = Report(f"StarCraft II: run {run.folder.name}")
    add_score_table(page, run)
    held_out = run.held_out
    batch, predictions = predict(model.cpu(), recipe.schema, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
    page.heading("Masked types: true, predicted")
    spec = recipe.schema.outputs["hidden"]
    assert isinstance(spec, Records)
    field = spec.fields["type"]
    snapshots = zip(batch["targets"]["hidden"]["type"], predictions["hidden"]["type"], strict=True)
    for number, (truth, logits) in enumerate(snapshots, start=1):
        masked = field.known(truth)
        pairs = zip(truth[masked], logits[: len(truth)][masked], strict=True)
        line = "; ".join(f"{field.show(true)}, {field.show(predicted)}" for true, predicted in pairs)
        page.text(f"Snapshot {number}: {line}")
    add_losses(page, run)
    return page.write(run.folder / "report.html")
