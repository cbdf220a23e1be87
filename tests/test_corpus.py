"""Text becomes a file of ids once, and is read in shuffled windows."""

import os
import random
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transformer.corpus import (
    OURS,
    RunError,
    Text,
    Windows,
    held_out,
    load_tokenizer,
    make_tokenizer,
    sample,
    sweep,
    tokenise,
    whole_file,
)
from transformer.tokens import CharTokenizer, Tokenizer

PROSE = (
    "Ein Hund  beißt\n\n den Mann.\n\tIt's 12 o'clock, isn't it?\n\n\n  Nein!\r\n"
    "Oui, 日本。\n"
)


@pytest.fixture
def file(tmp_path):
    def write(text, name="text.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


# ------------------------------------------------------------------------------ text


@pytest.mark.parametrize("size", [1, 7, 16, 50, 10_000])
def test_pieces_join_to_the_text(file, size):
    text = Text(file(PROSE * 20), size)
    pieces = list(text.pieces())
    assert "".join(pieces) == PROSE * 20
    assert max(map(len, pieces)) <= size


@pytest.mark.parametrize("seed", range(5))
def test_pieces_encode_as_the_whole(file, seed):
    """No word is cut: the ids of the pieces are the ids of the text."""
    draw = random.Random(seed)
    words = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "'s",
        "12",
        "ab",
        "Hund",
        ",",
        "é",
        "\u00a0",
    ]
    text = "".join(draw.choices(words, k=4000))
    tokenizer = Tokenizer.train(text, 300)
    pieces = list(Text(file(text), 300).pieces())
    assert len(pieces) > 20
    joined = [i for piece in pieces for i in tokenizer.encode(piece)]
    assert joined == tokenizer.encode(text)


def test_without_a_place_to_cut(file):
    text = "日本" * 500
    pieces = list(Text(file(text), 64).pieces())
    assert "".join(pieces) == text and max(map(len, pieces)) == 64


def test_folder_in_order_of_names(file, tmp_path):
    for name in ("b.txt", "a/z.md", ".hidden", "a/.git/x"):
        file(f"<{name}>", f"texts/{name}")
    text = "".join(Text(str(tmp_path / "texts")).pieces())
    assert text == "<a/z.md>\n\n<b.txt>"


def test_what_is_no_text(file, tmp_path):
    with pytest.raises(RunError, match=r"nowhere: it is neither file nor folder"):
        list(Text(str(tmp_path / "nowhere")).pieces())
    with pytest.raises(RunError, match=r"bad\.txt is no UTF-8 text: byte 0xff"):
        list(Text(file(b"abc\xff", "bad.txt")).pieces())


