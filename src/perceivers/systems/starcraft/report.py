"""The report of a run on StarCraft II."""

from pathlib import Path

from perceivers.media.html_report import Report
from perceivers.modalities import Records
from perceivers.runs.recipe import load_run
from perceivers.runs.report import SHOWN, add_losses, add_scores, predict


def report(run: Path) -> Path:
    """Write scores, the baselines', and what is predicted for the hidden types of some snapshots."""
    recipe, model = load_run(run)
    page = Report(f"StarCraft II: run {run.name}")
    add_scores(page, run)
    held_out = recipe.data.held_out()
    batch, predictions = predict(model.cpu(), recipe.schema, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
    page.heading("Hidden types: true, written")
    spec = recipe.schema.outputs["hidden"]
    assert isinstance(spec, Records)
    kind = spec.fields["type"]
    rows = zip(batch["targets"]["hidden"]["type"], predictions["hidden"]["type"], strict=True)
    for number, (truth, logits) in enumerate(rows, start=1):
        hidden = kind.known(truth)
        both = zip(truth[hidden], logits[: len(truth)][hidden], strict=True)
        told = "; ".join(f"{kind.show(true)}, {kind.show(written)}" for true, written in both)
        page.text(f"Snapshot {number}: {told}")
    add_losses(page, run)
    return page.write(run / "report.html")
