"""A run killed anywhere and started again loses nothing and ends with the same bits: a tenth of the kills here."""

import re
from datetime import date
from pathlib import Path

import pytest

import kills
from perceivers import storage
from perceivers.training import state

PAGE = Path(__file__).parent.parent / "docs" / "proof.md"

TEXT = """# Proof

Written by `make proof` (`tests/test_kills.py`) on {date}. A short run (dropout, random points, averaged weights,
accumulation, validation; a save every second step) is killed with SIGKILL, started again with the same arguments, and
at its end compared with the run that was left alone: every byte of weights, moments and averages, every logged line.

| kills | number | in a save | in a step | checkpoints lost | runs that ended otherwise |
| --- | ---: | ---: | ---: | ---: | ---: |
{rows}

A checkpoint is lost if, after a kill, the newest whole one is older than the last whose save had returned. Kills at
system calls are one before each call of a whole run that changes a file (injected by strace).
"""


def campaign(folder, number, every):
    """Random kills with and without workers, then kills at system calls: what they found, by name."""
    found = {
        f"at random, {workers} workers": kills.random_kills(folder / str(workers), number // 2, workers)
        for workers in (0, 2)
    }
    found["at each system call that changes a file"] = kills.kills_at_every_call(folder / "calls", every)
    return found


def check(found):
    for name, tally in found.items():
        print(f"{name}: {tally}")
        assert (tally.lost, tally.diverged) == (0, 0), name
    at_random = sum((tally.kills for name, tally in found.items() if "random" in name), kills.Counter())
    assert min(at_random["in a save"], at_random["in a step"]) >= at_random.total() / 3, at_random


def test_a_tenth_of_the_kills(tmp_path):
    check(campaign(tmp_path, 20, every=10))


@pytest.mark.slow
def test_all_kills(tmp_path):
    """200 random ones, and one at every call; writes docs/proof.md."""
    found = campaign(tmp_path, 200, every=1)
    rows = [
        [name, t.kills.total(), t.kills["in a save"], t.kills["in a step"], t.lost, f"{t.diverged} of {t.finished}"]
        for name, t in found.items()
    ]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    PAGE.write_text(TEXT.format(date=date.today(), rows="\n".join(lines)))
    check(found)


def test_a_planted_bug_is_found(tmp_path, monkeypatch):
    """The suite turns red if checkpoints are written in their place, over the old ones."""

    def in_place(target, write):
        target = target.with_name("step-00000002")
        target.mkdir(parents=True, exist_ok=True)
        write(target)
        files = {path.name: storage._fingerprint(path) for path in target.glob("[!m]*")}
        storage.write_text(target / storage.MANIFEST, storage.json.dumps(files))

    monkeypatch.setattr(state, "write_folder", in_place)
    tally = kills.kills_at_every_call(tmp_path, every=10)
    assert tally.lost or tally.diverged, tally


def test_everything_is_on_disk_before_it_has_its_name(tmp_path):
    """As a loss of power sees it: each file synced after its last change, then the folder, the name, the parent."""
    waiting, seen = {}, 0
    for line in kills.traced(tmp_path / "run", tmp_path / "trace"):
        synced = re.search(r"f(?:data)?sync\(\d+<(.*?)>", line)
        changed = re.search(r"(?:write|ftruncate|pwrite64)\(\d+<(.*?)>|O_CREAT.*= \d+<(.*?)>", line)
        renamed = re.search(r'rename(?:at2?)?\((?:AT_FDCWD<.*?>, )?"(.*?)", (?:AT_FDCWD<.*?>, )?"(.*?)"', line)
        if synced:
            waiting.pop(synced[1], None)
        elif changed:
            waiting[changed[1] or changed[2]] = line
        elif renamed and not renamed[1].endswith(storage.UNFINISHED):
            waiting[renamed[2]] = waiting.pop(renamed[1], line)
        elif renamed:
            seen += 1
            assert not [path for path in waiting if path.startswith(renamed[1])], line
            waiting[str(Path(renamed[2]).parent)] = line  # until its folder is synced
    assert seen > kills.STEPS / kills.EVERY
    assert not waiting.keys() & {str(tmp_path / "run"), str(tmp_path / "run" / "checkpoints")}
