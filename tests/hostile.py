"""Files made to do harm, the same ones in every run, and a process that reads them under observation.

`corpus` makes the files. `watch` reads them in a process of its own that records what the reading touches: see `_main`.
"""

import contextlib
import copyreg
import io
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Hostile:
    """One attack: the files of a folder, and the one that is read."""

    group: str
    files: Mapping[str, bytes]
    target: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    may_pass: bool = False
    """True if the file may also be read as plain arrays, e.g. a flipped bit of a number."""
    name: str = ""

    def write(self, folder: Path) -> Path:
        """Write the files and return the path to read."""
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            if target == "FIFO":
                os.mkfifo(folder / name)
            else:
                (folder / name).symlink_to(target)
        return folder / self.target


def corpus(pickles: Mapping[str, bytes]) -> list[Hostile]:
    """Return every hostile file; `pickles` are good ones to damage."""
    makers = (calls, names, states, registries, lies, bombs, opcodes, oddities, safetensors, checkpoints, shards)
    cases = [case for maker in makers for case in maker()] + list(damaged(pickles))
    return [replace(case, name=f"{number:04d}-{case.group}") for number, case in enumerate(cases)]


# Pieces of pickles: each is a piece of program that leaves one value on the stack.


def part(value: Any) -> bytes:
    """Return a value as protocol 2 writes it."""
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def binary(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def table(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def flat_mapping(items: Mapping[str, bytes]) -> bytes:
    return call(named("haiku._src.data_structures", "FlatMapping"), table(items))


RECONSTRUCT, NDARRAY = named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray")
EMPTY = call(RECONSTRUCT, NDARRAY, part((0,)), binary(b"b"))
PLAIN_STATE = part((3, "<", None, None, None, -1, -1, 0))


def dtype(code: str = "f4", state: bytes = PLAIN_STATE) -> bytes:
    return call(named("numpy", "dtype"), part(code), part(False), part(True)) + state + b"b"


def array(
    shape: bytes = part((3,)),
    kind: bytes = dtype(),
    data: bytes = binary(b"\0" * 12),
    version: bytes = part(1),
    fortran: bytes = part(False),
    empty: bytes = EMPTY,
) -> bytes:
    return empty + group(version, shape, kind, fortran, data) + b"b"


def modules(**last: bytes) -> bytes:
    """Return the pickle of a small Perceiver with one more module."""
    return flat_mapping(
        {
            "perceiver_encoder/~/trainable_position_encoding": flat_mapping({"pos_embs": array()}),
            "perceiver_encoder/~/cross_attention/attention/linear": flat_mapping({"w": array(), "b": array()}),
            **{name.replace("__", "/~/"): value for name, value in last.items()},
        }
    )


def program(root: bytes, protocol: int = 4, then: bytes = b"") -> bytes:
    return b"\x80" + bytes([protocol]) + root + b"." + then


def of_haiku(group: str, content: bytes, may_pass: bool = False) -> Hostile:
    return Hostile(group, {"model.pystate": content}, "model.pystate", may_pass=may_pass)


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "an array": lambda payload: program(modules(basic_decoder=flat_mapping({"w": array(), "b": payload}))),
    "a module": lambda payload: program(modules(basic_decoder=payload)),
    "the whole": program,
    "the state": lambda payload: program(table({"params": modules(), "state": payload})),
    "an argument": lambda payload: program(call(named("haiku._src.data_structures", "FlatMapping"), payload)),
    "bytes": lambda payload: program(modules(basic_decoder=table({"w": array(data=payload)}))),
    "a shape": lambda payload: program(modules(basic_decoder=table({"w": array(shape=payload)}))),
    "a dtype": lambda payload: program(modules(basic_decoder=table({"w": array(kind=payload)}))),
    "a key": lambda payload: program(b"}" + payload + modules() + b"s"),
    "nowhere": lambda payload: program(payload + b"0" + modules()),
    "the memo": lambda payload: program(payload + b"q\xff0" + modules()),
    "under it": lambda payload: program(payload + modules()),
    "after it": lambda payload: program(modules(), then=payload + b"."),
    "an unknown opcode later": lambda payload: b"\x80\x04" + payload + b"\xff" + modules() + b".",
    "jax": lambda payload: program(
        table({"w": table({"b": call(named("jax._src.array", "_reconstruct_array"), payload, part(()), part({}))})})
    ),
}


# Attacks on the reader of pickles.

TOUCH = "touch canary"
CODE = "open('canary', 'w').close()"
STRINGS = ("w", "x")

CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("os", "system", (TOUCH,)),
    ("posix", "system", (TOUCH,)),
    ("nt", "system", (TOUCH,)),
    ("os", "popen", (TOUCH,)),
    ("os", "execvp", ("touch", ["touch", "canary"])),
    ("os", "posix_spawnp", ("touch", ["touch", "canary"], {})),
    ("os", "spawnlp", (0, "touch", "touch", "canary")),
    ("os", "fork", ()),
    ("os", "remove", ("model.pystate",)),
    ("os", "mkdir", ("canary",)),
    ("os", "putenv", ("LD_PRELOAD", "canary")),
    ("os", "kill", (0, 9)),
    ("subprocess", "Popen", (["touch", "canary"],)),
    ("subprocess", "getoutput", (TOUCH,)),
    ("subprocess", "check_output", (["touch", "canary"],)),
    ("commands", "getoutput", (TOUCH,)),
    ("pty", "spawn", (["touch", "canary"],)),
    ("builtins", "eval", (CODE,)),
    ("__builtin__", "eval", (CODE,)),
    ("builtins", "exec", (CODE,)),
    ("builtins", "compile", (CODE, "x", "exec")),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "getattr", ("", "__class__")),
    ("builtins", "setattr", ("", "x", 1)),
    ("builtins", "open", ("canary", "w")),
    ("builtins", "breakpoint", ()),
    ("builtins", "map", (None, STRINGS)),
    ("builtins", "type", ("x", (), {})),
    ("builtins", "bytearray", (10**11,)),
    ("builtins", "range", (10**11,)),
    ("builtins", "bytes", (10**11,)),
    ("builtins", "print", ("canary",)),
    ("io", "open", ("canary", "w")),
    ("_io", "FileIO", ("canary", "w")),
    ("codecs", "open", ("canary", "w")),
    ("_codecs", "lookup", ("canary",)),
    ("_codecs", "decode", (b"x", "zip")),
    ("codecs", "encode", ("x", "latin1")),
    ("importlib", "import_module", ("antigravity",)),
    ("importlib.util", "find_spec", ("antigravity.x",)),
    ("runpy", "run_path", ("canary",)),
    ("runpy", "_run_code", (CODE, {})),
    ("imp", "load_source", ("x", "canary")),
    ("zipimport", "zipimporter", ("canary",)),
    ("pkgutil", "resolve_name", ("os:system",)),
    ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("system", TOUCH)),
    ("functools", "partial", (print, "canary")),
    ("functools", "reduce", (print, STRINGS)),
    ("types", "FunctionType", (None, {})),
    ("marshal", "loads", (b"canary",)),
    ("pickle", "loads", (pickle.dumps(print),)),
    ("_pickle", "loads", (pickle.dumps(print),)),
    ("cloudpickle", "loads", (pickle.dumps(print),)),
    ("joblib", "load", ("canary",)),
    ("pandas", "read_pickle", ("canary",)),
    ("yaml", "unsafe_load", ("!!python/object/apply:os.system ['touch canary']",)),
    ("shelve", "open", ("canary",)),
    ("ctypes", "CDLL", ("canary.so",)),
    ("ctypes.util", "find_library", ("c",)),
    ("_ctypes", "dlopen", ("canary.so", 2)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("urllib.request", "urlopen", ("http://127.0.0.1:9/",)),
    ("http.client", "HTTPSConnection", ("127.0.0.1",)),
    ("ssl", "get_server_certificate", (("127.0.0.1", 9),)),
    ("ftplib", "FTP", ("127.0.0.1",)),
    ("smtplib", "SMTP", ("127.0.0.1",)),
    ("webbrowser", "open", ("http://127.0.0.1:9/",)),
    ("sqlite3", "connect", ("canary",)),
    ("shutil", "rmtree", (".",)),
    ("tempfile", "mkdtemp", ()),
    ("bdb", "Bdb.run", (None, CODE)),
    ("bdb", "Bdb", ()),
    ("pdb", "run", (CODE,)),
    ("cProfile", "run", (CODE,)),
    ("cProfile", "runctx", (CODE, {}, {})),
    ("profile", "Profile.run", (None, CODE)),
    ("trace", "Trace.run", (None, CODE)),
    ("timeit", "timeit", (CODE,)),
    ("doctest", "debug_script", (CODE,)),
    ("code", "InteractiveInterpreter", ()),
    ("logging.config", "_resolve", ("os.system",)),
    ("ensurepip", "_run_pip", (["--version"],)),
    ("pip", "main", (["--version"],)),
    ("pip._internal", "main", (["--version"],)),
    ("pydoc", "pipepager", ("x", TOUCH)),
    ("pydoc", "locate", ("antigravity",)),
    ("uuid", "_get_command_stdout", ("touch", "canary")),
    ("_osx_support", "_read_output", (TOUCH,)),
    ("_aix_support", "_read_cmd_output", (TOUCH,)),
    ("idlelib.run", "Executive.runcode", (None, CODE)),
    ("lib2to3.pgen2.pgen", "ParserGenerator.make_label", (None, None, None)),
    ("distutils.file_util", "write_file", ("canary", [])),
    ("multiprocessing.util", "spawnv_passfds", (b"touch", [b"touch"], ())),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start", (None, TOUCH, True, None, None, None, 0)),
    ("venv", "create", ("canary",)),
    ("site", "addsitedir", (".",)),
    ("linecache", "getline", ("/etc/passwd", 1)),
    ("copyreg", "add_extension", ("os", "system", 241)),
    ("copyreg", "__newobj__", (dict,)),
    ("copy_reg", "_reconstructor", (dict, dict, {})),
    ("copyreg", "_reconstructor", (dict, dict, {})),
    ("sys", "exit", (0,)),
    ("os", "_exit", (0,)),
    ("os", "abort", ()),
    ("faulthandler", "_sigsegv", ()),
    ("gc", "get_objects", ()),
    ("numpy", "load", ("canary",)),
    ("numpy", "save", ("canary", [0])),
    ("numpy", "memmap", ("canary", "u1", "w+", 0, (9,))),
    ("numpy", "zeros", (10**11,)),
    ("numpy", "ndarray", ((10**11,),)),
    ("numpy", "fromfile", ("/etc/passwd",)),
    ("numpy", "vectorize", (print,)),
    ("numpy", "frompyfunc", (print, 1, 1)),
    ("numpy.core.multiarray", "fromfile", ("/etc/passwd",)),
    ("numpy.core.multiarray", "frombuffer", (b"x",)),
    ("numpy._core.multiarray", "add_docstring", (print, "x")),
    ("numpy.core.records", "fromfile", ("/etc/passwd", "u1")),
    ("numpy.ctypeslib", "load_library", ("canary", ".")),
    ("numpy.f2py.crackfortran", "getlincoef", (f"__import__('os').system('{TOUCH}')", [])),
    ("numpy.f2py.crackfortran", "_eval_length", (f"__import__('os').system('{TOUCH}')", {})),
    ("numpy.f2py.capi_maps", "load_f2cmap_file", ("canary",)),
    ("numpy.f2py", "compile", ("canary",)),
    ("numpy.testing._private.utils", "runstring", (CODE, {})),
    ("numpy.distutils.exec_command", "exec_command", (TOUCH,)),
    ("numpy.lib.npyio", "DataSource", (".",)),
    ("torch", "load", ("canary",)),
    ("torch", "ones", (10**11,)),
    ("torch.storage", "_load_from_bytes", (pickle.dumps(print),)),
    ("torch.hub", "load", (".", "canary")),
    ("torch.jit", "load", ("canary",)),
    ("torch.ops", "load_library", ("canary.so",)),
    ("torch.classes", "load_library", ("canary.so",)),
    ("torch.utils.cpp_extension", "load", ("canary", [])),
    ("torch.utils.collect_env", "run", (TOUCH,)),
    ("torch.utils._config_module", "ConfigModule.load_config", (None, pickle.dumps(print))),
    ("torch.utils.bottleneck.__main__", "run_cprofile", (CODE, {})),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", (CODE, {}, {})),
    ("torch._utils", "_rebuild_tensor_v2", ()),
    ("torch._dynamo.guards", "GuardBuilder.get", (None, CODE)),
    ("torch.serialization", "load", ("canary",)),
    ("safetensors.torch", "save_file", ({}, "canary")),
    ("perceivers.files.durable", "write_text", ("canary", "x")),
    ("perceivers.pretrained.unpickle", "_Array", ()),
    ("haiku._src.data_structures", "to_immutable_dict", ({},)),
    ("haiku", "transform", (print,)),
    ("jax", "pure_callback", (print, None)),
    ("jax._src.array", "ArrayImpl", ()),
    ("jax.experimental.compilation_cache.compilation_cache", "set_cache_dir", ("canary",)),
    ("tensorflow", "io.write_file", ("canary", "x")),
    ("tensorflow.python.framework.load_library", "load_op_library", ("canary.so",)),
    ("antigravity", "geohash", (1.0, 1.0, b"x")),
    ("this", "s", ()),
    ("canary_module", "anything", ()),
]

