"""A training run is killed twenty times, and ends as one that was never touched."""

import random
import signal
import subprocess
import time

import pytest
import runs

from transformer.checkpoint import checkpoints, fault

KILLS = 20
STEPS = 240
WORDS = ["train", "--config", "tiny", "--data", "my.txt"]
WORDS += runs.sets(
    f"train.steps={STEPS}",
    "checkpoint.every=2",
    "log.valid_every=7",
    "model.d_model=32",
    "model.max_len=32",
)


def count(file):
    """The whole rows that are on the disk."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    (tmp_path / "my.txt").write_text(runs.TEXT, encoding="utf-8")
    done = runs.call(*WORDS, "--out", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    draw = random.Random(24)
    run = tmp_path / "killed"
    file = run / "metrics.csv"
    within = writing = 0
    for number in range(KILLS):
        before = count(file)
        process = subprocess.Popen(
            runs.command(*WORDS, "--out", "killed"),
            cwd=tmp_path,
            env=runs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            if number % 5 == 4:  # while it starts, reads the checkpoint, cuts the rows
                time.sleep(draw.uniform(0.3, 3.0))
            else:
                # Rows after the cut are the run's own. Steps take milliseconds: wait
                # for a few more of them, then for a moment inside one.
                wanted, ends = before + draw.randint(1, 6), time.monotonic() + 120
                while count(file) < wanted and process.poll() is None:
                    assert time.monotonic() < ends
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            err = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, err.decode()
        within += count(file) > before
        writing += bool(list(run.glob(".step-*.new")))
        assert all(fault(path) is None for path in checkpoints(run))
    assert within >= KILLS // 2, f"only {within} kills fell within the run"

    done = runs.call("train", "--resume", "killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = f"step-{STEPS:06d}"
    runs.same_end(run / last, tmp_path / "whole" / last)
    print(f"{within} kills within the run, {writing} while a checkpoint was written")
    left = {path.name for path in run.glob(".*")}
    assert left == {".transformer"}, "debris"
