"""Baselines of masked language modelling: byte frequencies, and 5-grams on one or both sides of a masked word.

A 5-gram predicts a masked byte from the four unmasked bytes that are nearest to the masked word on one side, from the
length of the word, and from the position of the byte in the word. Counts of longer contexts back off to counts of
shorter ones:

    P(byte | context) = (count(context, byte) + TRUST k P(byte | shorter context)) / (count(context) + TRUST k)

k is the number of distinct bytes that occur in the context. Letters: n bytes, v byte values, r bytes of a context.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Text
from perceivers.modalities.tokenizers import ByteTokenizer, Tokenizer, tokenizer_of, word_numbers
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.systems.language.recipes import INPUT, OUTPUT, some_documents, text_of
from perceivers.training.devices import device_of, on_device
from perceivers.training.metrics import Scores, inference, masking_of
from perceivers.training.sampler import evaluation_batches

REACH = 4
"""Number of unmasked bytes in the longest context."""

NUM_IDS = ByteTokenizer.vocab_size

LONGEST, GAP = 15, 3
"""Limits that distances are clipped to: of a byte from the ends of its word, and between two unmasked bytes."""

NOTHING = GAP * NUM_IDS
"""Code of a context byte that lies beyond the end of the text."""

TRUST = 6.0
"""Weight of the shorter context (1: Witten-Bell smoothing), tuned on validation data."""

SHARPNESS = 0.75
"""Exponent of the probabilities of each side in the product of both, tuned on validation data."""

BATCH = 32
"""Number of records in an evaluation batch."""

Probabilities = Float[np.ndarray, "n v"]

Case = tuple[str, Bool[np.ndarray, " m"], Float[np.ndarray, "n v"]]
"""A text, a mask that is True for its masked tokens, and the log-probabilities of each masked token."""


@dataclass(frozen=True)
class MaskedText:
    """A text, and a mask that is True for its masked bytes."""

    text: str
    masked: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Surroundings:
    """The contexts of n bytes: for each, the unmasked bytes around its word, as if the whole word were masked."""

    ids: Int[np.ndarray, " n"]
    """The n bytes."""
    word_position: Int[np.ndarray, " n"]
    """Distances of each byte from both ends of its word, coded as one number."""
    left: Int[np.ndarray, "n r"]
    """Unmasked bytes before the word, nearest first; each is coded as one number, with its gap to the previous one."""
    right: Int[np.ndarray, "n r"]
    """Unmasked bytes after the word, coded likewise."""

    def contexts(self, side: Int[np.ndarray, "n r"]) -> list[Int[np.ndarray, " n"]]:
        """Return contexts of growing length, each coded as an integer: the position in the word, then 1 to r bytes."""
        keys = [self.word_position]
        for column in side.T:
            keys.append(keys[-1] * (NOTHING + 1) + column)
        return keys


def baseline_guesses(documents: Iterable[str], texts: Sequence[MaskedText], share: float) -> dict[str, Probabilities]:
    """Return each baseline's probabilities [n, v] of the n masked bytes of all texts, counted in documents.

    `share` of the documents' words is masked while counting, as in the texts.
    """
    training = learned(documents, share)
    queries = joined([masked_surroundings(text) for text in texts])
    # Predict without context: from byte frequencies, then from the position in the word alone.
    total = np.bincount(training.ids, minlength=NUM_IDS) + 1.0
    unigram = np.broadcast_to(total / total.sum(), (len(queries.ids), NUM_IDS))
    alone = counted(training.ids, [(training.word_position, queries.word_position)], unigram)
    # Predict from each side, with longer and longer contexts.
    left, right = (
        counted(training.ids, list(zip(training.contexts(known), queries.contexts(query), strict=True)), unigram)
        for known, query in ((training.left, queries.left), (training.right, queries.right))
    )
    return {"unigram": unigram, "5-gram, left": left, "5-grams, both sides": both_sides(left, right, alone)}


def both_sides(left: Probabilities, right: Probabilities, alone: Probabilities) -> Probabilities:
    """Combine both sides into normalised left^s right^s alone^(1 - 2s), with s = SHARPNESS."""
    product = (left * right) ** SHARPNESS * alone ** (1 - 2 * SHARPNESS)
    return product / product.sum(axis=1, keepdims=True)


def counted(
    ids: Int[np.ndarray, " k"],
    contexts: Sequence[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " n"]]],
    guess: Probabilities,
) -> Probabilities:
    """Refine probabilities with the counts of longer and longer contexts, each given as (training, query) codes.

    `ids` are the training bytes, `guess` the probabilities without context; the module docstring has the formula.
    """
    for known, query in contexts:
        # Count the training bytes that occur in each distinct query context.
        distinct, number = np.unique(query, return_inverse=True)
        match = np.searchsorted(distinct, known).clip(max=len(distinct) - 1)
        matches = distinct[match] == known
        counts = np.bincount(match[matches] * NUM_IDS + ids[matches], minlength=len(distinct) * NUM_IDS)
        counts = counts.reshape(-1, NUM_IDS)
        # Mix them with the probabilities from the shorter context; unseen contexts keep those.
        prior = TRUST * (counts > 0).sum(axis=1, keepdims=True)
        total = counts.sum(axis=1, keepdims=True) + prior
        mixed = (counts[number] + prior[number] * guess) / np.maximum(total[number], 1)
        guess = np.where(total[number] > 0, mixed, guess)
    return guess


def learned(documents: Iterable[str], share: float) -> Surroundings:
    """Return the contexts of every byte in the documents' words, with `share` of the other words masked."""
    rng = np.random.default_rng(0)
    parts = []
    for text in documents:
        ids, words = bytes_and_words(text)
        if (words >= 0).any():
            # The appended False is for white space, whose word number is -1.
            masked = np.append(rng.random(words.max() + 1) < share, False)[words]
            parts.append(surroundings(ids, words, masked))
    return joined(parts)


