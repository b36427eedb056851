"""The program that decodes video files: a child process with limits of memory and time.

A broken or hostile file can crash only this process. This module is run as a script and imports nothing else of
the package: NumPy and av start in a fifth of a second, torch would take two.

It reads a job as JSON from its command line and writes to its standard output, a file: HEADER bytes of JSON that
describe the arrays, or an error; then uint8 frames [T, H, W, 3]; then, at a multiple of 16 bytes, float32 sound
[n, channels]. Time stamps are in seconds, or in units of a stream's time_base where the name is `stamp`.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif", "aac", "mp3", "ac3", "amr")
"""FFmpeg's names of the supported formats, detected by content; none of these can refer to other files."""

MAX_CHANNELS = 16
"""Largest number of channels of sound that is accepted."""

RATES = (1_000, 384_000)
"""Lowest and highest sampling rate that is accepted, in Hz."""

MAX_VALUES = 200_000_000
"""Default limit of samples times channels when sound is loaded: 35 minutes of stereo at 48 kHz."""

HEADER = 4096
"""Size in bytes of the JSON description in front of the arrays."""

_MEMORY = 4 << 30  # bytes of address space; frames are not held there but written to a file
_STAMPS = 10_000  # number of pictures whose time stamps decide whether the frame rate varies


def sound_within(samples: np.ndarray) -> np.ndarray:
    """Clip float32 samples to -1 to 1 as a player does; ValueError if they are far beyond, or NaN."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak <= 10:  # lossy codecs overshoot by a little, integers stored as floats by far; NaN fails too
        raise ValueError(f"samples up to {peak:g}, expected -1 to 1")
    return np.clip(samples, -1, 1, out=samples) if peak > 1 else samples


def check_sound(channels: int, rate: int) -> None:
    """Raise a ValueError for a number of channels or a rate that is not accepted."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{channels} channels of sound, expected 1 to {MAX_CHANNELS}")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"sound at {rate} Hz, expected {RATES[0]} to {RATES[1]}")


class _UnreadableError(ValueError):
    """Error in the file, with a message for the user."""


def _serve() -> None:
    """Do the job given on the command line; write the header and the arrays to standard output, a file."""
    job = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # libraries that print must not write between the pixels
        out.write(bytes(HEADER))
        # Write the arrays; keep their description, or an error.
        try:
            _limit(job["seconds"], job["size"])
            with open(job["path"], "rb") as file:
                header = _video(file, job, out) if job["what"] == "video" else _whole_sound(file, job, out)
        except _UnreadableError as error:
            header = {"error": str(error)}
        except MemoryError:
            header = {"error": "needs more memory to decode than is allowed"}
        except Exception as error:  # the parent must get one line for any error
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            header = {"error": f"cannot be decoded: {' '.join(reason.split())[:200]}"}
        # Write the header in front of the arrays.
        out.seek(0)
        out.write(json.dumps(header).encode()[:HEADER])


