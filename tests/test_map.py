"""The map is drawn as its program draws it, and every chapter has a room in it."""

import re
import sys
from itertools import combinations
from xml.etree import ElementTree

import bookfiles as book
import pytest

sys.path.insert(0, str(book.ROOT / "tools"))
import make_map

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", make_map.NAMES)
def test_file_is_in_step(name):
    file = make_map.TARGET / f"{name}.svg"
    told = "run python tools/make_map.py"
    assert file.read_text(encoding="utf-8") == make_map.draw(name), told


def test_no_other_file_is_there():
    there = {file.stem for file in make_map.TARGET.iterdir()}
    assert there == set(make_map.NAMES)


def test_every_chapter_shows_its_room():
    shown = []
    for path in book.notebooks():
        cells = book.read(path)["cells"]
        text = "\n".join(book.source(c) for c in cells if c["cell_type"] == "markdown")
        maps = re.findall(r"!\[[^]]{10,}\]\(\.\./book/_static/map/(\w+)\.svg\)", text)
        assert len(maps) == 1, path.name
        shown += maps
    assert len(set(shown)) == len(shown), "two chapters in one room"
    assert set(shown) <= set(make_map.NAMES)


@pytest.mark.parametrize("name", make_map.NAMES)
def test_one_room_is_lit(name):
    tree = ElementTree.fromstring(make_map.draw(name))
    bold = [t.text for t in tree.iter(f"{SVG}text") if t.get("font-weight") == "700"]
    lit = [room.label for room in make_map.ROOMS if room.name == name]
    assert [label for label in bold if label != "BERT"] == lit
    title = tree.find(f"{SVG}title").text
    assert title.endswith(lit[0].removeprefix("+ "))


def inside(box, other):
    x, y, width, height = box
    left, top, wide, high = other
    return (
        left <= x and x + width <= left + wide and top <= y and y + height <= top + high
    )


def apart(box, other):
    x, y, width, height = box
    left, top, wide, high = other
    return x + width <= left or left + wide <= x or y + height <= top or top + high <= y


def test_rooms_do_not_overlap():
    for one, two in combinations(make_map.ROOMS, 2):
        nested = (one.frame and inside(two.box, one.box)) or (
            two.frame and inside(one.box, two.box)
        )
        assert nested or apart(one.box, two.box), (one.name, two.name)
    page = (0, 0, make_map.WIDTH, make_map.HEIGHT)
    assert all(inside(room.box, page) for room in make_map.ROOMS)


def test_glows_name_rooms():
    for room in make_map.ROOMS:
        assert set(room.glows) <= set(make_map.NAMES) - {room.name}


def test_labels_fit_and_are_big_enough():
    """A phone shows the map at half its size."""
    for room in make_map.ROOMS:
        tree = ElementTree.fromstring(make_map.draw(room.name))
        for text in tree.iter(f"{SVG}text"):
            assert float(text.get("font-size")) >= 16
        if not room.frame:
            width, height = room.box[2:]
            size = 18 if height > 30 else 16
            assert 0.58 * size * len(room.label) < width + 4, room.label
