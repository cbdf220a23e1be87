"""The pictures of the chapters: matrices, attention maps, arrows, curves, tokens.

Import it through ``bookkit``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from torch import Tensor

# One colour a role in every figure of the book, apart for colour-blind eyes too.
ROLE = {
    "query": "#0068ac",
    "key": "#cf4f0a",
    "value": "#00805e",
    "score": "#8246a5",
    "residual": "#48688a",
    "ff": "#a37200",
    "mask": "#8b929a",
    "good": "#00805e",
    "bad": "#b3203a",
}
TOKENS = ("#cfe3f5", "#fbdcc6", "#cdebdf", "#e6d7f0", "#f6e6b4", "#dde2e8")
INK, QUIET, CARD, GRID = "#1d2329", "#6a737d", "#fcfcfb", "#d9dde1"
BLOCKED = "#eceef0"  # the ground under a cell that is -inf
NEGATIVE = "#857566"  # below zero: the same taupe whatever the role

CELL = 0.42  # inches a side: every matrix of a figure is drawn to one scale
BIG = 12  # more rows or columns than this, and the numbers are left out
MIDDLE = {"ha": "center", "va": "center"}

STYLE = {
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.6),
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
    "savefig.pad_inches": 0.12,
    "axes.facecolor": CARD,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=list(ROLE.values())[:6]),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "book",
}


def show_cell(value: float | int | bool, digits: int) -> str:
    """One cell as text: 1 or a dot for a bool, a whole number, or rounded."""
    if isinstance(value, bool):
        return "1" if value else "·"
    if isinstance(value, int):
        return str(value)
    shown = f"{value:.{digits}f}"
    return shown.lstrip("-") if not any(c in "123456789in" for c in shown) else shown


def cmap(role: str) -> LinearSegmentedColormap:
    """White for zero, the role's colour for one."""
    return LinearSegmentedColormap.from_list(role, ["#ffffff", ROLE[role]])


def signed(role: str) -> LinearSegmentedColormap:
    """Taupe below zero, white at zero, the role's colour above."""
    return LinearSegmentedColormap.from_list(role, [NEGATIVE, "#ffffff", ROLE[role]])


def fits(what: str, labels: Sequence[str], wanted: int) -> None:
    """Raise unless there is one label for each."""
    if len(labels) != wanted:
        raise ValueError(f"{what} has {len(labels)} labels, expected {wanted}")


def _inches(label: str, size: float) -> float:
    """The width of a line of text."""
    if not label.strip():
        return 0.0
    return TextPath((0, 0), label, size=size).get_extents().width / 72


def _tenths(inches: float) -> float:
    """Rounded up, so that a figure's printed size is the same everywhere."""
    return math.ceil(inches * 10 - 1e-6) / 10


