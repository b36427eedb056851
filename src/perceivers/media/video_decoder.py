"""The program that decodes films: a child process of limited memory and time.

A broken or hostile file can crash nothing but that. It is run as it lies, without the package, so it imports nothing of
ours: NumPy and av start in a fifth of a second, torch would take two.
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
"""FFmpeg's names of the kinds of files that are read, told by content; none of them names other files or addresses."""

MAX_CHANNELS = 16
"""Channels of sound that readers accept."""

RATES = (1_000, 384_000)
"""Lowest and highest rate of sound that readers accept, in Hz."""

MAX_VALUES = 200_000_000
"""Samples times channels that readers of sound accept unless told otherwise: 35 minutes of stereo at 48 kHz."""

HEADER = 4096
"""Bytes before the arrays in what it writes; they hold a description of them as JSON."""

_MEMORY = 4 << 30  # bytes of address space; frames do not gather there but in a file
_STAMPS = 10_000  # pictures whose time stamps decide whether the rate varies


def sound_within(samples: np.ndarray) -> np.ndarray:
    """float32 samples, those beyond -1 and 1 clipped as a player does; ValueError if they are no sound at all."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak <= 10:  # lossy codecs overshoot by a little, integers stored as floats by far; NaN fails too
        raise ValueError(f"samples up to {peak:g}, expected -1 to 1")
    return np.clip(samples, -1, 1, out=samples) if peak > 1 else samples


def check_sound(channels: int, rate: int) -> None:
    """Raise a ValueError unless sound of so many channels and such a rate is read here."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{channels} channels of sound, expected 1 to {MAX_CHANNELS}")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"sound at {rate} Hz, expected {RATES[0]} to {RATES[1]}")


class _UnreadableError(ValueError):
    """A complaint about the file that is fit for the user."""


def _serve() -> None:
    """Do the job named on the command line; leave a header and arrays in the file that is standard output."""
    job = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print must not come between the pixels
        out.write(bytes(HEADER))
        try:
            _limit(job["seconds"], job["size"])
            with open(job["path"], "rb") as file:
                found = _film(file, job, out) if job["what"] == "film" else _whole_sound(file, job, out)
        except _UnreadableError as error:
            found = {"error": str(error)}
        except MemoryError:
            found = {"error": "needs more memory to decode than a film may"}
        except Exception as error:  # the parent must get a line, whatever it is
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            found = {"error": f"cannot be decoded: {' '.join(reason.split())[:200]}"}
        out.seek(0)
        out.write(json.dumps(found).encode()[:HEADER])


def _limit(seconds: float, size: int) -> None:
    """Bound memory, processor time and file size, where the system can; no core files."""
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
        except (ValueError, OSError):  # a lower limit is set already, or the system has none of this kind
            continue


def _container(file: BinaryIO) -> Any:
    """The opened container, from its beginning; only kinds that cannot lead to other files."""
    import av

    file.seek(0)
    try:
        return av.open(file, container_options={"format_whitelist": ",".join(FORMATS)}, metadata_errors="ignore")
    except av.FFmpegError:
        names = "mp4, mov, mkv, webm, avi, mpeg, ts, flv, wmv, ogg, gif, m4a, mp3, aac, ac3, amr"
        raise _UnreadableError(f"damaged, or no film or sound of a kind that is read here ({names})") from None


def _stream(container: Any, kind: str) -> Any:
    """The first stream of a kind, cover pictures aside; None if there is none."""
    covers = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC
    streams = [s for s in container.streams if s.type == kind and not int(s.disposition) & covers]
    if streams and streams[0].codec_context is None:
        raise _UnreadableError(f"{kind} of a kind that is not decoded here")
    return streams[0] if streams else None


@dataclass(frozen=True)
class _Timing:
    rate: Fraction
    """Frames a second."""
    even: bool
    """Picture k is simply frame k: not so where the rate varies."""
    last: float
    """Time stamp of the last picture, in seconds."""


def _film(file: BinaryIO, job: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    """Write frames, then sound; what the parent must know of both."""
    _check_trailer(file)
    with _container(file) as container:
        stream = _stream(container, "video")
        if stream is None:
            raise _UnreadableError("sound without pictures" if _stream(container, "audio") else "no pictures")
        index, timing = stream.index, _timing(container, stream, whole=job["frames"] is None)
    with _container(file) as container:
        shape, began = _write_frames(container, container.streams[index], timing, job, out)
    found = {"fps": float(timing.rate), "arrays": [("uint8", shape)]}
    with _container(file) as container:
        stream = _stream(container, "audio")
        if stream is not None:
            samples = _film_sound(container, stream, began, job["start"] / timing.rate, shape[0] / timing.rate)
            out.write(bytes(-out.tell() % 16))
            out.write(samples.data)
            found |= {"rate": stream.rate, "arrays": [("uint8", shape), ("float32", samples.shape)]}
    return found


def _timing(container: Any, stream: Any, whole: bool) -> _Timing:
    """When pictures are shown, from the file's packets, without decoding; complains of a whole file cut short."""
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
    rate, even = _rate(stream, stamps)
    if whole:
        end = max(ends.get(stream.index, 0.0), last + float(1 / rate))  # packets may say nothing of their durations
        _check_end(_declared(container, stream), end, 0.75 / float(rate), "pictures")
        if _promises(container):
            _check_end((container.duration or 0) / 1e6, max(ends.values(), default=0.0), 0.2, "film")
    return _Timing(rate, even, last)


def _rate(stream: Any, stamps: list[tuple[int | None, int | None]]) -> tuple[Fraction, bool]:
    """Frames a second, and whether they are even, from the time stamps of display and of decoding of some pictures.

    An AVI has only those of decoding; what headers say of the rate is often wrong.
    """
    declared = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= 240]
    simplest = sorted(declared, key=lambda rate: rate.denominator)  # 17 rather than 16.9999999
    stamped = False
    for given in zip(*stamps, strict=True):
        if len(given) < 2 or None in given:
            continue
        ordered = sorted(given)[: -32 if len(given) == _STAMPS else None]  # those of display may stop at a gap
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
    """Write the frames asked for; their shape, and the time stamp of the film's first picture in seconds."""
    start, wanted = job["start"], job["frames"]
    limit = _frame_limit(stream, job)
    if (wanted or (stream.frames - start if timing.even else 0)) > limit:
        raise _too_long(limit)
    context = stream.codec_context
    context.thread_count = 1
    # What is inside may be of another size than the header's. FFmpeg counts pixels with wide margins.
    context.options = {"max_pixels": str(2 * (context.width + 256) * (context.height + 256))}
    pictures = container.decode(stream)
    first = next(pictures, None)
    if first is None:
        raise _UnreadableError("no picture can be decoded")
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
        raise _UnreadableError(f"{end} frames, asked for {wanted or 'those'} from frame {start} on")
    return (count, *pixels.shape), began


