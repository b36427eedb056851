"""Options of training: each has its documented effect on the result, and no other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.files.tensor_files import load_tensors
from perceivers.modalities import Image, Label, PointSet, Text
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.model_folder import load_model
from perceivers.schema import Schema
from perceivers.training.activation_checkpointing import recomputed
from perceivers.training.checkpoints import KEPT, best_checkpoint, checkpoints
from perceivers.training.distributed import launch
from perceivers.training.logging import TENSORBOARD, read_log
from perceivers.training.loop import gradients
from perceivers.training.losses import Objective
from perceivers.training.optimisers import OptimiserConfig
from perceivers.training.sampler import evaluation_batches
from perceivers.training.training_config import TrainingConfig
from small_run import small_records, trained, weights_of, without_time

PLAIN = Config(LatentsConfig(num_latents=5, channels=12), processor=ProcessorConfig(num_layers=2, num_heads=2))
POSITIONS = Fourier(num_bands=2, max_resolution=5)


@pytest.fixture(scope="module")
def records():
    """Return records with unknown labels and texts of different length, so that parts of a batch count differently."""
    rng = np.random.default_rng(1)
    texts = ["a", "two words", "and three words", "x", "yes or no", "long and longer words"]
    return [
        {**record, "label": None if number % 3 == 0 else record["label"], "text": texts[int(rng.integers(6))]}
        for number, record in enumerate(small_records())
    ]


@pytest.fixture(scope="module")
def schema(records):
    text = Text(length=24, channels=7, mask_words=0.7)
    return Schema(
        inputs={"points": PointSet(axes=2, channels=1, positions=POSITIONS), "text": text},
        outputs={
            "label": Label(classes=2, query_channels=5),
            "image": Image(size=5, channels=1, positions=POSITIONS),
            "restored": Text(length=24, key="text", of="text", query_channels=7, tied=False),
        },
    ).fit(records)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(records, schema):
    """Parts hold different numbers of known labels and masked words; in float64, the gradients agree to rounding."""
    config = TrainingConfig(accelerator="cpu", precision="64-true")
    fabric = launch(config)
    learner = fabric.setup_module(Objective(PerceiverIO(schema, PLAIN)))
    batch = schema.collate([schema.preprocess(r, np.random.default_rng(i), True) for i, r in enumerate(records[:12])])
    found = {}
    for number in (1, 2, 3, 4):
        learner.zero_grad()
        losses = gradients(fabric, learner, batch, number)
        found[number] = [
            torch.tensor(list(losses.values()), dtype=torch.double),
            *(p.grad for p in learner.parameters()),
        ]
    for number in (2, 3, 4):
        for one, other in zip(found[1], found[number], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-13)


def test_the_whole_batch_has_the_loss_of_the_schema(records, schema):
    fabric = launch(TrainingConfig(accelerator="cpu"))
    model = PerceiverIO(schema, PLAIN)
    batch = next(iter(evaluation_batches(schema, records, 12)))
    expected = schema.losses(model(batch["inputs"], schema.points(batch["targets"])), batch["targets"])
    losses = gradients(fabric, fabric.setup_module(Objective(model)), batch, 1)
    assert losses == pytest.approx({name: float(loss.detach()) for name, loss in expected.items()})


def test_a_batch_without_any_target_is_an_error(records, schema):
    fabric = launch(TrainingConfig(accelerator="cpu"))
    learner = fabric.setup_module(Objective(PerceiverIO(schema, PLAIN)))
    batch = next(iter(evaluation_batches(schema, records, 5)))
    with pytest.raises(ValueError, match="no record of the batch has a target"):
        gradients(fabric, learner, {"inputs": batch["inputs"], "targets": {}}, 1)


def test_averaged_weights_by_hand(tmp_path):
    """Each step moves the averages by 1 - decay, and decay rises to its value; checkpoints hold both versions."""
    records = small_records()
    trained(records, tmp_path, 3, average_decay=0.15, checkpoint_every=1)
    weights = {}
    for number in (2, 3):
        (folder,) = [path for path in checkpoints(tmp_path) if path.name.endswith(str(number))]
        raw = load_tensors(folder / "training.safetensors")
        weights[number] = raw["weight/trunk.latents"], load_model(folder).trunk.latents.detach()
    (_, before), (raw, after) = weights[2], weights[3]
    assert not torch.equal(raw, after)
    torch.testing.assert_close(after, 0.15 * before + 0.85 * raw)  # 3 / (3 + 9) is more than 0.15


def test_a_run_with_averages_resumes_exactly(tmp_path):
    records = small_records()
    straight = trained(records, tmp_path / "straight", 6, average_decay=0.9)
    trained(records, tmp_path / "stopped", 6, average_decay=0.9, checkpoint_every=2)
    checkpoints(tmp_path / "stopped")[0].rename(tmp_path / "gone")
    resumed = trained(records, tmp_path / "stopped", 6, average_decay=0.9)
    assert weights_of(straight) == weights_of(resumed)
    assert without_time(read_log(tmp_path / "straight")) == without_time(read_log(tmp_path / "stopped"))


@pytest.mark.parametrize("kind", ["lamb", "adamw", "muon"])
def test_every_optimiser_resumes_exactly(tmp_path, kind):
    records, optimiser = small_records(), OptimiserConfig(kind=kind)
    straight = trained(records, tmp_path / "straight", 6, optimiser=optimiser)
    trained(records, tmp_path / "stopped", 6, optimiser=optimiser, checkpoint_every=2)
    checkpoints(tmp_path / "stopped")[0].rename(tmp_path / "gone")
    assert weights_of(trained(records, tmp_path / "stopped", 6, optimiser=optimiser)) == weights_of(straight)


def test_recomputed_activations_change_no_bit(tmp_path):
    """Dropout is the same; and the model's methods are restored."""
    records = small_records()
    kept, again = (trained(records, tmp_path / str(r), 3, activation_checkpointing=r) for r in (False, True))
    assert weights_of(kept) == weights_of(again)
    assert not any("forward" in vars(module) for module in again.modules())


