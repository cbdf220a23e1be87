"""The drawing kit of the chapters: it prints, draws and hands on matrices.

Nothing here is part of the package. Every chapter starts with

    import bookkit as kit

    kit.setup()
"""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from bookdraw import (
    ROLE,
    STYLE,
    arrows,
    chips,
    cmap,
    curves,
    draw,
    fits,
    heat,
    show_cell,
    signed,
)

__all__ = [  # what a chapter finds as kit.name, drawing included
    "ROLE",
    "Example",
    "Profile",
    "Size",
    "arrows",
    "check",
    "chips",
    "cmap",
    "curves",
    "draw",
    "four_sizes",
    "hand_over",
    "heat",
    "profile",
    "rows",
    "running_example",
    "setup",
    "signed",
    "sizes",
    "split",
    "table",
    "take_over",
    "text",
    "weights",
]

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data"
HANDOVER = HERE / "handover"
Setting = TypeVar("Setting")

# --- Setting up ------------------------------------------------------------------


def setup(dtype: torch.dtype = torch.float64) -> None:
    """Make a notebook repeatable: number type, seed, threads, printing, drawing."""
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=88)
    plt.rcParams.update(STYLE)
    # IPython's hook for the text that is stored beside a picture
    Figure._repr_pretty_ = lambda figure, p, cycle: p.text(caption(figure))


def caption(figure: Figure) -> str:
    """Name a figure by its size and a mark of all its words and digits.

    The mark stands in the stored output as text, so one changed digit is found there,
    where a comparison of pixels must overlook so little.
    """
    figure.draw_without_rendering()  # only now do the ticks have their labels
    words = [t.get_text() for t in figure.findobj(Text) if t.get_visible()]
    plain = "\n".join(" ".join(w.split()) for w in words if w.strip())
    mark = hashlib.sha256(plain.replace("\N{MINUS SIGN}", "-").encode()).hexdigest()
    return f"{repr(figure)[:-1]}, texts {mark[:8]}>"


@dataclass(frozen=True)
class Profile:
    """How big the experiments are, and where they run."""

    name: str
    device: str

    def pick(self, cpu: Setting, gpu: Setting) -> Setting:
        """Choose a setting: ``steps = profile.pick(cpu=200, gpu=5000)``."""
        return gpu if self.name == "gpu" else cpu


def profile() -> Profile:
    """Read PROFILE: small settings on the CPU, or with PROFILE=gpu the big ones."""
    name = os.environ.get("PROFILE", "cpu")
    if name == "cpu":
        return Profile("cpu", "cpu")
    if name != "gpu":
        raise ValueError(f"PROFILE is {name!r}, expected 'cpu' or 'gpu'")
    if not torch.accelerator.is_available():
        raise RuntimeError("PROFILE=gpu, but PyTorch finds no accelerator here")
    return Profile("gpu", str(torch.accelerator.current_accelerator().type))


# --- The running sentence, and the matrices handed from chapter to chapter ---------


@dataclass(frozen=True)
class Example:
    """The running sentence and the weights that carry it through the book."""

    vocab: list[str]
    words: list[str]
    sentences: list[str]  # all that the small model was trained on
    config: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def ids(self) -> Tensor:
        """The whole sentence as rows of the vocabulary. (T + 1,)"""
        return torch.tensor([self.vocab.index(word) for word in self.words])

    @property
    def inputs(self) -> list[str]:
        """The words that the model reads: all but the last. (T,)"""
        return self.words[:-1]


def running_example() -> Example:
    """Read the running sentence and its weights (float64)."""
    stored = json.loads((DATA / "tiny" / "model.json").read_text(encoding="utf-8"))
    weights = {k: _tensor(v).double() for k, v in stored["weights"].items()}
    return Example(
        vocab=stored["tokens"],
        words=stored["sentence"],
        sentences=stored["sentences"],
        config=stored["config"],
        weights=weights,
    )


def hand_over(name: str, **values: Any) -> None:
    """Give matrices to the next chapter; they must equal the stored ones.

    Only ``make execute`` (it sets BOOK_EXECUTE=1) stores, or changes what is stored.
    """
    path = HANDOVER / f"{name}.json"
    plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}
    if os.environ.get("BOOK_EXECUTE") != "1":
        if not path.exists():
            advice = f"`make execute NB={name}` stores it"
            raise FileNotFoundError(f"{path} is missing: {advice}")
        stored = take_over(name)
        assert set(stored) == set(values), f"{path.name} holds {sorted(stored)}"
        for key in stored:
            _assert_same(f"{key} of {path.name}", _tensor(plain[key]), stored[key])
        return
    rows = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in plain.items()]
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    draft.replace(path)


def take_over(name: str) -> dict[str, Any]:
    """Take the matrices that an earlier chapter handed over."""
    path = HANDOVER / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the notebook {name} first")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {k: _tensor(v) for k, v in stored.items()}


def _tensor(value: Any) -> Any:
    """Numbers become a tensor (float64 if not whole); words stay as they are."""
    flat = value
    while isinstance(flat, list) and flat:
        flat = flat[0]
    if isinstance(flat, float):
        return torch.tensor(value, dtype=torch.float64)
    return torch.tensor(value) if isinstance(flat, (bool, int)) else value


def _assert_same(what: str, new: Any, old: Any) -> None:
    advice = f"{what} changed: if that is meant, run `make execute`"
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        assert new.shape == old.shape, f"{advice} ({new.shape} was {old.shape})"
        same = torch.allclose(new.double(), old.double(), rtol=0, atol=1e-12)
        assert same, advice
    else:
        assert new == old, advice


