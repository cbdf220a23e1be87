"""nbval with our conftest: it sees another picture, and lets a redrawn one pass."""

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys

import bookfiles as book
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbformat import v4

sys.path.insert(0, str(book.ROOT / "notebooks"))
import bookkit as kit

spec = importlib.util.spec_from_file_location(
    "pictures", book.ROOT / "notebooks/conftest.py"
)
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)


def png(draw, width=6.4, height=4.8, **options):
    figure, axes = plt.subplots(figsize=(width, height))
    draw(axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", **options)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


x = np.linspace(0, 6, 200)


def curve(axes, shift=0.0, **options):
    axes.plot(x, np.sin(x + shift), **options)


def heat(axes, values):
    axes.imshow(values)


WEIGHTS = np.random.default_rng(0).random((6, 6))
OTHER = WEIGHTS.copy()
OTHER[2, 3] += 0.3  # one entry of thirty-six


def test_same_picture_redrawn():
    base = png(curve)
    assert pictures.picture_difference(base, base) is None
    # another processor's last digits, another shading of edges, a fraction of a pixel
    drift = np.random.default_rng(0).normal(0, 1e-5, 200)
    for again in (
        png(lambda axes: axes.plot(x, np.sin(x) + drift)),
        png(lambda axes: curve(axes, shift=1e-3)),
        png(lambda axes: curve(axes, lw=1.6)),
    ):
        assert again != base
        assert pictures.picture_difference(base, again) is None
    near = WEIGHTS * (1 + 1e-6)
    assert (
        pictures.picture_difference(
            png(lambda axes: heat(axes, WEIGHTS)), png(lambda axes: heat(axes, near))
        )
        is None
    )


def test_unaliased_edges_pass():
    """The coarsest other way of shading an edge: none at all."""
    smooth = png(curve)
    with plt.rc_context({"lines.antialiased": False}):
        rough = png(curve)
    assert rough != smooth
    assert pictures.picture_difference(smooth, rough) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda axes: curve(axes, shift=0.1),
        lambda axes: curve(axes, ls="--"),
        lambda axes: curve(axes, color="red"),
        lambda axes: curve(axes, lw=4),
        lambda axes: (curve(axes), axes.set_title("loss")),
        lambda axes: (curve(axes), axes.axhline(0.5, lw=1)),
    ],
)
def test_another_curve(other):
    assert "pixels differ" in pictures.picture_difference(png(curve), png(other))


def test_another_matrix():
    same, other = (png(lambda axes, w=w: heat(axes, w)) for w in (WEIGHTS, OTHER))
    assert "pixels differ" in pictures.picture_difference(same, other)


def drawn(matrix):
    """A drawn matrix: its picture, as a notebook stores it, and its caption."""
    with plt.rc_context(kit.STYLE), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, "show", lambda: None)
        kit.draw(matrix, names=["S"])
        file = io.BytesIO()
        plt.savefig(file, format="png", bbox_inches="tight")
        caption = kit.caption(plt.gcf())
        plt.close()
    return base64.b64encode(file.getvalue()).decode(), caption


@pytest.mark.parametrize("digit", [1, 3, 6])
def test_another_digit(digit):
    """Of an 8 become a 6 the pixels may tell nothing; the caption always does."""
    numbers = torch.linspace(-1, 1, 25, dtype=torch.float64).reshape(5, 5)
    other = numbers.clone()
    numbers[2, 3], other[2, 3] = 0.48, 0.40 + digit / 100
    (before, old), (after, new) = drawn(numbers), drawn(other)
    assert drawn(numbers)[1] == old
    assert old != new
    assert old.split("texts")[0] == new.split("texts")[0]
    assert digit == 6 or pictures.picture_difference(before, after)