def _limit(seconds: float, size: int) -> None:
    """Limit memory, processor time and file size where the system supports it; forbid core files."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        resource.RLIMIT_AS: _MEMORY,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # a lower limit is already set, or the system does not support the limit
            continue


def _container(file: BinaryIO) -> Any:
    """Open a file at its beginning as a container, only in formats that cannot refer to other files."""
    import av

    file.seek(0)
    try:
        return av.open(file, container_options={"format_whitelist": ",".join(FORMATS)}, metadata_errors="ignore")
    except av.FFmpegError:
        names = "mp4, mov, mkv, webm, avi, mpeg, ts, flv, wmv, ogg, gif, m4a, mp3, aac, ac3, amr"
        raise _UnreadableError(f"damaged, or no video or sound of a supported format ({names})") from None


def _stream(container: Any, kind: str) -> Any:
    """Return the first stream of a kind ("video", "audio") that is no cover picture; None if there is none."""
    covers = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC
    streams = [s for s in container.streams if s.type == kind and not int(s.disposition) & covers]
    if streams and streams[0].codec_context is None:
        raise _UnreadableError(f"{kind} in an unsupported codec")
    return streams[0] if streams else None


@dataclass(frozen=True)
class _Timing:
    """The timing of the pictures of a video stream. A picture is stored in the file; frames have a constant rate."""

    rate: Fraction
    """Frames a second."""
    even: bool
    """True if picture k is frame k; False if the rate of the pictures varies."""
    last: float
    """Time stamp of the last picture, in seconds."""


def _video(file: BinaryIO, job: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    """Write frames, then sound; return the header."""
    _check_trailer(file)
    # First pass over the packets, without decoding: the timing.
    with _container(file) as container:
        stream = _stream(container, "video")
        if stream is None:
            raise _UnreadableError("sound without pictures" if _stream(container, "audio") else "no pictures")
        index, timing = stream.index, _timing(container, stream, whole=job["frames"] is None)
    # Second pass: the frames.
    with _container(file) as container:
        shape, began = _write_frames(container, container.streams[index], timing, job, out)
    header = {"fps": float(timing.rate), "arrays": [("uint8", shape)]}
    # Third pass: the sound of the same time.
    with _container(file) as container:
        stream = _stream(container, "audio")
        if stream is not None:
            samples = _video_sound(container, stream, began, job["start"] / timing.rate, shape[0] / timing.rate)
            out.write(bytes(-out.tell() % 16))
            out.write(samples.data)
            header |= {"rate": stream.rate, "arrays": [("uint8", shape), ("float32", samples.shape)]}
    return header


def _timing(container: Any, stream: Any, whole: bool) -> _Timing:
    """Return the timing of the pictures, from the packets, without decoding.

    `whole`: the whole file will be decoded; raise an error if it is cut short.
    """
    # Collect (pts, dts) of the stream's first pictures, and the end of every stream.
    stamps: list[tuple[int | None, int | None]] = []
    ends: dict[int, float] = {}
    last = 0.0
    for packet in container.demux():
        stamp = packet.dts if packet.pts is None else packet.pts
        if not packet.size or packet.is_discard or stamp is None:
            continue
        time, seconds = float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base)
        ends[packet.stream_index] = max(ends.get(packet.stream_index, 0.0), time + seconds)
        if packet.stream_index == stream.index:
            last = max(last, time)
            if len(stamps) < _STAMPS:
                stamps.append((packet.pts, packet.dts))
            elif not whole:
                break
    # The rate; then compare the ends with the lengths that the header declares.
    rate, even = _rate(stream, stamps)
    if whole:
        end = max(ends.get(stream.index, 0.0), last + float(1 / rate))  # packets may have no durations
        _check_end(_declared(container, stream), end, 0.75 / float(rate), "pictures")
        if _promises(container):
            _check_end((container.duration or 0) / 1e6, max(ends.values(), default=0.0), 0.2, "video")
    return _Timing(rate, even, last)


def _rate(stream: Any, stamps: list[tuple[int | None, int | None]]) -> tuple[Fraction, bool]:
    """Return frames a second, and whether the rate is constant, from the time stamps (pts, dts) of some pictures.

    The rate in the header is often wrong, so it is used only if the time stamps agree. An AVI has only dts.
    """
    declared = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= 240]
    simplest = sorted(declared, key=lambda rate: rate.denominator)  # 17 rather than 16.9999999
    stamped = False
    for column in zip(*stamps, strict=True):  # all pts, then all dts
        if len(column) < 2 or None in column:
            continue
        # Find a rate whose frame times k / rate are close to the sorted stamps: a declared one, else their mean.
        ordered = sorted(column)[: -32 if len(column) == _STAMPS else None]  # the last pts may have gaps
        times = np.array([float((stamp - ordered[0]) * stream.time_base) for stamp in ordered])
        mean = Fraction((len(times) - 1) / max(times[-1], 1e-9)).limit_denominator(1001)
        for rate, slack in (*((rate, 0.25) for rate in simplest), (mean, 0.5)):
            if 0.01 <= rate <= 1000 and np.abs(times * float(rate) - np.arange(len(times))).max() < slack:
                return rate, True
        stamped = True
        declared = declared or [mean]
    if not declared or not 0.01 <= declared[0] <= 1000:
        raise _UnreadableError("no frame rate, neither in its header nor in its time stamps")
    return declared[0], not stamped


def _write_frames(
    container: Any, stream: Any, timing: _Timing, job: dict[str, Any], out: BinaryIO
) -> tuple[tuple[int, ...], float]:
    """Write the frames of a job; return their shape, and the time stamp of the first picture in seconds."""
    # Refuse too many frames before decoding.
    start, wanted = job["start"], job["frames"]
    limit = _frame_limit(stream, job)
    if (wanted or (stream.frames - start if timing.even else 0)) > limit:
        raise _too_long(limit)
    # Open the decoder. Pictures may be larger than the header says; FFmpeg counts their pixels with wide margins.
    context = stream.codec_context
    context.thread_count = 1
    context.options = {"max_pixels": str(2 * (context.width + 256) * (context.height + 256))}
    pictures = container.decode(stream)
    first = next(pictures, None)
    if first is None:
        raise _UnreadableError("no picture can be decoded")
    # Write each picture as often as frames show it, from frame `start` on.
    began, end, count, size = first.time or 0.0, 0, 0, (first.width, first.height)
    for picture, begin, end in _shown(chain([first], pictures), began, timing):
        stop = end if wanted is None else min(end, start + wanted)
        if stop - start > limit:
            raise _too_long(limit)
        if (picture.width, picture.height) != size:
            raise _UnreadableError(f"pictures of two sizes, {size} and {(picture.width, picture.height)}")
        if stop > max(begin, start):
            pixels = _pixels(picture)
            for _ in range(max(begin, start), stop):
                out.write(pixels.data)
            count += stop - max(begin, start)
        if wanted is not None and end >= start + wanted:
            break
    else:
        _check_end(timing.last, began + float((end - 1) / timing.rate), 1.25 / float(timing.rate), "pictures")
    if count < (wanted or 1):
        raise _UnreadableError(f"{end} frames, expected {wanted or 'more'} from frame {start} on")
    return (count, *pixels.shape), began


def _frame_limit(stream: Any, job: dict[str, Any]) -> int:
    """Return the largest number of frames that may be decoded."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height == 0:  # FFmpeg sets 0 for impossible sizes
        raise _UnreadableError("frames of no size, or of an impossible one")
    if width * height > job["max_pixels"]:
        raise _UnreadableError(
            f"frames of {width} x {height}, expected at most {job['max_pixels']:,} pixels in all of them"
        )
    return min(job["max_frames"], job["max_pixels"] // (width * height))


def _too_long(limit: int) -> _UnreadableError:
    return _UnreadableError(f"more frames of this size than the limit, {limit}: ask for some of them")


def _shown(pictures: Iterator[Any], began: float, timing: _Timing) -> Iterator[tuple[Any, int, int]]:
    """Yield each picture with the first frame that shows it, and the first frame that shows the next picture."""
    # A picture is held until the next one is due: its last frame is known only then.
    held, first = None, 0
    for number, picture in enumerate(pictures):
        time = None if timing.even else picture.time
        frame = number if time is None else round((time - began) * float(timing.rate))
        if frame < first:  # too late: the held picture is newer
            continue
        if held is not None and frame > first:
            yield held, first, frame
        held, first = picture, frame
    if held is not None:
        seconds = 0 if timing.even or not held.duration else held.duration * held.time_base
        yield held, first, first + max(1, round(seconds * timing.rate))


def _promises(container: Any) -> bool:
    """Return whether the header of this format declares the length; for others FFmpeg guesses it from the size."""
    return container.format.name.split(",")[0] in ("mov", "matroska", "avi", "flv", "asf")


def _declared(container: Any, stream: Any) -> float:
    """Return the length of a stream that the file declares, in seconds; 0 if it declares none."""
    if not _promises(container):
        return 0.0
    if container.format.name == "avi" and stream.type == "video":  # for a file cut short its duration is guessed
        return float(stream.frames * stream.time_base)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else 0.0


def _check_end(declared: float, end: float, slack: float, what: str) -> None:
    """Raise an error if something ends more than `slack` seconds before its declared end."""
    if declared - end > slack:
        raise _UnreadableError(f"cut short or damaged: {end:.2f} of {declared:.2f} seconds of {what}")


def _counts_frames(file: BinaryIO) -> bool:
    """Return whether an MP3 begins with its number of frames; otherwise FFmpeg guesses the length from the size."""
    file.seek(0)
    start = file.read(1 << 18)
    return b"Xing" in start or b"Info" in start


def _check_trailer(file: BinaryIO) -> None:
    """Raise an error for a GIF without its last byte, which alone shows that the file is complete."""
    file.seek(0)
    if file.read(3) == b"GIF":
        file.seek(-min(1024, os.fstat(file.fileno()).st_size), os.SEEK_END)
        if not file.read().rstrip(b"\0\r\n").endswith(b";"):
            raise _UnreadableError("cut short: a GIF without its end")


def _pixels(picture: Any) -> np.ndarray:
    """Return the pixels of a picture, uint8 [H, W, 3], turned by the file's display matrix."""
    if picture.is_corrupt:
        raise _UnreadableError("damaged: a picture is decoded only in part")
    pixels = picture.to_ndarray(format="rgb24", threads=1)
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        (a, b, _), (c, d, _), _ = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3).tolist()
        if min(abs(a) + abs(d), abs(b) + abs(c)) > 1 << 10:  # a turn by 90 degrees is 1 << 16
            raise _UnreadableError("to be shown turned by other than quarters of a circle")
        if abs(b) > abs(a):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


