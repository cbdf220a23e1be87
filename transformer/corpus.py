"""A text becomes a file of numbers, once, and is read in shuffled windows.

Chapter 24 of Transformers, Matrix by Matrix.
Made from notebooks/24_program.ipynb by tools/export.py: edit the notebook.
"""

import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import regex
import torch
from torch import Tensor
from tqdm import tqdm

from transformer.gpt import shift
from transformer.tokens import CharTokenizer, Tokenizer

__all__ = [
    "OURS",
    "PIECE",
    "RunError",
    "Text",
    "Windows",
    "check_length",
    "cut",
    "dataset_rows",
    "held_out",
    "load_tokenizer",
    "make_tokenizer",
    "mark",
    "sample",
    "sweep",
    "sync",
    "tokenise",
    "whole_file",
]


class RunError(Exception):
    """What stops a run and its user can mend; the message says what and how."""


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def mark(folder: Path) -> None:
    """Make a folder that is known as the program's own, and never read as text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OURS).touch()


def sweep(folder: Path) -> None:
    """Remove what killed processes have left half written in a folder."""
    for path in folder.glob(".*.new"):
        if not (process := regex.search(r"\.(\d+)\.new$", path.name)):
            continue  # not one of ours
        try:
            os.kill(int(process[1]), 0)  # asks whether it lives
        except ProcessLookupError:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except PermissionError:  # it does, and is somebody else's
            continue


PIECE = 2**20  # characters held in memory at a time
OURS = ".transformer"  # a folder with a file of this name was written by the program


@dataclass(frozen=True)
class Text:
    """A text that may be larger than memory, read in pieces of ``size`` characters.

    ``source``: a text file; a folder, all of whose files are read in order of their
    names; or a data set of Hugging Face with a column ``text``, as ``hf:NAME``,
    ``hf:NAME,CONFIGURATION`` or a folder that ``save_to_disk`` has written. Files and
    rows stand a blank line apart. Raises RunError for what can't be read.
    """

    source: str
    size: int = PIECE

    def documents(self) -> Iterator[Iterator[str]]:
        """Yield each file or row as an iterator of pieces."""
        path = Path(self.source)
        if self.source.startswith("hf:") or any(
            (path / name).exists()
            for name in ("dataset_info.json", "dataset_dict.json")
        ):
            yield from (iter([row]) for row in dataset_rows(self.source))
        elif path.is_file():
            yield self.read(path)
        elif path.is_dir():
            yield from (self.read(file) for file in self.files(path))
        else:
            raise RunError(f"no text at {self.source}: it is neither file nor folder")

    def files(self, folder: Path) -> list[Path]:
        """All files of a folder, hidden ones and this program's own left out."""

        def refuse(error: OSError) -> None:
            raise RunError(f"{error.filename} can't be read: {error.strerror}")

        found = []
        for place, folders, names in os.walk(folder, onerror=refuse):
            if OURS in names:  # a run, or its token files
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(place, name) for name in names if not name.startswith(".")]
        return sorted(file for file in found if file.is_file())

    def read(self, path: Path) -> Iterator[str]:
        """Yield a file's text, every character as it stands."""
        try:
            with path.open(encoding="utf-8", newline="") as file:
                yield from iter(lambda: file.read(self.size), "")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise RunError(f"{path} is no UTF-8 text: byte 0x{byte:02x}") from None

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces that begin where a token begins.

        A cut falls before the last of some blanks or line ends: there a token of the
        byte-pair tokenizer always begins, so that the pieces' ids are the whole
        text's. Only a stretch of ``size`` characters without such a place is cut where
        it stands.
        """
        rest = ""
        for number, document in enumerate(self.documents()):
            for chunk in itertools.chain(["\n\n"] if number else [], document):
                rest += chunk
                while len(rest) > self.size:
                    found = _LAST_CUT.search(rest, 1, self.size)
                    cut = found.start() if found else self.size
                    yield rest[:cut]
                    rest = rest[cut:]
        if rest:
            yield rest

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the whole text; another text has another."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece.encode())
        return digest.hexdigest()


_LAST_CUT = regex.compile(r"(?r)\s(?=\S)")  # (?r): search from the end


def dataset_rows(source: str) -> Iterator[str]:
    """Yield the ``text`` of each row of a Hugging Face data set, its part "train"."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise RunError(
            f"{source} needs the library datasets: pip install datasets"
        ) from None
    try:
        if source.startswith("hf:"):
            name, *configuration = source.removeprefix("hf:").split(",")
            rows = datasets.load_dataset(name, *configuration, split="train")
        else:
            rows = datasets.load_from_disk(source)
            rows = rows["train"] if isinstance(rows, dict) else rows
    except Exception as error:  # the library has many kinds
        raise RunError(f"{source} can't be opened: {error}") from error
    if "text" not in rows.column_names:
        raise RunError(f"{source} has no column `text`, only {rows.column_names}")
    yield from (row["text"] for row in rows)


