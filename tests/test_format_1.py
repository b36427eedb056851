"""Files of format 1: model folders load with the old field names; a recipe with one is refused with the new name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from perceivers import CategoryField, Config, Label, LatentsConfig, PointSet, Records, Schema, Text, from_pretrained
from perceivers.core.config import DecoderConfig, EncoderConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.files.tensor_files import load_shards, save_tensors
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.model_folder import FORMAT, WEIGHTS, save_model
from perceivers.schema.format_1 import FIELDS, MODALITIES
from perceivers.schema.plain_values import from_plain
from perceivers.training.training_config import TrainingConfig

POINTS = PointSet(axes=1, channels=1, positions=Fourier(num_bands=3, max_resolution=11), subsample=(0.1, 0.6))
RECORDS = Records({"type": CategoryField(classes=3, channels=5)}, field_mask_prob={"type": 0.5})
SCHEMA = Schema(
    {
        "points": replace(POINTS, subsample_at_eval=True),
        "units": replace(RECORDS, field_mask_at_eval=True),
        "text": Text(length=7, channels=8, mask_words=0.3),
    },
    {
        "types": Records({"type": CategoryField(classes=3)}, of="units", masked_only=True),
        "label": Label(classes=3),
        "restored": Text(length=7, of="text", tied=False, unmasked_loss_weight=0.25),
    },
)
CONFIG = Config(
    LatentsConfig(num_latents=5, channels=8, sinusoidal_length=11),
    EncoderConfig(channel_alignment="pad"),
    ProcessorConfig(num_heads=2, num_layers=1, qk_init_gain=3.0),
    DecoderConfig(channel_alignment="project"),
)
TRAINING_ALONE = {"mixing", "recompute"}
"""Old names that no model folder contains."""


def old_fields(plain: Any, renamed: dict[str, str]) -> Any:
    """Return a section of a description with the old names."""
    names = {new: old for old, new in renamed.items()}
    return {names.get(name, name): value for name, value in plain.items()} if isinstance(plain, dict) else plain


def as_format_1(folder: Path, renamed: dict[str, str]) -> None:
    """Rewrite a model folder with the old names."""
    place = folder / "model.json"
    description = json.loads(place.read_text())
    assert description["format"] == FORMAT == 2
    for section in (description["config"], *description["schema"].values()):
        for name, own in section.items():
            section[name] = old_fields(own, renamed)
    place.write_text(json.dumps({**description, "format": 1}))
    weights = {
        name.replace("input_adapter.alignment.", "input_adapter.join.").replace(
            "output_query.alignment.", "output_query.join."
        ): array
        for name, array in load_shards(folder / WEIGHTS).items()
    }
    assert any(".join." in name for name in weights)
    (folder / WEIGHTS).unlink()
    save_tensors(folder / WEIGHTS, weights)


@pytest.fixture
def model() -> PerceiverIO:
    torch.manual_seed(0)
    return PerceiverIO(SCHEMA, CONFIG).eval()


def answers(model: PerceiverIO) -> dict[str, Any]:
    raw = {
        "points": {"coordinates": torch.linspace(0, 1, 10).view(2, 5, 1), "values": torch.ones(2, 5, 1)},
        "units": {"type": torch.tensor([[0, 1], [2, 2]])},
        "text": torch.arange(14).view(2, 7) + 6,
    }
    return model(raw)


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - TRAINING_ALONE))
def test_a_folder_with_an_old_word_loads(field: str, model: PerceiverIO, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    as_format_1(tmp_path, {field: FIELDS[field]})
    text = (tmp_path / "model.json").read_text()
    assert f'"{field}"' in text
    assert f'"{FIELDS[field]}"' not in text
    loaded = from_pretrained(tmp_path)
    assert loaded.schema == SCHEMA
    assert loaded.config == CONFIG
    assert all(map(torch.equal, tree_leaves(answers(loaded)), tree_leaves(answers(model))))


def test_a_folder_with_all_old_words_loads(model: PerceiverIO, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    as_format_1(tmp_path, FIELDS)
    loaded = from_pretrained(tmp_path)
    assert (loaded.schema, loaded.config) == (SCHEMA, CONFIG)


def test_an_old_word_in_format_2_is_an_error(model: PerceiverIO, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    place = tmp_path / "model.json"
    place.write_text(place.read_text().replace('"subsample"', '"keep"'))
    with pytest.raises(ValueError, match="unknown field; it is called 'subsample' now"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_recipe_with_an_old_word_is_told_the_new_one(field: str) -> None:
    value: Any = {"hide": {"type": 0.5}, "keep": [0.1, 0.6], "join": "pad", "mixing": {}, "recompute": True}.get(
        field, 1
    )
    places: dict[str, tuple[type, Any]] = {
        **dict.fromkeys(("mixing", "recompute"), (TrainingConfig, {field: value})),
        **dict.fromkeys(("join", "alignment"), (Config, {"encoder": {field: value}})),
        "num_places": (Config, {"latents": {field: value}}),
    }
    text = {"kind": "text", "length": 7, field: value}
    kind, plain = places.get(field, (Schema, {"inputs": {"it": text}, "outputs": {}}))
    with pytest.raises(ValueError, match=f"{field}: unknown field; it is called '{FIELDS[field]}' now"):
        from_plain(kind, plain)


@pytest.mark.parametrize("kind", sorted(MODALITIES))
def test_an_old_kind_is_told_the_new_one(kind: str) -> None:
    with pytest.raises(ValueError, match=f"unknown kind '{kind}'; it is called '{MODALITIES[kind]}' now"):
        from_plain(Schema, {"inputs": {}, "outputs": {"it": {"kind": kind}}})
