"""Recipes of masked language modelling: the paper's (section 4.1, F.3, Table 12), and small ones.

The small recipes learn from Python's documentation (Debian's package python3.11-doc, 11 MB) or any folder of texts:

    apt-get download python3.11-doc && dpkg-deb -x python3.11-doc_*.deb docs
    perceivers train language --out runs/language --set data.folder=docs/usr/share/doc/python3.11/html/_sources

This takes about 18 minutes on one core (0.35 seconds a step), `language-shipped` an hour, and the baselines another
minute. Expect 22 % of the masked bytes right: twice as many as byte frequencies give, fewer than 5-grams give
(docs/results.md).

On SentencePiece tokens instead of bytes, with a vocabulary of the same texts:

    perceivers tokenizer language-tokens --out tokenizer.json --set data.folder=...
    perceivers train language-tokens --out runs/language-tokens --set data.folder=...
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import Texts
from perceivers.data.dataset import DataSet
from perceivers.files.durable import write_text
from perceivers.modalities import Text
from perceivers.modalities.tokenizers import trained_tokenizer
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.systems.language.model import language
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

INPUT, OUTPUT = "text", "restored"
"""Names of input and output in the preset."""

COUNTED = 100_000_000
"""Maximum number of characters that the baselines and the vocabulary are fitted to."""


def paper() -> Recipe:
    """Return the recipe of the byte model on C4 and Wikipedia, in the folders `c4` and `wikipedia`.

    Unpack large .json.gz files first.
    """
    return paper_recipe(language(), Texts(sources={"c4": 0.7, "wikipedia": 0.3}, length=2048))


def paper_tokens() -> Recipe:
    """Return the recipe on 512 SentencePiece tokens; a record has 4,096 bytes, eight for each token (ours)."""
    preset = with_text(language(length=512, vocab_size=32_000), tokenizer="tokenizer.json", overflow="truncate")
    return paper_recipe(preset, Texts(sources={"c4": 0.7, "wikipedia": 0.3}, length=4096))


def paper_recipe(preset: Preset, data: Texts) -> Recipe:
    """Return a recipe with the hyperparameters of Table 12.

    Ours: clipping at 10, as in the official optimiser, and the held-out data.
    """
    steps, batch_size = 500_000, 2048
    return Recipe(
        data=replace(data, num_training=steps * batch_size, held_out_every=1000),
        schema=with_text(preset, mask_at_eval=True).schema,
        config=preset.config,
        training=TrainingConfig(
            num_steps=steps,
            batch_size=batch_size,
            shuffle=False,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=1.25e-3, weight_decay=0.01, max_norm=10.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=1000),
            checkpoint_every=5000,
            num_workers=8,
        ),
    )


def with_text(preset: Preset, **fields: object) -> Preset:
    """Return a preset with fields of its text changed, in the input and, except for `mask_at_eval`, in the output."""
    inputs, outputs = preset.schema.inputs, preset.schema.outputs
    both = {name: value for name, value in fields.items() if name != "mask_at_eval"}
    schema = Schema(
        inputs={INPUT: replace(inputs[INPUT], **fields)},  # type: ignore[arg-type]
        outputs={OUTPUT: replace(outputs[OUTPUT], **both)},  # type: ignore[arg-type]
    )
    return replace(preset, schema=schema)


def small() -> Recipe:
    """Return a recipe on 256 bytes, with 0.7 million parameters."""
    return small_recipe(language(length=256, width=128), num_steps=3000)


def small_tokens() -> Recipe:
    """Return a recipe on 128 tokens of a vocabulary of 2,000, trained on its texts with `perceivers tokenizer`."""
    preset = language(length=128, vocab_size=2000, width=128)
    return small_recipe(with_text(preset, tokenizer="tokenizer.json", overflow="truncate"), num_steps=1000)


def shipped() -> Recipe:
    """Return a recipe on 256 bytes, with 1.6 million parameters."""
    return small_recipe(language(length=256, width=192), num_steps=6500)


def small_recipe(preset: Preset, num_steps: int) -> Recipe:
    """Return a recipe with 64 latents and four layers, as wide as the preset's text, on records of 256 bytes.

    With the paper's initialisation, models of this size predicted byte frequencies (5 bits a byte) even after 700
    steps. Here each latent first attends to one stretch of the text, each query to the latents of its stretch, and
    unmasked bytes have a small weight in the loss.
    """
    # `sines`, `sinusoidal_length` and `qk_init_gain` give each latent and each query its stretch at the start.
    text = text_of(preset.schema)
    return Recipe(
        data=Texts(length=256, held_out_every=10, num_held_out=2000),
        schema=with_text(preset, mask_at_eval=True, tied=False, sines=True, unmasked_loss_weight=0.1).schema,
        config=Config(
            latents=LatentsConfig(num_latents=64, channels=text.channels, sinusoidal_length=text.length),
            encoder=EncoderConfig(num_heads=4, channel_alignment="pad", qk_init_gain=3.0),
            processor=ProcessorConfig(num_heads=4, num_layers=4),
            decoder=DecoderConfig(num_heads=4, channel_alignment="pad", qk_init_gain=3.0),
        ),
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=32,
            shuffle=False,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def fit_tokenizer(recipe: Recipe, path: Path) -> None:
    """Train a vocabulary on the training documents of a recipe, and write it to a file."""
    text = text_of(recipe.schema)
    write_text(path, trained_tokenizer(some_documents(recipe.data), text.num_ids))


def some_documents(data: DataSet) -> Iterator[str]:
    """Yield training documents, up to COUNTED characters in all; ValueError if the data set has none."""
    counted = 0
    for document in data.documents(held_out=False):
        yield document[: COUNTED - counted]
        counted += len(document)
        if counted >= COUNTED:
            return


def text_of(schema: Schema) -> Text:
    """Return the text input of a schema; ValueError if there is none called `text`."""
    text = schema.inputs.get(INPUT)
    if not isinstance(text, Text):
        raise ValueError(f"no input {INPUT!r} of kind 'text': masked language modelling needs one")
    return text


RECIPES: dict[str, Callable[[], Recipe]] = {
    "language": small,
    "language-tokens": small_tokens,
    "language-shipped": shipped,
    "language-paper": paper,
    "language-paper-tokens": paper_tokens,
}
"""Recipes by name on the command line."""
