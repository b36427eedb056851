"""Scores of a run, and of a model on other data sets, such as MPI Sintel for one trained on AutoFlow."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import AnyDataSet, DataSet
from perceivers.data.fingerprint import differences, fingerprint
from perceivers.data.validation import read_held_out
from perceivers.runs.recipe import changed_schema
from perceivers.runs.run import Run, read_kept_data
from perceivers.schema import Record, Schema, kind_name
from perceivers.training.metrics import Scores, evaluate

Scorer = Callable[[PerceiverIO, Sequence[Record], Schema], Scores]
"""Function that scores a model on records."""

UntrainedBaselines = Callable[[Sequence[Record], Schema], dict[str, Scores]]
"""Function that scores baselines that need no training on records, by name."""


@dataclass(frozen=True)
class DataSets:
    """The content of a YAML or JSON file with other data sets."""

    data: Mapping[str, AnyDataSet]
    """Data sets by name."""


def scorer_for(data: DataSet, scorers: Mapping[str, Scorer]) -> Scorer:
    """Return the scorer of a data set: `evaluate`, in batches, unless the data set names one of the scorers.

    Raise a ValueError if it names another one.
    """
    if data.scorer is None:
        return evaluate
    if data.scorer not in scorers:
        raise ValueError(f"{type(data).__name__} needs the scorer {data.scorer}: pass one of that name")
    return scorers[data.scorer]


def evaluate_run(run: Run, scorers: Mapping[str, Scorer] | None = None) -> dict[str, Scores]:
    """Return scores of a run's best checkpoint (without validation, the newest) on held-out records, by evaluation.

    Warn if other records were held out when the run began: it may have been trained on some of these.
    """
    recipe, held_out = run.recipe, run.held_out
    # Compare the held-out records with those at the beginning of the run, unless it was just trained.
    if run.parts is None and (kept := read_kept_data(run.folder)):
        what = differences(kept["parts"], {"held out": fingerprint(recipe.data, recipe.schema, held_out)})
        if what:
            warnings.warn(f"the data of {run.folder} have changed since it began ({what})", stacklevel=2)
    # Score them under the recipe's schema and under those of its further evaluations.
    schemas = {"held out": recipe.schema}
    schemas |= {name: changed_schema(recipe.schema, changes) for name, changes in recipe.evaluations.items()}
    score = scorer_for(recipe.data, scorers or {})
    return {name: score(run.model, held_out, schema) for name, schema in schemas.items()}


def scores_elsewhere(
    model: PerceiverIO,
    data_sets: Mapping[str, AnyDataSet],
    scorers: Mapping[str, Scorer],
    baselines: Mapping[str, UntrainedBaselines],
) -> dict[str, Scores]:
    """Return scores of a model and of baselines on the held-out records of each data set.

    `baselines` are by modality of the output that they predict; those for the model's outputs are scored.
    """
    schema, scores = cast(Schema, model.schema), dict[str, Scores]()
    kinds = {kind_name(spec) for spec in schema.outputs.values()}
    for name, data in data_sets.items():
        records = read_held_out(data, schema)
        scores[name] = scorer_for(data, scorers)(model, records, schema)
        for kind in filter(kinds.__contains__, baselines):
            scores |= {f"{name}, {baseline}": score for baseline, score in baselines[kind](records, schema).items()}
    return scores
