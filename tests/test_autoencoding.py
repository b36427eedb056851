"""Video, sound and label: spoken digits, Kinetics in its published form, the recipes and the baselines."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Kinetics, SpokenDigits
from perceivers.data.dataset import LazyRecords, evenly
from perceivers.data.published.spoken_digits import SPEAKERS, bouncing, digit_pictures, placed
from perceivers.media.audio_files import read_audio, write_audio
from perceivers.media.video_files import Clip, read_video, write_video
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.recipe import changed_schema
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.systems import TASKS
from perceivers.systems.multimodal.baselines import baselines, flattened_targets, unflattened_targets
from perceivers.systems.multimodal.recipes import EVALUATIONS, RECIPES, UNSEEN, paper, small
from perceivers.systems.multimodal.report import report
from perceivers.training.losses import Objective
from perceivers.training.metrics import masking_of
from perceivers.training.training_config import TrainingConfig

TINY = Config(LatentsConfig(num_latents=3, channels=8), processor=ProcessorConfig(num_heads=2, num_layers=1))


def write_recordings(folder, numbers=(4, 5, 6)):
    """Write a recording of each digit by two speakers for each number; its constant samples identify it."""
    folder.mkdir(exist_ok=True)
    for speaker, name in enumerate(SPEAKERS[:2]):
        for digit in range(10):
            for number in numbers:
                level = np.full(
                    (31 + 40 * speaker, 1), (digit + 10 * speaker + 30 * (number == 4) + 1) / 100, np.float32
                )
                write_audio(folder / f"{digit}_{name}_{number}.wav", level, 8000)
    return str(folder)


def test_spoken_digits_are_what_they_say(tmp_path):
    """Sound, speaker and label of a record belong together, also with `shown: any` and its other pictures."""
    folder = write_recordings(tmp_path / "digits")
    data = SpokenDigits(folder=folder, num_training=83, frames=3, side=17, samples=53)
    assert [len(part) for part in (data.training(), data.held_out())] == [83, 20]
    for held_out, part in ((False, data.training()), (True, data.held_out())):
        for record in part:
            said, speaker, shown = record["labels"]
            level = record["label"] + 10 * SPEAKERS.index(speaker) + 30 * held_out + 1
            assert record["audio"].max() == pytest.approx(level / 100, abs=1e-4)
            assert record["audio"].shape == (53, 1)
            assert record["image"].shape == (3, 17, 17, 1)
            assert (said, shown) == (f"says {record['label']}", f"shows {record['label']}")
    others = replace(data, shown="any").training()
    assert len({(record["label"], record["labels"][2]) for record in others}) > 40


def test_records_are_the_same_each_time_and_recordings_come_again(tmp_path):
    data = SpokenDigits(folder=write_recordings(tmp_path / "digits"), num_training=83)
    first, again, later = data.training()[7], data.training()[7], data.training()[47]
    assert np.array_equal(first["image"], again["image"])
    assert first["labels"] == later["labels"]
    assert not np.array_equal(first["image"], later["image"])
    assert not np.array_equal(data.held_out()[7]["image"], first["image"])


def test_pictures_of_the_parts_are_apart():
    training, held_out = (
        {picture.tobytes() for kind in digit_pictures(part).values() for picture in kind} for part in (False, True)
    )
    assert training
    assert held_out
    assert not training & held_out


@pytest.mark.parametrize("side", [16, 17, 29])
def test_a_picture_bounces_whole_and_evenly(side):
    """The picture stays whole, moves at its speed, and turns only at a border."""
    picture = np.ones((16, 16, 1), np.float32)
    film = bouncing(picture, 40, side, np.random.default_rng(3))
    assert (film.sum(axis=(1, 2, 3)) == 256).all()
    rows = np.array([np.flatnonzero(frame[:, :, 0].any(axis=1))[0] for frame in film])
    steps = np.diff(rows)
    speed = np.abs(steps).max()
    turned = np.flatnonzero(steps[1:] * steps[:-1] < 0) + 1
    assert all(min(rows[n], side - 16 - rows[n]) <= speed for n in turned)
    if side == 29:
        assert len(turned) >= 2
        assert np.abs(np.abs(steps[3]) - speed) <= 1


def test_sound_is_placed_or_cut():
    sound = np.arange(1, 6, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(40):
        found = placed(sound, 7, rng)[:, 0]
        starts.add(int(np.flatnonzero(found)[0]))
        assert found[found > 0].tolist() == [1, 2, 3, 4, 5]
    assert starts == {0, 1, 2}
    cuts = {tuple(placed(sound, 3, rng)[:, 0].tolist()) for _ in range(40)}
    assert cuts == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no DIGIT_SPEAKER_NUMBER\.wav"):
        SpokenDigits(folder=str(tmp_path)).training()
    write_audio(tmp_path / "1_theo_7.wav", np.zeros((9, 1), np.float32), 16_000)
    with pytest.raises(ValueError, match="expected one at 8000"):
        SpokenDigits(folder=str(tmp_path)).training()
    only = write_recordings(tmp_path / "only", (7,))
    with pytest.raises(ValueError, match="holds no held-out recordings"):
        SpokenDigits(folder=only).held_out()
    with pytest.raises(ValueError, match="side = 15"):
        SpokenDigits(side=15)


def grey_clip(path, levels, rate=8000):
    """Write a film of 25 frames a second, each of one grey, with a constant sound during each frame."""
    frames = np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 32, 48, 3)).copy()
    sound = np.repeat(np.array(levels, np.float32) / 255, rate // 25)[:, None]
    return write_video(path, Clip(frames, 25.0, sound, rate))


def write_kinetics(folder):
    """Write clips of two labels; a listed clip is missing."""
    lists = {
        "train.csv": [
            "yawning,aaaaaaaaaaa,3,13,train",
            "abseiling,bbbbbbbbbbb,0,10,train",
            "yawning,ccccccccccc,1,2,train",
        ],
        "validate.csv": ["abseiling,-dddddddddd,120,130,validate"],
    }
    for name, rows in lists.items():
        (folder / name).write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    grey_clip(folder / "yawning" / "aaaaaaaaaaa_000003_000013.mp4", [20, 60, 100, 140, 180])
    grey_clip(folder / "abseiling" / "bbbbbbbbbbb_000000_000010.mp4", [200, 40, 200, 40])
    grey_clip(folder / "abseiling" / "-dddddddddd_000120_000130.mp4", [90, 90])
    return Kinetics(folder=str(folder), windows=3, frames=3, side=8, samples=240)


def test_kinetics_as_it_is_published(tmp_path):
    """Windows go from the first to the last frame, each with its sound; a short clip ends in a still, silent frame."""
    data = write_kinetics(tmp_path)
    training, held_out = data.training(), data.held_out()
    assert data.names() == ["abseiling", "yawning"]
    assert (len(training), len(held_out)) == (6, 3)
    assert [record["label"] for record in training] == [1, 1, 1, 0, 0, 0]
    for record, greys in zip(training[:3], ([20, 60, 100], [60, 100, 140], [100, 140, 180]), strict=True):
        assert record["image"].shape == (3, 8, 8, 3)
        np.testing.assert_allclose(record["image"].mean(axis=(1, 2, 3)) * 255, greys, atol=4)
        assert record["audio"].shape == (240, 1)
    assert training[2]["audio"][130:190].mean() > training[0]["audio"][130:190].mean() + 0.1
    np.testing.assert_allclose(held_out[2]["image"].mean(axis=(1, 2, 3)) * 255, [90] * 3, atol=4)
    assert np.abs(held_out[0]["audio"][-50:]).max() == 0
    assert (data.fps, data.rate) == (25.0, 2000)


def test_what_is_no_kinetics_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.csv: No such file"):
        Kinetics(folder=str(tmp_path)).training()
    data = write_kinetics(tmp_path)
    (tmp_path / "validate.csv").write_text("label,youtube_id,time_start,time_end\nzorbing,eeeeeeeeeee,1,2\n")
    with pytest.raises(ValueError, match=r"label 'zorbing' is not in train\.csv"):
        data.held_out()
    (tmp_path / "validate.csv").write_text("label,youtube_id,time_start,time_end\nyawning,eeeeeeeeeee,1,2\n")
    with pytest.raises(ValueError, match="holds none of the 1 clips"):
        data.held_out()
    (tmp_path / "validate.csv").write_text("label,url\nyawning,x\n")
    with pytest.raises(ValueError, match="no column 'youtube_id'"):
        data.held_out()
    with pytest.raises(ValueError, match="windows = 0"):
        replace(data, windows=0)


@pytest.mark.parametrize(("num_latents", "parameters"), [(784, 19_858_855), (392, 19_658_151), (196, 19_557_799)])
def test_the_papers_runs_are_the_papers(num_latents, parameters):
    """Sections 4.3 and I of the paper: losses, batch and rate; 512 samples, 512 pixels and the label of an example."""
    recipe = paper(num_latents)
    training, outputs = recipe.training, recipe.schema.outputs
    assert (training.batch_size, training.optimiser.learning_rate) == (1024, 1e-3)
    weights = {name: (spec.weight, getattr(spec, "loss_kind", None)) for name, spec in outputs.items()}
    assert weights == {"image": (0.03, "l1"), "audio": (1.0, "l1"), "label": (0.0001, None)}
    assert outputs["audio"].num_points * outputs["audio"].patch == outputs["image"].num_points == 512
    assert recipe.schema.inputs["label"].mask_prob == 0.5
    with torch.device("meta"):
        model = PerceiverIO(recipe.schema, recipe.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_halves_and_quarters_are_what_they_say():
    latents = [RECIPES[name]().config.latents for name in ("autoencode", "autoencode-2x", "autoencode-4x")]
    assert [latents[0].num_latents // some.num_latents for some in latents] == [1, 2, 4]
    assert len({some.channels for some in latents}) == 1
    recipe = small()
    numbers = 8 * 32 * 32 + 4096
    assert 6 * latents[0].num_latents * latents[0].channels == numbers
    assert recipe.data.num_training == recipe.training.num_steps * recipe.training.batch_size


@pytest.mark.slow
def test_a_real_step_of_the_papers_model():
    """One clip at full size: all losses fall along their gradient."""
    recipe = paper()
    torch.manual_seed(0)
    model = PerceiverIO(recipe.schema, recipe.config)
    rng = np.random.default_rng(0)
    record = {"image": rng.random((16, 224, 224, 3)), "audio": rng.uniform(-1, 1, (30720, 1)), "label": 699}
    batch = recipe.schema.collate([recipe.schema.preprocess(record, rng, True)])
    assert batch["targets"]["image"]["values"].shape == (1, 512, 3)
    assert batch["targets"]["audio"]["values"].shape == (1, 32, 16)
    objective = Objective(model).train()
    torch.manual_seed(1)
    before = sum(objective(batch).values())
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    torch.manual_seed(1)
    assert sum(objective(batch).values()) < before


def little_schema():
    audio = Audio(size=6, patch=2, positions=Fourier(2), mean=(0.0,), std=(0.5,), value_range=(-1.0, 1.0))
    image = Video(size=(2, 3, 1), channels=1, positions=Fourier(2), mean=(0.5,), std=(2.0,), value_range=(0.0, 1.0))
    label = Label(classes=3)
    return Schema({"audio": audio}, {"audio": audio, "image": image, "label": label})


def little_records(count, seed):
    """Return clips that are sums of two patterns, so that two numbers and the mean describe each exactly."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(2, 12)) / 9
    rows = 0.5 + rng.uniform(-1, 1, (count, 2)) @ patterns
    return [
        {"audio": row[:6, None], "image": row[6:].reshape(2, 3, 1, 1), "label": 2 * (n % 3 > 0)}
        for n, row in enumerate(rows.astype(np.float32))
    ]


