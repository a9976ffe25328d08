"""Look through the pickle in a file of tensors before it is followed.

:func:`torch.load` with ``weights_only`` runs no code of the file's, but follows whatever else it
says: it makes tensors of memory that nobody wrote, asks for gigabytes in a few bytes, and hashes
keys for hours. What :func:`torch.save` writes of tensors in dicts and lists consists of few
instructions, and of few calls, whose arguments the file itself holds.
"""

from __future__ import annotations

import pickletools
from collections.abc import Collection

INSTRUCTIONS = 20_000_000
"""Of a file: an epoch of a history takes some forty."""
MANY = 10_000
"""Dicts, lists and tuples that any file may have, and one more for each eight bytes: an empty one
is a byte in a file and some sixty in memory."""
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
"""What tensors are made by, of a storage that the file holds; a storage is none of a size alone."""
EMPTY = "collections OrderedDict"
"""Called without arguments alone."""
ENCODE = "_codecs encode"
"""Called with a text, of which there are no more characters than the file has bytes."""

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"),
    *("EMPTY_DICT", "EMPTY_LIST", "SHORT_BINSTRING", "BINSTRING"),
}
_PUTS, _GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Kind:
    """What is known of a value: the ``name`` of a global, the length of a ``text``, whether it is
    an ``empty`` tuple or an object with a ``state`` of its own, and for a tuple the kind of its
    ``first`` item."""

    __slots__ = ("empty", "first", "name", "state", "text")

    def __init__(
        self,
        name: str | None = None,
        text: int | None = None,
        empty: bool = False,
        first: _Kind | None = None,
        state: bool = False,
    ) -> None:
        self.name, self.text, self.empty, self.first = name, text, empty, first
        self.state = state


_OTHER = _Kind()


def check_pickle(data: bytes, calls: Collection[str] = ()) -> None:
    """Raise ValueError unless a pickle has no instructions but those of tensors, numbers and texts
    in dicts, lists and tuples, keys of dicts are texts or numbers, and nothing is called but what
    makes tensors, and ``calls``: "MODULE NAME". Other exceptions tell of a pickle that is none."""
    stack: list[_Kind] = []
    marks: list[int] = []
    memo: dict[int, _Kind] = {}
    encodable = len(data)
    containers = MANY + len(data) // 8

    def taken() -> list[_Kind]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def check_key(kind: _Kind) -> None:
        if kind.text is None:
            raise ValueError("a key is neither a text nor a number")

    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count >= INSTRUCTIONS:
            raise ValueError("it has too many instructions")
        if name in _CONTAINERS:
            containers -= 1
            if containers < 0:
                raise ValueError("it has too many dicts, lists and tuples")
        if name in _PUTS:
            memo[int(str(argument))] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(str(argument))])
        elif name == "BINUNICODE":
            stack.append(_Kind(text=len(str(argument))))
        elif name in _VALUES:
            number = name.startswith(("BININT", "BINFLOAT"))
            stack.append(_Kind(text=0) if number else _OTHER)
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES or name == "TUPLE":
            size = _TUPLES.get(name)
            items = taken() if size is None else stack[len(stack) - size :]
            if size:
                del stack[-size:]
            stack.append(_Kind(empty=not items, first=items[0] if items else None))
        elif name == "GLOBAL":
            stack.append(_Kind(name=str(argument)))
        elif name == "BINPERSID":
            stack[-1] = _OTHER
        elif name == "APPEND":
            stack.pop()
        elif name == "APPENDS":
            taken()
        elif name == "SETITEM":
            stack.pop()
            check_key(stack.pop())
        elif name == "SETITEMS":
            for kind in taken()[::2]:
                check_key(kind)
        elif name == "BUILD":  # a module's state_dict has its versions so, an array its numbers
            stack.pop()
            if not stack[-1].state:
                raise ValueError("it changes what has no state")
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if function.name == EMPTY and not arguments.empty:
                raise ValueError(f"it calls {EMPTY} with arguments")
            if function.name not in (EMPTY, *TENSORS, *calls):
                raise ValueError(f"it calls {function.name}")
            if function.name == ENCODE:
                encodable -= len(data) if arguments.first is None else arguments.first.text or 0
                if encodable < 0:
                    raise ValueError("it makes more bytes than it has")
            stack.append(_Kind(state=function.name in (EMPTY, *calls)))
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it has the instruction {name}")
