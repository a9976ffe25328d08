"""Break the code in each of the stated ways and see that the tests notice.

The ways are in the ``*.toml`` files beside this one: a table each, with the file, a text that it
has once, what takes its place, what would then be wrong for a user, and the tests that are to fail.
Each is tried in a copy of the checkout, ``build/mutations``, which is kept so that only what
changes is compiled; what came of it is in ``result.json``.

    python tests/mutations/run.py             all of them, about half an hour on one core
    python tests/mutations/run.py --missing   those without a result, or changed since
    python tests/mutations/run.py --python    those that need no build
    python tests/mutations/run.py --only NAME ...

It ends with exit code 1 where one is not noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "result.json"
COPY = ROOT / "build" / "mutations"
EXTENSION = "fastmlp/_C.abi3.so"
SURVIVED, NO_BUILD, NOT_APPLIED = "SURVIVED", "does not build", "does not apply"
LIMIT = 600
"""Seconds that a mutation's tests may take; more is noticed, too."""
COMPILED_BY_TESTS = (
    "tests/native/",
    "tests/ops/test_cuda_emulated.py",
    "tests/engines/test_blocked_cuda.py",
)
"""Tests that compile what they test themselves."""


@dataclass(frozen=True)
class Mutation:
    """One way to break a file."""

    name: str
    file: str
    old: str
    new: str
    harm: str
    tests: list[str]

    @property
    def digest(self) -> str:
        """What tells whether a result is still that of this mutation."""
        values = json.dumps([self.file, self.old, self.new, self.tests])
        return hashlib.sha256(values.encode()).hexdigest()[:12]

    @property
    def needs_build(self) -> bool:
        """Whether the extension is to be compiled before the tests run."""
        own = all(test.startswith(COMPILED_BY_TESTS) for test in self.tests)
        return self.file.startswith("csrc/") and not own

    def applied(self, text: str) -> str:
        """Return the mutated text of the file; raise ValueError where it does not apply."""
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.name} does not apply: {self.file} must have its text once")
        return text.replace(self.old, self.new)


def load() -> list[Mutation]:
    """Return all mutations, in the order of the files that have them."""
    tables = [tomllib.loads(path.read_text("utf-8")) for path in sorted(HERE.glob("*.toml"))]
    return [Mutation(name, **values) for table in tables for name, values in table.items()]


def read_results() -> dict[str, dict[str, str]]:
    """Return what came of each mutation, by name."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def is_current(mutation: Mutation, results: dict[str, dict[str, str]]) -> bool:
    """Return whether there is a result of this very mutation."""
    return results.get(mutation.name, {}).get("mutation") == mutation.digest


def _git(*arguments: str) -> str:
    run = ("git", "-C", str(ROOT), *arguments)
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


class Copy:
    """A copy of the checkout, in which files are broken and restored."""

    def __init__(self) -> None:
        """Bring the copy up to date; what has not changed keeps its time."""
        files = set(filter(None, _git("ls-files", "-zco", "--exclude-standard").split("\0")))
        COPY.mkdir(parents=True, exist_ok=True)
        for name in files:
            source, target = ROOT / name, COPY / name
            if not source.is_file():
                continue
            if not target.exists() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for folder in ("csrc", "fastmlp", "tests"):
            for path in (COPY / folder).rglob("*.*"):
                kept = path.suffix in (".so", ".pyc") or str(path.relative_to(COPY)) in files
                if path.is_file() and not kept:
                    path.unlink()
        self._whole = COPY.with_name("mutations-whole")
        """The compiled files of the unbroken code."""

    def borrow(self, *, extension: bool) -> None:
        """Take from the checkout what its tests have compiled and, where asked for, the
        extension."""
        (COPY / "build").mkdir(exist_ok=True)
        for library in (ROOT / "build").glob("*.so"):
            shutil.copy2(library, COPY / "build" / library.name)
        if extension:
            shutil.copyfile(ROOT / EXTENSION, COPY / EXTENSION)

    def build(self) -> bool:
        """Compile what has changed of the extension; return whether that succeeds."""
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
        settings = {"FASTMLP_CUDA": "0", "MAX_JOBS": os.environ.get("MAX_JOBS", "1")}
        return _run(command, settings).returncode == 0

    def keep(self) -> None:
        """Note the compiled files as those of the unbroken code."""
        shutil.rmtree(self._whole, ignore_errors=True)
        shutil.copytree(COPY / "build", self._whole / "build")
        shutil.copy2(COPY / EXTENSION, self._whole / "extension")

    @contextlib.contextmanager
    def broken(self, mutation: Mutation) -> Iterator[None]:
        """Have the file broken, and afterwards all as it was, times included: nothing but the
        broken file is ever compiled."""
        path = COPY / mutation.file
        text, before = path.read_text("utf-8"), path.stat()
        path.write_text(mutation.applied(text), "utf-8")
        try:
            yield
        finally:
            path.write_text(text, "utf-8")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            if mutation.file.startswith("csrc/"):
                shutil.rmtree(COPY / "build")
                shutil.copytree(self._whole / "build", COPY / "build")
                shutil.copy2(self._whole / "extension", COPY / EXTENSION)

    def test(self, tests: list[str], limit: int | None = LIMIT) -> str | None:
        """Return the first test that fails, or how else they end; None where all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-p", "no:cacheprovider"]
        try:
            run = _run([*command, "--tb=no", *tests], {}, limit)
        except subprocess.TimeoutExpired:
            return f"more than {limit} s in {tests[0]}"
        if run.returncode == 0:
            return None
        if run.returncode < 0:
            return f"{signal.Signals(-run.returncode).name} in {tests[0]}"
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
        if failed is None:
            raise RuntimeError(f"pytest {' '.join(tests)} ends with:\n{run.stdout}{run.stderr}")
        return failed[1]


