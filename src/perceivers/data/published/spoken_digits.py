"""Spoken digits with moving pictures of written ones: video, sound and labels, similar to AV-MNIST.

The sound is the Free Spoken Digit Dataset (with its split: recordings 0 to 4 of each digit and speaker are held out),
the pictures are scikit-learn's (a fifth of each class is held out). The combination is ours.
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
"""Samples of sound per second."""

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

GROUPS = {
    "digit said": tuple(f"says {digit}" for digit in range(10)),
    "speaker": SPEAKERS,
    "digit shown": tuple(f"shows {digit}" for digit in range(10)),
}
"""All labels by group; the labels of a group are mutually exclusive."""

PICTURE = 16
"""Side of the moving picture, in pixels."""

MAX_SPEED = 3.0
"""Largest speed of the picture along each axis, in pixels per frame."""


class Recording(NamedTuple):
    """A recording of a spoken digit."""

    digit: int
    speaker: str
    held_out: bool
    samples: np.ndarray
    """Sound, float32 [n, 1]."""


@dataclass(frozen=True)
class SpokenDigits(DataSet):
    """Records of "image" [T, S, S, 1] from 0 to 1, "audio" [n, 1], "label" (the digit said) and "labels"."""

    folder: str = "spoken_digits"
    """Folder of the files DIGIT_SPEAKER_NUMBER.wav."""
    num_training: int = 2700
    """Number of training records: recordings repeat, with other pictures and other motion."""
    frames: int = 8
    """T, the number of frames over the duration of the sound."""
    side: int = 32
    """S, the side of a frame in pixels."""
    samples: int = 4096
    """n, the number of samples of sound: short recordings are placed in silence, long ones are cropped, at random."""
    shown: Literal["same", "any"] = "same"
    """Digit in the picture: the spoken one, or any."""
    kind: Literal["spoken_digits"] = "spoken_digits"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.side < PICTURE:
            raise ValueError(f"side = {self.side} must be at least {PICTURE}, the side of the moving picture")

    @property
    def label_groups(self) -> Mapping[str, Sequence[str]]:
        """Groups of labels: digits spoken, speakers, digits shown."""
        return GROUPS

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.frames * RATE / self.samples

    @property
    def rate(self) -> int:
        """Samples of sound per second."""
        return RATE

    def record_files(self) -> Iterable[Path]:
        """Return all recordings."""
        return Path(self.folder).glob("*.wav")

    def training(self) -> Sequence[Record]:
        """Return `num_training` records, made on access."""
        return self._records(False, self.num_training)

    def held_out(self) -> Sequence[Record]:
        """Return a record for each held-out recording."""
        return self._records(True, None)

    def _records(self, held_out: bool, count: int | None) -> Sequence[Record]:
        spoken = [recording for recording in recordings(self.folder) if recording.held_out == held_out]
        if not spoken:
            raise ValueError(f"{self.folder}: holds no {'held-out' if held_out else 'training'} recordings")
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
    """Return all recordings of a folder, ordered by file name; ValueError if there are none."""
    spoken = []
    for path in sorted(Path(folder).glob("*.wav")):
        match = re.fullmatch(rf"(\d)_({'|'.join(SPEAKERS)})_(\d+)", path.stem)
        if match:
            samples, rate = read_audio(path)
            if rate != RATE or samples.shape[1] != 1:
                raise ValueError(f"{path}: {samples.shape[1]} channels at {rate} Hz, expected one at {RATE}")
            digit, speaker, number = match.groups()
            spoken.append(Recording(int(digit), speaker, int(number) < 5, samples))
    if not spoken:
        raise ValueError(f"{folder}: holds no DIGIT_SPEAKER_NUMBER.wav of the Free Spoken Digit Dataset")
    return tuple(spoken)


@lru_cache(maxsize=2)
def digit_pictures(held_out: bool) -> Mapping[int, Sequence[np.ndarray]]:
    """Return the training or the held-out pictures of each digit, [16, 16, 1] from 0 to 1."""
    data = Digits()
    pictures: dict[int, list[np.ndarray]] = {digit: [] for digit in range(10)}
    for record in data.held_out() if held_out else data.training():
        small = record["image"][..., None] / 16
        pictures[record["label"]].append(resize(small, (PICTURE, PICTURE), "bilinear"))
    return pictures


def bouncing(picture: np.ndarray, frames: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return a film [T, S, S, 1] of a picture that moves on black at a constant speed and bounces off the borders."""
    room = side - len(picture)
    start, speed = rng.uniform(0, room, 2), rng.uniform(-MAX_SPEED, MAX_SPEED, 2)
    # A triangle wave of the unbounded path: `room` pixels forward, then as many back.
    path = start + speed * np.arange(frames)[:, None]
    corners = np.rint(room - np.abs(path % (2 * room) - room) if room else 0 * path).astype(int)
    film = np.zeros((frames, side, side, 1), np.float32)
    for frame, (top, left) in zip(film, corners, strict=True):
        frame[top : top + len(picture), left : left + len(picture)] = picture
    return film


def placed(samples: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return [count, 1]: a sound at a random offset in silence, or a random crop of it."""
    spare = count - len(samples)
    offset = int(rng.integers(abs(spare) + 1))
    if spare < 0:
        return samples[offset : offset + count]
    return np.pad(samples, ((offset, spare - offset), (0, 0)))