def masked_surroundings(text: MaskedText) -> Surroundings:
    """Return the contexts of the masked bytes alone."""
    ids, words = bytes_and_words(text.text)
    return taken(surroundings(ids, words, text.masked), text.masked[words >= 0])


def bytes_and_words(text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the bytes of a text as ids, and the number of the word each belongs to; -1 for white space."""
    ids, characters = ByteTokenizer().tokens(text)
    return ids, word_numbers(text, characters)


def surroundings(
    ids: Int[np.ndarray, " n"], words: Int[np.ndarray, " n"], masked: Bool[np.ndarray, " n"]
) -> Surroundings:
    """Return the context of each byte that belongs to a word, as if that word were masked too."""
    # For each byte in a word: its position, and start and stop of the word.
    at = np.flatnonzero(words >= 0)
    starts = np.flatnonzero(np.diff(words, prepend=-2))
    run = np.searchsorted(starts, at, side="right") - 1
    start, stop = starts[run], np.append(starts[1:], len(words))[run]
    # Positions of unmasked bytes; -1 where a context reaches beyond the text.
    visible = np.flatnonzero(~masked)
    before = np.concatenate([np.full(REACH, -1), visible])
    after = np.concatenate([visible, np.full(REACH, -1)])
    steps = np.arange(REACH)
    return Surroundings(
        ids=ids[at],
        word_position=np.minimum(at - start, LONGEST) * (LONGEST + 1) + np.minimum(stop - 1 - at, LONGEST),
        left=_coded(ids, start, before[np.searchsorted(visible, start)[:, None] + REACH - 1 - steps]),
        right=_coded(ids, stop - 1, after[np.searchsorted(visible, stop)[:, None] + steps]),
    )


def _coded(
    ids: Int[np.ndarray, " n"], word: Int[np.ndarray, " m"], neighbours: Int[np.ndarray, "m r"]
) -> Int[np.ndarray, "m r"]:
    """Code each neighbour, a byte and its gap to the previous one (at first to the end of the word), as one number."""
    gaps = np.abs(np.diff(np.concatenate([word[:, None], neighbours], axis=1))).clip(1, GAP) - 1
    return np.where(neighbours < 0, NOTHING, gaps * NUM_IDS + ids[neighbours])


def joined(parts: Sequence[Surroundings]) -> Surroundings:
    """Concatenate the contexts of several texts."""
    return Surroundings(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "word_position", "left", "right"))
    )


def taken(whole: Surroundings, chosen: Bool[np.ndarray, " n"]) -> Surroundings:
    """Select the contexts of some bytes."""
    return Surroundings(*(getattr(whole, name)[chosen] for name in ("ids", "word_position", "left", "right")))


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return bits per byte and accuracy on the masked words, of the model and of the baselines."""
    recipe, model = run.recipe, run.model
    text, records = text_of(recipe.schema), run.held_out
    scores = {"masked words": masked_scores(tokenizer_of(text.tokenizer), model_cases(model, recipe.schema, records))}
    # The baselines predict bytes, whatever tokens the model has.
    texts = list(masked_texts(text, records))
    guesses = baseline_guesses(some_documents(recipe.data), texts, text.mask_words)
    offsets = np.cumsum([one.masked.sum() for one in texts])[:-1]
    for name, guess in guesses.items():
        parts = np.split(np.log(guess), offsets)
        cases = ((one.text, one.masked, part) for one, part in zip(texts, parts, strict=True))
        scores[name] = masked_scores(tokenizer_of("bytes"), cases)
    return {name: {OUTPUT: metrics} for name, metrics in scores.items()}


def masked_scores(tokenizer: Tokenizer, cases: Iterable[Case]) -> dict[str, float]:
    """Return bits per byte of the masked words, and the fractions of tokens and of whole words predicted correctly."""
    bits, num_bytes, right, words_right = 0.0, 0, [], []
    for text, masked, logs in cases:
        ids, characters = (array[: len(masked)][masked] for array in tokenizer.tokens(text))
        words = word_numbers(text, characters)
        bits -= float(np.take_along_axis(logs, ids[:, None], axis=1).sum()) / math.log(2)
        num_bytes += size_of(text, characters)
        correct = logs.argmax(axis=1) == ids
        right += correct.tolist()
        words_right += [correct[words == word].all() for word in np.unique(words)]
    return {
        "bits_per_byte": bits / max(num_bytes, 1),
        "tokens_right": float(np.mean(right)),
        "words_right": float(np.mean(words_right)),
    }


def size_of(text: str, characters: Int[np.ndarray, "n 2"]) -> int:
    """Return the number of bytes of tokens that cover these ranges of characters, not counting white space."""
    covered = {index for start, stop in characters.tolist() for index in range(start, stop)}
    return sum(len(text[index].encode()) for index in covered if not text[index].isspace())


def model_cases(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> Iterator[Case]:
    """Yield the model's log-probabilities of the masked tokens of each record."""
    masking = masking_of(model, schema)
    for number, (inputs, texts) in enumerate(masked_batches(schema, records)):
        with inference(model):
            raw = on_device(inputs, device_of(model))
            logits = model(raw, masking=masking._replace(first=number * BATCH))[OUTPUT].cpu()
        for logit, (text, masked) in zip(logits, texts, strict=True):
            yield text, masked, logit[: len(masked)][torch.from_numpy(masked)].double().log_softmax(dim=-1).numpy()


def masked_texts(text: Text, records: Sequence[Record]) -> Iterator[MaskedText]:
    """Yield each record's text, with a mask of the bytes of the words that are masked for the model.

    Random numbers are drawn per word, so tokens and bytes get the same masked words.
    """
    longest = max(len(record["text"].encode()) for record in records)
    as_bytes = Text(length=longest, mask_words=text.mask_words, mask_at_eval=True)
    restored = Text(key=INPUT, of=INPUT, length=longest)
    for _, texts in masked_batches(Schema(inputs={INPUT: as_bytes}, outputs={OUTPUT: restored}), records):
        yield from (MaskedText(*text) for text in texts)


def masked_batches(
    schema: Schema, records: Sequence[Record]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, Bool[np.ndarray, " m"]]]]]:
    """Yield the inputs of each batch, and for each record in it the text and the mask of its masked tokens."""
    for number, batch in enumerate(evaluation_batches(schema, records, BATCH)):
        target = batch["targets"][OUTPUT]
        masked = [masked[valid].numpy() for masked, valid in zip(target["masked"], target["mask"], strict=True)]
        texts = [record["text"] for record in records[number * BATCH : (number + 1) * BATCH]]
        yield batch["inputs"], list(zip(texts, masked, strict=True))
