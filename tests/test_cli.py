"""The command as a shell sees it: help, results, one line and exit code 2 for wrong input."""

import json
import subprocess
import sys

import pytest

from perceivers.cli.verbs import VERBS

QUICK = ["--set", "training.num_steps=3", "training.batch_size=8", "training.schedule.warmup_steps=1"]


def perceivers(*arguments):
    command = [sys.executable, "-m", "perceivers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    result = perceivers("train", "digits", "--out", folder, *QUICK, "--json")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_train_prints_scores_and_leaves_a_run(run):
    folder, result = run
    scores = json.loads(result.stdout)
    assert 0 <= scores["all pixels read"]["label"]["accuracy"] <= 1
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml",
        "log.jsonl",
        "checkpoints",
        "metrics.json",
        "report.html",
    }
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "nearest read pixel" in page


def test_evaluate_prints_the_same_scores(run):
    folder, result = run
    again = perceivers("evaluate", folder, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(result.stdout)


def test_a_recipe_file_trains(run, tmp_path):
    folder, _ = run
    recipe = tmp_path / "mine.yaml"
    recipe.write_text((folder / "recipe.yaml").read_text())
    result = perceivers("train", recipe, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_help(verb):
    result = perceivers(verb, "--help")
    assert result.returncode == 0
    assert VERBS[verb].__doc__.splitlines()[0][:40] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit", "--out", "x"], "no task is called 'digit': there are digits"),
        (["train", "none.yaml", "--out", "x"], "none.yaml: No such file"),
        (["train", "digits", "--out", "x", "--set", "training.steps=3"], "training.steps: unknown field"),
        (["train", "digits", "--out", "x", "--set", "training"], "must be place=value"),
        (["train", "digits", "--out", "x", "--set", "a.b=1"], "the recipe has no a"),
        (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_wrong_input_gets_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = perceivers(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_wrong_options_exit_with_2():
    assert perceivers("train", "digits").returncode == 2
    assert perceivers("nonsense").returncode == 2


def test_another_recipe_in_the_same_folder_is_refused(run):
    folder, _ = run
    before = (folder / "recipe.yaml").read_text()
    result = perceivers("train", "digits", "--out", folder, "--set", "training.num_steps=51")
    assert result.returncode == 2
    assert "holds a run of another recipe" in result.stderr
    assert (folder / "recipe.yaml").read_text() == before
