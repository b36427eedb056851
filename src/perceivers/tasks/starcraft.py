"""StarCraft II (paper section B): the entity encoder, and what it can learn from replays alone.

The paper puts the encoder into AlphaStar and plays; games of that agent are not public. Here hidden unit types and both
players' statistics are read from replays: `perceivers train starcraft --out runs/starcraft --set data.folder=REPLAYS`
(five minutes on two cores; expect more types right than the most frequent one of each side gives).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import BlockConfig, CrossAttention, Mask
from perceivers.core.initialisers import plain_linear
from perceivers.core.perceiver import (
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentsConfig,
    ProcessorConfig,
    Resampler,
)
from perceivers.data import StarCraft
from perceivers.data.starcraft import STATISTICS
from perceivers.modalities import Records
from perceivers.modalities.fields import Category, Number
from perceivers.schema import Record, Schema
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.training.evaluation import Scores
from perceivers.training.loop import TrainingConfig
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig

ENTITY_CHANNELS, FEATURE_CHANNELS = 256, 128
"""Widths of an entity as it comes in and goes out, and of its features, with which it is asked for (paper)."""

ENCODER = Config(
    latents=LatentsConfig(num_latents=32, channels=512),
    encoder=EncoderConfig(),
    processor=ProcessorConfig(num_heads=8, num_layers=3),
)
"""32 latents, 3 layers, heads as for ImageNet (paper); the latents' width is not stated: 512 is ours."""


class PerceiverEntities(nn.Module):
    """Entities through latents and back: queries are the entities' features."""

    def __init__(self, config: Config = ENCODER) -> None:
        super().__init__()
        self.features = plain_linear(ENTITY_CHANNELS, FEATURE_CHANNELS)
        self.resampler = Resampler(config, ENTITY_CHANNELS)
        self.decoder = CrossAttention(FEATURE_CHANNELS, config.latents.channels, config.decoder, query_residual=True)
        self.channels = FEATURE_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
        """A vector for each slot."""
        latents = self.resampler(entities, mask)
        return self.decoder(self.features(entities), latents, Mask(queries=mask))


class TransformerEntities(nn.Module):
    """AlphaStar's: three layers of two heads of 128, MLP of 1,024, in which all entities attend to all."""

    def __init__(self, num_layers: int = 3) -> None:
        super().__init__()
        config = BlockConfig(num_heads=2, widening_factor=4)
        blocks = [CrossAttention(ENTITY_CHANNELS, ENTITY_CHANNELS, config, True) for _ in range(num_layers)]
        self.layers = nn.ModuleList(blocks)
        self.channels = ENTITY_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c"]:
        """A vector for each slot."""
        for layer in self.layers:
            entities = layer(entities, entities, Mask(keys=mask))
        return entities