class Rows(list):
    column_names = ("text",)


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in for the library: it notes how it was called."""
    calls = []
    rows = Rows({"text": text} for text in ("one", "two"))
    stand_in = SimpleNamespace(
        load_dataset=lambda *a, **k: calls.append((a, k)) or rows,
        load_from_disk=lambda folder: calls.append(folder) or {"train": rows},
        calls=calls,
    )
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return stand_in


def test_data_set_of_the_hub(datasets):
    assert "".join(Text("hf:owner/name,small").pieces()) == "one\n\ntwo"
    assert datasets.calls == [(("owner/name", "small"), {"split": "train"})]


def test_data_set_on_disk(datasets, file, tmp_path):
    file("{}", "set/dataset_dict.json")
    assert "".join(Text(str(tmp_path / "set")).pieces()) == "one\n\ntwo"
    assert datasets.calls == [str(tmp_path / "set")]


def test_data_set_without_the_column(datasets):
    Rows.column_names, kept = ("words",), Rows.column_names
    try:
        with pytest.raises(RunError, match=r"no column `text`, only \('words',\)"):
            list(Text("hf:name").pieces())
    finally:
        Rows.column_names = kept


def test_data_set_that_is_not_there(datasets):
    def fails(*_, **__):
        raise ValueError("no such set")

    datasets.load_dataset = fails
    with pytest.raises(RunError, match=r"hf:name can't be opened: no such set"):
        list(Text("hf:name").pieces())


def test_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunError, match=r"hf:x needs .* pip install datasets"):
        list(Text("hf:x").pieces())


# ------------------------------------------------------------------------- tokenizers


def test_tokenizer_is_trained_once(file, tmp_path, monkeypatch):
    text = Text(file(PROSE * 5))
    first = make_tokenizer(text, "bpe", 280, tmp_path / "c")
    assert first.vocab_size == 280
    monkeypatch.setattr(Tokenizer, "train", None)
    again = make_tokenizer(text, "bpe", 280, tmp_path / "c")
    assert again.vocab == first.vocab
    characters = make_tokenizer(text, "char", 0, tmp_path / "c")
    assert characters.vocab == sorted(set(PROSE))


def test_tokenizer_from_a_file(file, tmp_path):
    for tokenizer in (CharTokenizer("abc"), Tokenizer.train("aaab" * 9, 258)):
        tokenizer.save(tmp_path / "saved.json")
        found = make_tokenizer(
            Text("unread"), str(tmp_path / "saved.json"), 0, tmp_path
        )
        assert type(found) is type(tokenizer) and found.vocab == tokenizer.vocab
    with pytest.raises(RunError, match=r"neither a saved CharTokenizer nor"):
        load_tokenizer(file("{}"))
    with pytest.raises(RunError, match=r"no tokenizer at .*nothing: No such file"):
        load_tokenizer(tmp_path / "nothing")


def test_sample_is_spread_over_the_text():
    pieces = [f"{n:04d}" for n in range(1000)]
    kept = sample(pieces, 400)
    found = [int(kept[i : i + 4]) for i in range(0, len(kept), 4)]
    assert 50 < len(found) <= 100
    assert len(set(np.diff(found))) == 1, "not even"
    assert found[-1] > 900
    assert sample(["all"], 1) == "all"


# ------------------------------------------------------------------------- token file


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_file_equals_encoding_all_at_once(file, tmp_path, kind):
    whole = PROSE * 50
    text = Text(file(whole), size=200)
    tokenizer = make_tokenizer(text, kind, 300, tmp_path)
    ids = tokenise(text, tokenizer, tmp_path)
    assert ids.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(whole)
    assert tokenizer.decode(ids.tolist()) == whole


def test_wide_vocabulary_takes_four_bytes(file, tmp_path):
    many = "".join(chr(n) for n in range(0x4E00, 0x9FFF)) + "".join(
        chr(n) for n in range(0x20000, 0x20000 + 50_000)
    )
    ids = tokenise(Text(file(many)), CharTokenizer(many), tmp_path)
    assert ids.dtype == np.uint32
    assert int(ids.max()) == len(set(many)) - 1


def test_unchanged_text_is_not_tokenised_again(file, tmp_path, monkeypatch):
    tokenizer = CharTokenizer(PROSE)
    first = tokenise(Text(file(PROSE)), tokenizer, tmp_path)
    monkeypatch.setattr(CharTokenizer, "encode", None)  # a call would raise
    again = tokenise(Text(file(PROSE, "moved.txt")), tokenizer, tmp_path)
    assert again.tolist() == first.tolist()
    monkeypatch.undo()
    changed = tokenise(Text(file(PROSE[::-1])), tokenizer, tmp_path)
    assert changed.tolist() == first.tolist()[::-1]
    other = tokenise(Text(file(PROSE)), CharTokenizer(PROSE + "$"), tmp_path)
    assert other.tolist() != first.tolist()


def test_larger_than_memory(file, tmp_path):
    """What is held grows with the piece, not with the text."""
    line = "the dog bites the man, and the man bites the dog.\n"
    path = file(line * 400_000)  # 20 MB
    text = Text(path, size=2**16)
    tracemalloc.start()
    try:
        tokenizer = make_tokenizer(text, "char", 0, tmp_path)
        ids = tokenise(text, tokenizer, tmp_path)
        windows = Windows(ids, 64, 8)
        next(windows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(ids) == os.path.getsize(path)
    assert peak < 8e6, f"{peak / 1e6:.1f} MB held for a text of 20 MB"


def test_nothing_to_read(file, tmp_path):
    with pytest.raises(RunError, match=r"empty: there is nothing to learn from"):
        tokenise(Text(file("")), CharTokenizer("a"), tmp_path)


def test_unknown_character(file, tmp_path):
    with pytest.raises(RunError, match=r"text\.txt: character 'b' at position 1"):
        tokenise(Text(file("ab")), CharTokenizer("a"), tmp_path)
    assert not list(tmp_path.glob("*.u16"))
    assert [path.name for path in tmp_path.glob(".*")] == [OURS]


def test_whole_file_or_none(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), whole_file(path) as file:
        file.write(b"new")
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_leaves_what_is_being_written(tmp_path):
    mine = tmp_path / f".tokens.{os.getpid()}.new"
    dead = tmp_path / ".tokens.99999999.new"
    for path in (mine, dead):
        path.touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


# ---------------------------------------------------------------------------- windows


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("count", [9, 10, 26, 100])
def test_an_epoch_reads_every_window_once(count, length):
    ids = np.arange(count, dtype=np.uint16)
    windows = Windows(ids, length, batch=1, seed=5)
    n = len(windows.starts(0))
    seen = []
    for _ in range(n):
        assert windows.epoch == 0
        inputs, targets = next(windows)
        assert inputs.shape == targets.shape == (1, length)
        assert inputs.dtype == torch.int64
        start = int(inputs[0, 0])
        assert inputs[0].tolist() == list(range(start, start + length))
        assert targets[0].tolist() == list(range(start + 1, start + length + 1))
        seen.append(start)
    first = min(seen)
    assert first < length
    assert sorted(seen) == list(range(first, count - length, length)), (
        "a window is lost"
    )
    next(windows)
    assert windows.epoch == 1


def test_order_changes_with_epoch_and_seed():
    ids = np.arange(2000, dtype=np.uint16)
    a, b = Windows(ids, 10, 4), Windows(ids, 10, 4, seed=1)
    orders = [a.starts(0), a.starts(1), b.starts(0), Windows(ids, 10, 4).starts(0)]
    assert not np.array_equal(orders[0][:9], orders[1][:9])
    assert not np.array_equal(orders[0][:9], orders[2][:9])
    assert np.array_equal(orders[0], orders[3])
    assert len({int(min(a.starts(e))) for e in range(20)}) > 3, "always the same cuts"


def test_a_reader_continues_where_another_stands():
    """Also across the end of an epoch, and inside a batch of two epochs."""
    ids = np.arange(100, dtype=np.uint16)
    straight = Windows(ids, 7, batch=5, seed=3)
    for _ in range(12):
        other = Windows(ids, 7, batch=5, seed=3)
        other.seek(straight.epoch, straight.window)
        for here, there in zip(next(straight), next(other), strict=True):
            assert torch.equal(here, there)
    assert straight.epoch >= 3


def test_batches_in_halves_are_the_same_windows():
    ids = np.arange(300, dtype=np.uint16)
    whole, halves = Windows(ids, 8, 6), Windows(ids, 8, 3)
    for _ in range(20):
        both = torch.cat([next(halves)[0], next(halves)[0]])
        assert torch.equal(next(whole)[0], both)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_tokens(count):
    ids = np.zeros(count, dtype=np.uint16)
    match = rf"has {count} tokens, and one window with model.max_len = 8 needs 9"
    with pytest.raises(RunError, match=match):
        Windows(ids, 8, 2)
    Windows(np.zeros(9, dtype=np.uint16), 8, 2)


def test_held_out_is_spread_and_fixed():
    ids = np.arange(1000, dtype=np.uint16)
    few = [inputs[:, 0].tolist() for inputs, _ in held_out(ids, 10, 4, 3)]
    assert [len(row) for row in few] == [4, 4, 4]
    starts = [start for row in few for start in row]
    assert starts == sorted(set(starts)) and starts[-1] > 850
    again = [inputs[:, 0].tolist() for inputs, _ in held_out(ids, 10, 4, 3)]
    assert again == few
    everything = [i for inputs, _ in held_out(ids, 10, 4, 100) for i in inputs[:, 0]]
    assert everything == list(range(0, 990, 10))


# ------------------------------------------------------- other people's files, and ours


def test_only_half_written_files_of_dead_processes_are_swept(tmp_path):
    """Whatever else has such a name is somebody's, and stays."""
    dead = 2**22 + 1  # no process has such a number
    ours = [tmp_path / f".tokens-ab.u16.{dead}.new", tmp_path / f".step-3.{dead}.new"]
    kept = [
        tmp_path / ".vimrc.new",
        tmp_path / ".notes.old.new",
        tmp_path / f".tokens-ab.u16.{os.getpid()}.new",
    ]
    ours[0].touch()
    ours[1].mkdir()
    for path in kept:
        path.touch()
    (tmp_path / ".config.new").mkdir()
    sweep(tmp_path)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in [*kept, tmp_path / ".config.new"])


