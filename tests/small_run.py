"""A training run that takes a second: sets and pictures, dropout, random points, dropped inputs."""

import numpy as np
import torch

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Image, Label, PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema
from perceivers.training.loop import train
from perceivers.training.training_config import TrainingConfig

POSITIONS = Fourier(num_bands=2, max_resolution=5)
SCHEMA = Schema(
    inputs={"points": PointSet(axes=2, channels=1, positions=POSITIONS, subsample=(0.3, 1.0), drop_prob=0.1)},
    outputs={
        "label": Label(classes=3, query_channels=5),
        "image": Image(size=5, channels=1, positions=POSITIONS, num_points=7),
    },
)
CONFIG = Config(
    LatentsConfig(num_latents=5, channels=12),
    EncoderConfig(dropout=0.1),
    ProcessorConfig(num_layers=1, num_heads=2, dropout=0.1, attention_dropout=0.1),
    DecoderConfig(),
)


def small_records():
    """Return 23 records: a picture of 5 x 5, the same as points, and whether it is bright."""
    rng = np.random.default_rng(0)
    places = np.moveaxis(np.indices((5, 5)), 0, -1).reshape(-1, 2)
    images = rng.normal(size=(23, 5, 5))
    return [
        {"image": i, "points": {"coordinates": places, "values": i.reshape(-1, 1)}, "label": int(i.mean() > 0)}
        for i in images
    ]


def trained(records, run, num_steps, schema=SCHEMA, config=CONFIG, **settings):
    """Return a model trained on these records for a number of steps, on the CPU."""
    torch.manual_seed(0)
    model = PerceiverIO(schema.fit(records), config)
    settings = {"log_every": 1, "checkpoint_every": 3, "batch_size": 8, "accelerator": "cpu"} | settings
    train(model, records, TrainingConfig(num_steps=num_steps, **settings), run)
    return model


def weights_of(model):
    """Return the bytes of all weights."""
    return b"".join(tensor.detach().numpy().tobytes() for tensor in model.state_dict().values())


def without_time(log):
    """Return the lines of a log without the times."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in log]