AnyTokenizer = CharTokenizer | Tokenizer


def load_tokenizer(path: str | Path) -> AnyTokenizer:
    """Read a tokenizer of either kind. Raises RunError for any other file."""
    for kind in (CharTokenizer, Tokenizer):
        try:
            return kind.load(path)
        except OSError as error:
            raise RunError(f"no tokenizer at {path}: {error.strerror}") from None
        except ValueError:
            continue
    raise RunError(f"{path} is neither a saved CharTokenizer nor a saved Tokenizer")


def sample(pieces: Iterable[str], size: int) -> str:
    """Keep every n-th piece, n as small as ``size`` characters allow."""
    kept: list[str] = []
    stride = 1
    for number, piece in enumerate(pieces):
        if number % stride == 0:
            kept.append(piece)
            if len(kept) > 1 and sum(map(len, kept)) > size:
                kept, stride = kept[::2], 2 * stride
    return "".join(kept)


def make_tokenizer(
    text: Text, kind: str, vocab_size: int, cache: Path, size: int = 2**22
) -> AnyTokenizer:
    """Load the tokenizer from file ``kind``, or train one: "char" or "bpe".

    "char" knows every character of the text; "bpe" learns ``vocab_size`` tokens from a
    sample of ``size`` characters, spread over the text. What was trained is kept in
    the folder ``cache`` and found there for the same text.
    """
    if kind not in ("char", "bpe"):
        return load_tokenizer(kind)
    made_of = f"{text.fingerprint} {kind}" + f" {vocab_size} {size}" * (kind == "bpe")
    path = cache / f"tokenizer-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"
    with suppress(RunError):  # a damaged one is made anew
        if path.exists():
            return load_tokenizer(path)
    tokenizer: AnyTokenizer
    if kind == "char":
        seen: set[str] = set()
        for piece in text.pieces():
            seen.update(piece)
        tokenizer = CharTokenizer(seen)
    else:
        tokenizer = Tokenizer.train(sample(text.pieces(), size), vocab_size)
    mark(cache)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    tokenizer.save(draft)
    sync(draft)
    draft.replace(path)
    return load_tokenizer(path)


Ids = np.ndarray[Any, np.dtype[Any]]  # (N,) whole numbers, two or four bytes each


