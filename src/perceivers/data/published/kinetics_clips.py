"""Kinetics-700 as published: lists of clips of YouTube films, and the clips on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perceivers.data.published.clip_lists import list_rows, whole_number
from perceivers.data.published.clip_windows import Clips
from perceivers.files.messages import one_line
from perceivers.schema import Record

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Kinetics(Clips):
    """Records with a "label": its number among the sorted names of the training list.

    Clips are LABEL/ID_000003_000013.mp4: label, YouTube id, start and end in seconds. Listed clips without a file are
    skipped.
    """

    folder: str = "kinetics700_2020"
    """Folder of the lists, and of a folder of clips for each label."""
    windows: int = 15
    """Number of windows of a clip, evenly spaced from its beginning to its end; each is a record."""
    frames: int = 16
    """T, the number of frames of a window, at 25 per second."""
    samples: int = 30720
    """n, the number of samples of the window's sound."""
    training_list: str = "train.csv"
    """List of the training clips."""
    held_out_list: str = "validate.csv"
    """List of the held-out clips."""
    kind: Literal["kinetics"] = "kinetics"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Return the windows of the clips in the training list."""
        return self._records(self.training_list)

    def held_out(self) -> Sequence[Record]:
        """Return the windows of the clips in the held-out list."""
        return self._records(self.held_out_list)

    def names(self) -> list[str]:
        """Return the names of the labels, by number."""
        return sorted({label for label, _ in listed(Path(self.folder) / self.training_list)})

    def _records(self, name: str) -> Sequence[Record]:
        numbers = {label: number for number, label in enumerate(self.names())}
        files = {path.name: path for path in Path(self.folder).glob("*/*.mp4")}
        rows = list(listed(Path(self.folder) / name))
        new = {label for label, _ in rows} - set(numbers)
        if new:
            raise ValueError(f"{name}: label {one_line(repr(min(new)))} is not in {self.training_list}")
        clips = [(files[file], {"label": numbers[label]}) for label, file in rows if file in files]
        if not clips:
            raise ValueError(f"{self.folder}: holds none of the {len(rows)} clips of {name} as LABEL/ID_START_END.mp4")
        return self.cut(clips)


def listed(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the label and the file name of each clip of a list; ValueError for other files."""
    rows = list_rows(path)
    _, names = next(rows, ("", []))
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}; a list has {', '.join(COLUMNS)}")
    for place, cells in rows:
        if len(cells) < len(names):
            raise ValueError(f"{place}: {len(cells)} cells, expected the {len(names)} of line 1")
        row = dict(zip(names, cells, strict=False))
        start, end = (whole_number(place, row[name]) for name in ("time_start", "time_end"))
        yield row["label"], f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
