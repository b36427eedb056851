"""Augmentation of pictures: crops, each operation of RandAugment by hand, MixUp and CutMix."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from perceivers.media.image_files import write_image
from perceivers.media.resampling import centre_crop
from perceivers.modalities import Image, Label
from perceivers.modalities.augmentation import COVERED, Augmentation, augmented, random_crop
from perceivers.modalities.randaugment import FILL, OPERATIONS, RandAugment, distorted
from perceivers.modalities.table_cells import Files
from perceivers.schema import Schema
from perceivers.training.checkpoints import checkpoints
from perceivers.training.mixup import Mixup, blends, check_mixing, mixed, rectangles
from perceivers.training.sampler import BatchOrder, PreparedRecords, training_batches
from small_run import CONFIG, trained, weights_of

FULL = RandAugment(magnitude=10.0, translation=3, cutout=2)
HALF = RandAugment()


def some_picture(height=11, width=13, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def places(height, width):
    """Return a picture in which each pixel holds its position."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def operated(name, pixels, config=FULL, seed=0):
    return np.asarray(OPERATIONS[name](Pillow.fromarray(pixels), config, np.random.default_rng(seed)))


def both_signs(name, pixels, config=FULL):
    """Return the results for the two directions that an operation chooses from."""
    results = {operated(name, pixels, config, seed).tobytes() for seed in range(20)}
    assert len(results) == 2
    return [np.frombuffer(result, np.uint8).reshape(pixels.shape) for result in sorted(results)]


def test_pictures_stay_whole_without_an_area():
    picture = places(7, 11)
    found = [augmented(picture, Augmentation(area=None, rand_augment=None), np.random.default_rng(n)) for n in range(9)]
    assert all(np.array_equal(crop, picture) or np.array_equal(crop, picture[:, ::-1]) for crop in found)
    assert len({crop[0, 0].tobytes() for crop in found}) == 2


def test_crops_have_the_area_and_the_aspect_asked_for():
    config, rng = Augmentation(), np.random.default_rng(0)
    crops = [random_crop(places(101, 149), config, rng) for _ in range(2000)]
    areas = np.array([crop.shape[0] * crop.shape[1] for crop in crops]) / (101 * 149)
    aspects = np.array([crop.shape[1] / crop.shape[0] for crop in crops])
    assert areas.min() >= COVERED
    assert areas.max() <= 1
    assert 3 / 4 - 0.03 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 4 / 3 + 0.03
    corners = np.array([crop[0, 0, :2] for crop in crops])
    ends = np.array([crop[-1, -1, :2] for crop in crops])
    assert corners.min() == 0
    assert ends.max(axis=0).tolist() == [100, 148]
    assert all((np.diff(crop[:, 0, 0].astype(int)) == 1).all() for crop in crops[:50])


def test_heights_are_uniform():
    """At aspect 1, TensorFlow draws heights uniformly between those of the smallest and the largest area."""
    config, rng = Augmentation(area=(0.25, 1.0), aspect=(1.0, 1.0)), np.random.default_rng(0)
    heights = Counter(len(random_crop(places(8, 9), config, rng)) for _ in range(5000))
    assert set(heights) == {5, 6, 7, 8}  # 4 x 4 is less than a quarter of 8 x 9
    assert all(abs(count - 1250) < 150 for count in heights.values())


