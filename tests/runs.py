"""A training run that takes a second, for the tests of the program."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import transformer
from transformer.settings import read_config

TEXT = "".join(f"line {n}: the dog bites the man {n * n}.\n" for n in range(200))
SMALL = [
    "model.d_model=16",
    "model.max_len=16",
    "model.dropout=0.1",
    "train.steps=12",
    "train.warmup=3",
    "train.batch=4",
    "log.every=1",
    "log.valid_every=5",
    "log.valid_batches=2",
    "log.tensorboard=false",
    "log.plot=false",
    "checkpoint.every=3",
]
LAST = "step-000012"


def config(folder: Path, *changes: str, text: str = TEXT):
    """A configuration of the small run, its text written into a folder."""
    file = folder / "text.txt"
    if not file.exists():
        file.write_text(text, encoding="utf-8")
    where = [f"data.text={str(file)!r}", f"data.cache={str(folder / 'tokens')!r}"]
    return read_config("tiny", [*SMALL, *where, *changes])


def sets(*changes: str) -> list[str]:
    """The small run's choices for the command line."""
    return [word for change in (*SMALL, *changes) for word in ("--set", change)]


def command(*words: object) -> list[str]:
    """The program's command line."""
    return [sys.executable, "-m", "transformer", *map(str, words)]


def environment() -> dict[str, str]:
    """One thread, as in all tests, and the package that this process has."""
    home = Path(transformer.__file__).parents[1]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(home)}


def call(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run the program to its end."""
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True
    )


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the one column that tells of time."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in found]


def same_end(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same bytes."""
    names = ("model", "optimizer", "random")
    for name in [f"{name}.safetensors" for name in names] + ["state.json"]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert rows(one.parent) == rows(other.parent)
