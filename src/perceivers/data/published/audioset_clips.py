"""AudioSet as it is published: lists of segments of YouTube films with their labels, and the clips that one has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perceivers.data.published.clip_lists import list_rows, whole_number
from perceivers.data.published.clip_windows import Clips
from perceivers.files.messages import one_line
from perceivers.schema import Record

ID_LENGTH = 11
"""Characters of a film's name at YouTube."""

CLASSES = "class_labels_indices.csv"
"""List of all labels: index, machine's name, our name."""


@dataclass(frozen=True)
class AudioSet(Clips):
    """Records with "labels", their numbers in class_labels_indices.csv.

    A clip is a file one folder deeper whose name begins with its film's 11 characters; what is not there is left out.
    """

    folder: str = "audioset"
    """Holds the lists, and folders of clips."""
    training_lists: tuple[str, ...] = ("balanced_train_segments.csv", "unbalanced_train_segments.csv")
    """Segments to learn from."""
    held_out_list: str = "eval_segments.csv"
    """Segments that training never sees."""
    kind: Literal["audioset"] = "audioset"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Windows of the training lists' clips."""
        return self._records(self.training_lists)

    def held_out(self) -> Sequence[Record]:
        """Windows of the other list's."""
        return self._records((self.held_out_list,))

    def names(self) -> list[str]:
        """Names of the labels, by number."""
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
    """Film and labels of each segment of a list; ValueError if it is none."""
    for place, row in list_rows(path):
        if not row[0].startswith("#"):
            if len(row) != 4 or len(row[0]) != ID_LENGTH:
                raise ValueError(f"{place}: not YTID, start_seconds, end_seconds, positive_labels")
            yield row[0], row[3].split(",")


def label_names(path: Path) -> list[tuple[str, str]]:
    """Machine's and display name of each label, in the order of their indices."""
    rows = list_rows(path)
    if next(rows, ("", []))[1] != ["index", "mid", "display_name"]:
        raise ValueError(f"{path}: expected columns index, mid, display_name")
    found = []
    for place, row in rows:
        if len(row) != 3:
            raise ValueError(f"{place}: {len(row)} cells, expected index, mid, display_name")
        found.append((whole_number(place, row[0]), row[1], row[2]))
    return [(mid, name) for _, mid, name in sorted(found)]
