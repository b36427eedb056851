"""The processes of a run: launching them, sharding the model, agreeing on results."""

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed
from torch import nn

from perceivers.core.blocks import CrossAttention, SelfAttention
from perceivers.files.durable import make_folder, sweep
from perceivers.files.locks import try_lock
from perceivers.training.devices import TRAINING, available_devices, best_device
from perceivers.training.signals import end_with_parent
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")

STARTER = "PERCEIVERS_STARTER"
"""Environment variable with the process id of the process that starts the others of its run."""


@contextmanager
def launched(config: TrainingConfig) -> Iterator["Fabric"]:
    """Launch the processes of a run and yield their Fabric; at the end destroy the process group.

    No reference to the DDP module may survive the context. If DDP's reducer were the last holder of the process group,
    its destructor would wait for gloo's thread while holding the GIL, which that thread may be waiting for: a deadlock.
    For the same reason the frames of an error, which refer to the module, are cleared.
    """
    fabric = launch(config)
    try:
        yield fabric
    except BaseException as error:
        if torch.distributed.is_initialized():
            traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def launch(config: TrainingConfig) -> "Fabric":
    """Start the processes of a run, or join those that torchrun or SLURM started; return their Fabric."""
    from lightning.fabric import Fabric  # an extra, and slow to import
    from lightning.fabric.strategies import ModelParallelStrategy

    # Number of processes, and the device of each.
    local, nodes = started(config.devices)
    world = local * nodes
    config.check_processes(world)
    if config.shard_model and world == 1:
        warnings.warn("shard_model = True has no effect on one process", stacklevel=3)
    device = device_kind(config)
    # Precision, and the strategy: DDP, or FSDP2 if the model is sharded.
    settings: dict[str, Any] = {"accelerator": device, "devices": local, "num_nodes": nodes}
    settings |= _precision(config.precision, device)
    if world > 1:
        sharded = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
        settings["strategy"] = sharded if config.shard_model else _replicated()
    fabric = Fabric(**settings)
    # Processes that Fabric starts run this function again, up to here, and find the starter in their environment.
    end_with_starter()
    os.environ[STARTER] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[STARTER]
    return fabric


def end_with_starter() -> None:
    """Make this process end with its parent, if the parent is torchrun or a process of the same run.

    Otherwise a process whose run died before the process group was formed would wait for the group for half an hour.
    """
    starter = os.environ.pop(STARTER, None)
    if starter is not None or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    if starter is not None and os.getppid() != int(starter):
        raise SystemExit(1)  # the starter is gone already


def started(devices: int) -> tuple[int, int]:
    """Return the numbers of local processes and of machines: those of torchrun or SLURM, else `devices` and 1."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env["SLURM_NNODES"])
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return devices, 1


def device_kind(config: TrainingConfig) -> str:
    """Return the configured accelerator, or the best one for "auto"; ValueError for one that this machine lacks."""
    if config.accelerator != "auto":
        available = available_devices()
        if not available[config.accelerator]:
            names = ", ".join(name for name, is_available in available.items() if is_available)
            raise ValueError(f"accelerator = {config.accelerator} cannot be used here: auto, {names}")
        return config.accelerator
    return best_device(TRAINING)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard the parameters over the processes: each attention block as one group, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in module.modules():
        if isinstance(layer, CrossAttention | SelfAttention):
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def agreed(fabric: "Fabric", act: Callable[[], T]) -> T:
    """Call a function in the first process and return its result in all; a ValueError or OSError is raised in all."""
    result: T | Exception | None = None
    if fabric.is_global_zero:
        try:
            result = act()
        except (ValueError, OSError) as error:
            result = error
    result = fabric.broadcast(result)
    if isinstance(result, Exception):
        raise result
    return cast(T, result)


@contextmanager
def only_user(run: Path, fabric: "Fabric") -> Iterator[None]:
    """Lock a run folder against other trainings and remove the temporary files of killed ones.

    Raise a ValueError if another training uses the folder. Worker processes do not inherit the lock.
    """
    make_folder(run / "checkpoints")
    with (run / "checkpoints" / ".lock").open("w") as file:
        free = fabric.broadcast(try_lock(file) if fabric.is_global_zero else True)
        if not free:
            raise ValueError(f"{run} is in use by another training")
        if fabric.is_global_zero:
            sweep(run)
            sweep(run / "checkpoints")
        yield


def _replicated() -> Any:
    from lightning.fabric.strategies import DDPStrategy

    class Replicated(DDPStrategy):
        """DDP with one parameter that is never used: DDP would warn if it searched for unused ones and found none."""

        def setup_module(self, module: nn.Module) -> nn.Module:
            module.never_used = nn.Parameter(torch.zeros((), device=self.root_device))
            return super().setup_module(module)

    # An input or output may be missing from a whole batch: then its parameters have no gradient.
    return Replicated(find_unused_parameters=True)


def _precision(name: Any, device: str) -> dict[str, Any]:
    from lightning.fabric.plugins import DoublePrecision, MixedPrecision

    class Mixed(MixedPrecision):
        """Mixed precision that does not convert the batch: coordinates in 16 bits would be too coarse."""

        def convert_input(self, data: Any) -> Any:
            return data

    class Double(DoublePrecision):
        """Double precision that does not convert the losses: their means are taken in 64 bits too."""

        def convert_output(self, data: Any) -> Any:
            return data

    if name.endswith("-mixed"):
        return {"plugins": [Mixed(name, device)]}
    return {"plugins": [Double()]} if name == "64-true" else {"precision": name}
