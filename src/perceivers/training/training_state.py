"""The state of a run, which a checkpoint saves and restores."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.files.durable import to_disk
from perceivers.files.durable_folder import STATE, remove_folder, write_folder
from perceivers.files.tensor_files import is_finite, load_shards, save_tensors, shard_name
from perceivers.pretrained.model_folder import WEIGHTS, load_weights, save_description
from perceivers.training.checkpoints import CHECKPOINTS, KEPT, checkpoints, diverged, read_state, validation_score
from perceivers.training.losses import Objective

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TRAINING = "training.safetensors"
"""File of a checkpoint that only training needs: moments, learned loss weights and, next to averages, the weights."""

Tensors = dict[str, Tensor]
"""Tensors by name."""


@dataclass
class TrainingState:
    """The state of a run after a step; everything else follows from seed and step."""

    model: PerceiverIO
    """The model that is trained."""
    optimiser: torch.optim.Optimizer
    """The optimiser, with its moments."""
    fabric: "Fabric"
    """The processes of the run; under 16-mixed its precision plugin holds the loss scale."""
    extra_parameters: Mapping[str, nn.Parameter]
    """Parameters that are learned in addition to the model, by name."""
    average: Tensors
    """Running averages of the parameters by name; empty if the run keeps none."""
    decay: float = 0.0
    """Decay of the averages."""
    step: int = 0
    """Number of steps made."""
    seconds: float = 0.0
    """Time of these steps, over all starts of the run."""
    checkpoint: Path | None = None
    """The last checkpoint that was loaded or saved: it is complete and finite."""

    @classmethod
    def start(
        cls, objective: Objective, optimiser: torch.optim.Optimizer, fabric: "Fabric", decay: float | None
    ) -> "TrainingState":
        """Return the state before the first step."""
        model = objective.model
        average = {name: p.detach().clone() for name, p in model.named_parameters()} if decay is not None else {}
        return cls(model, optimiser, fabric, objective.extra_parameters, average, decay or 0.0)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averages towards the weights; faster at first, so that the initial weights are forgotten."""
        if self.average:
            decay = min(self.decay, self.step / (self.step + 9))
            weights: list[Tensor] = [parameter for _, parameter in self.model.named_parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averaged weights, if there are any, within the context."""
        trained = {name: self.model.get_parameter(name).detach().clone() for name in self.average}
        self.set_parameters(self.average)
        try:
            yield
        finally:
            self.set_parameters(trained)

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into parameters, by name."""
        # A state_dict holds the shards even after a forward pass, when the modules' attributes are gathered tensors.
        parameters = self.model.state_dict(keep_vars=True)
        for name, value in values.items():
            parameters[name].copy_(value)

    def check_finite(self, loss: float) -> None:
        """Raise a ValueError in all processes unless `loss` and the state are finite in every process."""
        finite = {
            "loss of the new weights is": math.isfinite(loss),
            "weights are": is_finite(self.model.state_dict().values()),
            "averaged weights are": is_finite(self.average.values()),
            "learned weights of the losses are": is_finite(self.extra_parameters.values()),
            "moments of the optimiser are": is_finite(self._moments().values()),
        }
        bad = torch.tensor([not good for good in finite.values()], dtype=torch.int, device=self.fabric.device)
        for what, processes in zip(finite, self.fabric.all_reduce(bad, reduce_op="sum").tolist(), strict=True):
            if processes:
                raise diverged(self.step, f"the {what} not finite", self.checkpoint)

    def save(self, run: Path, loss: float, score: float | None = None) -> Path:
        """Write a checkpoint, which is also a model folder; then remove all but the newest and the best ones.

        Every process must call it. `score` is the validation loss, which is lowest for the best checkpoint; `loss` is
        any loss of the weights to be saved. ValueError, and no checkpoint, if the loss or the state is not finite.
        """
        # Refuse a state that is not finite; then the first process writes the folder, and the others their shards.
        self.check_finite(loss)
        target = run / CHECKPOINTS / f"step-{self.step:08d}"
        if self.fabric.is_global_zero:
            state = {"step": self.step, "seconds": self.seconds, "score": score, "scale": self._precision.state_dict()}

            def write(folder: Path) -> None:
                save_description(self.model, folder)
                (folder / STATE).write_text(json.dumps(state) + "\n")
                self._write_tensors(self.fabric.broadcast(folder))

            if target.exists():  # a broken checkpoint, which was skipped on loading
                remove_folder(target)
            write_folder(target, write)
            # Remove all checkpoints but the newest and the best.
            folders = checkpoints(run)
            for folder in set(folders[KEPT:]) - {min(folders, key=validation_score)}:
                remove_folder(folder)
        else:
            self._write_tensors(self.fabric.broadcast(target))
        self.fabric.barrier()
        self.checkpoint = target
        return target

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same recipe; ValueError if it does not fit."""
        weights, training = load_shards(folder / WEIGHTS), load_shards(folder / TRAINING)
        # Averages and weights. A model folder holds the averages where there are any; the weights are under "weight/".
        current = self.model.state_dict()
        for name in self.average.keys() & weights.keys():
            self.average[name] = placed(weights[name], self.average[name])
        raw = weights | _under("weight/", training)
        full = {name: placed(value, current[name]) if name in current else value for name, value in raw.items()}
        load_weights(self.model, full, str(folder))
        # Learned loss weights and moments, then steps, time and loss scale.
        self._load_extra(_under("extra/", training) or _under("beside/", training))
        self._load_moments(_under("moment/", training))
        state = read_state(folder)
        self.step, self.seconds = state["step"], state["seconds"]
        self._load_scale(state["scale"], folder)
        self.checkpoint = folder

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision

    def _write_tensors(self, folder: Path) -> None:
        """Write tensors to files: the first process writes all of them, or each process its shards."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        raw = self.model.state_dict()
        weight = {f"weight/{name}": raw[name] for name in self.average}
        moments = {f"moment/{name}": value for name, value in self._moments().items()}
        extra = {f"extra/{name}": value for name, value in self.extra_parameters.items()}
        for name, tensors in ((WEIGHTS, raw | self.average), (TRAINING, weight | extra | moments)):
            if sharded:
                pieces = {k: v.to_local() for k, v in tensors.items() if isinstance(v, DTensor)}
                whole = {k: v for k, v in tensors.items() if not isinstance(v, DTensor)} if rank == 0 else {}
                path = shard_name(folder / name, rank, world)
                save_tensors(path, pieces | whole)
                to_disk(path)  # the process that wrote a file must flush it
            elif rank == 0:
                save_tensors(folder / name, tensors)
        self.fabric.barrier()

    def _moments(self) -> Tensors:
        names = self._parameter_names()
        state: dict[int, dict[str, Any]] = self.optimiser.state_dict()["state"]
        return {f"{names[number]}/{key}": value for number, moments in state.items() for key, value in moments.items()}

    @torch.no_grad()
    def _load_extra(self, values: Tensors) -> None:
        if values.keys() != self.extra_parameters.keys():
            names = f"{sorted(values)}, the recipe {sorted(self.extra_parameters)}"
            raise ValueError(f"the checkpoint has learned loss weights {names}")
        for name, parameter in self.extra_parameters.items():
            parameter.copy_(placed(values[name], parameter))

    def _load_moments(self, moments: Tensors) -> None:
        parameters = dict(self._parameters())
        state: dict[int, Tensors] = {}
        for number, name in enumerate(self._parameter_names()):
            if of_parameter := _under(f"{name}/", moments):
                parameter = parameters[name]
                state[number] = {k: placed(v, parameter) if v.ndim else v for k, v in of_parameter.items()}
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})

    def _load_scale(self, scale: Mapping[str, float], folder: Path) -> None:
        if missing := self._precision.state_dict().keys() - scale.keys():
            raise ValueError(f"{folder / STATE}: scale: lacks {', '.join(sorted(missing))}")
        self._precision.load_state_dict(scale)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *self.extra_parameters.items()]

    def _parameter_names(self) -> list[str]:
        # The optimiser numbers parameters in the order of its groups.
        names = {id(parameter): name for name, parameter in self._parameters()}
        return [names[id(parameter)] for group in self.optimiser.param_groups for parameter in group["params"]]


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor, moved to the device of `like` and sharded as `like` is."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
