"""Scores of a model on a data set: its own, or another, as MPI Sintel for one that learned from AutoFlow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import AnyDataSet, DataSet, FlowPairs
from perceivers.data.validation import read_held_out
from perceivers.modalities import Flow
from perceivers.schema import Record, Schema
from perceivers.tasks.flow_scores import rivals, score_in_tiles, scores_of
from perceivers.training.metrics import Scores, evaluate

Scorer = Callable[[PerceiverIO, Sequence[Record], Schema], Scores]


@dataclass(frozen=True)
class DataSets:
    """What a YAML or JSON file of other data holds."""

    data: Mapping[str, AnyDataSet]
    """Data sets by name."""


def scorer_for(data: DataSet) -> Scorer:
    """What scores records of this data set: photographed pairs, which have any size, in tiles; others in batches."""
    return score_in_tiles if isinstance(data, FlowPairs) else evaluate


def scores_elsewhere(model: PerceiverIO, data_sets: Mapping[str, AnyDataSet]) -> dict[str, Scores]:
    """Scores on the held-out records of each; of optical flow beside the rivals'."""
    schema, scores = cast(Schema, model.schema), dict[str, Scores]()
    for name, data in data_sets.items():
        records = read_held_out(data, schema)
        scores[name] = scorer_for(data)(model, records, schema)
        if any(isinstance(spec, Flow) for spec in schema.outputs.values()):
            found = scores_of(rivals(), records, schema)
            scores |= {f"{name}, {rival}": own for rival, own in found.items()}
    return scores
