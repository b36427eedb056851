"""A run killed at any point and started again loses nothing and ends with the same bits: a tenth of the kills here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

import kills
from perceivers.files import durable_folder
from perceivers.files.durable import UNFINISHED, write_text
from perceivers.training import training_state
from perceivers.training.distributed import STARTER, end_with_starter
from proof import table, write_section

HEADS = ["kills", "number", "in a save", "in a step", "checkpoints lost", "different results", "hung", "left workers"]

TEXT = """By `tests/test_kills.py` on {date}. A short run (dropout, random points, averaged weights, accumulation,
validation; a save every second step) is killed with SIGKILL and started again with the same arguments. At its end it is
compared with an undisturbed run: every byte of weights, moments and averages, every logged line.

TABLE

A checkpoint is lost if, after a kill, the newest whole one is older than the last one whose save had returned. The
kills at system calls happen one before each call of a whole run that changes a file (injected by strace). Of two
processes, one is killed, or a worker, or all of them; the others and all workers must then end by themselves within a
minute.
"""


def campaign(folder, number, every):
    """Return the counts, by name, of random kills with and without workers, and of kills at system calls."""
    found = {
        f"at random, {workers} workers": kills.random_kills(folder / str(workers), number // 2, workers)
        for workers in (0, 2)
    }
    found["at each system call that changes a file"] = kills.kills_at_every_call(folder / "calls", every)
    return found


def faults_of(tally):
    return tally.lost, f"{tally.diverged} of {tally.finished}", tally.hung, tally.orphans


def campaign_of_two(folder, number):
    """Return the counts, by name, of kills of one process of two, or of all, with and without workers and sharding."""
    return {
        f"of two processes, {'sharded' if sharded else 'DDP'}, {workers} workers each": kills.kills_of_one(
            folder / f"{workers}{sharded}", number, workers, shard_model=sharded
        )
        for workers, sharded in product((0, 2), (False, True))
    }


def check(found):
    for name, tally in found.items():
        print(f"{name}: {tally}")
        assert not any(tally.faults), f"{name}: {tally}"
    at_random = sum((tally.kills for name, tally in found.items() if "random" in name), kills.Counter())
    assert min(at_random["in a save"], at_random["in a step"]) >= at_random.total() / 3, at_random


@pytest.mark.slow
def test_a_tenth_of_the_kills(tmp_path):
    check(campaign(tmp_path, 20, every=10))


@pytest.mark.slow
def test_a_kill_of_one_process_of_two(tmp_path):
    """The other process and its workers end; their checkpoint is whole, and the run resumes from it."""
    tally = kills.kills_of_one(tmp_path, 3, workers=2, shard_model=True)
    assert not any(tally.faults), tally


@pytest.mark.parametrize("before", [True, False], ids=["before", "meanwhile"])
def test_a_process_ends_with_the_one_that_started_it(before):
    """The starter may be gone before the process begins to watch it; left alone, the process would wait for long."""
    alive, held = os.pipe()  # held open by the started process while it lives
    starter = os.fork()
    if starter == 0:
        os.environ[STARTER] = str(os.getpid())
        if os.fork() == 0:
            while before and os.getppid() == int(os.environ[STARTER]):
                time.sleep(0.01)
            with suppress(SystemExit):
                end_with_starter()
                os.write(held, b"1")
                time.sleep(300)
            os._exit(0)
        time.sleep(0 if before else 300)
        os._exit(0)
    os.close(held)
    if not before:
        assert os.read(alive, 1) == b"1"
        os.kill(starter, signal.SIGKILL)
    os.waitpid(starter, 0)
    assert os.read(alive, 1) == b"", "it went on alone"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 3, 6, 9, 12])
def test_the_command_killed_at_its_start_leaves_no_process(tmp_path, seconds):
    """Killed as soon as it has started the second process, and later."""
    settings = ["devices=2", "num_steps=3", "batch_size=8", "accelerator=cpu", "schedule.warmup_steps=1"]
    command = [sys.executable, "-m", "perceivers", "train", "digits", "--out", tmp_path / "run", "--set"]
    command += [f"training.{setting}" for setting in settings]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    session = [first.pid]
    assert kills.within(120, lambda: len(kills.living_processes(session)) > 1)
    time.sleep(seconds)
    kills.kill(session)
    first.wait()
    ended = kills.within(kills.LIMIT, lambda: not kills.living_processes(session))
    kills.kill(kills.living_processes(session))
    assert ended


@pytest.mark.slow
def test_all_kills(tmp_path):
    """Make 200 random kills, one at every call, and 24 of each setting of two processes; write docs/proof.md."""
    found = campaign(tmp_path, 200, every=1) | campaign_of_two(tmp_path, 24)
    rows = [
        (name, t.kills.total(), t.kills["in a save"], t.kills["in a step"], *faults_of(t)) for name, t in found.items()
    ]
    write_section("Kills", TEXT.replace("TABLE", table(HEADS, rows)))
    check(found)


@pytest.mark.slow
@pytest.mark.prints_warnings  # about the checkpoints that it damages
def test_a_planted_bug_is_found(tmp_path, monkeypatch):
    """The suite fails if checkpoints are written over the old ones."""

    def in_place(target, write):
        target = target.with_name("step-00000002")
        target.mkdir(parents=True, exist_ok=True)
        write(target)
        files = {path.name: durable_folder._fingerprint(path) for path in target.glob("[!m]*")}
        write_text(target / durable_folder.MANIFEST, json.dumps(files))

    monkeypatch.setattr(training_state, "write_folder", in_place)
    tally = kills.kills_at_every_call(tmp_path, every=20)
    assert tally.lost or tally.diverged, tally


def test_everything_is_on_disk_before_it_has_its_name(tmp_path):
    """After a loss of power: each file is synced after its last change, then the folder, the name and its parent."""
    waiting, seen = {}, 0
    for line in kills.traced(tmp_path / "run", tmp_path / "trace"):
        synced = re.search(r"f(?:data)?sync\(\d+<(.*?)>", line)
        changed = re.search(r"(?:write|ftruncate|pwrite64)\(\d+<(.*?)>|O_CREAT.*= \d+<(.*?)>", line)
        renamed = re.search(r'rename(?:at2?)?\((?:AT_FDCWD<.*?>, )?"(.*?)", (?:AT_FDCWD<.*?>, )?"(.*?)"', line)
        if synced:
            waiting.pop(synced[1], None)
        elif changed:
            waiting[changed[1] or changed[2]] = line
        elif renamed and not renamed[1].endswith(UNFINISHED):
            waiting[renamed[2]] = waiting.pop(renamed[1], line)
        elif renamed:
            seen += 1
            assert not [path for path in waiting if path.startswith(renamed[1])], line
            waiting[str(Path(renamed[2]).parent)] = line  # until its folder is synced
    assert seen > kills.STEPS / kills.EVERY
    assert not waiting.keys() & {str(tmp_path / "run"), str(tmp_path / "run" / "checkpoints")}
