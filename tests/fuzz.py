"""A fuzzer for every reader: valid files with a few changes, and a process with limits that reads them.

A case passes if its file is read, or refused with a `ValueError` of one printable line, within limits of time and
memory. `READERS` is the table: a name, a function that writes a valid file, a function that reads one. A case depends
on its seed alone; `python tests/fuzz.py NAME SEED` makes it again and reads it in this process. (Ogg is an exception,
since its writer numbers a stream at random: there, keep the file that failed.)
"""

import argparse
import gzip
import inspect
import io
import json
import os
import re
import resource
import select
import signal
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS = 10
"""CPU seconds that a case may take."""

PATIENCE = 30
"""Seconds after which a case counts as one that never ends, on however busy a machine."""

MEMORY = 512 * 2**20
"""Bytes that a case may take beyond what the process has after it has read the valid file."""

LONGEST_COMPLAINT = 1000
"""Longest error message in bytes."""

Mutate = Callable[[bytes], bytes]
Within = Callable[[bytes, Mutate, np.random.Generator], bytes]
"""Changes the content of a file behind checksums, lengths or compression, and then corrects these."""


@dataclass(frozen=True)
class Reader:
    """A reader of one type of file."""

    name: str
    file: str
    """Name of the file that is changed; other files of its folder stay as they are."""
    write: Callable[[Path], object]
    """Writes a valid file, and the files that it needs."""
    read: Callable[[Path], object]
    within: Within | None = None


@dataclass(frozen=True)
class Failure:
    """A case that did not pass."""

    reader: str
    seed: int
    reason: str
    file: Path
    """The file that was read."""

    def __str__(self) -> str:
        return f"{self.reader}, seed {self.seed}: {self.reason}; the file: {self.file}"


