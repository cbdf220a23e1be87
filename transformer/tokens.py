"""Text goes in, whole numbers come out: cut the text into pieces and number the pieces.

Chapter 1 of Transformers, Matrix by Matrix.
Made from notebooks/01_tokens.ipynb by tools/export.py: edit the notebook.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, Self

import regex

__all__ = [
    "BYTES",
    "BYTE_TO_ID",
    "PRINTABLE",
    "SPLIT",
    "CharTokenizer",
    "Tokenizer",
    "learn_merges",
    "merge_pair",
]

# GPT-2's rule: an English ending; letters, digits or signs with at most one blank
# before them; or blanks. Every character lands in exactly one piece.
SPLIT = regex.compile(
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)

# GPT-2's order: the bytes that print as a character of their own come first.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = bytes(sorted(range(256), key=lambda byte: (byte not in PRINTABLE, byte)))
BYTE_TO_ID = {byte: i for i, byte in enumerate(BYTES)}


def merge_pair(ids: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """Put ``new`` in the place of each ``pair`` of neighbours, from left to right."""
    out: list[int] = []
    last = None
    for token in ids:
        if (last, token) == pair:
            out[-1], last = new, None
        else:
            out.append(token)
            last = token
    return out


def learn_merges(words: Mapping[bytes, int], n_merges: int) -> list[tuple[int, int]]:
    """Learn byte-pair merges, counting again only what a merge has changed.

    ``words`` gives each distinct word and how often it stands in the text. Returns at
    most ``n_merges`` pairs of ids; merge number i makes the token 256 + i. The most
    frequent pair wins (Sennrich et al. 2016, section 3.2), among equals the lowest
    pair of ids. Stops early when no word has two tokens left.
    """
    spelled = [[BYTE_TO_ID[byte] for byte in word] for word in words]
    times = list(words.values())
    counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for i, ids in enumerate(spelled):
        for pair in pairwise(ids):
            counts[pair] += times[i]
            where[pair].add(i)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapify(queue)  # the smallest comes out first, so counts stand negated

    merges: list[tuple[int, int]] = []
    while queue and len(merges) < n_merges:
        count, best = heappop(queue)
        if counts[best] != -count:
            continue  # an old entry: the count has changed since
        new = len(BYTES) + len(merges)
        merges.append(best)
        changes: Counter[tuple[int, int]] = Counter()
        for i in where.pop(best):
            merged = merge_pair(spelled[i], best, new)
            for pair in pairwise(spelled[i]):
                changes[pair] -= times[i]
            for pair in pairwise(merged):
                changes[pair] += times[i]
                where[pair].add(i)
            spelled[i] = merged
        for pair, change in changes.items():
            counts[pair] += change
            if change and counts[pair]:
                heappush(queue, (-counts[pair], pair))
    return merges


def _as_text(text: str | bytes) -> str:
    """Return ``text`` as a string that UTF-8 can write.

    Raises ValueError for bytes that are not UTF-8 and for half of a surrogate pair,
    naming it and its position, and TypeError for anything but text and bytes.
    """
    if not isinstance(text, str | bytes):
        raise TypeError(f"text must be str or bytes, got {type(text).__name__}")
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x}"
        raise ValueError(
            f"text is not UTF-8: {what} at position {error.start}"
        ) from None
    except UnicodeEncodeError as error:
        what = f"half of a surrogate pair, {error.object[error.start]!a},"
        raise ValueError(
            f"text is not UTF-8: {what} at position {error.start}"
        ) from None
    return text


def _as_id(token: int, vocab_size: int) -> int:
    """Return ``token`` as a plain int; IndexError outside ``[0, vocab_size)``."""
    token = index(token)
    if not 0 <= token < vocab_size:
        raise IndexError(f"ids must lie in [0, {vocab_size}), got {token}")
    return token


def _write_json(path: str | Path, kind: str, content: dict[str, Any]) -> None:
    """Write a tokenizer's file whole or not at all."""
    path = Path(path)
    draft = path.with_name(path.name + ".tmp")
    text = json.dumps({"kind": kind} | content, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def _read_json(path: str | Path, make: type[Any], kind: str, *keys: str) -> Any:
    """Make what a file holds; ValueError unless it is whole and of this kind."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = [content[key] for key in keys]
        if content["kind"] != kind or not all(isinstance(p, list) for p in parts):
            raise ValueError("another kind of content")
        return make(*parts)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} is not a saved {kind}: {error!r}") from None


class Tokenizer:
    """Byte-level byte-pair encoding, as in GPT-2 (Radford et al. 2019, section 2.2).

    Ids 0 to 255 are the bytes in GPT-2's order, then one id a merge, then the special
    tokens, which ``encode`` never produces. ``vocab[i]`` is the bytes of token i.
    """

    def __init__(
        self, merges: Iterable[tuple[int, int]] = (), special: Iterable[str] = ()
    ) -> None:
        self.merges = [(index(left), index(right)) for left, right in merges]
        self.vocab = [bytes([byte]) for byte in BYTES]
        for pair in self.merges:
            left, right = (_as_id(part, len(self.vocab)) for part in pair)
            self.vocab.append(self.vocab[left] + self.vocab[right])
        names = dict.fromkeys(map(_as_text, special))  # each once, in order
        self.special = {name: len(self.vocab) + i for i, name in enumerate(names)}
        self.vocab += [name.encode() for name in self.special]
        self._made = {pair: len(BYTES) + i for i, pair in enumerate(self.merges)}
        self._seen: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls, text: str | bytes, vocab_size: int, special: Iterable[str] = ()
    ) -> Self:
        """Learn merges until there are ``vocab_size`` tokens, or no pair is left.

        Raises ValueError when ``vocab_size`` has no room for the bytes and the special
        tokens, or when ``text`` is not UTF-8.
        """
        special = list(dict.fromkeys(special))
        least = len(BYTES) + len(special)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size must be at least {least}, one for each byte and special "
                f"token, got {vocab_size}"
            )
        counts = Counter(SPLIT.findall(_as_text(text)))
        words = {piece.encode(): count for piece, count in counts.items()}
        return cls(learn_merges(words, vocab_size - least), special)

    @classmethod
    def from_merges(
        cls, merges: Iterable[tuple[bytes, bytes]], special: Iterable[str] = ()
    ) -> Self:
        """Build it from merges given as bytes, such as those of GPT-2's own file."""
        ids = {bytes([byte]): i for i, byte in enumerate(BYTES)}
        pairs: list[tuple[int, int]] = []
        for left, right in merges:
            if left not in ids or right not in ids:
                raise ValueError(
                    f"merge {len(pairs)}, {left!r} and {right!r}, joins what no merge "
                    "before it has made"
                )
            pairs.append((ids[left], ids[right]))
            ids[left + right] = len(BYTES) + len(pairs) - 1
        return cls(pairs, special)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, V."""
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def encode(self, text: str | bytes) -> list[int]:
        """Text -> ids. Raises ValueError when ``text`` is not UTF-8."""
        ids = []
        for piece in SPLIT.findall(_as_text(text)):
            if piece not in self._seen:
                if len(self._seen) >= 2**16:  # keep the memory bounded
                    self._seen.clear()
                self._seen[piece] = self._merge(piece.encode())
            ids += self._seen[piece]
        return ids

    def _merge(self, piece: bytes) -> list[int]:
        """Apply to one piece the merges that fit, in the order they were learned."""
        ids = [BYTE_TO_ID[byte] for byte in piece]
        while fitting := self._made.keys() & set(pairwise(ids)):
            first = min(fitting, key=self._made.__getitem__)
            ids = merge_pair(ids, first, self._made[first])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Bytes that make no character become U+FFFD.

        Raises IndexError for an id outside the vocabulary.
        """
        known = b"".join(self.vocab[_as_id(i, self.vocab_size)] for i in ids)
        return known.decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write merges and special tokens to a JSON file."""
        content = {"merges": self.merges, "special": list(self.special)}
        _write_json(path, "Tokenizer", content)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote. Raises ValueError for any other file."""
        return _read_json(path, cls, "Tokenizer", "merges", "special")


class CharTokenizer:
    """One id a character, in alphabetical order; ``vocab[i]`` is character i."""

    def __init__(self, characters: Iterable[str]) -> None:
        self.vocab = sorted(set(characters))
        for character in self.vocab:
            if len(_as_text(character)) != 1:
                raise ValueError(f"a character must be single, got {character!r}")
        self._ids = {character: i for i, character in enumerate(self.vocab)}

    @classmethod
    def train(cls, text: str | bytes) -> Self:
        """Collect the characters of ``text``."""
        return cls(_as_text(text))

    @property
    def vocab_size(self) -> int:
        """The number of characters, V."""
        return len(self.vocab)

    def __len__(self) -> int:
        return len(self.vocab)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def encode(self, text: str | bytes) -> list[int]:
        """Text -> ids. Raises ValueError for a character outside the vocabulary."""
        text = _as_text(text)
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            (character,) = error.args
            raise ValueError(
                f"character {character!r} at position {text.index(character)} is not "
                f"among the {self.vocab_size} of the vocabulary"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Raises IndexError for an id outside the vocabulary."""
        return "".join(self.vocab[_as_id(i, self.vocab_size)] for i in ids)

    def save(self, path: str | Path) -> None:
        """Write the characters to a JSON file."""
        _write_json(path, "CharTokenizer", {"characters": self.vocab})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote. Raises ValueError for any other file."""
        return _read_json(path, cls, "CharTokenizer", "characters")