def _run(
    command: list[str], settings: dict[str, str], limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in the copy, on its own code; where that is cut short, nothing it has started
    runs on."""
    with subprocess.Popen(
        command,
        cwd=COPY,
        env={**os.environ, "PYTHONPATH": str(COPY), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def try_one(copy: Copy, mutation: Mutation) -> str:
    """Return what comes of a mutation."""
    try:
        mutation.applied((COPY / mutation.file).read_text("utf-8"))
    except ValueError:
        return NOT_APPLIED
    with copy.broken(mutation):
        if mutation.needs_build and not copy.build():
            return NO_BUILD
        failed = copy.test(mutation.tests)
    return SURVIVED if failed is None else f"noticed by {failed}"


def prepare(mutations: list[Mutation]) -> Copy:
    """Return a copy in which the tests of all these mutations pass."""
    copy, builds = Copy(), any(mutation.needs_build for mutation in mutations)
    copy.borrow(extension=not builds)
    if builds:
        print("compiling the unbroken code", flush=True)
        if not copy.build():
            raise SystemExit("the unbroken code does not build")
    print("running the tests of these mutations on the unbroken code", flush=True)
    failed = copy.test(sorted({test for m in mutations for test in m.tests}), limit=None)
    if failed is not None:
        raise SystemExit(f"{failed} on the unbroken code, so its failure would mean nothing")
    copy.keep()
    return copy


def chosen(arguments: Any) -> list[Mutation]:
    """Return the mutations to try, those of one file together."""
    mutations = load()
    if unknown := set(arguments.only) - {mutation.name for mutation in mutations}:
        raise SystemExit(f"there is no mutation {', '.join(sorted(unknown))}")
    results = read_results()
    found = [
        mutation
        for mutation in mutations
        if (not arguments.only or mutation.name in arguments.only)
        and not (arguments.python and mutation.needs_build)
        and not (arguments.missing and is_current(mutation, results))
    ]
    return sorted(found, key=lambda mutation: (mutation.needs_build, mutation.file))


def write_results(found: dict[str, dict[str, str]]) -> None:
    """Write what was found, beside the earlier results of mutations that have not changed."""
    results = read_results()
    kept = {m.name: results[m.name] for m in load() if is_current(m, results)}
    text = json.dumps(dict(sorted({**kept, **found}.items())), indent=1)
    RESULTS.write_text(text + "\n", "utf-8")


def main() -> None:
    """Try the mutations that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these alone")
    parser.add_argument("--python", action="store_true", help="those that need no build")
    parser.add_argument("--missing", action="store_true", help="those without a result")
    mutations = chosen(parser.parse_args())
    # A shell has its jobs in the background ignore Ctrl-C, and so would the tests that send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not mutations:
        raise SystemExit(0)
    copy, found = prepare(mutations), {}
    when = {"commit": _git("rev-parse", "--short", "HEAD").strip(), "date": time.strftime("%F")}
    try:
        for mutation in mutations:
            begin = time.monotonic()
            result = try_one(copy, mutation)
            found[mutation.name] = {"result": result, **when, "mutation": mutation.digest}
            print(f"{mutation.name}: {result} ({time.monotonic() - begin:.0f} s)", flush=True)
    except KeyboardInterrupt:
        print("stopped")
    finally:
        write_results(found)
    missed = [name for name, each in found.items() if not each["result"].startswith("noticed")]
    if missed:
        raise SystemExit(f"not noticed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
