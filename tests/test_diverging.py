"""Non-finite numbers: no checkpoint holds them or is chosen by them, and no score or prediction is made of them."""

import errno
import json
import math
import re
import shutil
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import torch

from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.files.durable_folder import STATE, write_folder
from perceivers.files.opening import UnreadableError
from perceivers.files.tensor_files import check_finite, load_tensors, save_tensors
from perceivers.modalities.table_cells import Row
from perceivers.pretrained.model_folder import load_model, save_model
from perceivers.runs.prediction import predict_rows
from perceivers.runs.results import keep_scores, read_scores, results_table
from perceivers.schema import Schema
from perceivers.training import loop, losses
from perceivers.training.checkpoints import best_checkpoint, checkpoints, latest_checkpoint
from perceivers.training.metrics import evaluate, guess_scores
from perceivers.training.optimisers import OptimiserConfig
from perceivers.training.sampler import evaluation_batches
from perceivers.training.training_config import TrainingConfig
from perceivers.training.training_state import TRAINING, TrainingState
from small_run import SCHEMA, small_records, trained, weights_of
from test_attribution import HERE, SUM, model_of, rows_of
from test_attribution import SCHEMA as ROW_SCHEMA
from test_processes import SETTINGS, together


def spoil(part):
    """Return a function that makes a part of a state non-finite at its fourth step."""
    update = TrainingState.update_average

    def spoiled(state):
        update(state)
        if state.step == 4 and state.fabric.global_rank == state.fabric.world_size - 1:
            parameter = max(state.model.parameters(), key=lambda parameter: parameter.numel())
            if part == "moments":
                tensor = next(value for value in state.optimiser.state[parameter].values() if value.ndim)
            else:
                tensor = parameter.data if part == "weights" else max(state.average.values(), key=torch.numel)
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            local.flatten()[0] = math.inf if part == "moments" else math.nan

    return spoiled


@pytest.mark.parametrize("part", ["weights", "averaged weights", "moments"])
@pytest.mark.parametrize("last", [4, 5])
def test_no_checkpoint_holds_what_is_not_finite(tmp_path, monkeypatch, part, last):
    """The last step is checked like any other; the checkpoint that the error names is good."""
    monkeypatch.setattr(TrainingState, "update_average", spoil(part))
    with pytest.raises(ValueError, match=rf"step 4: the (loss of the new weights|{part}).*step-00000002") as caught:
        trained(small_records(), tmp_path, last, checkpoint_every=2, average_decay=0.5)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]
    check_finite(checkpoints(tmp_path)[0])


def test_weights_so_large_that_no_loss_is_finite_are_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"step 1: the loss of the new weights is not finite.*no checkpoint yet"):
        trained(small_records(), tmp_path, 1, optimiser=OptimiserConfig(learning_rate=1e30))
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_validation_score_that_is_not_finite_ends_the_run(tmp_path, monkeypatch, value):
    real, seen = loop.validation_loss, []

    def validation_loss(*arguments):
        seen.append(real(*arguments))
        return value if len(seen) == 2 else seen[-1]

    monkeypatch.setattr(loop, "validation_loss", validation_loss)
    with pytest.raises(ValueError, match=r"step 4: the loss of the new weights is not finite.*step-00000002"):
        trained(small_records(), tmp_path, 6, checkpoint_every=2, validation_fraction=0.2)
    assert best_checkpoint(tmp_path).name == "step-00000002"


def test_a_validation_score_of_nothing_is_none(tmp_path):
    """No validation record has a target, or there is no validation record."""
    records, settings = small_records(), {"validation_fraction": 0.2}
    for record in loop.split(records, TrainingConfig(**settings))[1]:
        record["label"] = -100
    assert sum(record["label"] == -100 for record in records) == 5
    schema = Schema(SCHEMA.inputs, {"label": SCHEMA.outputs["label"]})
    with pytest.raises(ValueError, match="none of the 5 validation records has a target"):
        trained(records, tmp_path, 1, schema, **settings)
    assert not checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"validation_fraction = 0\.01 has no effect"):
        trained(small_records(), tmp_path, 1, validation_fraction=0.01)


@pytest.mark.parametrize(("shard_model", "fraction"), [(False, 0.0), (True, 0.0), (True, 0.3)])
def test_processes_agree_that_weights_are_not_finite(tmp_path, shard_model, fraction):
    """Weights are non-finite in one process alone."""

    def run(rank):
        TrainingState.update_average = spoil("weights")
        settings = SETTINGS | {"checkpoint_every": 2, "validation_fraction": fraction}
        with pytest.raises(ValueError, match=r"step 4: the (loss of the new weights|weights).*step-00000002"):
            trained(small_records(), tmp_path, 4, **settings, shard_model=shard_model)

    together(2, run)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"]


def test_a_learned_weight_of_nothing_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(losses.Objective, "weights", lambda self: {"label": 0.0, "image": 1.0})
    with pytest.raises(ValueError, match="step 0: the learned weight of label is 0"):
        trained(small_records(), tmp_path, 1, weights="learned", optimiser=OptimiserConfig(kind="adamw"))


