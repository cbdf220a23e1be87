"""Several small attentions side by side, joined by one more matrix.

Chapter 6 of Transformers, Matrix by Matrix.
Made from notebooks/06_multi_head.ipynb by tools/export.py: edit the notebook.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from transformer.attention import attention, attention_weights
from transformer.masks import causal_mask, check_mask
from transformer.positions import Rotary

__all__ = ["MultiHeadAttention", "attention_maps"]


class MultiHeadAttention(nn.Module):
    """Project, split into heads, attend, join, project (Vaswani et al. 2017, 3.2.2).

    x ``(B, T, D)`` asks; memory ``(B, S, D)`` answers, x itself when absent. With
    ``n_kv_heads`` < ``n_heads`` groups of neighbouring query heads share keys and
    values (Ainslie et al. 2023); ``n_kv_heads=1`` is multi-query attention (Shazeer
    2019). ``dropout`` silences weights in training; ``rotary`` turns queries and keys.
    Raises ValueError when heads don't divide the width or each other.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(n_heads, n_kv_heads) < 1:
            raise ValueError(
                "n_heads and n_kv_heads must be at least 1, "
                f"got {n_heads} and {n_kv_heads}"
            )
        if d_model % n_heads:
            raise ValueError(
                f"d_model must be divisible by n_heads, got {d_model} and {n_heads}"
            )
        if n_heads % n_kv_heads:
            raise ValueError(
                "n_heads must be divisible by n_kv_heads, "
                f"got {n_heads} and {n_kv_heads}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.head_dim = d_model // n_heads
        self.dropout = dropout
        self.rotary = rotary
        self.query = nn.Linear(d_model, n_heads * self.head_dim, bias=bias)
        self.key = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(d_model, n_kv_heads * self.head_dim, bias=bias)
        self.output = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """Cut the last axis into heads: ``(B, T, H*K)`` -> ``(B, H, T, K)``."""
        return rearrange(x, "B T (H K) -> B H T K", K=self.head_dim)

    def project(
        self, x: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of memory, each ``(B, H, T or S, K)``."""
        memory = x if memory is None else memory
        d_model = self.query.in_features
        for name, rows in (("x", x), ("memory", memory)):
            shape = tuple(rows.shape)
            if len(shape) != 3 or shape[-1] != d_model or shape[0] != x.shape[0]:
                raise ValueError(
                    f"{name} must have shape (batch, positions, d_model) = "
                    f"({x.shape[0]}, any, {d_model}), got {shape}"
                )
        query = self.split(self.query(x))  # (B, H, T, K)
        key = self.split(self.key(memory))  # (B, H_kv, S, K)
        value = self.split(self.value(memory))  # (B, H_kv, S, K)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        groups = self.n_heads // self.n_kv_heads
        if groups > 1:  # one key head serves `groups` neighbouring query heads
            key = key.repeat_interleave(groups, dim=1)  # (B, H, S, K)
            value = value.repeat_interleave(groups, dim=1)  # (B, H, S, K)
        return query, key, value

    @staticmethod
    def one_mask(
        query: Tensor, key: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor | None:
        """The given mask, checked, and the causal one if asked for, as one."""
        if mask is not None:
            check_mask(mask, (*query.shape[:-1], key.shape[-2]))
        if not causal:
            return mask
        below = causal_mask(query.shape[-2], key.shape[-2], query.device)  # (T, S)
        return below if mask is None else mask & below

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """x ``(B, T, D)``, memory ``(B, S, D)`` -> ``(B, T, D)``.

        mask boolean, True = may attend, broadcastable to ``(B, H, T, S)``; ``causal``
        hides later positions as well. Raises ValueError for a wrong shape, TypeError
        for a mask that isn't boolean.
        """
        query, key, value = self.project(x, memory)
        if mask is not None or key.shape[-2] != query.shape[-2]:
            # the kernel's causal flag takes neither a mask nor T unlike S
            mask, causal = self.one_mask(query, key, mask, causal), False
        dropout = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, mask, causal, dropout)  # (B, H, T, K)
        return self.output(rearrange(mixed, "B H T K -> B T (H K)"))  # (B, T, D)

    def weights(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """The maps ``(B, H, T, S)`` that ``forward`` uses and never stores."""
        query, key, _ = self.project(x, memory)
        return attention_weights(query, key, self.one_mask(query, key, mask, causal))


@torch.no_grad()
def attention_maps(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Run ``model(*args, **kwargs)``; return each layer's maps, ``(B, H, T, S)``.

    In the order in which the layers run; a layer that runs twice appears twice.
    """
    maps: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, options: Any, _: Tensor) -> None:
        assert isinstance(module, MultiHeadAttention)
        maps.append(module.weights(*inputs, **options))

    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    hooks = [m.register_forward_hook(record, with_kwargs=True) for m in layers]
    try:
        model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
