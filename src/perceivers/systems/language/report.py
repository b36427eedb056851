"""The report of a run of masked language modelling."""

from pathlib import Path

import torch

from perceivers.media.html_report import Report
from perceivers.modalities import Text
from perceivers.modalities.modality import sample_of
from perceivers.runs.report import add_losses, add_score_table, predict
from perceivers.runs.run import Run
from perceivers.systems.language.recipes import INPUT, OUTPUT

SHOWN = 8
"""Number of texts in a report."""


def report(run: Run) -> Path:
    """Write scores with those of the baselines, and some held-out texts: true, masked, and predicted."""
    recipe, model = run.recipe, run.model
    page = Report(f"Masked language modelling: run {run.folder.name}")
    add_score_table(page, run)
    batch, predictions = predict(model.cpu(), recipe.schema, run.held_out[:SHOWN])
    page.heading("Held-out texts: true, masked, predicted")
    spec = recipe.schema.outputs[OUTPUT]
    assert isinstance(spec, Text)
    for number in range(len(predictions[OUTPUT])):
        masked, target = (
            sample_of(batch[side][name], number) for side, name in (("inputs", INPUT), ("targets", OUTPUT))
        )
        predicted = torch.where(target["masked"], predictions[OUTPUT][number].argmax(dim=-1), target["ids"])
        samples = {"true": target, "masked": masked, "predicted": {**target, "ids": predicted}}
        page.verbatim("\n\n".join(f"{name}:\n{spec.marked(sample)}" for name, sample in samples.items()))
    add_losses(page, run)
    return page.write(run.folder / "report.html")
