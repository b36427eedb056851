"""The published systems: each has a folder, and a line in SYSTEMS."""

from perceivers.runs.evaluate import Scorer, UntrainedBaselines
from perceivers.runs.presets import Published
from perceivers.runs.system import System, Task
from perceivers.systems import (
    audioset,
    digits,
    glue,
    imagenet,
    language,
    leads,
    multimodal,
    optical_flow,
    shapes,
    spikes,
    starcraft,
    streams,
)

SYSTEMS: tuple[System, ...] = (
    digits.SYSTEM,
    language.SYSTEM,
    glue.SYSTEM,
    imagenet.SYSTEM,
    optical_flow.SYSTEM,
    multimodal.SYSTEM,
    audioset.SYSTEM,
    starcraft.SYSTEM,
    spikes.SYSTEM,
    leads.SYSTEM,
    streams.SYSTEM,
    shapes.SYSTEM,
)
"""All systems: the smallest first, those of the paper in its order, then others."""

TASKS: dict[str, Task] = {name: task for system in SYSTEMS for name, task in system.tasks.items()}
"""All tasks by name on the command line."""

PRESETS: dict[str, Published] = {name: model for system in SYSTEMS for name, model in system.presets.items()}
"""All published models by name."""

SCORERS: dict[str, Scorer] = {name: scorer for system in SYSTEMS for name, scorer in system.scorers.items()}
"""Scorers for data sets whose records cannot be batched, by `DataSet.scorer`."""

UNTRAINED_BASELINES: dict[str, UntrainedBaselines] = {
    kind: baselines for system in SYSTEMS for kind, baselines in system.untrained_baselines.items()
}
"""Baselines that need no training, by the modality (`kind`) of the output that they predict."""
