"""Text to ids and back: UTF-8 bytes, or a file of the tokenizers library."""

import base64
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from operator import index
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from perceivers.files.budgets import from_json
from perceivers.files.messages import one_line
from perceivers.files.opening import MOST_TEXT_BYTES, read_text

PAD, BOS, EOS, MASK, CLS, SEP = range(6)
"""Ids of the byte vocabulary that are no bytes (official `bytes_tokenizer`)."""
FIRST_BYTE = 6
"""Id of byte 0."""
MOST_IDS = 10_000_000
"""Ids of a tokenizer file; the largest published ones have a quarter of a million."""

MOST_VALUES = 10**7
"""Pieces, merges and settings of a tokenizer file; the largest published ones have a million."""
LONGEST_PIECE = 10_000
"""Characters of a piece of text with an id."""
MOST_STEPS, MOST_GROWTH = 100, 256
"""Steps before and behind the model of a tokenizer file, and how many times as long they may make a text."""
LONGEST_ADDED = 100
"""Characters that a step may put before a text."""
LONGEST_PATTERN, MOST_REPEATS = 2000, 3
"""Characters of a regular expression, and repeats without end in each of its alternatives."""
TRIAL = "Some words, 0123 \u00e9\u00c4 \u4e2d\u6587 \ufdfa\u2026 aaaa\n\t\U0001f600"
"""A text that is encoded when a file is opened."""


