"""Films written and read back: pictures, sound, rates and rotations, and malformed files refused."""

import os
import signal
import struct
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from perceivers.media import video_decoder, video_files
from perceivers.media.audio_files import read_audio, write_audio
from perceivers.media.image_files import write_image
from perceivers.media.video_files import Clip, read_video, write_video
from test_media_audio import tones, with_ffmpeg
from test_media_image import complaint, encoded, memory, one_line_about, photo, read_damaged, refuse_what_is_no_file

CODECS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx", "ts": "mpeg2video", "gif": "gif"}
"""Containers, and the video codec of the films that are made here."""
FORMATS = {"gif": "gray", "huffyuv": "rgb24"}
"""Codecs whose pixels are not yuv420p."""

FRAMES = 13


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> object:
    """Check that no temporary file outlives a test."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def greys(count: int = FRAMES, height: int = 32, width: int = 48) -> np.ndarray:
    """Return uint8 [T, H, W, 3]; frame k has the grey 20 + 15 k."""
    levels = (20 + 15 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def levels(clip: Clip) -> list[int]:
    """Return the index in `greys` of each frame."""
    return [round((float(frame.mean()) - 20) / 15) for frame in clip.frames]


def film(
    path: Path,
    ticks: list[int] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    codec: str | None = None,
) -> Path:
    """Write a film without sound in the container of its suffix; frame k begins at tick `ticks[k]`, at 25 a second."""
    codec = codec or CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = FORMATS.get(codec, "yuv420p")
        stream.options = {"crf": "10", "bf": "2"} if codec == "libx264" else {"qscale": "2", "b": "2000000"}
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        frames = greys() if rotation is None else photo(32, 48)[None]
        for number, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            picture.pts, picture.time_base = (ticks or range(FRAMES))[number], Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def with_sound(path: Path, sound: np.ndarray, late: int = 0, rate: int = 16_000) -> Path:
    """Write a Matroska film of `greys` with sound that begins `late` samples after the pictures."""
    with av.open(str(path), "w", format="matroska") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
        track = container.add_stream("flac", rate=rate, layout="mono")
        for number, pixels in enumerate(greys()):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(pictures.encode(picture))
        container.mux(pictures.encode(None))
        values = (np.ascontiguousarray(sound.T) * 2**15).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, late, Fraction(1, rate)
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


def frames_of(path: Path) -> np.ndarray:
    return read_video(path).frames


@pytest.mark.parametrize("kind", CODECS)
def test_every_frame_once_and_in_order(kind: str, tmp_path: Path) -> None:
    clip = read_video(film(tmp_path / f"a.{kind}"))
    assert clip.frames.shape == (FRAMES, 32, 48, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == 25
    assert clip.sound is None
    assert clip.rate is None
    assert levels(clip) == list(range(FRAMES))


def test_written_film_is_nearly_as_it_was(tmp_path: Path) -> None:
    down, right = np.mgrid[:32, :48]
    frames = np.stack([np.stack([down * 7, right * 5, down + right + 9 * t], -1) for t in range(FRAMES)]).astype(
        np.uint8
    )
    sound = tones(int(FRAMES * 16_000 / 25), 2)
    path = write_video(tmp_path / "new" / "a.mp4", Clip(frames, 25.0, sound, 16_000))
    assert os.listdir(tmp_path / "new") == ["a.mp4"]
    clip = read_video(path)
    assert clip.frames.shape == frames.shape
    assert np.abs(clip.frames.astype(int) - frames).mean() < 4
    assert (clip.fps, clip.rate) == (25, 16_000)
    assert clip.sound is not None
    assert clip.sound.shape == sound.shape
    assert np.abs(clip.sound - sound)[1000:-1000].max() < 0.05


@pytest.mark.parametrize("fps", [30_000 / 1001, 12.5, 0.5])
def test_rates_are_kept(fps: float, tmp_path: Path) -> None:
    clip = read_video(write_video(tmp_path / "a.mp4", Clip(greys(), fps)))
    assert clip.fps == pytest.approx(fps, rel=1e-6)
    assert levels(clip) == list(range(FRAMES))


@pytest.mark.parametrize("colour", [(255, 0, 0), (200, 180, 40), (0, 90, 255)])
def test_colours_are_kept(colour: tuple[int, int, int], tmp_path: Path) -> None:
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 48, 3)).copy()
    read = read_video(write_video(tmp_path / "a.mp4", Clip(frames, 25.0))).frames
    assert np.abs(read.astype(int) - frames).max() <= 4


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    frames = np.repeat(photo(31, 47)[None] // 8 * 8, 3, axis=0)
    read = read_video(write_video(tmp_path / "a.mp4", Clip(frames, 25.0))).frames
    assert read.shape == (3, 32, 48, 3)
    assert np.abs(read[:, 31].astype(int) - read[:, 30]).mean() < 12


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_channels(channels: int, tmp_path: Path) -> None:
    sound = tones(16_000, channels, 48_000)
    sound[:8_000] = 0
    sound[8_000:, 3:4] = 0.3 * np.sin(np.arange(8_000) * 2 * np.pi * 60 / 48_000)[:, None]  # 5.1: the bass channel
    read = read_video(write_video(tmp_path / "a.mp4", Clip(greys(10), 30.0, sound, 48_000)))
    assert read.sound is not None
    assert read.sound.shape == (16_000, channels)
    for old, new in zip(sound.T, read.sound.T, strict=True):
        assert np.corrcoef(old, new)[0, 1] > 0.98  # at the same time, in the same channel


@pytest.mark.parametrize(
    "clip",
    [
        Clip(greys()[0], 25.0),
        Clip(greys()[:0], 25.0),
        Clip(greys().astype(np.float32), 25.0),
        Clip(greys(), 0.0),
        Clip(greys(), float("nan")),
        Clip(greys(), 25.0, tones(100, 1)),
        Clip(greys(), 25.0, tones(100, 1), 8_001),
        Clip(greys(), 25.0, tones(100, 7), 8_000),
        Clip(greys(), 25.0, tones(0, 1), 8_000),
        Clip(greys(), 25.0, tones(100, 1).astype(np.int16), 8_000),
        Clip(greys(), 25.0, tones(100, 1) * np.float32(np.nan), 8_000),
    ],
)
def test_what_is_no_film_is_not_written(clip: Clip, tmp_path: Path) -> None:
    complaint(lambda path: write_video(path, clip), tmp_path / "a.mp4")
    complaint(lambda path: write_video(path, Clip(greys(), 25.0)), tmp_path / "a.avi")
    (tmp_path / "b.mp4").mkdir()
    complaint(lambda path: write_video(path, Clip(greys(), 25.0)), tmp_path / "b.mp4")
    assert os.listdir(tmp_path) == ["b.mp4"]


def test_parts_of_a_film(tmp_path: Path) -> None:
    path = with_sound(tmp_path / "a.mkv", tones(8_320, 1))
    whole = read_video(path)
    assert whole.sound is not None
    assert np.abs(whole.sound - tones(8_320, 1)).max() < 2**-14
    parts = [read_video(path, start=begin, frames=frames) for begin, frames in ((0, 4), (4, 8), (12, 1))]
    assert [len(part.frames) for part in parts] == [4, 8, 1]
    assert np.array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert np.array_equal(np.concatenate([part.sound for part in parts if part.sound is not None]), whole.sound)
    assert np.array_equal(read_video(path, start=5).frames, whole.frames[5:])
    for start, frames in ((0, 14), (13, None), (10, 4), (10_000, 1)):
        assert "13 frames" in complaint(lambda path: read_video(path, start=start, frames=frames), path)  # noqa: B023


def test_parameters_are_checked(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi")
    for settings in ({"start": -1}, {"frames": 0}):
        with pytest.raises(ValueError, match="expected at least"):
            read_video(path, **settings)


def test_limits(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi")
    assert len(read_video(path, max_frames=13, max_pixels=13 * 32 * 48).frames) == 13
    assert "limit, 12" in complaint(lambda path: read_video(path, max_frames=12), path)
    assert "limit, 12" in complaint(lambda path: read_video(path, max_pixels=13 * 32 * 48 - 1), path)
    assert "48 x 32" in complaint(lambda path: read_video(path, max_pixels=32 * 48 - 1), path)
    assert len(read_video(path, max_frames=12, frames=12).frames) == 12
    assert "limit, 12" in complaint(lambda path: read_video(path, max_frames=12, frames=13), path)
    assert "seconds" in complaint(lambda path: read_video(path, max_seconds=0.01), path)


def test_headers_that_lie(tmp_path: Path) -> None:
    good = film(tmp_path / "a.avi", codec="huffyuv").read_bytes()
    assert levels(read_video(tmp_path / "a.avi")) == list(range(FRAMES))
    before = memory()
    size = good.index(struct.pack("<ii", 48, 32), good.index(b"strf"))
    length = good.index(b"strh") + 40
    assert struct.unpack_from("<I", good, length) == (FRAMES,)
    for name, data in {
        "impossible": good[:size] + struct.pack("<ii", 50_000, 50_000) + good[size + 8 :],
        "limit, 1:": good[:size] + struct.pack("<ii", 16_000, 16_000) + good[size + 8 :],
        "of 85899345.88 seconds": good[:length] + struct.pack("<I", 2**31 - 1) + good[length + 4 :],
        "of 0.56 seconds": good[:length] + struct.pack("<I", FRAMES + 1) + good[length + 4 :],
    }.items():
        (tmp_path / "b.avi").write_bytes(data)
        assert name in complaint(read_video, tmp_path / "b.avi")
    assert memory() - before < 64 << 20


def test_turned_films(tmp_path: Path) -> None:
    plain = frames_of(film(tmp_path / "a.mp4", rotation=(0, False, False)))[0]
    for degrees, mirrored, upside_down in (
        *((degrees, False, False) for degrees in (90, 180, 270)),
        *((0, True, False), (90, True, False), (270, False, True), (180, False, True)),
    ):
        turned = frames_of(film(tmp_path / "b.mp4", rotation=(degrees, mirrored, upside_down)))[0]
        upright = np.rot90(plain, degrees // 90)[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        assert np.array_equal(turned, upright)


def test_films_turned_askew(tmp_path: Path) -> None:
    assert "quarters" in complaint(read_video, film(tmp_path / "a.mp4", rotation=(30, False, False)))


def test_variable_rate(tmp_path: Path) -> None:
    """Each tick shows the picture of its time; the file gives the duration of the last picture, here one tick."""
    ticks = [0, 1, 2, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17]
    clip = read_video(film(tmp_path / "a.avi", ticks))
    assert clip.fps == 25
    assert levels(clip) == [0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    part = read_video(tmp_path / "a.avi", start=3, frames=6)
    assert levels(part) == [2, 2, 3, 4, 4, 4]
    # An MP4 holds the mean rate: no time is lost, and no picture is shown before its time.
    clip = read_video(film(tmp_path / "a.mp4", ticks))
    assert len(clip.frames) / clip.fps == pytest.approx(18 / 25, abs=0.04)
    times = np.arange(len(clip.frames)) / clip.fps
    assert np.abs(np.array(ticks)[levels(clip)] / 25 - times).max() < 4 / 25
    assert levels(clip) == sorted(levels(clip))


def test_one_picture(tmp_path: Path) -> None:
    for kind in ("avi", "mkv", "mp4"):
        assert frames_of(film(tmp_path / f"a.{kind}", rotation=(0, False, False))).shape == (1, 32, 48, 3)


def test_sound_lies_where_its_time_stamps_say_when_pictures_begin_later(tmp_path: Path) -> None:
    """Pictures begin two frames later."""
    clip = read_video(with_sound(tmp_path / "a.mkv", tones(8_320, 1)), start=2)
    assert clip.sound is not None
    assert np.abs(clip.sound - tones(8_320, 1)[1_280:]).max() < 2**-14


@pytest.mark.parametrize("late", [0, 3200])
def test_sound_lies_where_its_time_stamps_say(late: int, tmp_path: Path) -> None:
    clip = read_video(with_sound(tmp_path / "a.mkv", tones(4_000, 1) + np.float32(0.5), late))
    assert clip.sound is not None
    assert clip.sound.shape == (8_320, 1)
    assert (clip.sound[:late] == 0).all()
    assert np.abs(clip.sound[late : late + 4_000] - tones(4_000, 1) - 0.5).max() < 2**-14
    assert (clip.sound[late + 4_000 :] == 0).all()


def test_sound_alone_and_pictures_alone(tmp_path: Path) -> None:
    with_ffmpeg(tmp_path / "a.m4a", "aac", tones())
    assert "sound without pictures" in complaint(read_video, tmp_path / "a.m4a")
    write_audio(tmp_path / "a.wav", tones(), 16_000)
    complaint(read_video, tmp_path / "a.wav")
    for suffix in ("png", "jpg"):
        write_image(tmp_path / f"a.{suffix}", photo())
        complaint(read_video, tmp_path / f"a.{suffix}")
    assert "no sound" in complaint(read_audio, film(tmp_path / "a.mp4"))


def test_cover_pictures_are_no_film(tmp_path: Path) -> None:
    from PIL import Image

    jpeg = encoded(Image.fromarray(photo()), "JPEG")
    mp3 = with_ffmpeg(tmp_path / "a.mp3", "libmp3lame", tones())
    start = mp3.index(b"\xff\xfb") if not mp3.startswith(b"ID3") else 10 + int.from_bytes(mp3[9:10], "big")
    picture = b"\0image/jpeg\0\3\0" + jpeg
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "b.mp3").write_bytes(b"ID3\3\0\0" + size + frame + mp3[start:])
    assert "sound without pictures" in complaint(read_video, tmp_path / "b.mp3")
    assert read_audio(tmp_path / "b.mp3")[0].shape[1] == 2


def test_files_that_name_others_are_not_followed(tmp_path: Path) -> None:
    film(tmp_path / "a.ts")
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/a.ts\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert "no video or sound" in complaint(read_video, tmp_path / name)


def test_odd_names(tmp_path: Path) -> None:
    for name in ("http:a.avi", "-", "ä ö%d.avi", os.fsdecode(b"\xff\xfe.avi")):
        os.replace(film(tmp_path / "a.avi"), tmp_path / name)
        assert frames_of(tmp_path / name).shape == (FRAMES, 32, 48, 3)


def test_what_is_no_file(tmp_path: Path) -> None:
    refuse_what_is_no_file(read_video, tmp_path, ".mp4")


@pytest.mark.parametrize("command", [f"kill -{signal.SIGSEGV.value} $$", "exit 3"])
def test_a_decoder_that_crashes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.avi")
    program = tmp_path / "crash"
    program.write_text(f"#!/bin/sh\n{command}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert "its decoder stopped" in complaint(read_video, path)


def test_the_decoder_does_not_load_the_package() -> None:
    assert "perceivers" not in "".join(
        line for line in Path(video_decoder.__file__).read_text().splitlines() if line.startswith(("import", "from"))
    )


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.avi")
    monkeypatch.setattr(video_files, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install perceivers\[media\]"):
        read_video(path)
    with pytest.raises(ImportError, match=r"pip install perceivers\[media\]"):
        write_video(tmp_path / "b.mp4", Clip(greys(), 25.0))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "gif"])
def test_cut_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = film(tmp_path / f"a.{kind}")
    good = path.read_bytes()
    for share in (0.1, 0.4, 0.7):
        path.write_bytes(good[: int(share * len(good))])
        complaint(read_video, path)
    path.write_bytes(good[:-20])  # in some containers, the end holds nothing of value
    try:
        assert levels(read_video(path)) == list(range(FRAMES))
    except ValueError as error:
        one_line_about(path, error)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("mp4", 20),
        *(pytest.param(kind, 200, marks=pytest.mark.slow) for kind in CODECS),
    ],
)
def test_damaged_files(kind: str, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = film(tmp_path / f"a.{kind}")
    read_damaged(frames_of, path.read_bytes(), path, count)
    assert capfd.readouterr() == ("", "")
