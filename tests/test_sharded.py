"""Each process of a group reads a part of the inputs; outputs and gradients equal those of one process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, EncoderConfig, LatentAxis, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.label import Label
from perceivers.modalities.modality import Modality
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema

SIZES = {2: (4, 7), 4: (5, 0, 2, 4)}
"""Number of the 11 tokens that each process reads, by the number of processes; a process may have none."""

Parts = dict[str, Tensor]


KINDS = ("plain", "conditioned and rotary")


class Sharded(nn.Module):
    """A model that reads a part of the inputs and decodes from all of them; every process knows the condition."""

    def __init__(self, model: PerceiverIO, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.model, self.group = model, group

    def forward(self, vectors: Parts) -> Tensor:
        hours = {"hours": vectors["hours"]} if self.model.conditioning is not None else None
        start = None if hours is None else self.model.start(hours)
        reading = self.model.read({"vectors": points_of(vectors, self.model)}, start=start).all_reduce(self.group)
        return self.model.decode(self.model.process(reading))["label"].clone()  # not a view, of which FSDP would warn


def model(kind: str) -> PerceiverIO:
    torch.manual_seed(1)
    config = Config(
        LatentsConfig(num_latents=5, channels=14), EncoderConfig(num_heads=2), ProcessorConfig(7, num_layers=1)
    )
    inputs: dict[str, Modality] = {"vectors": Vectors(channels=5)}
    if kind != "plain":
        options: dict[str, Any] = {"rotary": Rotary((Axis("x", 0.3, 9.0),), share=1.0), "conditioned": True}
        config = Config(
            replace(config.latents, places=(LatentAxis("x", -1.0, 1.0, 5),)),
            replace(config.encoder, **options),
            replace(config.processor, **options),
        )
        inputs = {
            "vectors": PointSet(axes=1, channels=4, positions=None, axis_names=("x",)),
            "hours": Numbers(role="condition"),
        }
    made = PerceiverIO(Schema(inputs, {"label": Label(classes=3, query_channels=13)}), config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def vectors() -> Parts:
    torch.manual_seed(2)
    mask = torch.arange(11) < torch.tensor([[11], [3], [0], [8]])
    return {"values": torch.randn(4, 11, 5, dtype=torch.float64), "mask": mask, "hours": torch.randn(4, 1).double()}


def points_of(parts: Parts, made: PerceiverIO) -> Parts:
    """Return vectors, or points in their place, whose first number is the coordinate."""
    values, mask = parts["values"], parts["mask"]
    if made.conditioning is None:
        return {"values": values, "mask": mask}
    return {"coordinates": values[..., :1], "values": values[..., 1:], "mask": mask}


def loss_of(label: Tensor) -> Tensor:
    return (label * torch.arange(3)).square().mean()


def expected(kind: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and the gradients of one process."""
    alone, given = model(kind), vectors()
    raw = {"vectors": points_of(given, alone)} | ({} if kind == "plain" else {"hours": given["hours"]})
    label = alone(raw, algorithm="dense")["label"]
    loss_of(label).backward()
    return label.detach(), {name: parameter.grad for name, parameter in alone.named_parameters()}


def assert_gradients(module: nn.Module, kind: str, scale: float = 1.0) -> None:
    for name, gradient in expected(kind)[1].items():
        found = module.get_parameter(name).grad
        assert found is not None, name
        whole = found.full_tensor() if isinstance(found, DTensor) else found
        assert torch.allclose(whole * scale, gradient, rtol=1e-9, atol=1e-12), name


def own_part(rank: int, processes: int, samples: slice = slice(None)) -> Parts:
    sizes = SIZES[processes]
    parts = {name: part[samples] for name, part in vectors().items()}
    return {name: part if name == "hours" else part.split(sizes, dim=1)[rank] for name, part in parts.items()}


def one_group(rank: int, processes: int, kind: str) -> None:
    """Forward and backward; gradients are averaged explicitly."""
    sharded = Sharded(model(kind))
    label = sharded(own_part(rank, processes))
    assert torch.allclose(label, expected(kind)[0], rtol=1e-10)
    loss_of(label).backward()
    for parameter in sharded.parameters():
        dist.all_reduce(parameter.grad)
    assert_gradients(sharded.model, kind, 1 / processes)


def data_parallel(rank: int, processes: int, kind: str) -> None:
    """All processes read parts of the same samples; or pairs do, and each pair has other samples."""
    pairs = processes // 2
    groups = [dist.new_group([2 * pair, 2 * pair + 1]) for pair in range(pairs)]
    samples = slice(4 // pairs * (rank // 2), 4 // pairs * (rank // 2 + 1))
    module = DistributedDataParallel(Sharded(model(kind), groups[rank // 2]))
    for _ in range(2):  # only the second step would reveal a parameter without a gradient
        module.zero_grad()
        loss_of(module(own_part(rank % 2, 2, samples))).backward()
    assert_gradients(module.module.model, kind)


def fully_sharded(rank: int, processes: int, kind: str) -> None:
    """Parameters are spread over the processes as well."""
    sharded = Sharded(model(kind))
    fully_shard(sharded, mesh=init_device_mesh("cpu", (processes,)))
    label = sharded(own_part(rank, processes))
    assert torch.allclose(label, expected(kind)[0], rtol=1e-10)
    loss_of(label).backward()
    assert_gradients(sharded.model, kind)


def process(rank: int, processes: int, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    checks: list[Callable[[int, int, str], None]] = [one_group, data_parallel, fully_sharded]
    for check in checks:
        for kind in KINDS:
            check(rank, processes, kind)
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_read_together(processes: int, tmp_path: Path) -> None:
    multiprocessing.spawn(process, (processes, tmp_path / "rendezvous"), nprocs=processes)
