"""Two processes against one: equal losses and weights, checkpoints of sharded models, shares without gaps."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities import Image, Label, Numbers, PointSet, Text
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.model_folder import load_model
from perceivers.schema import Schema
from perceivers.training import loop, losses
from perceivers.training.checkpoints import checkpoints, latest_checkpoint
from perceivers.training.distributed import launch
from perceivers.training.logging import read_log
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.sampler import BatchOrder, training_batches
from perceivers.training.signals import Stopped
from perceivers.training.training_config import TrainingConfig
from perceivers.training.training_state import TRAINING
from small_run import small_records, trained

POSITIONS = Fourier(num_bands=2, max_resolution=5)
CONFIG = Config(
    LatentsConfig(num_latents=5, channels=12),
    processor=ProcessorConfig(num_layers=1, num_blocks=2, num_heads=2),
)
SCHEMA = Schema(
    inputs={
        "points": PointSet(axes=2, channels=1, positions=POSITIONS, subsample=(0.3, 1.0), drop_prob=0.3),
        "text": Text(length=24, channels=7, mask_words=0.7, drop_prob=0.3),
    },
    outputs={
        "label": Label(classes=3, query_channels=5),
        "image": Image(size=5, channels=1, positions=POSITIONS, num_points=7),
        "restored": Text(length=24, key="text", of="text", query_channels=7, tied=False),
    },
)
SETTINGS = {"precision": "64-true", "batch_size": 8, "schema": SCHEMA, "config": CONFIG, "average_decay": 0.9}
OPTIMISERS = ["adamw", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lamb", "muon"))]
EXACT, ROUNDED = {"rtol": 1e-9, "atol": 1e-12}, {"rtol": 2e-3, "atol": 1e-5}
"""Tolerances: Muon orthogonalises in bfloat16, and sums over a sharded matrix run in another sequence."""


@pytest.fixture(scope="module")
def records():
    """Return records with unknown labels and short texts, so that the two shares of a batch count differently."""
    return [
        {**record, "label": None if number % 3 == 0 else record["label"], "text": "ab cde f gh"[: 3 + number % 9]}
        for number, record in enumerate(small_records())
    ]


def together(world, function):
    """Run a function in several forked processes, numbered as torchrun does; all must exit with 0."""
    launch(TrainingConfig(accelerator="cpu"))  # import once, before the forks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world}
                places |= {"LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in places.items()}
                os.environ["TORCHELASTIC_RUN_ID"] = "test"
                function(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * world


def losses_of(run):
    return torch.tensor([list(line["losses"].values()) for line in read_log(run)], dtype=torch.double)


@pytest.mark.parametrize("shard_model", [False, True])
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_two_processes_make_the_steps_of_one(records, tmp_path, kind, shard_model):
    """In float64, with missing inputs and targets: losses agree to 1e-9, and so do the weights."""
    settings = SETTINGS | {"optimiser": OptimiserConfig(kind=kind, learning_rate=3e-3)}
    one = trained(records, tmp_path / "one", 5, **settings)
    together(2, lambda rank: trained(records, tmp_path / "two", 5, shard_model=shard_model, **settings))
    rounded = kind == "muon" and shard_model
    losses = losses_of(tmp_path / "two"), losses_of(tmp_path / "one")
    torch.testing.assert_close(*losses, **(ROUNDED if rounded else EXACT))
    two = load_model(latest_checkpoint(tmp_path / "two"))
    for (name, expected), found in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-2 if rounded else 1e-9, msg=name)
    files = {path.name for path in checkpoints(tmp_path / "two")[0].iterdir()}
    assert ("model-00002-of-00002.safetensors" in files) == shard_model
    assert (TRAINING in files) != shard_model


# A decoder of one output returns what a linear map made, a view for torch; nothing changes it in place.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("shard_model", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_train_conditioned_rotary_blocks_like_one(records, tmp_path, shard_model):
    """A third of the records lacks the condition."""
    rotary = Rotary((Axis("y", 0.5, 9.0), Axis("x", 0.5, 9.0)), share=1.0)
    block = {"rotary": rotary, "conditioned": True, "num_heads": 2}
    config = Config(
        LatentsConfig(num_latents=5, channels=12, taken_from="points", rule="strided", token_map=True),
        EncoderConfig(**block),
        ProcessorConfig(num_layers=1, **block),
        DecoderConfig(num_layers=2, **block),
    )
    points = replace(SCHEMA.inputs["points"], axis_names=("y", "x"), drop_prob=0.0)
    inputs = {"points": points, "bright": Numbers(key="label", mean=(0.5,), std=(0.5,), role="condition")}
    schema = Schema(inputs, {"image": replace(SCHEMA.outputs["image"], axis_names=("y", "x"))})
    settings = SETTINGS | {"optimiser": OptimiserConfig(kind="adamw", learning_rate=3e-3), "schema": schema}
    settings["config"] = config
    one = trained(records, tmp_path / "one", 4, **settings)
    together(2, lambda rank: trained(records, tmp_path / "two", 4, shard_model=shard_model, **settings))
    torch.testing.assert_close(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), **EXACT)
    two = load_model(latest_checkpoint(tmp_path / "two"))
    for (name, expected), found in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("shard_model", [False, True])
def test_two_processes_learn_the_weights_of_one(records, tmp_path, shard_model):
    """Learned loss weights: a sharded run of two processes stops after three steps, and one process continues it."""
    settings = SETTINGS | {"optimiser": OptimiserConfig(kind="adamw", learning_rate=3e-2), "weights": "learned"}
    settings["schedule"] = ScheduleConfig(kind="constant")  # does not depend on the number of steps
    trained(records, tmp_path / "one", 5, **settings)
    together(2, lambda rank: trained(records, tmp_path / "two", 3, shard_model=shard_model, **settings))
    trained(records, tmp_path / "two", 5, **settings)
    one, two = (read_log(tmp_path / run) for run in ("one", "two"))
    for expected, found in zip(one, two, strict=True):
        assert found["weights"] == pytest.approx(expected["weights"], rel=1e-9)
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-9)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_sharded_run_goes_on_in_any_number_of_processes(records, tmp_path, kind):
    """Two processes, then one: the same as one process throughout, up to rounding."""
    settings = SETTINGS | {"optimiser": OptimiserConfig(kind=kind, learning_rate=3e-3), "checkpoint_every": 2}
    trained(records, tmp_path / "one", 6, **settings)
    run = tmp_path / "changing"
    together(2, lambda rank: trained(records, run, 6, shard_model=True, **settings))
    for newest in checkpoints(run)[:1]:
        newest.rename(tmp_path / "gone")
    trained(records, run, 6, **settings)
    torch.testing.assert_close(losses_of(run), losses_of(tmp_path / "one"), **(ROUNDED if kind == "muon" else EXACT))


def test_processes_agree_on_stopping(records, tmp_path):
    """A signal to one of them suffices: both save and stop."""

    def run(rank):
        real, calls = loop.gradients, []

        def gradients(*arguments):
            calls.append(1)
            if rank == 1 and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments)

        loop.gradients = gradients
        with pytest.raises(Stopped, match="stopped by SIGTERM after step 3"):
            trained(records, tmp_path, 7, **SETTINGS)

    together(2, run)
    assert latest_checkpoint(tmp_path).name == "step-00000003"


def test_processes_agree_that_a_loss_is_not_finite(records, tmp_path):
    """The loss is not finite in one process alone."""

    def run(rank):
        real = losses.Objective.forward
        factor = float("nan") if rank else 1.0
        losses.Objective.forward = lambda self, batch: {n: v * factor for n, v in real(self, batch).items()}
        with pytest.raises(ValueError, match="step 0: the loss is not finite"):
            trained(records, tmp_path, 7, **SETTINGS)

    together(2, run)
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_of_the_model_outlives_its_process_group(records, tmp_path, failing):
    """If DDP is the last to hold the group, it may never end: it joins a thread that waits for the GIL."""

    def run(rank):
        real, ended = torch.distributed.destroy_process_group, []

        def destroy():
            ended.append([one for one in gc.get_objects() if type(one) is DistributedDataParallel])
            real()

        torch.distributed.destroy_process_group = destroy
        settings = SETTINGS | {"optimiser": OptimiserConfig(learning_rate=1e30 if failing else 1e-3)}
        with pytest.raises(ValueError, match="step 1: the gradient is not finite") if failing else nullcontext():
            trained(records, tmp_path, 2, **settings)
        assert ended == [[]]

    together(2, run)


@pytest.mark.slow
@pytest.mark.parametrize("shard_model", ["false", "true"])
@pytest.mark.parametrize("torchrun", [False, True])
def test_the_command_trains_in_two_processes(tmp_path, torchrun, shard_model):
    """Started by torchrun, or by the command itself; only the first process evaluates and reports."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    settings = ["num_steps=2", "batch_size=8", "schedule.warmup_steps=1", "accelerator=cpu", "log_every=1"]
    settings += [f"shard_model={shard_model}", "devices=1" if torchrun else "devices=2"]
    command = [sys.executable, *start, "-m", "perceivers", "train", "digits", "--json", "--out", str(tmp_path), "--set"]
    command += [f"training.{setting}" for setting in settings]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    assert "all pixels read" in json.loads(result.stdout)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_shares_have_no_gaps_and_no_repeats(world, workers):
    """Two epochs of 23 records in batches of 6, over processes and workers."""
    schema = Schema({"number": Label(classes=23)}, {"number": Label(classes=23)})
    records = [{"number": number} for number in range(23)]
    orders = [BatchOrder(1, 23, 6, 0, 8, rank, world) for rank in range(world)]
    shares = [list(training_batches(schema, records, order, workers)) for order in orders]
    seen = [int(n) for step in range(8) for share in shares for n in share[step]["inputs"]["number"]]
    assert len(seen) == 48
    assert sorted(seen).count(0) in (2, 3)
    counts = [seen.count(number) for number in range(23)]
    assert (min(counts), sum(counts)) == (2, 48)


def test_a_batch_must_be_shared_out_evenly():
    with pytest.raises(ValueError, match="must be a multiple of 2 processes x accumulate = 3"):
        TrainingConfig(batch_size=8, accumulate=3, devices=2)


def test_sharding_one_process_warns():
    with pytest.warns(UserWarning, match="shard_model = True has no effect on one process"):
        launch(TrainingConfig(accelerator="cpu", shard_model=True))
