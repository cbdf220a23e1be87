"""GPT: a decoder-only Transformer, whole."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transformer.block import BlockConfig, Stack
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding, check_ids
from transformer.masks import padding_mask
from transformer.output_head import OutputHead, sample
from transformer.positions import LearnedPositions, Rotary, SinusoidalPositions

__all__ = ["GPT", "GPTConfig", "generate"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BlockConfig):
    """A decoder-only model's choices; the defaults are GPT-2's (Radford et al. 2019).

    ``positions``: "learned", "sinusoidal", "rotary" or "none". ``tied`` shares one table
    between embedding and head. ``scale_embeddings`` multiplies embeddings by sqrt(D).
    """

    vocab_size: int
    max_len: int
    positions: str = "learned"
    tied: bool = True
    scale_embeddings: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("learned", "sinusoidal", "rotary", "none")
        if self.positions not in known:
            raise ValueError(f"positions must be one of {known}, got {self.positions!r}")


class GPT(nn.Module):
    """ids ``(B, T)`` -> logits ``(B, T, V)``; row t predicts the token at t + 1."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model, c.scale_embeddings)
        self.positions: nn.Module = nn.Identity()
        if c.positions == "learned":
            self.positions = LearnedPositions(c.max_len, c.d_model)
        elif c.positions == "sinusoidal":
            self.positions = SinusoidalPositions(c.max_len, c.d_model)
        rotary = (
            Rotary(c.max_len, c.d_model // c.n_heads)
            if c.positions == "rotary"
            else None
        )
        self.dropout = Dropout(c.dropout)
        self.stack = Stack(c, rotary)
        tied = self.embedding.weight if c.tied else None
        self.head = OutputHead(c.d_model, c.vocab_size, tied)
        self.apply(self._init)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * c.n_layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids ``(B, T)``; mask ``(B, T)``, True = real token, for padded batches."""
        if ids.ndim != 2:
            raise ValueError(f"ids must have shape (B, T), got {tuple(ids.shape)}")
        if ids.shape[1] > self.config.max_len:
            raise ValueError(
                f"ids must hold at most max_len = {self.config.max_len} positions, "
                f"got {ids.shape[1]}"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(
                f"mask must have the shape of ids, {tuple(ids.shape)}, "
                f"got {tuple(mask.shape)}"
            )
        keep = None if mask is None else padding_mask(mask)  # (B, 1, 1, T)
        x = self.dropout(self.positions(self.embedding(ids)))  # (B, T, D)
        x = self.stack(x, mask=keep, causal=True)  # (B, T, D)
        return self.head(x)  # (B, T, V)


@torch.no_grad()
def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Append ``max_new_tokens`` sampled ids to each prompt, ``(B, T)`` -> ``(B, T + n)``.

    The model sees the last ``max_len`` ids. ``temperature=0`` takes the most probable.
    """
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(
            "ids must have shape (B, T) with at least one token a prompt, "
            f"got {tuple(ids.shape)}"
        )
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
