"""Everything that a run must remember, in one object, which a checkpoint saves."""

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
from perceivers.training.checkpoints import CHECKPOINTS, KEPT, checkpoints, diverged, read_state, score_of
from perceivers.training.losses import Objective

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TRAINING = "training.safetensors"
"""File of a checkpoint with what only training needs: moments, learned loss weights, weights behind averages."""

Tensors = dict[str, Tensor]
"""Tensors by name."""


@dataclass
class TrainingState:
    """State of a run after a step; everything else follows from seed and step."""

    model: PerceiverIO
    """Model that is trained."""
    optimiser: torch.optim.Optimizer
    """Update rule, with its moments."""
    fabric: "Fabric"
    """The processes; under 16-mixed its precision holds the scale of the loss."""
    beside: Mapping[str, nn.Parameter]
    """Parameters that are learned in addition to the model, by name."""
    average: Tensors
    """Running averages of the parameters by name; empty if the run keeps none."""
    decay: float = 0.0
    """Decay of the averages."""
    step: int = 0
    """Steps made."""
    seconds: float = 0.0
    """Time they took, over all starts."""
    checkpoint: Path | None = None
    """The last checkpoint that was loaded or saved: it is whole, and all of it is finite."""

    @classmethod
    def start(
        cls, objective: Objective, optimiser: torch.optim.Optimizer, fabric: "Fabric", decay: float | None
    ) -> "TrainingState":
        """Return the state before the first step."""
        model = objective.model
        average = {name: p.detach().clone() for name, p in model.named_parameters()} if decay is not None else {}
        return cls(model, optimiser, fabric, objective.own, average, decay or 0.0)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averages towards the weights; faster in the first steps, whose weights are soon to be forgotten."""
        if self.average:
            decay = min(self.decay, self.step / (self.step + 9))
            weights: list[Tensor] = [parameter for _, parameter in self.model.named_parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averaged weights, if there are any, for the time of a context."""
        own = {name: self.model.get_parameter(name).detach().clone() for name in self.average}
        self.set_parameters(self.average)
        try:
            yield
        finally:
            self.set_parameters(own)

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Put values into parameters by name."""
        # Unlike the modules' own attributes, these are the shards even after a forward pass, which gathers them.
        own = self.model.state_dict(keep_vars=True)
        for name, value in values.items():
            own[name].copy_(value)

    def check_finite(self, loss: float) -> None:
        """Raise a ValueError in all processes unless the state is finite in each, and its `loss` is."""
        found = {
            "loss of the new weights is": math.isfinite(loss),
            "weights are": is_finite(self.model.state_dict().values()),
            "averaged weights are": is_finite(self.average.values()),
            "learned weights of the losses are": is_finite(self.beside.values()),
            "moments of the optimiser are": is_finite(self._moments().values()),
        }
        bad = torch.tensor([not good for good in found.values()], dtype=torch.int, device=self.fabric.device)
        for what, processes in zip(found, self.fabric.all_reduce(bad, reduce_op="sum").tolist(), strict=True):
            if processes:
                raise diverged(self.step, f"the {what} not finite", self.checkpoint)

    def save(self, run: Path, loss: float, score: float | None = None) -> Path:
        """Write a checkpoint, also a model folder; then drop all but the newest and the best. Every process calls it.

        `score` is the validation loss: the lowest is the best. `loss`: any loss that the weights to be saved give.
        ValueError, and no checkpoint, if the loss or anything that the checkpoint would hold is not finite.
        """
        self.check_finite(loss)
        target = run / CHECKPOINTS / f"step-{self.step:08d}"
        if self.fabric.is_global_zero:
            state = {"step": self.step, "seconds": self.seconds, "score": score, "scale": self._precision.state_dict()}

            def write(folder: Path) -> None:
                save_description(self.model, folder)
                (folder / STATE).write_text(json.dumps(state) + "\n")
                self._write_tensors(self.fabric.broadcast(folder))

            if target.exists():  # it was passed over
                remove_folder(target)
            write_folder(target, write)
            found = checkpoints(run)
            for folder in set(found[KEPT:]) - {min(found, key=score_of)}:
                remove_folder(folder)
        else:
            self._write_tensors(self.fabric.broadcast(target))
        self.fabric.barrier()
        self.checkpoint = target
        return target

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of the same recipe; ValueError if it does not fit."""
        weights, training = load_shards(folder / WEIGHTS), load_shards(folder / TRAINING)
        own = self.model.state_dict()
        for name in self.average.keys() & weights.keys():
            self.average[name] = placed(weights[name], self.average[name])
        raw = weights | _under("weight/", training)
        placed_weights = {name: placed(value, own[name]) if name in own else value for name, value in raw.items()}
        load_weights(self.model, placed_weights, str(folder))
        self._load_beside(_under("beside/", training))
        self._load_moments(_under("moment/", training))
        state = read_state(folder)
        self.step, self.seconds = state["step"], state["seconds"]
        self._load_scale(state["scale"], folder)
        self.checkpoint = folder

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision

    def _write_tensors(self, folder: Path) -> None:
        """Write this process's files of tensors: the first writes all, or each its own pieces of sharded ones."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        raw = self.model.state_dict()
        weight = {f"weight/{name}": raw[name] for name in self.average}
        moments = {f"moment/{name}": value for name, value in self._moments().items()}
        beside = {f"beside/{name}": value for name, value in self.beside.items()}
        for name, tensors in ((WEIGHTS, raw | self.average), (TRAINING, weight | beside | moments)):
            if sharded:
                pieces = {k: v.to_local() for k, v in tensors.items() if isinstance(v, DTensor)}
                whole = {k: v for k, v in tensors.items() if not isinstance(v, DTensor)} if rank == 0 else {}
                path = shard_name(folder / name, rank, world)
                save_tensors(path, pieces | whole)
                to_disk(path)  # by the process that wrote it
            elif rank == 0:
                save_tensors(folder / name, tensors)
        self.fabric.barrier()

    def _moments(self) -> Tensors:
        names = self._parameter_names()
        state: dict[int, dict[str, Any]] = self.optimiser.state_dict()["state"]
        return {f"{names[number]}/{key}": value for number, own in state.items() for key, value in own.items()}

    @torch.no_grad()
    def _load_beside(self, values: Tensors) -> None:
        if values.keys() != self.beside.keys():
            raise ValueError(f"the checkpoint has {sorted(values)} beside the model, the recipe {sorted(self.beside)}")
        for name, parameter in self.beside.items():
            parameter.copy_(placed(values[name], parameter))

    def _load_moments(self, moments: Tensors) -> None:
        parameters = dict(self._parameters())
        state: dict[int, Tensors] = {}
        for number, name in enumerate(self._parameter_names()):
            if found := _under(f"{name}/", moments):
                parameter = parameters[name]
                state[number] = {k: placed(v, parameter) if v.ndim else v for k, v in found.items()}
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})

    def _load_scale(self, scale: Mapping[str, float], folder: Path) -> None:
        if missing := self._precision.state_dict().keys() - scale.keys():
            raise ValueError(f"{folder / STATE}: scale: lacks {', '.join(sorted(missing))}")
        self._precision.load_state_dict(scale)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *self.beside.items()]

    def _parameter_names(self) -> list[str]:
        # The optimiser numbers parameters in the order of its groups.
        names = {id(parameter): name for name, parameter in self._parameters()}
        return [names[id(parameter)] for group in self.optimiser.param_groups for parameter in group["params"]]


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, spread over the processes as `like` is."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
