"""A checkpoint is there whole or not at all, and says what is wrong with it."""

import errno
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from small import SIZE, tiny_gpt

from transformer import checkpoint as module
from transformer.checkpoint import (
    check_checkpoint,
    checkpoints,
    fault,
    load_gpt,
    model_tensors,
    optimizer_tensors,
    prune,
    random_tensors,
    set_aside,
    set_optimizer,
    set_random,
    set_weights,
    write_checkpoint,
)
from transformer.corpus import RunError
from transformer.training import make_optimizer, train_step

PARTS = {
    "one.safetensors": {"a": torch.arange(3.0)},
    "two.txt": lambda path: path.write_text("two"),
    "state.json": '{"step": 1}\n',
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path):
    folder = write_checkpoint(tmp_path / "run", 120, PARTS)
    assert folder == tmp_path / "run" / "step-000120"
    assert names(folder) == sorted(["SHA256SUMS", *PARTS])
    assert fault(folder) is None
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0


def test_the_newest_comes_last(tmp_path):
    for step in (1_000_000, 20, 3, 200_000):
        write_checkpoint(tmp_path, step, PARTS)
    for other in (".step-000500.1.new", "step-x", "unused-step-000900"):
        (tmp_path / other).mkdir()
    found = [path.name for path in checkpoints(tmp_path)]
    assert found == ["step-000003", "step-000020", "step-200000", "step-1000000"]


@pytest.mark.parametrize("at", range(12))
def test_a_failure_anywhere_leaves_the_last_good(tmp_path, monkeypatch, at):
    """The disk fails at the n-th of all calls that write, sync or rename."""
    write_checkpoint(tmp_path, 1, PARTS)
    calls = []

    def failing(name, home):
        real = getattr(home, name)

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == at + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(home, name, call)

    failing("save_file", module)
    failing("sync", module)
    failing("write_text", module.Path)
    failing("rename", module.Path)
    failing("mkdir", module.Path)
    try:
        write_checkpoint(tmp_path, 2, PARTS)
    except RunError as error:
        assert "step 2 was not written" in str(error)
        assert "No space left on device" in str(error)
    else:
        assert at >= len(calls), "a failure went unnoticed"
    monkeypatch.undo()
    kept = names(tmp_path)
    # what fails last is telling the disk about a name that is already there
    assert kept == ["step-000001"] or (
        kept == ["step-000001", "step-000002"] and calls[-1:] == ["sync"]
    )
    assert [fault(path) for path in checkpoints(tmp_path)] == [None] * len(kept)


def test_all_failures_were_tried(tmp_path, monkeypatch):
    """The count above, 12, covers every call."""
    calls = []
    for name, home in [
        ("save_file", module),
        ("sync", module),
        ("write_text", module.Path),
        ("rename", module.Path),
        ("mkdir", module.Path),
    ]:
        real = getattr(home, name)
        monkeypatch.setattr(
            home, name, lambda *a, real=real, **k: calls.append(1) or real(*a, **k)
        )
    write_checkpoint(tmp_path, 2, PARTS)
    assert 10 < len(calls) <= 12


def test_files_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    happened = []
    real = module.sync
    monkeypatch.setattr(module, "sync", lambda p: happened.append(p.name) or real(p))
    rename = module.Path.rename
    monkeypatch.setattr(
        module.Path, "rename", lambda p, t: happened.append("rename") or rename(p, t)
    )
    write_checkpoint(tmp_path, 7, PARTS)
    before = happened[: happened.index("rename")]
    assert {*PARTS, "SHA256SUMS"} < set(before)
    assert any(name.startswith(".step-000007") for name in before), "its folder"
    assert happened[happened.index("rename") + 1 :] == [tmp_path.name]


def test_a_real_full_disk(tmp_path):
    """A process that may write no more: the library's own error is told as well."""
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from transformer.checkpoint import write_checkpoint\n"
        "parts = {'m.safetensors': {'a': torch.zeros(100_000)}, 'state.json': '{}'}\n"
        "write_checkpoint(Path(sys.argv[1]), 5, parts)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000,) * 2),
        capture_output=True,
        text=True,
    )
    assert "the checkpoint of step 5 was not written" in done.stderr
    assert names(tmp_path) == []


def test_interrupted_while_writing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 1, PARTS)
    assert names(tmp_path) == []


# ----------------------------------------------------------------------------- damage


def damaged(folder, name, how):
    path = folder / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        middle = len(content) // 2
        change = bytes([content[middle] ^ 1])
        path.write_bytes(content[:middle] + change + content[middle + 1 :])


