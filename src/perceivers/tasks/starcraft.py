"""StarCraft II (paper section B): the entity encoder, and what it can learn from replays alone.

The paper puts the encoder into AlphaStar and plays; games of that agent are not public. Here hidden unit types and both
players' statistics are read from replays: `perceivers train starcraft --out runs/starcraft --set data.folder=REPLAYS`
(three minutes on two cores; expect half of the types right where the most frequent one is right in a fifth).
`starcraft-transformer` puts a Transformer in the encoder's place.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import CrossAttention, Mask
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.initialisers import plain_linear
from perceivers.core.trunk import Process, Resampler
from perceivers.data import StarCraft
from perceivers.data.published.starcraft_replays import PLAYERS, STATISTICS
from perceivers.media.html_report import Report
from perceivers.modalities import Records
from perceivers.modalities.fields import Category, Number
from perceivers.schema import Batch, Record, Schema
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import SHOWN, add_losses, add_scores, predict
from perceivers.training.loop import TrainingConfig
from perceivers.training.metrics import Scores, guess_scores
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.sampler import evaluation_batches

BATCH = 128
"""Records of a batch in evaluation."""

ENTITY_CHANNELS, FEATURE_CHANNELS = 256, 128
"""Widths of an entity as it comes in and goes out, and of its features, with which it is asked for (paper)."""

HIDDEN = 0.15
"""Part of the units whose types are hidden."""

ENCODER = Config(
    latents=LatentsConfig(num_latents=32, channels=512),
    encoder=EncoderConfig(),
    processor=ProcessorConfig(num_heads=8, num_layers=3),
)
"""32 latents, 3 layers, heads as for ImageNet (paper); the latents' width is not stated: 512 is ours."""

TRANSFORMER = ProcessorConfig(num_heads=2, num_layers=3, widening_factor=4)
"""What it replaces: AlphaStar's three layers."""

SMALL = Config(
    latents=LatentsConfig(num_latents=32, channels=64),
    encoder=EncoderConfig(num_heads=4),
    processor=ProcessorConfig(num_heads=4, num_layers=3),
    decoder=DecoderConfig(num_heads=4, query_residual=True),
)
"""What two cores train in minutes."""


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

    def __init__(self, config: ProcessorConfig = TRANSFORMER) -> None:
        super().__init__()
        self.layers = Process(Config(LatentsConfig(channels=ENTITY_CHANNELS), processor=config))
        self.channels = ENTITY_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c"]:
        """A vector for each slot."""
        return self.layers(entities, Mask(keys=mask))


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
        hide={"type": HIDDEN},
        hide_at_eval=True,
    )
    hidden = Records(key="units", fields={"type": Category()}, of="units", hidden_only=True)
    statistics = Records(
        fields={f"{name}_{pid}": Number() for pid in (1, 2) for name in STATISTICS}, query_channels=128
    )
    return Schema(inputs={"units": units}, outputs={"hidden": hidden, "statistics": statistics})


def paper() -> Recipe:
    """The paper's encoder and ImageNet's hyperparameters (its section B names no others), on hidden types: ours."""
    steps = 137_625
    return Recipe(
        data=StarCraft(),
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
    """Three passes over the snapshots; more of them learn the training games' statistics by heart."""
    return Recipe(
        data=StarCraft(),
        schema=schema(),
        config=SMALL,
        training=TrainingConfig(
            num_steps=800,
            batch_size=16,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def transformer() -> Recipe:
    """The same with the Transformer in the encoder's place: its layers, the small model's width."""
    return replace(small(), config=replace(SMALL, processor=TRANSFORMER, trunk="transformer"))


def further_scores(run: Path) -> dict[str, Scores]:
    """What training games tell without looking: the most frequent type, and means of the statistics at each time."""
    recipe, _ = load_run(run)
    return rivals(recipe.schema, recipe.data.training(), recipe.data.held_out())


def rivals(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Their scores on held-out records, as the outputs' own metrics have them; the same types are hidden."""
    counts, means = type_counts(fitted, training), time_means(training)

    def of_all(batch: Batch) -> dict[str, dict[str, Tensor]]:
        types = counts.expand(*batch["inputs"]["units"]["mask"].shape, -1)
        return {"hidden": {"type": types.float()}}

    def of_others(batch: Batch) -> dict[str, dict[str, Tensor]]:
        units = batch["inputs"]["units"]
        shown = F.one_hot(units["type"].clamp(min=0), len(counts)) * (units["type"] >= 0)[..., None]
        owner = F.one_hot(units["owner"].clamp(min=0), max(PLAYERS) + 1) * units["mask"][..., None]
        of_owner = torch.einsum("bmo,bmt->bot", owner.float(), shown.float())
        return {"hidden": {"type": torch.einsum("bmo,bot->bmt", owner.float(), of_owner)}}

    times = (record["time"] for record in held_out)

    def at_time(batch: Batch) -> dict[str, dict[str, Tensor]]:
        own = list(islice(times, len(batch["targets"]["statistics"]["mask"])))
        nearest = [means[min(means, key=lambda time: abs(time - one))] for one in own]
        return {"statistics": {name: torch.tensor([[mean[name]] for mean in nearest]) for name in nearest[0]}}

    guesses = {
        "most frequent type": of_all,
        "most frequent type of the player's others": of_others,
        "means at the same time": at_time,
    }
    batches = evaluation_batches(fitted, held_out, BATCH)
    return {rival: guess_scores(fitted, batches, guess) for rival, guess in guesses.items()}


def type_counts(fitted: Schema, records: Iterable[Record]) -> Int[Tensor, " types"]:
    """How often each type occurs."""
    spec = fitted.outputs["hidden"]
    assert isinstance(spec, Records)
    types = [spec.fields["type"].prepare(record["units"]["type"]) for record in records]
    return torch.from_numpy(np.concatenate(types)).bincount(minlength=spec.fields["type"].num_outputs)


def time_means(records: Iterable[Record]) -> dict[float, dict[str, float]]:
    """Means of the statistics over the snapshots of one time."""
    groups: dict[float, list[Mapping[str, float]]] = defaultdict(list)
    for record in records:
        groups[record["time"]].append(record["statistics"])
    return {
        time: {name: float(np.mean([one[name] for one in group])) for name in group[0]}
        for time, group in groups.items()
    }


def report(run: Path) -> Path:
    """Scores, the rivals', and what is written for the hidden types of some snapshots."""
    recipe, model = load_run(run)
    page = Report(f"StarCraft II: run {run.name}")
    add_scores(page, run)
    held_out = recipe.data.held_out()
    batch, predictions = predict(model.cpu(), recipe.schema, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
    page.heading("Hidden types: true, written")
    spec = recipe.schema.outputs["hidden"]
    assert isinstance(spec, Records)
    kind = spec.fields["type"]
    rows = zip(batch["targets"]["hidden"]["type"], predictions["hidden"]["type"], strict=True)
    for number, (truth, logits) in enumerate(rows, start=1):
        hidden = kind.known(truth)
        both = zip(truth[hidden], logits[: len(truth)][hidden], strict=True)
        told = "; ".join(f"{kind.show(true)}, {kind.show(written)}" for true, written in both)
        page.text(f"Snapshot {number}: {told}")
    add_losses(page, run)
    return page.write(run / "report.html")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "starcraft": small,
    "starcraft-transformer": transformer,
    "starcraft-paper": paper,
}
"""By name on the command line."""