def _frame_limit(stream: Any, job: dict[str, Any]) -> int:
    """Frames that may be read."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height == 0:  # FFmpeg's word for sizes that it takes for nonsense
        raise _UnreadableError("frames of no size, or of an impossible one")
    if width * height > job["max_pixels"]:
        raise _UnreadableError(
            f"frames of {width} x {height}, expected at most {job['max_pixels']:,} pixels in all of them"
        )
    return min(job["max_frames"], job["max_pixels"] // (width * height))


def _too_long(limit: int) -> _UnreadableError:
    return _UnreadableError(f"more frames of this size than the limit, {limit}: ask for some of them")


def _shown(pictures: Iterator[Any], began: float, timing: _Timing) -> Iterator[tuple[Any, int, int]]:
    """Each picture with the frame it is first shown at, and the frame that shows another."""
    held, place = None, 0
    for number, picture in enumerate(pictures):
        time = None if timing.even else picture.time
        here = number if time is None else round((time - began) * float(timing.rate))
        if here < place:  # its time is past
            continue
        if held is not None and here > place:
            yield held, place, here
        held, place = picture, here
    if held is not None:
        seconds = 0 if timing.even or not held.duration else held.duration * held.time_base
        yield held, place, place + max(1, round(seconds * timing.rate))


def _promises(container: Any) -> bool:
    """Return whether this kind of file declares its length at its beginning; others guess it from their size."""
    return container.format.name.split(",")[0] in ("mov", "matroska", "avi", "flv", "asf")


def _declared(container: Any, stream: Any) -> float:
    """Seconds that the file promises of a stream; 0 if it does not."""
    if not _promises(container):
        return 0.0
    if container.format.name == "avi" and stream.type == "video":  # its duration is guessed anew for a file cut short
        return float(stream.frames * stream.time_base)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else 0.0


def _check_end(declared: float, end: float, slack: float, what: str) -> None:
    """Complain if something ends before the file says."""
    if declared - end > slack:
        raise _UnreadableError(f"cut short or damaged: {end:.2f} of {declared:.2f} seconds of {what}")


def _counts_frames(file: BinaryIO) -> bool:
    """Return whether an MP3 begins with the count of its frames; else its duration is guessed from its size."""
    file.seek(0)
    start = file.read(1 << 18)
    return b"Xing" in start or b"Info" in start


def _check_trailer(file: BinaryIO) -> None:
    """Complain of a GIF without its last byte: it does not say how long it is."""
    file.seek(0)
    if file.read(3) == b"GIF":
        file.seek(-min(1024, os.fstat(file.fileno()).st_size), os.SEEK_END)
        if not file.read().rstrip(b"\0\r\n").endswith(b";"):
            raise _UnreadableError("cut short: a GIF without its end")


def _pixels(picture: Any) -> np.ndarray:
    """uint8 [H, W, 3], upright as the file's display matrix says."""
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


def _film_sound(container: Any, stream: Any, began: float, start: Fraction, length: Fraction) -> np.ndarray:
    """float32 [n, channels] of `length` seconds from `start`, counted from time stamp `began`; silence in gaps."""
    channels, hertz = stream.channels, stream.rate
    check_sound(channels, hertz)
    begin = round(start * hertz)
    count = round((start + length) * hertz) - begin
    if count * channels > MAX_VALUES:
        raise _UnreadableError(f"{count} samples of {channels} channels, expected at most {MAX_VALUES:,} in all")
    samples = np.zeros((count, channels), np.float32)
    end = first = None
    for frame, block in _blocks(container, stream):
        place = end if frame.time is None else round((frame.time - began) * hertz) - begin
        # Time stamps are rounded: blocks are set end to end unless they are 20 ms apart.
        place = end if end is not None and abs((place or 0) - end) * 50 < hertz else place or 0
        first = place if first is None else first
        end = place + len(block)
        samples[max(place, 0) : max(end, 0)] = block[max(-place, 0) :][: max(count - max(place, 0), 0)]
        if end >= count:
            break
    else:
        if end is None:
            raise _UnreadableError("its sound cannot be decoded")
        seconds = max(end - (first or 0), end + begin) / hertz
        _check_end(_declared(container, stream), seconds, 0.2, "sound")
    return samples


def _whole_sound(file: BinaryIO, job: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    """Write all sound; what the parent must know of it."""
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
    """Decoded frames of sound, each with its float32 [n, channels] from -1 to 1."""
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
    """Decoded frames; a first packet without its beginning is passed over, as films cut from longer ones have it."""
    import av

    found = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if found:
                raise
            continue
        found = found or bool(frames)
        yield from frames


if __name__ == "__main__":
    _serve()