def tokenise(text: Text, tokenizer: AnyTokenizer, cache: Path) -> Ids:
    """Turn a text into a file of ids, once, and map it into memory: ``(N,)``.

    The file is little-endian, two bytes an id (``.u16``) while the vocabulary allows,
    else four (``.u32``). Its name holds the fingerprint of text and tokenizer: a
    changed text is tokenised anew, an unchanged one found. How many ids it has stands
    in a file beside it, so that a truncated one is made anew. Raises RunError for a
    text without a character, or with one that the tokenizer doesn't know.
    """
    kind = "u16" if tokenizer.vocab_size <= 2**16 else "u32"
    made_of = f"{text.fingerprint} {type(tokenizer).__name__} {tokenizer.vocab}"
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    path = cache / f"tokens-{key}.{kind}"
    dtype = np.dtype({"u16": "<u2", "u32": "<u4"}[kind])
    count = path.with_suffix(".count")
    with suppress(OSError, ValueError):
        if path.stat().st_size == dtype.itemsize * int(count.read_text()):
            return np.memmap(path, dtype, mode="r")
    mark(cache)
    sweep(cache)
    quiet = True if sys.stderr is None else None  # None: as the terminal is
    pieces = tqdm(text.pieces(), "tokenising", unit=" pieces", disable=quiet)
    try:
        with whole_file(path) as file:
            for piece in pieces:
                file.write(np.array(tokenizer.encode(piece), dtype).tobytes())
            if not file.tell():
                empty = f"{text.source} is empty: there is nothing to learn from"
                raise RunError(empty)
            written = file.tell() // dtype.itemsize
    except ValueError as error:  # a character outside the vocabulary
        raise RunError(f"{text.source}: {error}") from None
    with whole_file(count) as file:
        file.write(str(written).encode())
    return np.memmap(path, dtype, mode="r")


Batch = tuple[Tensor, Tensor]  # inputs, targets: (B, T) each


class Windows:
    """Endless batches of windows, shuffled anew in each epoch.

    Each batch is a pair (inputs, targets), ``(B, T)`` each, int64. In an epoch every
    window of ``length`` tokens comes up once (the few ids at both ends that fill no
    window change from epoch to epoch); the order, and where the first window
    begins, follow from ``seed`` and the epoch's number alone. So the two whole numbers
    ``epoch`` and ``window`` say where the reader stands, and ``seek`` goes there.
    Raises RunError when the ids do not fill one window and its last target.
    """

    def __init__(self, ids: Ids, length: int, batch: int, seed: int = 0) -> None:
        check_length(ids, length, "the text to train on")
        self.ids, self.length, self.batch, self.seed = ids, length, batch, seed
        self.seek(0, 0)

    def seek(self, epoch: int, window: int) -> None:
        """Go to where another reader stands."""
        self.epoch, self.window = epoch, window
        self._starts = self.starts(epoch)

    def starts(self, epoch: int) -> Ids:
        """Where the windows of an epoch begin, in the order they are read: ``(N,)``."""
        random = np.random.default_rng((self.seed, epoch))
        first = random.integers(min(self.length, len(self.ids) - self.length))
        count = (len(self.ids) - 1 - first) // self.length
        return first + self.length * random.permutation(count)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        chosen: list[int] = []
        while len(chosen) < self.batch:
            if self.window == len(self._starts):
                self.seek(self.epoch + 1, 0)
            stop = self.window + self.batch - len(chosen)
            more = self._starts[self.window : stop]
            chosen += more.tolist()
            self.window += len(more)
        return cut(self.ids, chosen, self.length)


def cut(ids: Ids, starts: Iterable[int], length: int) -> Batch:
    """Read windows at ``starts``: inputs and targets, ``(B, T)`` each."""
    rows = np.stack([ids[start : start + length + 1] for start in starts])
    return shift(torch.from_numpy(rows.astype(np.int64)))  # (B, T + 1)


def check_length(ids: Ids, length: int, what: str) -> None:
    """Raise RunError unless the ids hold a window and the target of its last token."""
    if len(ids) <= length:
        raise RunError(
            f"{what} has {len(ids)} tokens, and one window with model.max_len = "
            f"{length} needs {length + 1}: give more text, set a smaller model.max_len"
            + (", or data.share = 0" if "share" in what else "")
        )


def held_out(ids: Ids, length: int, batch: int, batches: int) -> Iterator[Batch]:
    """Yield at most ``batches`` batches of windows, spread evenly, always the same."""
    check_length(ids, length, "the text to validate on")
    starts = np.arange(0, len(ids) - length, length)
    wanted = min(len(starts), batch * batches)
    starts = starts[np.arange(wanted) * len(starts) // wanted]
    for first in range(0, wanted, batch):
        yield cut(ids, starts[first : first + batch].tolist(), length)
