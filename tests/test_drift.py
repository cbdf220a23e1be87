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


# ------------------------------------------------------- several modules in a notebook


def markdown(text):
    return {"cell_type": "markdown", "source": text}


def code(text):
    return {"cell_type": "code", "source": text}


TWO = [
    markdown("# Title\n\n> The first module."),
    code("#| default_exp first"),
    code("#| export\nimport math\n\nONE = 1"),
    markdown("In between."),
    markdown("### Part\n\n> The second\n> module."),
    markdown("Text without a quote."),
    code("#| default_exp second"),
    code("#| export\ndef two():\n    return 2"),
    code("not_exported = 3"),
]


def write_notebook(root, cells, name="99_toy"):
    (root / "notebooks").mkdir(exist_ok=True)
    path = root / "notebooks" / f"{name}.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_two_modules_of_one_notebook(copy):
    write_notebook(copy, TWO)
    assert export(copy).returncode == 0
    first, second = (
        (copy / f"transformer/{name}.py").read_text() for name in ("first", "second")
    )
    assert first.startswith('"""The first module.\n') and "ONE = 1" in first
    assert second.startswith('"""The second module.\n') and "def two" in second
    assert "two" not in first and "ONE" not in second and "import math" not in second
    assert "not_exported" not in first + second
    assert "Made from notebooks/99_toy.ipynb" in second
    write_notebook(copy, TWO[:3])
    assert "removed transformer/second.py" in export(copy).stdout
    assert export(copy, "--check").returncode == 0


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            [code("#| export\nONE = 1"), *TWO],
            "`#| export` but no `#| default_exp name`",
        ),
        ([*TWO, code("#| default_exp first")], "wants the name of a new module"),
        ([code("#| default_exp a-b")], "wants the name of a new module, got 'a-b'"),
        ([code("#| default_exp gpt")], "99_toy.ipynb: makes transformer/gpt.py, which"),
    ],
)
def test_modules_that_cannot_be(copy, cells, said):
    before = package(copy)
    write_notebook(copy, cells)
    done = export(copy)
    assert done.returncode == 2 and said in done.stderr
    assert package(copy) == before


def test_the_door_belongs_to_the_program(copy):
    """``__main__.py`` comes and goes with the module that it opens."""
    assert (copy / "transformer/__main__.py").exists()
    (copy / "notebooks/24_program.ipynb").unlink()
    assert export(copy).returncode == 0
    assert not (copy / "transformer/__main__.py").exists()