def check(answer: Any, expected: Any, hint: str = "", tol: float = 1e-6) -> None:
    """Judge an exercise: prints "correct", or raises with a hint."""
    got, want = torch.as_tensor(answer), torch.as_tensor(expected)
    if got.shape != want.shape:
        raise AssertionError(
            f"shape {tuple(got.shape)}, expected {tuple(want.shape)}. {hint}"
        )
    if not torch.allclose(got.double(), want.double(), rtol=0, atol=tol):
        worst = (got.double() - want.double()).abs().max().item()
        raise AssertionError(f"not yet: off by up to {worst:.3g}. {hint}")
    print("correct")


# --- Text -------------------------------------------------------------------------


def text(name: str = "shakespeare") -> str:
    """A corpus of the data folder as one string."""
    (path,) = (DATA / name).glob("*.txt")
    return path.read_text(encoding="utf-8")


def rows(name: str) -> list[tuple[str, ...]]:
    """A table of the data folder, ``rows("folio/pairs")``, a tuple a line.

    The first line of the file names the columns and is left out. A blank line, which
    ends an address in ``rows("addresses/labeled")``, comes as an empty tuple.
    """
    packed = (DATA / f"{name}.tsv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1:-1]
    return [tuple(line.split("\t")) if line else () for line in lines]


def weights(name: str) -> Path | None:
    """The folder of the pretrained weights of that name; None if they are absent.

    ``make weights`` downloads them: minilm, smollm2, whisper, dinov2.
    """
    home = Path.home() / ".cache" / "transformers-matrix-by-matrix"
    folder = Path(os.environ.get("TRANSFORMER_WEIGHTS") or home) / name
    return folder if (folder / "config.json").is_file() else None


def split(corpus: str) -> tuple[str, str]:
    """Train on the first nine tenths of every play, validate on its last tenth.

    Plays stand three blank lines apart; the cut falls on the blank line before it.
    """
    plays = corpus.split("\n\n\n\n")
    cuts = [play.rfind("\n\n", 0, len(play) * 9 // 10) for play in plays]
    train = [play[:cut] for play, cut in zip(plays, cuts, strict=True)]
    valid = [play[cut:].strip("\n") for play, cut in zip(plays, cuts, strict=True)]
    return "\n\n\n\n".join(train), "\n\n\n\n".join(valid)


# --- Printing -----------------------------------------------------------------------


def table(
    matrix: Tensor,
    rows: Sequence[str] | None = None,
    cols: Sequence[str] | None = None,
    digits: int = 2,
    name: str | None = None,
) -> None:
    """Print a matrix with the tokens beside its rows."""
    if matrix.dim() > 2:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}, expected 1-D or 2-D")
    grid = torch.atleast_2d(matrix.detach().cpu()).tolist()
    cells = [[show_cell(v, digits) for v in row] for row in grid]
    heads = [str(c) for c in (cols if cols is not None else range(len(cells[0])))]
    names = [str(r) for r in (rows if rows is not None else [""] * len(cells))]
    fits("rows", names, len(cells))
    fits("cols", heads, len(cells[0]))
    side = max(map(len, names))
    wide = 2 + max(len(c) for line in [heads, *cells] for c in line)
    if name is not None:
        print(f"{name}  {tuple(matrix.shape)}")
    if cols is not None or name is not None:
        print(" " * side + "".join(f"{h:>{wide}}" for h in heads))
    for label, line in zip(names, cells, strict=True):
        print(f"{label:<{side}}" + "".join(f"{c:>{wide}}" for c in line))


@dataclass(frozen=True)
class Size:
    """A model's size in the book's letters."""

    V: int  # vocabulary
    T: int  # positions
    D: int  # d_model
    H: int  # heads
    L: int  # layers
    F: int  # hidden width of the feed-forward layer

    @property
    def K(self) -> int:
        """The width of a head."""
        return self.D // self.H


def sizes() -> dict[str, Size]:
    """The four sizes that every chapter compares."""
    tiny = running_example()
    d_model, n_heads, n_layers, d_ff = (
        tiny.config[k] for k in ("d_model", "n_heads", "n_layers", "d_ff")
    )
    page = Size(len(tiny.vocab), len(tiny.inputs), d_model, n_heads, n_layers, d_ff)
    return {
        "this page": page,
        "the book's model": Size(V=80, T=64, D=128, H=4, L=4, F=512),
        "GPT-2": Size(V=50257, T=1024, D=768, H=12, L=12, F=3072),
        "GPT-3": Size(V=50257, T=2048, D=12288, H=96, L=96, F=49152),
    }


def four_sizes(rows: Mapping[str, Callable[[Size], Any]]) -> None:
    """Print one line a formula, one column a model.

    ``four_sizes({"table": lambda s: (s.V, s.D), "numbers": lambda s: s.V * s.D})``
    """

    def say(value: Any) -> str:
        if isinstance(value, tuple):
            return "(" + ", ".join(map(say, value)) + ")"
        return f"{value:,}" if isinstance(value, int) else str(value)

    models = sizes()
    lines = [["", *models]]
    for label, count in rows.items():
        lines.append([label, *(say(count(size)) for size in models.values())])
    wide = [max(len(line[i]) for line in lines) for i in range(len(models) + 1)]
    for label, *cells in lines:
        row = [f"{cell:>{w + 2}}" for cell, w in zip(cells, wide[1:], strict=True)]
        print(f"{label:<{wide[0]}}" + "".join(row))