EXTREMES = [0, 1, 2, 127, 128, 255, 256, 32767, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"9" * 400, b"true", b"null", b"''", b"[]", b"{}"]
PIECES = [*(b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[31m", b"[" * 2000, b"{" * 2000), *map(str.encode, "\"',\n\t")]


def case(reader: Reader, good: bytes, seed: int) -> bytes:
    """Return the changed file of a seed; every second one is changed behind its checksums, if the reader has such."""
    rng = np.random.default_rng((zlib.crc32(reader.name.encode()), seed))

    def mutate(data: bytes) -> bytes:
        return mutated(data, rng)

    if reader.within is not None and seed % 2:
        return reader.within(good, mutate, rng)
    return mutate(good)


def mutated(good: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with one to three changes: changed bits or numbers, pieces inserted or removed, an end cut off."""
    data = bytearray(good)
    for _ in range(int(rng.integers(1, 4))):
        if data:
            CHANGES[int(rng.integers(len(CHANGES)))](data, _place(len(data), rng), rng)
    return bytes(data)


def _place(length: int, rng: np.random.Generator) -> int:
    """Return a position in a file; half of them are near its beginning or its end, where headers are."""
    where, near = int(rng.integers(4)), min(length, 200)
    return (
        int(rng.integers(near))
        if where == 0
        else length - 1 - int(rng.integers(near))
        if where == 1
        else int(rng.integers(length))
    )


def _bits(data: bytearray, place: int, rng: np.random.Generator) -> None:
    data[place] ^= 1 << int(rng.integers(8))


def _value(data: bytearray, place: int, rng: np.random.Generator) -> None:
    size = int(rng.choice([1, 2, 4, 8]))
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] % (1 << 8 * size)
    data[place : place + size] = value.to_bytes(size, "little" if rng.integers(2) else "big")


def _number(data: bytearray, place: int, rng: np.random.Generator) -> None:
    found = re.compile(rb"-?\d+(\.\d+)?").search(data, place)
    if found:
        data[found.start() : found.end()] = NUMBERS[int(rng.integers(len(NUMBERS)))]


def _piece(data: bytearray, place: int, rng: np.random.Generator) -> None:
    data[place:place] = PIECES[int(rng.integers(len(PIECES)))]


def _noise(data: bytearray, place: int, rng: np.random.Generator) -> None:
    size = int(rng.integers(1, 40))
    data[place : place + size] = rng.bytes(size)


def _left_out(data: bytearray, place: int, rng: np.random.Generator) -> None:
    del data[place : place + int(rng.integers(1, 1 << int(rng.integers(1, 12))))]


def _repeated(data: bytearray, place: int, rng: np.random.Generator) -> None:
    piece = bytes(data[place : place + int(rng.integers(1, 100))])
    data[place:place] = piece * int(rng.choice([1, 2, 1000]))


def _moved(data: bytearray, place: int, rng: np.random.Generator) -> None:
    other, size = _place(len(data), rng), int(rng.integers(1, 200))
    data[place:place] = data[other : other + size]


def _cut(data: bytearray, place: int, rng: np.random.Generator) -> None:
    del data[place:]


CHANGES = (_bits, _bits, _value, _value, _value, _number, _piece, _noise, _left_out, _repeated, _moved, _cut)


Cases = Mapping[int, Callable[[Path], object]]
"""Writers of the file of each case, by seed."""


def fuzz(reader: Reader, seeds: Sequence[int], folder: Path) -> list[Failure]:
    """Read the cases of these seeds and return the failures."""
    good = valid(reader, folder)
    return failures(
        reader, {seed: lambda path, seed=seed: path.write_bytes(case(reader, good, seed)) for seed in seeds}, folder
    )


def odd_files(reader: Reader, folder: Path) -> list[Failure]:
    """Read what is no valid file: a pipe without a writer, an endless device, a folder, an empty file, no file."""
    valid(reader, folder)
    makers = (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, Path.touch, lambda path: None)
    return failures(reader, dict(enumerate(makers)), folder)


def valid(reader: Reader, folder: Path) -> bytes:
    """Write the reader's valid file and return its content."""
    path = folder / "valid" / reader.file
    path.parent.mkdir(parents=True)
    reader.write(path)
    return path.read_bytes()


def failures(reader: Reader, cases: Cases, folder: Path) -> list[Failure]:
    """Read the cases in a forked process, which is forked again after each case that fails; return the failures."""
    path, found, left = folder / "valid" / reader.file, [], dict(cases)
    while left and (failed := _watched(reader, left, path)):
        seed, reason = failed
        if seed not in left:
            raise ValueError(f"{reader.name}: the valid file is not read: {reason}")
        kept = folder / f"{reader.name}-{seed}-{path.name}"
        left[seed](kept)
        found.append(Failure(reader.name, seed, reason, kept))
        left = {later: make for later, make in left.items() if later > seed}
    return found


def _watched(reader: Reader, cases: Cases, path: Path) -> tuple[int, str] | None:
    """Return the first case that fails and the reason, or None if all pass."""
    # Fork the worker, which reads the cases.
    source, sink = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    worker = os.fork()
    if worker == 0:
        os.close(source)
        _work(reader, cases, path, sink)
    os.close(sink)
    # Follow its reports until a case fails, or it ends.
    seed, buffer, status = -1, b"", 0
    try:
        while True:
            if not select.select([source], [], [], PATIENCE)[0]:
                return seed, f"not read within {PATIENCE} seconds"
            told = os.read(source, 1 << 16)
            *lines, buffer = (buffer + told).split(b"\n")
            for line in lines:
                seed, reason = json.loads(line)
                if reason:
                    return seed, reason
            if not told:
                _, status = os.waitpid(worker, 0)
                worker = 0
                return (seed, f"the process died with status {status}") if status else None
    finally:
        os.close(source)
        if worker:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def _work(reader: Reader, cases: Cases, path: Path, sink: int) -> None:
    """Read the valid file, then the cases, in the forked process; report each case before it is read, and any fault."""

    def tell(seed: int, reason: str = "") -> None:
        os.write(sink, json.dumps([seed, reason]).encode() + b"\n")

    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.environ["XDG_CACHE_HOME"] = str(path.parent.parent / "cache")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _remove(path)
        reader.write(path)
        reader.read(path)
        # A backstop, far above the limit of a case: it ends a case that would take all memory.
        _limit(resource.RLIMIT_AS, _status("VmSize") + 8 * MEMORY)
        for seed, make in cases.items():
            tell(seed)
            _remove(path)
            make(path)
            reason = complaint(reader, path)
            if reason:
                tell(seed, reason)
                break
        os._exit(0)
    except BaseException as error:  # the forked process must not return to pytest
        tell(-1, f"{type(error).__name__}: {error}")
        os._exit(1)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def complaint(reader: Reader, path: Path) -> str:
    """Return the fault in how a file is read, or an empty string."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident size
    idle, started, error = _status("VmHWM"), _seconds(), None
    _limit(resource.RLIMIT_CPU, int(time.process_time()) + SECONDS + 2)
    try:
        reader.read(path)
    except ValueError as found:
        error = str(found)
    except BaseException as found:
        return f"{type(found).__name__}: {found}"[:500]
    seconds, memory = _seconds() - started, _status("VmHWM") - idle
    if seconds > SECONDS:
        return f"took {seconds:.1f} seconds of the processor"
    if memory > MEMORY:
        return f"took {memory >> 20} MiB"
    if error is not None and (not error or not error.isprintable() or len(error.encode()) > LONGEST_COMPLAINT):
        return f"complains in other than one printable line of at most {LONGEST_COMPLAINT} bytes: {error[:300]!r}"
    return ""


def _limit(kind: int, value: int) -> None:
    """Limit a resource of this process, unless a stricter limit is in force."""
    most = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _seconds() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _status(name: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


# Changes behind checksums.


def png_chunks(data: bytes, mutate: Mutate, rng: np.random.Generator) -> bytes:
    """Change one chunk of a PNG; the pixels before they are compressed."""
    place, chunks = 8, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = int(rng.integers(len(chunks)))
    kind, content = chunks[chosen]
    changed = zlib.compress(mutate(zlib.decompress(content)), 1) if kind == b"IDAT" else mutate(content)
    chunks[chosen] = (kind, changed)
    packed = [len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks]
    return data[:8] + b"".join(packed)


def gzip_content(data: bytes, mutate: Mutate, rng: np.random.Generator) -> bytes:
    """Change the uncompressed content."""
    return gzip.compress(mutate(gzip.decompress(data)), 1, mtime=0)


def zip_members(data: bytes, mutate: Mutate, rng: np.random.Generator) -> bytes:
    """Change one member of an archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = int(rng.integers(len(old.infolist())))
        for number, member in enumerate(old.infolist()):
            content = old.read(member)
            kind = zipfile.ZIP_DEFLATED if rng.integers(2) else zipfile.ZIP_STORED
            without_time = zipfile.ZipInfo(member.filename)
            new.writestr(without_time, mutate(content) if number == chosen else content, kind)
    return out.getvalue()


def safetensors_header(data: bytes, mutate: Mutate, rng: np.random.Generator) -> bytes:
    """Change the header and correct its length."""
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate(data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def tar_headers(data: bytes, mutate: Mutate, rng: np.random.Generator) -> bytes:
    """Change one header and correct its checksum."""
    places = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    place = places[int(rng.integers(len(places)))]
    header = bytearray(mutate(data[place : place + 512])[:512].ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:place] + bytes(header) + data[place + 512 :]


# The table of readers.


def _photo(channels: int = 3) -> np.ndarray:
    down, right = np.mgrid[:37, :53]
    return np.stack([down * 6, right * 4, (down * right) % 256, 255 - down][:channels], axis=-1).astype(np.uint8)


def _sound() -> np.ndarray:
    return np.sin(np.arange(1600)[:, None] * np.array([0.1, 0.03])).astype(np.float32) / 2


def _picture(kind: str, colours: int = 0, **settings: object) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        from PIL import Image

        image = Image.fromarray(_photo())
        if colours:
            image = image.quantize(colours)
        image.save(path, kind, **settings)

    return write


def pictures() -> Iterator[Reader]:
    from perceivers.media.flow_files import read_flow, write_flow
    from perceivers.media.image_files import image_size, read_image
    from perceivers.media.off_files import read_off
    from perceivers.media.png16 import read_png16, write_png16

    def read(path: Path) -> None:
        image_size(path)
        read_image(path)

    def wide(channels: int) -> Callable[[Path], object]:
        return lambda path: write_png16(path, _photo(channels).astype(np.uint16) * 257)

    def flow(path: Path) -> None:
        write_flow(path, _photo(2).astype(np.float32))

    yield Reader("png", "a.png", _picture("PNG"), read, png_chunks)
    yield Reader("png-palette", "a.png", _picture("PNG", colours=7), read, png_chunks)
    yield Reader("jpeg", "a.jpg", _picture("JPEG"), read)
    yield Reader("jpeg-progressive", "a.jpg", _picture("JPEG", progressive=True), read)
    yield Reader("webp", "a.webp", _picture("WEBP"), read)
    yield Reader("webp-lossless", "a.webp", _picture("WEBP", lossless=True), read)
    yield Reader("bmp", "a.bmp", _picture("BMP"), read)
    yield Reader("bmp-runs", "a.bmp", _write_bmp_of_runs, read)
    yield Reader("gif", "a.gif", _picture("GIF"), read)
    yield Reader("png16", "a.png", wide(3), read, png_chunks)
    yield Reader("png16-grey", "a.png", wide(1), read_png16, png_chunks)
    yield Reader("png16-alpha", "a.png", wide(2), read, png_chunks)
    yield Reader("flo", "a.flo", flow, read_flow)
    yield Reader("kitti", "a.png", flow, read_flow, png_chunks)
    yield Reader("off", "a.off", lambda path: path.write_text(PYRAMID), read_off)


PYRAMID = "OFF\n5 5 0  # vertices, faces, edges\n0 0 1\n1 0 0\n0 1 0\n-1 0 0\n0 -1 0\n" + "".join(
    ["4 4 3 2 1 255 0 0\n", "3 0 1 2\n", "3 0 2 3\n", "3 0 3 4\n", "3 0 4 1\n"]
)


def _write_bmp_of_runs(path: Path) -> None:
    """Write a run-length coded picture of 13 x 7: a run, single pixels, a jump and a run in each line."""
    row = b"\5\1" + b"\0\3\1\2\3\0" + b"\0\2\1\0" + b"\4\2" + b"\0\0"
    pixels = row * 7 + b"\0\1"
    palette = bytes(range(256)) * 4
    header = struct.pack("<IiiHHIIiiII", 40, 13, 7, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    path.write_bytes(struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + palette + pixels)


def sounds() -> Iterator[Reader]:
    from perceivers.media.audio_files import read_audio

    def write(kind: str, subtype: str | None = None) -> Callable[[Path], object]:
        import soundfile

        return lambda path: soundfile.write(path, _sound(), 16_000, format=kind, subtype=subtype)

    for kind in ("wav", "flac", "ogg", "mp3", "aiff"):
        yield Reader(kind, f"a.{kind}", write(kind.upper()), read_audio)
    yield Reader("wav-float", "a.wav", write("WAV", "FLOAT"), read_audio)


def films() -> Iterator[Reader]:
    import av

    from perceivers.media.video_files import Clip, read_video, write_video

    frames = np.stack([np.roll(_photo()[:36, :52], 3 * number, axis=1) for number in range(7)])

    def film(path: Path) -> None:
        write_video(path, Clip(frames, 25.0, _sound()[:, :1], 16_000))

    def avi(path: Path) -> None:
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = 36, 52, "yuv420p"
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))

    yield Reader("mp4", "a.mp4", film, read_video)
    yield Reader("avi", "a.avi", avi, read_video)


def arrays() -> Iterator[Reader]:
    from safetensors.numpy import save_file

    from perceivers.data.arrays import read_arrays
    from perceivers.data.published.idx import read_idx
    from perceivers.modalities.table_cells import array_file

    held = {"x": np.arange(22.0).reshape(11, 2), "y": np.arange(11), "name": np.array([f"n{n}" for n in range(11)])}
    numbers = {name: array for name, array in held.items() if name != "name"}
    idx = b"\0\0\x08\3" + struct.pack(">III", 5, 7, 3) + bytes(105)

    def read(path: Path) -> None:
        records = read_arrays(str(path))
        for number in (0, len(records) // 2, len(records) - 1):
            records[number]

    yield Reader("npy", "a.npy", lambda path: np.save(path, held["x"]), array_file)
    yield Reader("npz", "a.npz", lambda path: np.savez(path, **held), read, zip_members)
    yield Reader("npz-packed", "a.npz", lambda path: np.savez_compressed(path, **held), read, zip_members)
    yield Reader("safetensors", "a.safetensors", lambda path: save_file(numbers, path), read, safetensors_header)
    yield Reader("idx", "a-ubyte", lambda path: path.write_bytes(idx), read_idx)
    yield Reader(
        "idx-packed", "a.gz", lambda path: path.write_bytes(gzip.compress(idx, mtime=0)), read_idx, gzip_content
    )


def tables() -> Iterator[Reader]:
    from perceivers.data.formats.readers import read_rows
    from perceivers.data.formats.writers import write_rows
    from perceivers.data.shards import open_shards
    from perceivers.data.table import Table

    rows = [
        {
            "height": number / 4,
            "colour": "red" if number % 2 else "blue",
            "day": f"2026-01-{number + 1:02d}",
            "note": "ü",
        }
        for number in range(12)
    ]

    def read(path: Path) -> None:
        for row in [*read_rows(path), *Table(str(path)).training()]:
            dict(row) if not row.error else None

    def read_shards(path: Path) -> None:
        records = inspect.unwrap(open_shards)(str(path))  # the tests' type checks would read a record
        for number in range(min(len(records), 20)):
            with suppress(ValueError):
                dict(records[number])

    def tar(path: Path) -> None:
        with tarfile.open(path, "w") as file:
            for number in range(5):
                for suffix, data in (("cls", b"1"), ("txt", b"words"), ("json", b'{"height": 2.5}')):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))

    def nested(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {"list": [["ab"] * number for number in range(12)], "text": ["ab" * number for number in range(12)]}
        columns |= {"parts": [{"text": "ab", "bytes": b"ab" * number} for number in range(12)]}
        encodings = {
            "use_dictionary": ["list.list.element", "parts.text"],
            "column_encoding": {"text": "DELTA_BYTE_ARRAY"},
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5, compression="zstd", **encodings)

    for kind in ("csv", "tsv", "jsonl", "parquet"):
        yield Reader(kind, f"a.{kind}", lambda path: write_rows(path, rows), read)
    yield Reader("parquet-shards", "a.parquet", lambda path: write_rows(path, rows), read_shards)
    yield Reader("parquet-nested", "a.parquet", nested, read)
    yield Reader("tar", "a.tar", tar, read_shards, tar_headers)


def texts() -> Iterator[Reader]:
    from perceivers.data.formats.documents import Documents
    from perceivers.data.published.audioset_clips import label_names, segments
    from perceivers.data.published.glue_tables import LAYOUTS, read_examples
    from perceivers.data.published.kinetics_clips import listed
    from perceivers.modalities.tokenizers import FileTokenizer, trained_tokenizer

    lines = b"".join(b'{"text": "some words %d", "url": "x"}\n' % number for number in range(9))
    sst = b"sentence\tlabel\n" + b"".join(b"a good film %d\t%d\n" % (number, number % 2) for number in range(9))
    sts = b"2.5\ta b\tc d\n4.0\te\tf\n"
    kinetics = b"label,youtube_id,time_start,time_end,split\n" + b"clapping,aaaaaaaaaaa,3,13,train\n" * 5
    segment = b"# head\n" + b'aaaaaaaaaaa, 30.000, 40.000, "/m/a,/m/b"\n' * 5
    labels = b'index,mid,display_name\n0,/m/a,"Speech"\n1,/m/b,"Dog, bark"\n'

    def written(content: bytes) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(content)

    def read_texts(path: Path) -> None:
        documents = Documents(str(path.parent))
        for number in range(min(len(documents), 20)):
            documents[number]

    def token_file(path: Path) -> None:
        path.write_text(trained_tokenizer(["some words of a text", "other words"] * 9, 40))

    def token_file_of_bytes(path: Path) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        built = Tokenizer(models.BPE({"s": 0, "o": 1, "so": 2, "[UNK]": 3}, [("s", "o")], unk_token="[UNK]"))
        built.normalizer = normalizers.Sequence([normalizers.Replace("m", "mm"), normalizers.NFKC()])
        words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\s+(?!\S)|\s+"), "isolated")
        built.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        built.decoder = decoders.ByteLevel()
        path.write_text(built.to_str())

    def read_tokens(path: Path) -> None:
        tokenizer = FileTokenizer(str(path))
        tokenizer.decode(tokenizer.encode("some words"))

    def read_glue(task: str, layout: int) -> Callable[[Path], object]:
        return lambda path: list(read_examples(path, task, LAYOUTS[task][layout], False))

    yield Reader("texts", "a.jsonl", written(lines), read_texts)
    yield Reader("texts-packed", "a.jsonl.gz", written(gzip.compress(lines, mtime=0)), read_texts, gzip_content)
    yield Reader("glue", "a.tsv", written(sst), read_glue("sst_2", 0))
    yield Reader("glue-sts", "a.tsv", written(sts), read_glue("sts", 1))
    yield Reader("kinetics", "a.csv", written(kinetics), lambda path: list(listed(path)))
    yield Reader("audioset", "a.csv", written(segment), lambda path: list(segments(path)))
    yield Reader("audioset-labels", "a.csv", written(labels), label_names)
    yield Reader("tokenizer", "tokenizer.json", token_file, read_tokens)
    yield Reader("tokenizer-bytes", "tokenizer.json", token_file_of_bytes, read_tokens)


RECIPE = b"""\
inputs:
  row: {kind: records, key: "*", tokens: field, max_records: 1, fields: {height: {kind: number}, when: {kind: date}}}
  curve: {kind: series, size: 16, patch: 4, channels: 2, positions: {kind: fourier, num_bands: 3}}
outputs:
  kind: {kind: label, classes: 5, weight: 0.5}
config: {latents: {num_latents: 8, channels: 16}, encoder: {num_heads: 2}, processor: {num_layers: 2, num_heads: 4}}
training: {num_steps: 10, batch_size: 4, optimiser: {kind: adamw, learning_rate: 0.001}}
data: {kind: table, file: mine.csv, stratify: kind}
"""


def models() -> Iterator[Reader]:
    import torch

    from perceivers import Config, Label, PerceiverIO, Schema, Vectors
    from perceivers.core.config import LatentsConfig
    from perceivers.core.resampler import Resampler, ResamplerConfig
    from perceivers.pretrained import foreign
    from perceivers.pretrained.model_folder import load_folder, load_model, save_model
    from perceivers.pretrained.unpickle import read_haiku
    from perceivers.runs.recipe import preset_of
    from perceivers.runs.results import read_scores
    from perceivers.runs.schema_file import read_schema_file
    from perceivers.training.checkpoints import read_state
    from perceivers.training.logging import read_log

    def model(path: Path) -> None:
        torch.manual_seed(0)
        schema = Schema({"x": Vectors(channels=3)}, {"y": Label(classes=5)})
        save_model(PerceiverIO(schema, Config(LatentsConfig(num_latents=7, channels=16))), path.parent)

    def checkpoint(path: Path) -> None:
        torch.save({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(5, dtype=torch.int64)}, path)

    def training(path: Path) -> None:
        weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.vocab": {"one": 0, "two": 1}}
        torch.save({"model": weights, "args": argparse.Namespace(betas=(0.9, 0.95)), "epoch": 3}, path)

    def resampler(path: Path) -> None:
        save_model(Resampler(ResamplerConfig(LatentsConfig(num_latents=7, channels=16)), 3), path.parent)

    def haiku(path: Path) -> None:
        import pickle

        path.write_bytes(pickle.dumps({"net/~/linear": {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(3)}}, 4))

    def read_recipe(path: Path) -> None:
        preset_of(read_schema_file(path)).build("meta")

    state = b'{"step": 10, "seconds": 2.5, "score": null, "scale": {}}\n'
    scores = b'{"held out": {"y": {"accuracy": 0.5, "loss": null}}}\n'
    log = b"".join(b'{"step": %d, "losses": {"y": 0.5}}\n' % step for step in range(9))
    yield Reader(
        "recipe",
        "a.yaml",
        lambda path: path.write_bytes(RECIPE),
        read_recipe,
    )
    yield Reader("model-description", "model.json", model, lambda path: load_model(path.parent))
    yield Reader("model-weights", "model.safetensors", model, lambda path: load_model(path.parent), safetensors_header)
    yield Reader("torch", "pytorch_model.bin", checkpoint, foreign.read_torch, zip_members)
    yield Reader("training", "a.ckpt", training, foreign.read_state, zip_members)
    yield Reader("resampler", "model.json", resampler, lambda path: load_folder(path.parent))
    yield Reader("haiku", "a.pystate", haiku, read_haiku)
    yield Reader("state", "state.json", lambda path: path.write_bytes(state), lambda path: read_state(path.parent))
    yield Reader("scores", "metrics.json", lambda path: path.write_bytes(scores), lambda path: read_scores(path.parent))
    yield Reader("log", "log.jsonl", lambda path: path.write_bytes(log), lambda path: read_log(path.parent))


def readers() -> list[Reader]:
    """Return the table of readers."""
    return [reader for part in (pictures, sounds, films, arrays, tables, texts, models) for reader in part()]


def main() -> None:
    """Read one case again in this process (NAME SEED), or many (NAME or all, FIRST LAST)."""
    import tempfile

    name, *numbers = sys.argv[1:]
    chosen = [reader for reader in readers() if name in (reader.name, "all")]
    for reader in chosen:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{reader.name}-"))
        if len(numbers) == 2:
            started = time.time()
            found = fuzz(reader, range(int(numbers[0]), int(numbers[1])), folder)
            print(f"{reader.name}: {len(found)} failures in {time.time() - started:.1f} s", flush=True)
            for failure in found:
                print(f"  {failure}", flush=True)
            continue
        path = folder / reader.file
        reader.write(path)
        path.write_bytes(case(reader, path.read_bytes(), int(numbers[0])))
        print(path, flush=True)
        print(reader.read(path))


if __name__ == "__main__":
    main()
