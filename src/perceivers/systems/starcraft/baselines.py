"""Baselines of hidden unit types and of statistics: what the training games tell without looking."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from perceivers.data.published.starcraft_replays import PLAYERS
from perceivers.modalities import Records
from perceivers.runs.recipe import load_run
from perceivers.schema import Batch, Record, Schema
from perceivers.training.metrics import Scores, guess_scores
from perceivers.training.sampler import evaluation_batches

BATCH = 128
"""Records of a batch in evaluation."""


def baseline_scores(run: Path) -> dict[str, Scores]:
    """Return scores of the training games' most frequent types, and of their mean statistics at each time."""
    recipe, _ = load_run(run)
    return baselines(recipe.schema, recipe.data.training(), recipe.data.held_out())


def baselines(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Return the baselines' scores on held-out records by the outputs' own metrics; the same types are hidden."""
    counts, means = type_counts(fitted, training), time_means(training)

    def of_all(batch: Batch) -> dict[str, dict[str, Tensor]]:
        types = counts.expand(*batch["inputs"]["units"]["mask"].shape, -1)
        return {"hidden": {"type": types.float()}}

    def of_others(batch: Batch) -> dict[str, dict[str, Tensor]]:
        units = batch["inputs"]["units"]
        shown = F.one_hot(units["type"].clamp(min=0), len(counts)) * (units["type"] >= 0)[..., None]
        owner = F.one_hot(units["owner"].clamp(min=0), max(PLAYERS) + 1) * units["mask"][..., None]
        of_owner = torch.einsum("bmo,bmt->bot", owner.float(), shown.float())
        return {"hidden": {"type": torch.einsum("bmo,bot->bmt", owner.float(), of_owner)}}

    times = (record["time"] for record in held_out)

    def at_time(batch: Batch) -> dict[str, dict[str, Tensor]]:
        own = list(islice(times, len(batch["targets"]["statistics"]["mask"])))
        nearest = [means[min(means, key=lambda time: abs(time - one))] for one in own]
        return {"statistics": {name: torch.tensor([[mean[name]] for mean in nearest]) for name in nearest[0]}}

    guesses = {
        "most frequent type": of_all,
        "most frequent type of the player's others": of_others,
        "means at the same time": at_time,
    }
    batches = evaluation_batches(fitted, held_out, BATCH)
    return {baseline: guess_scores(fitted, batches, guess) for baseline, guess in guesses.items()}


def type_counts(fitted: Schema, records: Iterable[Record]) -> Int[Tensor, " types"]:
    """Count how often each type occurs."""
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
        time: {name: float(np.mean([one[name] for one in group])) for name in group[0]}
        for time, group in groups.items()
    }
