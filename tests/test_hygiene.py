"""What running the notebooks cannot show: see the rules in bookfiles.py."""

from pathlib import Path

import bookfiles as book
import nbformat
import pytest

NOTEBOOKS = [pytest.param(path, id=path.stem) for path in book.notebooks()]
CHAPTERS = [p for p in NOTEBOOKS if p.id[:2].isdigit()]
RULES = [
    book.run_faults,
    book.figure_faults,
    book.output_faults,
    book.ignore_faults,
    book.tag_faults,
    book.metadata_faults,
    book.code_faults,
    book.heading_faults,
]
RULES = [pytest.param(rule, id=rule.__name__.removesuffix("_faults")) for rule in RULES]


def expect_none(path: Path, faults: list[str]) -> None:
    assert not faults, "\n".join([f"{path.name}:", *faults])


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_rule(path, rule):
    expect_none(path, rule(book.read(path)))


@pytest.mark.parametrize("path", CHAPTERS)
def test_skeleton(path):
    expect_none(path, book.skeleton_faults(book.read(path), path.stem))


@pytest.mark.parametrize("path", CHAPTERS)
def test_exercises(path):
    expect_none(path, book.exercise_faults(book.read(path)))


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_size(path):
    assert path.stat().st_size < book.SIZE_LIMIT, "smaller figures, or fewer"


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_valid(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


def test_contents():
    """Every notebook is in the table of contents, and every entry is a file."""
    pages = book.contents()
    stems = [path.stem for path in book.notebooks()]
    listed = [name.removeprefix("notebooks/") for name in pages if "notebooks/" in name]
    assert sorted(listed) == stems, "_toc.yml and notebooks/ differ"
    assert len(set(pages)) == len(pages), "a page stands twice in _toc.yml"
    for name in pages:
        files = [book.ROOT / f"{name}{suffix}" for suffix in (".md", ".ipynb")]
        assert any(file.exists() for file in files), f"_toc.yml names {name}: no file"
