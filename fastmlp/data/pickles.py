"""Read the arrays of a pickled dictionary without running what the file says.

A pickle is a program. ``pickle.Unpickler``, even one that finds no class but NumPy's, lets a file
make NumPy's objects into what they must not be, write beyond memory, and take hours. Here the
standard library's :mod:`pickletools` takes the file apart, and the few instructions that such a
dictionary consists of are followed on plain values, each in time and memory that its own bytes
account for.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastmlp.utils.untrusted import printable

SCALARS = (int, float, str, bytes, bytearray, type(None))
DTYPES = ("u1", "i1", "i2", "i4", "i8", "b1", "f2", "f4", "f8")
LARGEST = 64 << 20
"""Bytes of a file: twice those of a batch of CIFAR-10."""
LONGEST_NAME = 1000
"""Characters of a key, a dtype or a byte order, which are read as often as the file says."""
INSTRUCTIONS = 1_000_000
"""Of a file: a label takes one or two."""


class PickleError(ValueError):
    """The file is no pickle of a dictionary of arrays, or asks for more than that."""


class DTypeStandIn:
    """What a file gets for ``numpy.dtype``: a name, and the byte order that comes later."""

    def __init__(self, name: object, *_: object) -> None:
        self._name, self._order = _text(name), "|"
        if self._name not in DTYPES:
            raise PickleError(f"it holds an array of dtype {self._name[:20]!r}")

    def __setstate__(self, state: Any) -> None:
        self._order = _text(state[1])

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype."""
        return np.dtype(("<" if self._order == "|" else self._order) + self._name)


class ArrayStandIn:
    """What a file gets for ``numpy.ndarray``: its content comes after it."""

    content: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.content = _array(content, dtype, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class _Function:
    """A name that the file may call."""

    name: str


FUNCTIONS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "encode",
}


def read_dictionary(file: BinaryIO) -> dict[str, Any]:
    """Return a dictionary of numbers, texts, bytes, flat lists and tuples of these, and arrays;
    keys become str.

    Raises :class:`PickleError` for anything else.
    """
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise PickleError(f"it has more than {LARGEST:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # escapes in damaged texts
            value = _Machine(len(content)).run(content)
    except PickleError:
        raise
    except Exception as error:  # pickletools raises ValueError for most bytes that are no pickle
        raise PickleError(f"it is no whole pickle: {error}") from error
    if not isinstance(value, dict):
        raise PickleError("it holds something else than a dictionary")
    return {_text(key): _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not all(isinstance(i, SCALARS) for i in value):
        raise PickleError("it holds lists within a list")
    if not isinstance(value, ArrayStandIn):
        if not isinstance(value, (list, tuple, *SCALARS)):
            raise PickleError("it holds something else than numbers, texts and arrays")
        return value
    if value.content is None:
        raise PickleError("it holds an array without content")
    return value.content


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)) or len(value) > LONGEST_NAME:
        raise PickleError("it holds a name that is no text, or too long")
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Machine:
    """Follows the instructions of a pickle on a stack of values."""

    def __init__(self, size: int) -> None:
        self._encodable = 2 * size  # bytes, of texts that stand for bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count >= INSTRUCTIONS:
                raise PickleError(f"it has more than {INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            follow = _FOLLOW.get(opcode.name)
            if follow is None:
                raise PickleError(f"it has the instruction {opcode.name}, which no data needs")
            follow(self, argument)
        raise PickleError("it ends too early")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def text(self, value: str) -> None:
        self._stack.append(value.encode("latin1"))  # a str of Python 2

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def tuple_of(self, count: int | None) -> None:
        items = self._items() if count is None else [self._stack.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(items))

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        self._last(list).append(value)

    def appends(self, _: Any) -> None:
        items = self._items()
        self._last(list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), _text(self._stack.pop())
        self._last(dict)[key] = value

    def list_of(self, _: Any) -> None:
        self._stack.append(self._items())

    def dict_of(self, _: Any) -> None:
        items = self._items()
        self._stack.append({})
        self._fill(items)

    def set_items(self, _: Any) -> None:
        self._fill(self._items())

    def _fill(self, items: list[Any]) -> None:
        into = self._last(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            into[_text(key)] = value

    def name(self, argument: str | None) -> None:
        if argument is None:  # STACK_GLOBAL
            attribute, module = self._stack.pop(), self._stack.pop()
        else:
            module, attribute = argument.split(" ", 1)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise PickleError("it asks for something whose name is no text")
        known = FUNCTIONS.get((module.replace("numpy._core", "numpy.core"), attribute))
        if known is None:
            name = printable(f"{module}.{attribute}", 100)
            raise PickleError(f"it asks for {name}, not allowed in a data file")
        self._stack.append(_Function(known))

    def call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise PickleError("it calls something that is no function")
        if function.name == "encode":
            text = arguments[0]
            if not isinstance(text, str):
                raise PickleError("it encodes something that is no text")
            self._encodable -= len(text)
            if self._encodable < 0:
                raise PickleError("it makes more bytes than it has")
            self._stack.append(text.encode("latin1"))
        elif function.name == "dtype":
            self._stack.append(DTypeStandIn(*arguments))
        elif function.name == "reconstruct":
            self._stack.append(ArrayStandIn())
        elif function.name == "frombuffer":
            self._stack.append(ArrayStandIn())
            self._stack[-1].content = _array(*arguments)
        else:
            raise PickleError(f"it calls {function.name}")

    def build(self, _: Any) -> None:
        state, value = self._stack.pop(), self._stack[-1]
        if not isinstance(value, (DTypeStandIn, ArrayStandIn)):
            raise PickleError("it changes something that is no array")
        value.__setstate__(state)

    def _items(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _last(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise PickleError(f"it fills something that is no {kind.__name__}")
        return self._stack[-1]


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Return an array of this content; raise unless its size is what the content has."""
    if not isinstance(dtype, DTypeStandIn) or not isinstance(content, (bytes, bytearray)):
        raise PickleError("it holds an array of something else than numbers")
    array = np.frombuffer(content, dtype.numpy)
    sizes = [int(size) for size in shape]
    if any(size < 0 for size in sizes) or len(sizes) > 4:
        raise PickleError("it holds an array of no shape")
    return array.reshape(sizes, order="F" if order == "F" else "C")


_FOLLOW: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT"), _Machine.push
    ),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "UNICODE"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.text),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _Machine.dict_of,
    "LIST": _Machine.list_of,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "MARK": _Machine.mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.tuple_of(0),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
"""What each instruction does."""