def older(folder, file, change):
    """Write a checkpoint as older versions did, which did not check for non-finite numbers."""
    copy = shutil.copytree(folder, folder.with_name("copy"))
    (copy / "manifest.json").unlink()
    change(copy / file)
    shutil.rmtree(folder)
    write_folder(folder, lambda fresh: shutil.copytree(copy, fresh, dirs_exist_ok=True))
    shutil.rmtree(copy)


def with_nan(path):
    tensors = load_tensors(path)
    next(t for t in tensors.values() if t.is_floating_point() and t.ndim).view(-1)[0] = math.nan
    save_tensors(path, tensors)


def scored(score):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "score": score}))


@pytest.mark.parametrize("file", ["model.safetensors", TRAINING])
def test_an_older_checkpoint_that_is_not_finite_is_passed_over(tmp_path, file):
    straight = weights_of(trained(small_records(), tmp_path / "straight", 6, checkpoint_every=2))
    trained(small_records(), tmp_path / "run", 6, checkpoint_every=2)
    newest, second = checkpoints(tmp_path / "run")
    older(newest, file, with_nan)
    with pytest.warns(UserWarning, match=r"passing over a checkpoint: .*safetensors: .* is not finite"):
        assert latest_checkpoint(tmp_path / "run") == second
    with pytest.warns(UserWarning, match="is not finite"):
        assert best_checkpoint(tmp_path / "run") == second
    with pytest.warns(UserWarning, match="is not finite"):
        model = trained(small_records(), tmp_path / "run", 6, checkpoint_every=2)
    assert weights_of(model) == straight
    assert latest_checkpoint(tmp_path / "run") == newest


@pytest.mark.parametrize("choose", [latest_checkpoint, best_checkpoint])
def test_a_checkpoint_that_the_system_does_not_let_read_is_not_passed_over(tmp_path, monkeypatch, choose):
    """No older checkpoint is used instead, whichever call that opens a file fails."""
    trained(small_records(), tmp_path / "run", 4, checkpoint_every=2)
    newest, opened, failing = checkpoints(tmp_path / "run")[0], [], [-1]
    plain, library = Path.open, safetensors.safe_open

    def opening(function, error):
        def call(path, *rest, **more):
            if Path(path).parent == newest:
                opened.append(Path(path).name)
                if len(opened) - 1 == failing[0]:
                    raise error
            return function(path, *rest, **more)

        return call

    monkeypatch.setattr(Path, "open", opening(plain, OSError(errno.EIO, "Input/output error", "of this file")))
    monkeypatch.setattr(safetensors, "safe_open", opening(library, FileNotFoundError("No such file")))  # as the library
    assert choose(tmp_path / "run") == newest
    count = len(opened)
    assert {"model.safetensors", TRAINING} <= set(opened)
    for failing[0] in range(count):
        opened.clear()
        with pytest.raises((UnreadableError, OSError), match=r"Input/output error|safetensors: cannot be read"):
            choose(tmp_path / "run")


@pytest.mark.parametrize("score", [math.nan, -math.inf, "best", None])
def test_a_score_that_is_no_finite_number_is_never_best(tmp_path, score):
    trained(small_records(), tmp_path, 6, checkpoint_every=2, validation_fraction=0.2)
    for folder in checkpoints(tmp_path)[:-1]:
        older(folder, STATE, scored(score))
    assert best_checkpoint(tmp_path) == checkpoints(tmp_path)[-1]


def not_a_number(model):
    with torch.no_grad():
        next(iter(model.output_adapter.parameters())).view(-1)[0] = math.nan
    return model


def test_no_score_is_made_of_predictions_that_are_not_finite(tmp_path):
    model = trained(small_records(), tmp_path, 1)
    with pytest.raises(ValueError, match=r"(label|image): the prediction of record 1 is not finite"):
        evaluate(not_a_number(model), small_records(), batch_size=5)
    batches = evaluation_batches(SCHEMA, small_records(), 5)
    guess = torch.zeros(5, 3)
    guess[2, 1] = math.inf
    with pytest.raises(ValueError, match="label: the prediction of record 3 is not finite"):
        guess_scores(SCHEMA, batches, lambda batch: {"label": guess})


def test_a_score_that_is_none_is_null(tmp_path):
    """An output without a target, or an undefined metric, gives null."""
    scores = {"held out": {"label": {"accuracy": math.nan, "auroc": 0.5}, "image": {"psnr": math.inf}}}
    keep_scores(tmp_path, scores)
    text = (tmp_path / "metrics.json").read_text()
    kept = json.loads(text, parse_constant=lambda name: pytest.fail(name))["held out"]
    assert kept == {"label": {"accuracy": None, "auroc": 0.5}, "image": {"psnr": None}}
    assert math.isnan(read_scores(tmp_path)["held out"]["label"]["accuracy"])


