"""Training with a bottleneck: the loss "kl" by hand, its warm-up, noise by record, processes, resuming, the log."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.bottleneck import Posterior
from perceivers.core.config import BottleneckConfig, Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Image, Label, Numbers
from perceivers.pretrained.model_folder import load_model
from perceivers.runs.flops import costs
from perceivers.runs.run import read_recipe
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.training import loop
from perceivers.training.checkpoints import checkpoints, latest_checkpoint
from perceivers.training.distributed import launch
from perceivers.training.logging import read_log
from perceivers.training.loop import gradients
from perceivers.training.losses import Objective
from perceivers.training.metrics import validation_loss
from perceivers.training.mixup import Mixup
from perceivers.training.optimisers import OptimiserConfig
from perceivers.training.sampler import BatchOrder, PreparedRecords, evaluation_batches, training_batches
from perceivers.training.training_config import TrainingConfig
from small_run import SCHEMA, small_records, trained, weights_of, without_time
from test_processes import together

BOTTLENECK = BottleneckConfig(channels=3, weight=0.25)
CONFIG = Config(
    LatentsConfig(num_latents=5, channels=12),
    processor=ProcessorConfig(num_layers=1, num_heads=2),
    bottleneck=BOTTLENECK,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")
MEANS, LOG_VARIANCES = (1.0, 0.0, -0.5), (0.0, math.log(4), 0.0)
DIVERGENCES = (0.5, (3 - math.log(4)) / 2, 0.125)
"""Divergences in nats from a unit normal of the normal distributions with these means and log-variances."""
DOUBLE = {"precision": "64-true", "optimiser": OptimiserConfig(kind="adamw", learning_rate=3e-3)}


@pytest.fixture(scope="module")
def records():
    """Return records with unknown labels, so that the parts of a batch count differently."""
    return [{**r, "label": None if number % 3 == 0 else r["label"]} for number, r in enumerate(small_records())]


def changed(**fields):
    """Return the config with other settings of the bottleneck."""
    return replace(CONFIG, bottleneck=replace(BOTTLENECK, **fields))


def objective_of(config=CONFIG, records=None, **settings):
    torch.manual_seed(0)
    return Objective(PerceiverIO(SCHEMA.fit(records or small_records()), config), **settings).double()


def with_known_posterior(objective):
    """Let the bottleneck of every latent have MEANS and LOG_VARIANCES."""
    module = objective.model.trunk.bottleneck
    with torch.no_grad():
        for linear, values in ((module.mean, MEANS), (module.log_variance, LOG_VARIANCES)):
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor(values))
    return objective


def batch_of(objective, records, size=7):
    """Return a training batch, in float64."""
    order = BatchOrder(0, len(records), size, 0, 1)
    (batch,) = training_batches(objective.schema, records, order, noise_shape=objective.noise_shape)
    return doubled(batch)


def doubled(value):
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    return value.double() if value.is_floating_point() else value


def run_losses(run):
    return torch.tensor([list(line["losses"].values()) for line in read_log(run)], dtype=torch.double)


def test_a_sample_by_hand():
    posterior = Posterior(torch.tensor([[MEANS]]), torch.tensor([[LOG_VARIANCES]]))
    noise = torch.tensor([[[2.0, -1.0, 0.5]]])
    torch.testing.assert_close(posterior.at(noise), torch.tensor([[[3.0, -2.0, 0.0]]]))


@pytest.mark.parametrize("free_bits", [0.0, 1.0])
def test_the_loss_by_hand(records, free_bits):
    """A channel below the free bits counts as much as they are, and has no gradient."""
    objective = with_known_posterior(objective_of(changed(free_bits=free_bits))).train()
    loss = objective(batch_of(objective, records))["kl"]
    counted = [max(divergence, free_bits * math.log(2)) for divergence in DIVERGENCES]
    assert loss.item() == pytest.approx(0.25 * sum(counted) / 3)
    loss.backward()
    # The derivative by a mean m is m; the loss is 0.25 times a mean over 3 channels.
    free = [divergence < free_bits * math.log(2) for divergence in DIVERGENCES]
    by_hand = [0.0 if is_free else 0.25 * mean / 3 for is_free, mean in zip(free, MEANS, strict=True)]
    found = objective.model.trunk.bottleneck.mean.bias.grad
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.double))


def test_the_noise_makes_the_sample(records):
    """Outside training the mean is decoded, whatever the batch holds; with `sample: false` in training too."""
    objective = with_known_posterior(objective_of())
    model, inputs = objective.model, batch_of(objective, records, 1)["inputs"]
    noise = torch.randn(1, 5, 3, dtype=torch.double)
    drawn = torch.tensor(MEANS) + (torch.tensor(LOG_VARIANCES) / 2).exp() * noise
    encoded = model.train().encode(inputs, noise=noise)
    expected = model.trunk.redrawn(encoded.around, drawn)
    torch.testing.assert_close(encoded.latents, expected.array)
    torch.testing.assert_close(model.eval().encode(inputs, noise=noise).latents, expected.array)
    mean = model.trunk.redrawn(encoded.around, torch.tensor(MEANS, dtype=torch.double).expand(1, 5, 3)).array
    torch.testing.assert_close(model.encode(inputs).latents, mean)
    objective = objective_of().eval()
    batch = batch_of(objective, records)
    torch.testing.assert_close(objective(batch), objective({key: batch[key] for key in ("inputs", "targets")}))
    torch.testing.assert_close(objective.train()(batch), objective(batch))


def test_without_samples_training_decodes_the_mean(records):
    objective = objective_of(changed(sample=False))
    assert objective.noise_shape is None
    batch = batch_of(objective, records)
    assert "noise" not in batch
    state = torch.get_rng_state()
    torch.testing.assert_close(objective.train()(batch), objective.eval()(batch), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_depends_on_seed_epoch_and_record_alone(records):
    """Two epochs of 23 records: whatever the batch, the process and the worker, noise is that of the draw."""

    def drawn(seed, size, world=1, num_workers=0):
        found = {}
        for rank in range(world):
            order = BatchOrder(seed, 23, size, 0, 46 // size, rank, world)
            batches = training_batches(SCHEMA.fit(records), records, order, num_workers, (5, 3))
            for draws, batch in zip(order, batches, strict=True):
                found |= dict(zip(draws, batch["noise"]["bottleneck"], strict=True))
        return found

    whole = drawn(3, 46)
    for other in (drawn(3, 2), drawn(3, 46, world=2), drawn(3, 23, num_workers=2)):
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[draw], whole[draw]) for draw in whole)
    values = torch.stack([*whole.values(), *drawn(4, 46).values()])
    assert values.dtype == torch.float32
    assert len(values.unique()) > 0.999 * values.numel()
    assert values.mean().item() == pytest.approx(0, abs=0.1)
    assert values.var().item() == pytest.approx(1, abs=0.1)


def test_noise_changes_no_other_random_number(records):
    schema = SCHEMA.fit(records)
    plain, noisy = (PreparedRecords(schema, records, 3, True, shape)[1, 7] for shape in (None, (5, 3)))
    np.testing.assert_array_equal(plain["targets"]["image"]["values"], noisy["targets"]["image"]["values"])
    assert noisy.keys() - plain.keys() == {"noise"}


def test_warmup_by_hand():
    objective = objective_of(changed(warmup_steps=4))
    assert [objective.warmup(step) for step in range(6)] == [{"kl": k / 4} for k in range(4)] + [{}, {}]
    assert objective_of().warmup(0) == {}
    assert objective_of(replace(CONFIG, bottleneck=None)).warmup(0) == {}


def test_warmup_scales_the_gradient_and_not_the_logged_loss(records):
    fabric = launch(TrainingConfig(accelerator="cpu", precision="64-true"))
    objective = objective_of(records=records).train()
    learner, batch, found = fabric.setup_module(objective), batch_of(objective, records, 6), {}
    for factor in (0.0, 0.25, 1.0):
        learner.zero_grad()
        losses = gradients(fabric, learner, batch, 2, {"kl": factor})
        found[factor] = losses, [parameter.grad.clone() for parameter in objective.parameters()]
    assert found[0.25][0] == pytest.approx(found[1.0][0], rel=1e-12)
    for none, quarter, full in zip(*(gradient for _, gradient in found.values()), strict=True):
        torch.testing.assert_close(quarter - none, (full - none) / 4, rtol=1e-9, atol=1e-15)
    module = objective.model.trunk.bottleneck
    assert any(parameter is module.mean.weight for parameter in objective.parameters())
    losses, _ = found[1.0]
    learner.zero_grad()
    assert gradients(fabric, learner, batch, 1) == pytest.approx(losses, rel=1e-12)


def test_warmup_goes_on_where_a_run_stopped(records, tmp_path, monkeypatch):
    real, seen = loop.gradients, []
    monkeypatch.setattr(loop, "gradients", lambda *arguments: (seen.append(arguments[-1]), real(*arguments))[1])
    config = changed(warmup_steps=4)
    trained(records, tmp_path, 3, config=config)
    trained(records, tmp_path, 6, config=config)
    assert seen == [{"kl": 0.0}, {"kl": 0.25}, {"kl": 0.5}, {"kl": 0.75}, {}, {}]


def test_parts_of_a_batch_give_what_the_whole_does(records, tmp_path):
    """In float64: losses agree to 1e-9, and so do weights."""
    settings = DOUBLE | {"batch_size": 6, "config": changed(warmup_steps=3)}
    whole, parts = (trained(records, tmp_path / str(n), 5, accumulate=n, **settings) for n in (1, 3))
    torch.testing.assert_close(run_losses(tmp_path / "1"), run_losses(tmp_path / "3"), rtol=1e-9, atol=1e-12)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shard_model", [False, True])
def test_two_processes_make_the_steps_of_one(records, tmp_path, shard_model):
    """With averages and learned weights of the other losses; a sharded run is continued by one process."""
    settings = DOUBLE | {"config": changed(warmup_steps=3), "average_decay": 0.9, "weights": "learned"}
    settings |= {"schema": SCHEMA.changed("points", drop_prob=0.0)}
    one = trained(records, tmp_path / "one", 5, **settings)
    together(2, lambda rank: trained(records, tmp_path / "two", 5, shard_model=shard_model, **settings))
    torch.testing.assert_close(run_losses(tmp_path / "two"), run_losses(tmp_path / "one"), rtol=1e-9, atol=1e-12)
    assert read_log(tmp_path / "two")[-1]["weights"].keys() == {"label", "image"}
    two = load_model(latest_checkpoint(tmp_path / "two"))
    for (name, expected), found in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("shard_model", [False, True])
def test_a_process_without_targets_keeps_up(tmp_path, shard_model):
    """Every second record has targets: one process has all of them, and the other has the bottleneck's loss alone."""
    records = [{**r, **({} if n % 2 else {"label": None, "image": None})} for n, r in enumerate(small_records()[:8])]
    schema = SCHEMA.changed("points", drop_prob=0.0)
    settings = DOUBLE | {"config": CONFIG, "schema": schema, "shuffle": False, "batch_size": 4}
    trained(records, tmp_path / "one", 3, **settings)
    together(2, lambda rank: trained(records, tmp_path / "two", 3, shard_model=shard_model, **settings))
    torch.testing.assert_close(run_losses(tmp_path / "two"), run_losses(tmp_path / "one"), rtol=1e-9, atol=1e-12)


