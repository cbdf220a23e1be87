"""The program: train a model on a text, and let it write.

Chapter 24 of Transformers, Matrix by Matrix.
Made from notebooks/24_program.ipynb by tools/export.py: edit the notebook.
"""

import codecs
import csv
import fcntl
import io
import itertools
import json
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Self

import torch
import typer
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from transformer.checkpoint import (
    SUMS,
    Part,
    check_checkpoint,
    checkpoints,
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
from transformer.corpus import (
    OURS,
    AnyTokenizer,
    Batch,
    Ids,
    RunError,
    Text,
    Windows,
    check_length,
    held_out,
    load_tokenizer,
    make_tokenizer,
    mark,
    sweep,
    tokenise,
    whole_file,
)
from transformer.generation import stream
from transformer.gpt import GPT
from transformer.schedule import set_rate
from transformer.settings import (
    PRESETS,
    Config,
    ConfigError,
    changed_keys,
    read_config,
)
from transformer.tokens import CharTokenizer
from transformer.training import evaluate, make_optimizer, train_step

__all__ = [
    "COLUMNS",
    "Corpus",
    "Metrics",
    "Run",
    "Stop",
    "find_checkpoint",
    "finite",
    "generate_command",
    "locked",
    "pick_device",
    "pick_dtype",
    "plot",
    "presets_command",
    "read_corpus",
    "read_metrics",
    "restore",
    "save",
    "say",
    "settled",
    "spell",
    "spoilt",
    "told",
    "train",
    "train_command",
    "until",
    "write_on",
]


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the accelerator if there is one."""
    here = torch.accelerator.current_accelerator(True)
    if name == "auto":
        return here or torch.device("cpu")
    known = ["cpu", here.type] if here else ["cpu"]
    if name.partition(":")[0] not in known:
        raise RunError(f"there is no device {name!r} here, only {', '.join(known)}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except RuntimeError as error:  # a number too high
        reason = str(error).splitlines()[0]
        raise RunError(f"there is no device {name!r} here: {reason}") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """What matrix products run in: bfloat16, or None for the weights' own type."""
    if name == "auto":
        can = device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        name = "bfloat16" if can else "float32"
    return torch.bfloat16 if name == "bfloat16" else None


@dataclass(frozen=True)
class Corpus:
    """What a run reads: ids to train on and to validate on, maybe none of these."""

    tokenizer: AnyTokenizer
    train: Ids
    valid: Ids
    fingerprint: str  # of the text, or of both texts


def read_corpus(config: Config, checkpoint: Path | None = None) -> Corpus:
    """Tokenise what ``config`` names, unless that is done, with a new tokenizer.

    A run that goes on from a ``checkpoint`` keeps the tokenizer it has there. Raises
    RunError when its text is another one by now.
    """
    data, cache = config.data, Path(config.data.cache)
    if not data.text:
        raise ConfigError("no text to train on: give --data, or data.text in the file")
    text, other = Text(data.text), Text(data.valid)
    fingerprint = " ".join(t.fingerprint for t in (text, other)[: 1 + bool(data.valid)])
    if checkpoint:
        about = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        if about["text"] != fingerprint:
            same = about["text"].split()[0] == text.fingerprint
            what = "the text to validate on" if same else "the text"
            raise RunError(
                f"{what} has changed since {checkpoint} was written: give the old one, "
                "or another --out for a new run"
            )
        tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    else:
        tokenizer = make_tokenizer(text, data.tokenizer, data.vocab_size, cache)
    ids = tokenise(text, tokenizer, cache)  # (N,)
    if data.valid:
        return Corpus(tokenizer, ids, tokenise(other, tokenizer, cache), fingerprint)
    cut = len(ids) - int(len(ids) * data.share)
    return Corpus(tokenizer, ids[:cut], ids[cut:], fingerprint)


class Run:
    """A run between two steps: all that the next step depends on.

    As it begins it is a function of its arguments alone. Raises RunError for a model
    that can't be built, a device that isn't there and ids too few for a window.
    """

    def __init__(self, config: Config, corpus: Corpus) -> None:
        c = config.train
        self.config, self.corpus = config, corpus
        self.device = pick_device(c.device)
        self.dtype = pick_dtype(c.dtype, self.device)
        torch.manual_seed(c.seed)
        try:
            model = GPT(config.gpt(corpus.tokenizer.vocab_size))
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None
        self.model = model.to(self.device)
        self.compiled: Any = self.model
        if c.compile == "on" or (c.compile == "auto" and self.device.type != "cpu"):
            self.compiled = torch.compile(self.model)
        first, second = c.betas
        self.optimizer = make_optimizer(
            self.model, c.peak, c.weight_decay, (first, second), c.fused
        )
        self.schedule = c.schedule()
        length = model.config.max_len
        self.windows = Windows(corpus.train, length, c.batch, c.seed)
        if len(corpus.valid):  # too few are told now, not at the first validation
            kind = "text" if config.data.valid else "share"
            check_length(corpus.valid, length, f"the {kind} to validate on")
        self.step = 0  # updates made
        self.loss = self.valid = math.nan  # of the last step, of the last validation
        self.best: tuple[int, float] | None = None  # a saved step, the lowest valid

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule(self.step)

    def on_device(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Move batches to where the model is, without waiting for a GPU."""
        for inputs, targets in batches:
            if self.device.type == "cuda":  # only pinned memory is copied meanwhile
                inputs, targets = inputs.pin_memory(), targets.pin_memory()
            yield (
                inputs.to(self.device, non_blocking=True),
                targets.to(self.device, non_blocking=True),
            )

    def update(self) -> tuple[Tensor, Tensor]:
        """Make one step. Returns its loss and its gradient's length, unread."""
        c = self.config.train
        set_rate(self.optimizer, self.rate)
        batches = self.on_device(itertools.islice(self.windows, c.accumulate))
        loss, norm = train_step(
            self.compiled, self.optimizer, list(batches), c.clip, self.dtype
        )
        self.step += 1
        return loss, norm

    def due(self, every: int) -> bool:
        """Tell whether a thing that is done so often is to be done now."""
        return self.step % every == 0 or self.step == self.config.train.steps

    def judge(self) -> float:
        """Validate: the mean loss on windows of other ids, always the same ones."""
        batch, batches = self.config.train.batch, self.config.log.valid_batches
        held = held_out(self.corpus.valid, self.windows.length, batch, batches)
        return evaluate(self.compiled, self.on_device(held), self.dtype)


def save(run: Run, folder: Path) -> Path:
    """Write the run's state, whole, as its newest checkpoint; remove old ones.

    Raises RunError, and writes nothing, when a weight isn't finite.
    """
    if not all(p.isfinite().all() for p in run.model.parameters()):
        raise RunError(spoilt("a weight is not finite", run, folder))
    about = {
        "step": run.step,
        "epoch": run.windows.epoch,
        "window": run.windows.window,
        "loss": run.loss,
        "valid": None if math.isnan(run.valid) else run.valid,
        "best": run.best,
        "text": run.corpus.fingerprint,
    }
    parts: dict[str, Part] = {
        "model.json": json.dumps(asdict(run.model.config), indent=2) + "\n",
        "model.safetensors": model_tensors(run.model),
        "optimizer.safetensors": optimizer_tensors(run.model, run.optimizer),
        "random.safetensors": random_tensors(run.device),
        "config.toml": run.config.toml(),
        "tokenizer.json": run.corpus.tokenizer.save,
        "state.json": json.dumps(about, indent=2) + "\n",
    }
    path = write_checkpoint(folder, run.step, parts)
    prune(folder, run.config.checkpoint.keep, run.best[0] if run.best else None)
    return path


def restore(run: Run, checkpoint: Path) -> None:
    """Bring a run that has just begun to the state that ``save`` wrote."""
    about = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    set_weights(run.model, load_file(checkpoint / "model.safetensors"))
    state = load_file(checkpoint / "optimizer.safetensors")
    set_optimizer(run.model, run.optimizer, state)
    set_random(load_file(checkpoint / "random.safetensors"), run.device)
    run.windows.seek(about["epoch"], about["window"])
    run.step, run.loss = about["step"], about["loss"]
    run.valid = math.nan if about["valid"] is None else about["valid"]
    run.best = tuple(about["best"]) if about["best"] else None


def say(words: str) -> None:
    """Tell the user something; a terminal that is gone doesn't end the run."""
    with suppress(OSError, ValueError, AttributeError):
        tqdm.write(words)


COLUMNS = ("step", "tokens", "loss", "valid", "rate", "norm", "tokens_per_second")


class Metrics:
    """The rows of ``metrics.csv``, one a line, and the same for TensorBoard.

    Opened at ``step``, it first drops the rows after it: the run that goes on from a
    checkpoint writes them again. ``tokens`` is how many a step reads.
    """

    def __init__(self, run: Path, step: int, tokens: int, tensorboard: bool) -> None:
        self.step, self.tokens, self.clock = step, tokens, time.perf_counter()
        path = run / "metrics.csv"
        kept = [",".join(COLUMNS) + "\n"]
        if path.exists():
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                for line in list(file)[1:]:
                    if not line.partition(",")[0].isdigit():
                        continue  # no row of ours
                    if not line.endswith("\n") or int(line.split(",")[0]) > step:
                        break  # half a line is the last thing a killed run writes
                    kept.append(line)
        with whole_file(path) as new:
            new.write("".join(kept).encode())
        self.file = path.open("a", encoding="utf-8", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(run / "tensorboard", purge_step=step + 1)
            except ImportError:
                say("TensorBoard is not installed: metrics.csv has it all")

    def add(self, step: int, **measured: float | None) -> float:
        """Write one row; what is None stays empty. Returns tokens a second."""
        now = time.perf_counter()
        speed = (step - self.step) * self.tokens / (now - self.clock)
        self.step, self.clock = step, now
        row = {"step": step, "tokens": step * self.tokens, **measured}
        row["tokens_per_second"] = round(speed)
        self.writer.writerow([row[name] for name in COLUMNS])
        self.file.flush()
        try:
            for name in COLUMNS[2:]:
                if self.board and row[name] is not None:
                    self.board.add_scalar(name, row[name], step)
        except OSError as error:
            say(f"TensorBoard's files are given up: {error}; metrics.csv has it all")
            self.board = None
        return speed

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.board:
            self.board.close()


def read_metrics(run: Path) -> dict[str, list[float]]:
    """Return the columns of ``metrics.csv``; NaN where nothing was measured."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in COLUMNS}


def plot(run: Path) -> None:
    """Draw the losses of ``metrics.csv`` into ``loss.png``, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed: no loss.png")
        return
    found = read_metrics(run)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["step"], found["loss"], lw=1, alpha=0.7, label="training")
    judged = [
        (step, loss)
        for step, loss in zip(found["step"], found["valid"], strict=True)
        if not math.isnan(loss)
    ]
    if judged:
        axes.plot(*zip(*judged, strict=True), marker=".", label="validation")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.set_title(run.resolve().name, parse_math=False)
    axes.legend(frameon=False)
    with whole_file(run / "loss.png") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter of the name that no font has
        figure.savefig(file, format="png", dpi=150)


class Stop:
    """Notes Ctrl-C and SIGTERM, so that the step at hand is finished first.

    A second one ends the program at once, as usual.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Self:
        both = (signal.SIGINT, signal.SIGTERM)
        self.usual = {number: signal.signal(number, self.note) for number in both}
        return self

    def note(self, number: int, frame: object) -> None:
        """Remember the signal, and let the next one through."""
        self.signal = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep a second process out of the run's folder. A killed one holds no lock."""
    mark(run)
    with (run / OURS).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another process is training in {run}") from None
        yield


def spoilt(what: str, run: Run, folder: Path) -> str:
    """What to say of a run whose numbers are no numbers any more."""
    peak = run.config.train.peak
    advice = f"begin again with a lower train.peak than {peak:g}, or a longer warm-up"
    if saved := checkpoints(folder):
        advice = (
            "the last good checkpoint stays; go on with a lower rate: transformer "
            f"train --resume {quote(str(saved[-1]))} --set train.peak={peak / 3:.1g}; "
            f"if its weights are spoilt already, from an earlier one, or {advice}"
        )
    rate = run.schedule(run.step - 1)
    return f"{what} at step {run.step}, learning rate {rate:.3g}; {advice}"


def finite(value: float | Tensor, what: str, run: Run, to: Path) -> float:
    """Read a number from the device. Raises RunError unless it is finite."""
    number = float(value)
    if math.isfinite(number):
        return number
    raise RunError(spoilt(f"the {what} is {number}", run, to))


def train(config: Config, folder: Path, checkpoint: Path | None = None) -> int:
    """Run from the start, or from a whole ``checkpoint``, to the last step.

    Writes ``config.toml``, ``metrics.csv``, ``loss.png`` and checkpoints into
    ``folder``. Returns 0 at the end, or the number of the signal that stopped the run
    after a checkpoint. Raises RunError when it can't go on; what was saved stays.
    """
    steps, log = config.train.steps, config.log
    run = Run(config, read_corpus(config, checkpoint))
    if checkpoint:
        restore(run, checkpoint)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        sweep(folder)
        set_aside(folder, run.step)
        with whole_file(folder / "config.toml") as file:
            file.write(config.toml().encode())
        tokens = run.windows.batch * run.windows.length * config.train.accumulate
        metrics = Metrics(folder, run.step, tokens, log.tensorboard)
        stack.callback(metrics.close)
        quiet = True if sys.stderr is None else None  # None: as the terminal is
        bar = tqdm(total=steps, initial=run.step, unit="step", disable=quiet)
        stack.callback(bar.close)
        stop, stopped = stack.enter_context(Stop()), 0
        run.model.train()
        while run.step < steps and not stopped:
            rate = run.rate
            loss, norm = run.update()
            bar.update()
            stopped = stop.signal  # a later one waits for the next step
            judge = run.due(log.valid_every) and len(run.corpus.valid) > 0
            row = run.due(log.every) or judge
            keep = run.due(config.checkpoint.every) or stopped
            if row or keep:  # only now is the device waited for
                run.loss = finite(loss, "loss", run, folder)
                length = finite(norm, "gradient", run, folder)
            if judge:
                run.valid = finite(run.judge(), "validation loss", run, folder)
                said = f"training loss {run.loss:.3f}, validation loss {run.valid:.3f}"
                say(f"step {run.step}: {said}")
            if row:
                valid = run.valid if judge else None
                speed = metrics.add(
                    run.step, loss=run.loss, valid=valid, rate=rate, norm=length
                )
                bar.set_postfix_str(f"loss {run.loss:.3f}, {speed:,.0f} tokens/s")
            if keep:
                metrics.sync()
                if judge and run.valid < (run.best[1] if run.best else math.inf):
                    run.best = run.step, run.valid
                save(run, folder)
    if log.plot and run.step == steps:
        plot(folder)
    return stopped


def spell(tokenizer: AnyTokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield text as it becomes readable: a character when its last byte is there."""
    if isinstance(tokenizer, CharTokenizer):
        yield from (tokenizer.vocab[i] for i in ids)
        return
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield from (decoder.decode(tokenizer.vocab[i]) for i in ids)
    yield decoder.decode(b"", final=True)


def until(texts: Iterable[str], stop: str) -> Iterator[str]:
    """Yield text up to ``stop``, holding back what may be its beginning."""
    held = ""
    for text in texts:
        held += text
        if stop in held:
            held = held[: held.index(stop)]
            break
        longest = range(min(len(stop) - 1, len(held)), 0, -1)
        keep = next((n for n in longest if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def write_on(
    checkpoint: Path,
    prompt: str,
    tokens: int,
    device: str = "auto",
    seed: int | None = None,
    stop: str = "",
    **choice: Any,
) -> Iterator[str]:
    """Hand out what the model of a checkpoint writes after the prompt, bit by bit.

    ``choice``: temperature, top_k and so on, as ``transformer.generation.stream``
    takes them. Raises RunError for a prompt that the tokenizer can't read.
    """
    if not prompt:
        raise RunError("the prompt is empty: give at least one character")
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    where = pick_device(device)
    model = load_gpt(checkpoint, tokenizer.vocab_size).to(where)
    generator = torch.Generator(where)
    generator.seed() if seed is None else generator.manual_seed(seed)
    try:
        ids = torch.tensor([tokenizer.encode(prompt)], device=where)  # (1, T)
        drawn = stream(model, ids, tokens, generator=generator, **choice)
    except ValueError as error:
        raise RunError(str(error)) from None
    texts = spell(tokenizer, (int(i) for i in drawn))
    return until(texts, stop) if stop else texts


app = typer.Typer(
    help="Train a GPT on a text, and let it write. The code is a book's, page by page.",
    epilog="""\b
Begin like this:
  transformer train --config tiny --data my.txt
  transformer generate --checkpoint runs/tiny --prompt "Once"
`python -m transformer` is the same command.""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def told() -> Iterator[None]:
    """End the program with one line for an error that its user can mend."""
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough
        raise
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None  # exit code 2
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (full or "allocate memory" in str(error)):
            raise
        said = "the memory is full: halve train.batch, double train.accumulate"
    except (RunError, OSError) as error:
        said = str(error)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    else:
        return
    typer.echo(f"error: {said}", err=True)
    raise typer.Exit(1)


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint, whole: the one at ``path``, or the newest of that run."""
    saved, whole = checkpoints(path), path.resolve()
    if whole in checkpoints(whole.parent) or (path / SUMS).is_file():
        saved = [path if path.name == whole.name else whole]  # not through a link
    if not saved:
        raise RunError(f"{path} holds no checkpoint, and is none")
    check_checkpoint(saved[-1])
    return saved[-1]


def settled(config: Config) -> Config:
    """Make the paths absolute, so that the run can go on from any folder."""

    def full(source: str) -> str:
        if not source.isprintable():
            raise ConfigError(f"no name of a text to be written down: {source!r}")
        named = source == "" or source.startswith("hf:")
        return source if named else str(Path(source).resolve())

    data = config.data
    data = replace(
        data, text=full(data.text), valid=full(data.valid), cache=full(data.cache)
    )
    if data.tokenizer not in ("char", "bpe"):
        data = replace(data, tokenizer=full(data.tokenizer))
    return replace(config, data=data)


@app.command(
    "train",
    epilog="""\b
Examples:
  transformer train --config char --data plays.txt
  transformer train --config char --data plays.txt --set train.steps=200
  transformer train --config mine.toml --data folder/ --out runs/second
  transformer train --config gpt2 --data hf:roneneldan/TinyStories
  transformer train --resume runs/char

\b
The run's folder holds:
  config.toml     all choices; may be edited before --resume
  metrics.csv     step, tokens, loss, validation loss, rate, gradient, speed
  loss.png        the same, drawn; tensorboard/ for TensorBoard
  step-000250/    a checkpoint: weights, optimiser, random state, position

A killed run goes on from its newest checkpoint, with --resume or with the command that
began it, and ends as if nothing had happened. Ctrl-C saves first.""",
)
def train_command(
    config: Annotated[
        str, typer.Option(metavar="NAME", help="A preset's name, or a TOML file.")
    ] = "",
    data: Annotated[
        str, typer.Option(metavar="TEXT", help="A file, a folder, or hf:NAME.")
    ] = "",
    valid: Annotated[
        str, typer.Option(metavar="TEXT", help="Validate on it, not on a share.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The run's. [default: runs/NAME]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with a run, or a checkpoint."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="train.steps=200, and so on."),
    ] = None,
) -> None:
    """Train a model, or go on training it."""
    changes = list(changes or [])
    with told():
        checkpoint = None
        if resume is not None:
            if config or out:
                raise ConfigError("--resume takes the run's own --config and --out")
            is_run = (resume / "config.toml").is_file() and not checkpoints(resume)
            if is_run and not (resume / "state.json").is_file():
                folder = source = resume  # killed before its first checkpoint
            else:
                checkpoint = source = find_checkpoint(resume)
                folder = checkpoint.parent
                if checkpoint not in (saved := checkpoints(folder)):
                    raise ConfigError(f"--resume wants a run; {resume} is not in one")
                if checkpoint == saved[-1] and (folder / "config.toml").is_file():
                    source = folder  # its choices may have been edited
            wanted = read_config(str(source / "config.toml"), changes)
        else:
            if not config:
                choices = ", ".join(PRESETS)
                raise ConfigError(
                    f"give --config FILE, or one of {choices}; or --resume"
                )
            folder = out or Path("runs") / Path(config).stem
            wanted = read_config(config, changes)
            if checkpoints(folder):
                checkpoint = find_checkpoint(folder)
        wanted = settled(
            replace(
                wanted,
                data=replace(
                    wanted.data,
                    text=data or wanted.data.text,
                    valid=valid or wanted.data.valid,
                ),
            )
        )
        if checkpoint:
            begun = read_config(str(checkpoint / "config.toml"))
            news = "".join(f", with {said}" for said in changed_keys(wanted, begun))
            if int(checkpoint.name.removeprefix("step-")) >= wanted.train.steps:
                if wanted.log.plot and not (folder / "loss.png").exists():
                    plot(folder)
                typer.echo(
                    f"{checkpoint} is the end{news}: --set train.steps=N with a larger "
                    "N goes further (the rate follows the longer curve), another --out "
                    "begins anew"
                )
                return
            typer.echo(f"going on from {checkpoint}{news}")
        stopped = train(wanted, folder, checkpoint)
        newest = checkpoints(folder)[-1]
        if stopped:
            typer.echo(
                f"saved {newest}; go on with: transformer train --resume "
                f"{quote(str(folder))}"
            )
            raise typer.Exit(128 + stopped)
        hint = f"transformer generate --checkpoint {quote(str(folder))}"
        typer.echo(f"saved {newest}; try: {hint}")


@app.command(
    "generate",
    epilog="""\b
Examples:
  transformer generate --checkpoint runs/char --prompt "To be"
  transformer generate --checkpoint runs/char/step-001500 --seed 1
  transformer generate --checkpoint runs/char --top-k 20 --stop "\\n\\n"
""",
)
def generate_command(
    checkpoint: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="A checkpoint, or a run: its newest."),
    ],
    prompt: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What it continues.", show_default="a line"),
    ] = "\n",
    tokens: Annotated[int, typer.Option(min=0, help="How many to write.")] = 300,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: always the most probable; 1: as learned.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=0, help="Only the k most probable. 0: all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Only the most probable that make up a share."),
    ] = 1.0,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Only those at least p times the first."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(min=0.1, max=10, help="Above 1: what was written is less likely."),
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="The same seed, the same text."),
    ] = None,
    stop: Annotated[
        str, typer.Option(metavar="TEXT", help="End before it; \\n is a line's end.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "auto",
) -> None:
    """Let a trained model write on, as it thinks."""
    with told():
        texts = write_on(
            find_checkpoint(checkpoint),
            prompt,
            tokens,
            device,
            seed,
            stop.replace("\\n", "\n"),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        if isinstance(sys.stdout, io.TextIOWrapper):  # show what the terminal can
            sys.stdout.reconfigure(errors="replace")
        for text in itertools.chain([prompt], texts, ["\n"]):
            sys.stdout.write(text)
            sys.stdout.flush()


@app.command("presets")
def presets_command(
    name: Annotated[str, typer.Argument(help="Print this one.")] = "",
) -> None:
    """List the presets, or print one as a file to edit.

    For example: transformer presets char > mine.toml
    """
    with told():
        if name:
            if name not in PRESETS:
                raise ConfigError(f"no preset {name}: there are {', '.join(PRESETS)}")
            typer.echo(read_config(name).toml(), nl=False)
            return
        for each in PRESETS:
            config = read_config(each)
            letters = config.data.tokenizer == "char"  # about a hundred of them
            model = config.gpt(100 if letters else config.data.vocab_size)
            with torch.device("meta"):
                count = sum(p.numel() for p in GPT(model).parameters())
            size = f"{count / 1e6:.1f} million parameters"
            typer.echo(
                f"{each:8} {size}, {model.n_layers} layers, {model.d_model} wide, "
                f"{model.max_len} {config.data.tokenizer} tokens at once"
            )
