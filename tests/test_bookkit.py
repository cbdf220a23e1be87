"""The kit of the notebooks: hand-overs, checks, splits, tables of sizes, profiles."""

import json
import sys

import bookfiles as book
import pytest
import torch

sys.path.insert(0, str(book.ROOT / "notebooks"))
import bookkit as kit

E = torch.tensor([[0.5, -1.25], [2.0, 0.1]], dtype=torch.float64)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A folder of hand-overs that holds E."""
    monkeypatch.setattr(kit, "HANDOVER", tmp_path)
    monkeypatch.setenv("BOOK_EXECUTE", "1")
    kit.hand_over("toy", E=E, words=["the", "dog"], ids=torch.tensor([3, 4]))
    monkeypatch.delenv("BOOK_EXECUTE")
    return tmp_path


def same(**changes):
    return {"E": E, "words": ["the", "dog"], "ids": torch.tensor([3, 4])} | changes


# ----------------------------------------------------------------------- hand-overs


def test_taken_over_as_handed_over(stored):
    taken = kit.take_over("toy")
    assert taken["E"].dtype == torch.float64
    assert torch.equal(taken["E"], E)
    assert taken["words"] == ["the", "dog"]
    assert taken["ids"].tolist() == [3, 4]
    assert [file.name for file in stored.iterdir()] == ["toy.json"]


def test_equal_hand_over_writes_nothing(stored):
    before = (stored / "toy.json").read_bytes()
    kit.hand_over("toy", **same(E=E + 1e-14))
    assert (stored / "toy.json").read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"E": E + 1e-9},
        {"E": E[:1]},
        {"words": ["the", "cat"]},
        {"ids": torch.tensor([3, 5])},
        {"more": E},
    ],
    ids=str,
)
def test_changed_hand_over_is_told(stored, changes):
    before = (stored / "toy.json").read_bytes()
    with pytest.raises(AssertionError, match=r"toy\.json"):
        kit.hand_over("toy", **same(**changes))
    assert (stored / "toy.json").read_bytes() == before


def test_execute_changes_a_hand_over(stored, monkeypatch):
    monkeypatch.setenv("BOOK_EXECUTE", "1")
    kit.hand_over("toy", E=2 * E)
    assert torch.equal(kit.take_over("toy")["E"], 2 * E)


def test_missing_hand_over(stored):
    """A test that runs the notebooks must not store what it should compare."""
    with pytest.raises(FileNotFoundError, match="make execute NB=other"):
        kit.hand_over("other", E=E)
    assert not (stored / "other.json").exists()
    with pytest.raises(FileNotFoundError, match="run the notebook other first"):
        kit.take_over("other")


# ------------------------------------------------------------------------- exercises


def test_check_says_correct(capsys):
    kit.check(E, E + 1e-9)
    kit.check([1, 2], torch.tensor([1, 2]))
    kit.check(0.5, 0.6, tol=0.2)
    assert capsys.readouterr().out == "correct\n" * 3


def test_check_tells_the_shape():
    with pytest.raises(AssertionError, match=r"\(2,\), expected \(2, 2\)\. A hint"):
        kit.check(E[0], E, "A hint")


@pytest.mark.parametrize("wrong", [E + 0.25, E.clone().fill_(torch.nan)])
def test_check_tells_the_value(wrong):
    with pytest.raises(AssertionError, match=r"off by up to (0\.25|nan)\. A hint"):
        kit.check(wrong, E, "A hint")


# ---------------------------------------------------------------------------- corpus


def test_split_cuts_every_play_at_a_blank_line():
    speech = "NAME\nwords of {} {}"
    plays = [[speech.format(p, i) for i in range(20)] for p in "ab"]
    corpus = "\n\n\n\n".join("\n\n".join(play) for play in plays)
    train, valid = kit.split(corpus)
    for text, there in ((train, slice(0, 17)), (valid, slice(17, 20))):
        wanted = ["\n\n".join(play[there]) for play in plays]
        assert text.split("\n\n\n\n") == wanted


def test_split_of_shakespeare():
    """Nothing is lost, and nothing of the one is in the other."""
    corpus = kit.text("shakespeare")
    train, valid = kit.split(corpus)
    assert 0.88 < len(train) / len(corpus) < 0.92
    lines = [len("".join(t.split())) for t in (train, valid, corpus)]
    assert lines[0] + lines[1] == lines[2]
    for piece in valid.split("\n\n\n\n"):
        assert piece not in train


# ----------------------------------------------------------------------------- sizes


def test_four_sizes_stand_in_columns(capsys):
    kit.four_sizes({"table": lambda s: (s.V, s.D), "a longer name": lambda s: s.V})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert "(50,257, 768)" in lines[1] and "(50,257, 12,288)" in lines[1]
    ends = [lines[0].index(name) + len(name) for name in kit.sizes()]
    for line in lines[1:]:
        for end in ends:
            assert line[end - 1] != " " and line[end : end + 2].strip() == ""


# --------------------------------------------------------------------------- profile


def test_profile_is_small_unless_asked(monkeypatch):
    monkeypatch.delenv("PROFILE", raising=False)
    found = kit.profile()
    assert (found.name, found.device, found.pick(cpu=1, gpu=2)) == ("cpu", "cpu", 1)


def test_unknown_profile(monkeypatch):
    monkeypatch.setenv("PROFILE", "tpu")
    with pytest.raises(ValueError, match="'tpu', expected 'cpu' or 'gpu'"):
        kit.profile()


def test_gpu_profile_wants_a_gpu(monkeypatch):
    monkeypatch.setenv("PROFILE", "gpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no accelerator"):
        kit.profile()
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: gpu)
    found = kit.profile()
    assert (found.device, found.pick(cpu=1, gpu=2)) == ("cuda", 2)


def test_stored_hand_overs_are_whole():
    for file in sorted((book.ROOT / "notebooks/handover").glob("*.json")):
        assert json.loads(file.read_text(encoding="utf-8")), file.name
        assert (book.ROOT / f"notebooks/{file.stem}.ipynb").exists()
