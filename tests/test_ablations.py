"""The ablations: options change what they say, runs come in order, and verdicts follow the rule."""

from pathlib import Path

import pytest

from benchmarks.ablations import page, results
from benchmarks.ablations.options import BASE, OPTIONS, with_options
from benchmarks.ablations.page import Column, verdict, write_page
from benchmarks.ablations.results import RATES, SEEDS, Results
from benchmarks.ablations.running import ALL, Job
from benchmarks.ablations.tasks import TASKS
from perceivers.runs.recipe import preset_of

FOLDER = Path("data")


@pytest.mark.parametrize("name", TASKS)
def test_every_option_changes_the_recipe_of_a_task_or_has_no_meaning_there(name):
    task = TASKS[name](FOLDER)
    assert with_options(task, (BASE,)) == task.recipe
    for option in OPTIONS:
        recipe = with_options(task, (option,))
        if recipe is None:
            assert not task.axes
        elif option != BASE:
            assert recipe != task.recipe
            assert recipe.data == task.recipe.data
            assert recipe.training == task.recipe.training


def test_options_together():
    task = TASKS["bytes"](FOLDER)
    recipe = with_options(task, ("rms", "geglu", "rotary"))
    for stage in (recipe.config.encoder, recipe.config.processor, recipe.config.decoder):
        assert (stage.norm, stage.gated, stage.rotary.axes) == ("rms", True, task.axes)
    assert recipe.config.latents.places == task.places
    preset_of(recipe).build("meta")


def finished(scores, options, seeds=SEEDS, seconds=0.5, every_seed=True):
    """Return results whose score is scores(job)."""
    found = Results(step_seconds={task: dict.fromkeys(options, seconds) for task in TASKS})
    higher = {name: make(FOLDER).higher for name, make in TASKS.items()}
    while True:
        jobs = found.jobs(higher, every_seed)
        job = next((job for job in jobs if found.score(job) is None and job.seed in seeds), None)
        if job is None:
            return found
        found.runs.append({**vars(job), "steps": found.steps(job.task, job.option), "score": scores(job)})


def test_runs_come_in_order_and_options_take_the_best_rate():
    """With a score that is best at the middle rate, whether higher or lower is better."""
    sign = {name: 1 if make(FOLDER).higher else -1 for name, make in TASKS.items()}
    found = finished(lambda job: -sign[job.task] * abs(job.rate - RATES[1]), (BASE, "rms"))
    jobs = [Job(*(run[name] for name in ("task", "option", "rate", "seed"))) for run in found.runs]
    assert len(set(jobs)) == len(jobs) == len(TASKS) * (len(RATES) + len(SEEDS) - 1 + len(SEEDS))
    assert {(job.option, job.seed) for job in jobs[: len(TASKS) * len(RATES)]} == {(BASE, 0)}
    assert {job.rate for job in jobs if job.option == "rms" or job.seed} == {RATES[1]}
    assert all(run["steps"] == 480 for run in found.runs)  # 4 minutes at half a second


def test_all_that_helped_is_tried_at_three_rates(monkeypatch):
    monkeypatch.setattr(results, "TOGETHER", ("rms",))
    found = finished(lambda job: job.rate, (BASE, "rms", ALL))
    runs = [run for run in found.runs if run["option"] == ALL]
    assert len(runs) == len(TASKS) * (len(RATES) + len(SEEDS) - 1)


GAINS = {"rms": 3.0, "geglu": 0.5, "qk-norm": -2.0}
"""Gains in spreads; the scores of the seeds lie a spread below, at, and above the mean."""


def score_of(job):
    gain = GAINS.get(job.option, 0.0)
    if job.option == "qk-norm" and job.task != "bytes":
        gain = 3.0
    sign = 1 if TASKS[job.task](FOLDER).higher else -1
    return 10 + sign * gain + (job.seed - 1)


def test_verdicts_by_hand():
    found = finished(score_of, (BASE, *GAINS))
    columns = [Column.of(name, make(FOLDER), found) for name, make in TASKS.items()]
    assert [column.spread for column in columns] == pytest.approx([1.0] * len(TASKS))
    assert columns[0].gain("rms") == pytest.approx(3.0)
    assert verdict("rms", columns) == "**helpful**"
    assert verdict("geglu", columns) == "no difference"
    assert verdict("qk-norm", columns) == "helps on 3, harms on 1"
    assert verdict(BASE, columns) == ""


def test_options_that_are_behind_under_the_first_seed_are_left_there(tmp_path):
    found = finished(score_of, (BASE, *GAINS), every_seed=False)
    seeds = {option: {run["seed"] for run in found.runs if run["option"] == option} for option in GAINS}
    assert seeds == {"rms": {*SEEDS}, "qk-norm": {*SEEDS}, "geglu": {0}}  # geglu's first seed: 0.5 - 1 beside 0
    write_page(found, FOLDER, tmp_path / "page.md")
    line = next(x for x in (tmp_path / "page.md").read_text().splitlines() if OPTIONS["geglu"].title in x)
    assert line.endswith("| behind under the first seed |")


def test_the_page_has_what_has_finished(tmp_path):
    write_page(finished(score_of, (BASE, *GAINS)), FOLDER, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert f"| {OPTIONS['rms'].title} |" in text
    assert "**helpful**" in text
    assert OPTIONS["rotary"].title not in text.partition("## Steps")[0]
    unfinished = finished(score_of, (BASE, *GAINS), seeds=(0,))
    write_page(unfinished, FOLDER, tmp_path / "none.md")
    assert "helpful**" not in (tmp_path / "none.md").read_text().partition("In brackets")[2]
    assert page.NEEDED == 3
