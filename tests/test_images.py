"""Image classification: IDX files and folders of classes, the recipes, the baselines."""

import gzip
import math
import re
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from held_out import accuracy_of
from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Idx, ImageFolder
from perceivers.data.published.idx import read_idx
from perceivers.media.image_files import write_image
from perceivers.modalities import Image, Label
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.recipe import preset_of
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.schema.schema_files import to_yaml
from perceivers.systems import TASKS
from perceivers.systems.imagenet.baselines import baselines
from perceivers.systems.imagenet.recipes import CLOTHES, RECIPES, clip_art, finetuning, paper, small
from perceivers.systems.imagenet.report import confusion, report
from perceivers.training.mixup import Mixup
from perceivers.training.training_config import TrainingConfig
from test_media_image import bombs

TINY = Config(LatentsConfig(num_latents=3, channels=16), processor=ProcessorConfig(num_heads=2, num_layers=1))


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, counts=(23, 11), size=(28, 28), classes=10):
    """Write files as published, the training part compressed; two bright rows of a picture show its class."""
    rng = np.random.default_rng(0)
    for part, count in zip(("train", "t10k"), counts, strict=True):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = rng.integers(0, 50, (count, *size), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 2] = 255
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            path = folder / f"{part}-{name}-ubyte"
            if part == "train":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)


