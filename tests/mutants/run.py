"""Break the package on purpose, one line at a time: each break must fail a test.

    python tests/mutants/run.py              every mutant of mutants.toml
    python tests/mutants/run.py drop-scale   some of them, by id

A mutant survives if its test passes with the broken package; then the tests have a
hole. Each test is also run once with the package as it is, and must pass. Torch is
imported once; every run is a fork of that process, so it costs well under a second.
"""

import argparse
import ast
import contextlib
import importlib
import io
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 120  # seconds a test may take


@dataclass(frozen=True)
class Mutant:
    """One line of the package made wrong, and the test that must notice."""

    id: str
    module: str  # transformer/name.py
    find: str  # stands exactly once in the module
    replace: str
    killed_by: str  # what pytest is called with: files, node ids, -k ...


def load(root: Path) -> list[Mutant]:
    """Read ``mutants.toml``."""
    text = (root / "tests/mutants/mutants.toml").read_text(encoding="utf-8")
    return [Mutant(**entry) for entry in tomllib.loads(text).get("mutant", [])]


def mutated(mutant: Mutant, root: Path) -> str:
    """Return the text of the mutant's module with the one line changed."""
    path = root / mutant.module
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.count(mutant.find) != 1:
        raise ValueError(
            f"mutant {mutant.id}: `find` stands {text.count(mutant.find)} times"
            f" in {mutant.module}, want once: {mutant.find!r}"
        )
    if mutant.find == mutant.replace:
        raise ValueError(f"mutant {mutant.id} changes nothing")
    return text.replace(mutant.find, mutant.replace)


def preload(arguments: set[str], root: Path) -> None:
    """Import what the tests import, the package apart, so that a fork need not."""
    files = {word.split("::")[0] for line in arguments for word in shlex.split(line)}
    for file in sorted(f for f in files if f.endswith(".py")):
        for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [(node.module, alias.name) for alias in node.names]
            for module, name in names:
                if module.split(".")[0] == "transformer":
                    continue
                with contextlib.suppress(ImportError):
                    getattr(importlib.import_module(module), name or "", None)


def run(arguments: str, package: Path, root: Path) -> tuple[int, str]:
    """Run pytest in a fork, with ``transformer`` from ``package``; return its code."""
    log = package / "log.txt"
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 70
        try:
            with log.open("w", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = in_child(arguments, package, root)
        finally:
            sys.stdout.flush()
            os._exit(code)
    ends = time.monotonic() + TIMEOUT
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(done[1])
    return code, log.read_text(encoding="utf-8", errors="replace")


def in_child(arguments: str, package: Path, root: Path) -> int:
    """Import the package from its copy, make sure of it, and run the test."""
    os.chdir(root)
    sys.path.insert(0, str(package))
    import transformer

    assert Path(transformer.__file__).is_relative_to(package), transformer.__file__
    options = ["-q", "-x", "--tb=short", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *shlex.split(arguments)]))
    loaded = [m for n, m in sys.modules.items() if n.split(".")[0] == "transformer"]
    assert all(Path(m.__file__).is_relative_to(package) for m in loaded)
    return code


def copy_package(root: Path, to: Path) -> None:
    """Copy the package without its compiled files."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "transformer", to / "transformer", ignore=skip)


def sound_tests(arguments: set[str], root: Path) -> dict[str, str]:
    """Run the tests on the package as it is; return those that do not pass."""

    def trouble(line: str) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            copy_package(root, Path(folder))
            code, said = run(line, Path(folder), root)
        return (
            f"pytest ended with {code} on the sound package:\n{said}" if code else None
        )

    plain = sorted(line for line in arguments if " -" not in line)
    if plain and trouble(" ".join(plain)) is None:  # all at once; one by one if not
        arguments = arguments - set(plain)
    found = {line: trouble(line) for line in sorted(arguments)}
    return {line: said for line, said in found.items() if said}


def verdict(mutant: Mutant, root: Path) -> tuple[bool, str]:
    """Run one mutant; return whether its test failed, and what there is to say."""
    try:
        text = mutated(mutant, root)
    except ValueError as error:
        return False, str(error)
    with tempfile.TemporaryDirectory() as folder:
        copy_package(root, Path(folder))
        (Path(folder) / mutant.module).write_text(text, encoding="utf-8")
        code, said = run(mutant.killed_by, Path(folder), root)
    if code == pytest.ExitCode.TESTS_FAILED:
        return True, "killed"
    if code == pytest.ExitCode.OK:
        return False, "SURVIVED"
    return False, f"NO VERDICT, pytest ended with {code}:\n{said}"


def main() -> int:
    """Run the mutants, print a table, return 1 if any survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("id", nargs="*", help="only these mutants")
    parser.add_argument("--root", type=Path, default=ROOT, help="another copy")
    options = parser.parse_args()
    root = options.root.resolve()
    mutants = [m for m in load(root) if not options.id or m.id in options.id]
    if missing := set(options.id) - {m.id for m in mutants}:
        print(f"no mutant named {', '.join(sorted(missing))}")
        return 1

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they are slow to import
    sys.dont_write_bytecode = True
    importlib.import_module("torch").set_num_threads(1)
    lines = {m.killed_by for m in mutants}
    with contextlib.redirect_stdout(io.StringIO()):
        preload(lines, root)
    broken = sound_tests(lines, root)
    wide = max((len(m.id) for m in mutants), default=0)
    failed = 0
    for mutant in mutants:
        start = time.monotonic()
        if mutant.killed_by in broken:
            killed, said = False, broken[mutant.killed_by]
        else:
            killed, said = verdict(mutant, root)
        failed += not killed
        took = f"{time.monotonic() - start:4.1f} s"
        print(f"{mutant.id:{wide}}  {took}  {said}  ({mutant.killed_by})", flush=True)
    print(f"{len(mutants) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