def test_a_killed_run_makes_the_same_steps(records, tmp_path):
    """Bitwise: weights and log, with averages and a warm-up."""
    settings = {"config": changed(warmup_steps=9), "average_decay": 0.9, "validation_fraction": 0.2}
    straight = trained(records, tmp_path / "straight", 8, **settings)
    trained(records, tmp_path / "stopped", 8, checkpoint_every=1, **settings)
    shutil.rmtree(checkpoints(tmp_path / "stopped")[0])  # as if the run had been killed after step 7
    resumed = trained(records, tmp_path / "stopped", 8, num_workers=2, **settings)
    assert weights_of(straight) == weights_of(resumed)
    logs = [without_time(read_log(tmp_path / run)) for run in ("straight", "stopped")]
    assert logs[0] == logs[1]
    assert all(list(line["losses"]) == ["label", "image", "kl"] for line in logs[0])
    assert len({line["losses"]["kl"] for line in logs[0]}) == 8


def test_the_seed_chooses_the_noise(records, tmp_path):
    """All else is equal: all records in each batch, in order, at all their points."""
    schema = Schema(
        {"points": replace(SCHEMA.inputs["points"], subsample=(1.0, 1.0), drop_prob=0.0)}, {"label": Label(classes=3)}
    )
    settings = {"schema": schema, "shuffle": False, "batch_size": 23}
    for seed in (0, 1):
        trained(records, tmp_path / f"{seed}", 1, config=CONFIG, seed=seed, **settings)
        trained(records, tmp_path / f"mean {seed}", 1, config=changed(sample=False), seed=seed, **settings)
    assert read_log(tmp_path / "0")[0]["losses"]["label"] != read_log(tmp_path / "1")[0]["losses"]["label"]
    assert without_time(read_log(tmp_path / "mean 0")) == without_time(read_log(tmp_path / "mean 1"))


