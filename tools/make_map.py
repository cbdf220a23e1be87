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
WIDTH, HEIGHT = 760, 508
STREAM = 232  # the height at which the residual stream runs
SECOND = 408  # and in the encoder's wing below
WALL, FLOOR, WIRE = "#c9d0d6", "#eef1f3", "#a9b3bc"


@dataclass(frozen=True)
class Room:
    """A box of the map. ``glows``: what is lit a little with it.

    A frame has other rooms inside; it is lit by its walls and its name.
    """

    name: str
    label: str
    role: str
    box: tuple[float, float, float, float]  # x, y, width, height
    glows: tuple[str, ...] = ()
    frame: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """Where the label of a plain room stands."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


FRONT = ("tokens", "embeddings", "positions")
INSIDE_BLOCK = ("multi_head", "attention", "masks", "dropout", "norm", "feed_forward")
HOUSE = (*FRONT, "block", *INSIDE_BLOCK, "output_head")
WING = ("bert", "encoder_decoder", "vision")
WEIGHTY = tuple(r for r in (*HOUSE, *WING) if r not in ("masks", "dropout"))
LOOP = ("tokens", "multi_head", "attention", "output_head")  # the last word is read
WORK = ("learning_rate", "training", "generation")
ROOMS = [  # frames first: what stands in them is drawn on top
    Room("gpt", "GPT", "residual", (6, 6, 748, 270), HOUSE, frame=True),
    Room("block", "block × L", "residual", (170, 22, 418, 240), INSIDE_BLOCK, True),
    Room(
        "multi_head",
        "multi-head",
        "score",
        (184, 52, 168, 104),
        ("attention", "masks"),
        frame=True,
    ),
    Room("bert", "encoder × L", "residual", (170, 336, 418, 96), FRONT, frame=True),
    Room("tokens", "tokens", "residual", (24, 60, 122, 36)),
    Room("embeddings", "embeddings", "residual", (24, 116, 122, 36)),
    Room("positions", "+ positions", "residual", (24, 172, 122, 36)),
    Room("masks", "masks", "score", (194, 82, 148, 28)),
    Room("attention", "attention", "score", (194, 118, 148, 28)),
    Room("dropout", "dropout", "residual", (280, 170, 72, 26)),
    Room("norm", "norm", "residual", (334, 217, 54, 30)),
    Room("feed_forward", "feed-forward", "ff", (424, 52, 126, 104)),
    Room("dropout", "dropout", "residual", (460, 170, 72, 26)),
    Room("norm", "norm", "residual", (518, 217, 54, 30)),
    Room("output_head", "output head", "residual", (612, 144, 124, 44)),
    Room(
        "encoder_decoder",
        "cross-attention",
        "score",
        (330, 288, 156, 34),
        ("bert", "block"),
    ),
    Room("vision", "patches", "residual", (24, 390, 122, 36), ("bert", "positions")),
    Room("pretrained", "real weights", "value", (612, 390, 124, 36), WEIGHTY),
    Room("learning_rate", "learning rate", "key", (24, 456, 134, 36), ("training",)),
    Room("training", "training step", "key", (182, 456, 134, 36), WEIGHTY),
    Room("program", "program", "residual", (370, 456, 110, 36), WORK),
    Room("generation", "generation", "query", (612, 456, 124, 36), LOOP),
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


def plus(x: float, y: float, radius: float = 10) -> str:
    """Where something is added to the stream."""
    arm = radius / 2
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{CARD}" stroke="{QUIET}"'
        f' stroke-width="1.5"/><path d="M{x - arm:g} {y:g}h{radius:g}M{x:g} {y - arm:g}'
        f'v{radius:g}" stroke="{QUIET}" stroke-width="1.5"/>'
    )


def tile(
    x: float, y: float, width: float, height: float, fill: str, rx: float = 2
) -> str:
    """A small rectangle without a name."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx:g}"'
        f' fill="{fill}"/>'
    )


def wires() -> list[str]:
    """What flows where: down on the left, along the bottom, up on the right."""
    parts = [
        line("M85 50V58"),
        line("M85 96V114"),
        line("M85 152V170"),
        line(f"M85 208V{STREAM - 8}Q85 {STREAM} 93 {STREAM}H334", 6, arrow=False),
        line(
            f"M388 {STREAM}H518M572 {STREAM}H666Q674 {STREAM} 674 224V194",
            6,
            arrow=False,
        ),
        line("M674 206V190"),
        line("M674 144V128"),
        line(f"M212 {STREAM}V158"),
        line("M316 156V168"),
        line("M316 196V220"),
        line(f"M446 {STREAM}V158"),
        line("M496 156V168"),
        line("M496 196V220"),
        plus(316, STREAM),
        plus(496, STREAM),
    ]
    for i, tall in enumerate((10, 18, 52, 26, 14)):  # the next word's probabilities
        shade = QUIET if tall == 52 else WIRE
        parts.append(tile(640 + 14 * i, 122 - tall, 10, tall, shade))
    return parts


