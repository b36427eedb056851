"""Loading DeepMind's pickles without unpickling them.

A pickle is a program for a small stack machine. Python's machine imports and calls whatever the program names. The
machine here knows only the opcodes that arrays in dictionaries need, and the names in `NAMES`. It imports nothing and
calls nothing that the file chooses: a name selects a case in `_called`, which builds the value. No option lifts this.
"""

import math
import os
import pickletools
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file

Arrays = dict[str, np.ndarray]


class Name(Enum):
    """The meaning of a global name in a pickle."""

    MAPPING = auto()
    """A class of mappings, called with a dictionary or nothing."""
    BYTES = auto()
    """The constructor of bytes, which protocol 2 uses for empty bytes."""
    ENCODE = auto()
    """The encoding of text, which protocol 2 uses for other bytes."""
    ARRAY = auto()
    """NumPy's array class, named but never called."""
    DTYPE = auto()
    """NumPy's dtype class."""
    EMPTY = auto()
    """NumPy's function that makes an empty array, to be filled by its state."""
    SCALAR = auto()
    """NumPy's function that makes a scalar."""
    BUFFER = auto()
    """NumPy's function that makes an array from a buffer, in protocol 5."""
    JAX = auto()
    """JAX's function that makes a device array."""


NAMES = {
    "haiku._src.data_structures FlatMapping": Name.MAPPING,
    "haiku._src.data_structures FlatMap": Name.MAPPING,
    "haiku._src.data_structures frozendict": Name.MAPPING,
    "collections OrderedDict": Name.MAPPING,
    "__builtin__ bytes": Name.BYTES,
    "builtins bytes": Name.BYTES,
    "_codecs encode": Name.ENCODE,
    "numpy ndarray": Name.ARRAY,
    "numpy dtype": Name.DTYPE,
    "numpy.core.multiarray _reconstruct": Name.EMPTY,
    "numpy._core.multiarray _reconstruct": Name.EMPTY,
    "numpy.core.multiarray scalar": Name.SCALAR,
    "numpy._core.multiarray scalar": Name.SCALAR,
    "numpy.core.numeric _frombuffer": Name.BUFFER,
    "numpy._core.numeric _frombuffer": Name.BUFFER,
    "jax._src.array _reconstruct_array": Name.JAX,
    "jax._src.device_array reconstruct_device_array": Name.JAX,
}
"""All names that a pickle may hold, as "module name". Old JAX arrays are pickled as NumPy arrays."""

VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes that push a number, a text or bytes."""

STEPS = {
    *("PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK", "TUPLE"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}
"""Other opcodes; see `_Machine._step`."""

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes if opcode.name in VALUES | STEPS}
"""All opcodes that a pickle may hold."""

CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
"""Codes of the NumPy dtypes that an array may have."""

MOST_OPCODES, MOST_ARRAYS, MOST_AXES, LONGEST_AXIS, LONGEST_KEY = 100_000, 10_000, 32, 2**31, 500
"""Limits. The largest released file needs about a tenth of the opcodes and of the arrays."""


def read_haiku(path: Path) -> tuple[Arrays, Arrays]:
    """Load parameters and state of a pickled haiku model, by "module/name"; ValueError if the file holds anything else.

    The file holds either the parameters, as {module: {name: array}}, or both, as {"params": ..., "state": ...}. Arrays
    are writable and in native byte order; an array that the file has under several names stays shared.
    """
    try:
        with regular_file(path).open("rb") as file:
            root = _Machine().run(_Reader(file))
        both = isinstance(root, dict) and root.keys() == {"params", "state"}
        params, state = (_flat(root["params"]), _flat(root["state"])) if both else (_flat(root), {})
        if not params:
            raise ValueError("holds no arrays")
        if sum(array.nbytes for array in (*params.values(), *state.values())) > 2 * path.stat().st_size:
            raise ValueError("one array under too many names: holds more than the file does")
        return params, state
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(str(error).removeprefix(f'{path}: '))}") from None


@dataclass(eq=False)
class _Dtype:
    """A dtype whose byte order may still be missing."""

    code: str
    order: str | None = None


@dataclass(eq=False)
class _Array:
    """An array whose shape and bytes may still be missing."""

    value: np.ndarray | None = None


class _Reader:
    """A file from which no more is read than it holds, so that a false length allocates no memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"cut short or damaged: {size} bytes should follow, {self.left} do")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(LONGEST_KEY)
        self.left -= len(line)
        return line


