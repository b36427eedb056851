"""Text to ids and back: UTF-8 bytes, or a file of the tokenizers library."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int

from perceivers.files import MOST_TEXT_BYTES, one_line, regular_file

PAD, BOS, EOS, MASK, CLS, SEP = range(6)
"""Ids of the byte vocabulary that are no bytes (official `bytes_tokenizer`)."""
FIRST_BYTE = 6
"""Id of byte 0."""
MOST_IDS = 10_000_000
"""Ids of a tokenizer file; the largest published ones have a quarter of a million."""


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


class FileTokenizer(Tokenizer):
    """A JSON file of the `tokenizers` library: WordPiece, BPE, Unigram."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer as Loaded

        if not Path(path).exists():
            raise ValueError(f"no tokenizer file {path!r}: give the path of a tokenizer.json, or 'bytes'")
        regular_file(path, MOST_TEXT_BYTES)
        try:
            self.loaded = Loaded.from_file(path)
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"{path!r} is not a file of the tokenizers library: {one_line(error)}") from error
        # A file may ask for both; length and padding are matters of the spec and of the batch.
        self.loaded.no_truncation()
        self.loaded.no_padding()
        self.path = path
        self.vocab_size = max(self.loaded.get_vocab().values(), default=-1) + 1
        if self.vocab_size > MOST_IDS:  # a table of as many rows would be made
            raise ValueError(f"{path!r} has an id of {self.vocab_size - 1:,}, expected less than {MOST_IDS:,}")
        self.pad_id = self._find("[PAD]", "<pad>") or 0

    @property
    def mask_id(self) -> int:
        """Id of [MASK] or <mask>."""
        found = self._find("[MASK]", "<mask>")
        if found is None:
            raise ValueError(f"tokenizer {self.path!r} has neither [MASK] nor <mask>, which masked words need")
        return found

    def tokens(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
        """Ids without special tokens, and their characters."""
        encoded = self.loaded.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text without special tokens."""
        return self.loaded.decode(list(map(index, ids)), skip_special_tokens=True)

    def _find(self, *names: str) -> int | None:
        return next((found for name in names if (found := self.loaded.token_to_id(name)) is not None), None)


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
