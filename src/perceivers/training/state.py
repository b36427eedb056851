"""All that a run must remember, in one object, and the checkpoints that hold it."""

import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.storage import (
    check_folder,
    load_tensors,
    load_weights,
    read_json,
    save_model,
    save_tensors,
    write_folder,
)

KEPT = 2
"""How many checkpoints of a run stay."""

OPTIMISER, STATE = "optimiser.safetensors", "state.json"


@dataclass
class TrainingState:
    """Weights, the optimiser's moments, and the number of steps made; everything else follows from seed and step."""

    model: PerceiverIO
    """What learns."""
    optimiser: torch.optim.Optimizer
    """How it learns."""
    step: int = 0
    """Steps made."""

    def save(self, run: Path) -> None:
        """Write a checkpoint, which is also a model folder; then drop the oldest ones."""

        def write(folder: Path) -> None:
            save_model(self.model, folder)
            save_tensors(folder / OPTIMISER, self._moments())
            (folder / STATE).write_text(json.dumps({"step": self.step}) + "\n")

        write_folder(run / "checkpoints" / f"step-{self.step:08d}", write)
        for folder in checkpoints(run)[KEPT:]:
            shutil.rmtree(folder)

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same recipe; ValueError if it does not fit."""
        load_weights(self.model, load_tensors(folder / "model.safetensors"), str(folder))
        moments = load_tensors(folder / OPTIMISER)
        state: dict[int, dict[str, Tensor]] = {}
        for number, name in enumerate(self._parameter_names()):
            prefix = f"{name}/"
            found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            if found:
                state[number] = found
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step = _step(folder)

    def _moments(self) -> dict[str, Tensor]:
        names = self._parameter_names()
        state: dict[int, dict[str, Any]] = self.optimiser.state_dict()["state"]
        return {f"{names[number]}/{key}": value for number, own in state.items() for key, value in own.items()}

    def _parameter_names(self) -> list[str]:
        # The optimiser numbers parameters in the order of its groups.
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optimiser.param_groups for parameter in group["params"]]


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; None if there is none. A damaged one is passed over with a warning."""
    for folder in checkpoints(run):
        try:
            check_folder(folder)
            return folder
        except ValueError as error:
            warnings.warn(f"passing over a checkpoint: {error}", stacklevel=2)
    return None


def _step(folder: Path) -> int:
    state = read_json(folder / STATE)
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"{folder / STATE}: step {step!r} is not a number of steps")
    return step