class _Machine:
    """The machine of one pickle: stack, marks, memo, and a budget of bytes that may become values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = 0

    def run(self, reader: _Reader) -> Any:
        """Return the value that a pickle describes: dictionaries, arrays and their parts."""
        self.budget = 2 * reader.left  # text becomes bytes, and bytes become arrays
        if reader.read(1) != b"\x80" or reader.read(1) not in (b"\2", b"\3", b"\4", b"\5"):
            raise ValueError("not a pickle of protocol 2 to 5")
        for _ in range(MOST_OPCODES):
            code = reader.read(1)
            if code not in OPCODES:
                raise ValueError(f"opcode {code!r} has no place in a pickle of arrays; refused")
            opcode = OPCODES[code]
            self._step(opcode.name, opcode.arg.reader(cast(BinaryIO, reader)) if opcode.arg else None)
            if opcode.name == "STOP":
                return self._result(reader)
        raise ValueError(f"more than {MOST_OPCODES} opcodes: not a pickle of a model's arrays")

    def _result(self, reader: _Reader) -> Any:
        if reader.left:
            raise ValueError("goes on after its end")
        if self.marks or len(self.stack) != 1:
            raise ValueError("damaged: it holds more or less than one value")
        return self.stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        """Apply an opcode to the stack."""
        # Values and containers, then the memo.
        match opcode:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(opcode[-1]))))
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(tuple(items))
            case "SETITEM":
                items = self._pop(2)
                self._set_items(items)
            case "SETITEMS":
                items = self._since_mark()
                self._set_items(items)
            case "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ValueError(f"damaged: value {argument} is used before it is there")
                self.stack.append(self.memo[argument])
            # Names, calls and states, which could run code: `_named`, `_called` and `_fill` admit only those of arrays.
            case "GLOBAL":
                self.stack.append(_named(argument))
            case "STACK_GLOBAL":
                module, name = self._pop(2)
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise ValueError("names something by what is not text")
                self.stack.append(_named(f"{module} {name}"))
            case "REDUCE":
                function, arguments = self._pop(2)
                self.stack.append(self._called(function, arguments))
            case "BUILD":
                (state,) = self._pop(1)
                self._fill(self._top(), state)
            case _ if opcode in VALUES:
                self.stack.append(argument)

    def _called(self, function: Any, arguments: Any) -> Any:
        """Return the value that the named function would return for these arguments, without calling the function."""
        match function, arguments:
            case Name.MAPPING, ():
                return {}
            case Name.MAPPING, (dict() as mapping,):
                return mapping
            case Name.BYTES, ():
                return b""
            case Name.ENCODE, (str() as text, "latin1"):
                self._pay(len(text))
                return text.encode("latin-1")
            case Name.DTYPE, (str() as code, 0, 1) if code in CODES:  # 0 and 1 are also False and True
                return _Dtype(code)
            case Name.DTYPE, (str() as code, *_):
                raise ValueError(f"dtype {code} is not one of plain numbers: {', '.join(sorted(CODES))}")
            case Name.EMPTY, (Name.ARRAY, (0,), b"b" | "b"):
                return _Array()
            case Name.SCALAR, (_Dtype() as dtype, data):
                return _Array(self._array(data, dtype, (), "C"))
            case Name.BUFFER, (data, _Dtype() as dtype, shape, "C" | "F" as order):
                return _Array(self._array(data, dtype, shape, order))
            case Name.BUFFER, (data, _Dtype() as dtype, shape, "K", tuple() as axes):
                value = self._array(data, dtype, shape, "C")
                if set(map(type, axes)) - {int} or sorted(axes) != list(range(value.ndim)):
                    raise ValueError("an array's axes are not in any order")
                return _Array(value.transpose(axes).copy())
            case Name.JAX, (Name.EMPTY as inner, inner_arguments, state, dict()):
                array = self._called(inner, inner_arguments)
                self._fill(array, state)
                return array
            case Name(), _:
                raise ValueError(f"calls {function.name} as NumPy, JAX and haiku never do; refused")
        raise ValueError("calls what cannot be called; refused")

    def _fill(self, target: Any, state: Any) -> None:
        """Set the state of an unfinished dtype or array."""
        match target, state:
            case _Dtype(order=None), (3, "<" | ">" | "|" as order, None, None, None, -1, -1, 0):
                target.order = order
            case _Array(value=None), (1, shape, _Dtype() as dtype, 0 | 1 as fortran, data):
                target.value = self._array(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise ValueError("gives a state to what takes no such state; refused")

    def _array(self, data: Any, dtype: _Dtype, shape: Any, order: Any) -> np.ndarray:
        if isinstance(data, str):
            data = data.encode("latin-1")  # bytes that Python 2 wrote
        if not isinstance(data, bytes | bytearray) or dtype.order is None:
            raise ValueError("an array has no bytes or an unfinished dtype")
        if not (isinstance(shape, tuple) and len(shape) <= MOST_AXES):
            raise ValueError("an array's shape is no tuple of sizes")
        if not all(type(size) is int and 0 <= size < LONGEST_AXIS for size in shape):
            raise ValueError("an array's shape is no tuple of sizes")
        kind = np.dtype(dtype.order + dtype.code)
        if math.prod(shape) * kind.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} and dtype {kind} cannot hold {len(data)} bytes")
        self._pay(len(data))
        value = np.frombuffer(data, kind).reshape(shape, order=order)
        return np.array(value, kind.newbyteorder("="), order="C")

    def _pay(self, size: int) -> None:
        """Subtract bytes from the budget; ValueError where it ends."""
        self.budget -= size
        if self.budget < 0:
            raise ValueError("describes more bytes than it holds")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise ValueError("damaged: it sets items of what has none")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(key, str) and len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
                raise ValueError("a key is not the name of a module or an array")
            if key in target:
                raise ValueError(f"the key {key} is there twice")
            target[key] = value

    def _top(self) -> Any:
        if not self.stack:
            raise ValueError("damaged: its stack is empty")
        return self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("damaged: its stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("damaged: its stack has no mark")
        items, self.stack = self.stack, self.marks.pop()
        return items


def _named(name: str) -> Name:
    if name not in NAMES:
        raise ValueError(f"names {name.replace(' ', '.')}, which has no place in a pickle of arrays; refused")
    return NAMES[name]


def _flat(modules: Any) -> Arrays:
    flat: Arrays = {}
    for module, arrays in _items(modules):
        for name, array in _items(arrays):
            key = f"{module}/{name}"
            if not isinstance(array, _Array) or array.value is None:
                raise ValueError(f"{key} is not an array")
            if key in flat:
                raise ValueError(f"{key} is there twice")
            if len(flat) == MOST_ARRAYS:
                raise ValueError(f"more than {MOST_ARRAYS} arrays: not a pickle of a model's arrays")
            flat[key] = array.value
    return flat


def _items(mapping: Any) -> list[tuple[str, Any]]:
    if not isinstance(mapping, dict):
        raise ValueError("not a mapping of modules to mappings of names to arrays")
    return list(mapping.items())
