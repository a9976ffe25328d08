"""What a Python file tells its users, read from its syntax tree, without running it.

A message is what an exception holds, what is warned of and why something is left out. What it says
of the moment, such as a path, is a word in capitals, and ``...`` where nothing has a name.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CARRIERS = {
    *("hints", "paragraphs", "lacks", "incomplete", "dropped", "describe_device_error"),
    *("_load_cuda", "_unfit_gpu", "_why_no_cuda", "unsupported_reason", "unsupported_data"),
}
"""Functions whose results, and variables whose values, are texts for the user, though nothing
raises them where they are written."""
SENTENCES = {
    *("UserError", "DownloadError", "DamagedFileError", "DivergedError", "SystemExit"),
    *("NotADirectoryError", "PermissionError", "RuntimeError"),
}
"""Exceptions whose texts a command prints as they are."""
PROGRAMMERS = {"AssertionError", "NotImplementedError"}
"""Exceptions that no user's mistake raises. All others hold the reason within a sentence."""
MOST = 4
"""Variants of one message; where there are more, a word in capitals stands for them."""


Scope = ast.Module | ast.FunctionDef


@dataclass(frozen=True)
class Message:
    """A sentence of the source, and the file that says it."""

    text: str
    file: str
    whole: bool = True
    """Whether it is a sentence by itself; else it is told as the reason within another."""

    @property
    def pattern(self) -> str:
        """A regular expression of all that it may come to."""
        return ".*".join(map(re.escape, re.split(r"\b[A-Z][A-Z_]+\b|\.{3}", self.text)))


class Module:
    """A file of the source, parsed."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root = root
        self.name = str(path.relative_to(root))
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined = [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef)]
        self.functions = {node.name: node for node in self.defined}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The module's constants, its own and those that it imports from the package."""
        found: dict[str, Any] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmlp."):
                path = self.root / f"{str(node.module).replace('.', '/')}.py"
                names = [a.name for a in node.names if a.name.isupper()]
                theirs = Module(self.root, path).constants if path.exists() and names else {}
                found |= {name: theirs[name] for name in names if name in theirs}
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for name in (t.id for t in targets if isinstance(t, ast.Name)):
                value = getattr(node, "value", None)
                try:
                    found[name] = _literal(value, found)
                except ValueError:
                    continue
        return found

    def messages(self) -> Iterator[Message]:
        """Yield what the module tells a user."""
        functions: list[Scope] = [self.tree, *self.defined]
        for function in functions:
            reader = Reader(self, function)
            for node in _own(function):
                for value, whole in self._told(node, function):
                    for text in filter(has_words, reader.texts(value)):
                        shown = re.sub(r"\.{4,}$", "....", " ".join(text.split()))
                        yield Message(re.sub(r"\.{6,}", "...", shown), self.name, whole)

    def _told(self, node: ast.AST, function: Scope) -> Iterator[tuple[ast.expr, bool]]:
        """Yield the text of a statement or call that tells the user something, and whether it is a
        sentence by itself."""
        match node:
            case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in SENTENCES:
                if function not in self.helpers:
                    yield text, True
            case ast.Call(func=func) if self.functions.get(_some_name(func)) in self.helpers:
                yield node, True
            case ast.Raise(
                exc=ast.Call(func=ast.Name() | ast.Attribute() as raised, args=[text, *_])
            ):
                if _some_name(raised) not in SENTENCES | PROGRAMMERS:
                    yield text, False
            case ast.Call(func=ast.Attribute(attr="warn"), args=[text, *_]):
                yield text, True
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[text]):
                if name in CARRIERS:
                    yield text, False
            case ast.Call(func=ast.Name(id="print"), args=[text, *_], keywords=[_, *_]):
                if "WARNING" in ast.unparse(text):
                    yield text, True
            case ast.Call(func=ast.Name(id="Plan"), args=[ast.Constant(value=None), _, text]):
                yield text, False
            case ast.Return(value=ast.expr() as value):
                name = getattr(function, "name", "")
                if name in CARRIERS:
                    yield value, name == "describe_device_error"
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in CARRIERS:
                yield value, name in ("hints", "paragraphs")

    @cached_property
    def helpers(self) -> list[ast.FunctionDef]:
        """The functions that return an exception with a sentence, which others raise."""
        returned = {
            function: [node.value for node in _own(function) if isinstance(node, ast.Return)]
            for function in self.defined
        }
        return [f for f, values in returned.items() if any(map(_is_error, values))]


