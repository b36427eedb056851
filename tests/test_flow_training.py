"""The recipes of optical flow, and baselines that need no training."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from cross_cases import least_limit, watched_blocks
from perceivers.data import FlowPairs, FlowScenes
from perceivers.modalities.flow import convex_upsample
from perceivers.modalities.points import Indices
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.systems import TASKS
from perceivers.systems.optical_flow.baselines import as_bytes, baselines, no_motion, scores_of
from perceivers.systems.optical_flow.inference import estimate_flow, fetched_back
from perceivers.systems.optical_flow.model import Variant, optical_flow
from perceivers.systems.optical_flow.recipes import paper, side_by_side
from perceivers.systems.optical_flow.report import report
from perceivers.training.loop import TrainingConfig


def test_metrics_by_hand():
    """Errors of 5, 0 and 4 pixels, one unknown; Fl counts errors above 3 pixels and 5 percent of the true flow."""
    target = np.array([[[3, 4], [1, 1], [96, 0], [np.nan, np.nan]]], np.float32)
    guess = np.array([[[0, 0], [1, 1], [100, 0], [9, 9]]], np.float32)
    records = [{"frames": np.zeros((2, 1, 4, 3), np.float32), "flow": target}]
    schema = side_by_side("3x3").schema
    scores = scores_of({"guess": lambda frames: guess, "still": no_motion}, records, schema)
    assert scores["guess"]["flow"] == pytest.approx({"epe": 3.0, "fl": 1 / 3})
    assert scores["still"]["flow"] == pytest.approx({"epe": (5 + 2**0.5 + 96) / 3, "fl": 2 / 3})


def test_opencv_finds_a_shift():
    """Both baselines of OpenCV find the direction and the size of a shift in pixels."""
    pytest.importorskip("cv2")
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")[100:300, 100:300]
    frames = np.stack([photo[10:170, 10:170], photo[8:168, 7:167]])  # moves 3 to the right and 2 down
    of_opencv = {name: estimate for name, estimate in baselines().items() if name != "no motion"}
    assert len(of_opencv) == 2
    for name, estimate in of_opencv.items():
        middle = estimate(frames)[40:120, 40:120].reshape(-1, 2)
        assert np.median(middle, axis=0) == pytest.approx([3, 2], abs=0.2), name


def test_bytes_are_the_pictures():
    frames = np.array([-1, 0, 1], np.float32).reshape(1, 1, 3, 1).repeat(2, 0).repeat(3, 3)
    assert as_bytes(frames)[0, 0, :, 0].tolist() == [0, 128, 255]


def test_the_papers_run_is_the_papers():
    """Section H: 480 epochs of 400,000 pairs in batches of 512, LAMB at 4e-4 with a cosine schedule."""
    recipe = paper()
    training, data = recipe.training, recipe.data
    assert training.num_steps * training.batch_size == 480 * 400_000
    assert isinstance(data, FlowPairs)
    assert data.curriculum.num_records == 480 * 400_000
    assert (training.optimiser.kind, training.optimiser.learning_rate) == ("lamb", 4e-4)
    assert (training.schedule.kind, training.schedule.warmup_steps) == ("cosine", 0)


@pytest.mark.parametrize(
    ("variant", "channels", "queries"),
    [
        ("3x3", 322, 182_528),
        ("3x3-separate", 451, 182_528),
        ("1x1", 322, 182_528),
        ("1x1-separate", 451, 182_528),
        ("conv", 322, 11_408),
        ("conv-separate", 451, 11_408),
    ],
)
def test_sizes_of_the_papers_variants(variant, channels, queries):
    """Table 5 of the paper: widths of tokens and numbers of queries, at full size."""
    model = optical_flow((2048, 512), 1, variant).build("meta")
    frames = model.input_adapter.adapters["frames"]
    tokens = frames(torch.zeros(1, 2, 368, 496, 3, device="meta"))
    assert model.input_adapter.channels == channels
    assert tokens.num_tokens == queries * (2 if variant.endswith("separate") else 1)
    assert np.prod(tokens.grid[-2:]) == queries


def test_convex_upsampling_by_hand():
    """Each fine pixel selects one of the nine coarse ones around its own, row by row; beyond the border there is 0."""
    coarse = torch.arange(1.0, 7).reshape(1, 2, 3, 1)  # 1 2 3 over 4 5 6
    chosen = torch.tensor([4, 5, 3, 1])  # for the four pixels of a block: the coarse pixel itself, right, left, above
    logits = torch.zeros(1, 2, 3, 9, 4)
    logits[..., chosen, range(4)] = 1e3
    fine = convex_upsample(coarse, logits.flatten(3), 2)
    expected = [[1, 2, 2, 3, 3, 0], [0, 0, 1, 0, 2, 0], [4, 5, 5, 6, 6, 0], [0, 1, 4, 2, 5, 3]]
    assert fine[0, ..., 0].tolist() == expected


def test_convex_upsampling_mixes_and_never_exceeds():
    torch.manual_seed(0)
    coarse = torch.rand(2, 5, 7, 2)
    fine = convex_upsample(coarse, torch.randn(2, 5, 7, 9 * 16), 4)
    assert fine.shape == (2, 20, 28, 2)
    assert 0 <= fine.min() <= fine.max() <= coarse.max()


@pytest.mark.parametrize("variant", get_args(Variant))
def test_variants_give_flow_of_each_pixel(variant, monkeypatch):
    """An untrained model gives no motion, a trained step some; variants that mix neighbours refuse single pixels."""
    torch.manual_seed(0)
    recipe = side_by_side(variant)
    model = optical_flow((5, 16), 1, variant)
    model = replace(model, schema=recipe.schema).build().eval()
    frames = torch.rand(2, 2, 8, 12, 3) * 2 - 1
    flow = model({"frames": frames})["flow"]
    assert flow.shape == (2, 8, 12, 2)
    assert not flow.any()
    if variant.startswith("conv"):
        with pytest.raises(ValueError, match="decode the whole flow"):
            model({"frames": frames}, {"flow": Indices(torch.arange(3))})
    (flow - 1).abs().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    whole = model({"frames": frames})["flow"]
    assert whole.any()
    encoded = model.encode({"frames": frames})
    limit = least_limit(lambda limit: model.decode(encoded, memory_limit=limit, algorithm="projected"))
    seen = watched_blocks(monkeypatch)
    in_blocks = model.decode(encoded, memory_limit=limit, algorithm="projected")["flow"]
    assert min(num_blocks for _, num_blocks in seen) > 1
    torch.testing.assert_close(in_blocks, whole)


def test_fetching_back_undoes_a_shift():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (11, 13, 3), np.uint8)
    flow = np.broadcast_to(np.array([2, -1], np.float32), (11, 13, 2))
    fetched = fetched_back(np.roll(image, (-1, 2), (0, 1)), flow)
    assert np.array_equal(fetched[1:, :-2], image[1:, :-2])


def test_levels_add_up():
    """A model that always predicts one pixel to the right: two from the half size, and one more from the rest."""
    recipe = side_by_side("3x3")
    model = replace(optical_flow((5, 16), 1), schema=recipe.schema).build().eval()
    torch.nn.init.constant_(model.output_adapter.adapters["flow"].head.bias, 0)
    with torch.no_grad():
        model.output_adapter.adapters["flow"].head.bias[0] = 5  # units of 0.2 pixels
    frames = np.zeros((2, 37, 41, 3), np.uint8)
    for levels, moved in ((1, 1.0), (2, 1 + 1.0 * 41 / 21), (3, 1 + (1 + 1.0 * 21 / 11) * 41 / 21)):
        flow = estimate_flow(model, *frames, levels=levels)
        np.testing.assert_allclose(flow[..., 0], moved, rtol=1e-5)
        assert not flow[..., 1].any()
    with pytest.raises(ValueError, match="cannot be halved"):
        estimate_flow(model, *frames[:, :2, :2], levels=2)


def test_separate_frames_are_asked_with_the_first():
    """Tokens of the second frame are read but are no queries: another second frame gives the same queries."""
    torch.manual_seed(0)
    model = replace(optical_flow((5, 16), 1), schema=side_by_side("3x3-separate").schema).build().eval()
    frames = torch.rand(2, 2, 5, 7, 3)
    changed = torch.stack([frames[:, 0], torch.rand(2, 5, 7, 3)], dim=1)
    asked = []
    for pair in (frames, changed):
        encoded = model.encode({"frames": pair})
        asked.append(model.output_query(encoded, {}, None).dense(torch.float32))
    assert torch.equal(*asked)
    assert asked[0].shape[1] == 35
    first, second = (model.encode({"frames": pair}).latents for pair in (frames, changed))
    assert not torch.equal(first, second)


def test_a_run_from_end_to_end(tmp_path):
    recipe = replace(
        side_by_side("conv"),
        data=FlowScenes(size=(12, 16), num_training=20, num_held_out=7),
        training=TrainingConfig(num_steps=2, batch_size=4, log_every=1, accelerator="cpu"),
    )
    run_recipe(recipe, tmp_path)
    scores = evaluate_run(Run(tmp_path)) | TASKS["flow-conv"].baseline_scores(Run(tmp_path))
    assert set(scores["held out"]["flow"]) == {"epe", "fl"}
    assert scores["no motion"]["flow"]["epe"] > 0
    keep_scores(tmp_path, scores)
    page = report(Run(tmp_path)).read_text()
    assert "no motion" in page
    assert page.count("<img") >= 2


def test_a_frame_pair_that_a_stem_cannot_halve_twice_is_refused():
    model = side_by_side("conv").schema
    frames = model.inputs["frames"].build_input()
    with pytest.raises(ValueError, match="multiples of 4"):
        frames(torch.zeros(1, 2, 10, 12, 3))
