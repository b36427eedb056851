"""Loading and writing of video files: frames, their rate and their sound. A child process decodes the files."""

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.media import video_decoder
from perceivers.media.video_decoder import HEADER, MAX_VALUES

AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sampling rates that `write_video` accepts, in Hz."""

_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames at a constant rate and the sound of the same time."""

    frames: np.ndarray
    """Frames, uint8 [T, H, W, 3]."""
    fps: float
    """Frames per second."""
    sound: np.ndarray | None = None
    """Samples, float32 [n, channels] from -1 to 1, sample 0 at the start of frame 0; None: there is no sound."""
    rate: int | None = None
    """Samples per second."""


def read_video(
    path: Path | str,
    max_frames: int = 10_000,
    max_pixels: int = 500_000_000,
    start: int = 0,
    frames: int | None = None,
    max_seconds: float = 300.0,
) -> Clip:
    """Load frames `start` to `start + frames` (None: to the end) of a video file and their sound as a clip.

    A variable frame rate becomes constant: each frame shows the picture of its time, turned as the file says. The sound
    keeps its rate and channels; it is cut or padded with silence to the time of the frames. Decoding always begins at
    the start of the file. ValueError for fewer frames, more than `max_frames`, or more than `max_pixels` in all frames.
    """
    if start < 0 or (frames is not None and frames < 1):
        raise ValueError(f"start {start} and frames {frames}, expected at least 0 and 1")
    job = {"start": start, "frames": frames, "max_frames": max_frames, "max_pixels": max_pixels}
    header, arrays = _decoded(path, {"what": "video", **job}, max_seconds, 3 * max_pixels + 4 * MAX_VALUES)
    sound, rate = (arrays[1], header["rate"]) if len(arrays) == 2 else (None, None)
    return Clip(arrays[0], header["fps"], sound, rate)


def read_sound(path: Path | str, max_values: int = MAX_VALUES, max_seconds: float = 300.0) -> tuple[np.ndarray, int]:
    """Load all sound of a video or audio file; return float32 [n, channels] from -1 to 1, and its rate in Hz."""
    job = {"what": "sound", "max_values": max_values}
    header, (samples,) = _decoded(path, job, max_seconds, 4 * max_values)
    return samples, header["rate"]


def write_video(path: Path | str, clip: Clip) -> Path:
    """Write an .mp4 with H.264 (MPEG-4 if there is no encoder for H.264) and AAC; odd sides get one more pixel."""
    path = Path(path)
    _check_clip(path, clip)
    from perceivers.files.durable import whole_file
    from perceivers.files.messages import one_line
    from perceivers.media.extra import library

    av = library("av")
    with whole_file(path) as fresh:
        try:
            with fresh.open("wb") as file, av.open(file, "w", format="mp4") as container:
                _encode(av, container, clip)
        except av.FFmpegError as error:
            raise ValueError(f"{path}: cannot be encoded: {one_line(error)}") from None
    return path


def _decoded(path: Path | str, job: dict[str, Any], seconds: float, size: int) -> tuple[dict[str, Any], list[Any]]:
    """Run `video_decoder` in a child process; return the header and the arrays that it wrote.

    `seconds` and `size` (bytes) limit the child. Its errors, or its crash, become a ValueError.
    """
    from perceivers.files.opening import regular_file
    from perceivers.media.extra import library

    path = regular_file(path)
    if find_spec("av") is None:
        library("av")
    job = {"path": os.path.abspath(path), "seconds": seconds, "size": size + HEADER, **job}
    # The child writes to a file without a name, which disappears when closed, even if a process crashes.
    with tempfile.TemporaryFile() as file:
        try:
            child = subprocess.run(
                [sys.executable, "-P", video_decoder.__file__, json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{path}: not decoded within {seconds:g} seconds") from None
        # The header; after a crash it is empty.
        file.seek(0)
        header = json.loads(file.read(HEADER).rstrip(b"\0") or "{}")
        if not header:
            raise ValueError(f"{path}: its decoder stopped with status {child.returncode}: a damaged or hostile file")
        if "error" in header:
            raise ValueError(f"{path}: {header['error']}")
        # The arrays, each at a multiple of 16 bytes, mapped into memory instead of copied.
        arrays, offset = [], HEADER
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for dtype, shape in header["arrays"]:
            array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
            offset += array.nbytes + -array.nbytes % 16
            arrays.append(array)
        return header, arrays


def _check_clip(path: Path, clip: Clip) -> None:
    """Raise a ValueError unless the clip can be written."""
    frames, sound = clip.frames, clip.sound
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path}: videos are written as .mp4")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"{path}: frames {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3)")
    if not 0.01 <= clip.fps <= 1000:
        raise ValueError(f"{path}: {clip.fps} frames a second, expected 0.01 to 1000")
    if sound is None:
        return
    if sound.ndim != 2 or sound.shape[1] not in _LAYOUTS or not len(sound) or sound.dtype.kind != "f":
        raise ValueError(f"{path}: sound {sound.dtype} {sound.shape}, expected float (n, 1 to {len(_LAYOUTS)})")
    if clip.rate not in AAC_RATES:
        raise ValueError(f"{path}: sound at {clip.rate} Hz, expected one of {AAC_RATES}: see audio.to_rate")
    if not np.isfinite(sound).all():
        raise ValueError(f"{path}: sound that is not finite")


def _encode(av: Any, container: Any, clip: Clip) -> None:
    """Write the frames and the sound of a clip to an open container."""
    # The video stream. H.264 in yuv420p needs even sides.
    rate = Fraction(clip.fps).limit_denominator(1001)
    frames = np.pad(clip.frames, ((0, 0), (0, clip.frames.shape[1] % 2), (0, clip.frames.shape[2] % 2), (0, 0)), "edge")
    x264 = "libx264" in av.codecs_available
    video = container.add_stream("libx264" if x264 else "mpeg4", rate=rate)
    video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
    video.codec_context.time_base = 1 / rate
    video.codec_context.colorspace = 6  # BT.601, declared in the file, so that all players show the same colours
    video.options = {"crf": "18", "preset": "veryfast"} if x264 else {"qscale": "3"}
    # The audio stream.
    blocks: Iterator[Any] = iter(())
    if clip.sound is not None and clip.rate is not None:
        track = container.add_stream("aac", rate=clip.rate, layout=_LAYOUTS[clip.sound.shape[1]])
        blocks = _sound_packets(av, track, clip.sound, max(1, round(clip.rate / clip.fps)))
    # Frames and sound in turns, one block of sound for each frame; then the rest of both.
    for number, pixels in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        picture.pts, picture.time_base = number, 1 / rate
        container.mux(video.encode(picture))
        for block in islice(blocks, 1):
            container.mux(block)
    container.mux(video.encode(None))
    for block in blocks:
        container.mux(block)


def _sound_packets(av: Any, stream: Any, sound: np.ndarray, step: int) -> Iterator[Any]:
    """Yield lists of packets of sound, one for each `step` samples, and a last one."""
    for begin in range(0, len(sound), step):
        block = np.ascontiguousarray(sound[begin : begin + step].T, np.float32)
        samples = av.AudioFrame.from_ndarray(block, format="fltp", layout=stream.layout.name)
        samples.rate, samples.pts, samples.time_base = stream.rate, begin, Fraction(1, stream.rate)
        yield stream.encode(samples)
    yield stream.encode(None)
