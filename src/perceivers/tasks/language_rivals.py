"""Guesses of hidden bytes by counting: how often each byte occurs, and 5-grams over what is visible beside its word.

A 5-gram is a byte and the four visible ones that are nearest to its hidden word on one side; it also knows how long
the word is and where in it the byte stands. Counts of longer contexts back off to those of shorter ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from perceivers.modalities.tokenizers import ByteTokenizer, word_numbers

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

Probabilities = Float[np.ndarray, "n v"]


@dataclass(frozen=True)
class HiddenText:
    """A text, and which of its bytes are hidden."""

    text: str
    hidden: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Surroundings:
    """What is visible beside the words of n bytes, each word's own bytes being hidden."""

    ids: Int[np.ndarray, " n"]
    """The bytes themselves."""
    place: Int[np.ndarray, " n"]
    """How far a byte stands from both ends of its word, as one number."""
    left: Int[np.ndarray, "n r"]
    """Visible bytes before the word, nearest first, with the gap behind each, as one number."""
    right: Int[np.ndarray, "n r"]
    """The same behind the word."""

    def contexts(self, side: Int[np.ndarray, "n r"]) -> list[Int[np.ndarray, " n"]]:
        """Growing contexts as whole numbers: the place alone, then with one visible byte more each."""
        keys = [self.place]
        for column in side.T:
            keys.append(keys[-1] * (NOTHING + 1) + column)
        return keys


def rival_guesses(documents: Iterable[str], asked: Sequence[HiddenText], share: float) -> dict[str, Probabilities]:
    """What each rival thinks of the hidden bytes of all texts, in their order, after counting in documents.

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
    """Product of what either side says, over what is known without them."""
    product = (left * right) ** SHARPNESS * alone ** (1 - 2 * SHARPNESS)
    return product / product.sum(axis=1, keepdims=True)


def counted(
    ids: Int[np.ndarray, " k"],
    contexts: Sequence[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " n"]]],
    guess: Probabilities,
) -> Probabilities:
    """A first guess improved by the counts of longer and longer contexts, each given as (known, asked for).

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
    """Every byte of every word of the documents, this share of the other words being hidden."""
    rng = np.random.default_rng(0)
    found = []
    for text in documents:
        ids, words = bytes_and_words(text)
        if (words >= 0).any():
            hidden = np.append(rng.random(words.max() + 1) < share, False)[words]
            found.append(surroundings(ids, words, hidden))
    return joined(found)


def hidden_surroundings(asked: HiddenText) -> Surroundings:
    """Of the hidden bytes alone."""
    ids, words = bytes_and_words(asked.text)
    return taken(surroundings(ids, words, asked.hidden), asked.hidden[words >= 0])


def bytes_and_words(text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Ids of a text's bytes, and the word each belongs to, -1 for white space."""
    ids, characters = ByteTokenizer().tokens(text)
    return ids, word_numbers(text, characters)


def surroundings(
    ids: Int[np.ndarray, " n"], words: Int[np.ndarray, " n"], hidden: Bool[np.ndarray, " n"]
) -> Surroundings:
    """Of each byte of a word, as if that word were hidden beside those that are."""
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
    """One after another."""
    return Surroundings(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "place", "left", "right"))
    )


def taken(whole: Surroundings, chosen: Bool[np.ndarray, " n"]) -> Surroundings:
    """Some of them."""
    return Surroundings(*(getattr(whole, name)[chosen] for name in ("ids", "place", "left", "right")))
