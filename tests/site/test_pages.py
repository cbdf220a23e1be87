"""The built pages, read as files: whole, linked, free of errors and of other hosts."""

import ast
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bookfiles as book
import pytest
from bs4 import BeautifulSoup

HTML = book.ROOT / "_build" / "html"
PAGES = book.contents()
MADE_BY_SPHINX = {"genindex", "index", "py-modindex", "search"}

# What a browser loads by itself. Links for the reader to click are not among them.
LOADED = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "object": ["data"],
    "embed": ["src"],
    "image": ["href", "xlink:href"],
}
LOADING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "modulepreload",
    "manifest",
}
CSS_ADDRESS = re.compile(r"""(?:url\(|@import)\s*['"]?([^'")\s;]+)""")
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)

pytestmark = pytest.mark.skipif(
    not HTML.exists() and os.environ.get("CI") != "true",
    reason="no book in _build/html: run `make book`",
)


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    tags = soup(path).find_all(True)
    return frozenset(
        tag.get(key) for tag in tags for key in ("id", "name") if tag.get(key)
    )


def files() -> list[Path]:
    return [f for f in sorted(HTML.rglob("*.html")) if "_static" not in f.parts]


def page(name: str) -> Path:
    return HTML / f"{name}.html"


def loaded(path: Path) -> list[str]:
    """Return every address that a browser loads when it opens the page."""
    found = []
    for tag in soup(path).find_all([*LOADED, "link"]):
        if tag.name == "link":
            if LOADING_LINKS & set(tag.get("rel", [])):
                found.append(tag.get("href", ""))
            continue
        for key in LOADED[tag.name]:
            for part in (
                tag.get(key, "").split(",") if key == "srcset" else [tag.get(key)]
            ):
                if part:
                    found.append(part.split()[0])
    styles = [tag.get_text() for tag in soup(path).find_all("style")]
    styles += [tag["style"] for tag in soup(path).find_all(style=True)]
    return found + [a for text in styles for a in css_addresses(text)]


def css_addresses(text: str) -> list[str]:
    found = CSS_ADDRESS.findall(CSS_COMMENT.sub("", text))
    return [a for a in found if not a.startswith(("data:", "#"))]


def foreign(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in {"http", "https"}


def target(path: Path, address: str) -> tuple[Path, str]:
    """Return the file and the anchor that an address on a page means."""
    parts = urlsplit(address)
    if not parts.path:
        return path, unquote(parts.fragment)
    return (path.parent / unquote(parts.path)).resolve(), unquote(parts.fragment)


# ------------------------------------------------------------------------------ tests


def test_every_page_is_there():
    missing = [name for name in PAGES if not page(name).exists()]
    assert not missing


def test_no_other_page_is_there():
    names = [f.relative_to(HTML).with_suffix("").as_posix() for f in files()]
    other = set(names) - set(PAGES) - MADE_BY_SPHINX
    assert not other, "built, but not in _toc.yml"
    assert len(names) >= len(PAGES)


def errors(path: Path) -> list[str]:
    """Return error outputs and warnings, but where a cell is meant to raise."""
    body = soup(path).find("article") or soup(path)
    found = body.select(".output.traceback, .output.stderr, .system-message")
    found += body.find_all(string=re.compile(r"Traceback \(most recent call last\)"))
    meant = "tag_raises-exception"
    return [e.get_text()[:200] for e in found if not e.find_parent(class_=meant)]


@pytest.mark.parametrize("name", PAGES)
def test_no_error_on_page(name):
    assert not errors(page(name))


@pytest.mark.parametrize("name", PAGES)
def test_one_title(name):
    assert len(soup(page(name)).select("article h1")) == 1


CHAPTERS = [name for name in PAGES if re.fullmatch(r"notebooks/\d\d_\w+", name)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_number_is_the_files(name):
    """On the page, in its exercises and in every sidebar; some are not written yet."""
    number = str(int(name.split("/")[1][:2]))
    shown = soup(page(name))
    assert shown.select_one("article h1 .section-number").get_text() == f"{number}. "
    captions = [tag.get_text().split() for tag in shown.select(".caption-number")]
    assert captions
    assert {(word, place.split(".")[0]) for word, place in captions} == {
        ("Exercise", number)
    }
    there = soup(page(PAGES[1])).select(f'nav.bd-links a[href$="{name}.html"]')
    assert [link.get_text().split()[0] for link in there] == [f"{number}."]


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name):
    """Every local address on the page, and its anchor, exists."""
    path, missing = page(name), []
    clicked = [a["href"] for a in soup(path).find_all("a", href=True)]
    for address in [*loaded(path), *clicked]:
        scheme = urlsplit(address).scheme
        if foreign(address) or scheme in {"data", "mailto", "javascript"}:
            continue
        file, anchor = target(path, address)
        there = file.exists() and file.is_relative_to(HTML.resolve())
        if there and anchor and file.suffix == ".html":
            there = anchor in anchors(file)
        if not there:
            missing.append(address)
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_a_text(name):
    """A figure's alt text is words, not the name of its file."""
    for image in soup(page(name)).select("article img"):
        alt = image.get("alt", "")
        assert alt.strip(), image["src"]
        assert not re.search(r"\.(png|svg)$|_images/", alt), alt


def test_no_page_asks_another_host():
    found = [(f.name, a) for f in files() for a in loaded(f) if foreign(a)]
    assert not found


def test_no_style_asks_another_host():
    found = []
    for file in HTML.rglob("*.css"):
        for address in css_addresses(file.read_text(encoding="utf-8")):
            there = (file.parent / urlsplit(address).path).exists()
            if foreign(address) or not there:
                found.append((file.name, address))
    assert not found


def test_mathjax_is_local():
    """Pages with mathematics load MathJax, and its fonts lie beside it."""
    asked = 0
    for name in PAGES:
        if not soup(page(name)).select(".math"):
            continue
        found = [a for a in loaded(page(name)) if "mathjax" in a.lower()]
        assert found, f"{name} has mathematics and no MathJax"
        assert all(target(page(name), a)[0].exists() for a in found)
        asked += 1
    assert asked
    fonts = HTML / "_static/mathjax/output/chtml/fonts/woff-v2"
    assert len(list(fonts.glob("*.woff"))) > 10


@pytest.mark.parametrize("path", book.notebooks(), ids=lambda path: path.stem)
def test_exported_cells_wear_a_badge(path):
    cells = [book.directives(cell) for cell in book.code_cells(book.read(path))]
    wanted = sum("export" in found and "hide" not in found for found in cells)
    shown = soup(page(f"notebooks/{path.stem}"))
    badges = shown.select(".cell-exported .export-badge")
    assert len(badges) == wanted
    for badge in badges:
        links = [a["href"] for a in badge.find_all("a", href=True)]
        assert any("book/api" in address for address in links), badge.get_text()
    code = [block.get_text() for block in shown.select(".cell_input")]
    assert not any(re.search(r"^#\s*\|", text, re.MULTILINE) for text in code)


def modules() -> list[Path]:
    found = sorted((book.ROOT / "transformer").glob("*.py"))
    no_chapter = ("__init__", "__main__")  # the exporter's own
    return [file for file in found if file.stem not in no_chapter]


def public(module: Path) -> list[str]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    found = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "__all__"
    ]
    return found[0]


