"""Each rule of bookfiles.py finds a notebook that breaks it."""

import copy

import bookfiles as book
import pytest
from nbval.plugin import comment_markers

TITLES = "\n".join(f"## {section}" for section in book.SKELETON)


def code(text, *outputs, tags=()):
    meta = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code",
        "id": text,
        "metadata": meta,
        "source": text,
        "outputs": list(outputs),
        "execution_count": None,
    }


def prose(text):
    kind = "markdown"
    return {"cell_type": kind, "id": text, "metadata": {}, "source": text}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def notebook(*cells):
    cells = copy.deepcopy(cells)
    for number, cell in enumerate((c for c in cells if "outputs" in c), start=1):
        cell["execution_count"] = number
    return {"metadata": {"kernelspec": {"name": "python3"}}, "cells": cells}


FIGURE = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
EXERCISE = ":::{exercise} One\n:label: EX\nAbout 5 minutes. Hint: think.\n:::"


CHECK = "def check_1(f):\n    assert f() == 1"


def exercise(label, solved="check_1(f)", check=CHECK, text=EXERCISE):
    return [
        prose(text.replace("EX", label)),
        code(f"# {label}\n{check}"),
        prose(f":::{{solution}} {label}\nSo.\n:::"),
        code(f"# {label} solved\n{solved}"),
    ]


def never_run():
    bad = notebook(code("1"))
    bad["cells"][0]["execution_count"] = None
    return bad


def strange_kernel():
    return notebook() | {"metadata": {"kernelspec": {"name": "my-env"}}}


def timed():
    bad = notebook(code("1"))
    bad["cells"][0]["metadata"]["execution"] = {"iopub.execute_input": "2026"}
    return bad


def slides():
    bad = notebook(code("1"))
    bad["cells"][0]["metadata"]["slideshow"] = {}
    return bad


GOOD = notebook(
    prose("# Title\n\n" + TITLES + "\n```\n#### not a heading\n```"),
    code("#| export\nimport torch\nfrom einops import rearrange"),
    code("#| export\nx = 1", printed("tensor([1.0])")),
    code("#| alt: A curve that falls\nplot()", FIGURE),
    code("assert f() < 2\nf()", printed("took 3.1 s"), tags=["nbval-ignore-output"]),
    code("f(-1)", ERROR, tags=["raises-exception"]),
    *exercise("a"),
    *exercise("b", check="def check_1(f):\n    kit.check(f(), 1)"),
    *exercise("c", solved="assert f() == 1", check="f"),
)

BAD = {
    "never run": (book.run_faults, never_run()),
    "stderr": (book.run_faults, notebook(code("w()", printed("Warning", "stderr")))),
    "error": (book.run_faults, notebook(code("f(-1)", ERROR))),
    "empty": (book.run_faults, notebook(code(" "))),
    "no alt": (book.figure_faults, notebook(code("plot()", FIGURE))),
    "late alt": (book.figure_faults, notebook(code("p()\n#| alt: a b c", FIGURE))),
    "path": (book.output_faults, notebook(code("p", printed("/home/me/x.py")))),
    "address": (book.output_faults, notebook(code("p", printed("<f at 0x7f00aa11>")))),
    "time": (book.output_faults, notebook(code("p", printed("took 3.1 s")))),
    "clock": (book.output_faults, notebook(code("p", printed("at 12:30:11")))),
    "gpu": (book.output_faults, notebook(code("p", printed("device cuda:0")))),
    "no assert": (
        book.ignore_faults,
        notebook(code("f()  # assert", tags=["nbval-ignore-output"])),
    ),
    "asserts a literal": (
        book.ignore_faults,
        notebook(code("assert True\nf()", tags=["nbval-ignore-output"])),
    ),
    "skipped": (book.tag_faults, notebook(code("assert 1", tags=["nbval-skip"]))),
    "old tag": (
        book.tag_faults,
        notebook(code("f()", tags=["pytest-validate-ignore-output"])),
    ),
    "old comment": (
        book.tag_faults,
        notebook(code("f()\n    ## PYTEST_VALIDATE_IGNORE_OUTPUT")),
    ),
    "hidden": (book.tag_faults, notebook(code("f()", tags=["remove-output"]))),
    "kernel": (book.metadata_faults, strange_kernel()),
    "timing": (book.metadata_faults, timed()),
    "slides": (book.metadata_faults, slides()),
    "same id": (book.metadata_faults, notebook(code("1"), code("1"))),
    "long line": (book.code_faults, notebook(code("x = 1" + " + 1" * 30))),
    "mixed": (book.code_faults, notebook(code("#| export\nimport a\nx = 1"))),
    "no title": (book.heading_faults, notebook(prose("## By hand"))),
    "two titles": (book.heading_faults, notebook(prose("# A\n\n# B"))),
    "jump": (book.heading_faults, notebook(prose("# A\n\n### B"))),
    "two exercises": (book.exercise_faults, notebook(*exercise("a"), *exercise("b"))),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name):
    rule, bad = BAD[name]
    assert rule(bad)
    assert not rule(GOOD)


@pytest.mark.parametrize("name", comment_markers)
def test_every_word_to_nbval_is_banned(name):
    tag = name.lower().replace("_", "-")
    allowed = tag == "nbval-ignore-output"
    assert bool(book.tag_faults(notebook(code("f()", tags=[tag])))) is not allowed
    assert book.tag_faults(notebook(code(f"f()\n# {name}")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("assert True", 1),
        ("if f():\n    assert 1 + 1 == 2, x", 1),
        ("assert not ''", 1),
        ("assert (f() < 2, 'too high')", 1),
        ("assert f() < 2", 0),
        ("assert loss\nassert all(x)", 0),
    ],
)
def test_vacuous(text, told):
    assert len(book.vacuous(text)) == told
    assert len(book.code_faults(notebook(code(text)))) == told


def three(*last):
    return notebook(*exercise("a"), *exercise("b"), *last)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (exercise("c", solved="f()"), "no cell after its solution checks it"),
        (exercise("c", solved="def check_2(f): ..."), "no cell after"),
        (exercise("c", check="def check_1(f): ..."), "no check"),
        (exercise("c")[:2], "no `:::{solution} c`"),
        (exercise("c", text=EXERCISE.replace("Hint", "Help")), "no hint"),
        (exercise("c", text=EXERCISE.replace("minutes", "")), "no minutes"),
        (exercise("c", text=":::{exercise} C\n:::"), "no `:label:`"),
    ],
)
def test_bad_exercise(cells, told):
    faults = book.exercise_faults(three(*cells))
    assert len(faults) == 1 and told in faults[0]


def test_skeleton():
    assert not book.skeleton_faults(GOOD, "04_attention")
    swapped = TITLES.replace("## Check\n## See it", "## See it\n## Check")
    assert book.skeleton_faults(notebook(prose("# T\n" + swapped)), "04_attention")
    lacking = notebook(prose("# T\n" + TITLES.replace("## At scale\n", "")))
    assert book.skeleton_faults(lacking, "04_attention")
    assert not book.skeleton_faults(lacking, "05_masks")


def test_contents(tmp_path):
    text = "root: book/index\nparts:\n- chapters:\n  - file: a.md\n    sections:\n"
    (tmp_path / "_toc.yml").write_text(text + "    - file: b\n")
    assert book.contents(tmp_path) == ["book/index", "a", "b"]
