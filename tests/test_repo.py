"""The repository has its files, its pins, and a package that installs."""

import os
import re
import subprocess
import sys
import zipfile

import bookfiles as book
import pytest

FILES = [
    ".ci/run",
    ".gitignore",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "LICENSE-prose",
    "Makefile",
    "README.md",
    "_config.yml",
    "_toc.yml",
    "book/index.md",
    "book/references.bib",
    "data/README.md",
    "pyproject.toml",
    "requirements.txt",
    "transformer/py.typed",
]


@pytest.mark.parametrize("name", FILES)
def test_file(name):
    assert (book.ROOT / name).is_file()


def test_ci_calls_make_test():
    program = book.ROOT / ".ci/run"
    assert os.access(program, os.X_OK)
    assert "make test" in program.read_text()


def test_requirements_are_pinned():
    lines = (book.ROOT / "requirements.txt").read_text().splitlines()
    wanted = [
        line for line in lines if line.strip() and not line.startswith(("#", "--"))
    ]
    assert wanted
    loose = [line for line in wanted if not re.match(r"[\w.\[\]-]+==[\w.+!]+$", line)]
    assert not loose, "pin with =="


def test_workflow_runs_the_two_commands():
    files = (book.ROOT / ".github/workflows").glob("*.yml")
    text = "\n".join(file.read_text() for file in files)
    assert "make book" in text
    assert "make test" in text or ".ci/run" in text


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_package_installs_elsewhere(tmp_path):
    """A wheel of the tracked files holds every module, types marked, and imports."""
    copy, target = tmp_path / "copy", tmp_path / "target"
    (copy / "transformer").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((book.ROOT / name).read_bytes())
    names = {"py.typed"}
    for file in (book.ROOT / "transformer").glob("*.py"):
        names.add(file.name)
    for name in names:
        file = book.ROOT / "transformer" / name
        (copy / "transformer" / name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run(*build, "-w", tmp_path, copy)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {n for n in held if "dist-info" not in n} == {
        f"transformer/{n}" for n in names
    }
    run(*pip, "install", "-q", "--no-deps", "--target", target, wheel)
    modules = sorted(n[:-3] for n in names if n.endswith(".py") and n[0] != "_")
    program = "import importlib, sys, transformer as t\n"
    program += "for name in t.__all__: getattr(t, name)\n"
    program += (
        "for name in sys.argv[1:]: importlib.import_module('transformer.' + name)\n"
    )
    program += "print(t.__file__)"
    clean = {**os.environ, "PYTHONPATH": str(target)}
    said = run(sys.executable, "-c", program, *modules, cwd=tmp_path, env=clean)
    assert str(target) in said