def test_baselines_by_hand():
    """PCA with two components restores data of rank two; the mean's PSNR follows from the distance to it."""
    training, held_out = little_records(11, 0), little_records(5, 1)
    scores = baselines(little_schema(), training, held_out, 2)
    mean, coded = scores["mean clip, most frequent class"], scores["PCA, 2 numbers"]
    assert coded["image"]["psnr"] > 80
    assert coded["audio"]["psnr"] > 80
    distance = np.stack([r["audio"] for r in held_out]) - np.mean([r["audio"] for r in training], axis=0)
    assert mean["audio"]["psnr"] == pytest.approx(10 * np.log10(4 / np.mean(distance**2)), rel=1e-4)
    assert mean["label"]["accuracy"] == pytest.approx(3 / 5)
    assert "label" not in coded


@pytest.mark.parametrize(("number", "count", "chosen"), [(11, 3, [0, 5, 10]), (5, 7, [0, 1, 2, 3, 4]), (4, 1, [0])])
def test_records_are_chosen_evenly(number, count, chosen):
    some = evenly(LazyRecords(number, lambda place: {"place": place}), count)
    assert [record["place"] for record in some] == chosen


def test_rows_and_grids_are_each_others_inverse():
    schema = little_schema()
    targets = schema.collate([schema.preprocess(r, np.random.default_rng(0), False) for r in little_records(3, 2)])[
        "targets"
    ]
    rows = flattened_targets(schema, targets)
    assert rows.shape == (3, 12)
    assert rows[1, 0] == pytest.approx((float(targets["image"][1, 0, 0, 0, 0]) - 0.5) / 2)
    for name, grid in unflattened_targets(schema, rows, targets).items():
        torch.testing.assert_close(grid, targets[name])