def _video_sound(container: Any, stream: Any, began: float, start: Fraction, length: Fraction) -> np.ndarray:
    """Return float32 [n, channels], `length` seconds from `start` seconds after time stamp `began`; 0 in gaps."""
    # Sample `begin` after `began` is the first of `count`.
    channels, hertz = stream.channels, stream.rate
    check_sound(channels, hertz)
    begin = round(start * hertz)
    count = round((start + length) * hertz) - begin
    if count * channels > MAX_VALUES:
        raise _UnreadableError(f"{count} samples of {channels} channels, expected at most {MAX_VALUES:,} in all")
    samples = np.zeros((count, channels), np.float32)
    # Copy each block to its position in `samples`; positions may be negative or beyond the end.
    end = first = None
    for frame, block in _blocks(container, stream):
        position = end if frame.time is None else round((frame.time - began) * hertz) - begin
        # Time stamps are rounded: a block follows the last one directly unless they are 20 ms apart.
        position = end if end is not None and abs((position or 0) - end) * 50 < hertz else position or 0
        first = position if first is None else first
        end = position + len(block)
        samples[max(position, 0) : max(end, 0)] = block[max(-position, 0) :][: max(count - max(position, 0), 0)]
        if end >= count:
            break
    else:
        # All of the sound was decoded: is it as long as declared?
        if end is None:
            raise _UnreadableError("its sound cannot be decoded")
        seconds = max(end - (first or 0), end + begin) / hertz
        _check_end(_declared(container, stream), seconds, 0.2, "sound")
    return samples


