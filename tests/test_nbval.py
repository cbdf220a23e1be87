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
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbformat import v4

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


def test_another_size():
    told = pictures.picture_difference(png(curve), png(curve, width=6))
    assert told == "stored 640 x 480, new 600 x 480"


# --------------------------------------------------- the whole way, in a folder apart

DRAW = "#| alt: A falling curve\nfigure = plt.plot([3, HEIGHT])"
CELLS = {
    "import": "from matplotlib import pyplot as plt\nimport random, time",
    "history": "6 * 7",
    "count": "Out[2], 'hidden'[0];",
    "text": "print('loss', 2)",
    "address": "print(object())",
    "sample": "assert True\nprint(random.random())",
    "draw": DRAW.replace("HEIGHT", "1"),
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nbval")
    notebook = v4.new_notebook()
    for name, text in CELLS.items():
        meta = {"tags": ["nbval-ignore-output"]} if name == "sample" else {}
        notebook.cells.append(v4.new_code_cell(text, metadata=meta))
    NotebookClient(notebook, kernel_name="python3").execute()
    return folder, notebook


def nbval(executed, edit):
    """Run nbval over the notebook after an edit of its stored JSON."""
    folder, notebook = executed
    (folder / "notebooks").mkdir(exist_ok=True)
    for name in ("conftest.py", "sanitize.cfg"):
        shutil.copy(book.ROOT / "notebooks" / name, folder / "notebooks")
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
    assert said.strip().splitlines()[-1].startswith("7 passed")


@pytest.mark.slow
def test_nbval_sees_what_changed(executed):
    def edit(cells):
        cells["draw"]["source"] = DRAW.replace("HEIGHT", "2")
        cells["text"]["source"] = "print('loss', 3)"

    code, said = nbval(executed, edit)
    assert code == 1
    assert "2 failed, 5 passed" in said, said
    assert "picture 0 is another picture" in said
    assert (executed[0] / "_build/pictures/toy-cell6-0-new.png").exists()