class EntityEncoder(nn.Module):
    """A vector for each entity and one for all of them, from either trunk; slots without an entity count nowhere."""

    def __init__(self, trunk: PerceiverEntities | TransformerEntities) -> None:
        super().__init__()
        self.trunk = trunk
        self.each = plain_linear(trunk.channels, ENTITY_CHANNELS)  # a convolution over slots of width 1
        self.all = plain_linear(trunk.channels, ENTITY_CHANNELS)

    def forward(
        self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b c"]]:
        """Entity embeddings, 0 in empty slots, and the embedded entity."""
        out = self.trunk(entities, mask)
        there = mask[..., None]
        mean = torch.where(there, out, 0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        return torch.where(there, self.each(out.relu()), 0), self.all(mean).relu()


def schema() -> Schema:
    """Units in; types of those that are hidden, and both players' statistics, out."""
    units = Records(
        fields={
            "type": Category(channels=32),
            "owner": Category(classes=3, channels=8),
            **{name: Number() for name in ("x", "y", "age")},
        },
        max_records=512,
    )
    hidden = Records(fields={"type": Category()}, of="units")
    statistics = Records(
        fields={f"{name}_{pid}": Number() for pid in (1, 2) for name in STATISTICS}, query_channels=128
    )
    return Schema(inputs={"units": units}, outputs={"hidden": hidden, "statistics": statistics})


def paper() -> Recipe:
    """The paper's encoder and ImageNet's hyperparameters (its section B names no others), on hidden types: ours."""
    steps = 137_625
    return Recipe(
        data=StarCraft(num_passes=1000),
        schema=schema(),
        config=ENCODER,
        training=TrainingConfig(
            num_steps=steps,
            batch_size=1024,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=2e-3, weight_decay=0.1, max_norm=10.0),
            schedule=ScheduleConfig(kind="constant_cosine"),
            num_workers=8,
        ),
    )


def small() -> Recipe:
    """Five minutes on two cores."""
    return Recipe(
        data=StarCraft(num_passes=20),
        schema=schema(),
        config=Config(
            latents=LatentsConfig(num_latents=32, channels=64),
            encoder=EncoderConfig(num_heads=4),
            processor=ProcessorConfig(num_heads=4, num_layers=3),
            decoder=DecoderConfig(num_heads=4, query_residual=True),
        ),
        training=TrainingConfig(
            num_steps=2500,
            batch_size=16,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def rival_scores(run: Path) -> dict[str, Scores]:
    """What training games tell without looking: the most frequent type, and means of the statistics at each time."""
    recipe, _ = load_run(run)
    assert isinstance(recipe.data, StarCraft)
    once = replace(recipe.data, num_passes=1)
    return rivals(recipe.schema, once.training(), once.held_out())


def rivals(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Their scores on held-out records, as the outputs' own metrics have them."""
    most, most_of = frequent_types(training)
    means = time_means(training)

    def same(record: Record) -> dict[str, list[str]]:
        return {"type": [most] * len(record["units"]["owner"])}

    def by_owner(record: Record) -> dict[str, list[str]]:
        return {"type": [most_of.get(owner, most) for owner in record["units"]["owner"]]}

    def nearest(record: Record) -> dict[str, float]:
        return means[min(means, key=lambda time: abs(time - record["time"]))]

    return {
        "most frequent type": {"hidden": guess_scores(fitted, "hidden", held_out, same)},
        "most frequent type of each player": {"hidden": guess_scores(fitted, "hidden", held_out, by_owner)},
        "means at the same time": {"statistics": guess_scores(fitted, "statistics", held_out, nearest)},
    }


def frequent_types(records: Iterable[Record]) -> tuple[str, dict[int, str]]:
    """The most frequent hidden type, and that of each owner."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for record in records:
        for owner, name in zip(record["units"]["owner"], record["hidden"]["type"], strict=True):
            if name is not None:
                counts[int(owner)][name] += 1
    total = sum(counts.values(), Counter[str]())
    return total.most_common(1)[0][0], {owner: count.most_common(1)[0][0] for owner, count in counts.items()}


def time_means(records: Iterable[Record]) -> dict[float, dict[str, float]]:
    """Means of the statistics over the snapshots of one time."""
    groups: dict[float, list[Mapping[str, float]]] = defaultdict(list)
    for record in records:
        groups[record["time"]].append(record["statistics"])
    return {
        time: {name: float(np.mean([one[name] for one in group])) for name in group[0]}
        for time, group in groups.items()
    }


def guess_scores(
    fitted: Schema, name: str, records: Iterable[Record], guess: Callable[[Record], Any]
) -> dict[str, float]:
    """Metrics of an output of records, of guesses in the data's own form."""
    spec = fitted.outputs[name]
    assert isinstance(spec, Records)
    metrics, rng = spec.metrics(), np.random.default_rng(0)
    for record in records:
        target, guessed = (spec.collate([spec.prepare(value, rng, False)]) for value in (record[name], guess(record)))
        for field, kind in spec.fields.items():
            if isinstance(kind, Category):
                guessed[field] = F.one_hot(guessed[field].clamp(min=0), kind.num_outputs).float()
        compared = spec.compared(guessed, target)
        for metric in metrics.values() if len(compared[1]) else ():
            metric.update(*compared)
    return {key: float(metric.compute()) for key, metric in metrics.items()}


RECIPES: dict[str, Callable[[], Recipe]] = {"starcraft": small, "starcraft-paper": paper}
"""By name on the command line."""
