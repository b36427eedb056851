"""Scores of a model on other data than its own: MPI Sintel for one that learned from AutoFlow, a later year's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import AnyDataSet
from perceivers.data.sifting import read_held_out
from perceivers.modalities import Flow
from perceivers.schema import Schema
from perceivers.tasks.flow_training import scores_elsewhere as flow_scores
from perceivers.training.evaluation import Scores, evaluate


@dataclass(frozen=True)
class DataSets:
    """What a YAML or JSON file of other data holds."""

    data: Mapping[str, AnyDataSet]
    """Data sets by name."""


def scores_elsewhere(model: PerceiverIO, data_sets: Mapping[str, AnyDataSet]) -> dict[str, Scores]:
    """Scores on the held-out records of each; of optical flow as the paper has them, beside the rivals'."""
    schema = cast(Schema, model.schema)
    scores: dict[str, Scores] = {}
    for name, data in data_sets.items():
        records = read_held_out(data, schema)
        if any(isinstance(spec, Flow) for spec in schema.outputs.values()):
            scores |= {f"{name}, {by}": own for by, own in flow_scores(model, schema, records).items()}
        else:
            scores[name] = evaluate(model, records)
    return scores
