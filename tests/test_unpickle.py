"""Weights of other libraries: good files are read exactly, and hostile ones do nothing at all."""

import base64
import collections
import io
import itertools
import pickle
import struct
import sys
import types
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hostile import (
    archive,
    checkpoints,
    corpus,
    modules,
    program,
    state_dict,
    tensors_file,
    training_checkpoints,
    watch,
)
from perceivers.pretrained.foreign import read_torch
from perceivers.pretrained.unpickle import read_haiku
from reference_files import REFERENCE

PICKLES = sorted((REFERENCE / "pickles").glob("*.pystate"))

HAIKU = "haiku._src.data_structures"

# Written by dm-haiku 0.0.17 and jax 0.10.2: {"params", "state"} as FlatMappings, with jax arrays and a NumPy array.
OF_JAX = {
    2: b"c-noCOHRWu5Qd$k4{C7(E)X`UKwTo}iUk&3WR+dyItGU(PW*_Vi=u8?=q)%47lUz<iUkPE9@(RR=KIH6e-kDngiuX2Ee#ViUo}x`G>bB7X=<!)"
    b"m~AvS__m<-p4N3PAF)DEb_!*Z+v)4H$R(#*piSaI?wLK&m#zoZnyzuGIjdyXD(zCr3z=-ndL5;#(mX1g!sfr#Soxg{%d9U92--0y$~ZHaOLxI)"
    b"(1MrkBw#a_7izeV)#xoG9`Q-A@4IAnU4wj__#k|k9p2yKkOXb<l{#507I$B;+CY$99>gFyL&x>Gy@5D~J$DZmKIQ^Ac9Trp+?=jb2T+rPv9a03$"
    b"-sS4rAvj~=M3Rx7%jN)g&RYR9Nr_|PV|m0dq?7LFHVE5TjUbjH$Z56T534}L`xY%hE<KUTnjJ!K>_K!=j5~hInH(fryEWj$8pH$8~@X^5C",
    4: b"c-noBzfQw25XR&Dp;S~13<&WAVM!&_5kaL&3|MsN3q)>eaA@L0_F1JvP?u6Fd8^rZ8y*Xsq!J8>lkW!W`+ncu%76bvPE%E=4@x3PF7-Jh>0Cv"
    b"z6iGBAKw=3(C7=YA`sg+za8JrI<&QgKO+8Mb|I*J=PKjVnrO`qkKauCwPJ|#!eG&_r6uia6&EL+1`jo4@Tt;zH2pZ)ogS3_Re#>`82aV3?4xjD4"
    b"*jbOz)NDeGu#3G{=ILMt%aU5P`!LwPZ6+c1G`ce5@%Zk`Rx_{z)9vW2J$Q9v$Iw38E88DKsC0Kh$vmz}W-DPL*AwmYLgc2tERYGwD07)_^I1@5A"
    b"dJ@Rz-C_VGg;@4MAx~7sbwjP3nUPr7RS0Zvy&8x0~HK~KVZwfsHy4TKdSH91E6Au`%UYB=o@tLtIY",
}

ARRAYS = {
    "C order": np.arange(30, dtype="f4").reshape(2, 3, 5),
    "Fortran order": np.asfortranarray(np.arange(30, dtype="f8").reshape(2, 3, 5)),
    "transposed": np.arange(30, dtype="f4").reshape(2, 3, 5).transpose(1, 0, 2),
    "strided": np.arange(30, dtype="i4").reshape(2, 3, 5)[:, ::2, ::-1],
    "big-endian": np.arange(30, dtype=">f4").reshape(2, 15),
    "big-endian, Fortran": np.asfortranarray(np.arange(30, dtype=">i8").reshape(2, 15)),
    "of no axes": np.array(7.5, "f2"),
    "a scalar": np.float32(2.5),
    "a big scalar": np.int64(2**40),
    "a truth": np.array([True, False, True]),
    "bytes": np.arange(256, dtype="u1"),
    "empty": np.zeros((0, 3), "f4"),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
}


