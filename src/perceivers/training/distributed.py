"""The processes of a run: how they start, what each holds, what they agree on."""

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

from perceivers.core.attention import CrossAttention, SelfAttention
from perceivers.files.durable import make_folder, sweep
from perceivers.files.locks import try_lock
from perceivers.training.devices import TRAINING, available_devices, best_device
from perceivers.training.signals import end_with_parent
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")

STARTER = "PERCEIVERS_STARTER"
"""Environment variable by which the process that starts the others of its run tells them its number."""


@contextmanager
def launched(config: TrainingConfig) -> Iterator["Fabric"]:
    """Let the processes of a run work together for the time of a context; afterwards each is alone again.

    Nothing made within may hold DDP's reducer on leaving: were it the last holder of its process group, it would wait
    for gloo's thread while it has Python's lock, which that thread may wait for. The frames of an error let it go here.
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
    """Start the processes of a run, or join those that torchrun or SLURM started."""
    from lightning.fabric import Fabric  # an extra, and slow to import
    from lightning.fabric.strategies import ModelParallelStrategy

    local, nodes = started(config.devices)
    world = local * nodes
    config.check_processes(world)
    if config.shard_model and world == 1:
        warnings.warn("shard_model = True has no effect on one process", stacklevel=3)
    device = device_kind(config)
    settings: dict[str, Any] = {"accelerator": device, "devices": local, "num_nodes": nodes}
    settings |= _precision(config.precision, device)
    if world > 1:
        sharded = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
        settings["strategy"] = sharded if config.shard_model else _replicated()
    fabric = Fabric(**settings)
    end_with_starter()
    os.environ[STARTER] = str(os.getpid())
    try:
        fabric.launch()
    finally:
        del os.environ[STARTER]
    return fabric


def end_with_starter() -> None:
    """Make this process end with the one that started it, if that is a process of the same run or torchrun.

    Otherwise a process whose run is gone before they found each other would wait half an hour for it.
    """
    starter = os.environ.pop(STARTER, None)
    if starter is not None or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    if starter is not None and os.getppid() != int(starter):
        raise SystemExit(1)  # it is gone already


def started(devices: int) -> tuple[int, int]:
    """Processes of this machine and number of machines, as torchrun or SLURM says, else `devices` and 1."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env["SLURM_NNODES"])
        return int(env["SLURM_NTASKS"]) // nodes, nodes
    return devices, 1


def device_kind(config: TrainingConfig) -> str:
    """Return the accelerator asked for, or the best there is; ValueError for one that this machine lacks."""
    if config.accelerator != "auto":
        here = available_devices()
        if not here[config.accelerator]:
            there = ", ".join(name for name, is_there in here.items() if is_there)
            raise ValueError(f"accelerator = {config.accelerator} cannot be used here: auto, {there}")
        return config.accelerator
    return best_device(TRAINING)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Spread parameters over the processes: those of each attention block together, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for layer in module.modules():
        if isinstance(layer, CrossAttention | SelfAttention):
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def agreed(fabric: "Fabric", act: Callable[[], T]) -> T:
    """Return in all processes what the first finds; what it raises of a user's mistake or of files ends all of them."""
    found: T | Exception | None = None
    if fabric.is_global_zero:
        try:
            found = act()
        except (ValueError, OSError) as error:
            found = error
    found = fabric.broadcast(found)
    if isinstance(found, Exception):
        raise found
    return cast(T, found)


@contextmanager
def only_user(run: Path, fabric: "Fabric") -> Iterator[None]:
    """Keep other trainings from a run folder (ValueError if one uses it), and remove what killed ones left.

    The lock is not passed on to the workers of its holder.
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
        """DDP that is not surprised if all parameters are used: one never is, and so it warns of nothing."""

        def setup_module(self, module: nn.Module) -> nn.Module:
            module.never_used = nn.Parameter(torch.zeros((), device=self.root_device))
            return super().setup_module(module)

    # An input or output may be missing from a whole batch: its parameters then have no gradient.
    return Replicated(find_unused_parameters=True)


def _precision(name: Any, device: str) -> dict[str, Any]:
    from lightning.fabric.plugins import DoublePrecision, MixedPrecision

    class Mixed(MixedPrecision):
        """Leaves the batch alone: coordinates in 16 bits would be too coarse."""

        def convert_input(self, data: Any) -> Any:
            return data

    class Double(DoublePrecision):
        """Leaves the losses alone: their means over parts and processes are taken in 64 bits too."""

        def convert_output(self, data: Any) -> Any:
            return data

    if name.endswith("-mixed"):
        return {"plugins": [Mixed(name, device)]}
    return {"plugins": [Double()]} if name == "64-true" else {"precision": name}
