"""The program: configurations, runs that stop and go on, and the command line."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import bookfiles as book
import pytest
import runs
import torch
from runs import LAST, config, rows, same_end
from typer.testing import CliRunner

from transformer import program
from transformer.checkpoint import checkpoints, load_gpt, optimizer_tensors
from transformer.corpus import RunError
from transformer.gpt import GPT
from transformer.program import (
    Run,
    app,
    find_checkpoint,
    read_corpus,
    read_metrics,
    restore,
    save,
    spell,
    train,
    until,
    write_on,
)
from transformer.settings import (
    PRESETS,
    ConfigError,
    changed_keys,
    read_config,
    with_changes,
)
from transformer.tokens import CharTokenizer, Tokenizer
from transformer.training import evaluate


def cli(*words):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize("name", PRESETS)
def test_preset_round_trips_through_toml(name, tmp_path):
    made = read_config(name)
    file = tmp_path / "run.toml"
    file.write_text(cli("presets", name).stdout, encoding="utf-8")
    assert read_config(str(file)) == made
    assert tomllib.loads(made.toml())["train"]["steps"] == made.train.steps


def test_presets_are_the_models_they_say():
    char = read_config("char")
    model, c = char.gpt(80), char.train
    shape = (model.n_layers, model.n_heads, model.d_model, model.max_len)
    assert shape == (4, 4, 128, 64) and model.positions == "rotary"
    assert (c.steps, c.batch, c.peak, c.warmup) == (1500, 12, 3e-3, 100)
    assert c.betas == (0.9, 0.99)
    gpt2 = read_config("gpt2").gpt(50257)
    assert gpt2.vocab_size == 50304 and gpt2.vocab_size % 64 == 0
    with torch.device("meta"):
        count = sum(p.numel() for p in GPT(gpt2).parameters())
    assert count == 124_439_808 + 47 * 768  # GPT-2's own, and the filling
    llama = read_config("llama").gpt(8192)
    assert (llama.norm, llama.activation) == ("rms", "swiglu")
    assert llama.n_kv_heads and llama.n_kv_heads < llama.n_heads
    assert not llama.bias and llama.positions == "rotary"
    assert "bpe" in cli("presets").stdout and "124.5 million" in cli("presets").stdout


def test_quotes_and_other_signs_survive_toml(tmp_path):
    made = read_config("tiny", ['data.text="a \\"b\\" \\\\ 日本 \\u0007.txt"'])
    assert with_changes(tomllib.loads(made.toml()), []) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.stps=3", "unknown key train.stps: did you mean train.steps?"),
        ("trian.steps=3", "unknown section trian: did you mean train?"),
        ("model.n_layer=3", "unknown key model.n_layer: did you mean model.n_layers?"),
        ("model.vocab_size=3", "unknown key model.vocab_size"),
        ("train.qqqqqq=3", "unknown key train.qqqqqq: known: train.seed, "),
        ("train.steps=many", "train.steps must be a whole number, got 'many'"),
        ("train.steps=true", "train.steps must be a whole number, got True"),
        ("train.steps=2.5", "train.steps must be a whole number, got 2.5"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.peak=inf", "train.peak must be a number, got inf"),
        ("train.peak=-1", "train.peak must be positive"),
        ("train.shape=square", "train.shape must be one of"),
        ("train.betas=[0.9]", "train.betas must be two numbers in [0, 1), got [0.9]"),
        ("train.betas=0.9", "train.betas must be a list of numbers, got 0.9"),
        ("train.dtype=float16", "train.dtype must be one of"),
        ("train.compile=true", "train.compile must be text, got True"),
        ("log.plot=1", "log.plot must be true or false, got 1"),
        ("data.text=3", "data.text must be text, got 3"),
        ("data.share=1", "data.share must be in [0, 1), got 1"),
        ("checkpoint.keep=0", "checkpoint.keep must be at least 1, got 0"),
        ("model.n_heads=3", "model.d_model must be divisible by n_heads"),
        ("model.norm=rsm", "model.norm must be one of ('layer', 'rms'), got 'rsm'"),
        ("steps=3", "--set wants section.key=value, got 'steps=3'"),
        ("train.steps", "--set wants section.key=value, got 'train.steps'"),
    ],
)
def test_bad_choice_is_named(change, said):
    with pytest.raises(ConfigError) as caught:
        read_config("tiny", [change])
    assert said in str(caught.value)


def test_changes_are_toml_or_text():
    made = read_config("tiny", ["train.peak=1", "train.dtype=float32", "data.text=a b"])
    assert (made.train.peak, made.train.dtype, made.data.text) == (1, "float32", "a b")
    assert read_config("tiny", ['train.dtype="float32"']).train.dtype == "float32"


def test_files_that_are_no_configuration(tmp_path):
    file = tmp_path / "c.toml"
    for text, said in {
        "[train": "is no TOML file",
        "model = 3": r"model must be a section \[model\], got 3",
        "[model]\nd_model = 8": r"\[model\] must set .*max_len",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_config(str(file))
    with pytest.raises(ConfigError, match=r"neither a file nor one of the presets"):
        read_config("nothing")


def test_what_may_change_when_a_run_goes_on():
    old = read_config("tiny")
    assert changed_keys(old, old) == []
    free = with_changes(
        PRESETS["tiny"], ["train.steps=9", "train.device=cpu", "log.every=3"]
    )
    said = changed_keys(free, old)
    assert said[0] == "train.steps = 9 (was 200)" and len(said) == 3
    for change in ("train.seed=1", "model.d_model=64", "train.batch=3", "data.share=0"):
        with pytest.raises(ConfigError, match=change.split("=")[0]):
            changed_keys(read_config("tiny", [change]), old)


# ------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped: its last checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(config(folder), folder / "run") == 0
    return folder / "run" / LAST


def test_a_run_leaves_what_it_says(whole):
    run = whole.parent
    found = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert {"config.toml", "metrics.csv", LAST, "step-000009"} <= found
    assert len(checkpoints(run)) <= 3  # two, and the best
    assert {path.name for path in whole.iterdir()} == {
        "config.toml",
        "model.json",
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "SHA256SUMS",
        "state.json",
        "tokenizer.json",
    }
    assert read_config(str(run / "config.toml")) == read_config(
        str(whole / "config.toml")
    )
    told = rows(run)
    assert [row["step"] for row in told] == [str(n) for n in range(1, 13)]
    assert [bool(row["valid"]) for row in told] == [
        n in (5, 10, 12) for n in range(1, 13)
    ]
    assert float(told[0]["rate"]) == pytest.approx(1e-3)  # 3e-3 after three steps
    assert float(told[-1]["rate"]) == pytest.approx(3e-4)
    assert int(told[-1]["tokens"]) == 12 * 4 * 16
    assert json.loads((whole / "state.json").read_text())["step"] == 12
    columns = read_metrics(run)
    assert columns["loss"][-1] < columns["loss"][0]
    assert math.isnan(columns["valid"][0])


def test_the_best_is_kept(tmp_path, monkeypatch):
    """Validation gets worse: the early checkpoint stays beside the newest."""
    c = config(tmp_path, "log.valid_every=3", "checkpoint.keep=1")
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(Run, "judge", lambda run: next(losses))
    train(c, tmp_path / "run")
    kept = [path.name for path in checkpoints(tmp_path / "run")]
    assert kept == ["step-000006", LAST]
    state = json.loads((tmp_path / "run" / LAST / "state.json").read_text())
    assert state["best"] == [6, 1.0]


def begin(c):
    """A run before its first step."""
    return Run(c, read_corpus(c))


def stop_after(monkeypatch, step):
    """Kill a run in this process after so many steps, without a last checkpoint."""
    real = Run.update

    def update(run):
        if run.step == step:
            raise SystemExit("killed")
        return real(run)

    monkeypatch.setattr(Run, "update", update)


@pytest.mark.parametrize("step", [2, 3, 5, 7, 11])
def test_a_killed_run_ends_the_same(tmp_path, monkeypatch, whole, step):
    c = config(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, step)
        train(c, tmp_path / "run")
    torch.manual_seed(99)  # another process would not have this one's either
    saved = checkpoints(tmp_path / "run")
    assert len(saved) == min(step // 3, 2)
    train(c, tmp_path / "run", saved[-1] if saved else None)
    same_end(tmp_path / "run" / LAST, whole)


def test_resume_into_the_next_epoch(tmp_path, monkeypatch):
    """A text so short that the order is drawn anew on the way."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    c = config(tmp_path, text=runs.TEXT[:350])
    train(c, straight)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 10)
        train(c, killed)
    train(c, killed, find_checkpoint(killed))
    same_end(killed / LAST, straight / LAST)
    assert json.loads((killed / LAST / "state.json").read_text())["epoch"] > 0