def tiny_recipe(folder):
    recipe = small()
    data = SpokenDigits(folder=folder, num_training=8, frames=2, side=16, samples=64)
    positions = Fourier(2)
    audio, image = (
        {"size": 64, "positions": positions, "patch": 16},
        {"size": (2, 16, 16), "positions": positions},
    )
    schema = recipe.schema.changed("audio", **audio).changed("image", **image)
    outputs = {name: replace(schema.outputs[name], num_points=3) for name in ("audio", "image")}
    training = TrainingConfig(num_steps=2, batch_size=4, log_every=1, accelerator="cpu", memory_limit="50MB")
    return replace(
        recipe, data=data, schema=Schema(schema.inputs, {**schema.outputs, **outputs}), config=TINY, training=training
    )


def test_a_run_from_end_to_end(tmp_path):
    """Train, evaluate with the label visible and masked, compare, and write clips that can be played."""
    run = tmp_path / "run"
    run_recipe(tiny_recipe(write_recordings(tmp_path / "digits")), run)
    scores = evaluate_run(Run(run))
    assert Run(run).model.memory_limit == "50MB"
    assert set(scores) == {"held out", UNSEEN}
    assert set(scores[UNSEEN]) == {"audio", "image", "label"}
    scores |= TASKS["autoencode"].baseline_scores(Run(run))
    assert "PCA, 8 numbers" in scores
    keep_scores(run, scores)
    page = report(Run(run)).read_text()
    assert "mean clip" in page
    assert page.count("<img") >= 2
    clip = read_video(run / "reconstructed" / "0-true.mp4")
    assert clip.frames.shape == (2, 128, 128, 3)
    sound, rate = read_audio(run / "reconstructed" / "5-written.wav")
    assert (sound.shape, rate) == ((64, 1), 8000)


