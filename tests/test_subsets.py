"""The expected loss at random positions of an output is the loss of the whole (the paper: 512 + 512 + 1 positions)."""

import itertools
import math

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Audio, Image, Label, Video
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema
from perceivers.training.losses import Objective

CONFIG = Config(LatentsConfig(num_latents=5, channels=12), processor=ProcessorConfig(num_layers=1, num_heads=2))
SPECS = {
    "sound": Audio(size=14, channels=1, patch=2, positions=Fourier(2, 7), coordinate_rule="exclusive"),
    "picture": Image(size=(3, 2), channels=2, positions=Fourier(2, (3, 2))),
    "film": Video(size=(2, 2, 2), channels=1, positions=Fourier(2, (2, 2, 2)), loss_kind="l1"),
}
PLACES = {"sound": 7, "picture": 6, "film": 8}


def schema_with(num_points):
    """Return an autoencoder schema of three grids and a class."""
    changed = {name: type(kind)(**{**vars(kind), "num_points": num_points}) for name, kind in SPECS.items()}
    label = {"label": Label(classes=3, query_channels=5)}
    return Schema(SPECS | label, changed | label)


def gradient_of(losses, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses.values()), model.parameters())])


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    sizes = {"sound": (14, 1), "picture": (3, 2, 2), "film": (2, 2, 2, 1)}
    return [
        {name: rng.normal(size=size) for name, size in sizes.items()} | {"label": number % 3} for number in range(3)
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PerceiverIO(schema_with(None), CONFIG).double()


def batch_at(records, chosen):
    """Return a batch whose outputs are decoded at chosen positions: {name: indices}."""
    whole = schema_with(None)
    batch = whole.collate([whole.preprocess(record, np.random.default_rng(0), False) for record in records])
    batch = {
        side: {n: v.double() if v.is_floating_point() else v for n, v in part.items()} for side, part in batch.items()
    }
    for name, places in chosen.items():
        index = torch.tensor(places).expand(len(records), -1)
        rows = batch["targets"][name].flatten(1, -2)
        rows = rows.unflatten(1, (-1, 2)).flatten(2) if name == "sound" else rows  # patches of two samples
        values = rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
        batch["targets"][name] = {"values": values, "index": index}
    return batch


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [1, 2])
def test_the_mean_over_all_subsets_is_the_loss_of_the_whole(records, model, name, size):
    """All subsets of one or two positions are equally probable. Losses and gradients agree to rounding."""
    objective = Objective(model)
    whole = objective(batch_at(records, {}))
    subsets = list(itertools.combinations(range(PLACES[name]), size))
    losses = [objective(batch_at(records, {name: subset})) for subset in subsets]
    for output, expected in whole.items():
        mean = torch.stack([loss[output] for loss in losses]).mean()
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.stack([gradient_of(loss, model) for loss in losses])
    assert gradients.std(dim=0).max() > 1e-3  # a single subset differs from the whole
    torch.testing.assert_close(gradients.mean(dim=0), gradient_of(whole, model), rtol=1e-9, atol=1e-12)


def test_places_are_drawn_evenly(records):
    """In training, each position is equally likely, within 4 standard deviations; evaluation uses all positions."""
    schema, draws = schema_with(2), 600
    for name, places in PLACES.items():
        chosen = [
            schema.preprocess(records[0], np.random.default_rng(seed), True)["targets"][name]["index"]
            for seed in range(draws)
        ]
        assert all(len(set(index)) == 2 for index in chosen)
        probability = 2 / places
        spread = 4 * math.sqrt(draws * probability * (1 - probability))
        assert np.abs(np.bincount(np.concatenate(chosen), minlength=places) - draws * probability).max() < spread
    evaluated = schema.preprocess(records[0], np.random.default_rng(0), False)["targets"]
    assert not any(isinstance(evaluated[name], dict) for name in SPECS)


def test_values_stand_where_they_were_chosen(records):
    """The values of a subset are those of the whole at the same positions."""
    prepared = schema_with(3).preprocess(records[1], np.random.default_rng(5), True)["targets"]
    for name in SPECS:
        index = prepared[name]["index"]
        expected = batch_at(records, {name: index.tolist()})["targets"][name]["values"][1]
        np.testing.assert_allclose(prepared[name]["values"], expected, rtol=1e-6)
