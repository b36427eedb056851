"""GLUE: fine-tuning on one task or on several at once (paper section 4.1 and F.4, Tables 1, 2 and 14).

`perceivers train glue-sst-2 --out runs/sst-2 --set data.folder=glue`, and `glue-cola`, `glue-sts`, `glue-vader`: one
task, asked with one trained query; 5 minutes on two cores, from scratch or `--from RUN` of the small byte model.
`glue-shared-token`, `glue-task-tokens`, `glue-task-queries`: CoLA, SST-2 and STS at once, as Table 2 compares them.

`glue-paper-cola` ... `glue-paper-sts`, and the three ways for all eight tasks (`glue-paper-task-queries`): the paper's,
to be started `--from` the byte model. It takes the best of batches of 16, 32 and 64 and rates of 1e-4, 5e-5, 2e-5 and
1e-5: `--set training.batch_size=16 training.optimiser.learning_rate=1e-4 training.num_steps=...`, 10 epochs in steps.
Ours, where the paper is silent: the cosine after the warm-up, no clipping, how two sentences are joined
(data/published/glue_tables.py),
truncation, tasks drawn by their sizes and of equal weight, and that tokens are asked with themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.data import Glue
from perceivers.data.published.glue_tables import CLASSES, RATING, Task
from perceivers.media.html_report import Report
from perceivers.modalities import Label, Numbers, Text
from perceivers.modalities.kind import Kind
from perceivers.modalities.label import class_number
from perceivers.modalities.row import RowKind
from perceivers.schema import Record, Schema, find_kind
from perceivers.tasks import language_training
from perceivers.tasks.language import language
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import add_losses, add_scores, subplots
from perceivers.training.loop import TrainingConfig
from perceivers.training.metrics import Compared, Scores, answers, gathered, scored
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Variant = Literal["shared-token", "task-tokens", "task-queries"]
"""What asks for a task: one token before the text, the same for all; a token of its own; a trained query of its own."""

EXAMPLES: dict[Task, int] = {
    "cola": 8551,
    "mnli": 392_702,
    "mrpc": 3668,
    "qnli": 104_743,
    "qqp": 363_846,
    "rte": 2490,
    "sst_2": 67_349,
    "sts": 5749,
}
"""How many GLUE has to learn from."""

MIXED: tuple[Task, ...] = ("cola", "sst_2", "sts")
"""What the small recipes learn at once."""

METRICS = {"cola": "matthews", "sts": "pearson"}
"""What counts for a task in GLUE's average; for others "accuracy" (paper F.4)."""

BATCH, SHOWN = 128, 12
"""Records of a batch in evaluation; sentences of a task in the report."""


def glue_schema(tasks: Sequence[Task], text: Text, variant: Variant = "task-queries") -> Schema:
    """A text in; for each task a head of two layers with tanh, behind whatever asks for it."""
    prefix = {"shared-token": 1, "task-tokens": len(tasks), "task-queries": 0}[variant]
    outputs: dict[str, Kind] = {}
    for number, task in enumerate(tasks):
        asked: dict[str, Any] = {"query_channels": text.channels, "hidden_channels": text.channels}
        outputs |= task_outputs(task, asked | ({"of": "text", "token": number % prefix} if prefix else {}))
    return Schema({"text": replace(text, prefix=prefix)}, outputs)


def task_outputs(task: Task, asked: dict[str, Any]) -> dict[str, RowKind]:
    """A class, a score, or both (VADER); its metrics are GLUE's."""
    if task == "sts":
        return {task: Numbers(further_metrics=("pearson",), **asked)}
    label = Label(classes=CLASSES[task], **asked)
    if task == "vader":
        return {task: label, RATING: Numbers(further_metrics=("pearson",), **asked)}
    if task == "cola":
        return {task: replace(label, further_metrics=("matthews",))}
    return {task: replace(label, further_metrics=("f1",)) if task in ("mrpc", "qqp") else label}


