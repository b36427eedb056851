"""AudioSet as published: lists of segments of YouTube films with their labels, and the clips on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perceivers.data.published.clip_lists import list_rows, whole_number
from perceivers.data.published.clip_windows import Clips
from perceivers.files.messages import one_line
from perceivers.schema import Record

ID_LENGTH = 11
"""Number of characters of a YouTube id."""

CLASSES = "class_labels_indices.csv"
"""List of all labels: index, id ("mid") and display name."""


@dataclass(frozen=True)
class AudioSet(Clips):
    """Records with "labels", by their numbers in class_labels_indices.csv.

    A clip is a file in a sub-folder whose name begins with the YouTube id; listed clips without a file are skipped.
    """

    folder: str = "audioset"
    """Folder of the lists and of folders of clips."""
    training_lists: tuple[str, ...] = ("balanced_train_segments.csv", "unbalanced_train_segments.csv")
    """Lists of the training segments."""
    held_out_list: str = "eval_segments.csv"
    """List of the held-out segments."""
    kind: Literal["audioset"] = "audioset"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Return the windows of the clips in the training lists."""
        return self._records(self.training_lists)

    def held_out(self) -> Sequence[Record]:
        """Return the windows of the clips in the held-out list."""
        return self._records((self.held_out_list,))

    def names(self) -> list[str]:
        """Return the display names of the labels, by number."""
        return [name for _, name in label_names(Path(self.folder) / CLASSES)]

    def _records(self, lists: Sequence[str]) -> Sequence[Record]:
        folder = Path(self.folder)
        numbers = {mid: number for number, (mid, _) in enumerate(label_names(folder / CLASSES))}
        files = {path.name[:ID_LENGTH]: path for path in sorted(folder.glob("*/*"))}
        clips: list[tuple[Path, Record]] = []
        for name in lists:
            for film, mids in segments(folder / name):
                unknown = [mid for mid in mids if mid not in numbers]
                if unknown:
                    label = one_line(repr(unknown[0]))
                    raise ValueError(f"{folder / name}: {one_line(film)} has label {label}, which {CLASSES} lacks")
                if film in files:
                    clips.append((files[film], {"labels": [numbers[mid] for mid in mids]}))
        if not clips:
            raise ValueError(
                f"{folder}: holds no clip of {', '.join(lists)}: files named by their film, one folder deeper"
            )
        return self.cut(clips)


def segments(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the YouTube id and the labels of each segment of a list; ValueError for other files."""
    for place, row in list_rows(path):
        if not row[0].startswith("#"):
            if len(row) != 4 or len(row[0]) != ID_LENGTH:
                raise ValueError(f"{place}: not YTID, start_seconds, end_seconds, positive_labels")
            yield row[0], row[3].split(",")


def label_names(path: Path) -> list[tuple[str, str]]:
    """Return the id and the display name of each label, ordered by index."""
    rows = list_rows(path)
    if next(rows, ("", []))[1] != ["index", "mid", "display_name"]:
        raise ValueError(f"{path}: expected columns index, mid, display_name")
    labels = []
    for place, row in rows:
        if len(row) != 3:
            raise ValueError(f"{place}: {len(row)} cells, expected index, mid, display_name")
        labels.append((whole_number(place, row[0]), row[1], row[2]))
    return [(mid, name) for _, mid, name in sorted(labels)]