@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "changed"])
@pytest.mark.parametrize("name", [*PARTS, "SHA256SUMS"])
def test_damage_is_told(tmp_path, name, how):
    for step in (1, 2, 3):
        folder = write_checkpoint(tmp_path, step, PARTS)
    damaged(folder, name, how)
    with pytest.raises(RunError) as caught:
        check_checkpoint(folder)
    said = str(caught.value)
    assert str(folder) in said
    if name != "SHA256SUMS":
        assert f"{name} is " in said
    assert f"transformer train --resume {tmp_path / 'step-000002'}" in said
    damaged(tmp_path / "step-000002", "two.txt", "missing")
    with pytest.raises(RunError, match=r"--resume .*step-000001"):
        check_checkpoint(folder)


def test_damage_without_another(tmp_path):
    folder = write_checkpoint(tmp_path, 1, PARTS)
    damaged(folder, "state.json", "changed")
    with pytest.raises(RunError, match=r"no other good one: start again"):
        check_checkpoint(folder)


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    folder = write_checkpoint(tmp_path, 1, PARTS)
    damaged(folder, "state.json", "changed")
    assert fault(write_checkpoint(tmp_path, 1, PARTS)) is None
    assert names(tmp_path) == ["step-000001"]


# ---------------------------------------------------------------------------- pruning


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [50]),
        (2, 20, [20, 40, 50]),
        (2, 50, [40, 50]),
        (9, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_prune(tmp_path, keep, best, left):
    for step in (10, 20, 30, 40, 50):
        write_checkpoint(tmp_path, step, PARTS)
    prune(tmp_path, keep, best)
    assert names(tmp_path) == [f"step-{step:06d}" for step in left]


def test_set_aside(tmp_path):
    for _ in range(2):  # the second time the name is taken
        for step in (1, 2, 3):
            write_checkpoint(tmp_path, step, PARTS)
        set_aside(tmp_path, 1)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    assert fault(tmp_path / "unused-step-000003") is None


# ------------------------------------------------------------------------ what is kept


def saved_model(model, run, step=1):
    parts = {
        "model.json": json.dumps(vars(model.config)),
        "model.safetensors": model_tensors(model),
        "state.json": "{}",
    }
    return write_checkpoint(run, step, parts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False},
        {"order": "post", "positions": "none", "n_kv_heads": 1},
        {"order": "parallel", "positions": "sinusoidal"},
    ],
)
def test_every_kind_of_model_comes_back(tmp_path, changes):
    model = tiny_gpt(**changes)
    again = load_gpt(saved_model(model, tmp_path))
    assert again.config == model.config and not again.training
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids), model(ids))
    if model.tied:
        assert again.head.weight is again.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_filling_of_the_vocabulary_is_cut_off(tmp_path, tied):
    model = tiny_gpt(tied=tied)
    folder = saved_model(model, tmp_path)
    trimmed = load_gpt(folder, vocab_size=7)
    ids = torch.tensor([[0, 6, 3]])
    torch.testing.assert_close(trimmed(ids), model(ids)[..., :7])
    assert trimmed.config.vocab_size == 7


def test_load_refuses_damage(tmp_path):
    folder = saved_model(tiny_gpt(), tmp_path)
    damaged(folder, "model.safetensors", "truncated")
    with pytest.raises(RunError, match=r"model\.safetensors is truncated or changed"):
        load_gpt(folder)
    shutil.rmtree(folder)
    with pytest.raises(RunError, match=r"is damaged: SHA256SUMS is missing"):
        load_gpt(folder)


def stepped(steps):
    """A model after so many steps, with its optimiser."""
    torch.manual_seed(0)
    model = tiny_gpt(dropout=0.2).train()
    optimizer = make_optimizer(model, 1e-2)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model, optimizer, steps):
    for _ in range(steps):
        ids = torch.randint(SIZE["vocab_size"], (2, 9))
        train_step(model, optimizer, [(ids[:, :-1], ids[:, 1:])])


def test_optimizer_and_random_state_come_back():
    model, optimizer = stepped(3)
    weights = {k: v.clone() for k, v in model_tensors(model).items()}
    kept = {k: v.clone() for k, v in optimizer_tensors(model, optimizer).items()}
    states = random_tensors(torch.device("cpu"))
    assert all(key.split("/")[1] in ("step", "exp_avg", "exp_avg_sq") for key in kept)
    advance(model, optimizer, 2)

    other, its_optimizer = stepped(0)
    set_weights(other, weights)
    set_optimizer(other, its_optimizer, kept)
    set_random(states, torch.device("cpu"))
    advance(other, its_optimizer, 2)
    for name, value in model_tensors(model).items():
        assert torch.equal(value, model_tensors(other)[name]), name
    after = optimizer_tensors(other, its_optimizer)
    for name, value in optimizer_tensors(model, optimizer).items():
        assert torch.equal(value, after[name]), name
