"""Masked language modelling from texts: the paper's recipes (section 4.1, F.3, Table 12), and small ones.

The small ones learn from Python's documentation (Debian's package python3.11-doc, 11 MB, or any folder of texts):

    apt-get download python3.11-doc && dpkg-deb -x python3.11-doc_*.deb docs
    perceivers train language --out runs/language --set data.folder=docs/usr/share/doc/python3.11/html/_sources

It takes about 18 minutes of one core (a step 0.35 seconds), `language-shipped` an hour; rivals count for a minute more.
Expect 22 % of the hidden bytes: twice what their frequencies give, not yet what 5-grams give (docs/results.md).

On SentencePiece tokens instead of bytes, with a vocabulary of the same texts:

    perceivers tokenizer language-tokens --out tokenizer.json --set data.folder=...
    perceivers train language-tokens --out runs/language-tokens --set data.folder=...
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Texts
from perceivers.data.dataset import DataSet
from perceivers.files.durable import write_text
from perceivers.media.html_report import Report
from perceivers.modalities import Text
from perceivers.modalities.kind import sample_of
from perceivers.modalities.tokenizers import Tokenizer, tokenizer_of, trained_tokenizer, word_numbers
from perceivers.schema import Record, Schema
from perceivers.schema.preset import Preset
from perceivers.tasks.language import language
from perceivers.tasks.language_rivals import HiddenText, rival_guesses
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import add_losses, add_scores, predict
from perceivers.training.devices import device_of, on_device
from perceivers.training.metrics import Scores, inference, masking_of
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.sampler import evaluation_batches
from perceivers.training.training_config import TrainingConfig

INPUT, OUTPUT = "text", "restored"
"""What the preset calls them."""

BATCH = 32
"""Records of a batch in evaluation."""

SHOWN = 8
"""Texts in a report."""

COUNTED = 100_000_000
"""Characters that the rivals count in, at most."""

Case = tuple[str, Bool[np.ndarray, " m"], Float[np.ndarray, "n v"]]
"""A text, which of its tokens are hidden, and the logarithms of what is thought of each hidden one."""


def paper() -> Recipe:
    """The byte model, on C4 and Wikipedia in folders of these names (unpack large .json.gz files on the disk)."""
    return paper_recipe(language(), Texts(sources={"c4": 0.7, "wikipedia": 0.3}, length=2048))


def paper_tokens() -> Recipe:
    """512 SentencePiece tokens; records are long enough for them at eight bytes a token (ours)."""
    preset = with_text(language(length=512, vocab_size=32_000), tokenizer="tokenizer.json", overflow="truncate")
    return paper_recipe(preset, Texts(sources={"c4": 0.7, "wikipedia": 0.3}, length=4096))


def paper_recipe(preset: Preset, data: Texts) -> Recipe:
    """Hyperparameters of Table 12; clipping at 10 as in the official optimiser, and what is held out, are ours."""
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
    """A preset with fields of its text changed, input and output alike where they must be."""
    inputs, outputs = preset.schema.inputs, preset.schema.outputs
    both = {name: value for name, value in fields.items() if name != "mask_at_eval"}
    schema = Schema(
        inputs={INPUT: replace(inputs[INPUT], **fields)},  # type: ignore[arg-type]
        outputs={OUTPUT: replace(outputs[OUTPUT], **both)},  # type: ignore[arg-type]
    )
    return replace(preset, schema=schema)


def small() -> Recipe:
    """256 bytes; 0.7 million parameters."""
    return small_recipe(language(length=256, width=128), num_steps=3000)


def small_tokens() -> Recipe:
    """A vocabulary of 2,000 pieces, of the training part (`perceivers tokenizer`)."""
    preset = language(length=128, vocab_size=2000, width=128)
    return small_recipe(with_text(preset, tokenizer="tokenizer.json", overflow="truncate"), num_steps=1000)


def shipped() -> Recipe:
    """256 bytes; 1.6 million parameters."""
    return small_recipe(language(length=256, width=192), num_steps=6500)


def small_recipe(preset: Preset, num_steps: int) -> Recipe:
    """256 bytes of ten documents of one folder, 64 latents, four layers; as wide everywhere as the preset's text.

    Started as in the paper, models of this size still wrote by the frequencies of bytes (5 bits each) after 700 steps.
    Here each latent begins with reading a stretch of the text, each query with asking the latents of its stretch, and
    what is visible counts a little in the loss.
    """
    text = text_of(preset.schema)
    return Recipe(
        data=Texts(length=256, held_out_every=10, num_held_out=2000),
        schema=with_text(preset, mask_at_eval=True, tied=False, sines=True, visible=0.1).schema,
        config=Config(
            latents=LatentsConfig(num_latents=64, channels=text.channels, num_places=text.length),
            encoder=EncoderConfig(num_heads=4, join="pad", alignment=3.0),
            processor=ProcessorConfig(num_heads=4, num_layers=4),
            decoder=DecoderConfig(num_heads=4, join="pad", alignment=3.0),
        ),
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=32,
            shuffle=False,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def further_scores(run: Path) -> dict[str, Scores]:
    """Of hidden words: the model's bits per byte and what it gets right, and the rivals', on the same bytes."""
    recipe, model = load_run(run)
    text, records = text_of(recipe.schema), recipe.data.held_out()
    scores = {"hidden words": hidden_scores(tokenizer_of(text.tokenizer), model_cases(model, recipe.schema, records))}
    asked = list(hidden_texts(text, records))
    guesses = rival_guesses(some_documents(recipe.data), asked, text.mask_words)
    places = np.cumsum([one.hidden.sum() for one in asked])[:-1]
    for name, guess in guesses.items():
        parts = np.split(np.log(guess), places)
        cases = ((one.text, one.hidden, part) for one, part in zip(asked, parts, strict=True))
        scores[name] = hidden_scores(tokenizer_of("bytes"), cases)
    return {name: {OUTPUT: own} for name, own in scores.items()}


def hidden_scores(tokenizer: Tokenizer, cases: Iterable[Case]) -> dict[str, float]:
    """Bits per byte of the hidden words, and which part of their tokens and of the whole words is right."""
    bits, num_bytes, right, words_right = 0.0, 0, [], []
    for text, hidden, logs in cases:
        ids, characters = (array[: len(hidden)][hidden] for array in tokenizer.tokens(text))
        words = word_numbers(text, characters)
        bits -= float(np.take_along_axis(logs, ids[:, None], axis=1).sum()) / math.log(2)
        num_bytes += size_of(text, characters)
        found = logs.argmax(axis=1) == ids
        right += found.tolist()
        words_right += [found[words == word].all() for word in np.unique(words)]
    return {
        "bits_per_byte": bits / max(num_bytes, 1),
        "tokens_right": float(np.mean(right)),
        "words_right": float(np.mean(words_right)),
    }


def size_of(text: str, characters: Int[np.ndarray, "n 2"]) -> int:
    """Bytes that tokens of these characters stand for, without white space."""
    covered = {place for first, behind in characters.tolist() for place in range(first, behind)}
    return sum(len(text[place].encode()) for place in covered if not text[place].isspace())


def model_cases(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> Iterator[Case]:
    """What the model thinks of what is hidden."""
    masking = masking_of(model, schema)
    for number, (inputs, asked) in enumerate(asked_batches(schema, records)):
        with inference(model):
            raw = on_device(inputs, device_of(model))
            logits = model(raw, masking=masking._replace(first=number * BATCH))[OUTPUT].cpu()
        for row, (text, hidden) in zip(logits, asked, strict=True):
            yield text, hidden, row[: len(hidden)][torch.from_numpy(hidden)].double().log_softmax(dim=-1).numpy()


def hidden_texts(text: Text, records: Sequence[Record]) -> Iterator[HiddenText]:
    """The records with the words that are hidden from the model, as bytes: random numbers go to words in turn."""
    longest = max(len(record["text"].encode()) for record in records)
    as_bytes = Text(length=longest, mask_words=text.mask_words, mask_at_eval=True)
    restored = Text(key=INPUT, of=INPUT, length=longest)
    for _, asked in asked_batches(Schema(inputs={INPUT: as_bytes}, outputs={OUTPUT: restored}), records):
        yield from (HiddenText(*one) for one in asked)


def asked_batches(
    schema: Schema, records: Sequence[Record]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, Bool[np.ndarray, " m"]]]]]:
    """Inputs of each batch; of each of its records the text, and which of its tokens are hidden."""
    for number, batch in enumerate(evaluation_batches(schema, records, BATCH)):
        target = batch["targets"][OUTPUT]
        hidden = [row[mask].numpy() for row, mask in zip(target["masked"], target["mask"], strict=True)]
        texts = [record["text"] for record in records[number * BATCH : (number + 1) * BATCH]]
        yield batch["inputs"], list(zip(texts, hidden, strict=True))


def fit_tokenizer(recipe: Recipe, path: Path) -> None:
    """Train the vocabulary of a recipe's text on documents of the training part, and write it into a file."""
    text = text_of(recipe.schema)
    write_text(path, trained_tokenizer(some_documents(recipe.data), text.num_ids))


