"""The files of data/: their shape, their sources, and the program that makes them."""

import gzip
import io
import sys
import wave
import zipfile
from collections import Counter
from types import SimpleNamespace

import bookfiles as book
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(book.ROOT / "tools"))
sys.path.insert(0, str(book.ROOT / "notebooks"))
import make_data as maker

import bookkit as kit

DATA = book.ROOT / "data"
README = (DATA / "README.md").read_text()
FOLDERS = sorted(path.name for path in DATA.iterdir() if path.is_dir())
PACKED = sorted(DATA.glob("*/*.gz"))
TABLES = {
    "folio/pairs": (("play", "old", "new"), 54_997),
    "messages/en-de": (("component", "english", "german"), 16_794),
    "intents/tagged": (("template", "intent", "words", "tags"), 6_989),
    "udhr/languages": (("language", "paragraph"), 1_190),
}

# ------------------------------------------------------------------------- the files


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_described(folder):
    assert f"| `{folder}/` |" in README
    assert f"\n## {folder}/" in README


def test_every_set_has_a_folder():
    assert set(FOLDERS) == {*maker.SETS, "tiny"}


@pytest.mark.parametrize("name", maker.SETS)
def test_section_is_complete(name):
    """What, where from, under which licence, what was changed, how to make it."""
    section = README.split(f"\n## {name}/")[1].split("\n## ")[0]
    for word in ("What", "Source", "Licence", "What was changed", "Rebuild"):
        assert f"**{word}.**" in section
    assert f"make_data.py {name}" in section


@pytest.mark.parametrize("name", sorted(set(maker.ARCHIVES) - {"rbnf"}))
def test_source_is_pinned_where_readers_look(name):
    assert maker.ARCHIVES[name].sha256 in README


@pytest.mark.parametrize(
    "name", ["messages", "addresses", "intents", "udhr", "fashion"]
)
def test_licence_lies_beside(name):
    text = (DATA / name / "LICENSE").read_text()
    assert "Apache License" in text or "Permission is hereby granted" in text


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.name)
def test_packed_without_date_or_name(path):
    head = path.read_bytes()[:10]
    assert head[3] == 0, "a name inside"
    assert head[4:8] == bytes(4), "a date inside"


@pytest.mark.parametrize("path", sorted(DATA.glob("*/*")), ids=lambda path: path.name)
def test_size(path):
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("name", TABLES)
def test_table(name):
    columns, count = TABLES[name]
    text = gzip.decompress((DATA / f"{name}.tsv.gz").read_bytes()).decode()
    assert text.split("\n", 1)[0] == "\t".join(columns)
    rows = kit.rows(name)
    assert len(rows) == len(set(rows)) == count
    assert {len(row) for row in rows} == {len(columns)}
    assert all(cell and cell == cell.strip() for row in rows for cell in row)


def test_folio():
    rows = kit.rows("folio/pairs")
    assert len({play for play, _, _ in rows}) == 35
    assert len({(old, new) for _, old, new in rows}) == len(rows)
    assert all(len(new.split()) >= 2 for _, _, new in rows)
    same = sum(old == new for _, old, new in rows)
    assert 0.03 < same / len(rows) < 0.05
    old, new = (
        "Curbing his lauish spirit: and to conclude,",
        "Curbing his lavish spirit",
    )
    (line,) = [row for row in rows if row[1] == old]
    assert line[0] == "macbeth" and line[2].startswith(new)


def test_messages():
    rows = kit.rows("messages/en-de")
    assert len({component for component, _, _ in rows}) == 890
    for _, english, german in rows:
        assert 3 <= len(english.split()) <= 20 and english != german
        assert not set(english + german) & set("{}[]<>|*\\\t")


def test_addresses():
    rows = kit.rows("addresses/labeled")
    assert rows.count(()) == 1_488 - 1
    assert () not in (rows[0], rows[-1])
    assert {len(row) for row in rows} == {0, 2}
    assert len({row[1] for row in rows if row}) == 29
    assert not [row for row in rows if row and len(row[0].split()) != 1]


def test_intents():
    rows = kit.rows("intents/tagged")
    assert len({words for _, _, words, _ in rows}) == len(rows)
    assert len({template for template, *_ in rows}) == 862
    counts = Counter(intent for _, intent, _, _ in rows)
    assert len(counts) == 42 and max(counts.values()) == 200
    for template, intent, words, tags in rows:
        assert template.split(".")[0] == intent
        assert len(words.split()) == len(tags.split())
        before = "O"
        for tag in tags.split():
            assert tag[:2] != "I-" or tag[2:] == before[2:]
            before = tag


def test_languages():
    counts = Counter(language for language, _ in kit.rows("udhr/languages"))
    assert len(counts) == 20
    assert all(58 <= count <= 62 for count in counts.values())