def test_state_is_all_that_matters(tmp_path):
    """After ``restore`` every part equals the run's that saved."""
    c = config(tmp_path)
    run = begin(c)
    for _ in range(5):
        run.update()
    folder = save(run, tmp_path / "run")
    drawn = torch.rand(3)
    other = begin(c)
    restore(other, folder)
    assert torch.equal(torch.rand(3), drawn), "the random state"
    assert (other.step, other.rate) == (run.step, run.rate)
    position = (run.windows.epoch, run.windows.window)
    assert (other.windows.epoch, other.windows.window) == position
    for name, value in optimizer_tensors(run.model, run.optimizer).items():
        assert torch.equal(optimizer_tensors(other.model, other.optimizer)[name], value)
    for name, value in run.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_changed_text_is_refused(tmp_path, whole):
    c = config(tmp_path, text=runs.TEXT.replace("dog", "cat"))
    with pytest.raises(RunError, match=r"the text has changed since"):
        train(c, tmp_path / "run", whole)


def test_accumulating_halves_equals_the_whole(tmp_path):
    c = config(tmp_path, "model.dropout=0", "train.batch=4")
    two = replace(c, train=replace(c.train, batch=2, accumulate=2))
    one, other = begin(c), begin(two)
    for _ in range(4):
        losses = [float(run.update()[0]) for run in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(
            other.model.state_dict()[name], value, atol=1e-4, rtol=0
        )


def test_validation_is_of_other_text(tmp_path):
    c = config(tmp_path, "data.share=0.25")
    corpus = read_corpus(c)
    whole_text = Path(c.data.text).read_text()
    assert corpus.tokenizer.decode([*corpus.train, *corpus.valid]) == whole_text
    assert len(corpus.valid) == int(len(whole_text) * 0.25)
    (tmp_path / "other.txt").write_text("the dog bites")
    c = config(tmp_path, f"data.valid={str(tmp_path / 'other.txt')!r}")
    corpus = read_corpus(c)
    assert corpus.tokenizer.decode(corpus.train) == whole_text
    assert corpus.tokenizer.decode(corpus.valid) == "the dog bites"


def test_judge_is_the_mean_over_all_windows(tmp_path):
    c = config(tmp_path, "log.valid_batches=1000")
    run = begin(c)
    length, valid_ids = run.windows.length, run.corpus.valid
    starts = range(0, len(valid_ids) - length, length)
    whole_ids = [
        torch.tensor(valid_ids[s : s + length + 1].astype(int)) for s in starts
    ]
    pairs = [(ids[None, :-1], ids[None, 1:]) for ids in whole_ids]
    assert run.judge() == pytest.approx(evaluate(run.model, pairs), abs=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient", "validation"])
def test_not_a_number_stops_the_run(tmp_path, monkeypatch, what):
    real, judge = Run.update, Run.judge

    def update(run):
        loss, norm = real(run)
        bad = torch.tensor(math.nan if what == "loss" else math.inf)
        if run.step == 5 and what == "loss":
            return bad, norm
        return (loss, bad) if run.step == 5 and what == "gradient" else (loss, norm)

    monkeypatch.setattr(Run, "update", update)
    if what == "validation":
        monkeypatch.setattr(Run, "judge", lambda run: judge(run) * math.nan)
    c = config(tmp_path)
    with pytest.raises(RunError) as caught:
        train(c, tmp_path / "run")
    said = str(caught.value)
    assert "at step 5, learning rate" in said and what in said
    assert f"transformer train --resume {tmp_path / 'run' / 'step-000003'}" in said
    assert "--set train.peak=0.001" in said
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-000003"]
    # the advice works: the run goes on, with the rate it names
    monkeypatch.undo()
    slower = replace(c, train=replace(c.train, peak=0.001))
    changed_keys(slower, c)
    train(slower, tmp_path / "run", find_checkpoint(tmp_path / "run"))


def test_a_real_divergence(tmp_path):
    with pytest.raises(RunError, match=r"at step \d+, .*begin again with a lower"):
        changes = ("train.peak=1e30", "train.clip=0", "checkpoint.every=100")
        train(config(tmp_path, *changes), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == []


def test_disk_is_full_while_training(tmp_path, monkeypatch):
    real = program.write_checkpoint

    def write(run, step, parts):
        if step == 6:
            parts = {**parts, "config.toml": lambda path: os.write(99999, b"")}
        return real(run, step, parts)

    monkeypatch.setattr(program, "write_checkpoint", write)
    with pytest.raises(RunError, match=r"step 6 was not written, earlier ones stay"):
        train(config(tmp_path), tmp_path / "run")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-000003"]
    assert not list((tmp_path / "run").glob(".*.new"))


@pytest.mark.parametrize(("length", "share"), [(3, 0.1), (17, 0.1), (60, 0.1), (0, 0)])
def test_too_short_a_text(tmp_path, length, share):
    text = "the dog bites the man. " * 9
    c = config(tmp_path, f"data.share={share}", text=text[:length])
    with pytest.raises(RunError, match=r"has \d+ tokens, and one .* needs 17|is empty"):
        train(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_window_is_enough(tmp_path):
    c = config(tmp_path, "data.share=0", text=runs.TEXT[:17])
    assert train(c, tmp_path / "run") == 0
    assert all(row["valid"] == "" for row in rows(tmp_path / "run"))


def test_two_processes_in_one_folder(tmp_path):
    with program.locked(tmp_path), pytest.raises(RunError, match=r"another process"):
        train(config(tmp_path), tmp_path)


def test_metrics_are_cut_where_the_checkpoint_stands(tmp_path):
    metrics = program.Metrics(tmp_path, 0, 8, False)
    for step in range(1, 8):
        metrics.add(step, loss=1.5 * step, valid=None, rate=0.1, norm=1.0)
    metrics.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,9")  # the kill came in the middle of a row
    program.Metrics(tmp_path, 5, 8, False).close()
    assert [row["step"] for row in rows(tmp_path)] == list("12345")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2")
    program.Metrics(tmp_path, 9, 8, False).close()
    assert [row["step"] for row in rows(tmp_path)] == list("12345")


def test_tensorboard_and_plot(tmp_path, whole):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    c = config(tmp_path, "log.tensorboard=true", "log.plot=true")
    train(c, tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    want = [
        (int(r["step"]), pytest.approx(float(r["loss"]))) for r in rows(whole.parent)
    ]
    assert found == want
    assert (tmp_path / "run" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_without_tensorboard_and_matplotlib(tmp_path, monkeypatch, whole, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    c = config(tmp_path, "log.tensorboard=true", "log.plot=true")
    assert train(c, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert said.count("TensorBoard is not installed") == 1
    assert said.count("matplotlib is not installed") == 1
    same = rows(tmp_path / "run")
    assert same == rows(whole.parent)


@pytest.mark.parametrize("switch", ["dtype=bfloat16", "accumulate=3", "clip=0"])
def test_switches(tmp_path, switch):
    assert train(config(tmp_path, f"train.{switch}"), tmp_path / "run") == 0
    columns = read_metrics(tmp_path / "run")
    assert columns["loss"][-1] < columns["loss"][0]


def test_the_optimizer_is_fused_or_not(tmp_path, whole):
    """The same steps, to rounding."""
    changed = config(tmp_path, "train.fused=false")
    made = Run(changed, read_corpus(changed)).optimizer
    assert made.defaults["fused"] is False
    assert train(changed, tmp_path / "run") == 0
    losses = [read_metrics(run)["loss"] for run in (tmp_path / "run", whole.parent)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_compiled(tmp_path, whole):
    """Needs a C compiler; the same steps, to rounding."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    changes = ("train.compile=on", "model.dropout=0", "train.steps=6")
    assert train(config(tmp_path, *changes), tmp_path / "fast") == 0
    changes = ("train.compile=off", *changes[1:])
    assert train(config(tmp_path, *changes), tmp_path / "plain") == 0
    fast, plain = (read_metrics(tmp_path / name) for name in ("fast", "plain"))
    assert fast["loss"] == pytest.approx(plain["loss"], abs=1e-3)
    names = load_gpt(find_checkpoint(tmp_path / "fast")).state_dict()
    assert not any("_orig_mod" in name for name in names)


def test_device_that_is_not_here(tmp_path):
    with pytest.raises(RunError, match=r"there is no device 'nonsense' here"):
        train(config(tmp_path, "train.device=nonsense"), tmp_path / "run")


# --------------------------------------------------------------------------- writing


def test_only_whole_characters_are_shown():
    tokenizer = Tokenizer()
    text = "né 日本 😀!"
    shown = list(spell(tokenizer, tokenizer.encode(text)))
    assert "".join(shown) == text
    assert not any("\ufffd" in part for part in shown)
    assert all(len(part) <= 1 for part in shown)
    cut = list(spell(tokenizer, tokenizer.encode("日")[:2]))
    assert cut == ["", "", "\ufffd"]  # told at the end, not dropped
    assert "".join(spell(CharTokenizer("ab"), [1, 0])) == "ba"


@pytest.mark.parametrize("stop", ["END", "EEND", "aE", "x"])
def test_until(stop):
    text = "aEaEEENDbEND"
    want = text.split(stop)[0]
    for cut in range(1, 5):
        pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
        assert "".join(until(pieces, stop)) == want
    assert "".join(until(["aE", "N"], "END")) == "aEN"


def test_text_is_shown_as_it_comes():
    given = iter("abcE")
    shown = until(given, "END")
    assert [next(shown) for _ in range(3)] == ["a", "b", "c"]


def test_generation_follows_the_seed(whole):
    def write(seed, **more):
        return "".join(write_on(whole, "the ", 30, seed=seed, **more))

    assert write(1) == write(1) != write(2)
    assert write(1, temperature=0) == write(2, top_k=1)
    assert len(write(1)) == 30


def test_filling_is_never_written(tmp_path):
    c = config(tmp_path, "data.pad_to=512", "train.steps=1")
    train(c, tmp_path / "run")
    folder = find_checkpoint(tmp_path / "run")
    assert load_gpt(folder).config.vocab_size == 512
    text = "".join(write_on(folder, "the ", 100, seed=0))  # nearly untrained
    assert set(text) <= set(runs.TEXT)


# ----------------------------------------------------------------------- command line


def test_help_teaches():
    for words in ([], ["train"], ["generate"]):
        said = cli(*words, "--help").stdout
        assert re.search(r"Examples:|Begin like this:", said), words
        assert "transformer train --config" in said or "generate --checkpoint" in said
        assert max(map(len, said.splitlines())) <= 80
    assert "metrics.csv" in cli("train", "--help").stdout
    assert "[default: 0.8" in cli("generate", "--help").stdout


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(runs.TEXT, encoding="utf-8")
    return tmp_path


BEGIN = ["train", "--config", "tiny", "--data", "my.txt", *runs.sets()]


def test_train_again_resume_and_generate(here, whole):
    done = cli(*BEGIN)
    assert done.exit_code == 0, done.output
    assert "generate --checkpoint runs/tiny" in done.output
    same_end(here / "runs/tiny" / LAST, whole)
    before = (here / "runs/tiny/metrics.csv").read_bytes()
    again = cli(*BEGIN)
    assert again.exit_code == 0 and "is the end" in again.output
    assert (here / "runs/tiny/metrics.csv").read_bytes() == before
    more = cli("train", "--resume", "runs/tiny", "--set", "train.steps=14")
    assert "with train.steps = 14 (was 12)" in more.output
    assert len(rows(here / "runs/tiny")) == 14
    refused = cli("train", "--resume", "runs/tiny", "--set", "model.d_model=32")
    assert refused.exit_code == 2
    assert "begun with model.d_model = 16, and can't go on with 32" in refused.output
    other = cli(*BEGIN, "--set", "train.seed=5")
    assert other.exit_code == 2 and "train.seed = 0" in other.output
    wrote = [
        cli("generate", "--checkpoint", f"runs/tiny{end}", "--seed", "3", "--tokens", 9)
        for end in ("", "", "/step-000014")
    ]
    assert [w.exit_code for w in wrote] == [0] * 3
    assert wrote[0].stdout == wrote[1].stdout == wrote[2].stdout
    assert len(wrote[0].stdout) == 1 + 9 + 1


def test_resume_from_an_earlier_one(here, whole):
    assert cli(*BEGIN).exit_code == 0
    file = here / "runs/tiny" / LAST / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for words in (BEGIN, ["train", "--resume", "runs/tiny"]):
        failed = cli(*words)
        assert failed.exit_code == 1
        assert "optimizer.safetensors is truncated or changed" in failed.output
    advice = re.search(r"train --resume (\S+)", failed.output)[1]
    assert advice.endswith("step-000009")
    assert cli("train", "--resume", advice).exit_code == 0
    same_end(here / "runs/tiny" / LAST, whole)
    assert (here / "runs/tiny" / f"unused-{LAST}").is_dir()


def test_killed_before_its_first_checkpoint(here, monkeypatch, whole):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert cli(*BEGIN).exit_code == 1
    assert checkpoints(here / "runs/tiny") == [] and len(rows(here / "runs/tiny")) == 2
    assert cli("train", "--resume", "runs/tiny").exit_code == 0
    same_end(here / "runs/tiny" / LAST, whole)


def test_a_run_that_moved_goes_on(here, tmp_path_factory, monkeypatch):
    assert cli(*BEGIN, "--set", "train.steps=6").exit_code == 0
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(here / "runs/tiny", elsewhere / "mine")
    monkeypatch.chdir(elsewhere)
    done = cli("train", "--resume", "mine", "--set", "train.steps=8")
    assert done.exit_code == 0, done.output
    assert len(rows(elsewhere / "mine")) == 8


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["train", "--config", "tiny", "--data", "nope"],
            1,
            "nope: it is neither file",
        ),
        (["train", "--config", "tiny"], 2, "give --data"),
        (["train", "--data", "my.txt"], 2, "give --config"),
        (["train", "--config", "tine", "--data", "my.txt"], 2, "presets tiny, char"),
        (["train", "--resume", "."], 1, "holds no checkpoint"),
        (["train", "--resume", "x", "--config", "tiny"], 2, "--resume takes"),
        (["train", "--cnfig", "tiny"], 2, "No such option"),
        (["generate", "--checkpoint", "none"], 1, "none holds no checkpoint"),
        (["generate"], 2, "Missing option"),
        (["presets", "x"], 2, "there are tiny, char"),
    ],
)
def test_errors_are_one_line(here, words, code, said):
    done = cli(*words)
    assert done.exit_code == code
    assert said in done.output
    assert "Traceback" not in done.output
    assert not (here / "runs").exists()


def test_generate_refuses(whole):
    for words, code, said in (
        (("--prompt", "Ω"), 1, "character 'Ω'"),
        (("--prompt", ""), 1, "the prompt is empty"),
        (("--temperature", "-1"), 2, "temperature"),
        (("--top-p", "7"), 2, "top-p"),
        (("--repetition-penalty", "0"), 2, "repetition-penalty"),
        (("--seed", "-1"), 2, "seed"),
        (("--device", "meta"), 1, "no device 'meta' here, only cpu"),
    ):
        done = cli("generate", "--checkpoint", whole, *words)
        assert done.exit_code == code, words
        assert said in done.stderr and not done.stdout, words


def test_memory_that_is_full(here, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Run, "update", full)
    done = cli(*BEGIN)
    assert done.exit_code == 1 and "halve train.batch" in done.output


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_ctrl_c_saves(here, whole, number, code):
    """A real signal to a real process: the step is finished, saved, and goes on."""
    words = [*BEGIN, "--set", "train.steps=100000", "--set", "train.shape=constant"]
    words += ["--set", "checkpoint.every=90000"]
    process = subprocess.Popen(
        runs.command(*words),
        cwd=here,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        file = here / "runs/tiny/metrics.csv"
        ends = time.monotonic() + 100
        while not (file.exists() and file.read_bytes().count(b"\n") > 5):
            assert time.monotonic() < ends and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert b"go on with: transformer train --resume runs/tiny" in out
    assert b"Traceback" not in err
    (saved,) = checkpoints(here / "runs/tiny")
    step = int(saved.name.removeprefix("step-"))
    assert step >= 5
    # its end is that of a run which nobody stopped
    more = ["--set", f"train.steps={step + 3}"]
    assert cli("train", "--resume", "runs/tiny", *more).exit_code == 0
    assert cli(*words, *more, "--out", "whole").exit_code == 0
    ends = [load_gpt(find_checkpoint(Path(run))) for run in ("runs/tiny", "whole")]
    for name, value in ends[0].state_dict().items():
        assert torch.equal(ends[1].state_dict()[name], value)
    assert rows(here / "runs/tiny") == rows(here / "whole")


def test_second_ctrl_c_ends_at_once():
    usual = signal.getsignal(signal.SIGINT)
    with program.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is usual
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is usual


@pytest.mark.parametrize("name", ["typer", "tqdm", "numpy"])
def test_missing_extra_is_one_line(tmp_path, name):
    code = f"import sys; sys.modules[{name!r}] = None\n"
    code += "from transformer.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f'the program needs {name}, which is not installed: pip install ".[train]"'
    )
    assert "Traceback" not in done.stderr


def test_console_script_and_extra():
    project = tomllib.loads((book.ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["transformer"] == "transformer.__main__:main"
    extra = {
        re.split(r"[>=]", line)[0] for line in project["optional-dependencies"]["train"]
    }
    assert extra == {"matplotlib", "numpy", "tensorboard", "tqdm", "typer"}
    kept = {re.split(r"[>=]", line)[0] for line in project["dependencies"]}
    assert kept == {"einops", "regex", "safetensors", "torch"}


def test_the_package_itself_needs_none_of_them():
    code = "import sys, transformer, transformer.gpt\n"
    code += "print({'typer', 'tensorboard', 'transformer.program'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# ------------------------------------------------------------------ what users do to it


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """The loss is looked at before the update, the weights after it."""
    c = config(tmp_path, "train.peak=1e38", "train.warmup=0", "checkpoint.every=1")
    with pytest.raises(RunError, match=r"(nan|not finite) at step \d+"):
        train(c, tmp_path / "run")
    for checkpoint in checkpoints(tmp_path / "run"):
        assert all(p.isfinite().all() for p in load_gpt(checkpoint).parameters())


def test_a_closed_terminal_does_not_end_the_run(tmp_path, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(program.tqdm, "write", gone)
    assert train(config(tmp_path), tmp_path / "run") == 0


def test_no_terminal_at_all(here):
    """Output and errors closed, as a service may have them."""
    done = subprocess.run(
        ["bash", "-c", '"$@" >&- 2>&-', "-", *runs.command(*BEGIN)],
        env=runs.environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0 and (here / "runs/tiny" / LAST).exists()


@pytest.mark.parametrize("name", ["😀 ü.txt", 'quo"te.txt', "日本.txt"])
def test_any_printable_name(here, name):
    (here / "my.txt").rename(here / name)
    done = cli("train", "--config", "tiny", "--data", name, *runs.sets())
    assert done.exit_code == 0, done.output
    again = cli("train", "--resume", "runs/tiny", "--set", "train.steps=13")
    assert again.exit_code == 0 and "step-000013" in again.output


@pytest.mark.parametrize("name", ["\x7f.txt", "l\udce9.txt"])
def test_a_name_that_no_file_can_hold(here, name):
    done = cli("train", "--config", "tiny", "--data", name)
    assert done.exit_code == 2 and "no name of a text to be written down" in done.output


def test_texts_and_runs_in_one_folder(here):
    for steps in (12, 13):
        done = cli(
            "train", "--config", "tiny", "--data", ".", *runs.sets(),
            "--set", f"train.steps={steps}", "--set", "data.cache=runs/tokens",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    assert "step-000013" in done.output


def test_a_link_to_a_checkpoint(here, whole):
    copied = shutil.copytree(whole.parent, here / "run")
    (here / "latest").symlink_to(copied / LAST)
    done = cli("train", "--resume", "latest", "--set", "train.steps=13")
    assert done.exit_code == 0, done.output
    assert (copied / "step-000013").exists()


def test_a_copied_checkpoint_writes_and_is_not_resumed(here, whole):
    shutil.copytree(whole, here / "mine")
    assert cli("generate", "--checkpoint", "mine", "--tokens", "3").exit_code == 0
    done = cli("train", "--resume", "mine")
    assert done.exit_code == 2 and "mine is not in one" in done.output


def test_edited_choices_are_used(here, whole):
    copied = shutil.copytree(whole.parent, here / "run")
    file = copied / "config.toml"
    file.write_text(file.read_text().replace("steps = 12", "steps = 14"))
    done = cli("train", "--resume", "run")
    assert done.exit_code == 0 and "train.steps = 14 (was 12)" in done.output
    file.write_text(file.read_text().replace("batch = 4", "batch = 5"))
    done = cli("train", "--resume", "run")
    assert done.exit_code == 2 and "was begun with train.batch = 4" in done.output


@pytest.mark.parametrize("spoilt", ["\n", "junk\n", "\xff\xfe,1\n"])
def test_rows_that_are_none(here, whole, spoilt):
    copied = shutil.copytree(whole.parent, here / "run")
    with (copied / "metrics.csv").open("a", encoding="latin-1") as file:
        file.write(spoilt)
    done = cli("train", "--resume", "run", "--set", "train.steps=13")
    assert done.exit_code == 0, done.output
    assert [int(step) for step in read_metrics(copied)["step"]] == list(range(1, 14))


@pytest.mark.parametrize("name", ["$x^{$", "日本"])
def test_the_picture_never_ends_a_run(tmp_path, recwarn, name):
    changed = config(tmp_path, "log.plot=true")
    assert train(changed, tmp_path / name) == 0
    assert (tmp_path / name / "loss.png").stat().st_size > 1000
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_a_picture_that_is_missing_is_drawn(here, whole):
    copied = shutil.copytree(whole.parent, here / "run")
    done = cli("train", "--resume", "run", "--set", "log.plot=true")
    assert done.exit_code == 0 and (copied / "loss.png").exists()


def test_hints_can_be_pasted(here):
    done = cli(*BEGIN, "--out", "a b")
    assert "generate --checkpoint 'a b'" in done.output


def test_choices_that_are_no_choices(here):
    model = "[model]\nd_model = 8\nn_heads = 2\nn_layers = 1\nmax_len = 8\n"
    (here / "odd.toml").write_text("train = 5\n" + model)
    for words, said in (
        (["--config", "odd.toml", "--set", "train.steps=3"], "section [train]"),
        (["--config", "."], "can't be read: Is a directory"),
        (["--config", "tiny", "--set", f"train.seed={10**30}"], "train.seed must be"),
        (["--config", "tiny", "--set", f"train.peak={10**400}"], "train.peak must be"),
        (["--config", "tiny", "--set", "model.rotary_base=-3"], "rotary_base must be"),
    ):
        done = cli("train", "--data", "my.txt", *words)
        assert done.exit_code == 2 and said in " ".join(done.output.split()), words


def test_a_validation_text_that_is_too_short_is_named(tmp_path):
    (tmp_path / "valid.txt").write_text("the dog")
    with pytest.raises(RunError, match="the text to validate on has 7 tokens"):
        train(config(tmp_path, f"data.valid={str(tmp_path / 'valid.txt')!r}"), tmp_path)


def test_which_text_has_changed(here, whole):
    copied = shutil.copytree(whole.parent, here / "run")
    (here / "valid.txt").write_text(runs.TEXT)
    words = ("--valid", "valid.txt", "--set", "train.steps=13")
    done = cli("train", "--resume", copied, *words)
    assert done.exit_code == 1
    assert "the text to validate on has changed" in " ".join(done.output.split())