def paper(tasks: Sequence[Task], variant: Variant = "task-queries") -> Recipe:
    """The paper's model and its 10 epochs, at one place of its grid."""
    preset, batch_size = language(), 32
    _, text = find_kind(preset.schema.inputs, Text)
    return Recipe(
        data=Glue(tasks=tuple(tasks)),
        schema=glue_schema(tasks, replace(text, mask_words=0.0, overflow="truncate"), variant),
        config=preset.config,
        training=TrainingConfig(
            num_steps=10 * sum(EXAMPLES[task] for task in tasks) // batch_size,
            batch_size=batch_size,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=5e-5, weight_decay=0.01, max_norm=None),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=200),
            num_workers=4,
        ),
    )


def small(tasks: Sequence[Task], variant: Variant = "task-queries", num_steps: int = 2500) -> Recipe:
    """The small byte model (`perceivers train language`), for as long as two cores need 5 minutes."""
    byte_model = language_training.small()
    text = language_training.text_of(byte_model.schema)
    text = replace(text, mask_words=0.0, mask_at_eval=False, overflow="truncate")
    return Recipe(
        data=Glue(tasks=tuple(tasks)),
        schema=glue_schema(tasks, text, variant),
        config=byte_model.config,
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=16,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=5e-4, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def called(task: Task) -> str:
    """Its name on the command line."""
    return task.replace("_", "-")


RECIPES: dict[str, Callable[[], Recipe]] = {
    **{f"glue-{called(task)}": partial(small, (task,)) for task in ("cola", "sst_2", "vader")},
    "glue-sts": partial(small, ("sts",), num_steps=1000),  # of 1,500 pairs, ten epochs
    **{f"glue-{variant}": partial(small, MIXED, variant) for variant in get_args(Variant)},
    **{f"glue-paper-{called(task)}": partial(paper, (task,)) for task in EXAMPLES},
    **{f"glue-paper-{variant}": partial(paper, tuple(EXAMPLES), variant) for variant in get_args(Variant)},
}
"""By name on the command line."""


def further_scores(run: Path) -> dict[str, Scores]:
    """Scores by file where a task has several, GLUE's average, and what rivals reach on the same records."""
    recipe, model = load_run(run)
    schema, data = recipe.schema, recipe.data
    assert isinstance(data, Glue)
    held_out = data.held_out()
    answered = gathered(answers(model, schema, held_out))
    by_file = file_scores(schema, answered, held_out)
    return by_file | {"GLUE": glue_scores(schema, answered, by_file)} | rivals(schema, data, held_out)


def file_scores(schema: Schema, answered: Mapping[str, Compared], records: Sequence[Record]) -> dict[str, Scores]:
    """Scores on each file of a task that has several: MNLI matched and mismatched, CoLA in and out of its domain."""
    scores: dict[str, Scores] = defaultdict(dict)
    for name, (predictions, truth) in answered.items():
        files = np.array([record["file"] for record in records if name in record])
        for file in dict.fromkeys(files) if len(set(files)) > 1 else ():
            own = torch.from_numpy(files == file)
            scores[str(file)] |= scored(schema.outputs, [(name, (predictions[own], truth[own]))])
    return scores


def glue_scores(schema: Schema, answered: Mapping[str, Compared], by_file: dict[str, Scores]) -> Scores:
    """What counts for each task, and the mean; MNLI's two files are averaged first."""
    counting: Scores = {}
    for name, own in scored(schema.outputs, answered.items()).items():
        metric = METRICS.get(name, "accuracy")
        if name == "mnli":
            whole = float(np.mean([scores[name][metric] for scores in by_file.values() if name in scores]))
            counting[name] = {metric: whole}
        elif name != RATING:
            counting[name] = {metric: own[metric]}
    mean = float(np.mean([value for own in counting.values() for value in own.values()]))
    return {**counting, "average": {"score": mean}}


def rivals(schema: Schema, data: Glue, held_out: Sequence[Record]) -> dict[str, Scores]:
    """Scores of the most frequent answer (of numbers the mean), and of a linear model of counted bytes."""
    training = replace(data, shares=None).training()
    scores: dict[str, Scores] = {"most frequent": {}, "bag of bytes": {}}
    for name, spec in schema.outputs.items():
        texts, targets = told(spec, name, training)
        held_texts, truth = told(spec, name, held_out)
        guess = most_frequent(spec, targets).expand(len(truth), -1).squeeze(dim=-1)
        # A constant has no correlation.
        plain = replace(spec, further_metrics=()) if isinstance(spec, Numbers) else spec
        scores["most frequent"] |= scored({name: plain}, [(name, (guess, truth))])
        counted = bag_of_bytes(spec, texts, targets, held_texts)
        scores["bag of bytes"] |= scored({name: spec}, [(name, (counted, truth))])
    return scores


def told(spec: Kind, name: str, records: Sequence[Record]) -> tuple[list[bytes], Tensor]:
    """Texts that have this target, and the targets."""
    known = [(record["text"].encode(), record[name]) for record in records if name in record]
    numbers = [class_number(value, spec.classes) if isinstance(spec, Label) else value for _, value in known]
    return [text for text, _ in known], torch.tensor(numbers)


def most_frequent(spec: Kind, targets: Tensor) -> Float[Tensor, " width"]:
    """Certainty of a class, or the mean."""
    if not isinstance(spec, Label):
        return targets.mean(dim=0, keepdim=True)
    return F.one_hot(targets.bincount().argmax(), spec.num_classes).float()


def bag_of_bytes(spec: Kind, texts: Sequence[bytes], targets: Tensor, asked: Sequence[bytes]) -> Tensor:
    """Logistic regression (of numbers, ridge regression) on weighted counts of one to three bytes in a row."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    counts = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), lowercase=False, sublinear_tf=True, encoding="latin-1"
    )
    linear = LogisticRegression(max_iter=1000) if isinstance(spec, Label) else Ridge()
    fitted = make_pipeline(counts, linear).fit(texts, targets.numpy())
    if not isinstance(spec, Label):
        return torch.from_numpy(fitted.predict(asked)).float()
    probabilities = torch.zeros(len(asked), spec.num_classes)
    probabilities[:, fitted.classes_] = torch.from_numpy(fitted.predict_proba(asked)).float()
    return probabilities


def report(run: Path) -> Path:
    """Scores beside the rivals', and of each output: sentences with truth and answer, and how they differ."""
    recipe, model = load_run(run)
    page = Report(f"GLUE: run {run.name}")
    add_scores(page, run)
    held_out = recipe.data.held_out()
    for name, compared in gathered(answers(model, recipe.schema, held_out)).items():
        records = [record for record in held_out if name in record]
        add_answers(page, name, recipe.schema.outputs[name], records, compared)
    add_losses(page, run)
    return page.write(run / "report.html")


def add_answers(page: Report, name: str, spec: Kind, records: Sequence[Record], compared: Compared) -> None:
    """Some sentences, and a table of true and written classes or a cloud of true and written numbers."""
    predictions, truth = compared
    page.heading(f"{name}, held out")
    chosen = range(0, len(records), max(len(records) // SHOWN, 1))[:SHOWN]
    rows = {records[i]["text"]: [shown(spec, truth[i]), shown(spec, predictions[i])] for i in chosen}
    page.table(["text", "true", "written"], rows)
    if isinstance(spec, Label):
        pairs = Counter(zip(truth.tolist(), predictions.argmax(dim=-1).tolist(), strict=True))
        names = [spec.name_of(number) for number in range(spec.num_classes)]
        counts = {own: [str(pairs[row, column]) for column in range(len(names))] for row, own in enumerate(names)}
        page.table(["true, in columns written", *names], counts)
    else:
        page.figure(cloud(truth, predictions), "Each held-out record: true across, written upwards.")


def shown(spec: Kind, value: Tensor) -> str:
    """A class by name, of probabilities the most probable one; a number."""
    if not isinstance(spec, Label):
        return f"{float(value):.2f}"
    if value.ndim == 0:
        return spec.name_of(int(value))
    ((name, probability),) = spec.ranking(value, 1)
    return f"{name} ({probability:.0%})"


def cloud(truth: Float[Tensor, " n"], written: Float[Tensor, " n"]) -> "Figure":
    """True and written numbers as points."""
    figure, ((axes,),) = subplots(1, ["true, written"], side=5.0)
    axes.plot(truth.numpy(), written.numpy(), ".", alpha=0.3)
    axes.axline((float(truth.mean()), float(truth.mean())), slope=1, color="0.6")
    return figure
