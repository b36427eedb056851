"""Training: exact resume, whole checkpoints, and record sequences that depend on seed and step alone."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.files.durable_folder import write_folder
from perceivers.files.opening import UnreadableError
from perceivers.pretrained.hub import save_pretrained
from perceivers.pretrained.model_folder import load_model
from perceivers.training.checkpoints import KEPT, best_checkpoint, checkpoints, latest_checkpoint
from perceivers.training.logging import read_log
from perceivers.training.loop import seed_step, train
from perceivers.training.metrics import evaluate
from perceivers.training.sampler import BatchOrder, evaluation_batches
from perceivers.training.training_config import TrainingConfig
from small_run import CONFIG, SCHEMA, small_records, trained, without_time


@pytest.fixture(scope="module")
def records():
    return small_records()


def test_a_resumed_run_makes_the_same_steps(records, tmp_path):
    """Bitwise: weights, logged losses and rates, with dropout, random points and dropped inputs."""
    straight = trained(records, tmp_path / "straight", 8)
    trained(records, tmp_path / "stopped", 8, checkpoint_every=1)
    for folder in checkpoints(tmp_path / "stopped")[:1]:
        shutil.rmtree(folder)  # as if the run had been killed after step 7
    resumed = trained(records, tmp_path / "stopped", 8)
    for (name, one), other in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    logs = [without_time(read_log(tmp_path / run)) for run in ("straight", "stopped")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == list(range(1, 9))


def test_workers_change_nothing(records, tmp_path):
    alone, helped = (trained(records, tmp_path / str(n), 3, num_workers=n).state_dict() for n in (0, 2))
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


def test_training_learns(records, tmp_path):
    trained(records, tmp_path, 60)
    losses = [sum(line["losses"].values()) for line in read_log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_only_the_newest_checkpoints_stay(records, tmp_path):
    trained(records, tmp_path, 8, checkpoint_every=1)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:08d}" for n in range(8, 8 - KEPT, -1)]


def test_a_damaged_checkpoint_is_passed_over(records, tmp_path):
    trained(records, tmp_path, 4, checkpoint_every=2)
    newest, older = checkpoints(tmp_path)
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged or changed"):
        assert latest_checkpoint(tmp_path) == older


def test_a_model_alone_among_the_checkpoints_is_passed_over(records, tmp_path, command):
    """A run cannot resume from a model without a training state, and `convert` writes none there."""
    model = trained(records, tmp_path, 2, checkpoint_every=2)
    alone = tmp_path / "checkpoints" / "step-00000009"
    code, _, err = command("convert", checkpoints(tmp_path)[0], alone)
    assert (code, "a run keeps its checkpoints there" in err, alone.exists()) == (2, True, False)
    save_pretrained(model, alone)
    for find in (latest_checkpoint, best_checkpoint):
        with pytest.warns(UserWarning, match="step-00000009 is a model alone, without the state of a run"):
            assert find(tmp_path).name == "step-00000002"
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "model.safetensors"])
@pytest.mark.parametrize("find", [latest_checkpoint, best_checkpoint])
def test_a_checkpoint_that_the_system_does_not_let_read_is_no_damaged_one(records, tmp_path, monkeypatch, find, name):
    """An older checkpoint would silently be another model."""
    trained(records, tmp_path, 4, checkpoint_every=2)
    monkeypatch.setattr(Path, "open", refusing(Path.open, checkpoints(tmp_path)[0] / name))
    with pytest.raises((UnreadableError, OSError), match="Input/output error"):
        find(tmp_path)


def refusing(call, wrong):
    def opened(path, *arguments, **options):
        if path == wrong:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return call(path, *arguments, **options)

    return opened


def test_a_checkpoint_is_a_model_folder(records, tmp_path):
    model = trained(records, tmp_path, 2)
    loaded = load_model(checkpoints(tmp_path)[0])
    batch = next(iter(evaluation_batches(SCHEMA, records, 5)))
    one, other = model(batch["inputs"]), loaded(batch["inputs"])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "a").write_text("new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]
    write_folder(target, lambda folder: (folder / "a").write_text("new"))
    assert (target / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_loss_that_is_not_finite_stops_before_the_step(records, tmp_path):
    torch.manual_seed(0)
    model = PerceiverIO(SCHEMA.fit(records), CONFIG)
    with torch.no_grad():
        model.trunk.latents[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"step 0: the loss is not finite \(label nan"):
        train(model, records, TrainingConfig(num_steps=2, accelerator="cpu"), tmp_path)
    after = model.state_dict()
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_order_is_a_permutation_in_each_epoch():
    draws = [draw for batch in BatchOrder(seed=1, num_records=7, batch_size=3, first=0, last=7) for draw in batch]
    for epoch in range(3):
        assert sorted(number for e, number in draws if e == epoch) == list(range(7))
    assert [number for e, number in draws if e == 0] != [number for e, number in draws if e == 1]


def test_records_come_in_their_order_without_shuffling():
    """A curriculum needs this, over several processes too."""
    shares = [list(BatchOrder(1, 7, 4, 0, 3, rank, 2, shuffle=False)) for rank in (0, 1)]
    numbers = [sorted(draw for share in shares for draw in share[step]) for step in range(3)]
    assert numbers == [[(0, n) for n in range(4)], [(0, 4), (0, 5), (0, 6), (1, 0)], [(1, n) for n in range(1, 5)]]


def test_order_of_a_later_start_is_the_same():
    whole = list(BatchOrder(1, 7, 3, 0, 9))
    assert list(BatchOrder(1, 7, 3, 4, 9)) == whole[4:]


def test_processes_share_a_batch():
    whole = list(BatchOrder(1, 11, 4, 0, 5))
    shares = [list(BatchOrder(1, 11, 4, 0, 5, rank, 2)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(batch)


def test_a_step_has_its_own_random_numbers():
    def draw(*parts):
        seed_step(*parts)
        return float(torch.rand(()))

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(0, 5, 0), draw(0, 6, 0), draw(0, 5, 1), draw(1, 5, 0)}) == 4


def test_evaluation_counts_every_record_once(records):
    torch.manual_seed(0)
    schema = SCHEMA.fit(records).changed("points", subsample=(1.0, 1.0))
    model = PerceiverIO(schema, CONFIG)
    one, other = (evaluate(model, records, schema, batch_size=size) for size in (5, 23))
    assert one["label"]["accuracy"] == pytest.approx(other["label"]["accuracy"])
    assert one["image"]["psnr"] == pytest.approx(other["image"]["psnr"], rel=1e-5)


def test_log_survives_a_line_that_was_cut(records, tmp_path):
    trained(records, tmp_path, 3)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4})[:-3])
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_steps": 0},
        {"batch_size": 0},
        {"average_decay": 1.0},
        {"batch_size": 6, "accumulate": 4},
        {"batch_size": 3, "devices": 2},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        TrainingConfig(**wrong)
