"""The command as a shell sees it: help, results, one line and exit code 2 for wrong input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from held_out import accuracy_of
from perceivers import from_pretrained
from perceivers.cli.verbs import VERBS
from perceivers.runs.results import keep_command, run_card
from perceivers.runs.run import Run

ROOT = Path(__file__).parent.parent
QUICK = [
    "--set",
    "training.num_steps=3",
    "training.batch_size=8",
    "training.schedule.warmup_steps=1",
    "training.log_every=1",
]


def perceivers(*arguments, cwd=None):
    command = [sys.executable, "-m", "perceivers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=cwd)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = perceivers("train", "digits", "--out", folder, *QUICK, "--json")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_train_prints_scores_and_leaves_a_run(run):
    folder, result = run
    scores = json.loads(result.stdout)
    assert scores["all pixels read"]["label"]["accuracy"] == pytest.approx(accuracy_of(folder, "label"))
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml",
        "log.jsonl",
        "checkpoints",
        "metrics.json",
        "command.txt",
        "data.json",
        "report.html",
    }
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "psnr of the nearest read pixel" in page


def test_evaluate_prints_the_same_scores(command, run):
    folder, result = run
    code, out, _ = command("evaluate", folder, "--json")
    assert code == 0
    own, further = json.loads(out), json.loads(result.stdout)
    assert own == {name: further[name] for name in own}
    assert "unread pixels, a quarter of the pixels read" in further


def test_a_run_becomes_a_model_folder_with_its_scores(command, run, tmp_path):
    folder, result = run
    code, _, err = command("convert", folder, tmp_path / "model")
    assert code == 0, err
    card = (tmp_path / "model" / "README.md").read_text()
    accuracy = json.loads(result.stdout)["all pixels read"]["label"]["accuracy"]
    assert f"| all pixels read | label accuracy {accuracy:.4g};" in card
    assert f"    perceivers train digits --out {folder}" in card
    model, own = from_pretrained(tmp_path / "model"), Run(folder).model
    assert all(map(torch.equal, model.state_dict().values(), own.state_dict().values()))


def test_a_card_names_the_run_that_another_started_from(run, tmp_path):
    folder, _ = run
    second = shutil.copytree(folder, tmp_path / "second")
    recipe = (second / "recipe.yaml").read_text()
    assert "start_from: null" in recipe
    (second / "recipe.yaml").write_text(recipe.replace("start_from: null", f"start_from: {folder}"))
    keep_command(second, "perceivers train again")
    first, again = (run_card(second).index(command) for command in ("train digits --out", "perceivers train again"))
    assert first < again


@pytest.mark.parametrize("count", [1, 3])
def test_runs_that_start_from_one_another_in_a_circle_are_told(command, run, tmp_path, count):
    folders = [shutil.copytree(run[0], tmp_path / f"run-{number}") for number in range(count)]
    for folder, earlier in zip(folders, [*folders[1:], folders[0]], strict=True):
        recipe = (folder / "recipe.yaml").read_text()
        (folder / "recipe.yaml").write_text(recipe.replace("start_from: null", f"start_from: {earlier}"))
    code, _, err = command("convert", folders[0], tmp_path / "model")
    assert (code, err.count("\n")) == (2, 1)
    assert f"a circle: {' -> '.join(map(str, [*folders, folders[0]]))}: correct" in err


@pytest.mark.slow
def test_the_recipe_of_the_documentation_trains_on_own_files(tmp_path):
    """Follow docs/recipes.md as a user would; the speed is the slope of the signal, so it can be learned."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    rng = np.random.default_rng(0)
    for name, count in (("train.npz", 64), ("test.npz", 16)):
        speed = rng.normal(size=count)
        signal = speed[:, None, None] * np.linspace(-1, 1, 64)[:, None] + rng.normal(size=(count, 64, 3)) / 10
        np.savez(tmp_path / name, signal=signal, speed=speed, colour=rng.choice(["red", "blue"], count))
    result = perceivers("train", "mine.yaml", "--out", "runs/mine", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["held out"]["speed"]["r2"] > 0.5
    assert (tmp_path / "runs" / "mine" / "report.html").read_text().count("data:image/png") == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_help(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert VERBS[verb].__doc__.splitlines()[0][:40] in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit", "--out", "x"], "no task is called 'digit': there are digits"),
        (["train", "none.yaml", "--out", "x"], "none.yaml: No such file"),
        (["train", "digits", "--out", "x", "--set", "training.steps=3"], "training.steps: unknown field"),
        (["train", "digits", "--out", "x", "--set", "training"], "must be field=value"),
        (["train", "digits", "--out", "x", "--set", "a.b=1"], "there is no a"),
        (["train", "digits", "--out", "x", "--data", "y.csv"], "--data goes with a file, and digits is a task"),
        (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_wrong_input_gets_one_line_and_exit_code_2(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        pytest.param(["train", "digits"], "--out", marks=pytest.mark.slow),
        pytest.param(["flow", "--bogus", "3"], "--bogus", marks=pytest.mark.slow),
        pytest.param(
            ["fill-mask", "hi", "--random-weights", "0", "--memory-limit", "0"],
            "memory_limit = '0' must be",
            marks=pytest.mark.slow,
        ),
        (["plan", "language", "--batch-size", "0"], "batch_size = 0 must be a whole number, at least 1"),
    ],
)
def test_wrong_options_get_one_line_and_exit_code_2(arguments, message):
    result = perceivers(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_training_again_continues_a_finished_run(command, run):
    """The folder keeps the recipe as given, together with the fitted statistics."""
    folder, result = run
    code, out, _ = command("train", "digits", "--out", folder, *QUICK, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(result.stdout)


def test_another_recipe_in_the_same_folder_is_refused(command, run):
    folder, _ = run
    before = (folder / "recipe.yaml").read_text()
    code, _, err = command("train", "digits", "--out", folder, "--set", "training.num_steps=51")
    assert code == 2
    assert "holds a run of another recipe" in err
    assert (folder / "recipe.yaml").read_text() == before
