"""Small files that need a lot of work are refused before it, or read within limits; large honest files are read."""

import ctypes
import gzip
import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.data.arrays import read_arrays
from perceivers.data.formats.documents import Documents
from perceivers.data.published.audioset_clips import label_names, segments
from perceivers.data.published.glue_tables import LAYOUTS, read_examples
from perceivers.data.published.idx import read_idx
from perceivers.data.published.kinetics_clips import listed
from perceivers.media import numpy_files
from perceivers.media.audio_files import read_audio, write_audio
from perceivers.media.image_files import image_size, read_image
from perceivers.media.png16 import read_png16, write_png16
from perceivers.modalities.table_cells import Files, array_file
from perceivers.modalities.tokenizers import FileTokenizer
from test_media_image import png

Read = Callable[[Path], object]


def peak() -> int:
    """Return the peak resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


class Budget:
    """Context that checks the memory of its block, and its CPU time against a generous ten seconds."""

    def __init__(self, bytes_: int = 64 * 2**20) -> None:
        self.bytes = bytes_

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident size
        self.before, self.started = peak(), time.process_time()

    def __exit__(self, *error: object) -> None:
        assert time.process_time() - self.started < 10
        assert peak() - self.before <= self.bytes


def refused(read: Read, path: Path, match: str, bytes_: int = 64 * 2**20) -> None:
    with Budget(bytes_), pytest.raises(ValueError, match=match) as error:
        read(path)
    line = str(error.value)
    assert line.startswith(str(path))
    assert line.isprintable()
    assert len(line) < 1000


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npy(shape: tuple[int, ...], content: bytes = b"", descr: object = "<f8") -> bytes:
    """Return a .npy file with an arbitrary header."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def npz(*members: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


# Pictures.


