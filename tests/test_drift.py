"""The package is what the notebooks export, and nothing else."""

import json
import shutil
import subprocess
import sys

import bookfiles as book
import pytest


def export(root, *options):
    command = [sys.executable, root / "tools" / "export.py", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


@pytest.fixture
def copy(tmp_path):
    """The notebooks, the package and the exporter in a folder of their own."""
    for folder in ("notebooks", "transformer", "tools"):
        shutil.copytree(
            book.ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
        )
    shutil.copy(book.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def package(root):
    files = (root / "transformer").rglob("*")
    return {f.name: f.read_bytes() for f in files if f.suffix in {".py", ".typed"}}


def exporting(root):
    """The notebooks of a copy that export something, with an exported cell of each."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = book.read(path)
        for cell in book.code_cells(notebook):
            if "export" in book.directives(cell) and "def " in book.source(cell):
                yield path, notebook, cell
                break


def test_package_is_up_to_date():
    done = export(book.ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_same_bytes_twice(copy):
    before = package(copy)
    assert export(copy).returncode == 0
    assert package(copy) == before
    shutil.rmtree(copy / "transformer")
    (copy / "transformer").mkdir()
    assert export(copy).returncode == 0
    assert package(copy) == before


def test_changed_notebook_is_found(copy):
    path, notebook, cell = next(exporting(copy))
    cell["source"] = book.source(cell) + "\n\n\ndef added():\n    return 1"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    before = package(copy)
    assert export(copy, "--check").returncode == 1
    assert package(copy) == before, "--check wrote"
    assert export(copy).returncode == 0
    assert export(copy, "--check").returncode == 0
    assert any(b"def added()" in text for text in package(copy).values())


def test_edited_module_is_found(copy):
    module = next(f for f in (copy / "transformer").glob("*.py") if f.stem[0] != "_")
    module.write_text(module.read_text(encoding="utf-8") + "\n# by hand\n")
    done = export(copy, "--check")
    assert done.returncode == 1
    assert module.name in done.stdout
    told = f"wrote transformer/{module.name}, which differed from its notebook"
    assert told in export(copy).stdout, "mended in silence"
    assert export(copy).stdout == ""


def test_stale_module_is_found(copy):
    path, _, _ = list(exporting(copy))[-1]
    path.unlink()
    assert export(copy, "--check").returncode == 1


def test_code_that_does_not_parse_is_told(copy):
    path, notebook, cell = next(exporting(copy))
    cell["source"] = "#| export\ndef broken(:"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    done = export(copy)
    assert done.returncode != 0
    assert path.name in done.stdout + done.stderr
