"""Every reader, given valid files with a few things changed: read, or refused in one line, within time and memory."""

from pathlib import Path

import pytest

from fuzz import Reader, fuzz, odd_files, readers

READERS = readers()

COUNTS = [-(-300 // len(READERS)), pytest.param(-(-10_000 // len(READERS)), marks=pytest.mark.slow)]
"""Cases of each reader: 300 of all in the normal run, 10,000 in the long one."""


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_changed_files_are_read_or_refused(reader: Reader, count: int, tmp_path: Path) -> None:
    failures = fuzz(reader, range(count), tmp_path)
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_is_no_file_is_refused(reader: Reader, tmp_path: Path) -> None:
    failures = odd_files(reader, tmp_path)
    assert not failures, "\n".join(map(str, failures))
