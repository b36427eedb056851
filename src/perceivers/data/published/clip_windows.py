"""Clips of films, each cut into overlapping windows: what Kinetics and AudioSet have in common."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from perceivers.core.checks import SIZE, check_ranges
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.media.standard_clips import FPS, window
from perceivers.media.video_files import Clip, read_video
from perceivers.schema import Record
from perceivers.schema.infer import FILES

RECORD_FILES = (".csv", *FILES["video"], *FILES["audio"])
"""Ends of the names of lists and clips."""


@dataclass(frozen=True)
class Clips(DataSet):
    """Records of "image" [T, S, S, 3] from 0 to 1, "audio" [n, 1] and what a list tells; a clip's follow each other."""

    folder: str = ""
    """Holds the lists, and folders of clips."""
    windows: int = 16
    """Windows of a clip, at equal distances from its beginning to its end; each is a record."""
    frames: int = 32
    """T, at 25 a second."""
    side: int = 224
    """S, in pixels."""
    samples: int = 61440
    """Samples of the sound of that time."""

    def __post_init__(self) -> None:
        check_ranges(self, {"windows": SIZE})

    def record_files(self) -> Iterable[Path]:
        """Lists and clips; a run may lie in the folder too."""
        found = [path for pattern in ("*.csv", "*/*") for path in Path(self.folder).glob(pattern)]
        return [path for path in found if path.suffix.lower() in RECORD_FILES and path.is_file()]

    @property
    def records_per_clip(self) -> int:
        """Its windows."""
        return self.windows

    @property
    def fps(self) -> float:
        """Frames a second."""
        return float(FPS)

    @property
    def rate(self) -> int:
        """Samples of sound a second."""
        return self.samples * FPS // self.frames

    def cut(self, clips: Sequence[tuple[Path, Record]]) -> Sequence[Record]:
        """The records of clips, from their files and what is known of them; decoded when they are asked for."""

        def make(number: int) -> Record:
            (path, known), place = clips[number // self.windows], number % self.windows
            part = place / (self.windows - 1) if self.windows > 1 else 0.5
            film, sound = window(decoded(path), part, (self.frames, self.side), self.samples)
            return {**known, "image": film, "audio": sound}

        return LazyRecords(len(clips) * self.windows, make)


@lru_cache(maxsize=4)
def decoded(path: Path) -> Clip:
    """A clip; the last few are kept, since evaluation takes a clip's windows one after the other."""
    return read_video(path)
