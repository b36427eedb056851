"""Scores of a model on other data than its own; optical flow in tiles, from coarse to fine, with baselines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.data import FlowPairs, FlowScenes
from perceivers.files.durable_folder import write_folder
from perceivers.media.flow_files import write_flow
from perceivers.media.image_files import write_image
from perceivers.modalities import Labels, Numbers
from perceivers.pretrained.model_folder import save_model
from perceivers.runs.evaluate import DataSets, evaluate_run, scorer_for
from perceivers.runs.recipe import preset_of
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.schema.schema_files import to_yaml
from perceivers.systems import SCORERS
from perceivers.systems.optical_flow.baselines import as_bytes, no_motion, score_in_tiles, scores_of
from perceivers.systems.optical_flow.inference import estimate_flow, levels_for
from perceivers.systems.optical_flow.recipes import side_by_side
from perceivers.systems.optical_flow.report import report
from perceivers.training.metrics import evaluate, scored
from perceivers.training.training_config import TrainingConfig
from test_flow_pairs import HEIGHT, WIDTH, write_middlebury

STEPS = TrainingConfig(num_steps=1, batch_size=2, log_every=1, accelerator="cpu")
TABLE = "schema: {inputs: {a: {kind: numbers}}, outputs: {b: {kind: label}}}\ntraining: {num_steps: 2, log_every: 1}\n"


@pytest.mark.parametrize(
    ("size", "levels"), [((48, 64), 1), ((95, 300), 1), ((96, 128), 2), ((436, 1024), 4), ((20, 30), 1)]
)
def test_levels_leave_frames_no_smaller_than_those_learned_from(size, levels):
    assert levels_for(size, (48, 64)) == levels


def test_no_level_is_refused():
    model, frame = (
        preset_of(replace(side_by_side("3x3"), data=FlowScenes(size=(8, 8)))).build(),
        np.zeros((8, 8, 3), np.uint8),
    )
    with pytest.raises(ValueError, match="levels = 0 must be a whole number, at least 1"):
        estimate_flow(model, frame, frame, levels=0)


def test_flow_is_scored_in_tiles_beside_the_baselines(command, tmp_path):
    recipe = replace(side_by_side("conv"), data=FlowScenes(size=(8, 8), num_training=4, num_held_out=3), training=STEPS)
    run_recipe(recipe, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text('{"held out": {"flow": {"epe": 1.5}}}')
    write_middlebury(tmp_path)
    pairs = FlowPairs(folder=str(tmp_path), layout="middlebury", held_out_every=1)
    (tmp_path / "others.yaml").write_text(to_yaml(DataSets({"three": pairs})))

    code, out, err = command("evaluate", tmp_path / "run", "--on", tmp_path / "others.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    known = np.concatenate([r["flow"][np.isfinite(r["flow"]).all(-1)] for r in pairs.held_out()])
    assert {"three", "three, no motion"} <= found.keys()
    assert found["three, no motion"]["flow"]["epe"] == pytest.approx(np.hypot(*known.T).mean(), rel=1e-5)
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert kept == {"held out": {"flow": {"epe": 1.5}}} | found


def test_a_model_that_says_no_motion_scores_as_no_motion_does():
    recipe = replace(side_by_side("3x3"), data=FlowScenes(size=(HEIGHT, WIDTH), num_held_out=2))
    model, records = preset_of(recipe).build(), recipe.data.held_out()  # an untrained model predicts no motion
    still = scores_of({"still": no_motion}, records, model.schema)["still"]
    assert score_in_tiles(model, records, model.schema) == still
    with torch.no_grad():
        for parameter in model.output_adapter.parameters():
            parameter.add_(1.0)
    assert score_in_tiles(model, records, model.schema) != still


def test_a_run_on_pairs_of_several_sizes_is_scored_and_drawn(tmp_path):
    write_middlebury(tmp_path)
    large = np.zeros((2 * HEIGHT, 3 * WIDTH, 3), np.uint8)
    for number in (10, 11):
        write_image(tmp_path / "other-data" / "Zoo" / f"frame{number}.png", large)
    write_flow(tmp_path / "other-gt-flow" / "Zoo" / "flow10.flo", np.zeros((*large.shape[:2], 2), np.float32))
    data = FlowPairs(folder=str(tmp_path), layout="middlebury", held_out_every=2)
    assert len({record["flow"].shape for record in data.held_out()}) == 2
    recipe = replace(side_by_side("3x3"), data=data, training=replace(STEPS, batch_size=1))
    run_recipe(recipe, tmp_path / "run")
    scores, model = evaluate_run(Run(tmp_path / "run"), SCORERS), Run(tmp_path / "run").model
    distances = []
    for record in data.held_out():
        found = estimate_flow(model, *as_bytes(record["frames"]), levels=None)
        distances.append(np.linalg.norm(found - record["flow"], axis=-1).ravel())
    expected = np.nanmean(np.concatenate(distances))
    assert scores["held out"]["flow"]["epe"] == pytest.approx(expected, rel=1e-4)
    keep_scores(tmp_path / "run", scores)
    assert report(Run(tmp_path / "run")).read_text().count("<img") >= 2


def test_a_model_without_a_run_is_scored_on_a_table(command, tmp_path):
    (tmp_path / "own.csv").write_text("a,b\n" + "".join(f"{n % 7},{'xy'[n % 2]}\n" for n in range(40)))
    (tmp_path / "other.csv").write_text("a,b\n1,x\n2,y\n3,x\n4,y\n")
    (tmp_path / "recipe.yaml").write_text(TABLE)
    train = ("train", tmp_path / "recipe.yaml", "--data", tmp_path / "own.csv", "--out", tmp_path / "run", "--json")
    assert command(*train)[0] == 0
    assert command("convert", tmp_path / "run", tmp_path / "model")[0] == 0
    (tmp_path / "others.yaml").write_text(
        f"data: {{later: {{kind: table, file: {tmp_path}/own.csv, held_out_file: {tmp_path}/other.csv}}}}\n"
    )
    scores = []
    for model in ("run", "model"):
        code, out, err = command("evaluate", tmp_path / model, "--on", tmp_path / "others.yaml", "--json")
        assert code == 0, err
        scores.append(json.loads(out))
    assert scores[0] == scores[1]
    assert scores[0]["later"]["b"]["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert not (tmp_path / "model" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {a: {kind: tabel, file: x.csv}}", "data.a.kind: unknown kind 'tabel'; did you mean 'table'?"),
        ("[1, 2]", "others.yaml"),
        ("data: {a: {kind: table, file: nowhere.csv}}", "nowhere.csv"),
    ],
)
def test_a_wrong_file_of_data_sets_gets_one_line(command, tmp_path, text, message):
    recipe = replace(side_by_side("conv"), data=FlowScenes(size=(8, 8)))
    write_folder(tmp_path / "model", lambda folder: save_model(preset_of(recipe).build(), folder))
    (tmp_path / "others.yaml").write_text(text)
    code, _, err = command("evaluate", tmp_path / "model", "--on", tmp_path / "others.yaml")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_groups_are_of_own_records_alone(command, tmp_path):
    code, _, err = command("evaluate", tmp_path, "--on", tmp_path / "others.yaml", "--by", "kind")
    assert code == 2
    assert "leave one of them out" in err


UNDEFINED = {
    "one number": (Numbers(further_metrics=("pearson",)), [[1.0]], [[2.0]], ["r2", "pearson"]),
    "equal numbers": (Numbers(further_metrics=("pearson",)), [[1.0], [2.0]], [[0.1], [0.1]], ["r2", "pearson"]),
    "equal guesses": (Numbers(further_metrics=("pearson",)), [[1.0], [1.0]], [[0.1], [0.3]], ["pearson"]),
    "one label": (Labels(classes=3), [[1.0, 2.0, 3.0]], [[1.0, 0.0, 1.0]], ["mAP"]),
    "all labels": (Labels(classes=1), [[1.0], [2.0]], [[1.0], [1.0]], ["mAP"]),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_score_that_has_no_value_is_nan_and_the_others_stay(name):
    spec, guess, true, undefined = UNDEFINED[name]
    pair = spec.metric_inputs(torch.tensor(guess), torch.tensor(true))
    nothing = spec.metric_inputs(torch.tensor(guess), torch.full_like(torch.tensor(true), torch.nan))
    found = scored({"y": spec, "z": spec}, [("y", nothing), ("y", pair), ("z", nothing)])
    assert [metric for metric, value in found["y"].items() if np.isnan(value)] == undefined
    assert "z" not in found


def test_mean_average_precision_is_of_the_classes_that_some_have():
    logits = torch.tensor([[3.0, 0.1, 5.0], [-2.0, 0.2, -5.0], [1.0, 0.3, 5.0], [0.5, 0.9, 0.7]])
    true = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    spec, rows = Labels(classes=3), [slice(0, 3), slice(3, 4)]  # alone, the last ones could pass for probabilities
    found = scored({"y": spec}, [("y", spec.metric_inputs(logits[own], true[own])) for own in rows])
    assert found["y"]["mAP"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_a_run_with_one_known_number_to_score_has_its_scores(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{'xy'[i % 2]},{i},{i if i < 9 or i == 19 else ''}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,time,c", *rows]))
    (tmp_path / "s.yaml").write_text(
        "data: {kind: table, file: t.csv, order: time, held_out_fraction: 0.2}\n"
        "inputs: {a: {kind: numbers}}\noutputs: {b: {kind: label}, c: {kind: numbers}}\n"
        "config: {latents: {num_latents: 3, channels: 8}, processor: {num_layers: 1}}\n"
        "training: {num_steps: 1, batch_size: 8, accelerator: cpu}\n"
    )
    code, out, err = command("train", "s.yaml", "--out", "run", "--json")
    assert code == 0, err
    scores = json.loads(out)["held out"]
    assert scores["c"]["r2"] is None
    assert scores["c"]["mae"] is not None


def test_pairs_of_any_size_are_never_scored_in_batches_by_mistake():
    assert scorer_for(FlowPairs(), SCORERS) is score_in_tiles
    assert scorer_for(FlowScenes(), {}) is evaluate
    with pytest.raises(ValueError, match="FlowPairs needs the scorer tiles: pass one of that name"):
        scorer_for(FlowPairs(), {})
