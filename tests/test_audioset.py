"""Several labels of a clip: AudioSet in its published form, the recipes, windows averaged, and the baseline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import AudioSet, SpokenDigits
from perceivers.modalities import Spectrogram
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.systems import TASKS
from perceivers.systems.audioset.baselines import by_clip, label_frequency, label_scores
from perceivers.systems.audioset.model import audioset
from perceivers.systems.audioset.recipes import paper, small
from perceivers.systems.audioset.report import report
from perceivers.training.losses import Objective
from perceivers.training.training_config import TrainingConfig
from test_autoencoding import grey_clip, write_recordings

# With few clips, many labels never occur: torchmetrics warns and counts them as 0.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{beginning}")
    for beginning in ("No positive samples", "Average precision score")
]

TINY = Config(LatentsConfig(num_latents=3, channels=8), processor=ProcessorConfig(num_heads=2, num_layers=1))
HEAD = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2\n# YTID, start_seconds, ...\n"


def write_audioset(folder):
    """Write clips of three labels; a listed clip is missing, another has sound in a folder and format of its own."""
    (folder / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n2,/m/0k4j,"Car"\n1,/t/dd00088,"Gush, splash"\n'
    )
    lists = {
        "balanced_train_segments.csv": '-0RWZT-miFs, 420.000, 430.000, "/m/09x0r,/m/0k4j"\n',
        "unbalanced_train_segments.csv": (
            'bbbbbbbbbbb, 0.000, 10.000, "/t/dd00088"\nccccccccccc, 1.000, 9.000, "/m/0k4j"\n'
        ),
        "eval_segments.csv": 'ddddddddddd, 30.000, 40.000, "/m/09x0r"\neeeeeeeeeee, 3.000, 4.000, "/m/0k4j"\n',
    }
    for name, rows in lists.items():
        (folder / name).write_text(HEAD + rows)
    for name, levels in {
        "train/-0RWZT-miFs": [20, 60, 100],
        "train/bbbbbbbbbbb_0_10": [140, 180],
        "eval/ddddddddddd": [90, 90, 200],
        "eval/eeeeeeeeeee": [50, 90, 70],
    }.items():
        grey_clip(folder / f"{name}.mp4", levels)
    return AudioSet(folder=str(folder), windows=2, frames=2, side=8, samples=160)


def test_audioset_as_it_is_published(tmp_path):
    data = write_audioset(tmp_path)
    training, held_out = data.training(), data.held_out()
    assert data.names() == ["Speech", "Gush, splash", "Car"]
    assert [record["labels"] for record in training] == [[0, 2], [0, 2], [1], [1]]
    assert [record["labels"] for record in held_out] == [[0], [0], [2], [2]]
    for record, greys in zip(training[:2], ([20, 60], [60, 100]), strict=True):
        np.testing.assert_allclose(record["image"].mean(axis=(1, 2, 3)) * 255, greys, atol=4)
        assert record["audio"].shape == (160, 1)


def test_what_is_no_audioset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"class_labels_indices\.csv: No such file"):
        AudioSet(folder=str(tmp_path)).training()
    data = write_audioset(tmp_path)
    listed = tmp_path / "eval_segments.csv"
    listed.write_text(HEAD + 'ddddddddddd, 30.000, 40.000, "/m/none"\n')
    with pytest.raises(ValueError, match="ddddddddddd has label '/m/none'"):
        data.held_out()
    listed.write_text(HEAD + "ddddddddddd, 30.000\n")
    with pytest.raises(ValueError, match=r"eval_segments\.csv:4: not YTID"):
        data.held_out()
    listed.write_text(HEAD)
    with pytest.raises(ValueError, match=r"holds no clip of eval_segments\.csv"):
        data.held_out()
    (tmp_path / "class_labels_indices.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="expected columns index, mid, display_name"):
        data.training()


@pytest.mark.parametrize(("mel", "sound", "tokens"), [(False, 480, 13_024), (True, 4800, 17_344)])
def test_sizes_are_the_papers(mel, sound, tokens):
    """Table 5 of the paper: numbers and widths of tokens."""
    schema = paper(mel=mel).schema
    with torch.device("meta"):
        model = audioset(512, mel=mel).build("meta")
        raw = {name: spec.dummy_input(1, torch.device("meta")) for name, spec in schema.inputs.items()}
        segments = model.tokens(raw)[1]
    counted = {name: segment.num_tokens for name, segment in segments.items()}
    assert counted == {"audio": sound, "image": tokens - sound}
    assert model.input_adapter.channels == 487


def test_the_papers_runs_are_the_papers():
    """100 epochs of 1.7 million clips; 16 windows of 32 frames."""
    recipe = paper()
    training = recipe.training
    assert abs(training.num_steps * training.batch_size - 100 * 1_700_000) < training.batch_size
    assert (recipe.data.windows, recipe.data.frames) == (16, 32)
    spectrogram = paper(1024, mel=True).schema.inputs["audio"]
    assert isinstance(spectrogram, Spectrogram)
    assert spectrogram.size[0] * spectrogram.hop == recipe.data.samples


@pytest.mark.slow
@pytest.mark.parametrize("mel", [False, True])
def test_a_real_step_of_the_papers_model(mel):
    """One window at full size: the loss falls along its gradient."""
    recipe = paper(mel=mel)
    torch.manual_seed(0)
    model = PerceiverIO(recipe.schema, recipe.config)
    rng = np.random.default_rng(0)
    record = {"image": rng.random((32, 224, 224, 3)), "audio": rng.uniform(-1, 1, (61_440, 1)), "labels": [0, 526]}
    batch = recipe.schema.collate([recipe.schema.preprocess(record, rng, True)])
    objective = Objective(model).train()
    before = objective(batch)["labels"]
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert objective(batch)["labels"] < before


def test_windows_are_averaged(tmp_path):
    """The probabilities of a clip are the means over its windows (by hand), its labels those of any window."""
    data = write_audioset(tmp_path)
    chances = torch.tensor([[0.9, 0.1], [0.5, 0.3], [0.2, 0.4], [0.0, 0.8]])
    truth = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
    mean, labels = by_clip(data, chances, truth)
    torch.testing.assert_close(mean, torch.tensor([[0.7, 0.2], [0.1, 0.6]]))
    assert labels.tolist() == [[1, 0], [0, 1]]
    alone, _ = by_clip(SpokenDigits(), chances, truth)
    assert torch.equal(alone, chances)


def test_scores_by_hand():
    """Two clips: every speaker is right, one spoken digit, no shown digit; frequencies are those that were counted."""
    recipe = small()
    names = recipe.schema.outputs["labels"].classes
    labels = [["says 3", "theo", "shows 9"], ["says 4", "lucas", "shows 0"]]
    guesses = [["says 3", "theo", "shows 8"], ["says 5", "lucas", "shows 1"]]
    truth, chances = (
        torch.tensor([[int(name in some) for name in names] for some in side]) for side in (labels, guesses)
    )
    scores = label_scores(recipe, chances.float(), truth)
    assert scores["speaker, accuracy"] == 1
    assert scores["digit said, accuracy"] == 0.5
    assert scores["digit shown, accuracy"] == 0
    records = [{"labels": some} for some in (*labels, ["says 3", "theo", "shows 0"], ["says 3", "lucas", "shows 9"])]
    frequency = dict(zip(names, label_frequency(recipe.schema, records)[0].tolist(), strict=True))
    assert (frequency["says 3"], frequency["theo"], frequency["says 9"]) == (0.75, 0.5, 0.0)


def test_a_run_on_audioset_from_end_to_end(tmp_path):
    """The paper's recipe at tiny sizes, on files in the published form."""
    data, recipe = write_audioset(tmp_path), paper()
    schema = recipe.schema.changed("audio", size=160, patch=40).changed("image", size=(2, 8, 8), patch=(2, 4, 4))
    schema = schema.changed("labels", classes=3)
    training = TrainingConfig(num_steps=2, batch_size=3, log_every=1, accelerator="cpu")
    run_recipe(replace(recipe, data=data, schema=schema, config=TINY, training=training), tmp_path / "run")
    scores = evaluate_run(Run(tmp_path / "run")) | TASKS["audioset-paper"].baseline_scores(Run(tmp_path / "run"))
    assert 0 < scores["whole clips"]["labels"]["mAP"] <= 1
    assert scores["frequency of labels"]["labels"]["mAP"] == pytest.approx((0.5 + 0.5) / 2)  # no clip has the third
    keep_scores(tmp_path / "run", scores)
    page = report(Run(tmp_path / "run")).read_text()
    assert "Gush, splash" in page
    assert page.count("<img") >= 2


@pytest.mark.parametrize("mel", [False, True])
def test_a_run_on_spoken_digits_from_end_to_end(mel, tmp_path):
    recipe = small(mel)
    data = SpokenDigits(write_recordings(tmp_path / "digits"), 8, frames=2, side=16, samples=1024, shown="any")
    sound = {"size": (8, 40)} if mel else {"size": 1024}
    schema = recipe.schema.changed("audio", **sound).changed("image", size=(2, 16, 16))
    training = TrainingConfig(num_steps=2, batch_size=4, log_every=1, accelerator="cpu")
    run_recipe(replace(recipe, data=data, schema=schema, config=TINY, training=training), tmp_path / "run")
    scores = TASKS["sounds"].baseline_scores(Run(tmp_path / "run"))
    assert {"mAP", "speaker, accuracy"} < set(scores["whole clips"]["labels"])
    assert scores["frequency of labels"]["labels"]["digit said, accuracy"] == pytest.approx(0.1)