def test_the_command_says_null_and_never_nan(command, tmp_path):
    """Evaluate held-out rows without any target, and make a table of the run."""
    (tmp_path / "own.csv").write_text("a,b\n" + "".join(f"{n % 7},{'xy'[n % 2]}\n" for n in range(24)))
    (tmp_path / "other.csv").write_text("a,b\n" + "".join(f"{n},\n" for n in range(3)))
    schema = "schema: {inputs: {a: {kind: numbers}}, outputs: {b: {kind: label}}}\n"
    data = f"data: {{kind: table, file: {tmp_path}/own.csv, held_out_file: {tmp_path}/other.csv}}\n"
    (tmp_path / "recipe.yaml").write_text(schema + data + "training: {num_steps: 1, log_every: 1}\n")
    code, out, err = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert set(found["held out"]["b"].values()) == {None}
    assert "b accuracy n/a" in results_table([tmp_path / "run"])


@pytest.fixture
def model(tmp_path):
    model = model_of(ROW_SCHEMA, SUM)
    write_folder(tmp_path / "model", lambda folder: save_model(model, folder))
    return load_model(tmp_path / "model")


def rows_with(number, cell):
    return [{**row, "height": cell if n == number else row["height"]} for n, row in enumerate(rows_of(7))]


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("explain", [False, True])
def test_a_prediction_that_is_not_finite_names_its_row(command, tmp_path, model, out, explain):
    write_rows(tmp_path / "new.jsonl", rows_with(4, 1e38))
    options = ["--batch-size", 3, *(["--attribution"] if explain else [])]
    code, _, err = command("predict", tmp_path / "model", tmp_path / "new.jsonl", "-o", tmp_path / out, *options)
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(r"new.jsonl:5: kind(.from.row)?: the prediction is not finite", err)
    assert not (tmp_path / out).exists()


def test_such_a_row_keeps_its_place_and_changes_no_other(tmp_path, model):
    found = []
    for number, cell in ((9, 0.0), (4, 1e38)):
        write_rows(tmp_path / "new.jsonl", rows_with(number, cell))
        rows = predict_rows(model, read_rows(tmp_path / "new.jsonl"), 7, max_bad_rows=1)
        found.append(list(rows))
    assert "is not finite" in found[1][4]["unreadable"]
    assert [row for number, row in enumerate(found[0]) if number != 4] == [
        row for number, row in enumerate(found[1]) if number != 4
    ]
    assert {value for name, value in found[1][4].items() if name != "unreadable"} == {None}


def test_predictions_of_every_modality_are_looked_at(model):
    """A class is the largest logit, so its cell conceals a NaN. Records of arrays are numbered."""
    records = [{"curve": np.zeros(5)} for _ in range(5)]
    with torch.no_grad():
        model.output_adapter.adapters["kind"].head.bias[1] = math.nan
    with pytest.raises(ValueError, match=r"record 1: kind: the prediction is not finite \(row 1 that"):
        list(predict_rows(model, records, 2))
    rows = list(predict_rows(model, records, 2, max_bad_rows=5))
    assert [row["unreadable"].split(":")[0] for row in rows] == [f"record {number}" for number in range(1, 6)]


def test_a_gradient_that_no_scale_makes_finite_is_not_passed_over_for_ever():
    """In 16-mixed precision, a gradient that is not finite even at the smallest loss scale is reported."""

    scale = [65536.0]
    precision = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: scale[0]))
    fabric = SimpleNamespace(
        strategy=SimpleNamespace(precision=precision), clip_gradients=lambda *_, **options: torch.tensor(math.nan)
    )
    config = TrainingConfig(precision="16-mixed")
    assert loop.clip(fabric, None, None, config) == 0.0
    scale[0] = 2.0**-25
    assert math.isnan(loop.clip(fabric, None, None, config))


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_what_is_kept_is_written_in_every_format(tmp_path, model, out):
    """NaN is written as a missing value, a date as its text; file contents are refused in one line."""
    kept = {"when": datetime(2026, 1, 2, 3), "price": Decimal("1.50"), "gap": math.nan, "note": "x"}
    rows = [Row(f"row {number}", {**row, **kept}, HERE) for number, row in enumerate(rows_of(3))]
    write_rows(tmp_path / out, predict_rows(model, rows, 2, keep=list(kept)))
    cells = next(iter(read_rows(tmp_path / out))).cells
    assert [cells[name] for name in kept] == ["2026-01-02T03:00:00", "1.50", None, "x"]
    rows[1].cells["note"] = {"bytes": b"1", "path": "x.png"}
    with pytest.raises(ValueError, match="keep: note holds files"):
        list(predict_rows(model, rows, 2, keep=["note"]))


def test_what_json_cannot_hold_names_its_column(tmp_path):
    for cell, message in ((math.inf, "not JSON compliant"), ({1, 2}, "set")):
        with pytest.raises(ValueError, match=f"column price: JSON cannot hold it: .*{message}"):
            write_rows(tmp_path / "out.jsonl", [{"price": cell}])
    assert not list(tmp_path.iterdir())