@dataclass(eq=False)
class _Panel:
    """One matrix of a drawing: what it shows and, in inches, the room it takes."""

    matrix: Tensor
    name: str
    role: str
    rows: Sequence[str] | None
    cols: Sequence[str] | None
    op: str  # stands before it
    mark: tuple[int | None, int | None] | None = None
    x: float = 0.0

    def __post_init__(self) -> None:
        if self.matrix.dim() > 2:
            shape = tuple(self.matrix.shape)
            raise ValueError(f"a matrix has shape {shape}, expected 1-D or 2-D")
        if self.role not in ROLE:
            raise ValueError(f"role is {self.role!r}, expected one of {list(ROLE)}")
        self.grid = torch.atleast_2d(self.matrix.detach().cpu())
        self.n, self.m = self.grid.shape
        self.rows, self.cols = self.rows or [], self.cols or []
        if self.rows:
            fits("rows", self.rows, self.n)
        if self.cols:
            fits("cols", self.cols, self.m)
        self.cell = CELL if max(self.n, self.m) <= BIG else 5.0 / max(self.n, self.m)
        self.wide, self.high = self.m * self.cell, self.n * self.cell
        self.left = max((_inches(r, 9.5) + 0.1 for r in self.rows), default=0.0)
        self.room = self.left + (_inches(self.op, 15) + 0.34 if self.op else 0.0)
        longest = max((_inches(c, 9.5) for c in self.cols), default=0.0)
        self.turn = 90 if longest > self.cell - 0.04 else 0
        self.head = (longest + 0.1 if self.turn else 0.24) if self.cols else 0.0
        self.top = self.head + (0.34 if self.name else 0.0)  # above the cells
        self.end = 0.3 if self.name else 0.1  # below them

    def paint(self, ax: Axes, digits: int, vmax: float | None) -> None:
        """Fill the cells, write the numbers, put the tokens at the sides."""
        grid = self.grid.double()
        finite = grid[grid.isfinite()]
        top = vmax or (finite.abs().max().item() if len(finite) else 0.0) or 1.0
        low = -top if bool((finite < 0).any()) else 0.0
        colour = signed(self.role) if low else cmap(self.role)
        ax.set(xlim=(0, self.m), ylim=(self.n, 0), xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)

        def shown(value: float | int | bool) -> str:
            return show_cell(value, digits).replace("inf", "∞").replace("-", "−")

        texts = [[shown(value) for value in row] for row in self.grid.tolist()]
        longest = max(_inches(c, 10) for row in texts for c in row)
        size = 10 * min(1.0, (self.cell - 0.08) / longest)
        for i, row in enumerate(grid.tolist()):
            for j, value in enumerate(row):
                known = math.isfinite(value)
                face = to_rgb(colour((value - low) / (top - low)) if known else BLOCKED)
                box = Rectangle((j, i), 1, 1, fc=face, ec=GRID, lw=0.5)
                ax.add_patch(box)
                if not known:
                    box.set(hatch="////", edgecolor="#c3c9cf", hatch_linewidth=0.5)
                if max(self.n, self.m) <= BIG:
                    dark = 0.299 * face[0] + 0.587 * face[1] + 0.114 * face[2] < 0.56
                    ink, at = "white" if dark else INK, (j + 0.5, i + 0.52)
                    ax.text(*at, texts[i][j], size=size, color=ink, **MIDDLE)
        self._frame(ax, (None, None), QUIET, 0.9)
        if self.mark is not None:
            self._frame(ax, self.mark, INK, 2.4)
        gap = 0.07 / self.cell  # inches to cells
        for i, label in enumerate(self.rows):
            ax.text(-gap, i + 0.52, label, size=9.5, ha="right", va="center")
        for j, label in enumerate(self.cols):
            ax.text(
                j + 0.5, -gap, label, size=9.5, rotation=self.turn,
                ha="center", va="bottom",
            )  # fmt: skip
        if self.name:
            at, shade = (self.m / 2, -gap - self.head / self.cell), ROLE[self.role]
            ax.text(*at, self.name, size=12, weight="bold", color=shade, ha="center")
            shape, below = str(tuple(self.matrix.shape)), (self.m / 2, self.n + gap)
            ax.text(*below, shape, size=8.5, color=QUIET, ha="center", va="top")

    def _frame(
        self, ax: Axes, mark: tuple[int | None, int | None], ink: str, lw: float
    ) -> None:
        """A line around a row, a column, a cell or, without either, everything."""
        i, j = mark
        corner = (0 if j is None else j, 0 if i is None else i)
        sides = (self.m if j is None else 1, self.n if i is None else 1)
        frame = Rectangle(corner, *sides, fill=False, ec=ink, lw=lw, clip_on=False)
        ax.add_patch(frame)


