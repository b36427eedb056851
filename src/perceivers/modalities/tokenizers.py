"""Tokenizers, from text to ids and back: UTF-8 bytes, or a file of the tokenizers library."""

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
"""Special ids of the byte vocabulary (official `bytes_tokenizer`)."""
FIRST_BYTE = 6
"""Id of byte 0."""
MOST_IDS = 10_000_000
"""Most ids of a tokenizer file; the largest published ones have a quarter of a million."""

MOST_VALUES = 10**7
"""Most pieces, merges and settings of a tokenizer file; the largest published ones have a million."""
LONGEST_PIECE = 10_000
"""Most characters of a piece of text with an id."""
MOST_STEPS, MOST_GROWTH = 100, 256
"""Most steps before or after the model of a tokenizer file, and the largest factor by which they lengthen a text."""
LONGEST_ADDED = 100
"""Most characters that a step may prepend to a text."""
LONGEST_PATTERN, MOST_REPEATS = 2000, 3
"""Most characters of a regular expression, and most unbounded repeats in each of its alternatives."""
TRIAL = "Some words, 0123 \u00e9\u00c4 \u4e2d\u6587 \ufdfa\u2026 aaaa\n\t\U0001f600"
"""A text that is encoded on trial when a file is loaded."""


class Tokenizer(ABC):
    """The interface of a tokenizer, from text to ids and back."""

    vocab_size: int
    """Number of ids."""
    pad_id: int
    """Id of padding; the mask is False there."""

    @property
    @abstractmethod
    def mask_id(self) -> int:
        """Id that replaces a masked token; ValueError if the tokenizer has none."""

    @abstractmethod
    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Return the ids, and the range of characters of each id: the first, and the one after the last."""

    @abstractmethod
    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text; special ids are left out."""

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids, without special tokens before or after the text."""
        return self.tokens(text)[0]


class ByteTokenizer(Tokenizer):
    """Tokenizer with an id for each byte of UTF-8 (official `BytesTokenizer`)."""

    vocab_size = FIRST_BYTE + 256
    pad_id = PAD

    @property
    def mask_id(self) -> int:
        """The id MASK."""
        return MASK

    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Return the ids of the bytes, and the character that each byte belongs to."""
        data = np.frombuffer(text.encode(), np.uint8)
        begins = data & 0b11000000 != 0b10000000  # bytes 10xxxxxx continue a character
        character = np.cumsum(begins) - 1
        return data.astype(np.int64) + FIRST_BYTE, np.stack([character, character + 1], axis=-1)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text; broken UTF-8, and ids beyond the bytes, become replacement characters."""
        codes = [index(number) - FIRST_BYTE for number in ids]
        return bytes(min(code, 0xFF) for code in codes if code >= 0).decode(errors="replace")  # UTF-8 has no byte 0xFF


class UnknownTextError(ValueError):
    """Error for a text that a tokenizer has no ids for."""


class FileTokenizer(Tokenizer):
    """Tokenizer of a JSON file of the `tokenizers` library: WordPiece, BPE or Unigram."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer as Loaded

        # Load the file; refuse a file that could take very long to use.
        if not os.path.exists(path):  # False, too, for a name that is invalid on this system
            raise ValueError(f"no tokenizer file {path!r:.99}: give the path of a tokenizer.json, or 'bytes'")
        text = read_text(path, MOST_TEXT_BYTES)
        self.path = path
        with _quiet(), self._errors("is not a file of the tokenizers library"):
            described = from_json(text, MOST_VALUES)
            self.loaded = Loaded.from_str(text)
        with self._errors("is refused"):
            _check_steps(described)
        # Turn off truncation and padding: the spec sets the length, the batch the padding.
        self.loaded.no_truncation()
        self.loaded.no_padding()
        # Check the vocabulary: an embedding has `vocab_size` vectors.
        vocabulary = self.loaded.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if self.vocab_size > MOST_IDS:
            raise ValueError(f"{path!r} has an id of {self.vocab_size - 1:,}, expected less than {MOST_IDS:,}")
        if max(map(len, vocabulary), default=0) > LONGEST_PIECE:
            raise ValueError(f"{path!r} has a piece of more than {LONGEST_PIECE:,} characters")
        self.pad_id = self._find("[PAD]", "<pad>") or 0
        # Encode the trial text: a damaged file fails here. A vocabulary need not cover all texts.
        with _quiet(), suppress(UnknownTextError):
            self.decode(self.encode(TRIAL))

    @property
    def mask_id(self) -> int:
        """Id of [MASK] or <mask>."""
        number = self._find("[MASK]", "<mask>")
        if number is None:
            raise ValueError(f"tokenizer {self.path!r} has neither [MASK] nor <mask>, which masked words need")
        return number

    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Return the ids, without special tokens, and the range of characters of each."""
        with self._errors("cannot encode a text", UnknownTextError):
            encoded = self.loaded.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text, without special tokens."""
        with self._errors("cannot decode ids", UnknownTextError):
            return self.loaded.decode(list(map(index, ids)), skip_special_tokens=True)

    @contextmanager
    def _errors(self, what: str, error_type: type[ValueError] = ValueError) -> Iterator[None]:
        """Open a context in which errors of the tokenizers library become a ValueError of one line."""
        try:
            yield
        except Exception as error:  # the library raises nothing more specific
            raise error_type(f"{self.path!r} {what}: {one_line(error)}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust code of the library panics at some damaged files
                raise
            raise ValueError(f"{self.path!r} is damaged: {one_line(error)}") from None

    def _find(self, *names: str) -> int | None:
        return next((number for name in names if (number := self.loaded.token_to_id(name)) is not None), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Open a context in which nothing is written to the process's error stream, where Rust reports its panics."""
    try:
        stream = os.dup(2)
    except OSError:  # the error stream is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        os.close(nowhere)


def _check_steps(described: Any) -> None:
    """Raise a ValueError for steps of a tokenizer file that make a short text very long, or may not end."""
    before = [step for name in ("normalizer", "pre_tokenizer") for step in _steps(described.get(name))]
    for steps in (before, list(_steps(described.get("decoder")))):
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{len(steps):,} steps, expected at most {MOST_STEPS}")
        if (growth := math.prod(map(_growth, steps))) > MOST_GROWTH:
            raise ValueError(f"its steps make a text {growth:.3g} times as long, expected at most {MOST_GROWTH}")


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a step, or the steps of a nested sequence."""
    if isinstance(step, Mapping):
        sequences = [step[name] for name in ("normalizers", "pretokenizers", "decoders") if name in step]
        if not sequences:
            yield step
        for sequence in sequences:
            for inner in sequence:
                yield from _steps(inner)


def _growth(step: Mapping[str, Any]) -> float:
    """Return the largest factor by which a step lengthens a text; ValueError for a step that may not end."""
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
    """Raise a ValueError for a regular expression whose time may exceed a small power of the text's length."""
    # Replace escapes and classes of characters by a letter; references to groups stay.
    plain, before = re.sub(r"\\([pPx]\{[^{}]*\}|[^1-9kg])", "x", pattern, flags=re.DOTALL), ""
    while plain != before:
        plain, before = re.sub(r"\[[^\[\]]*\]", "x", plain), plain
    # Refuse many repeats in a row, repeated groups, references to groups, large counts and unknown kinds of groups.
    repeats = (len(re.findall(r"[*+][+?]?|\{\d*,\}", part)) for part in plain.split("|"))
    if (
        len(pattern) > LONGEST_PATTERN
        or max(repeats) > MOST_REPEATS
        or re.search(r"\)[*+{]|\\|\{\d*,?\d{4}|\(\*|\(\?(?![a-z-]*[:)]|[=!>]|<[=!])", plain)
    ):
        raise ValueError(f"the regular expression {pattern:.60} may take very long: repeat no groups, name none again")


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """Train at most `vocab_size` unigram pieces (as SentencePiece); return JSON for the tokenizers library."""
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
    """Return the tokenizer "bytes", or the one of a file."""
    return ByteTokenizer() if name == "bytes" else FileTokenizer(name)


def word_numbers(text: str, characters: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Return the number of the word of each token, words being split at white space.

    Tokens of white space, and tokens without characters, have -1.
    """
    word_of = np.full(len(text) + 1, -1)  # one more: a token without characters may be at the end
    for number, match in enumerate(re.finditer(r"\S+", text)):
        word_of[match.start() : match.end()] = number
    first, stop = characters.T
    # Some tokenizers put the space before a word into its first token: take the end that lies in a word.
    return np.where(stop > first, np.maximum(word_of[first], word_of[stop - 1]), -1)
