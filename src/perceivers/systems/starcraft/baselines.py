"""Baselines for masked unit types and for statistics: frequencies and means over the training games."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.data.published.starcraft_replays import PLAYERS
from perceivers.modalities import Records
from perceivers.runs.run import Run
from perceivers.schema import Batch, Record, Schema
from perceivers.training.metrics import Scores, guess_scores
from perceivers.training.sampler import evaluation_batches

BATCH = 128
"""Number of records in an evaluation batch."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return scores of type frequencies, and of mean statistics at each time, on the held-out records of a run."""
    recipe = run.recipe
    return baselines(recipe.schema, run.training, run.held_out)


def baselines(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Return the scores of each baseline by the metrics of the outputs; the same types are masked as for the model."""
    counts, means = type_counts(fitted, training), time_means(training)

    def frequent(batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Predict the types by their frequencies in the training games."""
        types = counts.expand(*batch["inputs"]["units"]["mask"].shape, -1)
        return {"hidden": {"type": types.float()}}

    def frequent_of_player(batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Predict the types by their frequencies among the unmasked units of the same player and snapshot."""
        units = batch["inputs"]["units"]
        types = F.one_hot(units["type"].clamp(min=0), len(counts)) * (units["type"] >= 0)[..., None]
        owners = F.one_hot(units["owner"].clamp(min=0), max(PLAYERS) + 1) * units["mask"][..., None]
        by_owner = torch.einsum("bmo,bmt->bot", owners.float(), types.float())
        return {"hidden": {"type": torch.einsum("bmo,bot->bmt", owners.float(), by_owner)}}

    # Take the times from the records, since batches lack them; batches come in the order of the records.
    times = (record["time"] for record in held_out)

    def at_time(batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Predict the statistics by their means at the nearest time of the training games."""
        batch_times = list(islice(times, len(batch["targets"]["statistics"]["mask"])))
        nearest = [means[min(means, key=lambda time: abs(time - snapshot))] for snapshot in batch_times]
        return {"statistics": {name: torch.tensor([[mean[name]] for mean in nearest]) for name in nearest[0]}}

    guesses = {
        "most frequent type": frequent,
        "most frequent type of the player's others": frequent_of_player,
        "means at the same time": at_time,
    }
    batches = evaluation_batches(fitted, held_out, BATCH)
    return {baseline: guess_scores(fitted, batches, guess) for baseline, guess in guesses.items()}


def type_counts(fitted: Schema, records: Iterable[Record]) -> Int[Tensor, " types"]:
    """Return the number of units of each type."""
    spec = fitted.outputs["hidden"]
    assert isinstance(spec, Records)
    types = [spec.fields["type"].preprocess(record["units"]["type"]) for record in records]
    return torch.from_numpy(np.concatenate(types)).bincount(minlength=spec.fields["type"].num_outputs)


def time_means(records: Iterable[Record]) -> dict[float, dict[str, float]]:
    """Return the means of the statistics over the snapshots of each time."""
    groups: dict[float, list[Mapping[str, float]]] = defaultdict(list)
    for record in records:
        groups[record["time"]].append(record["statistics"])
    return {
        time: {name: float(np.mean([statistics[name] for statistics in group])) for name in group[0]}
        for time, group in groups.items()
    }