def draw(
    *matrices: Tensor,
    names: Sequence[str] | None = None,
    rows: Sequence[Sequence[str] | None] | None = None,
    cols: Sequence[Sequence[str] | None] | None = None,
    roles: Sequence[str] | str = "residual",
    ops: Sequence[str] | None = None,
    marks: Mapping[int, tuple[int | None, int | None]] | None = None,
    digits: int = 2,
    vmax: float | None = None,
    width: float = 7.4,
) -> None:
    """Draw matrices side by side, to one scale, with operators between them.

    ``names, rows, cols, roles`` have one entry a matrix, ``ops`` one a gap. ``marks``
    frames a row, a column or a cell: ``{0: (2, None), 1: (None, 3), 2: (2, 3)}``.
    ``vmax`` is the value in full colour, each matrix's largest unless given.
    The line breaks before a matrix that would pass ``width`` inches.
    """
    count = len(matrices)
    given = {
        "names": names or [""] * count,
        "roles": [roles] * count if isinstance(roles, str) else roles,
        "rows": rows or [None] * count,
        "cols": cols or [None] * count,
        "ops": ["", *(ops or ["  "] * (count - 1))],
    }
    for what, entries in given.items():
        if len(entries) != count:
            raise ValueError(f"{what} does not fit {count} matrices")
    panels = [_Panel(*parts) for parts in zip(matrices, *given.values(), strict=True)]
    for i, mark in (marks or {}).items():
        panels[i].mark = mark

    # Place the panels: on one line while there is room.
    lines: list[list[_Panel]] = [[]]
    x = 0.0
    for panel in panels:
        if lines[-1] and x + panel.room + panel.wide > width:
            lines.append([])
            x = 0.0
        lines[-1].append(panel)
        panel.x = x + panel.room
        x = panel.x + panel.wide
    tops = [max(p.high / 2 + p.top for p in line) for line in lines]
    ends = [max(p.high / 2 + p.end for p in line) for line in lines]
    full = _tenths(max(p.x + p.wide for p in panels) + 0.1)
    high = _tenths(sum(tops) + sum(ends))

    fig = plt.figure(figsize=(full, high))
    y = high
    for line, top, end in zip(lines, tops, ends, strict=True):
        y -= top  # the line's middle
        spare = full - 0.1 - line[-1].x - line[-1].wide
        for p in line:
            p.x += spare / 2
            spot = (p.x / full, (y - p.high / 2) / high)
            p.paint(fig.add_axes((*spot, p.wide / full, p.high / high)), digits, vmax)
            sign = ((p.x - p.left - _inches(p.op, 15) / 2 - 0.17) / full, y / high)
            fig.text(*sign, p.op, size=15, color=QUIET, ha="center", va="center")
        y -= end
    plt.show()


