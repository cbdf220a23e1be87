"""The tokenizers against a recount by hand and against the `tokenizers` library."""

import json
import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, trainers

from transformer.tokens import SPLIT, CharTokenizer, Tokenizer, learn_merges

PLAYS = Path(__file__).resolve().parents[1] / "data/shakespeare/plays.txt"
UNSEEN = (
    "Die Hündin beißt: naïve façade 狗咬人 🐕\tx²=½\r\n\n  a's 'Tis we'll\n   end  "
)


@pytest.fixture(scope="module")
def plays():
    return PLAYS.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(plays):
    return Tokenizer.train(plays[:60_000], 256 + 400)


def library(text, vocab_size):
    """The same tokenizer by the library."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([text], trainer)
    model = json.loads(theirs.to_str())["model"]
    ids = model["vocab"]
    return theirs, [(ids[left], ids[right]) for left, right in model["merges"]]


def recount(words, n_merges):
    """Merges as pairs of bytes, each word a tuple, everything counted every time."""
    spelled = {word: tuple(bytes([b]) for b in word) for word in words}
    made = list(Tokenizer().vocab)
    merges = []
    for _ in range(n_merges):
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(spelled[word]):
                counts[pair] += times
        if not counts:
            break
        top = max(counts.values())
        best = min(
            (pair for pair in counts if counts[pair] == top),
            key=lambda pair: (made.index(pair[0]), made.index(pair[1])),
        )
        merges.append(best)
        made.append(best[0] + best[1])
        for word, tokens in spelled.items():
            out = []
            while tokens:
                step = 2 if tokens[:2] == best else 1
                out.append(b"".join(tokens[:step]))
                tokens = tokens[step:]
            spelled[word] = tuple(out)
    return merges


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("seed", range(8))
def test_keeping_count_equals_counting_again(seed):
    generator = random.Random(seed)
    words = {}
    for _ in range(60):  # few letters: many ties, and runs such as aaaa
        word = bytes(generator.choices(b"ab c", k=generator.randrange(1, 9)))
        words[word] = generator.randrange(1, 5)
    want = recount(words, 40)
    got = Tokenizer(learn_merges(words, 40))
    assert [(got.vocab[a], got.vocab[b]) for a, b in got.merges] == want


def test_ties_go_to_the_lowest_pair():
    merges = learn_merges({b"dog": 2, b"he": 2, b" a": 2}, 4)
    vocab = Tokenizer(merges).vocab
    # d, o, h stand in this order among the bytes, the blank after all letters
    assert vocab[256:] == [b"do", b"he", b" a", b"dog"]


def test_merges_and_ids_equal_the_library(plays):
    text = plays[:60_000] + UNSEEN
    theirs, merges = library(text, 256 + 500)
    ours = Tokenizer.train(text, 256 + 500)
    assert ours.merges == merges
    for given in (plays[500_000:520_000], UNSEEN, "", " ", "\n\n \n"):
        assert ours.encode(given) == theirs.encode(given).ids


@pytest.mark.slow
def test_whole_corpus_equals_the_library_and_is_quick(plays):
    start = time.process_time()
    ours = Tokenizer.train(plays, 256 + 4096)
    seconds = time.process_time() - start
    theirs, merges = library(plays, 256 + 4096)
    assert len(merges) == 4096
    assert ours.merges == merges
    assert ours.encode(plays) == theirs.encode(plays).ids
    assert seconds < 5


def test_stops_when_no_pair_is_left():
    assert Tokenizer.train("aaaa aaaa", 10_000).vocab[256:] == [
        b"aa",
        b"aaaa",
        b" aaaa",
    ]
    assert len(Tokenizer.train("", 300)) == 256


def test_fewer_merges_are_the_first_of_more(plays, small):
    assert Tokenizer.train(plays[:60_000], 300).merges == small.merges[:44]


# ---------------------------------------------------------------- encoding and decoding


def test_merges_apply_in_the_order_learned():
    b_first = Tokenizer.from_merges([(b"b", b"c"), (b"a", b"b")])
    a_first = Tokenizer.from_merges([(b"a", b"b"), (b"b", b"c")])
    assert [b_first.decode([i]) for i in b_first.encode("abc")] == ["a", "bc"]
    assert [a_first.decode([i]) for i in a_first.encode("abc")] == ["ab", "c"]
    # the longest that fits from the left would be abc
    three = Tokenizer.from_merges([(b"c", b"d"), (b"a", b"b"), (b"ab", b"c")])
    assert [three.decode([i]) for i in three.encode("abcd")] == ["ab", "cd"]


def test_training_words_are_encoded_as_training_left_them(plays):
    words = {p.encode(): n for p, n in Counter(SPLIT.findall(plays[:6_000])).items()}
    tokenizer = Tokenizer(learn_merges(words, 100))
    spelled = {w: [bytes([b]) for b in w] for w in words}
    for left, right in recount(words, 100):
        for word, tokens in spelled.items():
            i = 0
            while i + 1 < len(tokens):
                if (tokens[i], tokens[i + 1]) == (left, right):
                    tokens[i : i + 2] = [left + right]
                i += 1
            spelled[word] = tokens
    for word, tokens in spelled.items():
        assert [tokenizer.vocab[i] for i in tokenizer.encode(word)] == tokens


def test_every_text_comes_back(small):
    generator = random.Random(0)
    usable = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for _ in range(200):
        text = "".join(map(chr, generator.choices(usable, k=generator.randrange(30))))
        assert small.decode(small.encode(text)) == text
    assert small.decode(small.encode(UNSEEN)) == UNSEEN


def test_bytes_and_text_are_encoded_alike(small):
    assert small.encode(UNSEEN.encode()) == small.encode(UNSEEN)
    assert Tokenizer.train(UNSEEN.encode(), 300).merges == (
        Tokenizer.train(UNSEEN, 300).merges
    )


def test_bytes_stand_in_the_order_of_gpt2():
    vocab = Tokenizer().vocab
    assert len(set(vocab)) == len(vocab) == 256
    order = [b"!", b"A", b"a", b"~", b"\xa1", b"\xff", b"\x00", b"\n", b" ", b"\xad"]
    # as in GPT-2's encoder.json, where the blank is 220 and the line end 198
    assert [vocab.index(b) for b in order] == [
        0,
        32,
        64,
        93,
        94,
        187,
        188,
        198,
        220,
        255,
    ]


def test_half_a_character_is_replaced(small):
    first, *_ = small.encode("狗")
    assert small.decode([first]) == "\N{REPLACEMENT CHARACTER}"


def test_ids_may_be_a_tensor_but_not_fractions(small):
    ids = small.encode("the dog")
    assert small.decode(torch.tensor(ids)) == "the dog"
    with pytest.raises(TypeError):
        small.decode([1.0])


def test_remembered_words_are_bounded():
    tokenizer = Tokenizer()
    tokenizer.encode(" ".join(map(str, range(70_000))))
    assert len(tokenizer._seen) <= 2**16
    assert tokenizer.decode(tokenizer.encode("17 99999")) == "17 99999"


def test_special_tokens_follow_and_are_never_encoded():
    text = "the dog the dog <end>"
    tokenizer = Tokenizer.train(text, 262, special=["<pad>", "<end>"])
    assert len(tokenizer) == tokenizer.vocab_size == 262
    assert tokenizer.special == {"<pad>": 260, "<end>": 261}
    assert len(tokenizer.merges) == 4
    assert max(tokenizer.encode(text)) < 260
    assert tokenizer.decode([261]) == "<end>"


def test_merges_as_bytes_equal_merges_as_ids(small):
    spelled = [(small.vocab[a], small.vocab[b]) for a, b in small.merges]
    assert Tokenizer.from_merges(spelled).merges == small.merges


# -------------------------------------------------------------------------- characters


def test_characters_are_numbered_alphabetically():
    letters = CharTokenizer.train("the dog bites")
    assert "".join(letters.vocab) == " bdeghiost"
    assert letters.encode("dog") == [2, 7, 4]
    assert letters.decode(letters.encode("the dog")) == "the dog"
    assert letters.vocab_size == len(letters) == 10
    assert CharTokenizer(letters.vocab).encode("dog") == [2, 7, 4]


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize("make", [Tokenizer.train, CharTokenizer.train])
def test_bytes_that_are_not_utf8(make):
    arguments = (300,) if make == Tokenizer.train else ()
    message = "text is not UTF-8: byte 0xfc at position 1"
    with pytest.raises(ValueError, match=message):
        make("Hündin".encode("latin-1"), *arguments)
    with pytest.raises(ValueError, match="byte 0xff at position 3"):
        make(b"dog\xff", *arguments)
    with pytest.raises(ValueError, match=r"surrogate pair, '\\ud83d', at position 2"):
        make("a \ud83d", *arguments)
    with pytest.raises(TypeError, match="text must be str or bytes, got int"):
        make(7, *arguments)


def test_encoding_what_is_not_utf8(small):
    for tokenizer in (small, CharTokenizer("dog")):
        with pytest.raises(ValueError, match="byte 0xff at position 3"):
            tokenizer.encode(b"dog\xff")
        with pytest.raises(TypeError, match="text must be str or bytes, got NoneType"):
            tokenizer.encode(None)


@pytest.mark.parametrize("bad", [-1, 256, 10**9])
def test_ids_outside_the_vocabulary(bad):
    with pytest.raises(IndexError, match=rf"ids must lie in \[0, 256\), got {bad}"):
        Tokenizer().decode([5, bad])
    with pytest.raises(IndexError, match=rf"ids must lie in \[0, 3\), got {bad}"):
        CharTokenizer("dog").decode([bad])


def test_vocabulary_too_small():
    with pytest.raises(
        ValueError, match=r"vocab_size must be at least 256, .* got 255"
    ):
        Tokenizer.train("dog", 255)
    with pytest.raises(
        ValueError, match=r"vocab_size must be at least 258, .* got 257"
    ):
        Tokenizer.train("dog", 257, special=["<pad>", "<end>"])


def test_unknown_character():
    message = "character 'ü' at position 5 is not among the 3 of the vocabulary"
    with pytest.raises(ValueError, match=message):
        CharTokenizer("dog").encode("doggoü")


def test_merges_that_fit_nothing():
    with pytest.raises(IndexError, match=r"ids must lie in \[0, 257\), got 300"):
        Tokenizer([(1, 2), (300, 4)])
    with pytest.raises(
        ValueError, match="merge 1, b'th' and b'e', joins what no merge"
    ):
        Tokenizer.from_merges([(b"h", b"e"), (b"th", b"e")])


# ------------------------------------------------------------------------------- files


def test_saved_and_loaded(tmp_path, small):
    file = tmp_path / "bpe.json"
    with_end = Tokenizer(small.merges, special=["<end>"])
    with_end.save(file)
    loaded = Tokenizer.load(str(file))
    assert loaded.merges == small.merges
    assert loaded.special == with_end.special
    assert loaded.encode(UNSEEN) == small.encode(UNSEEN)

    CharTokenizer(UNSEEN).save(file)
    assert CharTokenizer.load(file).vocab == sorted(set(UNSEEN))
    assert [path.name for path in tmp_path.iterdir()] == ["bpe.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, small, monkeypatch):
    file = tmp_path / "bpe.json"
    small.save(file)
    before = file.read_bytes()

    def full(self, text, **_):
        with open(self, "w") as out:
            out.write(text[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        Tokenizer().save(file)
    assert file.read_bytes() == before


def test_files_that_are_none_of_ours(tmp_path, small):
    file = tmp_path / "bpe.json"
    with pytest.raises(FileNotFoundError, match=r"bpe\.json"):
        Tokenizer.load(file)
    small.save(file)
    with pytest.raises(ValueError, match=r"bpe\.json is not a saved CharTokenizer"):
        CharTokenizer.load(file)
    whole = file.read_bytes()
    for content in (whole[:-20], b"\xff", b"[1]", b'{"kind": "Tokenizer"}', b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"bpe\.json is not a saved Tokenizer"):
            Tokenizer.load(file)


GOOD = {"kind": "Tokenizer", "merges": [[0, 1]], "special": ["<end>"]}


@pytest.mark.parametrize(
    "change",
    [
        {"merges": [[999, 1]]},
        {"merges": [[0, -1]]},
        {"merges": 5},
        {"merges": [5]},
        {"merges": [["a", "b"]]},
        {"merges": [[0, 1, 2]]},
        {"merges": [[0.5, 1]]},
        {"merges": {"0": 1}},
        {"special": [1]},
        {"special": [["a"]]},
        {"special": ["\ud800"]},
        {"special": "abc"},
        {"special": None},
        {"kind": "BPE"},
    ],
    ids=str,
)
def test_files_with_other_content(tmp_path, change):
    file = tmp_path / "bpe.json"
    file.write_text(json.dumps(GOOD))
    assert Tokenizer.load(file).merges == [(0, 1)]
    file.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=r"bpe\.json is not a saved Tokenizer"):
        Tokenizer.load(file)


@pytest.mark.parametrize(
    "characters", [["ab"], ["ab", 3], [3, 4], [["a"]], [""], "ab", 5, None], ids=str
)
def test_files_without_characters(tmp_path, characters):
    file = tmp_path / "chars.json"
    file.write_text(json.dumps({"kind": "CharTokenizer", "characters": characters}))
    with pytest.raises(ValueError, match=r"chars\.json is not a saved CharTokenizer"):
        CharTokenizer.load(file)
