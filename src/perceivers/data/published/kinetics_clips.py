"""Kinetics-700 as it is published: lists of clips of YouTube films, and the clips that one has of them."""

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
    """Records with a "label", its number among the sorted names of the training list.

    Clips are LABEL/ID_000003_000013.mp4, by name, film and seconds; what a list names and the folder lacks is left out.
    """

    folder: str = "kinetics700_2020"
    """Holds the lists, and a folder of clips for each label."""
    windows: int = 15
    """Windows of a clip, at equal distances from its beginning to its end; each is a record."""
    frames: int = 16
    """T, at 25 a second."""
    samples: int = 30720
    """Samples of the sound of that time."""
    training_list: str = "train.csv"
    """Clips to learn from."""
    held_out_list: str = "validate.csv"
    """Clips that training never sees."""
    kind: Literal["kinetics"] = "kinetics"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Windows of the training list's clips."""
        return self._records(self.training_list)

    def held_out(self) -> Sequence[Record]:
        """Windows of the other list's."""
        return self._records(self.held_out_list)

    def names(self) -> list[str]:
        """Names of the labels, by number."""
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
    """Label and file name of each clip of a list; ValueError if it is none."""
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