def test_another_users_process_lives(tmp_path, monkeypatch):
    def kill(*_):
        raise PermissionError

    draft = tmp_path / ".tokens-ab.u16.7.new"
    draft.touch()
    monkeypatch.setattr(os, "kill", kill)
    sweep(tmp_path)
    assert draft.exists()


@pytest.mark.parametrize("size", [0, 7, 10])
def test_a_damaged_token_file_is_made_anew(file, tmp_path, size):
    text, tokenizer = Text(file(PROSE)), CharTokenizer(PROSE)
    whole = tokenise(text, tokenizer, tmp_path / "cache").tolist()
    (path,) = (tmp_path / "cache").glob("*.u16")
    path.write_bytes(path.read_bytes()[:size])
    assert tokenise(text, tokenizer, tmp_path / "cache").tolist() == whole


def test_a_damaged_tokenizer_is_made_anew(file, tmp_path):
    text = Text(file(PROSE))
    first = make_tokenizer(text, "char", 0, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("tokenizer-*.json")
    path.write_text("")
    again = make_tokenizer(text, "char", 0, tmp_path / "cache")
    assert again.vocab == first.vocab == load_tokenizer(path).vocab


def test_an_empty_text_leaves_no_token_file(file, tmp_path):
    with pytest.raises(RunError, match="is empty"):
        tokenise(Text(file("")), CharTokenizer("a"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("tokens-*"))


def test_what_the_program_wrote_is_no_text(file, tmp_path):
    """A folder of texts may hold the runs and the token files as well."""
    file("ab", "texts/a.txt")
    text = str(tmp_path / "texts")
    tokenise(Text(text), CharTokenizer("ab"), tmp_path / "texts" / "runs" / "tokens")
    (tmp_path / "texts/runs/tokens/more.txt").write_text("xyz")
    assert "".join(Text(text).pieces()) == "ab"


def test_a_folder_that_cannot_be_read_is_told(file, tmp_path, monkeypatch):
    """Nothing is left out in silence."""
    file("ab", "texts/a.txt")
    file("cd", "texts/locked/b.txt")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RunError, match=r"locked can't be read: Permission denied"):
        "".join(Text(str(tmp_path / "texts")).pieces())
