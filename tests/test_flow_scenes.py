"""Synthetic scenes: one by hand, frames that agree with their flow, and reproducibility from the scene's number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from perceivers.data.flow_scenes import FlowScenes, Layer, Motion, Shape, Texture, View, Wave, make_layers, photos_of

SIZE = (23, 31)
DATA = FlowScenes(size=SIZE, num_training=13, num_held_out=7, brightness=0.0, noise=0.0)
GREY = Texture(torch.full((3, 2, 2), 0.5), np.eye(2, 3), np.ones(3))


def shifted(x, y):
    homography = np.eye(3)
    homography[:2, 2] = x, y
    return Motion(homography)


def square(left, top, side):
    """Return a square of `side` pixels whose first pixel is (left, top)."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * side / 2
    return Shape(np.array([left, top]) + side / 2 - 0.5, np.arctan2(corners[:, 1], corners[:, 0]), np.hypot(*corners.T))


def place_textured(layer):
    """Paint a layer with its coordinates as red and green, which linear interpolation preserves exactly."""
    height, width = 200, 300
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = torch.from_numpy(np.stack([x / width, y / height, 0 * x]).astype(np.float32))
    margin = 100
    affine = np.array([[1.0, 0, margin], [0, 1.0, margin]])
    return replace(layer, texture=Texture(picture, affine, np.ones(3)))


def warped(frame, flow):
    """Warp the second frame to the first by the flow [H, W, C], with linear interpolation."""
    height, width = flow.shape[:2]
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + flow
    unit = torch.from_numpy((places / [width - 1, height - 1] * 2 - 1).astype(np.float32))[None]
    image = torch.from_numpy(frame.astype(np.float32)).movedim(-1, 0)[None]
    return F.grid_sample(image, unit, align_corners=True, padding_mode="border")[0].movedim(0, -1).numpy()


def inner(seen, layers, views):
    """Return a mask of the pixels whose four neighbours in the second frame belong to the same layer."""
    places = views[0].points + views[0].flow_to(views[1])[0].reshape(-1, 2)
    low = np.floor(places).astype(int)
    height, width = SIZE
    front = views[1].front.reshape(SIZE)
    same = seen.reshape(-1).copy()
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = low.T + np.array([[dx], [dy]])
        same &= front[y.clip(0, height - 1), x.clip(0, width - 1)] == views[0].front
    return same.reshape(SIZE)


def test_a_scene_by_hand():
    """A square of three pixels moves by (2, 1) over a static ground; a static square hides one of its columns."""
    layers = [
        Layer(GREY, shifted(0, 0)),
        Layer(GREY, shifted(2, 1), square(1, 1, 3)),
        Layer(GREY, shifted(0, 0), square(5, 2, 3)),
    ]
    first, second = (View(layers, (7, 11), is_second) for is_second in (False, True))
    flow, occluded = first.flow_to(second)
    expected = np.zeros((7, 11, 2))
    expected[1:4, 1:4] = 2, 1
    assert np.array_equal(flow, expected)
    hidden = np.zeros((7, 11), bool)
    hidden[2:5, 3:6] = True  # destination of the moving square ...
    hidden[1:4, 1:4] = False  # ... except for its own former pixels
    hidden[1:4, 3] = True  # the last column goes behind the static square
    hidden[2:5, 5] = False  # the static square itself stays visible
    assert np.array_equal(occluded, hidden)
    back, _ = second.flow_to(first)
    assert np.array_equal(back[2:5, 3:5], np.broadcast_to([-2.0, -1.0], (3, 2, 2)))
    assert not back[2:5, 5:8].any()


def test_what_leaves_the_frame_is_occluded():
    layers = [Layer(GREY, shifted(3, 0))]
    _, occluded = View(layers, (5, 7), False).flow_to(View(layers, (5, 7), True))
    assert np.array_equal(occluded, np.broadcast_to(np.arange(7) > 3, (5, 7)))


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("swap", [False, True])
def test_the_second_frame_fetched_back_is_the_first(number, swap):
    """Exact, up to the curvature of homography and waves between two pixels, where both frames show the layer."""
    rng = np.random.default_rng(number)
    layers = [place_textured(layer) for layer in make_layers(rng, DATA, photos_of("")[0], 1.0)]
    views = [View(layers, SIZE, second) for second in ((True, False) if swap else (False, True))]
    flow, occluded = views[0].flow_to(views[1])
    seen = inner(~occluded, layers, views)
    difference = (warped(views[1].colours(), flow) - views[0].colours()) * [300, 200, 0]  # in pixels
    assert seen.mean() > 0.3
    assert np.abs(difference[seen]).max() < 0.1


def test_real_textures_agree_too():
    """With photographs, the error is that of interpolation, far below the error without motion."""
    fetched, still = [], []
    for record in DATA.held_out():
        first, second = record["frames"]
        seen = ~record["occluded"]
        fetched.append(np.abs(warped(second, record["flow"]) - first)[seen].mean())
        still.append(np.abs(second - first)[seen].mean())
    assert np.mean(fetched) < 0.4 * np.mean(still)


def test_a_record_depends_on_seed_part_and_number_alone():
    one, other = DATA.training(), DATA.training()
    other[3]
    assert all(np.array_equal(one[5][name], other[5][name]) for name in ("frames", "flow", "occluded"))
    different = [one[4], DATA.held_out()[5], replace(DATA, seed=1).training()[5]]
    assert all(not np.array_equal(one[5]["frames"], record["frames"]) for record in different)
    assert len(list(DATA.held_out())) == 7
    assert len(one[2:5]) == 3


def test_records_are_as_the_modalities_take_them():
    record = FlowScenes(size=SIZE).held_out()[0]
    assert record["frames"].shape == (2, *SIZE, 3)
    assert record["frames"].dtype == np.float32
    assert np.abs(record["frames"]).max() <= 1
    assert record["flow"].shape == (*SIZE, 2)
    assert record["flow"].dtype == np.float32


def test_difficulty_grows_over_the_records():
    data = FlowScenes(size=SIZE, num_training=60, growth=0.5)
    sizes = [np.abs(data.training()[number]["flow"]).mean() for number in range(60)]
    assert np.mean(sizes[:10]) < 0.5 * np.mean(sizes[30:])


def test_both_ways_swaps_frames_and_flow():
    """Flow forth and back ends at its start, where both frames show the layer."""
    data = replace(DATA, both_ways=True)
    forward, backward = data.training()[8], data.training()[9]
    np.testing.assert_array_equal(forward["frames"][0], backward["frames"][1])
    np.testing.assert_array_equal(forward["frames"][1], backward["frames"][0])
    return_trip = forward["flow"] + warped(backward["flow"], forward["flow"])
    assert np.median(np.abs(return_trip[~forward["occluded"]])) < 0.02


def test_waves_have_an_inverse():
    motion = Motion(shifted(1.5, -2.5).homography, (Wave(np.array([0.6, 0.8]), 2.0, 0.3, 1.0),) * 2)
    places = np.random.default_rng(0).uniform(0, 31, (17, 2))
    np.testing.assert_allclose(motion.backward(motion.forward(places)), places, atol=1e-12)


def test_parts_share_no_texture():
    training, held_out = photos_of("")
    assert len(training) == len(held_out) >= 2
    assert training[0].shape[2] > 2 * held_out[0].shape[2]


@pytest.mark.parametrize(
    ("wrong", "message"), [({"size": (1, 5)}, "at least"), ({"growth": 2.0}, "from 0 to 1"), ({"num_training": 0}, "1")]
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlowScenes(**wrong)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        photos_of(str(tmp_path))