@pytest.mark.parametrize("size", [(2_000_003, 1), (1, 2_000_003)])
@pytest.mark.parametrize("channels", [1, 3])
def test_narrow_pictures_of_16_bits_are_read_in_seconds(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    """An earlier version took a step per line, 50,000,000 of them."""
    width, height = size
    lines = bytes(height * (1 + width * 2 * channels))
    path = written(tmp_path / "a.png", png(width, height, 16, 0 if channels == 1 else 2, lines))
    with Budget(2**31):
        assert not read_png16(path).any()
        assert read_image(path).shape == (height, width, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_16_bits_take_three_times_their_memory(channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (1201, 1213, channels), np.uint16)
    path = write_png16(tmp_path / "a.png", values)
    for read in (read_png16, read_image):
        read(path)  # memory that the allocator keeps is not counted below
        with Budget(3 * read(path).nbytes):
            read(path)
    assert np.array_equal(read_png16(path), values)


PICTURES = {
    "rgb.png": ("RGB", {}),
    "grey-alpha.png": ("LA", {}),
    "palette.png": ("P", {"transparency": 3}),
    "palette.gif": ("P", {"transparency": 3}),
    "cmyk.jpg": ("CMYK", {}),
    "turned.jpg": ("RGB", {"exif": {0x112: 6}}),
    "alpha.webp": ("RGBA", {"lossless": True}),
    "plain.webp": ("RGB", {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_take_few_times_their_memory(name: str, tmp_path: Path) -> None:
    """The pixels equal those that Pillow returns when it loads the whole picture."""
    (mode, settings), (width, height) = PICTURES[name], (2503, 1901)
    values = np.random.default_rng(0).integers(0, 256, (height // 50, width // 50, len(mode)), np.uint8)
    picture = Image.fromarray(values.squeeze(), mode).resize((width, height), Image.Resampling.NEAREST)
    if "exif" in settings:
        exif = Image.Exif()
        exif.update(settings["exif"])
        settings = {"exif": exif}
    picture.save(path := tmp_path / name, **settings)
    with Image.open(path) as whole:
        white = Image.new("RGBA", whole.size, "white")
        over = Image.alpha_composite(white, whole.convert("RGBA")) if whole.has_transparency_data else whole
        expected = np.array(over.convert("RGB"))
    expected = np.rot90(expected, -1) if "exif" in settings else expected
    del whole, white, over
    assert np.array_equal(read_image(path), expected)
    ctypes.CDLL(None).malloc_trim(0)  # otherwise, freed memory that malloc keeps would hide growth
    with Budget((6 if name.endswith("webp") else 3) * expected.nbytes):  # libwebp itself takes five times
        read_image(path)


def in_a_jpeg(path: Path, segments: bytes) -> Path:
    out = io.BytesIO()
    Image.new("RGB", (53, 37)).save(out, "JPEG")
    return written(path, b"\xff\xd8" + segments + out.getvalue()[2:])


def test_pictures_with_headers_in_many_pieces(tmp_path: Path) -> None:
    """For each piece, Pillow would copy all previous ones."""
    exif = b"\xff\xe1" + struct.pack(">H", 508) + b"Exif\0\0" + b"M" * 500
    refused(read_image, in_a_jpeg(tmp_path / "a.jpg", exif * 40_000), "many pieces")
    out = io.BytesIO()
    Image.new("L", (3, 2)).save(out, "GIF")
    good = out.getvalue()
    start = 13 + 3 * (2 << (good[10] & 7))  # after the colour table
    for comments in (b"!\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0", b"!\xfe\1c\0" * 400_000):
        refused(read_image, written(tmp_path / "a.gif", good[:start] + comments + good[start:]), "many pieces")
    large = b"\xff\xe1" + struct.pack(">H", 65_002) + b"http://ns.adobe.com/xap/1.0/\0" + bytes(64_971)
    assert read_image(in_a_jpeg(tmp_path / "b.jpg", large * 50)).shape == (37, 53, 3)


@pytest.mark.parametrize("place", ["jpeg", "before", "behind"])
def test_exif_of_entries_that_overlap(place: str, tmp_path: Path) -> None:
    """Pillow would turn 200 kB into three gigabytes."""
    entries = b"".join(struct.pack(">HHII", number, 7, 60_000, 0) for number in range(5000))
    exif = b"MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + entries
    if place == "jpeg":
        path = in_a_jpeg(tmp_path / "a.jpg", b"\xff\xe1" + struct.pack(">H", 60_018) + b"Exif\0\0" + exif)
    else:
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        good = png(3, 2, 8, 2, bytes(20))
        start = good.index(b"IDAT") - 4 if place == "before" else good.index(b"IEND") - 4
        path = written(tmp_path / "a.png", good[:start] + chunk + good[start:])
    for read in (read_image, image_size):
        refused(read, path, "overlap")


def test_rows_of_16_bits_that_pillow_cannot_count(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", png(49_999_999, 1, 16, 6, bytes(99)))
    refused(read_png16, path, "rows of 49,999,999 pixels")
    refused(read_image, path, "rows of 49,999,999 pixels")


def test_a_png_of_a_million_chunks(tmp_path: Path) -> None:
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    path = written(tmp_path / "a.png", png(3, 2, 16, 0, bytes(14), extra=empty * 1_000_003))
    refused(read_png16, path, "chunks")


@pytest.mark.parametrize("size", [(49_999_999, 1), (1, 49_999_999)])
def test_run_lengths_that_jump_far(size: tuple[int, int], tmp_path: Path) -> None:
    """Two bytes can skip 255 lines, 13 GB if the lines are long, and Pillow fills each pixel in a loop."""
    palette, pixels = bytes(1024), b"\0\2\0\xff" + b"\0\0" + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = struct.pack("<2sIHHI", b"BM", 1078 + len(pixels), 0, 0, 1078)
    refused(read_image, written(tmp_path / "a.bmp", start + header + palette + pixels), "run lengths")


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_of_many_scans(kind: str, tmp_path: Path) -> None:
    """Each scan of 75 bytes would be decoded over all pixels."""
    out = io.BytesIO()
    second = {"save_all": True, "append_images": [Image.new("L", (5, 7))]} if kind == "MPO" else {}
    Image.new("L", (4001, 4003)).save(out, kind, progressive=True, **second)
    good = out.getvalue()
    end = good.find(b"\xff\xd9")
    last = good.rfind(b"\xff\xda", 0, end)
    assert read_image(written(tmp_path / "a.jpg", good + good[last:end] * 999)).shape == (4003, 4001, 3)
    refused(read_image, written(tmp_path / "b.jpg", good[:end] + good[last:end] * 999 + good[end:]), "scans")


def test_a_jpeg_of_many_segments(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("RGB", (53, 37)).save(out, "JPEG")
    path = written(tmp_path / "a.jpg", b"\xff\xd8" + b"\xff\xee\0\2" * 10**6 + out.getvalue()[2:])
    refused(read_image, path, "a JPEG of more than 50,000 segments")


@pytest.mark.parametrize("order", "<>")
def test_texts_of_no_characters(order: str, tmp_path: Path) -> None:
    """Python raised a SystemError for such text."""
    codes = np.array([[65, 66], [67, 2**31]], f"{order}u4")
    path = written(tmp_path / "a.npz", npz(("a.npy", npy((2,), codes.tobytes(), f"{order}U2"))))
    refused(lambda path: list(read_arrays(str(path))), path, "no character")
    np.savez(path, a=np.array(["ab", "\U0010ffff"], f"{order}U2"))
    assert [record["a"] for record in read_arrays(str(path))] == ["ab", "\U0010ffff"]


def test_sound_that_announces_more_than_is_read(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", np.zeros((2003, 2), np.float32), 8000)
    refused(lambda path: read_audio(path, max_values=4005), path, "announces 2,003 samples of 2 channels")
    assert read_audio(path, max_values=4006)[0].shape == (2003, 2)


# Arrays.


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy((10**12,), bytes(80)), "holds 80"),
        (npy((10**9, 10**9, 10**9)), "holds 0"),
        (npy((3,), bytes(16)), "holds 16"),
        (npy((3,), bytes(32)), "holds 32"),
        (npy((-3,)), "npy file"),
        (npy((2,), bytes(2**4), "|O"), "plain numbers"),
        (npy((2,), bytes(16), [("a", "<f8")]), "plain numbers"),
        (npy((0,), b"", "<U536870911"), "plain numbers"),
        (npy((2**40,), b"", "<U0"), "plain numbers"),
        (npy((1,), b"\0" * 12, "<U3"), "expected numbers"),
        (b"\x93NUMPY\1\0" + struct.pack("<H", 60_000) + b"(" * 60_000, "npy file"),
        (b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{", "npy file"),
    ],
)
def test_arrays_that_announce_other_than_they_hold(content: bytes, match: str, tmp_path: Path) -> None:
    refused(array_file, written(tmp_path / "a.npy", content), match)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|u1", "<c8", "|b1", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 5)])
def test_arrays_are_read_as_numpy_reads_them(dtype: str, order: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    found = array_file(tmp_path / "a.npy")
    assert np.array_equal(found, array)
    assert found.flags.writeable
    assert (found.dtype, found.flags.f_contiguous) == (array.dtype, array.flags.f_contiguous)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    assert np.array_equal(numpy_files.read_npz(tmp_path / "a.npz")["x"], array)


def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=-15)
    piece = bytes(2**20)
    packed = b"".join([*(packer.compress(piece) for _ in range(270)), packer.flush()])
    good = npz(("x.npy", b"x" * 99))
    bomb = good.replace(good[35 : good.index(b"PK\1\2")], packed)
    central, size = bomb.index(b"PK\1\2"), struct.pack("<II", len(packed), 270 * 2**20)
    bomb = bomb[: central + 20] + size + bomb[central + 28 :]
    bomb = bomb[:-6] + struct.pack("<I", central) + bomb[-2:]
    refused(lambda path: read_arrays(str(path)), written(tmp_path / "a.npz", bomb), "unpacks to 283,115,520 bytes")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npz(("x.npy", npy((10**10,), bytes(99)))), "holds 99"),
        (npz(("x.npy", npy((2**40, 0)))), "holds nothing"),
        (npz(("x.txt", b"words")), "not an array"),
        (npz(("x.npy", npy((1,), bytes(8))), kind=zipfile.ZIP_LZMA), "packed in a way"),
        (
            npz(("x.npy", npy((1,), bytes(8))), kind=zipfile.ZIP_STORED)[:-10] + b"\xff" * 4 + bytes(6),
            "list of its arrays",
        ),
        (npz(*((f"{number}.npy", b"") for number in range(10_001))), "10,001 arrays"),
    ],
)
def test_archives_that_are_not_what_they_say(content: bytes, match: str, tmp_path: Path) -> None:
    refused(lambda path: read_arrays(str(path)), written(tmp_path / "a.npz", content), match)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    content = npz(("x.npy", npy((1,), bytes(8))), ("x.npy", npy((2,), bytes(16))))
    refused(lambda path: read_arrays(str(path)), written(tmp_path / "a.npz", content), "one name")


def test_arrays_in_archives_that_overlap(tmp_path: Path) -> None:
    good = npz(("x.npy", npy((999,), bytes(7992))), kind=zipfile.ZIP_STORED)
    start = good.index(b"PK\1\2")
    entry = good[start : start + 46 + 5]
    entries = b"".join(entry[:46] + b"%d.npy" % number for number in range(9))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 9, 9, len(entries), start, 0)
    refused(lambda path: read_arrays(str(path)), written(tmp_path / "a.npz", good[:start] + entries + end), "overlap")


def test_safetensors_of_records_without_values(tmp_path: Path) -> None:
    """A trillion empty records would have been made, in endless time."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}).encode()
    path = written(tmp_path / "a.safetensors", struct.pack("<Q", len(header)) + header)
    refused(lambda path: read_arrays(str(path)), path, "holds nothing")


def test_many_small_records_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(50_000_021, bool))
    with Budget(3 * 50_000_021):
        records = read_arrays(str(tmp_path / "a.npz"))
        assert len(records) == 50_000_021
        assert records[7] == {"x": False}


# Packed files and lists.


def test_packed_idx_that_announces_what_it_has(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0\0\x08\2" + struct.pack(">II", 270, 2**20) + bytes(270 * 2**20), 9)
    refused(read_idx, written(tmp_path / "a.gz", bomb), "at most 268,435,456")
    refused(read_idx, written(tmp_path / "b", b"\0\0\x08\2" + struct.pack(">II", 2**20, 2**20)), "at most 12")
    refused(read_idx, written(tmp_path / "c", b"\0\0\x08\x21" + b"\0\0\0\1" * 33 + b"x"), "not an IDX file")


def test_packed_text_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt.gz", gzip.compress(bytes(2**20)) * 300)
    with Budget(2**30), pytest.raises(ValueError, match="unpacks to more than 268,435,456"):
        Documents(str(tmp_path))[0]
    path.write_bytes(gzip.compress(b"some words " * 99)[:-20])
    with pytest.raises(ValueError, match=r"a\.txt\.gz: cannot be read"):
        Documents(str(tmp_path))[0]


def test_packed_lines_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    """The whole line would have been loaded before a document in it is refused."""
    path = written(tmp_path / "a.jsonl.gz", gzip.compress(bytes(2**20)) * 300)
    refused(lambda _: Documents(str(tmp_path)), path, "a line of more than 134,217,728 bytes", 2**29)
    written(path, gzip.compress(b'{"text": "%s"}\n' % bytes(2**20)) * 300)
    refused(lambda _: Documents(str(tmp_path)), path, "unpacks to more than 268,435,456")


def test_lines_that_nest_without_end(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", b'{"text": ' + b"[" * 200_000)
    with pytest.raises(ValueError, match="each line must be an object"):
        Documents(str(tmp_path))[0]


@pytest.mark.parametrize(
    ("read", "content", "match"),
    [
        (listed, "label,youtube_id,time_start,time_end\nrun,a,b,3\n", r":2: 'b' is not a whole number"),
        (listed, "label,youtube_id,time_start,time_end\nrun,a\n", r":2: 2 cells, expected the 4 of line 1"),
        (listed, f"label,youtube_id,time_start,time_end\nrun,a,{'9' * 5000},3\n", r":2: .* is not a whole number"),
        (listed, "label,youtube_id,time_start,time_end\n" + "x" * 200_000, "a line of more than 100,000"),
        (segments, "\0,1,2,3\n", r":1: not YTID"),
        (segments, "x" * 200_000, "a line of more than 100,000"),
        (label_names, "index,mid,display_name\nx,/m/a,Dog\n", r":2: 'x' is not a whole number"),
        (label_names, "index,mid,display_name\n1,/m/a\n", r":2: 2 cells"),
    ],
)
def test_lists_name_the_line_that_is_wrong(read: Read, content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    refused(lambda path: list(read(path)), path, match)


@pytest.mark.parametrize(
    ("task", "line", "match"),
    [
        ("sts", "nan\ta\tb", "'nan' is no target"),
        ("sts", "inf\ta\tb", "'inf' is no target"),
        ("sst_2", f"good\t{'9' * 5000}", "is no target"),
        ("vader", f"{'9' * 5000}_3\t1.5\tgood", "must begin with the number"),
    ],
)
def test_targets_that_are_no_numbers(task: str, line: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"{line}\n")
    refused(lambda path: list(read_examples(path, task, LAYOUTS[task][-1], False)), path, match)


def test_a_tokenizer_with_an_id_of_four_billion(tmp_path: Path) -> None:
    """A model would have an embedding for each smaller id."""
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 2**32 - 1}, "unk_token": "a"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    with Budget(), pytest.raises(ValueError, match="has an id of 4,294,967,295"):
        FileTokenizer(str(path))


def token_file(path: Path, **parts: object) -> Path:
    model = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}))
    return path


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def replaced(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [replaced({"String": "a"}, "aa")] * 26}}, "times as long"),
        ({"normalizer": replaced({"String": "a"}, "b" * 10**6)}, "times as long"),
        ({"decoder": replaced({"String": "a"}, "b" * 10**6)}, "times as long"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 26}}, "times as long"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 101}}, "101 steps"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**5}}, "100,000 characters"),
        ({"normalizer": replaced({"Regex": "(a|aa)+$"}, "")}, "regular expression"),
        ({"pre_tokenizer": split("(a*)*\\1c")}, "regular expression"),
        ({"pre_tokenizer": split("[^()]*a*a*a*b")}, "regular expression"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAA"}}, "damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "damaged|library"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "damaged|library"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"], "unk_token": "a"}}, "damaged|library"),
        ({"model": {"type": "WordLevel", "vocab": {"a" * 10_001: 0}, "unk_token": "a"}}, "a piece of more than 10,000"),
    ],
)
def test_tokenizers_that_would_never_end(
    parts: dict[str, object], match: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Such files took gigabytes or hours, ended the process, or printed a Rust panic."""
    path = token_file(tmp_path / "tokenizer.json", **parts)
    with Budget(), pytest.raises(ValueError, match=match) as error:
        FileTokenizer(str(path))
    assert str(error.value).isprintable()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "max_input_chars_per_word": 100},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "z"},
    ],
)
def test_texts_that_a_tokenizer_does_not_know(model: dict[str, object], tmp_path: Path) -> None:
    if model["type"] == "WordPiece":
        model["continuing_subword_prefix"] = "##"
    tokenizer = FileTokenizer(str(token_file(tmp_path / "tokenizer.json", model=model)))
    assert tokenizer.encode("a").tolist() == [0]
    with pytest.raises(ValueError, match=r"tokenizer\.json' cannot encode a text: ") as error:
        tokenizer.encode("word")
    assert str(error.value).isprintable()


PUBLISHED = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "bloom": r" ?[^(\s|[.,!?\u2026\u3002])]+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]+[\p{Ll}]*(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_published_tokenizers_are_read(name: str, tmp_path: Path) -> None:
    spaces = {"type": "Sequence", "normalizers": [replaced({"Regex": " {2,}"}, "\u2581"), {"type": "NFKC"}]}
    steps = {"type": "Sequence", "pretokenizers": [split(PUBLISHED[name]), BYTE_LEVEL]}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    path = token_file(
        tmp_path / "tokenizer.json",
        normalizer=spaces,
        pre_tokenizer=steps,
        decoder=BYTE_LEVEL,
        model=model,
    )
    assert FileTokenizer(str(path)).encode("ab").tolist() == [2]


# Files that cells name.


@pytest.mark.parametrize("name", [7, b"a.png", "a." + "x" * 5000, "a.\0", "a.p/ng", None])
def test_a_cell_with_content_may_have_any_name(name: object) -> None:
    with Files(Path(".")).file({"bytes": b"content", "path": name}) as path:
        assert path.read_bytes() == b"content"


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for text in ("x" * 5000, "a\0b", "loop", "../\x1b[31m", "/etc/" + "x" * 3000, "\x1b[31m"):
        with pytest.raises(ValueError, match=": ") as error:
            array_file(Files(tmp_path).path(text))
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1000
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="not a file"):
        array_file(Files(tmp_path).path("a.npy"))
