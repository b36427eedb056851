"""Starting from another model: layers that fit are loaded, new ones start fresh, frozen ones stay."""

import dataclasses

import pytest
import torch

from perceivers.core.config import LatentsConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Image, Label, Numbers
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.model_folder import load_model
from perceivers.pretrained.transfer import freeze, prefixes, transfer
from perceivers.runs.results import HEADING
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.systems import PRESETS
from perceivers.training.checkpoints import latest_checkpoint
from perceivers.training.loop import train
from perceivers.training.training_config import TrainingConfig
from small_run import CONFIG, SCHEMA, small_records

RELEASED = [name for name, published in PRESETS.items() if published.released]


def small(name):
    """Return a released architecture with few latents, one layer and at most 128 latent channels."""
    preset = PRESETS[name].preset()
    config = preset.config
    encoder, processor = (
        dataclasses.replace(s, qk_channels=16, v_channels=16) for s in (config.encoder, config.processor)
    )
    processor = dataclasses.replace(processor, num_layers=1)
    return Preset(
        preset.schema, dataclasses.replace(config, latents=LatentsConfig(7, 16), encoder=encoder, processor=processor)
    )


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_starts_one_with_other_outputs(name):
    """The reading and processing layers are copied bit for bit; heads of other sizes and new outputs start fresh."""
    preset = small(name)
    source = preset.build()
    source.load_state_dict(
        {key: torch.randn_like(value.float()).to(value) for key, value in source.state_dict().items()}
    )
    kept = {key: spec for key, spec in preset.schema.outputs.items() if not isinstance(spec, Label)}
    outputs = {**kept, "label": Label(classes=11, query_channels=13), "size": Numbers(2, query_channels=5)}
    model = PerceiverIO(Schema(preset.schema.inputs, outputs), preset.config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded, fresh = transfer(model, source)
    assert "trunk" in loaded
    assert not [prefix for prefix in fresh if prefix.startswith("input_adapter")]
    for key in ("output_adapter.adapters.label", "output_adapter.adapters.size", "output_query.queries.size"):
        assert stands_in(key, fresh)
    for key, value in model.state_dict().items():
        assert stands_in(key, loaded) != stands_in(key, fresh), key
        assert torch.equal(value, (source.state_dict() if stands_in(key, loaded) else before)[key]), key


def stands_in(key, found):
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in found)


def test_prefixes_by_hand():
    names = ["a.b.weight", "a.b.bias", "a.c.weight", "ab", "d.e"]
    assert prefixes({"a.b.weight", "a.b.bias", "d.e"}, names) == ["a.b", "d"]
    assert prefixes({"a.b.weight", "ab"}, names) == ["a.b.weight", "ab"]
    assert prefixes(names, names) == ["a", "ab", "d"]
    assert prefixes([], names) == []


@pytest.mark.parametrize(
    ("noun", "place"),
    [("encoder", "trunk.encoder."), ("latents", "trunk.latents"), ("decoder", "decoder."), ("input_adapter", "input_")],
)
def test_a_frozen_part_stays_as_it_was(tmp_path, noun, place):
    records = small_records()
    model = PerceiverIO(SCHEMA.fit(records), CONFIG)
    before = {name: p.clone() for name, p in model.named_parameters()}
    freeze(model, [noun])
    train(model, records, TrainingConfig(num_steps=2, batch_size=8, accelerator="cpu", average_decay=0.5), tmp_path)
    for part in (model, load_model(latest_checkpoint(tmp_path))):
        changed = {name for name, p in part.named_parameters() if not torch.equal(p, before[name])}
        assert not [name for name in changed if name.startswith(place)]
        assert "output_adapter.adapters.label.head.weight" in changed


def test_a_frozen_batch_norm_keeps_its_statistics(tmp_path):
    schema = Schema(
        {"image": Image(size=8, stem="conv", patch=4, positions=Fourier(num_bands=2, max_resolution=2))},
        {"label": Label(classes=3)},
    )
    model = PerceiverIO(schema, CONFIG)
    freeze(model, ["input_adapter"])
    before = {name: b.clone() for name, b in model.named_buffers()}
    records = [{"image": torch.randn(8, 8, 3).numpy(), "label": n % 3} for n in range(8)]
    train(model, records, TrainingConfig(num_steps=2, batch_size=4, accelerator="cpu"), tmp_path)
    assert before
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_nothing_to_freeze_is_an_error():
    model = PerceiverIO(SCHEMA.fit(small_records()), CONFIG)
    with pytest.raises(
        ValueError, match="nothing to freeze is called 'head': there are decoder, encoder, input_adapter"
    ):
        freeze(model, ["head"])


@pytest.mark.slow
def test_the_command_starts_from_a_run(command, tmp_path):
    """From one run to another with a wider output; both lists are printed, and the recipe records them."""
    quick = [
        "training.num_steps=2",
        "training.batch_size=8",
        "training.schedule.warmup_steps=1",
        "config.processor.num_layers=1",
    ]
    code, _, err = command("train", "digits", "--out", tmp_path / "one", "--set", *quick)
    assert code == 0, err
    # Start a second run from the first.
    more = [*quick, "schema.outputs.label.query_channels=7", "training.optimiser.learning_rate=0.0"]
    arguments = ["--from", tmp_path / "one", "--freeze", "encoder", "processor", "--set", *more]
    code, _, err = command("train", "digits", "--out", tmp_path / "two", *arguments)
    assert code == 0, err
    assert f"loaded from {tmp_path / 'one'}: input_adapter, trunk, " in err
    assert "fresh: output_query" in err
    one, two = (load_model(latest_checkpoint(tmp_path / run)) for run in ("one", "two"))
    assert torch.equal(one.trunk.latents, two.trunk.latents)
    assert "freeze:\n- encoder\n- processor" in (tmp_path / "two" / "recipe.yaml").read_text()
    # The table of results.
    table = tmp_path / "results.md"
    code, _, err = command("report", tmp_path / "two", "--out", table)
    assert code == 0, err
    rows = table.read_text().removeprefix(HEADING).splitlines()
    assert rows[2].startswith("| two | `perceivers train digits --out")
    assert "| 0 | 2 | 0.0 | held out | label accuracy" in rows[2]
    assert len(rows) == 2 + 4
    assert "unread pixels" in rows[-1]


def test_the_wrong_model_to_start_from_leaves_nothing(command, tmp_path):
    code, _, err = command("train", "digits", "--out", tmp_path / "run", "--from", tmp_path / "none")
    assert code == 2
    assert "none: no such folder" in err
    assert not (tmp_path / "run").exists()