FORMS: dict[str, Callable[[str, str, tuple[Any, ...]], bytes]] = {
    "REDUCE of GLOBAL": lambda module, name, arguments: named(module, name) + part(arguments) + b"R",
    "REDUCE of STACK_GLOBAL": lambda module, name, arguments: stack_named(module, name) + part(arguments) + b"R",
    "INST": lambda module, name, arguments: b"(" + b"".join(map(part, arguments)) + f"i{module}\n{name}\n".encode(),
    "OBJ": lambda module, name, arguments: b"(" + named(module, name) + b"".join(map(part, arguments)) + b"o",
    "NEWOBJ": lambda module, name, arguments: named(module, name) + part(arguments) + b"\x81",
    "NEWOBJ_EX": lambda module, name, arguments: named(module, name) + part(arguments) + b"}\x92",
    "BUILD": lambda module, name, arguments: named(module, name) + part(arguments) + b"b",
}


def calls() -> Iterator[Hostile]:
    """Yield every call in three of the ways that a pickle can make it, at positions taken in turn."""
    places, forms = list(PLACES.values()), list(FORMS.values())
    for number, entry in enumerate(CALLS):
        for way in range(3):
            payload = forms[(number + 2 * way) % len(forms)](*entry)
            yield of_haiku("call", places[(number + 4 * way) % len(places)](payload))
    for place in places:
        yield of_haiku("call", place(named("os", "system") + part((TOUCH,)) + b"R"))
    for form in forms:
        yield of_haiku("call", program(form("os", "system", (TOUCH,))))
        yield of_haiku("call", program(form("os", "system", (TOUCH,)), protocol=2))
    # A raw pickle without a protocol: Python 2's default, and what a text editor can write.
    yield of_haiku("call", b"cos\nsystem\n(S'touch canary'\ntR.")
    yield of_haiku("call", b"(S'touch canary'\nios\nsystem\n.")
    yield of_haiku("call", b"\x80\x00" + modules()[:-1] + b"cos\nsystem\n(S'touch canary'\ntR.")


