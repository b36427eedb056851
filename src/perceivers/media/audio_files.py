"""Loading and writing of audio files as float32 samples [n, channels]; resampling and mixing."""

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from perceivers.files.durable import whole_file
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.media.extra import library
from perceivers.media.video_decoder import MAX_VALUES, RATES, check_sound, sound_within
from perceivers.media.video_files import read_sound

# Formats that libsndfile loads; all others, MP3 too, are decoded by FFmpeg in a child process.
_PLAIN = re.compile(rb"RIFF....WAVE|RF64....WAVE|riff\x2e\x91\xcf\x11|FORM....AIF[FC]|\.snd|caff|fLaC|OggS", re.DOTALL)

# libsndfile loads what is left of a file cut short; only its log says so: "data : 120000 (should be 59978)".
_SHORTENED = re.compile(r"^\s*(data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# A program that writes to a pipe does not know the size when it writes the header, so it writes one of these.
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)

_BLOCK = 1 << 16


def read_audio(path: Path | str, max_values: int = MAX_VALUES) -> tuple[np.ndarray, int]:
    """Load an audio file, or the sound of a video file; return float32 [n, channels] from -1 to 1, and the rate in Hz.

    libsndfile loads WAV, AIFF, AU, CAF, FLAC and Ogg; FFmpeg MP3, M4A, AAC and video. `max_values` limits the samples
    of all channels. Values beyond -1 and 1, which lossy codecs make, are clipped.
    """
    path = regular_file(path)
    with path.open("rb") as file:
        if not _PLAIN.match(file.read(12)):
            return read_sound(path, max_values)
        soundfile = library("soundfile")
        try:
            _check_ogg(file)
            # By descriptor, not by name: a name may end in .raw, which soundfile takes for a format, or not be UTF-8.
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                return _samples(sound, max_values), sound.samplerate
        except soundfile.SoundFileError as error:
            reason = re.sub(r"^(Error opening .*?: |Error : )*", "", one_line(error))
            raise ValueError(f"{path}: damaged, or in an unsupported format: {reason}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def write_audio(path: Path | str, samples: np.ndarray, rate: int) -> Path:
    """Write float [n, channels] from -1 to 1 as a .wav of 16 bits; values beyond are clipped."""
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"{path}: sound is written as .wav")
    _check_samples(samples)
    try:
        check_sound(samples.shape[1], rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if samples.size * 2 >= 1 << 32:
        raise ValueError(f"{path}: {samples.size:,} samples of all channels, a .wav holds fewer than {1 << 31:,}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: samples that are not finite")
    values = np.rint(samples * np.float32(1 << 15)).clip(-(1 << 15), (1 << 15) - 1).astype(np.int16)
    soundfile = library("soundfile")
    with whole_file(path) as fresh:
        try:
            soundfile.write(fresh, values, rate, subtype="PCM_16", format="WAV")
        except soundfile.SoundFileError as error:
            raise ValueError(f"{path}: cannot be written: {one_line(error)}") from None
    return path


def to_rate(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample [n, channels] to `new_rate` Hz, band-limited: float32 [round(n * new_rate / rate), channels]."""
    _check_samples(samples)
    for value in (rate, new_rate):
        if not RATES[0] <= value <= RATES[1]:
            raise ValueError(f"{value} Hz, expected {RATES[0]} to {RATES[1]}")
    if rate == new_rate:
        return samples.astype(np.float32)
    return library("soxr").resample(samples.astype(np.float32), rate, new_rate)


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Mix [n, channels] to float32 [n, 1], the mean of all channels.

    The mean does not depend on the layout of the channels, and stays within -1 to 1. In 5.1 sound the bass channel
    counts as one of six, and speech, mostly in the centre, becomes weaker than in a video player's mix.
    """
    _check_samples(samples)
    return samples.mean(axis=1, dtype=np.float32, keepdims=True)


def _check_ogg(file: BinaryIO) -> None:
    """Raise a ValueError for an Ogg file without its last page: its length is stored nowhere else."""
    file.seek(0)
    if file.read(4) == b"OggS":
        file.seek(-min(1 << 17, os.fstat(file.fileno()).st_size), os.SEEK_END)  # a page has at most half as many bytes
        end = file.read()
        page = end[end.rfind(b"OggS") :]  # 27 bytes (the last is the number of lengths), lengths, data
        if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            raise ValueError("cut short: an Ogg file without its last page")


def _samples(sound: Any, max_values: int) -> np.ndarray:
    """Load the samples of an open SoundFile; ValueError if there are fewer than it declares."""
    # Compare the sizes in the header with those of the file.
    check_sound(sound.channels, sound.samplerate)
    for name, declared, found in _SHORTENED.findall(sound.extra_info):
        # The declared size of a whole file, unlike the size of its sound, is often wrong by the size of a header.
        slack = 16 if name.lower().startswith("riff") else 0
        if int(declared) - int(found) > slack and int(declared) not in _UNKNOWN_SIZES:
            raise ValueError(f"cut short: {found} bytes of the {declared} that its header declares")
    if sound.frames * sound.channels > max_values:
        raise ValueError(f"announces {sound.frames:,} samples of {sound.channels} channels, of at most {max_values:,}")
    if sound.frames < 1:
        raise ValueError("holds no sound")
    # Load in blocks: memory is only used for what the file really holds.
    samples = np.empty((sound.frames, sound.channels), np.float32)
    count = 0
    while count < len(samples) and len(block := sound.read(out=samples[count : count + _BLOCK])):
        count += len(block)
    if count < len(samples):
        raise ValueError(f"cut short or damaged: {count} samples of {len(samples)}")
    return sound_within(samples)


def _check_samples(samples: np.ndarray) -> None:
    if samples.ndim != 2 or 0 in samples.shape or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples {samples.dtype} {samples.shape}, expected float (n, channels)")
