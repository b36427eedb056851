"""Sound, picture and table of the same digit, any of which may be missing. With baselines.

`prepare FOLDER OUT` reads the Free Spoken Digit Dataset and pairs each spoken digit with a handwritten one of
scikit-learn; `baselines OUT` prints their accuracies. docs/spoken.md is the guide.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import PlainRow, write_rows
from perceivers.media.audio_files import read_audio, write_audio
from perceivers.media.image_files import read_image, write_image

WINDOW, HOP, BANDS, FRAMES = 256, 100, 32, 64
"""Samples of a window, samples between windows, frequency bands, maximum number of windows (0.8 s at 8 kHz)."""

PICTURE_NOISE, SOUND_NOISE = 96.0, 2.0
"""Standard deviation of the noise in pictures (ink is 255), and in sounds relative to that of the sound."""

NUM_TEST_PICTURES = 297
"""Number of handwritten digits that are for test rows alone."""


def prepare(source: Path, out: Path, /) -> None:
    """Write train.csv and test.csv: "sound", "spectrum", "picture" (paths), "speaker", "seconds", "label"."""
    for folder in ("sounds", "spectra", "pictures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written, rng = load_digits(), np.random.default_rng(0)
    pools = {"train": written.target[:-NUM_TEST_PICTURES], "test": written.target[-NUM_TEST_PICTURES:]}
    parts: dict[str, list[PlainRow]] = {"train": [], "test": []}
    for path in sorted(source.glob("*.wav")):
        label, speaker, index = path.stem.split("_")
        part = "test" if int(index) < 5 else "train"  # the official split
        first = 0 if part == "train" else len(written.target) - NUM_TEST_PICTURES
        number = first + int(rng.choice(np.flatnonzero(pools[part] == int(label))))
        # Write noisy sound, its spectrum and the noisy picture; the row names the files.
        samples, rate = read_audio(path)
        row = {"sound": f"sounds/{path.name}", "spectrum": f"spectra/{path.stem}.npy"}
        row |= {"picture": f"pictures/{path.stem}.png", "speaker": speaker, "seconds": f"{len(samples) / rate:.3f}"}
        samples = samples + rng.normal(0, SOUND_NOISE * samples.std(), samples.shape)
        samples *= 0.5 / np.abs(samples).max()
        write_audio(out / row["sound"], samples.astype(np.float32), rate)
        np.save(out / row["spectrum"], spectrum(samples[:, 0]))
        write_image(out / row["picture"], noisy(written.images[number], rng))
        parts[part].append(row | {"label": label})
    for part, rows in parts.items():
        write_rows(out / f"{part}.csv", rows)


def spectrum(samples: np.ndarray) -> np.ndarray:
    """Return the log power [frames, BANDS] in bands that widen with frequency, as those of the ear do."""
    samples = np.pad(samples[: WINDOW + (FRAMES - 1) * HOP], (0, max(WINDOW - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=-1)) ** 2
    edges = power.shape[1] * np.linspace(0, 1, BANDS, endpoint=False) ** 1.6
    return np.log(np.add.reduceat(power, edges.astype(int), axis=-1) + 1e-6).astype(np.float32)


def noisy(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a digit [8, 8] with values from 0 to 16 as noisy bytes [8, 8, 3]."""
    grey = digit * (255 / 16) + rng.normal(0, PICTURE_NOISE, digit.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def baselines(data: Path, /) -> None:
    """Print accuracies of the baselines: a classifier of each part, and all combinations of these."""
    train, test = (list(read_rows(data / f"{part}.csv")) for part in ("train", "test"))
    labels, true = (np.array([row["label"] for row in rows]) for rows in (train, test))
    spoken, drawn = (make_pipeline(StandardScaler(), CalibratedClassifierCV(SVC(C=10), ensemble=False)) for _ in "ab")
    tabular = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    features = {"sound": (spectra, spoken), "picture": (pictures, drawn), "table": (cells, tabular)}
    logs = {}
    for name, (make, model) in features.items():
        logs[name] = np.log(model.fit(make(data, train), labels).predict_proba(make(data, test)) + 1e-9)
    for count in (3, 2, 1):
        for names in itertools.combinations(logs, count):
            together = sum(logs[name] for name in names)
            accuracy = (np.unique(labels)[together.argmax(-1)] == true).mean()
            print(f"{' + '.join(names)}: {accuracy:.3f}")


def spectra(data: Path, rows: Sequence[PlainRow]) -> np.ndarray:
    """Return spectra [B, 24 BANDS], stretched to the same length."""
    arrays = [np.load(data / row["spectrum"]) for row in rows]
    frames = [np.linspace(0, len(array) - 1, 24).round().astype(int) for array in arrays]
    return np.stack([array[index].ravel() for array, index in zip(arrays, frames, strict=True)])


def pictures(data: Path, rows: Sequence[PlainRow]) -> np.ndarray:
    """Return greys [B, 64] from 0 to 1."""
    return np.stack([read_image(data / row["picture"])[..., 0].ravel() / 255 for row in rows])


def cells(data: Path, rows: Sequence[PlainRow]) -> np.ndarray:
    """Return table cells [B, 2]: speaker, and seconds to a tenth."""
    return np.array([[row["speaker"], row["seconds"][:3]] for row in rows])


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
