"""A run's folder belongs to one recipe and its data: it is never claimed by mistake, nor shared with other runs."""

import fcntl
import io
import json
import multiprocessing
import os
import re
import select
import shutil
import tarfile
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from perceivers.cli.training import chosen_recipe
from perceivers.data import Arrays, FlowScenes, ImageFolder, Shards, Table
from perceivers.data.fingerprint import differences, fingerprint
from perceivers.data.validation import read_parts
from perceivers.media.image_files import write_image
from perceivers.modalities import Image, Label, Numbers
from perceivers.progress import progress
from perceivers.runs import train as runs_train
from perceivers.runs.recipe import Recipe, preset_of
from perceivers.runs.run import read_recipe
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.training.checkpoints import latest_checkpoint
from perceivers.training.distributed import launch
from perceivers.training.logging import read_log
from perceivers.training.loop import train
from perceivers.training.training_config import TrainingConfig
from test_processes import together
from tiers import few

SETTINGS = "training: {num_steps: 2, checkpoint_every: 1, log_every: 1, batch_size: 8}\n"
SCHEMA = "schema: {inputs: {a: {kind: numbers}}, outputs: {b: {kind: label}}}\n"


@pytest.fixture
def table(tmp_path):
    rows = [f"{number % 7},{'xyz'[number % 3]},{number}" for number in range(40)]
    (tmp_path / "own.csv").write_text("a,b,unused\n" + "\n".join(rows) + "\n")
    (tmp_path / "schema.yaml").write_text(SCHEMA + SETTINGS)
    return tmp_path


@pytest.fixture
def start(command, table):
    """Return a function that starts or resumes the run, and returns exit code and message."""

    def start(*arguments):
        code, _, err = command(
            *("train", table / "schema.yaml", "--data", table / "own.csv", "--out", table / "run", *arguments)
        )
        return code, err

    return start


@pytest.fixture
def go(table):
    """Return a function that runs without scores and report, and returns the message of a refusal."""

    def go(accept=False):
        try:
            chosen = chosen_recipe(str(table / "schema.yaml"), str(table / "own.csv"))
            run_recipe(chosen, table / "run", accept_changed_data=accept)
        except ValueError as error:
            return str(error)
        return ""

    return go