@pytest.mark.parametrize("module", modules(), ids=lambda path: path.stem)
def test_api_page_has_every_public_name(module):
    ids = set().union(*(anchors(f) for f in files() if f.stem.startswith("api")))
    names = [f"transformer.{module.stem}.{name}" for name in public(module)]
    assert not [name for name in names if name not in ids]


@pytest.mark.parametrize("module", modules(), ids=lambda path: path.stem)
def test_api_page_links_back_to_the_cell(module):
    """Each public name's entry links to the cell of its chapter that defines it."""
    api = page("book/api")
    for name in public(module):
        full = f"transformer.{module.stem}.{name}"
        entry = soup(api).find(id=full).find_parent("dl")
        (back,) = entry.find_all("a", string=re.compile("Built in its chapter"))
        file, anchor = target(api, back["href"])
        place = soup(file).find(id=anchor)
        assert place is not None, full
        # the cell itself, or a mark in it when a cell defines more than one name
        marked = "cell-exported" in place.get("class", [])
        cell = place if marked else place.find_parent(class_="cell-exported")
        assert cell is not None, full
        code = cell.select_one(".cell_input").get_text()
        assert re.search(rf"^(class |def )?{name}\b", code, re.MULTILINE), full


# ------------------------------------------------- the checks above, on a broken page


def test_checks_find_faults(tmp_path):
    file = tmp_path / "bad.html"
    file.write_text(
        '<link rel="stylesheet" href="https://cdn.example.org/a.css">'
        '<link rel="canonical" href="https://example.org/">'
        '<script src="//cdn.example.org/b.js"></script><img srcset="c.png 2x">'
        '<style>@import "https://d.example.org/d.css"; p { background: url(e.png) }'
        "</style><a href='https://example.org'>fine</a>"
    )
    asked = loaded(file)
    assert "c.png" in asked and "e.png" in asked
    assert [a for a in asked if foreign(a)] == [
        "https://cdn.example.org/a.css",
        "//cdn.example.org/b.js",
        "https://d.example.org/d.css",
    ]
    assert not errors(file)
    traceback = "<pre>Traceback (most recent call last)\n</pre>"
    raised = tmp_path / "raised.html"
    raised.write_text(f'<div class="output traceback">{traceback}</div>')
    assert len(errors(raised)) == 2
    meant = tmp_path / "meant.html"
    meant.write_text(f'<div class="cell tag_raises-exception">{traceback}</div>')
    assert not errors(meant)
    assert target(file, "x/../bad.html#a%20b") == (file.resolve(), "a b")
