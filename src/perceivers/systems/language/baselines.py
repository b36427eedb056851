"""Baselines of masked language modelling: bytes guessed by how often each occurs, and by 5-grams beside its word.

A 5-gram is a byte and the four visible ones that are nearest to its hidden word on one side; it also knows how long
the word is and where in it the byte stands. Counts of longer contexts back off to those of shorter ones.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Text
from perceivers.modalities.tokenizers import ByteTokenizer, Tokenizer, tokenizer_of, word_numbers
from perceivers.runs.recipe import load_run
from perceivers.schema import Record, Schema
from perceivers.systems.language.recipes import INPUT, OUTPUT, some_documents, text_of
from perceivers.training.devices import device_of, on_device
from perceivers.training.metrics import Scores, inference, masking_of
from perceivers.training.sampler import evaluation_batches

REACH = 4
"""Visible bytes of a context."""

NUM_IDS = ByteTokenizer.vocab_size

LONGEST, GAP = 15, 3
"""Larger distances count as this: of a byte from the ends of its word, and between two visible bytes."""

NOTHING = GAP * NUM_IDS
"""Stands for a visible byte beyond the end of the text."""

TRUST = 6.0
"""How much a context's kinds of bytes count against its counts (1: Witten and Bell), from a validation part."""

SHARPNESS = 0.75
"""Power of each side's probabilities where both are multiplied, from a validation part."""

BATCH = 32
"""Records of a batch in evaluation."""

Probabilities = Float[np.ndarray, "n v"]

Case = tuple[str, Bool[np.ndarray, " m"], Float[np.ndarray, "n v"]]
"""A text, which of its tokens are hidden, and the log-probabilities of each hidden one."""


@dataclass(frozen=True)
class HiddenText:
    """A text, and which of its bytes are hidden."""

    text: str
    hidden: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Surroundings:
    """The visible bytes beside the words of n bytes, each word's own bytes being hidden."""

    ids: Int[np.ndarray, " n"]
    """The bytes themselves."""
    place: Int[np.ndarray, " n"]
    """How far a byte stands from both ends of its word, as one number."""
    left: Int[np.ndarray, "n r"]
    """Visible bytes before the word, nearest first, with the gap behind each, as one number."""
    right: Int[np.ndarray, "n r"]
    """The same behind the word."""

    def contexts(self, side: Int[np.ndarray, "n r"]) -> list[Int[np.ndarray, " n"]]:
        """Return growing contexts as whole numbers: the place alone, then with one visible byte more each."""
        keys = [self.place]
        for column in side.T:
            keys.append(keys[-1] * (NOTHING + 1) + column)
        return keys


def baseline_guesses(documents: Iterable[str], asked: Sequence[HiddenText], share: float) -> dict[str, Probabilities]:
    """Return each baseline's probabilities of the hidden bytes of all texts, in their order, counted in documents.

    `share` of the documents' words is hidden from each other word, as in the texts.
    """
    known = learned(documents, share)
    wanted = joined([hidden_surroundings(one) for one in asked])
    total = np.bincount(known.ids, minlength=NUM_IDS) + 1.0
    unigram = np.broadcast_to(total / total.sum(), (len(wanted.ids), NUM_IDS))
    alone = counted(known.ids, [(known.place, wanted.place)], unigram)
    left, right = (
        counted(known.ids, list(zip(known.contexts(there), wanted.contexts(here), strict=True)), unigram)
        for there, here in ((known.left, wanted.left), (known.right, wanted.right))
    )
    return {"unigram": unigram, "5-gram, left": left, "5-grams, both sides": both_sides(left, right, alone)}


def both_sides(left: Probabilities, right: Probabilities, alone: Probabilities) -> Probabilities:
    """Multiply the probabilities of both sides, over those that are known without them."""
    product = (left * right) ** SHARPNESS * alone ** (1 - 2 * SHARPNESS)
    return product / product.sum(axis=1, keepdims=True)


def counted(
    ids: Int[np.ndarray, " k"],
    contexts: Sequence[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " n"]]],
    guess: Probabilities,
) -> Probabilities:
    """Improve a first guess by the counts of longer and longer contexts, each given as (known, asked for).

    A context counts for n / (n + TRUST k), n being how often it occurs and k after how many kinds of bytes.
    """
    for known, asked in contexts:
        distinct, row = np.unique(asked, return_inverse=True)
        place = np.searchsorted(distinct, known).clip(max=len(distinct) - 1)
        there = distinct[place] == known
        counts = np.bincount(place[there] * NUM_IDS + ids[there], minlength=len(distinct) * NUM_IDS)
        counts = counts.reshape(-1, NUM_IDS)
        prior = TRUST * (counts > 0).sum(axis=1, keepdims=True)
        total = counts.sum(axis=1, keepdims=True) + prior
        guess = np.where(total[row] > 0, (counts[row] + prior[row] * guess) / np.maximum(total[row], 1), guess)
    return guess


def learned(documents: Iterable[str], share: float) -> Surroundings:
    """Return the surroundings of every byte of the documents' words, this share of the other words being hidden."""
    rng = np.random.default_rng(0)
    found = []
    for text in documents:
        ids, words = bytes_and_words(text)
        if (words >= 0).any():
            hidden = np.append(rng.random(words.max() + 1) < share, False)[words]
            found.append(surroundings(ids, words, hidden))
    return joined(found)


