"""The common base of Kinetics and AudioSet: clips of films, each cut into overlapping windows."""

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
"""Suffixes of lists and clips."""


@dataclass(frozen=True)
class Clips(DataSet):
    """Records of "image" [T, S, S, 3] from 0 to 1, "audio" [n, 1] and the labels of a list, clip after clip."""

    folder: str = ""
    """Folder of the lists and of folders of clips."""
    windows: int = 16
    """Number of windows of a clip, evenly spaced from its beginning to its end; each is a record."""
    frames: int = 32
    """T, the number of frames of a window, at 25 per second."""
    side: int = 224
    """S, the side of a frame in pixels."""
    samples: int = 61440
    """n, the number of samples of the window's sound."""

    def __post_init__(self) -> None:
        check_ranges(self, {"windows": SIZE})

    def record_files(self) -> Iterable[Path]:
        """Return the lists and the clips, but no other files of the folder, which may also contain a run."""
        found = [path for pattern in ("*.csv", "*/*") for path in Path(self.folder).glob(pattern)]
        return [path for path in found if path.suffix.lower() in RECORD_FILES and path.is_file()]

    @property
    def records_per_clip(self) -> int:
        """Number of windows of a clip."""
        return self.windows

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(FPS)

    @property
    def rate(self) -> int:
        """Samples of sound per second."""
        return self.samples * FPS // self.frames

    def cut(self, clips: Sequence[tuple[Path, Record]]) -> Sequence[Record]:
        """Return the windows of clips, given as files with the other fields of their records; decoded on access."""

        def make(number: int) -> Record:
            (path, known), number_in_clip = clips[number // self.windows], number % self.windows
            part = number_in_clip / (self.windows - 1) if self.windows > 1 else 0.5
            film, sound = window(decoded(path), part, (self.frames, self.side), self.samples)
            return {**known, "image": film, "audio": sound}

        return LazyRecords(len(clips) * self.windows, make)


@lru_cache(maxsize=4)
def decoded(path: Path) -> Clip:
    """Return a decoded clip; the last few are cached, since evaluation takes all windows of a clip in turn."""
    return read_video(path)
