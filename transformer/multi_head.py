"""Several small attentions side by side, joined by one more matrix.

Chapter 6 of Transformers, Matrix by Matrix.
Made from notebooks/06_multi_head.ipynb by tools/export.py: edit the notebook.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from transformer.attention import attention, attention_weights
from transformer.masks import causal_mask, check_mask
from transformer.positions import Rotary

__all__ = ["Cache", "LayerCache", "MultiHeadAttention", "attention_maps", "places_of"]

Pair = tuple[Tensor, Tensor]  # keys and values


@dataclass
class LayerCache:
    """The keys and values that one layer has made of the text so far.

    key and value ``(B, H_kv, S, K)`` have room for S positions; places ``(B, T)`` say
    where the rows at hand stand. ``memory`` keeps a decoder's keys and values of its
    source, which are made once.
    """

    key: Tensor
    value: Tensor
    places: Tensor
    memory: Pair | None = None

    def write(self, key: Tensor, value: Tensor) -> Pair:
        """Keep new rows, ``(B, H_kv, T, K)`` each; return all, ``(B, H_kv, S, K)``."""
        row = torch.arange(len(key), device=key.device)[:, None]  # (B, 1)
        for kept, new in ((self.key, key), (self.value, value)):
            kept[row, :, self.places] = new.transpose(1, 2).to(kept.dtype)
        return self.key.to(key.dtype), self.value.to(value.dtype)


def places_of(mask: Tensor) -> Tensor:
    """Where each token of a padded batch stands in its own text: ``(B, T)``.

    mask ``(B, T)``, True = real token. Real tokens are counted from 0, whichever side
    the filling is on; the filling stands behind them.
    """
    count = mask.sum(dim=1, keepdim=True)  # (B, 1)
    return torch.where(mask, mask.cumsum(1), count + (~mask).cumsum(1)) - 1


class Cache:
    """What a decoder keeps of the text that it has read, layer by layer.

    ``length`` ``(B,)`` counts the tokens of each row. ``room`` S is fixed, so that a
    step always has the same shapes; ``like`` gives number type and device. Raises
    ValueError for a size below one.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        room: int,
        head_dim: int,
        like: Tensor,
    ) -> None:
        shape = (batch, n_kv_heads, room, head_dim)
        if min(n_layers, *shape) < 1:
            raise ValueError(
                "a cache needs at least one layer, row, head, place and column, "
                f"got {(n_layers, *shape)}"
            )
        self.room = room
        self.length = torch.zeros(batch, dtype=torch.long, device=like.device)  # (B,)
        self.layers = [
            LayerCache(
                like.new_zeros(shape), like.new_zeros(shape), self.length[:, None]
            )
            for _ in range(n_layers)
        ]

    def step(self, n_new: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make room for ``n_new`` more ids a row: their places, and whom they may see.

        mask ``(B, T)``, True = real token -> ``(B, T)`` and boolean ``(B, 1, T, S)``.
        Filling is written behind the real tokens, where the mask hides it until later
        steps overwrite it; it needs room too. Past the end of the room the writing
        raises IndexError, on a CPU, and the cache is of no more use.
        """
        every = torch.arange(n_new, device=self.length.device).expand(
            len(self.length), n_new
        )
        new = every if mask is None else places_of(mask)  # (B, T)
        places = self.length[:, None] + new
        self.length += n_new if mask is None else mask.sum(dim=1)
        for layer in self.layers:
            layer.places = places
        slots = torch.arange(self.room, device=places.device)  # (S,)
        return places, (slots <= places[..., None])[:, None]  # (B, 1, T, S)

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row ``rows[i]`` has read, as a beam search does.

        Both must have the same source: a decoder's ``memory`` stays where it is.
        """
        self.length = self.length[rows]  # (B,)
        for layer in self.layers:
            layer.key, layer.value = layer.key[rows], layer.value[rows]


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

    def keys_values(self, memory: Tensor, start: int | Tensor = 0) -> Pair:
        """What rows ``(B, S, D)`` answer with, each ``(B, H_kv, S, K)``."""
        key = self.split(self.key(memory))  # (B, H_kv, S, K)
        value = self.split(self.value(memory))  # (B, H_kv, S, K)
        if self.rotary is not None:
            key = self.rotary(key, start)
        return key, value

    def project(
        self,
        x: Tensor,
        memory: Tensor | Pair | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of all that answers, ``(B, H, T or S, K)``."""
        memory = x if memory is None else memory
        d_model = self.query.in_features
        for name, rows in (("x", x), ("memory", memory)):
            if isinstance(rows, tuple):
                continue
            shape = tuple(rows.shape)
            if len(shape) != 3 or shape[::2] != (x.shape[0], d_model):
                raise ValueError(
                    f"{name} must have shape (batch, positions, d_model) = "
                    f"({x.shape[0]}, any, {d_model}), got {shape}"
                )
        start = 0 if cache is None else cache.places
        query = self.split(self.query(x))  # (B, H, T, K)
        if self.rotary is not None:
            query = self.rotary(query, start)
        if isinstance(memory, tuple):  # made before, once for the whole text
            key, value = memory
        else:
            key, value = self.keys_values(memory, start)  # (B, H_kv, S, K)
        if cache is not None:
            key, value = cache.write(key, value)  # (B, H_kv, S, K): the past as well
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
        memory: Tensor | Pair | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x ``(B, T, D)``, memory ``(B, S, D)`` or its keys_values -> ``(B, T, D)``.

        mask boolean, True = may attend, broadcastable to ``(B, H, T, S)``; ``causal``
        hides later positions as well. With a ``cache`` x continues the text whose keys
        and values it holds, S is its room, and the mask must hide what is not written.
        Raises ValueError for a wrong shape, TypeError for a mask that isn't boolean.
        """
        if cache is not None and mask is None:
            raise ValueError("mask must be given with a cache: it hides empty places")
        query, key, value = self.project(x, memory, cache)
        if mask is not None or key.shape[-2] != query.shape[-2]:
            # the kernel's causal flag takes neither a mask nor T unlike S
            mask, causal = self.one_mask(query, key, mask, causal), False
        dropout = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, mask, causal, dropout)  # (B, H, T, K)
        return self.output(rearrange(mixed, "B H T K -> B T (H K)"))  # (B, T, D)

    def weights(
        self,
        x: Tensor,
        memory: Tensor | Pair | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """The maps ``(B, H, T, S)`` that ``forward`` uses and never stores."""
        query, key, _ = self.project(x, memory, cache)
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