def test_an_unseen_label_changes_nothing(tmp_path):
    """With the label masked in evaluation, outputs do not depend on it; afterwards the model is unchanged."""
    recipe = tiny_recipe("")
    model = PerceiverIO(recipe.schema, recipe.config).eval()
    raw = {"audio": torch.rand(2, 64, 1), "image": torch.rand(2, 2, 16, 16, 1)}
    labels = torch.tensor([1, 2]), torch.tensor([3, 3])
    seen = [model({**raw, "label": label})["label"] for label in labels]
    masking = masking_of(model, changed_schema(recipe.schema, EVALUATIONS[UNSEEN]))
    unseen = [model({**raw, "label": label}, masking=masking)["label"] for label in labels]
    assert not torch.equal(*seen)
    assert torch.equal(*unseen)
    torch.testing.assert_close(unseen[0], model(raw)["label"])
    assert torch.equal(model({**raw, "label": labels[0]})["label"], seen[0])


def test_what_has_no_mask_token_cannot_be_masked():
    recipe = tiny_recipe("")
    model = PerceiverIO(recipe.schema, recipe.config)
    with pytest.raises(ValueError, match="audio: cannot be masked"):
        masking_of(model, recipe.schema.changed("audio", mask_prob=1.0))
    with pytest.raises(ValueError, match="audio: cannot be masked"):
        dataclasses.replace(recipe, evaluations={"unheard": {"audio": {"mask_prob": 1.0}}})