@pytest.mark.parametrize(("name", "each"), [("train", 600), ("test", 100)])
def test_fashion(name, each):
    path = DATA / "fashion" / f"{name}.npz"
    with np.load(path) as held:
        images, labels = held["images"], held["labels"]
    assert images.shape == (10 * each, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [each] * 10
    assert images.max() == 255 and 50 < images.mean() < 100
    dates = {entry.date_time for entry in zipfile.ZipFile(path).infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_photo(name):
    image = Image.open(DATA / "photos" / f"{name}.jpg")
    assert image.size == (518, 518) and image.mode == "RGB"
    assert np.asarray(image).std() > 30


def test_clip():
    with wave.open(str(DATA / "speech" / "clip.wav")) as clip:
        assert (clip.getnchannels(), clip.getsampwidth()) == (1, 2)
        assert clip.getframerate() == 16_000
        assert clip.getnframes() == 96_800
    assert kit.text("speech").startswith("Had he married a more amiable woman, ")


# ----------------------------------------------------------------------- the program

OLD = """\
Actus Primus. Scena Prima.

  Ham. O that this too too sallied Flesh, would melt,
Thaw, and resolue it selfe into a Dew:
  Ham. The King doth wake to night
  Ham. Be it so
  2. In him there is nothing.
Amen. I will sir, I will
Enter the King and all his Court
That Cæsar was a noble man.
"""
NEW = """\
HAMLET.
O that this too too solid flesh would melt,
[Enter the King and all
his Court.]
Thaw, and resolve itself into a dew!
The king doth wake to-night
In him there is nothing [Exit.]
Amen. I will, sir, I will.
That Caesar was a noble man,
"""


def test_align():
    assert list(maker.align(OLD, NEW)) == [
        (
            "O that this too too sallied Flesh, would melt,",
            "O that this too too solid flesh would melt,",
        ),
        ("The King doth wake to night", "The king doth wake to-night"),
        ("In him there is nothing.", "In him there is nothing"),
        ("Amen. I will sir, I will", "Amen. I will, sir, I will."),
        ("That Cæsar was a noble man.", "That Caesar was a noble man,"),
    ]  # "it selfe" is two words, "itself" one


@pytest.mark.parametrize(
    ("old", "new"),
    [("haue Ioyes", "have joys"), ("vpon", "upon"), ("Cæsar", "Caesar")],
)
def test_folded(old, new):
    assert maker.folded(old) == maker.folded(new)


def test_same_keys():
    english = {
        "title": "Set the alarm",
        "a": {"deep": "Turn on the {light}", "deeper": "Close the garage door"},
        "short": "Two words",
        "alone": "Nobody translated this one",
        "same": "Philips Hue Bridge Pro",
        "link": "See https://example.org for help",
    }
    german = {
        "title": "Alarm stellen",
        "a": {"deep": "Das {light} einschalten", "deeper": "Das Garagentor schließen "},
        "short": "Zwei Worte",
        "same": "Philips Hue Bridge Pro",
        "link": "Hilfe bei https://example.org im Netz",
    }
    assert list(maker.same_keys(english, german)) == [
        ("Set the alarm", "Alarm stellen"),
        ("Close the garage door", "Das Garagentor schließen"),
    ]


@pytest.mark.parametrize("text", ["a [b]", "a\tb", "a\nb", "a  b", "<b>", "a|b", "{a}"])
def test_not_plain(text):
    assert not maker.plain(text)


def test_bio():
    words, tags = maker.bio(
        "turn on grandma's ⟦desk lamp∕name⟧ to ⟦40∕level⟧% in ⟦21.5∕t⟧"
    )
    assert words == [
        "turn",
        "on",
        "grandma's",
        "desk",
        "lamp",
        "to",
        "40",
        "%",
        "in",
        "21.5",
    ]
    assert tags == ["O", "O", "O", "B-name", "I-name", "O", "B-level", "O", "O", "B-t"]


def part(kind, **values):
    """Stand in for a piece of a template; draw looks at the name of its class."""
    return type(kind, (), values)()


def test_draw():
    chunk = part("TextChunk", original_text="open ")
    place = part("ListReference", list_name="area", slot_name="where")
    rule = part("RuleReference", rule_name="the")
    both = part("Sequence", items=[chunk, rule, place])
    rules = {"the": SimpleNamespace(expression=part("TextChunk", original_text="the "))}
    rng = maker.random.Random(0)
    lists = {"area": ["attic"]}
    assert maker.draw(both, rng, lists, rules) == "open the ⟦attic∕where⟧"
    either = part("Alternative", items=[chunk, place])
    seen = {maker.draw(either, rng, lists, rules) for _ in range(30)}
    assert seen == {"open ", "⟦attic∕where⟧"}
    swapped = part("Permutation", items=[chunk, place])
    seen = {maker.draw(swapped, rng, lists, rules) for _ in range(30)}
    assert len(seen) == 2


def test_distinct_keeps_the_first():
    rows = [("a", "x"), ("b", "x"), ("c", "y")]
    assert maker.distinct(rows, 1) == [("a", "x"), ("c", "y")]


def test_paragraphs():
    page = "<h2>Article 1</h2>\n<p>All human\n  beings &amp; so on</p><p>Two</p>"
    assert maker.paragraphs(page) == ["All human beings & so on", "Two"]


def test_idx():
    raw = bytes([0, 0, 8, 2]) + bytes([0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    assert maker.idx(gzip.compress(raw)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_first_of_each():
    labels = np.array([1, 0, 1, 1, 0, 0])
    assert maker.first_of_each(labels, 2).tolist() == [0, 1, 2, 4]


def test_npz_is_the_same_twice():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    packed = maker.npz(a=array)
    assert packed == maker.npz(a=array)
    with np.load(io.BytesIO(packed)) as held:
        assert held["a"].tolist() == array.tolist()


def test_same_looks_inside():
    one, two = (gzip.compress(b"text" * 99, level, mtime=level) for level in (1, 9))
    assert one != two and maker.same("a.tsv.gz", one, two)
    assert not maker.same("a.tsv.gz", one, gzip.compress(b"other"))
    assert not maker.same("LICENSE", b"a", b"b")


def test_wrong_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "FOLDER", tmp_path)
    (tmp_path / maker.ARCHIVES["udhr"].file).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="expected 132b50c2"):
        maker.fetch("udhr")


def test_unknown_set(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_data.py", "folios"])
    with pytest.raises(SystemExit):
        maker.main()
    assert "no set folios; there are shakespeare, folio" in capsys.readouterr().err