def hidden_surroundings(asked: HiddenText) -> Surroundings:
    """Return the surroundings of the hidden bytes alone."""
    ids, words = bytes_and_words(asked.text)
    return taken(surroundings(ids, words, asked.hidden), asked.hidden[words >= 0])


def bytes_and_words(text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the ids of a text's bytes, and the word each belongs to, -1 for white space."""
    ids, characters = ByteTokenizer().tokens(text)
    return ids, word_numbers(text, characters)


def surroundings(
    ids: Int[np.ndarray, " n"], words: Int[np.ndarray, " n"], hidden: Bool[np.ndarray, " n"]
) -> Surroundings:
    """Return the surroundings of each byte of a word, as if that word were hidden too."""
    at = np.flatnonzero(words >= 0)
    begins = np.flatnonzero(np.diff(words, prepend=-2))
    run = np.searchsorted(begins, at, side="right") - 1
    first, behind = begins[run], np.append(begins[1:], len(words))[run]
    visible = np.flatnonzero(~hidden)
    before = np.concatenate([np.full(REACH, -1), visible])
    after = np.concatenate([visible, np.full(REACH, -1)])
    steps = np.arange(REACH)
    return Surroundings(
        ids=ids[at],
        place=np.minimum(at - first, LONGEST) * (LONGEST + 1) + np.minimum(behind - 1 - at, LONGEST),
        left=_coded(ids, first, before[np.searchsorted(visible, first)[:, None] + REACH - 1 - steps]),
        right=_coded(ids, behind - 1, after[np.searchsorted(visible, behind)[:, None] + steps]),
    )


def _coded(
    ids: Int[np.ndarray, " n"], word: Int[np.ndarray, " m"], neighbours: Int[np.ndarray, "m r"]
) -> Int[np.ndarray, "m r"]:
    gaps = np.abs(np.diff(np.concatenate([word[:, None], neighbours], axis=1))).clip(1, GAP) - 1
    return np.where(neighbours < 0, NOTHING, gaps * NUM_IDS + ids[neighbours])


def joined(parts: Sequence[Surroundings]) -> Surroundings:
    """Concatenate several surroundings."""
    return Surroundings(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "place", "left", "right"))
    )


def taken(whole: Surroundings, chosen: Bool[np.ndarray, " n"]) -> Surroundings:
    """Select some of the bytes."""
    return Surroundings(*(getattr(whole, name)[chosen] for name in ("ids", "place", "left", "right")))


def baseline_scores(run: Path) -> dict[str, Scores]:
    """Return bits per byte of the hidden words and the part that is right: the model's and the baselines'."""
    recipe, model = load_run(run)
    text, records = text_of(recipe.schema), recipe.data.held_out()
    scores = {"hidden words": hidden_scores(tokenizer_of(text.tokenizer), model_cases(model, recipe.schema, records))}
    asked = list(hidden_texts(text, records))
    guesses = baseline_guesses(some_documents(recipe.data), asked, text.mask_words)
    places = np.cumsum([one.hidden.sum() for one in asked])[:-1]
    for name, guess in guesses.items():
        parts = np.split(np.log(guess), places)
        cases = ((one.text, one.hidden, part) for one, part in zip(asked, parts, strict=True))
        scores[name] = hidden_scores(tokenizer_of("bytes"), cases)
    return {name: {OUTPUT: own} for name, own in scores.items()}


def hidden_scores(tokenizer: Tokenizer, cases: Iterable[Case]) -> dict[str, float]:
    """Return bits per byte of the hidden words, and which part of their tokens and of the whole words is right."""
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
    """Return the number of bytes that tokens of these characters stand for, without white space."""
    covered = {place for first, behind in characters.tolist() for place in range(first, behind)}
    return sum(len(text[place].encode()) for place in covered if not text[place].isspace())


def model_cases(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> Iterator[Case]:
    """Yield the model's log-probabilities of what is hidden."""
    masking = masking_of(model, schema)
    for number, (inputs, asked) in enumerate(asked_batches(schema, records)):
        with inference(model):
            raw = on_device(inputs, device_of(model))
            logits = model(raw, masking=masking._replace(first=number * BATCH))[OUTPUT].cpu()
        for row, (text, hidden) in zip(logits, asked, strict=True):
            yield text, hidden, row[: len(hidden)][torch.from_numpy(hidden)].double().log_softmax(dim=-1).numpy()


def hidden_texts(text: Text, records: Sequence[Record]) -> Iterator[HiddenText]:
    """Yield the records with the words hidden from the model, as bytes: random numbers go to words in turn."""
    longest = max(len(record["text"].encode()) for record in records)
    as_bytes = Text(length=longest, mask_words=text.mask_words, mask_at_eval=True)
    restored = Text(key=INPUT, of=INPUT, length=longest)
    for _, asked in asked_batches(Schema(inputs={INPUT: as_bytes}, outputs={OUTPUT: restored}), records):
        yield from (HiddenText(*one) for one in asked)


def asked_batches(
    schema: Schema, records: Sequence[Record]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, Bool[np.ndarray, " m"]]]]]:
    """Yield the inputs of each batch; of each of its records the text, and which of its tokens are hidden."""
    for number, batch in enumerate(evaluation_batches(schema, records, BATCH)):
        target = batch["targets"][OUTPUT]
        hidden = [row[mask].numpy() for row, mask in zip(target["masked"], target["mask"], strict=True)]
        texts = [record["text"] for record in records[number * BATCH : (number + 1) * BATCH]]
        yield batch["inputs"], list(zip(texts, hidden, strict=True))