def write_pictures(folder, counts):
    """Write a number of pictures of each class, all of different sizes."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        for number in range(count):
            pixels = rng.integers(0, 256, (5 + number, 7 + number % 3, 3), np.uint8)
            write_image(folder / name / f"{number}.png", pixels)


def test_idx_files_by_hand(tmp_path):
    """Two pictures of 2 x 3 and their classes, written byte by byte."""
    images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(12)])
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    first, second = Idx(folder=str(tmp_path)).training()
    assert first["image"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second["image"].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert (first["label"], second["label"]) == (7, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PNG", "not an IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "not an IDX file of bytes"),
        (bytes([0, 0, 8, 1, 0, 0]), "damaged"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "announces 3 bytes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), "announces 1 bytes"),
        (bytes([0, 0, 8, 3, *[255] * 12, 1]), "damaged"),
    ],
)
def test_damaged_idx_files_are_refused(content, message, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 5), np.uint8)))[:-9])
    with pytest.raises(ValueError, match="damaged"):
        read_idx(packed)


def test_idx_folders_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"holds no train-images-idx3-ubyte or .*gz"):
        Idx(folder=str(tmp_path)).training()
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(ValueError, match="do not fit"):
        Idx(folder=str(tmp_path)).held_out()


def test_imagenets_folders(tmp_path):
    """The classes are those of train; other classes in val, and files that are no pictures, are skipped."""
    write_pictures(tmp_path / "train", {"n01440764": 3, "n01443537": 2})
    write_pictures(tmp_path / "val", {"n01443537": 2, "n99999999": 1})
    (tmp_path / "train" / "n01440764" / "notes.txt").write_text("no picture")
    data = ImageFolder(folder=str(tmp_path))
    training, held_out = data.training(), data.held_out()
    assert [record["label"] for record in training] == ["n01440764"] * 3 + ["n01443537"] * 2
    assert [record["label"] for record in held_out] == ["n01443537"] * 2
    schema = Schema({"image": Image(size=4, crop=0.875)}, {"label": Label()}).fit(training)
    assert schema.outputs["label"].classes == ("n01440764", "n01443537")
    sample = schema.preprocess(held_out[1], np.random.default_rng(0), training=False)
    assert sample["inputs"]["image"].shape == (4, 4, 3)
    assert sample["targets"]["label"] == 1


def test_a_folder_is_split_by_names(tmp_path):
    """About the requested share; new files move no others; the largest classes only, and each picture once."""
    write_pictures(tmp_path, {"cat": 60, "dog": 40, "eel": 3})
    (tmp_path / "dog" / "again.png").symlink_to(tmp_path / "cat" / "0.png")
    data = ImageFolder(folder=str(tmp_path), held_out_fraction=0.25, largest=2)
    parts = [{str(record["image"]) for record in part} for part in (data.training(), data.held_out())]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 100
    assert 15 <= len(parts[1]) <= 35
    assert {record["label"] for record in data.training()} == {"cat", "dog"}
    write_pictures(tmp_path, {"cat": 63})
    more = ImageFolder(folder=str(tmp_path), held_out_fraction=0.25, largest=2)
    assert parts[1] <= {str(record["image"]) for record in more.held_out()}
    assert parts[0] <= {str(record["image"]) for record in more.training()}


def test_large_pictures_are_passed_over(tmp_path):
    """Pictures above the pixel limit, such as a bomb, are skipped; a damaged one is kept, and reported when read."""
    write_pictures(tmp_path, {"cat": 2})
    write_image(tmp_path / "cat" / "large.png", np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "cat" / "bomb.png").write_bytes(bombs()["png"])
    (tmp_path / "cat" / "damaged.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:20])
    names = {record["image"].name for record in ImageFolder(str(tmp_path), 0.01, max_pixels=1999).training()}
    assert names == {"0.png", "1.png", "damaged.png"}


def test_a_worker_says_in_one_line_which_picture_is_damaged(tmp_path):
    """The command ends too, without waiting for the worker."""
    write_pictures(tmp_path / "art", {"cat": 9, "dog": 9})
    for path in (tmp_path / "art").glob("cat/*"):
        path.write_bytes(path.read_bytes()[:20])
    recipe = replace(RECIPES["clip-art"](), data=ImageFolder(str(tmp_path / "art")))
    (tmp_path / "art.yaml").write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "perceivers", "train", tmp_path / "art.yaml", "--out", tmp_path / "run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    assert re.fullmatch(r"perceivers: image: .*/cat/\d\.png: damaged picture: .*", ended.stderr.splitlines()[-1])
    assert "Traceback" not in ended.stderr


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no folders of pictures"):
        ImageFolder(folder=str(tmp_path)).training()
    write_pictures(tmp_path / "train", {"cat": 1})
    with pytest.raises(ValueError, match="val: holds no folders"):
        ImageFolder(folder=str(tmp_path)).held_out()
    with pytest.raises(ValueError, match="between 0 and 1"):
        ImageFolder(held_out_fraction=1.0)


def test_the_papers_run_is_the_papers():
    """Section A.1: 110 epochs, LAMB at 2e-3 for batches of 1024, constant for half of them, smoothing 0.1."""
    recipe = paper("fourier")
    training = recipe.training
    assert training.num_steps == pytest.approx(110 * 1_281_167 / 1024, abs=1)
    assert (training.optimiser.kind, training.optimiser.weight_decay, training.optimiser.max_norm) == ("lamb", 0.1, 10)
    rates = [training.rate(step) for step in (0, 1, 68_000, 137_625 * 3 // 4, 137_624)]
    assert rates[:3] == pytest.approx([2e-3] * 3)
    assert rates[3:] == pytest.approx([1e-3, 0], abs=1e-6)
    assert training.mixup.mixup_alpha == 0.2
    assert recipe.schema.outputs["label"].smoothing == 0.1
    augmentation = recipe.schema.inputs["image"].augmentation
    assert (augmentation.rand_augment.num_layers, augmentation.rand_augment.magnitude) == (4, 5)
    tuned = finetuning()
    rates = [tuned.training.rate(step) for step in (0, 69_999, 70_000 + 61_000 // 2)]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3], rel=1e-3)
    schema = tuned.schema.changed("label", classes=1000)
    model = preset_of(replace(tuned, schema=schema)).build("meta")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(parameters / 1e4) == 21308  # the paper gives 212 M, without the pixel map


def test_recipes_that_cannot_be_mixed_are_refused(command, tmp_path):
    """Refused before anything is written."""
    code, _, errors = command(
        "train", "digits", "--out", tmp_path / "run", "--set", "training.mixup={mixup_alpha: 1.0}"
    )
    assert code == 2
    assert "one image in and labels out, not PointSet, Label, Image" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("features", ["fourier", "learned", "conv"])
def test_a_run_from_end_to_end(features, tmp_path):
    """Train, evaluate at other sizes than the trained one, compare with baselines, write a report."""
    write_idx(tmp_path)
    recipe = replace(
        small(features),
        data=Idx(folder=str(tmp_path)),
        config=TINY,
        training=TrainingConfig(num_steps=2, batch_size=4, accelerator="cpu"),
        task="images",
    )
    run = tmp_path / "run"
    run_recipe(recipe, run)
    scores = evaluate_run(Run(run)) | TASKS["images"].baseline_scores(Run(run))
    assert {"held out", "20 x 20", "36 x 36", "56 x 56"} < scores.keys()
    assert scores["logistic regression"]["label"]["accuracy"] == 1  # the pictures show their classes
    assert scores["most frequent class"]["label"]["accuracy"] == pytest.approx(2 / 11)
    keep_scores(run, scores)
    page = report(Run(run)).read_text()
    assert "logistic regression" in page
    assert page.count("<img") >= 3


def test_a_run_on_pictures_of_any_size(tmp_path):
    """The recipe `clip-art`: paths, crops, RandAugment, MixUp and CutMix, from workers; pictures of various sizes."""
    write_pictures(tmp_path / "art", {"cat": 13, "dog": 11})
    recipe = clip_art()
    recipe = replace(
        recipe,
        data=ImageFolder(folder=str(tmp_path / "art"), held_out_fraction=0.4),
        config=TINY,
        training=TrainingConfig(num_steps=2, batch_size=4, mixup=Mixup(), num_workers=1, accelerator="cpu"),
    )
    run = tmp_path / "run"
    run_recipe(recipe, run)
    scores = evaluate_run(Run(run))
    keep_scores(run, scores)
    assert set(scores) == {"held out", "32 x 32", "64 x 64", "96 x 96"}
    assert scores["held out"]["label"]["accuracy"] == pytest.approx(accuracy_of(run, "label"))
    num_held_out = len(recipe.data.held_out())
    for own in scores.values():
        assert own["label"]["accuracy"] * num_held_out == pytest.approx(round(own["label"]["accuracy"] * num_held_out))
    assert report(Run(run)).read_text().count("<img") >= 3


def test_guesses_by_hand():
    """Dark pictures are trousers, bright ones coats; three of five are dark."""
    schema = Schema({"image": Image(size=2, channels=1)}, {"label": Label(classes=CLOTHES)})
    records = [{"image": np.full((2, 2), value), "label": label} for value, label in [(0, 1)] * 30 + [(9, 4)] * 20]
    scores = baselines(schema.fit(records), records, records)
    assert scores["most frequent class"]["label"]["accuracy"] == pytest.approx(0.6)
    assert scores["logistic regression"]["label"]["accuracy"] == 1


def test_confusion_by_hand():
    """A model that always predicts the second class."""
    schema = Schema({"image": Image(size=2, channels=1)}, {"label": Label(classes=3)})
    model = PerceiverIO(schema, TINY).eval()
    head = model.output_adapter.adapters["label"].head
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([0.0, 1.0, 0.0])
    records = [{"image": np.zeros((2, 2)), "label": label} for label in (0, 1, 1, 2, 2, 2)]
    counts = confusion(model, schema, records)
    assert counts.tolist() == [[0, 1, 0], [0, 2, 0], [0, 3, 0]]


@pytest.mark.slow
def test_a_step_of_the_papers_size(tmp_path):
    """One picture through the full model of `imagenet-fourier-paper`, with LAMB; the loss is about that of guessing."""
    write_pictures(tmp_path / "train", {"n01440764": 3, "n01443537": 2})
    write_pictures(tmp_path / "val", {"n01443537": 1})
    recipe = paper("fourier")
    recipe = replace(
        recipe,
        data=ImageFolder(folder=str(tmp_path)),
        training=replace(recipe.training, num_steps=1, batch_size=1, num_workers=0, log_every=1, accelerator="cpu"),
    )
    run_recipe(recipe, tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_text()
    loss = float(log.split('"label": ')[1].rstrip("}\n"))
    assert math.log(2) / 4 < loss < 4 * math.log(2)