def _whole_sound(file: BinaryIO, job: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    """Write all sound; return the header."""
    with _container(file) as container:
        stream = _stream(container, "audio")
        if stream is None:
            raise _UnreadableError("no sound")
        channels, hertz = stream.channels, stream.rate
        check_sound(channels, hertz)
        count = 0
        for _, block in _blocks(container, stream):
            count += len(block)
            if count * channels > job["max_values"]:
                raise _UnreadableError(f"more than {job['max_values']:,} samples of all channels")
            out.write(np.ascontiguousarray(block).data)
        if count == 0:
            raise _UnreadableError("its sound cannot be decoded")
        declared = _declared(container, stream)
        if container.format.name == "mp3" and _counts_frames(file):
            declared = float(stream.duration * stream.time_base)
        _check_end(declared, count / hertz, 0.2, "sound")
    return {"rate": hertz, "arrays": [("float32", (count, channels))]}


def _blocks(container: Any, stream: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the decoded frames of sound, each with its samples, float32 [n, channels] from -1 to 1."""
    channels, hertz = stream.channels, stream.rate
    for frame in _sound_frames(container, stream):
        if len(frame.layout.channels) != channels or frame.sample_rate != hertz:
            raise _UnreadableError("channels or rate of its sound change on the way")
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, channels)
        if values.dtype == np.uint8:
            values = values.astype(np.float32) / 128 - 1
        elif values.dtype.kind == "i":
            values = values / np.float32(-float(np.iinfo(values.dtype).min))
        yield frame, sound_within(values.astype(np.float32))


def _sound_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the decoded frames. Broken packets before the first frame are skipped, as cut videos begin with one."""
    import av

    begun = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if begun:
                raise
            continue
        begun = begun or bool(frames)
        yield from frames


if __name__ == "__main__":
    _serve()