def heat(
    weights: Tensor,
    queries: Sequence[str],
    keys: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
    role: str = "score",
    vmax: float | None = 1.0,
) -> None:
    """An attention map without numbers: queries down, keys across."""
    fits("queries", queries, weights.shape[0])
    fits("keys", keys, weights.shape[1])
    if ax is None:
        n, m = weights.shape
        _, ax = plt.subplots(figsize=(min(0.34 * m, 6) + 1, min(0.34 * n, 6) + 1))
    grid = weights.detach().cpu().double().numpy()
    ax.imshow(grid, cmap=cmap(role), vmin=0, vmax=vmax, interpolation="nearest")
    ax.set_xticks(range(len(keys)), keys, rotation=90, color=INK)
    ax.set_yticks(range(len(queries)), queries, color=INK)
    ax.set_xticks([j - 0.5 for j in range(1, len(keys))], minor=True)
    ax.set_yticks([i - 0.5 for i in range(1, len(queries))], minor=True)
    ax.grid(visible=False)
    ax.grid(which="minor", color=GRID, linewidth=0.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def arrows(
    points: Tensor, labels: Sequence[str], role: str, ax: Axes | None = None
) -> None:
    """Vectors of width 2 as arrows from the origin; call again to add another role."""
    if points.dim() != 2 or points.shape[1] != 2:
        raise ValueError(f"points has shape {tuple(points.shape)}, expected (n, 2)")
    fits("labels", labels, len(points))
    ax = ax or plt.gca()
    ax.set_aspect("equal", adjustable="datalim")
    ax.axhline(0, color=QUIET, lw=0.8)
    ax.axvline(0, color=QUIET, lw=0.8)
    ax.plot(0, 0, ".", color=QUIET)
    merged: dict[tuple[float, float], list[str]] = {}
    for (x, y), label in zip(points.detach().cpu().tolist(), labels, strict=True):
        merged.setdefault((round(x, 6), round(y, 6)), []).append(label)
    for (x, y), at_once in merged.items():
        ax.annotate(
            "", (x, y), (0, 0),
            arrowprops={"arrowstyle": "-|>", "color": ROLE[role], "lw": 1.8,
                        "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13},
        )  # fmt: skip
        length = math.hypot(x, y) or 1.0
        side = 0 if abs(x) < 0.3 * length else 1 if x > 0 else -1
        ax.annotate(
            ", ".join(at_once), (x, y), (11 * x / length, 9 * y / length),
            textcoords="offset points", color=ROLE[role], weight="bold", size=9.5,
            ha=("center", "left", "right")[side],
            va="center" if side else "bottom" if y > 0 else "top",
            path_effects=[withStroke(linewidth=2.5, foreground=CARD)],
        )  # fmt: skip
        ax.update_datalim([(x, y)])
    ax.margins(0.25)
    ax.autoscale_view()


def curves(
    lines: Mapping[str, Sequence[float] | Tensor],
    x: Sequence[float] | Tensor | None = None,
    roles: Mapping[str, str] | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    title: str = "",
    ax: Axes | None = None,
) -> None:
    """Line plot with each name written at the end of its line instead of a legend."""
    ax = ax or plt.gca()
    spare = iter(["query", "key", "value", "score", "ff", "residual"] * 4)
    ends = []
    for name, values in lines.items():
        colour = ROLE[(roles or {}).get(name) or next(spare)]
        height = [float(v) for v in values]
        across = range(len(height)) if x is None else [float(v) for v in x]
        ax.plot(across, height, color=colour)
        ends.append((height[-1], across[-1], name, colour))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.margins(x=0.0)
    if x is None:
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.figure.canvas.draw()  # fixes the scale, so that labels can be kept apart
    floor = -math.inf
    for height, across, name, colour in sorted(ends):
        spot = ax.transData.transform((across, height))[1]
        floor = max(spot, floor + 13 * ax.figure.dpi / 72)
        ax.annotate(
            name, (across, height), (7, (floor - spot) * 72 / ax.figure.dpi),
            textcoords="offset points", color=colour, weight="bold", va="center",
            annotation_clip=False,
        )  # fmt: skip


def chips(pieces: Sequence[str], below: Sequence[object] | None = None) -> None:
    """Tokens as coloured chips in reading order, with a number under each if given."""
    if below is not None:
        fits("below", list(map(str, below)), len(pieces))
    notes = ["" if below is None else str(below[i]) for i in range(len(pieces))]
    shown = [p.replace(" ", "␣").replace("\n", "↵") for p in pieces]
    step = 0.62 if below is not None else 0.42
    places, x, y = [], 0.0, 0.0
    for piece, note in zip(shown, notes, strict=True):
        wide = max(_inches(piece, 11) + 0.18, _inches(note, 8.5) + 0.06)
        if x + wide > 6.6:
            x, y = 0.0, y - step
        places.append((x, y, wide))
        x += wide + 0.06
    right = _tenths(max(x + wide for x, _, wide in places))
    fig = plt.figure(figsize=(right + 0.04, step - y))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.02, right + 0.02), ylim=(y - step + 0.32, 0.32))
    ax.axis("off")
    for i, (x, y, wide) in enumerate(places):
        ax.add_patch(
            FancyBboxPatch(
                (x, y), wide, 0.29, fc=TOKENS[i % len(TOKENS)], ec="none",
                boxstyle="round,pad=0,rounding_size=0.06",
            )
        )  # fmt: skip
        ax.text(x + wide / 2, y + 0.135, shown[i], size=11, ha="center", va="center")
        ax.text(x + wide / 2, y - 0.13, notes[i], size=8.5, color=QUIET, ha="center")
    plt.show()
