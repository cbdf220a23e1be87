"""Draw the map of the architecture once for every chapter, its own room lit.

    python tools/make_map.py            write book/_static/map/<room>.svg
    python tools/make_map.py --check    compare instead of writing

A new room is a line of ROOMS; a new kind of line between rooms goes into ``wires``.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))
from bookdraw import CARD, INK, QUIET, ROLE  # noqa: E402

TARGET = ROOT / "book" / "_static" / "map"
WIDTH, HEIGHT = 760, 282
STREAM = 232  # the height at which the residual stream runs
WALL, FLOOR, WIRE = "#c9d0d6", "#eef1f3", "#a9b3bc"


@dataclass(frozen=True)
class Room:
    """A box of the map. A room with others inside is lit by its walls and its name."""

    name: str
    label: str
    role: str
    box: tuple[float, float, float, float]  # x, y, width, height
    holds: tuple[str, ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        """Where the label of a plain room stands."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


INSIDE_BLOCK = ("multi_head", "attention", "masks", "dropout", "norm", "feed_forward")
REST = ("tokens", "embeddings", "positions", "block", "output_head")
ROOMS = [  # big ones first: the small ones are drawn on top
    Room("gpt", "GPT", "residual", (6, 6, 748, 270), REST + INSIDE_BLOCK),
    Room("block", "block × L", "residual", (170, 22, 418, 240), INSIDE_BLOCK),
    Room(
        "multi_head", "multi-head", "score", (184, 52, 168, 104), ("attention", "masks")
    ),
    Room("tokens", "tokens", "residual", (24, 60, 122, 36)),
    Room("embeddings", "embeddings", "residual", (24, 116, 122, 36)),
    Room("positions", "+ positions", "residual", (24, 172, 122, 36)),
    Room("masks", "masks", "score", (194, 82, 148, 28)),
    Room("attention", "attention", "score", (194, 118, 148, 28)),
    Room("dropout", "dropout", "residual", (280, 170, 72, 26)),
    Room("norm", "norm", "residual", (340, 217, 58, 30)),
    Room("feed_forward", "feed-forward", "ff", (410, 52, 126, 104)),
    Room("dropout", "dropout", "residual", (456, 170, 72, 26)),
    Room("norm", "norm", "residual", (516, 217, 58, 30)),
    Room("output_head", "output head", "residual", (612, 144, 124, 44)),
]
NAMES = list(dict.fromkeys(room.name for room in ROOMS))


def tint(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - p) * strength):02x}" for p in parts)


def line(path: str, width: float = 2, arrow: bool = True) -> str:
    """A wire along an SVG path."""
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return (
        f'<path d="{path}" fill="none" stroke="{WIRE}" stroke-width="{width}"'
        f' stroke-linejoin="round"{end}/>'
    )


def words(
    x: float, y: float, label: str, colour: str, size: float, more: str = ""
) -> str:
    """A line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{more}>'
        f"{escape(label)}</text>"
    )


def wires() -> list[str]:
    """What flows where: down on the left, along the bottom, up on the right."""
    parts = [
        line("M85 50V58"),
        line("M85 96V114"),
        line("M85 152V170"),
        line(f"M85 208V{STREAM - 8}Q85 {STREAM} 93 {STREAM}H346", 6, arrow=False),
        line(
            f"M398 {STREAM}H522M574 {STREAM}H666Q674 {STREAM} 674 224V194",
            6,
            arrow=False,
        ),
        line("M674 206V190"),
        line("M674 144V128"),
        line(f"M212 {STREAM}V158"),
        line("M316 156V168"),
        line("M316 196V220"),
        line(f"M428 {STREAM}V158"),
        line("M492 156V168"),
        line("M492 196V220"),
    ]
    for x in (316, 492):
        parts.append(
            f'<circle cx="{x}" cy="{STREAM}" r="10" fill="{CARD}" stroke="{QUIET}"'
            f' stroke-width="1.5"/><path d="M{x - 5} {STREAM}h10M{x} {STREAM - 5}v10"'
            f' stroke="{QUIET}" stroke-width="1.5"/>'
        )
    for i, tall in enumerate((10, 18, 52, 26, 14)):  # the next word's probabilities
        shade = QUIET if tall == 52 else WIRE
        x, y = 640 + 14 * i, 122 - tall
        parts.append(
            f'<rect x="{x}" y="{y}" width="10" height="{tall}" rx="2" fill="{shade}"/>'
        )
    return parts


def walls(room: Room, lit: Room) -> list[str]:
    """One room: quiet, lit, or glowing a little because it stands in the lit one."""
    x, y, width, height = room.box
    on, glows = room.name == lit.name, room.name in lit.holds
    colour = ROLE[room.role]
    if room.holds:
        fill = tint(colour, 0.1) if on else "#ffffff" if room.name != "gpt" else "none"
        stroke, ink = (colour, colour) if on else (WALL, QUIET)
    else:
        fill = colour if on else tint(colour, 0.22) if glows else FLOOR
        stroke = colour if on or glows else WALL
        ink = "#ffffff" if on else INK if glows else "#525b64"
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}"'
        f' rx="{14 if room.name == "gpt" else 8}" fill="{fill}" stroke="{stroke}"'
        f' stroke-width="{3 if on else 1.5 if glows else 1}"/>'
    ]
    bold = ' font-weight="700"' if on else ""
    middle = ' text-anchor="middle"'
    if room.name == "gpt":
        parts.append(words(724, 40, room.label, ink, 19, ' text-anchor="end"' + bold))
    elif room.holds:
        parts.append(words(x + 12, y + 21, room.label, ink, 17, bold))
    else:
        size = 18 if height > 30 else 16
        at = room.centre
        parts.append(words(at[0], at[1] + 5.5, room.label, ink, size, middle + bold))
    return parts


def draw(name: str) -> str:
    """The whole map as SVG text, one room lit."""
    lit = next(room for room in ROOMS if room.name == name)
    label = lit.label.removeprefix("+ ")
    frames = [room for room in ROOMS if room.holds]
    plain = [room for room in ROOMS if not room.holds]
    body = [part for room in frames for part in walls(room, lit)]
    body += wires()
    body += [part for room in plain for part in walls(room, lit)]
    body.append(words(85, 42, "the dog bites …", INK, 16, ' text-anchor="middle"'))
    head = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
 width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title desc"
 font-family="Helvetica, Arial, sans-serif">
<title id="title">Map of the Transformer: {escape(label)}</title>
<desc id="desc">Tokens become embeddings, positions are added, and the residual stream
runs through L blocks, each of masked multi-head attention and a feed-forward layer with
dropout, addition and norm, to the output head. Lit here: {escape(label)}.</desc>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8"
 markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">
<path d="M0 0L8 4L0 8z" fill="{WIRE}"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" rx="18" fill="{CARD}"/>
"""
    return head + "\n".join(body) + "\n</svg>\n"


def main() -> None:
    """Write every map, or compare."""
    parser = argparse.ArgumentParser(description="Draw the maps of the architecture.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        path, svg = TARGET / f"{name}.svg", draw(name)
        if check and (not path.exists() or path.read_text(encoding="utf-8") != svg):
            raise SystemExit(f"{path} is out of date: run python tools/make_map.py")
        if not check:
            draft = path.with_suffix(".tmp")
            draft.write_text(svg, encoding="utf-8", newline="\n")
            draft.replace(path)


if __name__ == "__main__":
    main()
