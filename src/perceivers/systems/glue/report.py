"""The report of a run on GLUE."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from perceivers.media.html_report import Report
from perceivers.modalities import Label
from perceivers.modalities.modality import Modality
from perceivers.runs.report import add_losses, add_score_table, subplots
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.training.metrics import Compared, answers, gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BATCH, SHOWN = 128, 12
"""Number of records in an evaluation batch; number of sentences of a task in the report."""


def report(run: Run) -> Path:
    """Write scores with those of the baselines, and for each output sentences, and true against predicted values."""
    recipe, model = run.recipe, run.model
    page = Report(f"GLUE: run {run.folder.name}")
    add_score_table(page, run)
    held_out = run.held_out
    for name, compared in gathered(answers(model, recipe.schema, held_out)).items():
        records = [record for record in held_out if name in record]
        add_answers(page, name, recipe.schema.outputs[name], records, compared)
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def add_answers(page: Report, name: str, spec: Modality, records: Sequence[Record], compared: Compared) -> None:
    """Add some sentences, and a table of true and predicted classes or a plot of true and predicted numbers."""
    predictions, truth = compared
    page.heading(f"{name}, held out")
    chosen = range(0, len(records), max(len(records) // SHOWN, 1))[:SHOWN]
    rows = {records[i]["text"]: [shown(spec, truth[i]), shown(spec, predictions[i])] for i in chosen}
    page.table(["text", "true", "predicted"], rows)
    if isinstance(spec, Label):
        pairs = Counter(zip(truth.tolist(), predictions.argmax(dim=-1).tolist(), strict=True))
        names = [spec.name_of(number) for number in range(spec.num_classes)]
        counts = {name: [str(pairs[row, column]) for column in range(len(names))] for row, name in enumerate(names)}
        page.table(["true (rows), predicted (columns)", *names], counts)
    else:
        page.figure(cloud(truth, predictions), "Held-out records: true value across, predicted value upwards.")


def shown(spec: Modality, value: Tensor) -> str:
    """Return a value as text: the name of a class, the most probable class with its probability, or a number."""
    if not isinstance(spec, Label):
        return f"{float(value):.2f}"
    if value.ndim == 0:
        return spec.name_of(int(value))
    ((name, probability),) = spec.ranking(value, 1)
    return f"{name} ({probability:.0%})"


def cloud(truth: Float[Tensor, " n"], predicted: Float[Tensor, " n"]) -> "Figure":
    """Draw true and predicted numbers as points."""
    figure, ((axes,),) = subplots(1, ["true, predicted"], side=5.0)
    axes.plot(truth.numpy(), predicted.numpy(), ".", alpha=0.3)
    axes.axline((float(truth.mean()), float(truth.mean())), slope=1, color="0.6")
    return figure
