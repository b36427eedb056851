"""Every reader, given valid files with a few changes: read, or refused in one line, within time and memory."""

from pathlib import Path

import pytest

from fuzz import Reader, fuzz, odd_files, readers
from tiers import few

READERS = readers()

FAST = [reader for reader in READERS if reader.name in ("png", "wav-float", "safetensors", "npz", "haiku")]
"""Readers that `make test` also tests, with a few changed files."""

COUNT = -(-10_000 // len(READERS))
"""Cases of each reader in `make proof`: 10,000 in all."""


@pytest.mark.parametrize("reader", FAST, ids=lambda reader: reader.name)
def test_a_few_changed_files_are_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    failures = fuzz(reader, range(7), tmp_path)
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_changed_files_are_read_or_refused(reader: Reader, tmp_path: Path) -> None:
    failures = fuzz(reader, range(COUNT), tmp_path)
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("reader", few(READERS, FAST), ids=lambda reader: reader.name)
def test_what_is_no_file_is_refused(reader: Reader, tmp_path: Path) -> None:
    failures = odd_files(reader, tmp_path)
    assert not failures, "\n".join(map(str, failures))