def lines_changed(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def other_label(lines):
    return [line.replace(",x,", ",y,") if number == 10 else line for number, line in enumerate(lines)]


def other_labels(lines):
    return [line.replace(",x,", ",y,") for line in lines]


def other_label_of_a_new_class(lines):
    return [line.replace(",x,", ",new,") if number in (10, 13, 16) else line for number, line in enumerate(lines)]


def other_number(lines):
    return [line.replace("3,", "4,", 1) if number in (4, 11) else line for number, line in enumerate(lines)]


CHANGES = {
    other_label: ("other b",),
    other_number: ("other a",),
    lambda lines: [*lines, "3,x,41"]: ("records, before",),
    lambda lines: lines[:-1]: ("records, before",),
    lambda lines: [lines[0], *reversed(lines[1:])]: ("other a, b",),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_told_and_accepted(go, table, change):
    assert not go()
    shutil.rmtree(latest_checkpoint(table / "run"))  # as if the run had been killed before
    before = json.loads((table / "run" / "data.json").read_text())
    written = (table / "run" / "recipe.yaml").read_text()
    lines_changed(table / "own.csv", change)
    told = go()
    assert re.match(r"the data of .*/run have changed since it began \(.*\): --accept-changed-data goes on$", told)
    assert all(said in told for said in CHANGES[change]), told
    assert json.loads((table / "run" / "data.json").read_text()) == before
    assert not go(accept=True)
    kept = json.loads((table / "run" / "data.json").read_text())
    assert kept["parts"] != before["parts"]
    assert [accepted["step"] for accepted in kept["accepted"]] == [1]
    assert (table / "run" / "recipe.yaml").read_text() == written
    assert not go()  # later starts continue with the accepted data


def test_a_new_class_cannot_be_accepted(go, table):
    """The model has no output for the new class."""
    assert not go()
    shutil.rmtree(latest_checkpoint(table / "run"))
    lines_changed(table / "own.csv", other_label_of_a_new_class)
    assert "other b" in go()
    assert "'new'" in go(accept=True)


def test_the_command_tells_and_accepts(start, table):
    assert start()[0] == 0
    lines_changed(table / "own.csv", other_label)
    code, err = start()
    assert (code, err.count("\n")) == (2, 1)
    assert "training: other b" in err or "held out: other b" in err
    assert start("--accept-changed-data")[0] == 0


@pytest.mark.parametrize(
    ("change", "said"), [(other_labels, "other b"), (lambda lines: [*lines, *lines[1:9]], "records, before")]
)
def test_scores_of_other_records_than_were_held_out_are_told(command, start, table, change, said):
    """A table that grew is split anew: the run has trained on some of the rows that are now held out."""
    assert start()[0] == 0
    assert command("evaluate", table / "run")[2] == ""
    lines_changed(table / "own.csv", change)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = command("evaluate", table / "run")
    assert (code, err.count("\n")) == (0, 1)
    assert re.match(r"perceivers: warning: the data of .*/run have changed since it began \(held out: ", err)
    assert said in err


def test_what_is_no_change_is_not_told(go, table):
    """A moved file with the same content, another time, or a change in a column that is not used."""
    assert not go()
    lines_changed(table / "own.csv", lambda lines: [f"{line}7" for line in lines[:1]] + [f"{x}1" for x in lines[1:]])
    copy = shutil.copy(table / "own.csv", table / "copy.csv")
    (table / "own.csv").unlink()
    shutil.move(copy, table / "own.csv")
    os.utime(table / "own.csv", (1, 1))
    assert not go()


def test_a_run_without_a_fingerprint_goes_on_and_gets_one(go, table):
    assert not go()
    kept = (table / "run" / "data.json").read_text()
    (table / "run" / "data.json").unlink()
    assert not go()
    assert (table / "run" / "data.json").read_text() == kept
    (table / "run" / "data.json").write_text('{"parts": [1]}')
    assert "parts: Input should be a valid dictionary, not [1]: it holds no fingerprint of data" in go()


def test_fingerprints_are_of_content(tmp_path):
    """Fingerprints cover pictures named in cells, arrays, folders and shards; of generated data only the number."""
    rng = np.random.default_rng(0)
    schema = Schema({"image": Image(size=5, channels=3)}, {"label": Label(classes=("a", "b"))})
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "pictures" / name, rng.integers(0, 255, (5, 5, 3)).astype(np.uint8))
    (tmp_path / "list.csv").write_text("image,label\n" + "".join(f"pictures/{x}/1.png,{x}\n" for x in "abab"))
    arrays = {"image": rng.random((6, 5, 5, 3)), "label": np.array([0, 1] * 3)}
    np.savez(tmp_path / "arrays.npz", **arrays)
    sets = {
        "table": Table(file=str(tmp_path / "list.csv"), held_out_fraction=0.5),
        "folder": ImageFolder(folder=str(tmp_path / "pictures"), held_out_fraction=0.5),
        "arrays": Arrays(training_file=str(tmp_path / "arrays.npz")),
    }

    def found():
        fresh = {name: replace(data) for name, data in sets.items()}  # fresh objects, without cached records
        return {name: {"all": fingerprint(data, schema, data.training())} for name, data in fresh.items()}

    before = found()
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1, 1))
    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "pictures")
    assert found() == before
    write_image(tmp_path / "pictures" / "a" / "1.png", rng.integers(0, 255, (5, 5, 3)).astype(np.uint8))
    write_image(tmp_path / "pictures" / "b" / "1.png", rng.integers(0, 255, (5, 5, 3)).astype(np.uint8))
    arrays["label"][:] = 1
    np.savez(tmp_path / "arrays.npz", **arrays)
    after = found()
    said = {name: differences(before[name], after[name]) for name in before}
    assert said == {"table": "all: other image", "folder": "all: other files", "arrays": "all: other label"}
    scenes = FlowScenes(size=(8, 8), num_training=7)
    assert fingerprint(scenes, schema, scenes.training()) == {"records": 7, "files": ""}


def test_shards_and_large_files_are_sampled(tmp_path):
    def write(name, byte):
        with tarfile.open(tmp_path / name, "w") as tar:
            for number in range(3):
                data = bytes([byte]) * 700_000
                member = tarfile.TarInfo(f"{number}.bin")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    schema = Schema({"a": Numbers()}, {"a": Numbers()})
    found = []
    for byte in (1, 1, 2):
        write("x-0.tar", 0)
        write("x-1.tar", byte)
        shards = Shards(files=str(tmp_path / "x-*.tar"))
        found.append(fingerprint(shards, schema, shards.training()))
    assert found[0] == found[1]
    assert found[0]["records"] == found[2]["records"]
    assert found[0] != found[2]


def test_a_refused_recipe_claims_nothing(start, table):
    """Wrong data, settings, sizes, processes, devices or source models leave the folder free for another recipe."""
    for refused in (
        ("--set", "data.file=nowhere.csv"),
        ("--set", "schema.outputs.b.key=missing"),
        ("--set", "config={latents: {num_latents: 5, channels: 7}, processor: {num_heads: 2}}"),
        ("--set", "training.devices=3"),
        ("--set", "training.accelerator=mps"),
        ("--set", "training.validation_fraction=0.99"),
        ("--from", "nowhere"),
        ("--freeze", "nothing"),
    ):
        code, err = start(*refused)
        assert (code, err.count("\n")) == (2, 1), err
        assert not (table / "run" / "recipe.yaml").exists(), refused
    assert start()[0] == 0


