"""Kill a short real run at any point and start it again: is a checkpoint lost, do the weights at the end differ?

Children are forked after the imports, so that a start takes a moment. Each child writes its phase and the last step
that it saved to shared memory, which outlives it.
"""

import mmap
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from perceivers.training.checkpoints import latest_checkpoint, read_state
from perceivers.training.distributed import launch
from perceivers.training.logging import read_log
from perceivers.training.training_config import TrainingConfig
from perceivers.training.training_state import TrainingState
from small_run import small_records, trained, without_time

STEPS, EVERY = 8, 2
SETTINGS = {"checkpoint_every": EVERY, "average_decay": 0.9, "accumulate": 2, "validation_fraction": 0.2}
LIMIT = 60
"""Seconds within which the processes of a run must end after one of them was killed; they take about one."""
STARTING, STEPPING, SAVING, DONE = range(4)
PHASES = {STARTING: "starting", STEPPING: "in a step", SAVING: "in a save", DONE: "after the run"}

MUTATING = (
    "mkdir,mkdirat,open,openat,creat,write,pwrite64,writev,ftruncate,fallocate,fsync,fdatasync,msync,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,chmod,fchmod,fchmodat,link,symlink,copy_file_range,sendfile"
)
"""System calls that change files."""


@dataclass
class Tally:
    """Counts of a campaign."""

    kills: Counter = field(default_factory=Counter)
    """Kills, by the phase of the run."""
    lost: int = 0
    """Saved checkpoints that are missing or not whole."""
    diverged: int = 0
    """Runs whose final weights or log differ from those of the undisturbed run."""
    finished: int = 0
    """Runs that ended."""
    hung: int = 0
    """Killed runs with a process that had to be killed too, because it waited for others that were gone."""
    orphans: int = 0
    """Killed runs whose workers lived on."""

    @property
    def faults(self) -> tuple[int, ...]:
        """Return the counts that must be 0."""
        return self.lost, self.diverged, self.hung, self.orphans

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kills.items()))
        ends = f"{self.lost} lost checkpoints, {self.diverged} diverged of {self.finished} runs brought to their end"
        return f"{self.kills.total()} kills ({kinds}): {ends}, {self.hung} hung, {self.orphans} with orphans"


class Child:
    """A forked process that trains in a folder, or does `work`; `phase` and `saved` stay readable after its death."""

    def __init__(self, run, workers=0, stopped=False, places=None, work=None, **settings):
        self.run, self.memory = run, mmap.mmap(-1, 16)
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                if stopped:
                    os.kill(os.getpid(), signal.SIGSTOP)
                if places is not None:
                    os.setsid()  # its workers are found by this session
                    os.environ |= places
                self._note()
                records, settings = small_records(), SETTINGS | settings
                (work or partial(trained, records, run, STEPS, num_workers=workers, **settings))()
                self.set(DONE, self.saved)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def _note(self):
        """Make training record its phase and the last saved step."""
        save, update = TrainingState.save, TrainingState.update_average

        def noted(state, *arguments):
            self.set(SAVING, self.saved)
            target = save(state, *arguments)
            self.set(STEPPING, state.step)
            return target

        def started(state):
            self.set(STEPPING, self.saved)
            update(state)

        TrainingState.save, TrainingState.update_average = noted, started

    def set(self, phase, saved):
        self.memory[:16] = struct.pack("qq", phase, saved)

    @property
    def phase(self):
        return struct.unpack("qq", self.memory[:16])[0]

    @property
    def saved(self):
        return struct.unpack("qq", self.memory[:16])[1]

    def ended(self):
        """Return True if the process has ended by itself."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self):
        """Wait and return the exit code; a negative one is the signal that ended the process."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Team:
    """A run of several processes, numbered as torchrun does, each with its workers."""

    def __init__(self, run, workers=0, world=2, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        places = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(world)]
        texts = [{name: str(value) for name, value in place.items()} for place in places]
        self.ranks = [Child(run, workers, places=text, **settings) for text in texts]

    @property
    def phase(self):
        """Return the phase of the first process, which writes the checkpoints."""
        return self.ranks[0].phase

    @property
    def saved(self):
        return max(rank.saved for rank in self.ranks)

    def ended(self):
        """Return True if one of the processes has ended."""
        return any(rank.ended() for rank in self.ranks)

    def kill(self, victim):
        """Kill "rank 0", "rank 1", "a worker" of either (the first process, if it has none now), or "all"."""
        living = living_processes(rank.pid for rank in self.ranks)
        workers = sorted(living - {rank.pid for rank in self.ranks})
        kill({"all": living, "a worker": workers[:1]}.get(victim) or [self.ranks[victim == "rank 1"].pid])

    def wait(self):
        """Return the first exit code that is not 0, or 0."""
        return next(filter(None, [rank.wait() for rank in self.ranks]), 0)

    def end(self, tally):
        """Wait until no process of the run is left; count and kill those that do not end by themselves."""
        if not within(LIMIT, lambda: all(rank.ended() for rank in self.ranks)):
            tally.hung += 1
        elif not within(LIMIT, lambda: not living_processes(rank.pid for rank in self.ranks)):
            tally.orphans += 1
        self.kill("all")
        return self.wait()


def living_processes(sessions):
    """Return the ids of the processes of these sessions that have not ended."""
    wanted, found = set(map(str, sessions)), set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if session in wanted and state not in "ZX":
                found.add(int(path.parent.name))
    return found


def kill(processes):
    """Kill those of the processes that have not ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def within(seconds, condition):
    """Wait for a condition; return False if the time runs out before."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