def wing(awake: bool) -> list[str]:
    """The encoder: the block once more, small, and what it hands to the decoder."""

    def shade(role: str) -> str:
        return tint(ROLE[role], 0.3) if awake else tint(WIRE, 0.35)

    parts = [
        line(f"M158 {STREAM}V{SECOND - 8}Q158 {SECOND} 166 {SECOND}H480", 6, False),
        line(f"M146 {SECOND}H162", 6, arrow=False),
        line(
            f"M216 {SECOND}V388M258 388V400M330 {SECOND}V388M372 388V400", arrow=False
        ),
        tile(204, 366, 66, 24, shade("score"), 4),
        tile(318, 366, 66, 24, shade("ff"), 4),
        plus(258, SECOND, 7),
        plus(372, SECOND, 7),
        tile(274, SECOND - 8, 26, 16, shade("residual"), 4),
        tile(388, SECOND - 8, 26, 16, shade("residual"), 4),
        line(f"M398 {STREAM}V286"),  # queries go down
        line(f"M418 288V{STREAM + 11}"),  # and come back with an answer
        plus(418, STREAM, 8),
        line("M498 386V313Q498 305 488 305"),  # the memory: keys and values
        line("M674 390V278"),
        line("M612 408H590"),
    ]
    ink = ROLE["residual"] if awake else WIRE
    for i in range(4):  # the rows that the encoder makes
        for j in range(4):
            depth = (0.25, 0.55, 0.4, 0.7, 0.35)[(3 * i + j) % 5]
            parts.append(tile(480 + 10 * j, 388 + 10 * i, 9, 9, tint(ink, depth), 1.5))
    for i in range(3):  # a picture, cut into squares
        for j in range(3):
            depth = (0.2, 0.6, 0.35, 0.5)[(2 * i + j) % 4]
            parts.append(
                tile(68 + 12 * j, 334 + 12 * i, 10.5, 10.5, tint(ink, depth), 1.5)
            )
    return [*parts, line("M85 372V388")]


def yard() -> list[str]:
    """Below the house: what trains the weights, and what lets the model write."""
    return [
        line("M158 474H180"),  # how large the step
        line("M249 456V434"),  # the step changes the weights
        line("M370 474H318"),
        line("M480 474H610"),
        line("M736 166H740Q746 166 746 172V468Q746 474 740 474H738", arrow=False),
    ]


def walls(room: Room, lit: Room) -> list[str]:
    """One room: quiet, lit, or glowing a little because the lit one works with it."""
    x, y, width, height = room.box
    on, glows = room.name == lit.name, room.name in lit.glows
    colour = ROLE[room.role]
    if room.frame:
        fill = tint(colour, 0.1) if on else "#ffffff" if room.name != "gpt" else "none"
        stroke, ink = (colour, colour) if on or glows else (WALL, QUIET)
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
    elif room.frame:
        parts.append(words(x + 12, y + 21, room.label, ink, 17, bold))
        if room.name == "bert":
            end = ' text-anchor="end"'
            parts.append(words(574, 359, "BERT", ink, 19, end + bold))
    else:
        size = 18 if height > 30 else 16
        at = room.centre
        parts.append(words(at[0], at[1] + 5.5, room.label, ink, size, middle + bold))
    return parts


def draw(name: str) -> str:
    """The whole map as SVG text, one room lit."""
    lit = next(room for room in ROOMS if room.name == name)
    label = lit.label.removeprefix("+ ")
    frames = [room for room in ROOMS if room.frame]
    plain = [room for room in ROOMS if not room.frame]
    body = [part for room in frames for part in walls(room, lit)]
    body += wires() + wing("bert" in (lit.name, *lit.glows)) + yard()
    body += [part for room in plain for part in walls(room, lit)]
    body.append(words(85, 42, "the dog bites …", INK, 16, ' text-anchor="middle"'))
    head = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"
 width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title desc"
 font-family="Helvetica, Arial, sans-serif">
<title id="title">Map of the Transformer: {escape(label)}</title>
<desc id="desc">Tokens become embeddings, positions are added, and the residual stream
runs through L blocks, each of masked multi-head attention and a feed-forward layer with
dropout, addition and norm, to the output head. In a wing below, an encoder of the same
blocks reads words or the patches of a picture, and cross-attention carries what it made
to the blocks above; a door lets real weights in. In the yard, training steps change the
weights at a learning rate, generation draws the next word, and a program runs both.
Lit here: {escape(label)}.</desc>
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
