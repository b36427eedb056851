"""Signals end a run with a checkpoint at the current step; files on disk are whole whatever happens."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from perceivers.files.durable import sweep, write_text
from perceivers.files.durable_folder import remove_folder, write_folder
from perceivers.files.tensor_files import load_shards, save_tensors, shard_name
from perceivers.pretrained.model_folder import WEIGHTS
from perceivers.training import loop
from perceivers.training.checkpoints import checkpoints, latest_checkpoint, read_state
from perceivers.training.distributed import launch, only_user
from perceivers.training.logging import read_log
from perceivers.training.signals import EXIT_CODES, Stopped
from perceivers.training.training_config import TrainingConfig
from small_run import small_records, trained, weights_of, without_time


@pytest.mark.parametrize("name", EXIT_CODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_makes_a_checkpoint_and_the_run_goes_on_exactly(tmp_path, monkeypatch, name, workers):
    """Sent twice in the middle of step 3, and to the whole process group if there are workers."""
    records, before = small_records(), signal.getsignal(getattr(signal, name))
    straight = trained(records, tmp_path / "straight", 7)
    real, calls = loop.gradients, []

    def gradients(*arguments):
        calls.append(1)
        if len(calls) == 4:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), getattr(signal, name))
            for _ in range(2):
                os.kill(os.getpid(), getattr(signal, name))
        return real(*arguments)

    monkeypatch.setattr(loop, "gradients", gradients)
    with pytest.raises(Stopped, match=f"stopped by {name} after step 4; .* goes on from .*step-00000004") as stopped:
        trained(records, tmp_path / "stopped", 7, checkpoint_every=7, num_workers=workers)
    assert stopped.value.exit_code == EXIT_CODES[name]
    assert read_state(latest_checkpoint(tmp_path / "stopped"))["step"] == 4
    assert signal.getsignal(getattr(signal, name)) == before
    assert weights_of(trained(records, tmp_path / "stopped", 7)) == weights_of(straight)
    logs = [without_time(read_log(tmp_path / run)) for run in ("straight", "stopped")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_the_command_stops_in_good_order(tmp_path):
    """One line tells how to resume; the exit code is the documented one."""
    command = [sys.executable, "-m", "perceivers", "train", "digits", "--out", tmp_path / "run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not read_log(tmp_path / "run"):
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "perceivers: stopped by SIGUSR1 after step" in err.splitlines()[-1]
    assert latest_checkpoint(tmp_path / "run") is not None


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    records, real, calls = small_records(), loop.gradients, []

    def gradients(*arguments):
        calls.append(1)
        return real(*arguments) | ({"image": float("nan")} if len(calls) == 6 else {})

    monkeypatch.setattr(loop, "gradients", gradients)
    with pytest.raises(ValueError, match=r"step 5: the loss is not finite .*image nan.* checkpoint is .*step-00000003"):
        trained(records, tmp_path, 7)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "clip", lambda *_: float("inf"))
    with pytest.raises(ValueError, match=r"step 0: the gradient is not finite .*there is no checkpoint yet"):
        trained(small_records(), tmp_path, 2)


def test_two_trainings_do_not_share_a_folder(tmp_path):
    """The folder stays locked until the first training ends, even if it was killed and a worker lives on."""
    fabric = launch(TrainingConfig(accelerator="cpu"))
    ready, said = os.pipe()
    holder = os.fork()
    if holder == 0:
        with only_user(tmp_path, fabric):
            os.fork()  # a worker
            os.write(said, b"1")
            time.sleep(3)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(ValueError, match="in use by another training"), only_user(tmp_path, fabric):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with only_user(tmp_path, fabric):
        pass


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    for name in (".step-1.abcdefgh.unfinished", ".other", "step-1.unfinished", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / ".recipe.yaml.x7_9abcd.unfinished").touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".other", "mine", "step-1.unfinished"]


def test_a_removed_folder_is_gone_at_once(tmp_path, monkeypatch):
    """A folder is renamed before its files are removed."""
    write_folder(tmp_path / "step-1", lambda folder: (folder / "file").touch())
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)
    remove_folder(tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()
    sweep(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "rename", "chmod", "mkdir"])
def test_a_full_or_broken_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    write_text(tmp_path / "text", "old")
    write_folder(tmp_path / "folder", lambda folder: (folder / "a").write_text("old"))

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        if call != "mkdir":
            with pytest.raises(OSError, match="No space"):
                write_text(tmp_path / "text", "new")
        with pytest.raises(OSError, match="No space"):
            write_folder(tmp_path / "other", lambda folder: (folder / "a").write_text("new"))
    assert (tmp_path / "text").read_text() == "old"
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["folder", "text"]


def test_shards_are_read_as_one(tmp_path):
    """Shards are concatenated along the first axis; an array that is only in the first shard was not split."""
    path, whole = tmp_path / WEIGHTS, {"a": torch.arange(15.0).reshape(5, 3), "step": torch.tensor(3.0)}
    save_tensors(shard_name(path, 0, 2), {"a": whole["a"][:3], "step": whole["step"]})
    save_tensors(shard_name(path, 1, 2), {"a": whole["a"][3:]})
    found = load_shards(path)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    shard_name(path, 1, 2).unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002"):
        load_shards(path)
