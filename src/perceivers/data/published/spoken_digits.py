"""Spoken digits with moving pictures of written ones: video, sound and labels in the manner of AV-MNIST.

The sound is the Free Spoken Digit Dataset's (its own split: recordings 0 to 4 of each digit and speaker are held out),
the pictures are scikit-learn's (a fifth of each class is held out). What is put together is ours.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.published.handwritten_digits import Digits
from perceivers.media.audio_files import read_audio
from perceivers.media.resampling import resize
from perceivers.schema import Record

RATE = 8000
"""Samples of sound a second."""

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

GROUPS = {
    "digit said": tuple(f"says {digit}" for digit in range(10)),
    "speaker": SPEAKERS,
    "digit shown": tuple(f"shows {digit}" for digit in range(10)),
}
"""All labels of records, those of a group exclude one another."""

PICTURE = 16
"""Side of a moving picture, in pixels."""

MAX_SPEED = 3.0
"""Pixels that it moves from frame to frame at most, along each axis."""


class Recording(NamedTuple):
    """A spoken digit."""

    digit: int
    speaker: str
    held_out: bool
    samples: np.ndarray
    """float32 [n, 1]."""


@dataclass(frozen=True)
class SpokenDigits(DataSet):
    """Records of "image" [T, S, S, 1] from 0 to 1, "audio" [n, 1], "label" (the digit said) and "labels"."""

    folder: str = "spoken_digits"
    """Holds the .wav files, DIGIT_SPEAKER_NUMBER.wav."""
    num_training: int = 2700
    """Records to learn from: recordings come again with other pictures, moving elsewhere."""
    frames: int = 8
    """T, over the time of the sound."""
    side: int = 32
    """S, in pixels."""
    samples: int = 4096
    """Samples of sound; a shorter recording begins anywhere in silence, of a longer one some part is heard."""
    shown: Literal["same", "any"] = "same"
    """Digit in the picture: the one that is said, or any."""
    kind: Literal["spoken_digits"] = "spoken_digits"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.side < PICTURE:
            raise ValueError(f"side = {self.side} must be at least {PICTURE}, the side of the moving picture")

    @property
    def label_groups(self) -> Mapping[str, Sequence[str]]:
        """Digits said, speakers, and digits shown."""
        return GROUPS

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.frames * RATE / self.samples

    @property
    def rate(self) -> int:
        """Samples of sound a second."""
        return RATE

    def record_files(self) -> Iterable[Path]:
        """All recordings."""
        return Path(self.folder).glob("*.wav")

    def training(self) -> Sequence[Record]:
        """Any number of them, made when they are asked for."""
        return self._records(False, self.num_training)

    def held_out(self) -> Sequence[Record]:
        """One for each held-out recording."""
        return self._records(True, None)

    def _records(self, held_out: bool, count: int | None) -> Sequence[Record]:
        spoken = [recording for recording in recordings(self.folder) if recording.held_out == held_out]
        if not spoken:
            raise ValueError(
                f"{self.folder}: holds no recordings that are {'held out' if held_out else 'learned from'}"
            )
        pictures = digit_pictures(held_out)

        def make(number: int) -> Record:
            rng = np.random.default_rng((held_out, number))
            return self._record(spoken[number % len(spoken)], pictures, rng)

        return LazyRecords(len(spoken) if count is None else count, make)

    def _record(
        self, recording: Recording, pictures: Mapping[int, Sequence[np.ndarray]], rng: np.random.Generator
    ) -> Record:
        digit = recording.digit if self.shown == "same" else int(rng.integers(10))
        picture = pictures[digit][int(rng.integers(len(pictures[digit])))]
        return {
            "image": bouncing(picture, self.frames, self.side, rng),
            "audio": placed(recording.samples, self.samples, rng),
            "label": recording.digit,
            "labels": [f"says {recording.digit}", recording.speaker, f"shows {digit}"],
        }


@lru_cache(maxsize=2)
def recordings(folder: str) -> tuple[Recording, ...]:
    """All of a folder, by name of their files; ValueError if there is none."""
    found = []
    for path in sorted(Path(folder).glob("*.wav")):
        named = re.fullmatch(rf"(\d)_({'|'.join(SPEAKERS)})_(\d+)", path.stem)
        if named:
            samples, rate = read_audio(path)
            if rate != RATE or samples.shape[1] != 1:
                raise ValueError(f"{path}: {samples.shape[1]} channels at {rate} Hz, expected one at {RATE}")
            digit, speaker, number = named.groups()
            found.append(Recording(int(digit), speaker, int(number) < 5, samples))
    if not found:
        raise ValueError(f"{folder}: holds no DIGIT_SPEAKER_NUMBER.wav of the Free Spoken Digit Dataset")
    return tuple(found)


@lru_cache(maxsize=2)
def digit_pictures(held_out: bool) -> Mapping[int, Sequence[np.ndarray]]:
    """Pictures [16, 16, 1] from 0 to 1 of each digit, those of the two parts apart."""
    data = Digits()
    pictures: dict[int, list[np.ndarray]] = {digit: [] for digit in range(10)}
    for record in data.held_out() if held_out else data.training():
        small = record["image"][..., None] / 16
        pictures[record["label"]].append(resize(small, (PICTURE, PICTURE), "bilinear"))
    return pictures


def bouncing(picture: np.ndarray, frames: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """[T, S, S, 1]: the picture moves evenly over black, from anywhere in any direction, and turns at the borders."""
    room = side - len(picture)
    start, speed = rng.uniform(0, room, 2), rng.uniform(-MAX_SPEED, MAX_SPEED, 2)
    # As if it moved on in a row of mirrors: away for `room` pixels, back for as many.
    path = start + speed * np.arange(frames)[:, None]
    corners = np.rint(room - np.abs(path % (2 * room) - room) if room else 0 * path).astype(int)
    film = np.zeros((frames, side, side, 1), np.float32)
    for frame, (top, left) in zip(film, corners, strict=True):
        frame[top : top + len(picture), left : left + len(picture)] = picture
    return film


def placed(samples: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, 1]: the sound somewhere in silence, or some part of it."""
    spare = count - len(samples)
    offset = int(rng.integers(abs(spare) + 1))
    if spare < 0:
        return samples[offset : offset + count]
    return np.pad(samples, ((offset, spare - offset), (0, 0)))