def test_the_validation_loss_counts_the_bottleneck_in_full(records):
    """It is a mean over samples, whatever their batches are; the mean is decoded, and there is no warm-up."""
    objective = with_known_posterior(objective_of(changed(warmup_steps=100), records)).float()
    (batch,) = evaluation_batches(objective.schema, records, 23)
    with torch.no_grad():
        outputs = objective.eval().model(batch["inputs"], objective.schema.points(batch["targets"]))
        others = sum(objective.schema.losses(outputs, batch["targets"]).values()).item()
    expected = others + 0.25 * sum(DIVERGENCES) / 3
    for size in (5, 23):
        assert validation_loss(objective, records, size) == pytest.approx(expected, rel=1e-5)


def test_validation_needs_a_target(records):
    unknown = [{"points": record["points"]} for record in records]
    with pytest.raises(ValueError, match="none of the 23 validation records has a target"):
        validation_loss(objective_of().float(), unknown, 8)
    fabric, objective = launch(TrainingConfig(accelerator="cpu", precision="64-true")), objective_of()
    with pytest.raises(ValueError, match="no record of the batch has a target"):
        gradients(fabric, fabric.setup_module(objective), batch_of(objective, unknown), 1)


def test_learned_weights_leave_the_bottleneck_alone(records):
    objective = objective_of(weights="learned").eval()
    batch = batch_of(objective, records)
    plain = Objective(objective.model).eval()(batch)
    with torch.no_grad():
        objective.log_variances.copy_(torch.tensor([0.3, -0.7]))
    losses, weights = objective(batch), objective.weights()
    assert losses["kl"] == plain["kl"]
    assert list(weights) == ["label", "image"]
    found = objective.unweighed({name: loss.item() for name, loss in losses.items()}, weights)
    assert found == pytest.approx({name: loss.item() for name, loss in plain.items()})


