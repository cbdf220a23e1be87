"""The whole model: ids in, a score for every next word out, and a loop that writes.

Chapter 12 of Transformers, Matrix by Matrix.
Made from notebooks/12_gpt.ipynb by tools/export.py: edit the notebook.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from transformer.block import BlockConfig, Stack, make_cache
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding, check_ids
from transformer.masks import padding_mask
from transformer.multi_head import Cache, places_of
from transformer.output_head import OutputHead, check_temperature, sample
from transformer.positions import Rotary, make_positions

__all__ = ["GPT", "GPTConfig", "Loadable", "check_batch", "generate", "shift"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """A decoder-only model's choices; the defaults are GPT-2's (Radford et al. 2019).

    Beside the choices of a block: ``vocab_size`` V; ``max_len``, the most positions
    read at once; ``positions`` "learned", "sinusoidal", "rotary" or "none";
    ``rotary_base``, the base of rotary's angles. ``tied`` shares one table between
    embedding and head. ``scale_embeddings`` multiplies embeddings by sqrt(D). Raises
    ValueError for a choice that can't be built; an odd width for "sinusoidal" or
    "rotary" only GPT itself refuses.
    """

    vocab_size: int
    max_len: int
    positions: str = "learned"
    rotary_base: float = 10_000.0
    tied: bool = True
    scale_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.rotary_base > 0:
            raise ValueError(f"rotary_base must be above 0, got {self.rotary_base}")
        known = ("learned", "sinusoidal", "rotary", "none")
        if self.positions not in known:
            raise ValueError(
                f"positions must be one of {known}, got {self.positions!r}"
            )


def check_batch(name: str, ids: Tensor, max_len: int, mask: Tensor | None) -> None:
    """Raise ValueError unless ids are ``(B, T)``, short enough, and mask fits them."""
    if ids.ndim != 2:
        raise ValueError(f"{name} must have shape (B, T), got {tuple(ids.shape)}")
    if ids.shape[1] > max_len:
        raise ValueError(
            f"{name} must hold at most max_len = {max_len} positions, "
            f"got {ids.shape[1]}"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"mask must have the shape of {name}, {tuple(ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )


class Loadable(nn.Module):
    """A model that is read from a folder and written to one, its tables kept tied.

    ``tied`` names two parameters that are one, the embedding's first.
    """

    tied: tuple[str, str] | None = None

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; a tied model stays tied, and refuses two different tables."""
        names = self.tied or ()
        tables = [state_dict[name] for name in names if name in state_dict]
        if len(tables) == 2 and not torch.equal(*tables):
            raise ValueError(f"the model is tied, but {' and '.join(names)} differ")
        report = super().load_state_dict(state_dict, strict, assign)
        if self.tied:  # to_empty and assign=True make two parameters of one
            table, (owner, _, name) = self.tied[0], self.tied[1].rpartition(".")
            setattr(self.get_submodule(owner), name, self.get_parameter(table))
        return report

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a model of this class from a folder or from the hub, by name.

        Raises what ``transformer.pretrained.from_pretrained`` raises (chapter 19).
        """
        from transformer.pretrained import from_pretrained  # needs every family

        model = from_pretrained(folder)
        if not isinstance(model, cls):
            raise ValueError(
                f"folder must hold a {cls.__name__}, got a {type(model).__name__}"
            )
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors as Hugging Face names them."""
        from transformer.pretrained import save_pretrained

        save_pretrained(self, folder)


class GPT(Loadable):
    """A decoder-only Transformer (Radford et al. 2019, section 2.3).

    ids ``(B, T)`` -> logits ``(B, T, V)``. Row t has seen the ids up to t, and scores
    the id at t + 1.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model, c.scale_embeddings)
        self.positions = make_positions(c.positions, c.max_len, c.d_model)
        rotary = None
        if c.positions == "rotary":  # turns queries and keys, adds nothing
            rotary = Rotary(c.max_len, c.d_model // c.n_heads, c.rotary_base)
        self.dropout = Dropout(c.dropout)
        self.stack = Stack(c, rotary)
        table = self.embedding.weight if c.tied else None
        self.head = OutputHead(c.d_model, c.vocab_size, table)
        self.tied = ("embedding.weight", "head.weight") if c.tied else None
        self._init_weights()

    def _init_weights(self) -> None:
        """Start small; the matrices that write into the stream start smaller still."""
        for name, weight in self.named_parameters():
            if name.startswith("stack") and weight.ndim == 2:
                writes = name.endswith(("attention.output.weight", "down.weight"))
                share = math.sqrt(2 * self.config.n_layers) if writes else 1.0
                nn.init.normal_(weight, std=0.02 / share)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def read(
        self, ids: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """What ``forward`` scores: the rows of the stream at its end, ``(B, T, D)``."""
        check_batch("ids", ids, self.config.max_len, mask)
        keep = None if mask is None else padding_mask(mask)  # (B, 1, 1, T)
        places: int | Tensor = 0 if mask is None else places_of(mask)  # (B, T)
        if cache is not None:  # the ids continue what it has read
            places, keep = cache.step(ids.shape[1], mask)  # (B, T), (B, 1, T, S)
        x = self.dropout(self.positions(self.embedding(ids), places))  # (B, T, D)
        return self.stack(x, keep, causal=cache is None, cache=cache)  # (B, T, D)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Score the next id at every position.

        ids ``(B, T)`` integers; mask ``(B, T)`` boolean, True = real token, for batches
        padded on either side -> logits ``(B, T, V)``. With a ``cache`` the ids continue
        the text that it holds, and join it. Raises ValueError for a wrong shape or more
        than ``max_len`` positions, TypeError for a wrong type, IndexError for an id
        outside the vocabulary.
        """
        return self.head(self.read(ids, mask, cache))  # (B, T, V)

    def new_cache(self, batch: int, room: int = 0) -> Cache:
        """An empty cache for ``batch`` texts of up to ``room`` ids, max_len where 0.

        Raises ValueError for more room than ``max_len``: there are no positions.
        """
        c = self.config
        return make_cache(c, batch, room, c.max_len, self.embedding.weight)


def shift(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cut text ``(B, T + 1)`` into inputs ``(B, T)`` and targets ``(B, T)``.

    The target of position t is the id at t + 1. Raises ValueError when there is no next
    id, that is with fewer than two positions.
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(
            "ids must have shape (B, T + 1) with at least two positions, "
            f"got {tuple(ids.shape)}"
        )
    return ids[:, :-1], ids[:, 1:]  # (B, T) each


@torch.no_grad()
def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Append ``max_new_tokens`` sampled ids to each prompt.

    ids ``(B, T)`` -> ``(B, T + max_new_tokens)``. The model sees the last ``max_len``
    ids. ``temperature=0`` takes the most probable. Raises ValueError for an empty
    prompt, a negative number of tokens and what ``check_temperature`` refuses,
    IndexError for an id outside the vocabulary.
    """
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            "ids must have shape (B, T) with at least one token a prompt, "
            f"got {tuple(ids.shape)}"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
    check_temperature(temperature)
    check_ids(ids.cpu(), model.config.vocab_size)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            logits = model(ids[:, -model.config.max_len :])[:, -1]  # (B, V)
            drawn = sample(logits, temperature, generator)  # (B,)
            ids = torch.cat((ids, drawn[:, None]), dim=1)  # (B, T + 1)
    finally:
        model.train(was_training)
    return ids
