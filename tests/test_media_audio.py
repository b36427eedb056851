"""Sound files of every format read back, rates and channels changed, and malformed files refused."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from perceivers.media.audio_files import read_audio, to_mono, to_rate, write_audio
from test_media_image import COUNTS, complaint, memory, read_damaged, refuse_what_is_no_file
from tiers import few

PLAIN = {"WAV": 0, "WAVEX": 0, "RF64": 0, "W64": 0, "AIFF": 0, "AU": 0, "CAF": 0, "FLAC": 0, "OGG": 0.02}
"""Formats of libsndfile, and the largest error after reading 16-bit sound back."""


def tones(length: int = 7000, channels: int = 2, rate: int = 16_000) -> np.ndarray:
    """Return float32 [n, channels] in steps of 16 bits, with a different tone in each channel."""
    times = np.arange(length)[:, None] / rate
    waves = 0.4 * np.sin(2 * np.pi * times * (200 + 110 * np.arange(channels)))
    return (np.rint(waves * 2**15) / 2**15).astype(np.float32)


def with_ffmpeg(path: Path, codec: str, samples: np.ndarray, rate: int = 16_000) -> bytes:
    """Return the bytes of a mono or stereo sound file written by FFmpeg."""
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def with_libsndfile(path: Path, kind: str) -> bytes:
    soundfile.write(path, tones(), 16_000, format=kind)
    return path.read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 6, 16])
def test_written_sound_is_read_as_it_was(channels: int, tmp_path: Path) -> None:
    path = write_audio(tmp_path / "new" / "a.wav", tones(channels=channels), 44_100)
    samples, rate = read_audio(path)
    assert rate == 44_100
    assert samples.dtype == np.float32
    assert np.array_equal(samples, tones(channels=channels))
    assert os.listdir(tmp_path / "new") == ["a.wav"]


def test_writing_clips(tmp_path: Path) -> None:
    loud = np.array([[2.0], [1.0], [0.5], [-1.0], [-7.0]], np.float32)
    samples, _ = read_audio(write_audio(tmp_path / "a.wav", loud, 8_000))
    assert samples[:, 0].tolist() == [1 - 2**-15, 1 - 2**-15, 0.5, -1, -1]


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros((0, 1), np.float32), 8000),
        (np.zeros(5, np.float32), 8000),
        (np.zeros((5, 1), np.int16), 8000),
        (np.full((5, 1), np.nan, np.float32), 8000),
        (np.zeros((5, 17), np.float32), 8000),
        (np.zeros((5, 1), np.float32), 500),
    ],
)
def test_what_is_no_sound_is_not_written(samples: np.ndarray, rate: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected|finite"):
        write_audio(tmp_path / "a.wav", samples, rate)
    complaint(lambda path: write_audio(path, tones(), 8_000), tmp_path / "a.mp3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", PLAIN)
def test_formats(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(with_libsndfile(tmp_path / "a", kind))  # the suffix does not matter
    samples, rate = read_audio(tmp_path / "a.raw")
    assert (samples.shape, rate) == ((7000, 2), 16_000)
    assert np.abs(samples - tones()).max() <= PLAIN[kind] + 2**-15


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_sample_formats(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(), 16_000, subtype=subtype)
    samples, _ = read_audio(tmp_path / "a.wav")
    assert np.abs(samples - tones()).max() <= {"PCM_U8": 0.01, "ULAW": 0.02}.get(subtype, 1e-7)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("m4a", "aac"), ("mp3", "libmp3lame"), ("mka", "flac"), ("mov", "pcm_s16le")]
)
def test_formats_of_ffmpeg(suffix: str, codec: str, tmp_path: Path) -> None:
    with_ffmpeg(tmp_path / f"a.{suffix}", codec, tones())
    samples, rate = read_audio(tmp_path / f"a.{suffix}")
    assert (rate, samples.shape[1], samples.dtype) == (16_000, 2, np.float32)
    assert 7000 <= len(samples) < 7000 + 3 * 1152  # AAC and MP3 end with an incomplete block
    assert np.abs(samples[:7000] - tones()).mean() < 0.02


def test_beyond_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([1.5, -1.25, 0.5]), 8_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav")[0][:, 0].tolist() == [1, -1, 0.5]
    for bad in (np.nan, np.inf, 20_000.0):
        soundfile.write(tmp_path / "b.wav", np.array([0.1, bad]), 8_000, subtype="FLOAT")
        assert "expected -1 to 1" in complaint(read_audio, tmp_path / "b.wav")


def wav(channels: int, rate: int, declared: int, data: bytes) -> bytes:
    """Return a 16-bit WAV file assembled by hand."""
    shape = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + shape + b"data" + struct.pack("<I", declared) + data
    return b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body


def test_headers_that_lie(tmp_path: Path) -> None:
    before = memory()
    bad = {
        "no data": wav(1, 8000, 0, b""),
        "4 GB declared, none there": wav(1, 8000, 2**32 - 1, b""),
        "2 GB declared, 1 kB there": wav(1, 8000, 2**31 - 2, bytes(1000)),
        "one sample short": wav(1, 8000, 1002, bytes(1000)),
        "17 channels": wav(17, 8000, 340, bytes(340)),
        "65,535 channels": wav(65_535, 8000, 65_535 * 2, bytes(65_535 * 2)),
        "no channels": wav(0, 8000, 1000, bytes(1000)),
        "0 Hz": wav(1, 0, 1000, bytes(1000)),
        "999 Hz": wav(1, 999, 1000, bytes(1000)),
        "4 GHz": wav(1, 2**32 - 1, 1000, bytes(1000)),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        complaint(read_audio, tmp_path / name)
    assert memory() - before < 64 << 20
    for name, declared in (("right", 1000), ("of a pipe", 2**32 - 1), ("of another pipe", 0x7FFFF000)):
        (tmp_path / name).write_bytes(wav(1, 8000, declared, bytes(1000)))
        assert read_audio(tmp_path / name)[0].shape == (500, 1)


def test_own_limit(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", tones(), 16_000)
    with_ffmpeg(tmp_path / "a.mp3", "libmp3lame", tones())
    for name in ("a.wav", "a.mp3"):
        complaint(lambda path: read_audio(path, max_values=13_000), tmp_path / name)
        assert read_audio(tmp_path / name, max_values=30_000)[0].shape[1] == 2


def test_what_is_no_file(tmp_path: Path) -> None:
    refuse_what_is_no_file(read_audio, tmp_path, ".wav")


@pytest.mark.parametrize("kind", [*PLAIN, "OPUS"])
def test_cut_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "OPUS":
        soundfile.write(path, tones(rate=48_000), 48_000, format="OGG", subtype=kind)
    good = path.read_bytes() if kind == "OPUS" else with_libsndfile(path, kind)
    for length in np.linspace(1, len(good) - 20, 23).astype(int):
        path.write_bytes(good[:length])
        complaint(read_audio, path)


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("mp3", "libmp3lame")])
def test_cut_files_of_ffmpeg_are_refused(suffix: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    good = with_ffmpeg(path, codec, tones(20_000))
    for length in np.linspace(1, 0.8 * len(good), 5).astype(int):
        path.write_bytes(good[:length])
        complaint(read_audio, path)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", few(["WAV", "AIFF", "FLAC", "OGG", "CAF"], ["WAV", "OGG"]))
def test_damaged_files(kind: str, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a"
    read_damaged(lambda path: read_audio(path)[0], with_libsndfile(path, kind), path, count)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("suffix", "codec"), few([("m4a", "aac"), ("mp3", "libmp3lame")], [("m4a", "aac")]))
def test_damaged_files_of_ffmpeg(
    suffix: str, codec: str, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{suffix}"
    read_damaged(lambda path: read_audio(path)[0], with_ffmpeg(path, codec, tones()), path, count)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("rate", "wanted"), [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (8_000, 8_000)])
def test_rates(rate: int, wanted: int) -> None:
    samples = to_rate(tones(rate, 2, rate), rate, wanted)
    assert samples.shape == (wanted, 2)
    assert samples.dtype == np.float32
    assert np.abs(samples - tones(wanted, 2, wanted))[wanted // 20 : -wanted // 20].max() < 2e-3


def test_rates_are_band_limited() -> None:
    high = np.sin(2 * np.pi * 15_000 * np.arange(48_000) / 48_000).astype(np.float32)[:, None]
    assert np.abs(to_rate(high, 48_000, 16_000)[500:-500]).max() < 1e-3


@pytest.mark.parametrize("length", [1, 2, 7, 999, 48_001])
def test_lengths_at_other_rates(length: int) -> None:
    assert len(to_rate(np.zeros((length, 1), np.float32), 44_100, 16_000)) == round(length * 16_000 / 44_100)


def test_rates_that_are_none() -> None:
    for rate in (0, -1, 999, 400_000):
        with pytest.raises(ValueError, match="Hz, expected"):
            to_rate(tones(), 8_000, rate)


def test_mono_is_the_mean() -> None:
    six = np.arange(12, dtype=np.float32).reshape(2, 6) / 12
    assert np.allclose(to_mono(six), [[2.5 / 12], [8.5 / 12]])
    assert to_mono(six).dtype == np.float32
    with pytest.raises(ValueError, match="expected float"):
        to_mono(six[0])