def test_caption_reads_every_word():
    figure, axes = plt.subplots(layout="constrained")
    axes.set_title("loss  of\nthe model")
    said = kit.caption(figure)
    assert said.startswith("<Figure size 640x480 with 1 Axes, texts ")
    axes.set_title("loss of the model")
    assert kit.caption(figure) == said, "blanks count"
    axes.set_ylim(0, 2)  # nobody wrote these labels
    assert kit.caption(figure) != said
    plt.close(figure)


def test_another_size():
    told = pictures.picture_difference(png(curve), png(curve, width=6))
    assert told == "stored 640 x 480, new 600 x 480"


# --------------------------------------------------- the whole way, in a folder apart

MATRIX = "#| alt: A matrix\nkit.draw(torch.tensor([[0.25, 0.48]]))"
DRAW = "#| alt: A falling curve\nplt.ylim(0, 4)\nfigure = plt.plot([3, HEIGHT])"
CELLS = {
    "import": "from matplotlib import pyplot as plt\nimport random, time, torch\n"
    "import bookkit as kit\nkit.setup()",
    "history": "6 * 7",
    "count": "Out[2], 'hidden'[0];",
    "text": "print('loss', 2)",
    "address": "print(object())",
    "sample": "assert True\nprint(random.random())",
    "draw": DRAW.replace("HEIGHT", "1"),
    "matrix": MATRIX,
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nbval")
    notebook = v4.new_notebook()
    for name, text in CELLS.items():
        meta = {"tags": ["nbval-ignore-output"]} if name == "sample" else {}
        notebook.cells.append(v4.new_code_cell(text, metadata=meta))
    (folder / "notebooks").mkdir()
    for name in ("conftest.py", "sanitize.cfg", "bookkit.py", "bookdraw.py"):
        shutil.copy(book.ROOT / "notebooks" / name, folder / "notebooks")
    here = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, kernel_name="python3", resources=here).execute()
    return folder, notebook


def nbval(executed, edit):
    """Run nbval over the notebook after an edit of its stored JSON."""
    folder, notebook = executed
    stored = json.loads(json.dumps(notebook))
    edit(dict(zip(CELLS, stored["cells"], strict=True)))
    file = folder / "notebooks" / "toy.ipynb"
    file.write_text(json.dumps(stored))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with"]
    command += ["notebooks/sanitize.cfg", "-n", "2", "--dist", "loadfile", "notebooks"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=clean
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_nbval_passes_and_lists_what_it_ignored(executed):
    code, said = nbval(executed, lambda cells: None)
    assert code == 0, said
    assert "toy.ipynb: cell 5: assert True" in said
    assert said.strip().splitlines()[-1].startswith("8 passed")


@pytest.mark.slow
def test_nbval_sees_what_changed(executed):
    def edit(cells):
        cells["draw"]["source"] = DRAW.replace("HEIGHT", "2")
        cells["text"]["source"] = "print('loss', 3)"
        cells["matrix"]["source"] = MATRIX.replace("0.48", "0.46")

    code, said = nbval(executed, edit)
    assert code == 1
    assert "3 failed, 5 passed" in said, said
    assert "picture 0 is another picture" in said
    assert (executed[0] / "_build/pictures/toy-cell6-0-new.png").exists()


def test_list_of_what_is_let_pass(tmp_path):
    """Whatever makes nbval ignore an output puts the cell on the list."""
    cells = [
        v4.new_code_cell("#| hide\na()", metadata={"tags": ["nbval-ignore-output"]}),
        v4.new_code_cell("b()\n    ## NBVAL_IGNORE_OUTPUT"),
        v4.new_code_cell("# PYTEST_VALIDATE_IGNORE_OUTPUT\nc()"),
        v4.new_code_cell("d('NBVAL_IGNORE_OUTPUT')", metadata={"tags": ["training"]}),
    ]
    notebook = v4.new_notebook(cells=cells)
    (tmp_path / "toy.ipynb").write_text(json.dumps(notebook))
    lines = pictures.ignored_cells(tmp_path)
    assert [line.split(": ")[-1] for line in lines] == ["a()", "b()", "c()"]