def test_a_run_that_made_no_step_leaves_its_folder_to_another_recipe(start, table):
    """A run that fails at its first step does not keep the folder; after a step, the folder belongs to the run."""
    (table / "empty.csv").write_text("a,b\n" + "1,\n" * 20)
    code, err = start("--set", f"data.file={table / 'empty.csv'}", "schema.outputs.b.classes=[x, y]")
    assert (code, "no record of the batch has a target" in err) == (2, True), err
    assert (table / "run" / "recipe.yaml").exists()
    assert start()[0] == 0
    code, err = start("--set", "training.seed=5")
    assert (code, "holds a run of another recipe" in err) == (2, True)


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "log.jsonl", "metrics.json", "report.html", "command.txt", "data.json"]
)
def test_files_of_others_are_not_replaced(start, table, name):
    """A file in a folder that does not belong to a run stays."""
    (table / "run").mkdir()
    text = "# mine\n" + (table / "schema.yaml").read_text() + f"data: {{kind: table, file: {table}/own.csv}}\n"
    (table / "run" / name).write_text(text)
    code, err = start()
    assert (code, err.count("\n")) == (2, 1)
    assert f"run/{name}" in err
    assert (table / "run" / name).read_text() == text
    assert os.listdir(table / "run") == [name]


@pytest.mark.parametrize("steps", few([1, 40], [1]))
def test_two_starts_at_once_do_not_mix(table, monkeypatch, steps):
    """Two recipes find the folder empty: one runs there, the other is refused."""
    launch(TrainingConfig(accelerator="cpu"))  # import once, before the forks
    both, said = multiprocessing.Barrier(2), [multiprocessing.Pipe() for _ in range(2)]
    run, pids = table / "run", []

    def together_with_the_other(*arguments):
        both.wait()
        return train(*arguments)

    monkeypatch.setattr(runs_train, "train", together_with_the_other)
    schema = Schema({"a": Numbers()}, {"b": Label()})
    for seed in (0, 1):
        pids.append(os.fork())
        if pids[-1] == 0:
            training = TrainingConfig(num_steps=steps, seed=seed, accelerator="cpu")
            try:
                run_recipe(Recipe(Table(file=str(table / "own.csv")), schema, training=training), run)
                said[seed][1].send("")
            except BaseException as error:
                said[seed][1].send(f"{type(error).__name__}: {error}")
            os._exit(0)
    found = [own[0].recv() for own in said]
    for pid in pids:
        os.waitpid(pid, 0)
    (loser,) = [seed for seed in (0, 1) if found[seed]]
    assert re.match("ValueError: .* (in use by another training|holds a run of another recipe)", found[loser])
    assert read_recipe(run).training.seed == 1 - loser
    assert [line["step"] for line in read_log(run)] == list(range(20, steps + 1, 20))


def test_a_locked_folder_is_not_written_to(start, table):
    """A second run, of whatever recipe, is refused."""
    (table / "run" / "checkpoints").mkdir(parents=True)
    ready, said = os.pipe()
    holder = os.fork()
    if holder == 0:
        with (table / "run" / "checkpoints" / ".lock").open("w") as own:
            fcntl.lockf(own, fcntl.LOCK_EX)
            os.write(said, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    code, err = start()
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    assert (code, "in use by another training" in err) == (2, True), err
    assert not (table / "run" / "recipe.yaml").exists()


def test_processes_agree_on_a_refusal(table):
    """Only the first process inspects the folder, but all processes end."""

    def run(rank):
        data = Table(file=str(table / "own.csv"))
        schema = Schema({"a": Numbers()}, {"b": Label()})
        parts = read_parts(data, schema)
        model = Recipe(data, parts.schema)

        def refuse(step):
            assert rank == 0
            raise ValueError(f"refused at step {step}")

        config = TrainingConfig(num_steps=1, accelerator="cpu")
        with pytest.raises(ValueError, match="refused at step 0"):
            train(preset_of(model).build(), parts.training, config, table / "run", refuse)

    together(2, run)
    assert os.listdir(table / "run") == ["checkpoints"]


def test_progress_is_a_line_a_minute_where_there_is_no_terminal(tmp_path):
    now = [0.0]
    with (tmp_path / "errors").open("w+") as file:
        console = Console(file=file, force_terminal=None)
        with progress("training", 1000, 100, console=console, clock=lambda: now[0]) as report:
            for step in range(101, 301):
                now[0] += 1.7
                report(step, "[b] 0.5" if step == 120 else None)
        file.flush()
        lines = (tmp_path / "errors").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0] == "training 136/1000  1 min  [b] 0.5"
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("variable", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_bar_is_drawn_into_a_file(go, monkeypatch, capsys, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    assert not go()
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal():
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as file:
        console = Console(file=file, _environ={"TERM": "xterm", "COLUMNS": "120"})
        with progress("training", 10, console=console) as report:
            report(7, "label 0.5")
        file.flush()
        drawn = ""
        # A terminal hands over what was written piece by piece; ten seconds without any mean that nothing follows.
        while not ("7/10" in drawn and "label 0.5" in drawn) and select.select([leader], [], [], 10)[0]:
            drawn += os.read(leader, 100_000).decode(errors="replace")
    os.close(leader)
    assert "7/10" in drawn
    assert "label 0.5" in drawn