def names() -> Iterator[Hostile]:
    """Yield names that are almost those on the list, or that lead on from these to others."""
    near = [
        ("numpy.core.multiarray", "os.system"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__self__"),
        ("numpy.core.multiarray", "scalar.__call__"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy", "os.system"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "ndarray.__reduce__"),
        ("numpy", "dtype.__class__"),
        ("numpy", "testing._private.utils.runstring"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("collections", "_sys.modules"),
        ("collections", "OrderedDict.fromkeys"),
        ("haiku._src.data_structures", "FlatMapping.__class__"),
        ("haiku._src.data_structures", "jax.numpy.load"),
        ("haiku._src.data_structures.FlatMapping", ""),
        ("haiku._src.data_structures", "flatmapping"),
        ("_codecs", "encode.__self__"),
        ("_codecs", "Encode"),
        ("Numpy", "ndarray"),
        ("NUMPY", "NDARRAY"),
        ("numpy ", "ndarray"),
        ("numpy", " ndarray"),
        ("numpy", "ndarray "),
        ("numpy\t", "ndarray"),
        ("numpy\0", "ndarray"),
        ("numpy", "ndarray\0.tofile"),
        ("numpy\n", "ndarray"),
        ("numpy", "ndarray\nos\nsystem"),
        ("numpy core.multiarray", "_reconstruct"),
        ("", "numpy ndarray"),
        ("numpy ndarray", ""),
        ("nump\u0443", "ndarray"),
        ("\uff4eumpy", "ndarray"),
        ("numpy", "ndarra\u0443"),
        ("numpy.core.multiarray", "_recon\u017ftruct"),
        ("numpy.core.multiarray", "_reconstru\u0441t"),
        ("o\u0455", "system"),
        ("os", "sy\u017ftem"),
        ("\u202eos", "system"),
        ("os", "sys\u200btem"),
        ("\ud800", "system"),
        ("os\U0001f40d" * 1000, "system"),
        ("os", "system" * 100_000),
        ("..os", "system"),
        (".", "."),
        ("", ""),
        ("numpy.core.multiarray._reconstruct", "__call__"),
        ("builtins", "bytes.fromhex"),
        ("__builtin__", "bytes.__subclasses__"),
        ("jax._src.array", "_reconstruct_array.__globals__"),
        ("jax._src.device_array", "reconstruct_device_array.__code__"),
    ]
    for module, name in near:
        yield of_haiku("name", program(call(stack_named(module, name), part(TOUCH))))
    odd = [part(b"os") + text("system"), part(7) + text("system"), b"}" + text("system"), b")" + b")"]
    odd += [NDARRAY + text("system"), text("os") + NDARRAY, text("os") + EMPTY, b"NN", b"\x88\x89"]
    odd += [binary(b"os") + binary(b"system"), b"\x96\x02\0\0\0\0\0\0\0os" + text("system")]
    for operands in odd:
        yield of_haiku("name", program(operands + b"\x93" + part((TOUCH,)) + b"R"))
    # A scanner of strings sees a harmless name last; the name that is used lies in the memo.
    hidden = text("os") + b"q\0" + text("system") + b"q\1" + text("numpy") + b"\x94" + text("ndarray") + b"\x94"
    yield of_haiku("name", program(hidden + b"h\0h\1\x93" + part((TOUCH,)) + b"R"))
    yield of_haiku("name", program(text("os") + b"r\0\1\0\0" + text("system") + b"\x94j\0\1\0\0h\1\x93"))
    product = named("numpy", "prod") + b"N}" + text("a") + text("os") + b"s\x86b0" + named("numpy", "prod.a")
    yield of_haiku("name", program(product + text("system") + b"\x93" + part((TOUCH,)) + b"R"))
    for name in ("ndarray", "_reconstruct"):  # a line without an end
        yield of_haiku("name", b"\x80\x04cnumpy\n" + name.encode())
        yield of_haiku("name", b"\x80\x04cnumpy" + b"y" * 10**6 + b"\n" + name.encode() + b"\n.")


def states() -> Iterator[Hostile]:
    """Yield states for objects that have none, and calls of allowed names that NumPy never makes."""
    flat, ordered = named("haiku._src.data_structures", "FlatMapping"), named("collections", "OrderedDict")
    function = named("numpy.core.multiarray", "_reconstruct")
    encode, scalar = named("_codecs", "encode"), named("numpy.core.multiarray", "scalar")
    buffer, jax = named("numpy._core.numeric", "_frombuffer"), named("jax._src.array", "_reconstruct_array")
    evil = named("os", "system")
    dictionary = part({"__setstate__": 1})
    for target in (flat, ordered, function, NDARRAY, encode, scalar, jax, b"}", b")", b"N", text("x"), part(b"x")):
        for state in (dictionary, part((None, {"__class__": 1})), part({"__dict__": {}})):
            yield of_haiku("state", program(target + state + b"b"))
    for target in (EMPTY, dtype(), array(), dtype("f4", b"")[:-1]):
        for state in (dictionary, part((None, {"value": 1})), b"N", b")", part((1,)), part(5), EMPTY, dtype()):
            yield of_haiku("state", PLACES["an array"](target + state + b"b"))
    good = group(part(1), part((3,)), dtype(), b"\x89", binary(b"\0" * 12))
    yield of_haiku("state", PLACES["an array"](array() + good + b"b"))
    for arguments in ((b"}", b"}"), (part("x"),), (part((("a", 1),)),), (b"N",), (part(7),), (NDARRAY,), (EMPTY,)):
        yield of_haiku("state", program(call(flat, *arguments)))
        yield of_haiku("state", program(call(ordered, *arguments)))
    for codec in ("zip", "hex", "rot13", "utf-8", "latin-1\0", "bz2", "idna", "unicode_escape", "LATIN1"):
        yield of_haiku("state", PLACES["bytes"](call(encode, text("\0" * 12), text(codec))))
    yield of_haiku("state", PLACES["bytes"](call(encode, text("\u0100" * 12), text("latin1"))))
    yield of_haiku("state", PLACES["bytes"](call(encode, binary(b"\0" * 12), text("latin1"))))
    yield of_haiku("state", PLACES["bytes"](call(named("builtins", "bytes"), part(12))))
    start = group(NDARRAY, part((0,)), binary(b"b"))
    cases = [(evil, part((TOUCH,)), good), (RECONSTRUCT, part((TOUCH,)), good), (flat, b")", good)]
    cases += [(jax, start, good), (RECONSTRUCT, start, group(evil)), (RECONSTRUCT, start, b"}")]
    cases += [(NDARRAY, start, good), (part("os.system"), start, good)]
    for inner, arguments, state in cases:
        yield of_haiku("state", PLACES["an array"](call(jax, inner, arguments, state, b"}")))
    for extra in (b"N", b")", part("x"), evil, EMPTY):
        yield of_haiku("state", PLACES["an array"](call(jax, RECONSTRUCT, start, good, extra)))
    raw = binary(b"\0" * 12)
    for arguments in (
        (raw, dtype(), part((3,))),
        (raw, dtype(), part((3,)), part("A")),
        (raw, dtype(), part((3,)), part("K")),
        (raw, dtype(), part((3,)), part("K"), part((1,))),
        (raw, dtype(), part((3,)), part("K"), part((-1,))),
        (raw, dtype(), part((3,)), part("K"), part((0, 0))),
        (raw, dtype(), part((3,)), part("K"), part((False,))),
        (raw, dtype(), part((3,)), part("K"), part(("0",))),
        (raw, dtype(), part((3,)), part("K"), group(EMPTY)),
        (raw, dtype(), part((3,)), part("K"), b"N"),
        (raw, dtype(), part((3,)), part("K"), part(0)),
        (raw, dtype(), part((3,)), part("K"), part("0")),
        (raw, dtype(), part((3,)), part("K"), b"}"),
        (raw, part("f4"), part((3,)), part("C")),
        (part((1, 2, 3)), dtype(), part((3,)), part("C")),
        (EMPTY, dtype(), part((3,)), part("C")),
        (array(), dtype(), part((3,)), part("C")),
    ):
        yield of_haiku("state", PLACES["an array"](call(buffer, *arguments)))
    for arguments in ((dtype(),), (dtype(), binary(b"\0" * 5)), (part("f4"), binary(b"\0" * 4)), (dtype(), part(1.0))):
        yield of_haiku("state", PLACES["an array"](call(scalar, *arguments)))
    for value in (b"N", b"\x88", part(1), part(1.5), part("x"), part(b"x"), b")", b"}", NDARRAY, dtype(), EMPTY):
        for place in ("an array", "a module", "the whole", "the state", "a key"):
            if (place, value) not in (("a module", b"}"), ("the whole", b"}"), ("the state", b"}")):  # empty: no harm
                yield of_haiku("state", PLACES[place](value))
    cases = [part(1), b"N", part(b"w"), part(()), part(("w",)), text("w" * 600), text("w\n"), text("\u00e9")]
    cases += [NDARRAY]
    for key in cases:
        yield of_haiku("state", program(table({"m": b"}" + key + array() + b"s"})))
    yield of_haiku("state", program(b"}(" + 2 * (text("m") + table({"w": array()})) + b"u"))
    yield of_haiku("state", program(table({"a/b": table({"c": array()}), "a": table({"b/c": array()})})))


def registries() -> Iterator[Hostile]:
    """Yield extension codes, which the reading process has registered for os.system, and persistent ids."""
    cases = [b"\x82\xf0", b"\x83\xf0\0", b"\x84\xf0\0\0\0", b"\x82\0", b"\x83\0\0", b"\x84\xff\xff\xff\xff"]
    cases += [b"\x82\x01"]
    for code in cases:
        for place in ("the whole", "an array", "nowhere"):
            yield of_haiku("registry", PLACES[place](code + part((TOUCH,)) + b"R"))
    for reference in (b"Pcanary\n", part("canary") + b"Q", part(("storage", "x", "0", "cpu", 1)) + b"Q", b"P\n", b"NQ"):
        for place in ("the whole", "an array"):
            yield of_haiku("registry", PLACES[place](reference))
    for outside in (b"\x97", b"\x97\x98", binary(b"\0" * 12) + b"\x98"):
        yield of_haiku("registry", PLACES["bytes"](outside))


def lies() -> Iterator[Hostile]:
    """Yield arrays whose content contradicts their description, and dtypes that are not numeric."""

    def one(value: bytes) -> Hostile:
        return of_haiku("lie", PLACES["an array"](value))

    big = (10**12, 2**31, 2**62, 2**63, 2**64, 10**30, -1, -3)
    for size in big:
        yield one(array(shape=part((size,))))
        yield one(array(shape=part((size, 0))))
        yield one(array(empty=call(RECONSTRUCT, NDARRAY, part((size,)), binary(b"b"))))
    cases = [(2,), (4,), (3, 3), (2**32, 2**32), (2**16, 2**16, 2**16, 2**16), (2,) * 33, (1,) * 70, (3.0,), ("3",)]
    for shape in cases:
        yield one(array(shape=part(shape)))
    cases = [b"N", part(3), part("3"), EMPTY, group(EMPTY), part([3]), part({3: 3}), part((True,) * 3)]
    cases += [part((-1, -3))]
    for shape in cases:
        yield one(array(shape=shape))
    yield one(array(shape=part((1,) * 40), data=binary(b"\0" * 4)))
    yield one(array(shape=part((2**2000,) * 32)))
    yield one(array(shape=part((2**2000,) * 20_000)))
    cases = [named("numpy", "matrix"), named("numpy", "memmap"), named("numpy", "recarray"), b"N", part("x")]
    cases += [dtype()]
    for base in cases:
        yield one(array(empty=call(RECONSTRUCT, base, part((0,)), binary(b"b"))))
    for code in (b"O", b"c", b"V", b"\0", b"bb", b""):
        yield one(array(empty=call(RECONSTRUCT, NDARRAY, part((0,)), binary(code))))
    codes = ["O", "O8", "|O", "V12", "S12", "U3", "M8", "m8", "m8[ns]", "c8", "c16", "f16", "f4,f4", "(3,)f4"]
    codes += ["3f4", "x", ""]
    for code in (*codes, "object", "float32", "=f4", "<f4", "bfloat16", "f4\0", "p", "P", "g", "?", "f", "V0", "S0"):
        yield one(array(kind=dtype(code)))
    cases = [("f4", True, True), ("f4", False, False), ("f4",), ("f4", 0, 1, {}), ([("a", "O")], 0, 1)]
    cases += [(None, 0, 1)]
    for arguments in cases:
        yield one(array(kind=call(named("numpy", "dtype"), *map(part, arguments)) + PLAIN_STATE + b"b"))
    for state in (
        (4, "<", None, None, None, -1, -1, 0, {"metadata": 1}),
        (3, "<", None, None, None, -1, -1, 0, {"metadata": 1}),
        (3, "<", ("f4", (3,)), None, None, -1, -1, 0),
        (3, "|", None, ("a",), {"a": ("O", 0)}, 8, 1, 63),
        (3, "|", None, None, None, 8, 8, 63),
        (3, "<", None, None, None, 10**9, 1, 0),
        (3, "=", None, None, None, -1, -1, 0),
        (3, "x", None, None, None, -1, -1, 0),
        (3, "", None, None, None, -1, -1, 0),
        (3, "<<<", None, None, None, -1, -1, 0),
        (3, None, None, None, None, -1, -1, 0),
        (2, "<", None, None, None, -1, -1, 0),
        (),
    ):
        yield one(array(kind=dtype(state=part(state))))
    yield one(array(kind=dtype("f4", b"")[:-1]))  # without its byte order
    yield one(array(kind=dtype() + PLAIN_STATE + b"b"))  # with two states
    for kind in (b"N", part("f4"), NDARRAY, EMPTY, named("ml_dtypes", "bfloat16")):
        yield one(array(kind=kind))
    for data in (b"", b"\0" * 11, b"\0" * 13, b"\0" * 10**5):
        yield one(array(data=binary(data)))
    for data in (b"N", part([1, 2, 3]), part((1, 2, 3)), part({}), EMPTY, array(), text("\u0100" * 12), part(0)):
        yield one(array(data=data))
    yield one(array(data=b"](" + 3 * (named("os", "system") + part((TOUCH,)) + b"R") + b"e", kind=dtype("O")))
    for version in (part(0), part(2), b"N", part("1"), part(10**20)):
        yield one(array(version=version))
    for fortran in (part(2), b"N", part("F"), part(-1), EMPTY):
        yield one(array(fortran=fortran))
    yield one(EMPTY)
    yield one(EMPTY + group(part((3,)), dtype(), b"\x89", binary(b"\0" * 12)) + b"b")


def bombs() -> Iterator[Hostile]:
    """Yield small files that unfold into large, deep or slow structures."""
    first = array() + b"q\xf0"  # its number in the memo
    wide = b"}(" + text("w") + first + b"".join(text(f"w{number}") + b"h\xf0" for number in range(9000)) + b"uq\xf1"
    large = text("x" * 100_000) + b"q\xf2"
    made = call(named("_codecs", "encode"), b"h\xf2", text("latin1"))
    as_array = EMPTY + group(part(1), part((100_000,)), dtype("u1"), b"\x89", b"h\xf2") + b"b"
    mapping = named("haiku._src.data_structures", "FlatMapping")
    twice = b"q\0h\0\x86"
    bodies = [
        b")" + b"\x85" * 90_000,
        b")" + twice * 60,
        b")" + twice * 30_000,
        b"N" + b"\x85" * 250_000,
        b"}" + b")" + b"\x85" * 90_000 + b"Ns",
        b"}" + b")" + twice * 60 + b"Ns",
        b"}" + b"\x85q\0h\0\x86" * 24_000,
        b"(" * 90_000,
        b"(" * 90_000 + b"t" * 90_000,
        b"]" + b"](e" * 30_000,
        b"]" + b"q\0h\0h\0e" * 50,
        b"(l" + b"(lh\0a" * 50,
        b"N" * 99_000,
        b"N" * 300_000,
        b"\x8a\xff" + b"\x7f" * 255,
        b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        b"\x8b\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\xff",
        b"L" + b"9" * 10**6 + b"L\n",
        b"I" + b"9" * 10**6 + b"\n",
        b"F" + b"9" * 10**6 + b"\n",
        b"Nr\xff\xff\xff\x7f",
        b"Np" + b"9" * 4000 + b"\n",
        b"B\xff\xff\xff\xff",
        b"B\xff\xff\xff\x7fx",
        b"X\xff\xff\xff\xffx",
        b"T\xff\xff\xff\x7fx",
        b"T\xff\xff\xff\xffx",
        b"\x8e" + b"\xff" * 8,
        b"\x8e" + struct.pack("<Q", 2**40) + b"x",
        b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        b"\x96" + struct.pack("<Q", 2**40) + b"x",
        b"\x95" + struct.pack("<Q", 2**62) + b"N",
        b"\x95\0\0\0\0\0\0\0\0" * 250_000 + modules(),
        b"}(" + text("m") + wide + b"".join(text(f"m{number}") + b"h\xf1" for number in range(9000)) + b"u",
        b"}q\1" + b"".join(text(f"m{number}") + b"h\1s" for number in range(9)),
        group(large, *[made] * 9000),
        table({"m": b"}(" + text("w") + array(data=large) + b"u"}),
        group(large, table({"m": table({f"w{number}": as_array for number in range(300)})})),
        b"(" + wide + mapping + b"h\xf1\x85R" * 20_000 + b"t",
        b"(" + wide + (mapping + b"h\xf1\x85R") * 20_000 + b"t",
        mapping * 3000 + wide + b"\x85R" * 3000,
        text("\U0010ffff" * 10**6),
        modules() + modules(),
    ]
    for body in bodies:
        yield of_haiku("bomb", program(body))
    for depth in (10, 1000, 30_000, 100_000):
        yield of_haiku("bomb", program(b"".join(b"}" + text("m") for _ in range(depth)) + b"}" + b"s" * depth))
    many = b"".join(text(f"w{number}") + b"h\xf0" for number in range(11_000))
    yield of_haiku("bomb", program(table({"m": b"}(" + text("w") + first + many + b"u"})))


def opcodes() -> Iterator[Hostile]:
    """Yield every opcode in a wrong position, and stacks with too few values."""
    arguments = {"decimalnl_short": b"1\n", "decimalnl_long": b"1L\n", "stringnl": b"'x'\n", "unicodestringnl": b"x\n"}
    arguments |= {"floatnl": b"1.0\n", "stringnl_noescape": b"x\n", "stringnl_noescape_pair": b"os\nsystem\n"}
    arguments |= {"float8": b"\0" * 8, "bytes8": b"\0" * 8, "unicodestring8": b"\0" * 8, "bytearray8": b"\0" * 8}
    arguments |= {"uint8": b"\0" * 8, "uint2": b"\0\0"}
    for opcode in pickletools.opcodes:
        argument = b"" if opcode.arg is None else arguments.get(opcode.arg.name, b"\0" * max(opcode.arg.n, 4))
        one = opcode.code.encode("latin-1") + argument
        yield of_haiku("opcode", program(one))
        yield of_haiku("opcode", program(b"(" + one + modules(), protocol=5))
        if opcode.name not in ("STOP", "FRAME", "PROTO", "MEMOIZE", "LONG_BINPUT"):
            yield of_haiku("opcode", program(modules() + one))
    known = {opcode.code.encode("latin-1")[0] for opcode in pickletools.opcodes}
    for code in sorted(set(range(256)) - known)[::12]:
        yield of_haiku("opcode", program(bytes([code]) + modules()))
    for protocol in (0, 1, 6, 255):
        yield of_haiku("opcode", program(modules(), protocol=protocol))
    yield of_haiku("opcode", program(modules())[2:])
    yield of_haiku("opcode", program(b"S'\\z'\n" + modules()))  # an escape that Python warns of


def oddities() -> Iterator[Hostile]:
    """Yield paths that are not regular files, and files of other formats."""
    good = tensors_file()
    other = {"": b"", "zeros": b"\0" * 5000, "text": b"Once upon a time\n" * 9, "stop": b".", "json": b"{}"}
    other |= {
        "zip": archive(state_dict()),
        "safetensors": good,
        "npy": b"\x93NUMPY\x01\0v\0{'descr': '|O'}" + b" " * 99,
    }
    other |= {"gzip": b"\x1f\x8b\x08" + b"\0" * 99, "pickle": program(modules())}
    suffixes = {"safetensors": "model.safetensors", "zip": "pytorch_model.bin", "pickle": "model.pystate"}
    for kind, content in other.items():
        for own, name in suffixes.items():
            if kind != own:
                yield Hostile("odd", {name: content}, name)
    for name in suffixes.values():
        yield Hostile("odd", {}, name)
        yield Hostile("odd", {f"{name}/x": b""}, name)
        for target in ("/dev/zero", "/dev/null", name, "FIFO", "/etc/passwd", "."):
            yield Hostile("odd", {}, name, links={name: target})
    yield Hostile("odd", {"readme.txt": b"no weights"}, "")
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"):
        for target in ("/dev/zero", "/etc/passwd", "FIFO", "../outside", "missing", name):
            yield Hostile("odd", {"readme.txt": b""}, "", links={name: target})
        yield Hostile("odd", {f"{name}/x": b""}, "")


# Attacks on the reader of tensors.


def tensors_file(
    header: Any = None, data: bytes = b"\0" * 24, length: int | None = None, raw: bytes | None = None
) -> bytes:
    """Return a safetensors file, valid by default."""
    plain = {"a": entry("F32", [3], 0, 12), "b": entry("F32", [3], 12, 24)}
    encoded = json.dumps(plain if header is None else header).encode() if raw is None else raw
    return struct.pack("<Q", (len(encoded) if length is None else length) % 2**64) + encoded + data


def entry(kind: Any, shape: Any, start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}


def safetensors() -> Iterator[Hostile]:
    """Yield files whose headers are wrong."""

    def one(content: bytes, may_pass: bool = False) -> Hostile:
        return Hostile("safetensors", {"model.safetensors": content}, "model.safetensors", may_pass=may_pass)

    good = tensors_file()
    for length in (0, 1, 7, 10**3, 10**8, 10**8 + 1, 2**31, 2**32, 2**40, 2**63, -1, -9):
        yield one(tensors_file(length=length))
    raws = [b"", b"x", b"null", b"[]", b"7", b'"x"', b"{", b"{}x", b"\xff\xfe{}", b"\0" * 50, b"{'a': 1}"]
    raws += [b'{"a": }', b"NaN"]
    raws += [b"[" * 10**5, b'{"a":' * 10**5, b'{"a":' + b"[" * 50 + b"]" * 50 + b"}"]
    raws += [rb'{"\ud800": 1}'.replace(b"\\", b"")]
    tensor = json.dumps(entry("F32", [3], 0, 12)).encode()
    raws += [b'{"a": ' + tensor + b', "a": ' + tensor + b"}", b" " * 10**6 + b"{}", b"{}" + b" " * 10**6 + b"x"]
    for raw in raws:
        yield one(tensors_file(raw=raw))
    cases = [[2], [4], [-3], [3.5], ["3"], [2**32, 2**32], [2**64], [2**63, 2], [3, 0], [0], [[3]], None, {}, "3"]
    cases += [3]
    for shape in cases:
        yield one(tensors_file({"a": entry("F32", shape, 0, 12)}, b"\0" * 12))
    yield one(tensors_file({"a": entry("F32", [1] * 10_000 + [4], 0, 12)}, b"\0" * 12))
    yield one(tensors_file({"a": entry("F32", [2**62, 0], 0, 0)}, b""))
    yield one(tensors_file({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}, b""))
    cases = ["O", "OBJ", "f32", "F8", "F4", "F6_E2M3", "F8_E8M0", "F8_E4M3", "C64", "U64", "", None, 7, "F32\0"]
    cases += ["V"]
    for kind in cases:
        yield one(tensors_file({"a": entry(kind, [3], 0, 12)}, b"\0" * 12))
    for kind, size in (("F8_E4M3", 3), ("F8_E5M2", 3), ("F8_E8M0", 3), ("C64", 24), ("U64", 24), ("U16", 6), ("F4", 2)):
        yield one(tensors_file({"a": entry(kind, [3], 0, size)}, b"\0" * size))
    for start, stop in ((12, 0), (0, 11), (0, 13), (0, 2**63), (2**64, 2**64 + 12), (-12, 0), (1, 13), (4, 16), (0, 0)):
        yield one(tensors_file({"a": entry("F32", [3], start, stop)}, b"\0" * 12))
    for start in (0, 4, 8, 13, 16, 100):  # overlapping, or with a gap
        yield one(tensors_file({"a": entry("F32", [3], 0, 12), "b": entry("F32", [3], start, start + 12)}, b"\0" * 24))
    for broken in ({}, {"dtype": "F32"}, {"dtype": "F32", "shape": [3]}, [], None, "F32", {"data_offsets": [0, 12]}):
        yield one(tensors_file({"a": broken}, b"\0" * 12))
    for offsets in ([0], [0, 12, 24], [], "0", None, {"0": 12}, ["0", "12"], [0.5, 12.5]):
        yield one(tensors_file({"a": {"dtype": "F32", "shape": [3], "data_offsets": offsets}}, b"\0" * 12))
    for metadata in ([], 7, {"a": 1}, {"a": {"b": "c"}}, "x"):
        yield one(tensors_file({"__metadata__": metadata, "a": entry("F32", [3], 0, 12)}, b"\0" * 12))
    for name in ("a\nb", "a\0", "\u202e", "n" * 10**5, "\U0001f40d"):
        yield one(tensors_file({name: entry("F32", [3], 0, 12)}, b"\0" * 12))
    yield one(good + b"x")
    yield one(good + archive(state_dict()))
    yield one(archive(state_dict()) + good)
    for cut in range(0, len(good), 9):
        yield one(good[:cut])
    flips = random.Random(1)
    for _ in range(60):
        yield one(flipped(good, flips, 1), may_pass=True)


NAMESPACE = named("argparse", "Namespace") + b")\x81"

REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def storage(kind: str = "FloatStorage", key: str = "0", location: str = "cpu", count: Any = 3) -> bytes:
    return group(text("storage"), named("torch", kind), text(key), text(location), part(count)) + b"Q"


def tensor(
    stored: bytes = storage(),
    offset: Any = 0,
    size: Any = (3,),
    stride: Any = (1,),
    grad: Any = False,
    hooks: bytes = call(named("collections", "OrderedDict")),
    metadata: bytes = b"",
) -> bytes:
    return call(REBUILD, stored, part(offset), part(size), part(stride), part(grad), hooks, metadata)


def state_dict(**items: bytes) -> bytes:
    """Return the pickle within a checkpoint of one tensor and these items."""
    items = {"weight": tensor(), **items}
    body = b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    return program(call(named("collections", "OrderedDict")) + body, protocol=2)


def archive(
    pickled: bytes, parts: Mapping[str, bytes] | None = None, more: Mapping[str, bytes] | None = None, method: int = 0
) -> bytes:
    """Return a checkpoint as torch.save writes it, with additions."""
    everything = {"m/data.pkl": pickled, **({"m/data/0": b"\0" * 12} if parts is None else parts), "m/version": b"3\n"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in [*everything.items(), *(more or {}).items()]:
            file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, method)
    return buffer.getvalue()


def checkpoints() -> Iterator[Hostile]:
    """Yield files of torch.save with payloads, and tensors with a wrong description."""

    def one(content: bytes, may_pass: bool = False) -> Hostile:
        return Hostile("checkpoint", {"pytorch_model.bin": content}, "pytorch_model.bin", may_pass=may_pass)

    good = archive(state_dict())
    for number, entry_ in enumerate(CALLS[::2]):  # the first form that torch.save itself uses, then others
        form = list(FORMS.values())[number % 4 if number % 2 else 0]
        yield one(archive(state_dict(extra=form(*entry_))))
    cases = ["_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_device_tensor_from_numpy"]
    cases += ["_rebuild_meta_tensor_no_storage"]
    for kind in cases:
        yield one(archive(state_dict(extra=call(named("torch._utils", kind), part(()), part(())))))
    indices = tensor(storage("LongStorage", "1", count=2), size=(1, 2), stride=(2, 1))
    for layout in ("sparse_coo", "sparse_csr"):
        made = call(named("torch.serialization", "_get_layout"), text(f"torch.{layout}"))
        sparse = call(named("torch._utils", "_rebuild_sparse_tensor"), made, group(indices, tensor(), part((3,))))
        yield one(archive(state_dict(extra=sparse), {"m/data/0": b"\0" * 12, "m/data/1": b"\xff" * 16}))
    for kind in ("_load_from_bytes", "UntypedStorage", "TypedStorage"):
        yield one(archive(state_dict(extra=call(named("torch.storage", kind), part(10**10)))))
    cases = ["Tensor", "Size", "device", "FloatTensor", "float32", "per_tensor_affine", "FloatStorage"]
    cases += ["LongStorage"]
    for kind in cases:
        yield one(archive(state_dict(extra=call(named("torch", kind), part(10**10)))))
        yield one(archive(state_dict(extra=named("torch", kind) + part((10**10,)) + b"\x81")))
    for kind in ("ComplexFloatStorage", "QInt8Storage", "UntypedStorage", "ObjectStorage", "cuda.FloatStorage"):
        yield one(archive(state_dict(extra=tensor(storage(kind)))))
    cases = [("collections", "Counter"), ("builtins", "bytearray"), ("builtins", "set"), ("_codecs", "encode")]
    for module, name in cases:
        yield one(archive(state_dict(extra=call(named(module, name), part(10**11)))))
    cases = [(4,), (10**12,), (2**40,), (2**62,), (2**63,), (2**40, 2**40), (-1,), (3, 3), "3", (3.0,), None]
    cases += [(0, 2**62)]
    for size in cases:
        strides = (1,) * len(size) if isinstance(size, tuple) else (1,)
        yield one(archive(state_dict(extra=tensor(size=size, stride=strides))))
    cases = [((0,), (10**12,)), ((0, 0), (10**6, 10**6)), ((-1,), (3,)), ((2,), (3,)), ((2**62,), (3,)), ((), (3,))]
    for stride, size in cases:
        yield one(archive(state_dict(extra=tensor(size=size, stride=stride))), may_pass=stride == ())
    for offset in (1, -1, 10**12, 2**62, 2**64, "0", None):
        yield one(archive(state_dict(extra=tensor(offset=offset))))
    for count in (2, 10**12, 2**61, 2**62, -1, -3, "3", None, 0):
        yield one(archive(state_dict(weight=tensor(storage(count=count)))))
    for kind in ("LongStorage", "DoubleStorage"):  # wider elements than the data have
        yield one(archive(state_dict(weight=tensor(storage(kind)))))
    for key in ("1", "../../../../etc/passwd", "/etc/passwd", "0/../0", "", "data.pkl", "\0"):
        yield one(archive(state_dict(weight=tensor(storage(key=key)))))
    for location in ("cuda:0", "meta", "mps", "xla", "nowhere", "/dev/null"):
        yield one(archive(state_dict(weight=tensor(storage(location=location)))), may_pass=True)
    callback = table({"0": named("torch._utils", "_rebuild_tensor_v2")})
    yield one(archive(state_dict(weight=tensor(grad=True, hooks=callback))), may_pass=True)
    for metadata in (part({"conj": True}), part({"neg": True}), part({"x": 1}), part(7), table({"neg": REBUILD})):
        yield one(archive(state_dict(extra=tensor(metadata=metadata))), may_pass=metadata == part({"x": 1}))
    cases = [part(7), part(None), part("x"), part({"a": {"b": 1}}), part([1]), part(1.5), storage(), REBUILD]
    cases += [part((1,))]
    for value in cases:
        yield one(archive(state_dict(extra=value)))
        yield one(archive(program(value, protocol=2)))
    for key in (part(7), part(None), part(()), part(b"x"), text("x\ny"), text("x" * 9999), text("\u202e"), tensor()):
        yield one(archive(program(b"}" + key + tensor() + b"s", protocol=2)))
    shadow = call(named("collections", "OrderedDict")) + part({"items": 7, "keys": 8, "__class__": 9}) + b"b"
    yield one(archive(program(shadow + text("weight") + tensor() + b"s", protocol=2)), may_pass=True)
    yield one(archive(program(REBUILD + part({"__code__": 1}) + b"b", protocol=2)))
    yield one(archive(program(storage() + part(0) + part("x") + b"s", protocol=2)))  # CVE-2026-24747
    yield one(archive(program(tensor() + part(0) + part(10**6) + b"s", protocol=2)))
    yield one(archive(program(tensor() + group(storage(), part(0), part((10**9,)), part((1,))) + b"b", protocol=2)))
    yield one(archive(program(b")" + b"q\0h\0\x86" * 60, protocol=2)))
    yield one(archive(program(b")" + b"\x85" * 150_000, protocol=2)))
    yield one(archive(program(b"}" + b")" + b"\x85" * 150_000 + b"Ns", protocol=2)))
    yield one(archive(program(b"N" * 300_000, protocol=2)))
    for doubled in (b"q\0h\0\x86" * 40, b"q\0h\0h\0\x87" * 30, b"\x85q\0(h\0h\0h\0t" * 30):  # 2 ** 40 leaves
        yield one(archive(program(b"}" + b")" + doubled + b"Ns", protocol=2)))
        yield one(archive(program(b"}(" + b")" + doubled + b"Nu", protocol=2)))
        pairs = b"]" + b")" + doubled + b"N\x86a\x85R"
        yield one(archive(program(named("collections", "OrderedDict") + pairs, protocol=2)))
        yield one(archive(program(text("storage") + named("torch", "FloatStorage") + b")" + doubled + b"\x87Q", 2)))
    lists = b"]q\0" + b"]q\1(h\0h\0eq\0" * 40
    yield one(archive(program(lists + b")R", protocol=2)))  # a message would contain the function
    yield one(archive(program(b"}" + b")" + b"\x85" * 90_000 + b"Ns", protocol=2)))
    yield one(archive(program(b"}" + b"](" * 45_000, protocol=2)))
    many = {f"w{number}": tensor(storage(count=25_000), size=(25_000,)) for number in range(40)}
    yield one(archive(state_dict(**many), {"m/data/0": b"\0" * 100_000}))
    for protocol in (0, 1, 3, 4, 5, 255):
        yield one(archive(program(tensor(), protocol=protocol)))
    cases = ["m/code/x.py", "m/constants.pkl", "m/data/x", "m/DATA.PKL", "m/extra/x", "../../canary", "/canary"]
    cases += ["m\\x", "x"]
    for name in cases:
        yield one(archive(state_dict(), more={name: b"cos\nsystem\n."}))
        yield one(archive(state_dict(), more={name + "/": b""}))
    for alignment in (b"x", b"9" * 5000, b"-1", b"0", b""):
        yield one(archive(state_dict(), more={"m/.storage_alignment": alignment}), may_pass=True)
        yield one(archive(state_dict(), more={"m/byteorder": alignment}))
    yield one(archive(state_dict(), more={"m/byteorder": b"big"}), may_pass=True)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield one(archive(state_dict(), method=method))
    bomb = program(text("x" * 10**8), protocol=2)
    yield one(archive(bomb, method=zipfile.ZIP_DEFLATED))
    double = archive(state_dict()).replace(b"m/version", b"m/data/0 ").replace(b"m/data/0 ", b"m/data.pk")
    yield one(double)
    yield one(archive(state_dict(), more={"m/data/9": b"x"}).replace(b"m/data/9", b"m/data/0"))
    yield one(archive(b""))
    yield one(archive(state_dict()[:-1]))
    yield one(archive(state_dict(), {}))
    cases = [(struct.pack("<I", 12), b"\xff\xff\xff\x7f"), (b"PK\x01\x02", b"PK\x01\x03")]
    cases += [(b"PK\x05\x06", b"PK\x05\x07")]
    for old, new in cases:
        yield one(good.replace(old, new))
    yield one(good + good)
    yield one(b"MZ" + good)
    yield one(good[:-22] + b"x" * 70_000 + good[-22:])
    for legacy in (b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        yield one(legacy + program(named("os", "system") + part((TOUCH,)) + b"R", protocol=2))
    yield one(b"cos\nsystem\n(S'touch canary'\ntR.")
    for cut in range(0, len(good), 40):
        yield one(good[:cut])
    flips = random.Random(2)
    for _ in range(120):
        yield one(flipped(good, flips, 1), may_pass=True)


def training_checkpoints() -> Iterator[Hostile]:
    """Yield checkpoints of training, whose namespaces and other values beside the weights are payloads."""

    def one(may_pass: bool = False, **items: bytes) -> Hostile:
        weights = {"model": table({"weight": tensor()}), **items}
        return Hostile("training", {"x.pt": archive(program(table(weights), 2))}, "x.pt", may_pass=may_pass)

    for number, entry_ in enumerate(CALLS[::2]):
        form = list(FORMS.values())[number % 4 if number % 2 else 0]
        yield one(args=form(*entry_))
        yield one(args=NAMESPACE + table({"x": form(*entry_)}) + b"b")
    for name in ("ArgumentParser", "FileType", "Action", "_sys", "Namespace.__init__", "_os.system"):
        yield one(args=call(named("argparse", name)))
    for state in ({"__class__": 7}, {"__dict__": {}}, {"__eq__": 7, "__hash__": 8}, {"__reduce__": "x"}, {}):
        yield one(may_pass=True, args=NAMESPACE + part(state) + b"b")
    for state in (part(7), part("x"), tensor(), part((None, {"__class__": 7})), part([1])):
        yield one(args=NAMESPACE + state + b"b")
    for function in (REBUILD, named("torch._utils", "_rebuild_parameter"), named("collections", "OrderedDict")):
        twice = table({"__setstate__": function}) + b"b" + part({"a": 1}) + b"b"
        yield one(may_pass=True, args=NAMESPACE + twice)
    yield one(args=call(named("argparse", "Namespace"), part({"a": 1})))
    yield one(args=b"}" + NAMESPACE + b"Ns")  # as a key
    yield one(args=b"}" + named("argparse", "Namespace") + b"Ns", may_pass=True)
    yield one(model=NAMESPACE + table({"weight": tensor()}) + b"b")
    yield one(model=table({"weight": NAMESPACE}))
    yield one(model=table({"x.vocab": part({"a": "b"})}))
    yield one(model=table({"x.vocab": NAMESPACE}))
    yield one(model=table({"x.vocab": part({"a": 1}), "weight": part({"a": 1})}))
    yield one(state_dict=table({"weight": part(7)}))
    pair = part((0.5, 0.5))
    for doubled in (b"q\0h\0\x86q\0" * 40, b"q\0h\0h\0\x87q\0" * 30, b"q\0(h\0h\0h\0h\0tq\0" * 30):  # 2 ** 40 leaves
        yield one(args=b"}" + pair + doubled + b"Ns")
        yield one(args=NAMESPACE + b"}" + pair + doubled + b"Nsb")
    yield one(args=b"]q\1(" + pair + b"q\0" + b"h\0" * 9999 + b"e", may_pass=True)
    yield one(args=b"]q\1(h\1h\1e")
    for cut in (9, 50):
        yield Hostile("training", {"x.pt": archive(program(table({"model": state_dict()[:-cut]}), 2))}, "x.pt")


def shards() -> Iterator[Hostile]:
    """Yield indexes that describe their shards wrongly."""
    good = tensors_file()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    other = tensors_file({"c": entry("F32", [3], 0, 12)}, b"\0" * 12)
    files = {first: good, second: other, "sub/x.safetensors": other, ".hidden.safetensors": other, "x.pystate": b"x"}
    honest = {"a": first, "b": first, "c": second}

    def one(index: Any, links: Mapping[str, str] | None = None, **more: bytes) -> Hostile:
        raw = index if isinstance(index, bytes) else json.dumps(index).encode()
        return Hostile("shards", {"model.safetensors.index.json": raw, **files, **more}, "", links or {})

    # Names of shards that lead elsewhere, and names that are none.
    traversals = ["../outside.safetensors", "/etc/passwd", "/etc/x.safetensors", "sub/x.safetensors", "./" + second]
    traversals += ["..", ".", "", "sub", "\0", second + "\0", second + "\n", " " + second, "..\\" + second]
    traversals += ["C:\\x.safetensors"]
    traversals += ["file:///etc/passwd", "http://127.0.0.1:9/x.safetensors", "~/x.safetensors"]
    traversals += ["$HOME/x.safetensors", "%2e%2e/x"]
    traversals += [".hidden.safetensors", "x.pystate", "missing.safetensors", "model.safetensors.index.json"]
    traversals += ["x" * 5000]
    traversals += ["m\u043edel-00002-of-00002.safetensors", "\ud800.safetensors", "-rf.safetensors", second.upper()]
    for name in traversals:
        yield one({"weight_map": {**honest, "c": name}})
    for shard in (7, None, [second], {"name": second}, True, 1.5):
        yield one({"weight_map": {**honest, "c": shard}})
    # Indexes and shards that do not fit each other, damaged indexes, and links.
    cases = [[], 7, None, "x", {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}]
    cases += [{"weight_map": "x"}, [[]]]
    for index in cases:
        yield one(index)
    yield one({"weight_map": {**honest, "d": second}})
    yield one({"weight_map": {"a": first, "b": first}} | {"metadata": {"total_size": -1}}, **{first: other})
    yield one({"weight_map": {"a": first, "c": second}})
    yield one({"weight_map": {**honest, "a": second}})
    yield one({"weight_map": {**honest, "a\n": second}})
    yield one({"weight_map": honest}, **{second: good})
    yield one({"weight_map": honest}, **{second: good[:40]})
    yield one({"weight_map": honest}, **{second: b"cos\nsystem\n(S'touch canary'\ntR."})
    cases = [b"", b"{", b"\xff", b"[" * 10**5, b'{"weight_map":' * 10**5, b"9" * 10**5, b'{"weight_map": NaN}']
    cases += [b"\0"]
    for raw in cases:
        yield one(raw)
    doubled = json.dumps({"weight_map": honest})[:-2] + f', "c": "{first}"}}}}'
    yield one(doubled.encode())
    cases = ["/etc/passwd", "/dev/zero", "../outside.safetensors", "sub/x.safetensors", "missing", "FIFO"]
    cases += ["z.safetensors"]
    for target in cases:
        yield one({"weight_map": {**honest, "c": "z.safetensors"}}, {"z.safetensors": target})


# Damage.


def damaged(pickles: Mapping[str, bytes]) -> Iterator[Hostile]:
    """Yield good pickles cut short, with flipped bits (anywhere, or outside of numbers), or with parts left out."""
    for number, content in enumerate(pickles.values()):
        dice = random.Random(number)
        for _ in range(15):
            yield of_haiku("truncated", content[: dice.randrange(len(content))])
        for _ in range(15):
            yield of_haiku("flipped", flipped(content, dice, 1), may_pass=True)
        structure = outside_of_numbers(content)
        for _ in range(40):
            yield of_haiku("flipped", flipped(content, dice, 1, structure), may_pass=True)
        for _ in range(15):
            yield of_haiku("flipped", flipped(content, dice, 50, structure), may_pass=True)
        for _ in range(10):
            start, stop = sorted(dice.choices(structure, k=2))
            yield of_haiku("spliced", content[:start] + content[stop:], may_pass=True)
            yield of_haiku("spliced", content[:stop] + content[start:], may_pass=True)


def flipped(content: bytes, dice: random.Random, count: int, where: list[int] | None = None) -> bytes:
    changed = bytearray(content)
    for _ in range(count):
        place = dice.choice(where) if where else dice.randrange(len(content))
        changed[place] ^= 1 << dice.randrange(8)
    return bytes(changed)


def outside_of_numbers(content: bytes) -> list[int]:
    """Return the positions of a pickle outside of the bytes of arrays."""
    places = []
    for opcode, argument, start in pickletools.genops(content):
        size = 5 if isinstance(argument, bytes) else 1
        places += range(start or 0, (start or 0) + size)
        if opcode.arg is not None and not isinstance(argument, bytes):
            places += range((start or 0) + 1, (start or 0) + 2)
    return places


# The observing process.


@dataclass(frozen=True)
class Report:
    """Result of reading one file."""

    name: str
    outcome: str
    """`refused`, `read`, or the name of another exception."""
    message: str
    events: list[str]
    """Actions beyond reading the file: see `_Watch`."""
    seconds: float
    """CPU time."""


def watch(jobs: Mapping[str, tuple[str, Path]], sandbox: Path, timeout: float = 300) -> list[Report]:
    """Read files in a separate process, each with the reader that `jobs` names; return reports until it died."""
    listed = [[name, reader, str(path)] for name, (reader, path) in jobs.items()]
    ran = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(listed),
        cwd=sandbox,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    reports = [Report(**json.loads(line)) for line in ran.stdout.splitlines() if line.startswith("{")]
    if len(reports) < len(jobs):
        last = listed[len(reports)][0]
        reports.append(Report(last, f"died with {ran.returncode}", ran.stderr[-2000:], [], 0))
    return reports


HARMLESS = ("builtins.id", "object.__getattr__", "os.listdir", "os.scandir", "sys._getframe")
"""Audit events of code that only inspects. All others are reported, except reading a file of the sandbox."""


class _Watch:
    """Recorder of Python's audit events between `begin` and `end`."""

    def __init__(self) -> None:
        self.sandbox = os.path.realpath(os.getcwd()) + "/"
        self.events: list[str] | None = None
        self.own = ""
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.events is not None and event not in HARMLESS:
            events, self.events = self.events, None  # the check below raises events too
            if event != "open" or self.out_of_bounds(*arguments):
                events.append(" ".join([event, *(one[:100] for one in arguments if isinstance(one, str))]))
            self.events = events

    def out_of_bounds(self, path: Any, mode: str | None, flags: int) -> bool:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        real = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes) else self.own
        return bool(writes) or not (real == self.own or real.startswith(self.sandbox))

    def begin(self, path: str) -> None:
        self.own = os.path.realpath(path)  # a link that the user names is trusted
        self.events = []

    def end(self) -> list[str]:
        events, self.events = self.events or [], None
        return events


def _readers() -> dict[str, Callable[[Path], Any]]:
    """Return the readers by name, after each has read good and bad files, so that nothing more is imported later."""
    import torch

    from perceivers.pretrained.foreign import read_state, read_torch
    from perceivers.pretrained.unpickle import read_haiku

    torch.set_num_threads(1)
    repr(torch.zeros(1))  # as some of the messages do; this imports the modules that printing needs
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}).encode()
    good: dict[str, bytes] = {"good.pystate": program(modules()), "good.safetensors": tensors_file()}
    good |= {
        "good.bin": archive(state_dict()),
        "model.safetensors.index.json": index,
        "model-1.safetensors": tensors_file(),
    }
    home = Hostile("warm", good).write(Path("warm"))
    assert _is_plain(read_haiku(home / "good.pystate"))
    assert all(_is_plain(read_torch(home / name)) for name in ("", "good.bin", "good.safetensors"))
    for name, content in good.items():
        (home / f"bad-{name}").write_bytes(content[:-9])
        reader = read_haiku if name == "good.pystate" else read_torch
        with contextlib.suppress(ValueError):
            reader(home / f"bad-{name}")
    assert _is_plain(read_state(home / "good.bin")[0])
    return {"haiku": read_haiku, "torch": read_torch, "state": lambda path: read_state(path)[0]}


def _is_plain(found: Any) -> bool:
    """Return True for a mapping of names to dense numeric arrays, or a pair of mappings; touch every number."""
    if isinstance(found, tuple):
        return len(found) == 2 and all(map(_is_plain, found))
    arrays = {name: np.asarray(array.double() if hasattr(array, "double") else array) for name, array in found.items()}
    return all(
        isinstance(name, str) and array.dtype.kind in "biuf" and array.sum() is not None
        for name, array in arrays.items()
    )


def _unpickled(path: Path) -> Any:
    """Unpickle without any check, to show that the observer notices it."""
    with path.open("rb") as file:
        return pickle.load(file)


def _main() -> None:
    """Read the files that standard input lists, and print a report of each.

    The process may take half a gigabyte more than at its start, and an extension code stands for os.system.
    """
    jobs = json.load(sys.stdin)
    readers = {"pickle": _unpickled} if {reader for _, reader, _ in jobs} == {"pickle"} else _readers()
    copyreg.add_extension("os", "system", 240)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, resource.RLIM_INFINITY))
    np.seterr(all="ignore")
    watch = _Watch()
    for name, reader, path in jobs:
        target, message, start = Path(path), "", time.process_time()
        watch.begin(path)
        try:
            found = readers[reader](target)
            outcome = "read"
        except ValueError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:
            outcome, message = type(error).__name__, str(error)
        events, seconds = watch.end(), time.process_time() - start
        if outcome == "read" and reader != "pickle" and not _is_plain(found):
            outcome = "read something else"
        print(json.dumps(vars(Report(name, outcome, message, events, seconds))), flush=True)


if __name__ == "__main__":
    _main()