def test_recomputing_keeps_less(records, schema):
    """Fewer tensors are kept for the backward pass."""
    model = PerceiverIO(schema, PLAIN)
    batch = next(iter(evaluation_batches(schema, records, 5)))
    kept = []
    for enabled in (False, True):
        saved = []
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t)
        with keep, recomputed(model, enabled):
            model(batch["inputs"])
        kept.append(sum(t.numel() for t in saved))
    assert kept[1] < 0.9 * kept[0]


def test_a_memory_limit_reaches_the_model(tmp_path):
    """test_plan.py tests the effect of the limit."""
    for limit in (3_000_000, "3MB"):
        assert trained(small_records(), tmp_path / str(limit), 1, memory_limit=limit).memory_limit == limit
    with pytest.raises(ValueError, match="memory_limit = 0 must be a whole number of bytes, at least 1, text such as"):
        TrainingConfig(memory_limit=0)
    for limit in (200, 2000, "2000"):
        with pytest.raises(ValueError, match=f"memory_limit = {limit} is in bytes: write {limit}MB for megabytes"):
            TrainingConfig(memory_limit=limit)
    assert TrainingConfig(memory_limit="500kB").memory_limit == "500kB"


@pytest.mark.slow
def test_a_compiled_run_is_close(tmp_path):
    """Run in a separate process: the compiler cannot trace the type checks of the tests."""
    code = """
import sys; from pathlib import Path; import torch
from perceivers import Config, Image, Label, LatentsConfig, Schema
from small_run import small_records, trained
records, out = small_records(), Path(sys.argv[1])
schema = Schema({"image": Image(size=5, channels=1)}, {"label": Label(classes=3)})
config = Config(LatentsConfig(num_latents=5, channels=16))
settings = {"schema": schema, "config": config, "precision": "64-true"}
plain, compiled = (trained(records, out / str(c), 3, compile=c, **settings) for c in (False, True))
for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_rate_scales_with_the_batch():
    """The paper's ImageNet: the base rate of 5e-4 at 256 gives 2e-3 at 1,024."""
    optimiser = OptimiserConfig(learning_rate=5e-4, base_batch_size=256)
    assert TrainingConfig(batch_size=1024, optimiser=optimiser).rate(0) == pytest.approx(2e-3)
    assert TrainingConfig(batch_size=1024, optimiser=OptimiserConfig(learning_rate=5e-4)).rate(0) == 5e-4


def test_mixed_precision_leaves_the_batch_alone(schema, records):
    """Coordinates reach the model in float32; losses are float32."""
    fabric = launch(TrainingConfig(accelerator="cpu", precision="bf16-mixed"))
    objective = Objective(PerceiverIO(schema, PLAIN))
    learner, seen = fabric.setup_module(objective), []
    objective.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["points"]["coordinates"].dtype))
    losses = learner(next(iter(evaluation_batches(schema, records, 5))))
    assert seen == [torch.float32]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_validation_chooses_the_checkpoint_that_stays(tmp_path):
    records = small_records()
    optimiser = OptimiserConfig(kind="adamw", learning_rate=0.3)  # so large that the loss rises
    trained(records, tmp_path, 9, optimiser=optimiser, checkpoint_every=1, validation_fraction=0.3)
    found = checkpoints(tmp_path)
    scores = {path: json.loads((path / "state.json").read_text())["score"] for path in found}
    best = best_checkpoint(tmp_path)
    assert scores[best] == min(scores.values())
    assert len(found) == KEPT + (best not in found[:KEPT])
    assert best not in found[:KEPT]


def test_validation_changes_no_step(tmp_path):
    """Validation and checkpoints draw no random numbers, and leave the model in training mode."""
    records = small_records()
    some, others = (trained(records, tmp_path / str(n), 6, validation_fraction=0.2, checkpoint_every=n) for n in (2, 6))
    assert weights_of(some) == weights_of(others)


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(small_records(), tmp_path, 4, tensorboard=True, checkpoint_every=2)
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    logged = [line["losses"]["image"] for line in read_log(tmp_path)]
    assert [event.value for event in events.Scalars("loss/image")] == pytest.approx(logged)
    assert [event.step for event in events.Images("samples")] == [2, 4]


def test_tensorboard_that_is_not_there_warns(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard = True has no effect"):
        trained(small_records(), tmp_path, 1, tensorboard=True)