def some_documents(data: DataSet) -> Iterator[str]:
    """Documents to learn from, up to COUNTED characters; ValueError if the data set has none."""
    if not isinstance(data, Texts):
        raise ValueError(f"{type(data).__name__} has no documents: use data of kind 'texts'")
    counted = 0
    for document in data.documents(held_out=False):
        yield document[: COUNTED - counted]
        counted += len(document)
        if counted >= COUNTED:
            return


def text_of(schema: Schema) -> Text:
    """What a schema says of its text; ValueError if it has none of that name."""
    text = schema.inputs.get(INPUT)
    if not isinstance(text, Text):
        raise ValueError(f"no input {INPUT!r} of kind 'text': a recipe of masked language modelling has one")
    return text


def report(run: Path) -> Path:
    """Scores, the rivals', and some held-out texts as they are, with hidden words, and as they were filled in."""
    recipe, model = load_run(run)
    page = Report(f"Masked language modelling: run {run.name}")
    add_scores(page, run)
    batch, predictions = predict(model.cpu(), recipe.schema, recipe.data.held_out()[:SHOWN])
    page.heading("Held-out texts: true, hidden, written")
    spec = recipe.schema.outputs[OUTPUT]
    assert isinstance(spec, Text)
    for number in range(len(predictions[OUTPUT])):
        shown, target = (
            sample_of(batch[side][name], number) for side, name in (("inputs", INPUT), ("targets", OUTPUT))
        )
        written = torch.where(target["masked"], predictions[OUTPUT][number].argmax(dim=-1), target["ids"])
        samples = {"true": target, "hidden": shown, "written": {**target, "ids": written}}
        page.verbatim("\n\n".join(f"{name}:\n{spec.marked(sample)}" for name, sample in samples.items()))
    add_losses(page, run)
    return page.write(run / "report.html")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "language": small,
    "language-tokens": small_tokens,
    "language-shipped": shipped,
    "language-paper": paper,
    "language-paper-tokens": paper_tokens,
}
"""By name on the command line."""