def saved(value, protocol, path):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def assert_same(found, wanted):
    """Check equality of names, types, shapes and every bit."""
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        want = np.asarray(wanted[name])
        assert type(array) is np.ndarray
        assert array.dtype == want.dtype.newbyteorder("=")
        assert array.shape == want.shape
        assert array.tobytes() == want.astype(array.dtype).tobytes()
        assert array.flags.writeable


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_the_pickles_hold_exactly_the_arrays_beside_them(path):
    params, state = read_haiku(path)
    with np.load(REFERENCE / f"{path.stem}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for kind, found in (("param:", params), ("state:", state)):
        assert_same(found, {key.removeprefix(kind): array for key, array in arrays.items() if key.startswith(kind)})
    assert bool(state) == (path.stem == "imagenet_conv")


def test_there_are_three_pickles():
    assert [path.stem for path in PICKLES] == ["flow", "imagenet_conv", "mlm"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_layout_of_every_protocol_reads(protocol, tmp_path):
    params, state = read_haiku(saved({"net/~/linear": ARRAYS}, protocol, tmp_path / "x"))
    assert_same(params, {f"net/~/linear/{name}": array for name, array in ARRAYS.items()})
    assert state == {}


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_array_that_was_read_only_reads_writable(protocol, tmp_path):
    array = np.arange(5.0)
    array.flags.writeable = False
    assert_same(read_haiku(saved({"m": {"w": array}}, protocol, tmp_path / "x"))[0], {"m/w": array})


@pytest.mark.parametrize("protocol", OF_JAX)
def test_what_haiku_and_jax_wrote_reads(protocol, tmp_path):
    (tmp_path / "x").write_bytes(zlib.decompress(base64.b85decode(OF_JAX[protocol])))
    params, state = read_haiku(tmp_path / "x")
    wanted = {"net/~/linear/w": np.arange(6, dtype="f4").reshape(2, 3), "norm/scale": np.array([1.5], "f2")}
    assert_same(params, wanted)
    assert_same(state, {"norm/counter": np.array(3, "i4")})


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["FlatMapping", "FlatMap", "frozendict"])
def test_mappings_of_every_haiku_read(name, protocol, tmp_path, monkeypatch):
    mapping = type(name, (), {"__reduce__": lambda self: (type(self), (self.held,)), "__module__": HAIKU})
    for module in itertools.accumulate(HAIKU.split("."), "{}.{}".format):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    setattr(sys.modules[HAIKU], name, mapping)

    def held(value):
        made = mapping()
        made.held = value
        return made

    root = held({"a": held({"w": np.arange(3.0)}), "b": collections.OrderedDict(w=np.arange(4.0), b=np.arange(2))})
    saved(root, protocol, tmp_path / "x")
    wanted = {"a/w": np.arange(3.0), "b/w": np.arange(4.0), "b/b": np.arange(2)}
    assert_same(read_haiku(tmp_path / "x")[0], wanted)


def test_what_python_2_and_an_old_numpy_wrote_reads(tmp_path):
    def word(letters):
        return b"U" + bytes([len(letters)]) + letters

    kind = (
        b"cnumpy\ndtype\n"
        + word(b"f4")
        + b"K\0K\1\x87R(K\3"
        + word(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    data = struct.pack("<3f", 1.5, -2.0, 1e30)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + word(b"b") + b"tR"
    array += b"(K\1K\3\x85" + kind + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    (tmp_path / "x").write_bytes(b"\x80\x02}" + word(b"m") + b"}" + word(b"w") + array + b"ss.")
    assert_same(read_haiku(tmp_path / "x")[0], {"m/w": np.array([1.5, -2.0, 1e30], "f4")})


def test_the_names_of_old_and_new_numpy_read(tmp_path):
    new = pickle.dumps({"m": {"w": np.arange(3.0), "s": np.float32(1)}}, 2)
    assert b"numpy._core.multiarray" in new
    (tmp_path / "x").write_bytes(new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_same(read_haiku(tmp_path / "x")[0], {"m/w": np.arange(3.0), "m/s": np.float32(1)})


def test_an_array_under_two_names_stays_one(tmp_path):
    array = np.arange(3.0)
    params, _ = read_haiku(saved({"a": {"w": array}, "b": {"w": array}}, 4, tmp_path / "x"))
    assert params["a/w"] is params["b/w"]


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    for read in (read_haiku, read_torch):
        with pytest.raises(ValueError, match="nowhere: No such file") as caught:
            read(tmp_path / "nowhere")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"there should be model\.safetensors"):
        read_torch(tmp_path)


TENSORS = {
    "float": torch.randn(2, 3),
    "half": torch.randn(5).half(),
    "bfloat": torch.randn(5).bfloat16(),
    "double": torch.randn(2, 1).double(),
    "whole": torch.arange(7),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "truth": torch.tensor([True, False]),
    "one": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor, wanted[name])


def test_safetensors_read_whole_and_in_shards(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    save_file(TENSORS, whole / "model.safetensors", {"format": "pt"})
    assert_equal(read_torch(whole), TENSORS)
    assert_equal(read_torch(whole / "model.safetensors"), TENSORS)
    parts.mkdir()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(TENSORS)}
    for place in set(places.values()):
        save_file({name: tensor for name, tensor in TENSORS.items() if places[name] == place}, parts / place)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (parts / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    assert_equal(read_torch(parts), TENSORS)


def test_a_cache_of_the_hub_reads_through_its_links(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(TENSORS, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert_equal(read_torch(snapshot), TENSORS)


def test_checkpoints_of_torch_read(tmp_path):
    tied = {**TENSORS, "tied": TENSORS["float"], "turned": TENSORS["float"].T, "learnt": nn.Parameter(torch.ones(2))}
    torch.save(tied, tmp_path / "pytorch_model.bin")
    found = read_torch(tmp_path)
    assert_equal(found, {name: tensor.detach() for name, tensor in tied.items()})
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert_equal(read_torch(tmp_path / "model.pt"), model.state_dict())


def test_a_checkpoint_is_read_only_if_every_byte_is_as_written(tmp_path):
    torch.save({"w": torch.arange(100.0)}, tmp_path / "x.bin")
    content = bytearray((tmp_path / "x.bin").read_bytes())
    content[content.index(struct.pack("<f", 50.0))] ^= 1
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or changed"):
        read_torch(tmp_path / "x.bin")


def test_a_message_never_says_to_load_it_all_the_same(tmp_path):
    (tmp_path / "x.bin").write_bytes(archive(program(b"I1\n", protocol=2)))
    with pytest.raises(ValueError, match=r"x\.bin: torch\.load refuses it: Unsupported operand 73$"):
        read_torch(tmp_path / "x.bin")


def test_hostile_files_are_refused_and_do_nothing(tmp_path):
    cases = corpus({path.name: path.read_bytes() for path in PICKLES})
    sizes = collections.Counter(case.group for case in cases)
    assert len(cases) > 2000
    assert min(sizes.values()) > 30
    jobs = {case.name: (reader_of(case.target), case.write(tmp_path / case.name)) for case in cases}
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "warm")}
    reports = watch(jobs, tmp_path)
    wrong = [report for case, report in zip(cases, reports, strict=True) if not is_fine(case, report, tmp_path)]
    assert not wrong, f"{len(wrong)} of {len(cases)}, first {wrong[:5]}"
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "warm")}
    assert after == before


def test_hostile_checkpoints_of_training_are_refused_and_do_nothing(tmp_path):
    cases = [*checkpoints(), *training_checkpoints()]
    cases = [replace(case, name=f"{number:04d}-{case.group}") for number, case in enumerate(cases)]
    assert len(cases) > 400
    jobs = {case.name: ("state", case.write(tmp_path / case.name)) for case in cases}
    reports = watch(jobs, tmp_path)
    wrong = [report for case, report in zip(cases, reports, strict=True) if not is_fine(case, report, tmp_path)]
    assert not wrong, f"{len(wrong)} of {len(cases)}, first {wrong[:5]}"
    # Where weights alone are expected, none of them is read.
    jobs = {name: ("torch", path) for name, (_, path) in jobs.items() if path.name == "x.pt"}
    (tmp_path / "again").mkdir()
    assert {report.outcome for report in watch(jobs, tmp_path / "again")} == {"refused"}


def reader_of(target):
    return "haiku" if target.endswith(".pystate") else "torch"


def is_fine(case, report, sandbox):
    """Return True if a file was refused in a line that names it, or read where it may be; without side effects."""
    refused = report.outcome == "refused" and report.message.startswith(f"{sandbox / case.name}")
    one_line = report.message.isprintable() and len(report.message) < 600
    passed = case.may_pass and report.outcome == "read"
    return ((refused and one_line) or passed) and not report.events and report.seconds < 2


def test_the_corpus_is_the_same_on_every_run():
    pickles = {path.name: path.read_bytes() for path in PICKLES}
    assert corpus(pickles) == corpus(pickles)


def test_the_watch_lets_good_files_pass(tmp_path):
    files = {"a.pystate": program(modules()), "b.safetensors": tensors_file(), "c.bin": archive(state_dict())}
    files |= {path.name: path.read_bytes() for path in PICKLES}
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    files["d.bin"] = buffer.getvalue()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    reports = watch({name: (reader_of(name), tmp_path / name) for name in files}, tmp_path)
    assert [(report.name, report.outcome, report.events) for report in reports] == [
        (name, "read", []) for name in files
    ]


CAUGHT = {
    "os.system": b"cos\nsystem\n(X\x0c\0\0\0touch canarytR.",
    "subprocess.Popen": b"csubprocess\ngetoutput\n(X\x0c\0\0\0touch canarytR.",
    "exec": b"cbuiltins\neval\n(X\x1b\0\0\0open('canary', 'w').close()tR.",
    "open": b"cio\nopen\n(X\6\0\0\0canaryX\1\0\0\0wtR.",
    "import": b"cantigravity\ngeohash\n.",
    "socket.connect": b"csocket\ncreate_connection\n(X\x09\0\0\x00127.0.0.1K\x09\x86tR.",
    "ctypes.dlopen": b"cctypes\nCDLL\n(X\6\0\0\0canarytR.",
    "pickle.find_class": b"cos\ngetcwd\n.",
    "an extension code": b"\x82\xf0X\x0c\0\0\0touch canary\x85R.",
}


def test_the_watch_sees_what_a_plain_unpickling_does(tmp_path):
    for name, body in CAUGHT.items():
        (tmp_path / name).write_bytes(b"\x80\x04" + body)
    reports = watch({name: ("pickle", tmp_path / name) for name in CAUGHT}, tmp_path)
    for report in reports:
        event = "os.system" if report.name == "an extension code" else report.name
        assert any(event == heard.split()[0] for heard in report.events), report
    assert len(reports) == len(CAUGHT)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("body", [b"cos\nabort\n)R.", b"cos\n_exit\nK\0\x85R."])
def test_the_watch_tells_of_a_reader_that_dies(body, tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x04" + body)
    (report,) = watch({"x": ("pickle", tmp_path / "x")}, tmp_path)
    assert report.outcome.startswith("died with")


def test_the_watch_bounds_memory(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x04cbuiltins\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little") + b"\x85R.")
    (report,) = watch({"x": ("pickle", tmp_path / "x")}, tmp_path)
    assert report.outcome == "MemoryError"