class Reference:
    """The undisturbed run; `start` starts such a run in a folder."""

    def __init__(self, folder, start=Child):
        launch(TrainingConfig(accelerator="cpu"))  # import once, so that children need not
        self.run, self.start = folder / "alone", start
        assert start(self.run).wait() == 0
        self.end = self.result(self.run)

    @staticmethod
    def result(run):
        folder = latest_checkpoint(run)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}
        return read_state(folder)["step"], files, without_time(read_log(run))

    def judge(self, run, tally):
        """Finish a killed run and compare it with the undisturbed one."""
        if self.start(run).wait() != 0 or self.result(run) != self.end:
            tally.diverged += 1
        else:
            assert not list(run.rglob("*.unfinished")), "what a killed writer left was not removed"
        tally.finished += 1


def check(run, saved, tally):
    """Count a loss if the newest whole checkpoint is older than the last saved one."""
    with warnings.catch_warnings(action="ignore"):  # about damaged checkpoints, which are skipped
        newest = latest_checkpoint(run)
    if saved and (newest is None or read_state(newest)["step"] < saved):
        tally.lost += 1


def random_kills(folder, number, workers, seed=0):
    """Kill runs at random times, a third of them while saving and a third in steps, until each has come to its end."""
    chance, tally, reference = random.Random(seed), Tally(), Reference(folder)
    run, saved = folder / "killed", 0
    while tally.kills.total() < number:
        child = Child(run, workers)
        rarer = STEPPING if tally.kills[PHASES[STEPPING]] <= tally.kills[PHASES[SAVING]] else SAVING
        wanted = chance.choice([STARTING] + 7 * [rarer])
        after = 0 if wanted == STARTING else chance.randrange(0, STEPS - EVERY, EVERY)  # not before this step was saved
        wait_for(child, wanted, after)
        time.sleep(chance.random() * {STARTING: 0.2, STEPPING: 0.02, SAVING: 0.02, DONE: 0}[wanted])
        kill([child.pid])
        code = child.wait()
        assert code in (0, -signal.SIGKILL), "it could not be started again"
        if code:
            tally.kills[PHASES[child.phase]] += 1
        saved = max(saved, child.saved)
        check(run, saved, tally)
        if saved == STEPS or chance.random() < 0.2:
            reference.judge(run, tally)
            shutil.rmtree(run)
            saved = 0
    if run.exists():
        reference.judge(run, tally)
    return tally


def kills_of_one(folder, number, workers, seed=0, **settings):
    """Kill one or all processes of a run of two, during the start, a step or a save; then resume."""
    chance, tally, start = random.Random(seed), Tally(), partial(Team, workers=workers, **settings)
    reference, run, saved = Reference(folder, start), folder / "killed", 0
    victims = ["rank 0", "rank 1", "all"] + ["a worker"] * bool(workers)
    # Until the processes have found each other, torchrun, which is not used here, would have to end the others.
    cases = [*product(victims, (STEPPING, SAVING)), ("all", STARTING)]
    chance.shuffle(cases)
    while tally.kills.total() < number:
        team, (victim, wanted) = start(run), cases[tally.kills.total() % len(cases)]
        wait_for(team, wanted, 0 if wanted == STARTING else chance.randrange(0, STEPS - EVERY, EVERY))
        time.sleep(chance.random() * {STARTING: 0.5, STEPPING: 0.02, SAVING: 0.02}[wanted])
        phase = team.phase
        team.kill(victim)
        if team.end(tally):
            tally.kills[PHASES[phase]] += 1
        saved = max(saved, team.saved)
        check(run, saved, tally)
        if saved == STEPS or chance.random() < 0.3:
            reference.judge(run, tally)
            shutil.rmtree(run)
            saved = 0
    if run.exists():
        reference.judge(run, tally)
    return tally


def wait_for(process, phase, after):
    """Wait until a run has saved step `after` and is in this phase, or has ended."""
    while process.phase != DONE and (process.phase != phase or process.saved < after) and not process.ended():
        time.sleep(0.001)


def kills_at_every_call(folder, every=1):
    """Kill a run before each (or every n-th) of its system calls that change files."""
    tally, reference, run = Tally(), Reference(folder), folder / "killed"
    for call, number in changes(traced(run, folder / "trace"))[::every]:
        shutil.rmtree(run)
        child = Child(run, stopped=True)
        tracer = strace(child, folder / "trace", f"inject={call}:signal=SIGKILL:when={number}")
        assert child.wait() == -signal.SIGKILL
        tracer.wait()
        tally.kills[PHASES[child.phase]] += 1
        check(run, child.saved, tally)
        reference.judge(run, tally)
    return tally


def traced(run, trace):
    """Return the lines of a complete run's trace: its calls that change files."""
    child = Child(run, stopped=True)
    tracer = strace(child, trace, f"trace={MUTATING}")
    assert child.wait() == 0
    tracer.wait()
    return trace.read_text().splitlines()


def changes(trace, wanted=lambda line: True):
    """Return (name, number among the calls of that name) of the wanted calls in a trace, except opening to read."""
    numbers, found = Counter(), []
    for line in trace:
        if call := re.match(r"\d+ +(\w+)\(", line):
            numbers[call[1]] += 1
            if wanted(line) and (not call[1].startswith("open") or "O_CREAT" in line):
                found.append((call[1], numbers[call[1]]))
    return found


def strace(child, trace, expression):
    """Attach strace to a stopped child and let it continue."""
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    command = ["strace", "-f", "-y", "-qq", "-p", str(child.pid), "-o", str(trace), "-e", expression]
    if expression.startswith("inject="):
        command += ["-e", expression.partition(":")[0].replace("inject", "trace")]  # otherwise strace prints all calls
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{child.pid}/status")
    while f"TracerPid:\t{tracer.pid}" not in status.read_text():
        assert tracer.poll() is None, "strace cannot attach to a process here"
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGCONT)
    return tracer
