"""Published folders of optical flow, written tiny and read back; the curriculum of augmentation."""

from dataclasses import replace

import numpy as np
import pytest

from perceivers.data.published.flow_curriculum import FlowCurriculum, cropped, magnified, mirrored, reversed_flow
from perceivers.data.published.flow_pairs import FlowPairs, kitti, read_pair
from perceivers.media.flow_files import write_flow
from perceivers.media.image_files import write_image

HEIGHT, WIDTH = 11, 13
CURRICULUM = FlowCurriculum(size=(5, 7), num_records=40, plain_part=0.2, growth_part=0.4, erase_size=(2, 4))


def some_flow(number, unknown=False):
    flow = np.random.default_rng(number).integers(-3, 3, (HEIGHT, WIDTH, 2)).astype(np.float32)
    if unknown:
        flow[2, 3] = np.nan
    return flow


def some_frame(number):
    return np.random.default_rng(100 + number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def write_pair(number, first, second, flow, unknown=False):
    write_image(first, some_frame(number))
    write_image(second, some_frame(number + 50))
    write_flow(flow, some_flow(number, unknown))


def write_autoflow(folder):
    for number in range(3):
        pair = folder / f"static_40k_png_{number + 1}_of_4" / f"table_{number}"
        write_pair(number, pair / "im0.png", pair / "im1.png", pair / "forward.flo")


def write_sintel(folder):
    """Write two scenes, of three frames and of two; one has occlusions."""
    training = folder / "training"
    for number, (scene, frame) in enumerate([("alley_1", 1), ("alley_1", 2), ("market_2", 1)]):
        write_flow(training / "flow" / scene / f"frame_{frame:04d}.flo", some_flow(number))
    for rendering in ("clean", "final"):
        base = 0 if rendering == "clean" else 7
        for number, (scene, frame) in enumerate([("alley_1", 1), ("alley_1", 2), ("alley_1", 3), ("market_2", 1)]):
            write_image(training / rendering / scene / f"frame_{frame:04d}.png", some_frame(base + number))
        write_image(training / rendering / "market_2" / "frame_0002.png", some_frame(base + 4))
    hidden = np.zeros((HEIGHT, WIDTH), np.uint8)
    hidden[1, 2] = 255
    write_image(training / "occlusions" / "alley_1" / "frame_0001.png", hidden)


def write_kitti(folder):
    training = folder / "training"
    for number in range(3):
        images = [training / "image_2" / f"{number:06d}_{time}.png" for time in (10, 11)]
        write_pair(number, *images, training / "flow_occ" / f"{number:06d}_10.png", unknown=True)


def write_middlebury(folder):
    for number, name in enumerate(["Dimetrodon", "Grove2", "Venus"]):
        frames = [folder / "other-data" / name / f"frame{time}.png" for time in (10, 11)]
        write_pair(number, *frames, folder / "other-gt-flow" / name / "flow10.flo", unknown=True)


WRITERS = {"autoflow": write_autoflow, "kitti": write_kitti, "middlebury": write_middlebury}


@pytest.mark.parametrize("layout", WRITERS)
def test_pairs_are_read_as_they_were_written(layout, tmp_path):
    WRITERS[layout](tmp_path)
    records = FlowPairs(folder=str(tmp_path), layout=layout, held_out_every=1).held_out()
    assert len(records) == 3
    for number, record in enumerate(records):
        np.testing.assert_array_equal(record["flow"], some_flow(number, layout != "autoflow"))
        frames = np.stack([some_frame(number), some_frame(number + 50)])
        np.testing.assert_allclose((record["frames"] + 1) * 127.5, frames, atol=1e-4)


@pytest.mark.parametrize(("layout", "base"), [("sintel-clean", 0), ("sintel-final", 7)])
def test_sintel_pairs_are_neighbouring_frames_of_a_scene(layout, base, tmp_path):
    write_sintel(tmp_path)
    records = list(FlowPairs(folder=str(tmp_path), layout=layout, held_out_every=1).held_out())
    shown = [[(frame + 1) * 127.5 for frame in record["frames"]] for record in records]
    for (first, second), (one, other) in zip(shown, [(0, 1), (1, 2), (3, 4)], strict=True):
        np.testing.assert_allclose(first, some_frame(base + one), atol=1e-4)
        np.testing.assert_allclose(second, some_frame(base + other), atol=1e-4)
    assert records[0]["occluded"].sum() == 1
    assert records[0]["occluded"][1, 2]
    assert "occluded" not in records[2]


def test_parts_are_apart(tmp_path):
    write_autoflow(tmp_path)
    data = FlowPairs(folder=str(tmp_path), held_out_every=3)
    flows = [[record["flow"] for record in part] for part in (data.training(), data.held_out())]
    assert [len(part) for part in flows] == [2, 1]
    np.testing.assert_array_equal(flows[1][0], some_flow(2))


def test_what_is_no_such_folder_is_refused(tmp_path):
    write_kitti(tmp_path)
    with pytest.raises(ValueError, match="holds no pairs as middlebury publishes them"):
        FlowPairs(folder=str(tmp_path), layout="middlebury").training()
    write_image(tmp_path / "training" / "image_2" / "000001_11.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="differ in size"):
        read_pair(list(kitti(tmp_path))[1])
    with pytest.raises(ValueError, match="at least 1"):
        FlowPairs(held_out_every=0)


def test_reversed_flow_by_hand():
    """Two pixels end at the third and are averaged; flow that leaves the frame and unknown flow contribute nothing."""
    flow = np.array([[[2, 0], [1, 0], [9, 0], [np.nan, np.nan], [-1.4, 0.3]]], np.float32)
    expected = np.full((1, 5, 2), np.nan)
    expected[0, 2] = -1.5, 0
    expected[0, 3] = 1.4, -0.3
    np.testing.assert_allclose(reversed_flow(flow), expected, rtol=1e-6)


def test_shift_is_reversed_exactly():
    flow = np.broadcast_to(np.array([3, -1], np.float32), (HEIGHT, WIDTH, 2))
    back = reversed_flow(flow)
    assert np.isnan(back[:, :3]).all()
    assert np.isnan(back[-1]).all()
    np.testing.assert_array_equal(back[:-1, 3:], np.broadcast_to([-3.0, 1.0], (HEIGHT - 1, WIDTH - 3, 2)))


def records(tmp_path, **changes):
    write_autoflow(tmp_path)
    return FlowPairs(folder=str(tmp_path), held_out_every=3, curriculum=replace(CURRICULUM, **changes)).training()


def test_the_first_phase_is_plain_and_both_ways(tmp_path):
    """Crops as large as the frames give each pair unchanged, then reversed, in a new random sequence in each pass."""
    learned = records(tmp_path, size=(HEIGHT, WIDTH), plain_part=1.0)
    assert len(learned) == 40
    pairs = {some_frame(number).tobytes(): number for number in range(2)}
    seen = []
    for number in range(0, 40, 2):
        there, back = learned[number], learned[number + 1]
        pair = pairs[np.rint((there["frames"][0] + 1) * 127.5).astype(np.uint8).tobytes()]
        np.testing.assert_array_equal(there["flow"], some_flow(pair))
        np.testing.assert_array_equal(back["frames"], there["frames"][::-1])
        np.testing.assert_array_equal(back["flow"], reversed_flow(some_flow(pair)))
        seen.append(pair)
    assert all(sorted(seen[place : place + 2]) == [0, 1] for place in range(0, 20, 2))
    assert len({tuple(seen[place : place + 2]) for place in range(0, 20, 2)}) == 2


def test_records_of_a_curriculum_depend_on_their_number_alone(tmp_path):
    learned = records(tmp_path)
    for number in (3, 37):
        one, other = learned[number], learned[number]
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
        assert one["frames"].shape == (2, 5, 7, 3)
        assert one["flow"].shape == (5, 7, 2)
        assert np.abs(one["frames"]).max() <= 1
    assert len(learned[35:]) == 5


def test_strength_grows():
    strengths = [CURRICULUM.strength(progress) for progress in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert strengths == pytest.approx([0, 0, 0.5, 1, 1])


def test_mirroring_turns_flow_too():
    """A ramp moved by its flow stays consistent: the colour of a pixel is its position, and flow points along it."""
    flow = np.zeros((4, 5, 2))
    flow[..., 0], flow[..., 1] = 1, 2
    frames = np.zeros((2, 4, 5, 3))
    frames[0, 0, 0] = 1
    certain = replace(CURRICULUM, flip_prob=(1.0, 1.0))
    turned, back = mirrored(np.random.default_rng(0), frames, flow, certain, 1.0)
    assert turned[0, 3, 4, 0] == 1
    assert (back == [-1, -2]).all()


def test_magnifying_scales_flow_too():
    """Twice as large along both axes: displacements double."""
    certain = replace(CURRICULUM, scale=(1.0, 1.0), stretch=0.0, spatial_prob=1.0)
    flow = np.broadcast_to(np.array([1.5, -0.5], np.float32), (HEIGHT, WIDTH, 2))
    frames, larger = magnified(np.random.default_rng(0), np.zeros((2, HEIGHT, WIDTH, 3)), flow, certain, 1.0)
    assert frames.shape == (2, 2 * HEIGHT, 2 * WIDTH, 3)
    np.testing.assert_allclose(larger, np.broadcast_to([3.0, -1.0], larger.shape), rtol=1e-6)


def test_frames_smaller_than_crops_are_refused():
    with pytest.raises(ValueError, match="11 x 13 are smaller than crops of 12 x 7"):
        cropped(np.random.default_rng(0), np.zeros((2, HEIGHT, WIDTH, 3)), some_flow(0), (12, 7))
