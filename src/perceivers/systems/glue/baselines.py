"""Scores by file, GLUE's average, and two baselines: the most frequent answer, and a bag of bytes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.data import DataSet
from perceivers.data.published.glue_tables import RATING
from perceivers.modalities import Label, Numbers
from perceivers.modalities.label import class_number
from perceivers.modalities.modality import Modality
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.training.metrics import Compared, Scores, answers, gathered, scored

METRICS = {"cola": "matthews", "sts": "pearson"}
"""Metric of a task in GLUE's average; "accuracy" for the other tasks (paper F.4)."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return scores by file for tasks with several files, GLUE's average, and scores of the baselines."""
    schema, held_out = run.recipe.schema, run.held_out
    answered = gathered(answers(run.model, schema, held_out))
    by_file = file_scores(schema, answered, held_out)
    return by_file | {"GLUE": glue_scores(schema, answered, by_file)} | baselines(schema, run.recipe.data, held_out)


def file_scores(schema: Schema, answered: Mapping[str, Compared], records: Sequence[Record]) -> dict[str, Scores]:
    """Return scores by file for tasks with several: MNLI matched and mismatched, CoLA in-domain and out-of-domain."""
    scores: dict[str, Scores] = defaultdict(dict)
    for name, (predictions, truth) in answered.items():
        files = np.array([record["file"] for record in records if name in record])
        for file in dict.fromkeys(files) if len(set(files)) > 1 else ():
            in_file = torch.from_numpy(files == file)
            scores[str(file)] |= scored(schema.outputs, [(name, (predictions[in_file], truth[in_file]))])
    return scores


def glue_scores(schema: Schema, answered: Mapping[str, Compared], by_file: dict[str, Scores]) -> Scores:
    """Return the main score of each task, and the mean of these scores; MNLI's two files are averaged first."""
    main: Scores = {}
    for name, metrics in scored(schema.outputs, answered.items()).items():
        metric = METRICS.get(name, "accuracy")
        if name == "mnli":
            both = float(np.mean([scores[name][metric] for scores in by_file.values() if name in scores]))
            main[name] = {metric: both}
        elif name != RATING:
            main[name] = {metric: metrics[metric]}
    mean = float(np.mean([value for metrics in main.values() for value in metrics.values()]))
    return {**main, "average": {"score": mean}}


def baselines(schema: Schema, data: DataSet, held_out: Sequence[Record]) -> dict[str, Scores]:
    """Return scores of the most frequent answer (for numbers: the mean), and of a linear model on counts of bytes."""
    training = data.each_once().training()
    scores: dict[str, Scores] = {"most frequent": {}, "bag of bytes": {}}
    for name, spec in schema.outputs.items():
        texts, targets = labelled_texts(spec, name, training)
        held_texts, truth = labelled_texts(spec, name, held_out)
        guess = most_frequent(spec, targets).expand(len(truth), -1).squeeze(dim=-1)
        # Drop the correlation, which is not defined for a constant.
        plain = replace(spec, further_metrics=()) if isinstance(spec, Numbers) else spec
        scores["most frequent"] |= scored({name: plain}, [(name, (guess, truth))])
        predicted = bag_of_bytes(spec, texts, targets, held_texts)
        scores["bag of bytes"] |= scored({name: spec}, [(name, (predicted, truth))])
    return scores


def labelled_texts(spec: Modality, name: str, records: Sequence[Record]) -> tuple[list[bytes], Tensor]:
    """Return the texts of the records that have this target, and the targets."""
    known = [(record["text"].encode(), record[name]) for record in records if name in record]
    numbers = [class_number(value, spec.classes) if isinstance(spec, Label) else value for _, value in known]
    return [text for text, _ in known], torch.tensor(numbers)


def most_frequent(spec: Modality, targets: Tensor) -> Float[Tensor, " width"]:
    """Return the most frequent class as a one-hot vector or, for numbers, the mean."""
    if not isinstance(spec, Label):
        return targets.mean(dim=0, keepdim=True)
    return F.one_hot(targets.bincount().argmax(), spec.num_classes).float()


def bag_of_bytes(spec: Modality, texts: Sequence[bytes], targets: Tensor, test_texts: Sequence[bytes]) -> Tensor:
    """Predict for `test_texts` by logistic (for numbers: ridge) regression on TF-IDF of 1 to 3 adjacent bytes."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    counts = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), lowercase=False, sublinear_tf=True, encoding="latin-1"
    )
    linear = LogisticRegression(max_iter=1000) if isinstance(spec, Label) else Ridge()
    fitted = make_pipeline(counts, linear).fit(texts, targets.numpy())
    if not isinstance(spec, Label):
        return torch.from_numpy(fitted.predict(test_texts)).float()
    probabilities = torch.zeros(len(test_texts), spec.num_classes)
    probabilities[:, fitted.classes_] = torch.from_numpy(fitted.predict_proba(test_texts)).float()
    return probabilities