def test_recomputed_activations_change_no_bit(records, tmp_path):
    kept, again = (
        trained(records, tmp_path / str(r), 3, config=CONFIG, activation_checkpointing=r) for r in (False, True)
    )
    assert weights_of(kept) == weights_of(again)


def test_mixup_keeps_the_noise(tmp_path):
    """Training with samples differs from training with means."""
    schema = Schema({"image": Image(size=5, channels=1)}, {"label": Label(classes=3)})
    settings = {"schema": schema, "mixup": Mixup(), "shuffle": False}
    for name, config in (("samples", CONFIG), ("means", changed(sample=False))):
        for run in ("a", "b"):
            trained(small_records(), tmp_path / name / run, 2, config=config, **settings)
        assert without_time(read_log(tmp_path / name / "a")) == without_time(read_log(tmp_path / name / "b"))
    assert read_log(tmp_path / "samples" / "a")[0]["losses"] != read_log(tmp_path / "means" / "a")[0]["losses"]


@pytest.mark.slow
def test_a_compiled_run_is_close(tmp_path):
    """Run in a separate process: the compiler cannot trace the type checks of the tests."""
    code = """
import sys; from pathlib import Path; import torch
from perceivers import Config, Image, Label, LatentsConfig, Schema
from perceivers.core.config import BottleneckConfig
from small_run import small_records, trained
records, out = small_records(), Path(sys.argv[1])
schema = Schema({"image": Image(size=5, channels=1)}, {"label": Label(classes=3)})
config = Config(LatentsConfig(num_latents=5, channels=16), bottleneck=BottleneckConfig(3, warmup_steps=2))
settings = {"schema": schema, "config": config, "precision": "64-true", "validation_fraction": 0.2}
plain, compiled = (trained(records, out / str(c), 4, compile=c, **settings) for c in (False, True))
for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_loss_is_float32_in_any_precision(records, precision):
    fabric = launch(TrainingConfig(accelerator="cpu", precision=precision))
    objective = objective_of().float().train()
    (batch,) = training_batches(objective.schema, records, BatchOrder(0, 23, 5, 0, 1), noise_shape=(5, 3))
    losses = fabric.setup_module(objective)(batch)
    assert losses["kl"].dtype == torch.float32 or precision == "bf16-true"
    assert losses["kl"].item() > 0


def test_names_and_shapes_that_cannot_be():
    schema = Schema({"x": Numbers(count=2)}, {"kl": Numbers()})
    with pytest.raises(ValueError, match=r"output 'kl' has the name of the loss of config\.bottleneck: rename the"):
        PerceiverIO(schema, CONFIG)
    model = PerceiverIO(schema, replace(CONFIG, bottleneck=None))
    x = {"x": torch.ones(2, 2)}
    assert list(Objective(model)({"inputs": x, "targets": {"kl": torch.ones(2, 1)}})) == ["kl"]
    with pytest.raises(ValueError, match="noise makes a sample of the bottleneck, which the model lacks"):
        model.encode(x, noise=torch.zeros(2, 5, 3))
    model = PerceiverIO(Schema({"x": Numbers(count=2)}, {"y": Numbers()}), CONFIG)
    with pytest.raises(ValueError, match=r"noise of shape \(2, 5, 4\), expected \[B, 5, 3\]"):
        model.encode(x, noise=torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="inputs of one batch must be of as many samples"):
        model.encode(x, noise=torch.zeros(3, 5, 3))
    with pytest.raises(ValueError, match="masking and noise are for whole inputs"):
        model.encode(iter([x]), noise=torch.zeros(2, 5, 3))


def test_a_transformer_has_no_bottleneck():
    with pytest.warns(UserWarning, match="trunk: transformer reads no latents"):
        config = replace(CONFIG, trunk="transformer")
    schema, x = Schema({"x": Numbers(count=2)}, {"y": Numbers()}), {"x": torch.ones(2, 2)}
    objective = Objective(PerceiverIO(schema, config))
    assert (objective.names, objective.noise_shape) == (["y"], None)
    assert list(objective({"inputs": x, "targets": {"y": torch.ones(2, 1)}})) == ["y"]
    with pytest.raises(ValueError, match="which the model lacks"):
        objective.model.encode(x, noise=torch.zeros(2, 5, 3))
    assert "trunk.bottleneck" not in costs(Preset(schema, config)).stages


def test_costs_name_the_bottleneck():
    stages = costs(Preset(SCHEMA.fit(small_records()), CONFIG)).stages
    parameters, flops = stages["trunk.bottleneck"]
    assert parameters == 2 * (12 * 3 + 3) + 3 * 12 + 12
    assert flops == 2 * 5 * 3 * 12 * 3


def test_a_recipe_file_trains_and_resumes(command, tmp_path):
    """Check, train, continue: the loss has its own name in the log."""
    rows = [f"{n / 7:.2f},{'abc'[n % 3]},{'yes' if n % 2 else 'no'}" for n in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(["size,colour,bought", *rows]) + "\n")
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(f"""
data: {{kind: table, file: {tmp_path / "table.csv"}}}
inputs: {{size: {{kind: numbers}}, colour: {{kind: label}}}}
outputs: {{bought: {{kind: label}}}}
config:
  latents: {{num_latents: 5, channels: 16}}
  encoder: {{rotary: {{axes: [{{name: x}}]}}}}
  processor: {{num_layers: 1, num_heads: 2}}
  bottleneck: {{channels: 3, warmup_steps: 3}}
training: {{num_steps: 4, batch_size: 4, log_every: 1, checkpoint_every: 2, accelerator: cpu}}
""")
    assert command("schema", "check", file)[0] == 0
    assert command("train", file, "--out", run, "--set", "config.bottleneck.weight=0.5")[0] == 0
    recipe = read_recipe(run)
    assert recipe.config.bottleneck == BottleneckConfig(channels=3, weight=0.5, warmup_steps=3)
    assert recipe.config.encoder.rotary == Rotary((Axis("x"),))
    before = without_time(read_log(run))
    assert [list(line["losses"]) for line in before] == [["bought", "kl"]] * 4
    shutil.rmtree(checkpoints(run)[0])
    assert command("train", file, "--out", run, "--set", "config.bottleneck.weight=0.5")[0] == 0
    assert without_time(read_log(run)) == before
    file.write_text(file.read_text().replace("{bought: {", "{kl: {key: bought, "))
    code, _, err = command("schema", "check", file)
    assert (code, "output 'kl' has the name of the loss of config.bottleneck: rename the output" in err) == (2, True)