class Reader:
    """Reads expressions of one function as the texts that they may come to."""

    def __init__(
        self,
        module: Module,
        function: Scope,
        given: dict[str, list[str]] | None = None,
    ) -> None:
        self.module, self.function, self.given = module, function, given or {}

    def texts(self, node: ast.expr | None) -> list[str]:
        """Return the variants of an expression's text."""
        match node:
            case ast.Constant(value=value):
                return ["" if value is None else str(value)]
            case ast.JoinedStr(values=values):
                return self._joined(values)
            case ast.FormattedValue(value=value, format_spec=form):
                texts = self.texts(value)
                grouped = form is not None and "," in ast.unparse(form)
                return [f"{int(t):,}" if grouped and t.isdigit() else t for t in texts]
            case ast.BinOp(left=left, op=ast.Add(), right=right) if _is_text(left):
                return self._joined([left, right])
            case ast.BinOp(left=left):
                return [_capitals(_some_name(left))]
            case ast.IfExp(body=body, orelse=orelse):
                return [text for each in (body, orelse) for text in self.texts(each) if text] or [
                    ""
                ]
            case ast.BoolOp(values=values) | ast.Dict(values=values) | ast.Tuple(elts=values):
                return [text for value in values for text in self.texts(value)]
            case ast.Name(id=name):
                return self._variable(name)
            case ast.Attribute(attr=name):
                return [_capitals(name)]
            case ast.Call():
                return self._call(node)
        return ["..."]

    def _joined(self, parts: list[ast.expr]) -> list[str]:
        variants = [self.texts(part) for part in parts]
        if math.prod(map(len, variants)) > MOST:
            variants = [
                texts if len(texts) == 1 else [_capitals(_some_name(part))]
                for part, texts in zip(parts, variants, strict=True)
            ]
        return ["".join(each) for each in itertools.product(*variants)]

    def _variable(self, name: str) -> list[str]:
        if name in self.given:
            return self.given[name]
        if name in self.module.constants and name.isupper():
            return [str(self.module.constants[name])]
        values = [v for target, v in _assigned(self.function) if target == name]
        if values and all(_is_text(value) for value in values):
            return [text for value in values for text in self.texts(value)]
        return [_capitals(name)]

    def _call(self, node: ast.Call) -> list[str]:
        match node.func:
            case ast.Attribute(value=ast.Constant(value=str(between)), attr="join"):
                try:
                    return [between.join(map(str, _literal(node.args[0], self.module.constants)))]
                except (TypeError, ValueError):
                    return [_capitals(_some_name(node.args[0]))]
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self._returned(name, node)
            case ast.Name(id=name):
                return self._returned(name, node)
        return ["..."]

    def _returned(self, name: str, call: ast.Call) -> list[str]:
        """Return the texts that a function of the module returns, alone or in an exception."""
        function = self.module.functions.get(name)
        if function is None:
            of = [_some_name(a) for a in call.args]
            return [_capitals(of[0])] if name in _PLAIN and of and of[0] else ["..."]
        names = [a.arg for a in function.args.args if a.arg != "self"]
        given = {n: self.texts(a) for n, a in zip(names, call.args, strict=False)}
        reader = Reader(self.module, function, given)
        values = [n.value for n in _own(function) if isinstance(n, ast.Return)]
        inside = [v.args[0] if isinstance(v, ast.Call) and _is_error(v) else v for v in values]
        return [text for v in inside for text in reader.texts(v)]


_PLAIN = {"as_flag", "len", "printable", "quoted", "reason", "repr", "shown", "str"}
"""Calls that show their argument."""


def _is_error(node: ast.expr | None) -> bool:
    """Whether an expression makes an exception."""
    return isinstance(node, ast.Call) and _some_name(node.func) in SENTENCES and bool(node.args)


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.IfExp(body=body, orelse=orelse):
            return _is_text(body) and _is_text(orelse)
        case ast.BinOp(left=left, op=ast.Add()):
            return _is_text(left)
    return False


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, or of a module, without those of functions inside."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _assigned(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a function assigns to, each with its value."""
    for node in _own(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                yield from ((t.id, v) for t, v in pairs if isinstance(t, ast.Name))


def _literal(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    """Return the value of a literal that may name constants; raise ValueError for another."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in constants:
            return constants[name]
        case ast.Dict(keys=keys):
            return [_literal(key, constants) for key in keys]
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            parts = [_literal(each, constants) for each in elts]
            starred = [isinstance(each, ast.Starred) for each in elts]
            return [x for p, many in zip(parts, starred, strict=True) for x in (p if many else [p])]
        case ast.Starred(value=several) | ast.Call(func=ast.Name(id="map"), args=[_, several]):
            return _literal(several, constants)
    raise ValueError("no literal")


def _some_name(node: ast.AST | None) -> str:
    """Return the name that an expression ends in, or ""."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _some_name(value)
        case ast.Call(func=ast.Name(id=name), args=[*_, last]) if hasattr(builtins, name):
            return _some_name(last)
    return ""


def _capitals(name: str) -> str:
    return name.strip("_").upper() if len(name) > 1 else "..."


def has_words(text: str) -> bool:
    """Whether a text says anything beside what is filled in."""
    return len(re.findall(r"\b[a-z]{2,}\b", text)) >= 2
