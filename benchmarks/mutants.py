"""Mutation score of the tests: how many plausible errors, made one at a time, fail a test of their module.

python benchmarks/mutants.py --out benchmarks/results/mutants.json [--only FILE ...] [--tests REVISION]

`mutants.txt` lists the mutants in sections "== FILE: TESTS": a title, the fragment to be replaced (lines "- ", found
exactly once in the file) and its replacement (lines "+ "). TESTS are names of test files without test_ and .py, or
NAME:WORD for the tests of a file whose ids contain a word. A mutant that computes what the original does is not listed.

Tests are collected once; each mutant is made in a fork, by exchanging the code of the functions that differ.
"""

import argparse
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "HYPOTHESIS_PROFILE": "ci"}

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")
LIMIT = 600.0  # seconds, after which a mutant counts as killed: it hangs


class Mutant(NamedTuple):
    file: str
    tests: tuple[str, ...]  # the fastest first
    title: str
    old: str
    new: str


def read(path: Path) -> Iterator[Mutant]:
    """Read the list of mutants. Raises: ValueError for one whose fragment is not in its file exactly once."""
    file, tests = "", ()
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        if block.startswith("== "):
            file, _, names = block.removeprefix("== ").partition(": ")
            tests = tuple(names.split())
            continue
        title, *lines = block.splitlines()
        old, new = ("\n".join(line[2:] for line in lines if line[0] == mark) for mark in "-+")
        if (found := (ROOT / file).read_text(encoding="utf-8").count(old)) != 1:
            raise ValueError(f"{file}: {title}: {old!r} is there {found} times; wanted once")
        yield Mutant(file, tests, title, old, new)


# ---- making a mutant ---------------------------------------------------------------------------------------------


def apply(mutant: Mutant) -> None:
    """Exchange the code, defaults and constants that differ in the imported module of a mutant.

    Raises: ValueError if nothing differs.
    """
    source = (ROOT / mutant.file).read_text(encoding="utf-8").replace(mutant.old, mutant.new)
    name = mutant.file.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    fresh = types.ModuleType(name)
    fresh.__file__ = module.__file__
    exec(compile(source, mutant.file, "exec"), fresh.__dict__)
    changed = exchange(module, fresh)
    for key, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == name:
            changed += exchange(value, getattr(fresh, key))
    if not changed:
        raise ValueError(f"{mutant.file}: {mutant.title}: it changes no function")


def exchange(owner: Any, fresh: Any) -> int:
    """Exchange what differs in a module or class; return the number of changes."""
    changed = 0
    for key, value in list(vars(owner).items()):
        other = vars(fresh).get(key)
        if isinstance(value, (int, float, str)) and not key.startswith("__") and other != value:
            setattr(owner, key, other)
            changed += 1
        function, new = (function_of(thing) for thing in (value, other))
        if function and new and function.__module__ == getattr(owner, "__module__", owner.__name__):
            for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
                before, after = (getattr(f, attribute) for f in (function, new))
                if differs(before, after):
                    setattr(function, attribute, after)
                    changed += 1
    return changed


def function_of(thing: Any) -> types.FunctionType | None:
    thing = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return thing if isinstance(thing, types.FunctionType) else None


def differs(a: Any, b: Any) -> bool:
    """Compare code, line numbers left out, or defaults."""
    if not isinstance(a, types.CodeType):
        return repr(a) != repr(b)
    plain = [
        (c.co_code, c.co_names, [k for k in c.co_consts if not isinstance(k, types.CodeType)])
        for c in (a, b)
    ]
    inner = [[k for k in c.co_consts if isinstance(k, types.CodeType)] for c in (a, b)]
    return plain[0] != plain[1] or any(map(differs, *inner))


# ---- running tests -----------------------------------------------------------------------------------------------


class Plugin:
    """Replaces pytest's loop over the tests by one over mutants and tests."""

    def __init__(self, mutants: list[Mutant]):
        self.mutants, self.rows = mutants, []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for number, mutant in enumerate(self.mutants):
            items = list(chosen(session.items, mutant.tests))
            new = not number or mutant.tests != self.mutants[number - 1].tests
            if new and (failed := first_failure(items, None)):
                raise SystemExit(f"{failed} fails without a mutant")
            begun = time.monotonic()
            killer = first_failure(items, mutant)
            self.rows.append({"file": mutant.file, "mutant": mutant.title, "killed_by": killer})
            seconds = f"{time.monotonic() - begun:.0f} s"
            print(f"{mutant.file}: {mutant.title}: {killer or 'SURVIVED'} ({seconds})", flush=True)
        return True


def chosen(items: list[pytest.Item], tests: tuple[str, ...]) -> Iterator[pytest.Item]:
    for name, _, word in (test.partition(":") for test in tests):
        yield from (i for i in items if i.path.stem == f"test_{name}" and word in i.name)


def first_failure(items: list[pytest.Item], mutant: Mutant | None) -> str | None:
    """Run tests in a fork until the first failure; return the name of the test, or None."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.close(reading)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        name = "not applicable"
        try:
            if mutant:
                apply(mutant)
            name = failing(items)
        finally:
            os.write(writing, name.encode())
            os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    with os.fdopen(reading) as pipe:
        name = pipe.read()
    signal.setitimer(signal.ITIMER_REAL, 0)
    status = os.waitpid(child, 0)[1]
    if name == "not applicable":
        raise SystemExit(f"{mutant} cannot be made")
    return name or (None if status == 0 else "a crash, or the time limit")


def failing(items: list[pytest.Item]) -> str:
    for item, following in zip(items, [*items[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return f"{item.path.name}::{item.name.partition('[')[0]}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write a row per mutant")
    parser.add_argument(
        "--only", nargs="+", metavar="FILE", default=("",), help="beginnings of files"
    )
    parser.add_argument("--survivors", type=Path, help="those alone that survived in this result")
    parser.add_argument("--tests", metavar="REVISION", help="tests of a commit (default: these)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    importlib.import_module("torch._dynamo")  # torch imports it late, with the first optimiser step
    mutants = [m for m in read(LIST) if m.file.startswith(tuple(args.only))]
    if args.survivors:
        rows = json.loads(args.survivors.read_text(encoding="utf-8"))
        left = {(row["file"], row["mutant"]) for row in rows if row["killed_by"] is None}
        mutants = [m for m in mutants if (m.file, m.title) in left]
    names = {test.partition(":")[0] for mutant in mutants for test in mutant.tests}
    plugin = Plugin(mutants)
    with tempfile.TemporaryDirectory() as folder:
        place = ROOT
        if args.tests:
            place = Path(folder)
            parts = ["git", "archive", args.tests, "tests", "pyproject.toml"]
            archive = subprocess.run(parts, cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
        files = [str(f) for n in sorted(names) if (f := place / "tests" / f"test_{n}.py").exists()]
        os.chdir(place)
        flags = [
            "-q",
            "-s",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        pytest.main([*flags, *files], plugins=[plugin])
    for file, group in groupby(plugin.rows, lambda row: row["file"]):
        found = [row["killed_by"] is not None for row in group]
        print(f"{file}: {sum(found)} of {len(found)} killed")
    if args.out:
        lines = ",\n".join(json.dumps(row) for row in plugin.rows)
        args.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
