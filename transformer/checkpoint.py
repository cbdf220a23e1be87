"""The state of a run as a folder that is there whole or not at all.

Chapter 24 of Transformers, Matrix by Matrix.
Made from notebooks/24_program.ipynb by tools/export.py: edit the notebook.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from transformer.corpus import RunError, sync
from transformer.gpt import GPT, GPTConfig

__all__ = [
    "LAST",
    "SUMS",
    "check_checkpoint",
    "checkpoints",
    "fault",
    "load_gpt",
    "model_tensors",
    "optimizer_tensors",
    "prune",
    "random_tensors",
    "set_aside",
    "set_optimizer",
    "set_random",
    "set_weights",
    "sha256",
    "write_checkpoint",
]

SUMS = "SHA256SUMS"  # `sha256sum -c SHA256SUMS` checks a checkpoint by hand
LAST = "state.json"  # its last line: a list that was cut short is told from a whole one
# A file of tensors, of text, or what a function writes to a path.
Part = Mapping[str, Tensor] | str | Callable[[Path], object]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(run: Path, step: int, parts: Mapping[str, Part]) -> Path:
    """Write ``parts``, state.json last, into a new folder of ``run``: all or nothing.

    The folder is written under a temporary name. Each file is on the disk before the
    folder gets its name, ``step-000120``; so under such a name there is always a
    whole checkpoint, whenever the machine stops. Raises RunError, with nothing left
    behind and the older checkpoints as they were, when the disk takes no more.
    """
    final = run / f"step-{step:06d}"
    draft = run / f".{final.name}.{os.getpid()}.new"
    try:
        draft.mkdir(parents=True)
        for name, part in parts.items():
            if isinstance(part, str):
                (draft / name).write_text(part, encoding="utf-8")
            elif callable(part):
                part(draft / name)
            else:
                save_file(dict(part), draft / name)
        sums = [f"{sha256(draft / name)}  {name}\n" for name in parts]
        (draft / SUMS).write_text("".join(sums), encoding="utf-8")
        for path in [*draft.iterdir(), draft]:
            sync(path)
        if final.exists():  # only where nobody has called set_aside
            shutil.rmtree(final)
        draft.rename(final)
        sync(run)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the checkpoint of step {step} was not written, earlier ones stay: {error}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    names = (p for p in run.glob("step-*") if re.fullmatch(r"step-\d+", p.name))
    return sorted(names, key=lambda path: int(path.name.removeprefix("step-")))


def fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files; None when they are as written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} is missing or damaged"
    for name, digest in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is truncated or changed"
    return None if [*sums][-1:] == [LAST] else f"{SUMS} is missing or damaged"


def check_checkpoint(folder: Path) -> None:
    """Raise RunError unless a checkpoint is whole; the message says how to go on."""
    if (wrong := fault(folder)) is None:
        return
    others = reversed(checkpoints(folder.parent))
    good = next((p for p in others if p != folder and fault(p) is None), None)
    advice = (
        f"the newest good one is {good}: transformer train --resume {quote(str(good))}"
        if good
        else "there is no other good one: start again, with another --out"
    )
    raise RunError(f"the checkpoint {folder} is damaged: {wrong}; {advice}")


def prune(run: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the newest ``keep`` and the one of step ``best``."""
    for path in checkpoints(run)[:-keep]:
        if int(path.name.removeprefix("step-")) != best:
            gone = path.with_name(f".{path.name}.{os.getpid()}.new")
            path.rename(gone)  # half removed, it must not look like a checkpoint
            shutil.rmtree(gone)


def set_aside(run: Path, step: int) -> None:
    """Rename the checkpoints after ``step``: the run goes on from an earlier one."""
    for path in checkpoints(run):
        if int(path.name.removeprefix("step-")) > step:
            aside = path.with_name(f"unused-{path.name}")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)


def model_tensors(model: GPT) -> dict[str, Tensor]:
    """Return the weights by name; a table that is tied stands there once."""
    skip = model.tied[1] if model.tied else None
    return {name: t for name, t in model.state_dict().items() if name != skip}


def set_weights(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``model_tensors`` gave."""
    first, second = model.tied or ("", "")
    twice = {second: tensors[first]} if model.tied else {}
    model.load_state_dict({**tensors, **twice})


def load_gpt(folder: str | Path, vocab_size: int | None = None) -> GPT:
    """Read the GPT of a checkpoint, in eval mode on the CPU.

    With ``vocab_size`` the rows that fill the tables up beyond it are cut off. Raises
    RunError for a folder that is no whole checkpoint.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    choices = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    if vocab_size is not None:
        choices["vocab_size"] = vocab_size
        for name in tensors.keys() & {"embedding.weight", "head.weight"}:
            tensors[name] = tensors[name][:vocab_size]  # (V, D)
    model = GPT(GPTConfig(**choices))
    set_weights(model, tensors)
    return model.eval()


def optimizer_tensors(
    model: GPT, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return AdamW's state, ``weight/exp_avg`` and so on: tensors, no pickle."""
    return {
        f"{name}/{key}": value
        for name, weight in model.named_parameters()
        for key, value in optimizer.state[weight].items()
    }


def set_optimizer(
    model: GPT, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    kept: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, key = path.split("/")
        kept.setdefault(name, {})[key] = value
    names = {id(weight): name for name, weight in model.named_parameters()}
    order = [names[id(w)] for group in optimizer.param_groups for w in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    state = {number: kept[name] for number, name in enumerate(order)}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's random generators: the CPU's and the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_tensors`` gave, as far as this machine has the device."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)