class Tokenizer(ABC):
    """Text to ids and back."""

    vocab_size: int
    """How many ids there are."""
    pad_id: int
    """What fills places without a token; no mask lets it be seen."""

    @property
    @abstractmethod
    def mask_id(self) -> int:
        """What stands in the place of a masked token; ValueError if there is no such id."""

    @abstractmethod
    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Ids, and the characters that each stands for: the first, and the one behind the last."""

    @abstractmethod
    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text; ids that stand for no text are left out."""

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Ids; nothing is put before or behind the text."""
        return self.tokens(text)[0]


class ByteTokenizer(Tokenizer):
    """An id for each byte of UTF-8 (official `BytesTokenizer`)."""

    vocab_size = FIRST_BYTE + 256
    pad_id = PAD

    @property
    def mask_id(self) -> int:
        """MASK."""
        return MASK

    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Bytes, and the character that each belongs to."""
        data = np.frombuffer(text.encode(), np.uint8)
        begins = data & 0b11000000 != 0b10000000  # any other byte continues a character
        character = np.cumsum(begins) - 1
        return data.astype(np.int64) + FIRST_BYTE, np.stack([character, character + 1], axis=-1)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text; broken UTF-8 becomes replacement characters."""
        return bytes(number - FIRST_BYTE for number in map(index, ids) if number >= FIRST_BYTE).decode(errors="replace")


class UnknownTextError(ValueError):
    """A text has what a tokenizer has no id for."""


class FileTokenizer(Tokenizer):
    """A JSON file of the `tokenizers` library: WordPiece, BPE, Unigram."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer as Loaded

        if not os.path.exists(path):  # False also for a name that no system has
            raise ValueError(f"no tokenizer file {path!r:.99}: give the path of a tokenizer.json, or 'bytes'")
        text = read_text(path, MOST_TEXT_BYTES)
        self.path = path
        with _quiet(), self._errors("is not a file of the tokenizers library"):
            described = from_json(text, MOST_VALUES)
            self.loaded = Loaded.from_str(text)
        with self._errors("is refused"):
            _check_steps(described)
        # A file may ask for both; length and padding are matters of the spec and of the batch.
        self.loaded.no_truncation()
        self.loaded.no_padding()
        vocabulary = self.loaded.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > MOST_IDS:  # a table of as many rows would be made
            raise ValueError(f"{path!r} has an id of {self.vocab_size - 1:,}, expected less than {MOST_IDS:,}")
        if max(map(len, vocabulary), default=0) > LONGEST_PIECE:
            raise ValueError(f"{path!r} has a piece of more than {LONGEST_PIECE:,} characters")
        self.pad_id = self._find("[PAD]", "<pad>") or 0
        with _quiet(), suppress(UnknownTextError):  # a vocabulary need not know all texts
            self.decode(self.encode(TRIAL))

    @property
    def mask_id(self) -> int:
        """Id of [MASK] or <mask>."""
        found = self._find("[MASK]", "<mask>")
        if found is None:
            raise ValueError(f"tokenizer {self.path!r} has neither [MASK] nor <mask>, which masked words need")
        return found

    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Ids without special tokens, and their characters."""
        with self._errors("cannot encode a text", UnknownTextError):
            encoded = self.loaded.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text without special tokens."""
        with self._errors("cannot decode ids", UnknownTextError):
            return self.loaded.decode(list(map(index, ids)), skip_special_tokens=True)

    @contextmanager
    def _errors(self, what: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library raises nothing more specific
            raise kind(f"{self.path!r} {what}: {one_line(error)}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, at a mistake of the library about a damaged file
                raise
            raise ValueError(f"{self.path!r} is damaged: {one_line(error)}") from None

    def _find(self, *names: str) -> int | None:
        return next((found for name in names if (found := self.loaded.token_to_id(name)) is not None), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing written to the process's error stream within, where Rust reports its panics."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_steps(described: Any) -> None:
    """ValueError for steps of a tokenizer file that make a short text very long, or may not end."""
    before = [step for name in ("normalizer", "pre_tokenizer") for step in _steps(described.get(name))]
    for steps in (before, list(_steps(described.get("decoder")))):
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{len(steps):,} steps, expected at most {MOST_STEPS}")
        if (growth := math.prod(map(_growth, steps))) > MOST_GROWTH:
            raise ValueError(f"its steps make a text {growth:.3g} times as long, expected at most {MOST_GROWTH}")


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a sequence, of sequences of them, or of one."""
    if isinstance(step, Mapping):
        within = [step[name] for name in ("normalizers", "pretokenizers", "decoders") if name in step]
        if not within:
            yield step
        for part in within:
            for inner in part:
                yield from _steps(inner)


def _growth(step: Mapping[str, Any]) -> float:
    """Return how many times as long a step makes a text at most; ValueError for one that may not end."""
    kind, pattern = step.get("type"), step.get("pattern") or {}
    if len(step.get("prepend", "")) > LONGEST_ADDED:
        raise ValueError(f"{kind} adds {len(step['prepend']):,} characters, expected at most {LONGEST_ADDED}")
    if isinstance(pattern, Mapping) and "Regex" in pattern:
        _check_pattern(pattern["Regex"])
    if kind == "Replace":
        return max(len(step["content"]) / max(len(pattern.get("String", "")), 1), 1.0) + ("Regex" in pattern)
    if kind == "Precompiled":
        data = base64.b64decode(step["precompiled_charsmap"] or "")
        texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
        return float(max(1, *map(len, texts)))
    return {"ByteLevel": 2.0, "Metaspace": 2.0, "BertNormalizer": 3.0}.get(str(kind), 1.0)


def _check_pattern(pattern: str) -> None:
    """ValueError for a regular expression that may take more than polynomial time, or a large power of the length."""
    plain, before = re.sub(r"\\([pPx]\{[^{}]*\}|[^1-9kg])", "x", pattern, flags=re.DOTALL), ""
    while plain != before:
        plain, before = re.sub(r"\[[^\[\]]*\]", "x", plain), plain
    repeats = (len(re.findall(r"[*+][+?]?|\{\d*,\}", part)) for part in plain.split("|"))
    if (
        len(pattern) > LONGEST_PATTERN
        or max(repeats) > MOST_REPEATS
        or re.search(r"\)[*+{]|\\|\{\d*,?\d{4}|\(\*|\(\?(?![a-z-]*[:)]|[=!>]|<[=!])", plain)
    ):
        raise ValueError(f"the regular expression {pattern:.60} may take very long: repeat no groups, name none again")


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """A JSON file of the tokenizers library: SentencePiece's unigram pieces, at most so many, of these texts."""
    if not 0 < vocab_size < 2**31:
        raise ValueError(f"vocab_size = {vocab_size} must be a number of pieces, at least 1")
    from tokenizers import Tokenizer as Built
    from tokenizers import decoders, models, pre_tokenizers, trainers

    built = Built(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    special = ["<pad>", "<mask>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special, unk_token=special[-1], show_progress=False
    )
    built.train_from_iterator(texts, trainer)
    return built.to_str()


@lru_cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer called "bytes", or that of a file."""
    return ByteTokenizer() if name == "bytes" else FileTokenizer(name)


def word_numbers(text: str, characters: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """The word, counted between white space, that each token belongs to; -1 for white space and for nothing at all."""
    word_of = np.full(len(text) + 1, -1)  # one more: a token without characters may stand at the end
    for number, match in enumerate(re.finditer(r"\S+", text)):
        word_of[match.start() : match.end()] = number
    first, behind = characters.T
    # Some tokenizers put the space before a word into its first token: the end that lies in a word tells.
    return np.where(behind > first, np.maximum(word_of[first], word_of[behind - 1]), -1)
