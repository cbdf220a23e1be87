"""The repository has its files, its pins, and a package that installs."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import bookfiles as book
import pytest
import yaml

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
    "constraints.txt",
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


def plain(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Read a file of pins; a local version such as +cpu is no version for others."""
    lines = (book.ROOT / name).read_text().splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    loose = [line for line in wanted if not re.match(r"[\w.-]+==[\w.!]+$", line)]
    assert wanted and not loose, "pin with =="
    return {plain(line.split("==")[0]): line.split("==")[1] for line in wanted}


def test_requirements_are_pinned():
    assert pins("requirements.txt")


def test_constraints_agree_with_requirements():
    asked, all_of_them = pins("requirements.txt"), pins("constraints.txt")
    # pip does not list what it is made of
    assert asked.keys() - all_of_them.keys() <= {"setuptools", "wheel"}
    differ = [n for n in asked if all_of_them.get(n, asked[n]) != asked[n]]
    assert not differ
    assert len(all_of_them) > 2 * len(asked), "want what the requirements bring along"
    assert not [n for n in all_of_them if n.startswith(("nvidia", "triton", "pywin"))]


def imported(code: str) -> Iterator[str]:
    """Yield the top-level name of every import."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def sources() -> Iterator[str]:
    """Yield all code: cells and programs."""
    for path in book.notebooks():
        yield from map(book.source, book.code_cells(book.read(path)))
    for pattern in ("notebooks/*.py", "tests/**/*.py", "tools/*.py", "book/**/*.py"):
        yield from (path.read_text() for path in book.ROOT.glob(pattern))


def test_imports_are_required():
    """What the book imports by name stands in requirements.txt, not only behind it."""
    found = {name for code in sources() for name in imported(code)}
    assert {"torch", "yaml", "numpy", "PIL"} <= found
    home = packages_distributions()
    asked = pins("requirements.txt")
    missing = [
        name
        for name in sorted(found - set(sys.stdlib_module_names))
        if name in home and not asked.keys() & set(map(plain, home[name]))
    ]
    ours = "transformer-matrix-by-matrix"
    missing = [n for n in missing if ours not in map(plain, home[n])]
    assert not missing, "pin these in requirements.txt"


WORKFLOWS = sorted((book.ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_tests_before_it_builds(path):
    """`make book` writes the package: before `make test` it would mend differences."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    orders = [[step.get("run", "") for step in job.get("steps", [])] for job in jobs]
    assert any("make test" in runs for runs in orders)
    for runs in orders:
        if "make book" in runs:
            assert "make test" in runs[: runs.index("make book")]


def dry(*goals: str, **environment: str) -> str:
    """Return the commands that make would run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    kept.pop("CI", None)
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", *goals]
    return run(*command, cwd=book.ROOT, env=kept | environment)


def test_make_test_checks_before_it_builds():
    text = dry("test")
    assert 0 < text.index("tools/export.py --check") < text.index("jupyter-book build")
    assert "-r requirements.txt -c constraints.txt" in text


def test_make_book_mends_only_at_home():
    assert "tools/export.py --check" not in dry("book")
    for value in ("true", "1"):
        assert "tools/export.py --check" in dry("book", CI=value)
    assert "tools/export.py --check" not in dry("book", CI="false")


@pytest.mark.parametrize("goal", ["test", "unit"])
def test_tests_see_plain_settings(goal):
    """No PROFILE or BOOK_EXECUTE of the caller reaches a test, and one thread does."""
    lines = dry(goal, PROFILE="gpu", OMP_NUM_THREADS="8").splitlines()
    tested = [line for line in lines if "-m pytest" in line or "mutants/run.py" in line]
    assert tested
    for line in tested:
        assert "env -u PROFILE -u BOOK_EXECUTE OMP_NUM_THREADS=1 " in line


def test_long_tests_are_there():
    """A renamed file would lose its place at the head of the run."""
    tree = ast.parse((book.ROOT / "tests/conftest.py").read_text())
    (names,) = [
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
    ]
    files = [*book.ROOT.glob("tests/*.py"), *book.notebooks()]
    assert set(names) <= {file.name for file in files}


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