def test_a_crop_that_cannot_be_is_the_central_square():
    wide = some_picture(3, 101)  # no crop of a tenth of its area is at most 4/3 as wide as high
    crop = random_crop(wide, Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(crop, centre_crop(wide, 0.875))
    whole = some_picture(16, 16)  # the official code treats this as a failure
    crop = random_crop(whole, Augmentation(area=(1.0, 1.0), aspect=(1.0, 1.0)), np.random.default_rng(0))
    np.testing.assert_array_equal(crop, whole[1:15, 1:15])


def test_flips_are_half_of_all():
    config = Augmentation(area=(1.0, 1.0), aspect=(1.0, 1.0), rand_augment=None)
    pixels = places(8, 8)
    flipped = [augmented(pixels, config, np.random.default_rng(seed))[0, 0, 1] != 1 for seed in range(400)]
    assert 160 < sum(flipped) < 240


def test_what_changes_colours_by_hand():
    pixels = np.array([[[0, 64, 100], [50, 128, 150], [100, 192, 255]]], np.uint8)
    expected = {
        "invert": 255 - pixels,
        "posterize": pixels & 0xF0,
        "solarize": pixels,  # the threshold 256 changes no pixel
        "solarize_add": np.array([[[110, 174, 210], [160, 128, 150], [210, 192, 255]]]),
        "brightness": np.minimum(pixels * 1.9, 255).astype(np.uint8),
    }
    for name, result in expected.items():
        np.testing.assert_allclose(operated(name, pixels), result, atol=1, err_msg=name)
    np.testing.assert_array_equal(operated("solarize", pixels, HALF), np.where(pixels < 128, pixels, 255 - pixels))
    np.testing.assert_array_equal(operated("posterize", pixels, HALF), pixels & 0xC0)
    stretched = operated("autocontrast", pixels)
    expected = [[0, 0, 0], [127, 127, 82], [255, 255, 255]]  # 50 of 100, 64 of 128, 50 of 155
    np.testing.assert_allclose(stretched[0].astype(int), expected, atol=1)


def test_equalising_makes_values_uniform():
    """Equally frequent values are spread evenly, whatever they are."""
    ramp = np.repeat((np.arange(64) // 2 + 100).astype(np.uint8), 256).reshape(128, 128, 1).repeat(3, 2)
    result = operated("equalize", ramp)
    levels = np.unique(result)
    assert len(levels) == 32
    assert levels[0] == 0
    assert levels[-1] >= 254
    assert np.ptp(np.diff(levels.astype(int))) <= 2


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancements_change_nothing_at_the_papers_magnitude(name):
    pixels = some_picture()
    np.testing.assert_array_equal(operated(name, pixels, HALF), pixels)
    assert (operated(name, pixels) != pixels).any()


def test_contrast_and_colour_move_away_from_grey():
    pixels = some_picture()
    grey = pixels[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(operated("color", grey), grey)
    assert operated("contrast", pixels).std() > 1.2 * pixels.std()
    inner = np.s_[1:-1, 1:-1]
    assert operated("sharpness", pixels)[inner].std() > pixels[inner].std()


def test_translations_by_hand():
    pixels = places(7, 9)
    for name, axis in (("translate_y", 0), ("translate_x", 1)):
        there, back = (np.moveaxis(moved, axis, 0) for moved in both_signs(name, pixels))
        own = np.moveaxis(pixels, axis, 0)
        moves = sorted([there, back], key=lambda moved: int((moved[0] == FILL).all()))
        np.testing.assert_array_equal(moves[0][:-3], own[3:])
        np.testing.assert_array_equal(moves[1][3:], own[:-3])
        assert (moves[0][-3:] == FILL).all()
        assert (moves[1][:3] == FILL).all()


def test_shears_by_hand():
    """Row y comes from 0.3 y to one side, rounded; columns likewise."""
    pixels = places(7, 9)
    for name, turned in (("shear_x", pixels), ("shear_y", pixels.transpose(1, 0, 2))):
        for result in both_signs(name, pixels):
            rows = result if name == "shear_x" else result.transpose(1, 0, 2)
            np.testing.assert_array_equal(rows[0], turned[0])
            lefts = [int((row == FILL).all(axis=-1)[0]) for row in rows]
            shifts = np.rint(0.3 * np.arange(len(rows))).astype(int)
            for row, own, shift in zip(rows, turned, shifts, strict=True):
                moved = row[shift:] if any(lefts) else row[: len(row) - shift]
                expected = own[: len(own) - shift] if any(lefts) else own[shift:]
                np.testing.assert_array_equal(moved, expected)


def test_rotation_is_thirty_degrees_at_full_strength():
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[49:52, 90] = 255  # forty pixels to the right of the middle
    for result, sign in zip(both_signs("rotate", pixels), (1, -1), strict=True):
        row, column = np.argwhere((result == 255).all(axis=-1)).mean(axis=0) - 50
        assert abs(np.degrees(np.arctan2(row, column))) == pytest.approx(30, abs=1.5)
        assert np.hypot(row, column) == pytest.approx(40, abs=1)
        assert (result[0, 0] == FILL).all(), sign


def test_cutout_fills_one_square():
    pixels = np.zeros((11, 13, 3), np.uint8)
    sizes = set()
    for seed in range(200):
        filled = (operated("cutout", pixels, seed=seed) == FILL).all(axis=-1)
        rows, columns = filled.any(axis=1), filled.any(axis=0)
        np.testing.assert_array_equal(filled, rows[:, None] & columns)
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert sizes == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


def test_all_sixteen_are_drawn(monkeypatch):
    """The number of layers determines how many are drawn, each with equal probability."""
    drawn = Counter()
    for name, operation in OPERATIONS.items():
        monkeypatch.setitem(OPERATIONS, name, lambda i, c, r, n=name, o=operation: drawn.update([n]) or o(i, c, r))
    rng = np.random.default_rng(0)
    for _ in range(400):
        assert distorted(some_picture(5, 7), HALF, rng).shape == (5, 7, 3)
    assert len(drawn) == 16
    assert sum(drawn.values()) == 1600
    assert 60 < min(drawn.values()) <= max(drawn.values()) < 145


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="from 0 to 10"):
        RandAugment(magnitude=11.0)
    with pytest.raises(ValueError, match=r"area = .* at most 1"):
        Augmentation(area=(0.1, 1.5))
    with pytest.raises(ValueError, match="bytes of three colours, not float32 of 1"):
        augmented(np.zeros((5, 7, 1), np.float32), Augmentation(), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"crop = 1.5"):
        Image(crop=1.5)
    with pytest.raises(ValueError, match="mixup_alpha"):
        Mixup(mixup_alpha=0.0)


SCHEMA = Schema(
    {"image": Image(size=(5, 7), crop=0.875, augmentation=Augmentation(), mean=(0.0,), std=(1.0,))},
    {"label": Label(classes=3, query_channels=5)},
)


def some_records(count=7):
    return [{"image": some_picture(11 + n, 13, n), "label": n % 3} for n in range(count)]


def test_training_is_augmented_and_evaluation_is_not():
    spec, pixels = SCHEMA.inputs["image"], some_picture(16, 16)
    one, other = (spec.preprocess(pixels, np.random.default_rng(seed), True) for seed in (0, 1))
    assert one.shape == other.shape == (5, 7, 3)
    assert one.dtype == np.float32
    assert (one != other).any()
    still = [spec.preprocess(pixels, np.random.default_rng(seed), False) for seed in (0, 1)]
    np.testing.assert_array_equal(*still)
    exact = replace(spec, size=14)
    np.testing.assert_array_equal(exact.preprocess(pixels, np.random.default_rng(0), False), pixels[1:15, 1:15])


def test_files_are_read_whole_where_they_are_cut(tmp_path):
    """A path in a record or in a table's cell is loaded; one channel gives shades of grey."""
    pixels = some_picture(16, 17)
    path = write_image(tmp_path / "one.png", pixels)
    spec, rng = replace(SCHEMA.inputs["image"], size=14), np.random.default_rng(0)
    grey = replace(spec, channels=1, augmentation=None)
    for value in (path, spec.read("one.png", Files(tmp_path))):
        np.testing.assert_array_equal(spec.preprocess(value, rng, False), pixels[1:15, 2:16])
    for value in (path, grey.read("one.png", Files(tmp_path))):
        expected = pixels[1:15, 2:16].mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(grey.preprocess(value, rng, False), expected, rtol=1e-6)
    whole = replace(spec, crop=None, augmentation=None)
    np.testing.assert_array_equal(whole.preprocess(path, rng, False), pixels)


def test_a_record_is_the_same_whoever_asks(tmp_path):
    """A record depends on (seed, epoch, number) only: read alone, in any order, or by the workers of a resumed run."""
    records = some_records()
    for number, record in enumerate(records):
        record["image"] = write_image(tmp_path / f"{number}.png", record["image"])
    prepared = PreparedRecords(SCHEMA, records, seed=3, training=True)
    draws = [(epoch, number) for epoch in (0, 1) for number in range(7)]
    alone = {draw: prepared[draw]["inputs"]["image"] for draw in reversed(draws)}
    assert any((alone[0, number] != alone[1, number]).any() for number in range(7))
    for first, workers in ((0, 0), (1, 0), (1, 2)):
        order = BatchOrder(3, len(records), batch_size=4, first=first, last=3)
        for drawn, batch in zip(order, training_batches(SCHEMA, records, order, workers), strict=True):
            for draw, image in zip(drawn, batch["inputs"]["image"], strict=True):
                np.testing.assert_array_equal(image.numpy(), alone[draw])


def test_a_resumed_run_makes_the_same_steps(tmp_path):
    """The same bits, with augmentation and MixUp, from workers."""
    settings = {"schema": SCHEMA, "config": CONFIG, "mixup": Mixup(), "batch_size": 5}
    straight = trained(some_records(), tmp_path / "straight", 3, **settings)
    trained(some_records(), tmp_path / "stopped", 3, checkpoint_every=1, **settings)
    shutil.rmtree(checkpoints(tmp_path / "stopped")[0])  # as if the run had been killed after step 2
    resumed = trained(some_records(), tmp_path / "stopped", 3, num_workers=2, **settings)
    assert weights_of(resumed) == weights_of(straight)
    plain = trained(some_records(), tmp_path / "plain", 3, schema=SCHEMA, config=CONFIG, batch_size=5)
    assert weights_of(plain) != weights_of(straight)


def test_blends_are_of_the_beta_distribution():
    """The variance of Beta(a, a) is 1 / (4 (2a + 1))."""
    parts = blends(20_000, [2, 3], 0.2)
    assert parts.shape == (20_000, 2, 3, 1)
    assert (parts == parts[:, :1, :1]).all()
    assert parts[:, 0, 0].mean().item() == pytest.approx(0.5, abs=0.01)
    assert parts[:, 0, 0].var().item() == pytest.approx(1 / 5.6, rel=0.03)


def test_rectangles_are_rectangles():
    weights = rectangles(500, [11, 13])[..., 0].bool()
    rows, columns = weights.any(dim=2), weights.any(dim=1)
    assert torch.equal(weights, rows[:, :, None] & columns[:, None, :])
    assert rows.sum(dim=1).max() > 9
    for side in (rows, columns):
        assert (side.int().diff(dim=1).abs().sum(dim=1) <= 2).all()
    # Without the border, the area of a patch would be uniform; the part outside of the picture is lost.
    assert 0.25 < weights.float().mean() < 0.5


def test_mixing_by_hand():
    """Class weights equal the shares of pixels; half of the batch uses MixUp, the other half CutMix."""
    count, size = 6, 5
    schema = SCHEMA.changed("image", size=size).changed("label", classes=count)
    own = torch.arange(count).float()
    images = own[:, None, None, None].expand(-1, size, size, 3)
    batch = {"inputs": {"image": images}, "targets": {"label": torch.arange(count)}}
    result = mixed(schema, batch, Mixup())
    image, target = result["inputs"]["image"], result["targets"]["label"]
    torch.testing.assert_close(target.sum(dim=1), torch.ones(count))
    before = own.roll(1)
    weights = (image[..., 0] - before[:, None, None]) / (own - before)[:, None, None]
    parts = target.diagonal()
    torch.testing.assert_close(weights.mean(dim=(1, 2)), parts)
    torch.testing.assert_close(target[torch.arange(count), torch.arange(count).roll(1)], 1 - parts)
    assert weights[:3].flatten(1).std(dim=1).max() < 1e-6
    cut = weights[3:]
    assert torch.isclose(cut, cut.round(), atol=1e-6).all()
    torch.manual_seed(0)
    again = mixed(schema, batch, Mixup())
    torch.manual_seed(0)
    torch.testing.assert_close(mixed(schema, batch, Mixup()), again, rtol=0, atol=0)


def test_what_is_unknown_stays_unknown():
    """An unknown class makes the classes of both mixed samples unknown, and a missing picture their pixels."""
    samples = [SCHEMA.preprocess(record, np.random.default_rng(0), False) for record in some_records(4)]
    samples[1]["inputs"]["image"] = None
    samples[2]["targets"]["label"] = None
    batch = mixed(SCHEMA, SCHEMA.collate(samples), Mixup())
    assert batch["inputs"]["image"]["mask"].any(dim=(1, 2)).tolist() == [True, False, False, True]
    assert batch["targets"]["label"].isnan().any(dim=1).tolist() == [False, False, True, True]
    loss = SCHEMA.outputs["label"].loss(torch.zeros(4, 3), batch["targets"]["label"])
    assert loss.item() == pytest.approx(np.log(3))


def test_the_loss_of_probabilities_by_hand():
    """Mixed first, then smoothed: 0.9 (0.75, 0.25, 0) + 0.1 / 3."""
    label, logits = Label(classes=3, smoothing=0.1), torch.tensor([[0.5, -1.0, 2.0]])
    smoothed = torch.tensor([0.675 + 0.1 / 3, 0.225 + 0.1 / 3, 0.1 / 3])
    expected = -(smoothed * logits[0].log_softmax(dim=-1)).sum()
    torch.testing.assert_close(label.loss(logits, torch.tensor([[0.75, 0.25, 0.0]])), expected)
    sure = label.loss(logits, label.probabilities(torch.tensor([2])))
    torch.testing.assert_close(sure, label.loss(logits, torch.tensor([2])))


def test_mixing_is_for_pictures_and_classes():
    check_mixing(SCHEMA)
    both = Schema({"image": Image(), "label": Label(classes=2)}, {"out": Label(classes=2)})
    with pytest.raises(ValueError, match="one image in and labels out, not Image, Label, Label"):
        check_mixing(both)
