"""All choices of a run in one file, and the presets.

Chapter 24 of Transformers, Matrix by Matrix.
Made from notebooks/24_program.ipynb by tools/export.py: edit the notebook.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from transformer.corpus import RunError
from transformer.gpt import GPTConfig
from transformer.schedule import SHAPES, Schedule

__all__ = [
    "PRESETS",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LogConfig",
    "TrainConfig",
    "changed_keys",
    "check",
    "check_table",
    "option",
    "options",
    "read_config",
    "suggestion",
    "with_changes",
]


class ConfigError(RunError):
    """A configuration that can't be; the message names the key."""


def option(default: Any, words: str, free: bool = False) -> Any:
    """A field with its explanation; ``free``: it may change when a run goes on."""
    return field(default=default, metadata={"words": words, "free": free})


def check(name: str, value: Any, allowed: bool, wanted: str) -> None:
    """Raise ConfigError, naming the key, unless the value is allowed."""
    if not allowed:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, and how it becomes numbers."""

    text: str = option("", "a text file, a folder, or hf:NAME", free=True)
    valid: str = option("", "another text to validate on, instead of a share", True)
    share: float = option(0.1, "this share of the tokens, the last, validates")
    tokenizer: str = option("char", "char, bpe, or a tokenizer's file")
    vocab_size: int = option(1024, "tokens that bpe learns; char has its own number")
    pad_to: int = option(1, "the tables' rows are filled up to a multiple of this")
    cache: str = option("runs/tokens", "the folder where token files are kept", True)

    def __post_init__(self) -> None:
        check("data.share", self.share, 0 <= self.share < 1, "in [0, 1)")
        check("data.pad_to", self.pad_to, self.pad_to >= 1, "at least 1")
        check("data.vocab_size", self.vocab_size, self.vocab_size >= 256, "256 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are changed."""

    seed: int = option(0, "of weights, dropout and the order of the windows")
    steps: int = option(1000, "updates of the whole run", free=True)
    batch: int = option(16, "windows that go through the model at once")
    accumulate: int = option(1, "batches whose gradients make one update")
    peak: float = option(1e-3, "the highest learning rate", True)
    warmup: int = option(100, "updates until the rate is there")
    shape: str = option("cosine", f"and then: {', '.join(SHAPES)}")
    floor: float = option(0.1, "where it falls to, as a share of the peak")
    betas: tuple[float, ...] = option((0.9, 0.95), "AdamW's two shares")
    weight_decay: float = option(0.1, "of the matrices")
    clip: float = option(1.0, "the longest gradient; 0: any", True)
    dtype: str = option("auto", "bfloat16, float32; auto: by the device")
    device: str = option("auto", "cpu, cuda, ...; auto: what is here", free=True)
    compile: str = option("auto", "on, off; auto: on, except on the CPU", free=True)
    fused: bool = option(True, "AdamW in one kernel, where the device has it")

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "batch", "accumulate"):
            value = getattr(self, name)
            check(f"train.{name}", value, value >= 1, "at least 1")
        check("train.seed", self.seed, 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        check("train.clip", self.clip, self.clip >= 0, "at least 0")
        decay = self.weight_decay
        check("train.weight_decay", decay, decay >= 0, "at least 0")
        pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check("train.betas", list(self.betas), pair, "two numbers in [0, 1)")
        dtypes, switch = ("auto", "bfloat16", "float32"), ("auto", "on", "off")
        check("train.dtype", self.dtype, self.dtype in dtypes, f"one of {dtypes}")
        check("train.compile", self.compile, self.compile in switch, f"one of {switch}")
        try:
            self.schedule()
        except ValueError as error:
            raise ConfigError(f"train.{error}") from None

    def schedule(self) -> Schedule:
        """The learning rate of each update."""
        names = ("peak", "steps", "warmup", "shape", "floor")
        return Schedule(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is measured, and where it is written."""

    every: int = option(10, "steps between two rows of metrics.csv", free=True)
    valid_every: int = option(250, "steps between two validations", free=True)
    valid_batches: int = option(20, "batches of a validation", free=True)
    tensorboard: bool = option(True, "write TensorBoard's files too", free=True)
    plot: bool = option(True, "draw loss.png at the end", free=True)

    def __post_init__(self) -> None:
        for name in ("every", "valid_every", "valid_batches"):
            value = getattr(self, name)
            check(f"log.{name}", value, value >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved."""

    every: int = option(250, "steps between two checkpoints", free=True)
    keep: int = option(2, "the newest so many are kept, and the best", free=True)

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            check(f"checkpoint.{name}", value, value >= 1, "at least 1")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say which known name is the nearest, or which there are."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def check_table(section: str, table: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return a section's values; ConfigError for an unknown name or a wrong type."""
    if not isinstance(table, dict):
        raise ConfigError(f"{section} must be a section [{section}], got {table!r}")
    for name, value in table.items():
        if name not in kinds:
            advice = suggestion(f"{section}.{name}", (f"{section}.{k}" for k in kinds))
            raise ConfigError(f"unknown key {section}.{name}: {advice}")
        fits, wanted = _KINDS[kinds[name]]
        check(f"{section}.{name}", value, fits(value), wanted)
    return table


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # True is no number


# What a key of this type takes from a TOML file, in a function and in words.
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: type(value) is bool, "true or false"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (_is_number, "a number"),
    str: (lambda value: type(value) is str, "text"),
    tuple[float, ...]: (
        lambda value: isinstance(value, list | tuple) and all(map(_is_number, value)),
        "a list of numbers",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All choices of a run: one TOML file, one section a field.

    ``model`` holds the choices of GPTConfig but ``vocab_size``, which the tokenizer
    gives. Raises ConfigError, naming the key, for what is unknown or can't be.
    """

    model: dict[str, Any]
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> Self:
        """Make it from plain tables, each choice of the model filled in."""
        kinds = get_type_hints(GPTConfig)
        del kinds["vocab_size"]
        sections = get_type_hints(cls)
        for name in tables:
            if name not in sections:
                raise ConfigError(
                    f"unknown section {name}: {suggestion(name, sections)}"
                )
        given = check_table("model", tables.get("model", {}), kinds)
        try:
            model = asdict(GPTConfig(vocab_size=1, **given))
        except ValueError as error:
            raise ConfigError(f"model.{error}") from None
        except TypeError as error:  # a choice that has no default
            missing = str(error).rpartition(": ")[2]
            raise ConfigError(f"[model] must set {missing}") from None
        del model["vocab_size"], sections["model"]
        rest = {
            name: kind(**check_table(name, tables.get(name, {}), get_type_hints(kind)))
            for name, kind in sections.items()
        }
        return cls(model=model, **rest)

    def gpt(self, vocab_size: int) -> GPTConfig:
        """The model's own configuration, the vocabulary filled up."""
        rows = -(-vocab_size // self.data.pad_to) * self.data.pad_to
        return GPTConfig(vocab_size=rows, **self.model)

    def flat(self) -> dict[str, Any]:
        """Return every value by its full name: ``train.steps``."""
        return {
            f"{section}.{name}": list(value) if isinstance(value, tuple) else value
            for section, table in asdict(self).items()
            for name, value in table.items()
        }

    def toml(self) -> str:
        """Return the file that makes this configuration, each key explained."""
        known = options()
        lines = ["# One run. A key that is left out has its default."]
        section = ""
        for key, value in self.flat().items():
            here, _, name = key.partition(".")
            if here != section:
                section = here
                lines += ["", f"[{section}]"]
            line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
            words = f"  # {known[key].metadata['words']}" if key in known else ""
            lines.append(f"{line:<24}{words}".rstrip())
        return "\n".join(lines) + "\n"


def options() -> dict[str, Field[Any]]:
    """Return each key's field by its full name, the model's apart."""
    sections = {k: v for k, v in get_type_hints(Config).items() if k != "model"}
    return {
        f"{name}.{f.name}": f for name, kind in sections.items() for f in fields(kind)
    }


def changed_keys(new: Config, old: Config) -> list[str]:
    """Say what differs between a run's old configuration and the new one.

    Only keys that are ``free`` may: with them the saved state keeps its meaning.
    Raises ConfigError, naming the key, for any other.
    """
    known, before, said = options(), old.flat(), []
    for key, value in new.flat().items():
        if value == before[key]:
            continue
        if key not in known or not known[key].metadata["free"]:
            raise ConfigError(
                f"the run was begun with {key} = {before[key]!r}, and can't go on with "
                f"{value!r}: give the old value, or another --out for a new run"
            )
        said.append(f"{key} = {value!r} (was {before[key]!r})")
    return said


_BOOK = {"n_layers": 4, "n_heads": 4, "d_model": 128, "positions": "rotary"}
_BOOK_TRAIN = {"steps": 1500, "batch": 12, "peak": 3e-3, "betas": [0.9, 0.99]}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # A minute on a laptop: does it run at all?
    "tiny": {
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "max_len": 32}
        | {"positions": "rotary"},
        "train": {"steps": 200, "batch": 8, "peak": 3e-3, "warmup": 20},
        "log": {"valid_every": 50},
        "checkpoint": {"every": 50},
    },
    # The book's character model, chapter 12.
    "char": {"model": _BOOK | {"max_len": 64}, "train": _BOOK_TRAIN},
    # The same, which reads pieces of words.
    "bpe": {
        "model": _BOOK | {"max_len": 64},
        "data": {"tokenizer": "bpe", "vocab_size": 1024, "pad_to": 64},
        "train": _BOOK_TRAIN,
    },
    # GPT-2 small, 124 million parameters (Radford et al. 2019), half a million tokens
    # an update as in nanoGPT.
    "gpt2": {
        "model": {"n_layers": 12, "n_heads": 12, "d_model": 768, "max_len": 1024},
        "data": {"tokenizer": "bpe", "vocab_size": 50257, "pad_to": 64, "share": 0.01},
        "train": {"steps": 100_000, "batch": 16, "accumulate": 30, "peak": 6e-4}
        | {"warmup": 2000},
        "log": {"valid_every": 1000, "valid_batches": 100},
        "checkpoint": {"every": 1000},
    },
    # Llama's parts (Touvron et al. 2023), with shared keys and values, in small.
    "llama": {
        "model": {"n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "d_model": 512}
        | {"d_ff": 1408, "max_len": 512, "positions": "rotary", "norm": "rms"}
        | {"activation": "swiglu", "bias": False, "tied": False},
        "data": {"tokenizer": "bpe", "vocab_size": 8192, "pad_to": 64, "share": 0.02},
        "train": {"steps": 20_000, "batch": 32, "accumulate": 2, "warmup": 500},
        "log": {"valid_every": 500},
        "checkpoint": {"every": 500},
    },
}


def read_config(name: str, changes: Iterable[str] = ()) -> Config:
    """Read a preset by name, or a TOML file; then set ``section.key=value`` each.

    A value is TOML, ``0.1`` or ``true``; what is no TOML is text. Raises ConfigError.
    """
    if name in PRESETS:
        tables: dict[str, Any] = {k: dict(table) for k, table in PRESETS[name].items()}
    else:
        try:
            tables = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"no configuration {name}: neither a file nor one of the presets "
                f"{', '.join(PRESETS)}"
            ) from None
        except OSError as error:
            raise ConfigError(f"{name} can't be read: {error.strerror}") from None
        except ValueError as error:  # broken TOML or UTF-8
            raise ConfigError(f"{name} is no TOML file: {error}") from None
    return with_changes(tables, changes)


def with_changes(tables: Mapping[str, Any], changes: Iterable[str]) -> Config:
    """Make a Config of tables after ``section.key=value`` changes."""
    tables = dict(tables)
    for change in changes:
        key, equals, text = change.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and name):
            raise ConfigError(f"--set wants section.key=value, got {change!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            value = text.strip()
        table = tables.get(section, {})
        if isinstance(table, dict):  # else Config.of says what is wrong
            tables[section] = {**table, name: value}
    return Config.of(tables)
