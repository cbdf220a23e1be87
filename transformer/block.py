"""Attend, add, norm, think, add, norm: one block, and a stack of blocks.

Chapter 10 of Transformers, Matrix by Matrix.
Made from notebooks/10_block.ipynb by tools/export.py: edit the notebook.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from transformer.dropout import Dropout, check_dropout
from transformer.feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward
from transformer.multi_head import Cache, LayerCache, MultiHeadAttention
from transformer.norm import LayerNorm, RMSNorm
from transformer.positions import Rotary

__all__ = ["Block", "BlockConfig", "Stack", "make_cache", "make_norm"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The choices that make a block; each family of models is one set of them.

    ``order``: "post" norms each sum (Vaswani et al. 2017), "pre" norms what each part
    reads (GPT-2), "parallel" feeds attention and feed-forward the same normed rows
    (Chowdhery et al. 2022, section 2). ``activation``: "relu", "gelu", "gelu_tanh",
    "silu", or "swiglu" for the gated network. ``norm``: "layer" or "rms", with
    ``norm_eps`` under its root. ``d_ff`` is 4 d_model and ``n_kv_heads`` is n_heads
    where it is 0. ``bias``: in the linear layers (the gated network has none) and layer
    norms. Raises ValueError, naming the field.
    """

    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int = 0
    n_kv_heads: int = 0
    dropout: float = 0.0
    activation: str = "gelu_tanh"
    norm: str = "layer"
    norm_eps: float = 1e-5
    order: str = "pre"
    bias: bool = True

    def __post_init__(self) -> None:
        """Refuse what can't be built."""
        check_dropout(self.dropout)
        least = {"d_model": 1, "n_heads": 1, "n_layers": 1, "d_ff": 0, "n_kv_heads": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"{name} must be at least {low}, got {getattr(self, name)}"
                )
        for whole, part in (("d_model", "n_heads"), ("n_heads", "n_kv_heads")):
            if getattr(self, part) and getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole} must be divisible by {part}, "
                    f"got {getattr(self, whole)} and {getattr(self, part)}"
                )
        for name, known in {
            "order": ("post", "pre", "parallel"),
            "norm": ("layer", "rms"),
            "activation": (*sorted(ACTIVATIONS), "swiglu"),
        }.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {known}, got {getattr(self, name)!r}"
                )


def make_norm(config: BlockConfig) -> LayerNorm | RMSNorm:
    """The norm that ``config`` names, over d_model entries."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps, config.bias)


def make_cache(
    config: BlockConfig, batch: int, room: int, max_len: int, like: Tensor
) -> Cache:
    """An empty cache for ``batch`` texts of up to ``room`` ids, max_len where it is 0.

    ``like`` gives number type and device. Raises ValueError for a room that isn't
    between 1 and ``max_len``: there are no positions past it.
    """
    c, room = config, room or max_len
    if not 1 <= room <= max_len:
        raise ValueError(f"room must be 1 to max_len = {max_len}, got {room}")
    heads, head_dim = c.n_kv_heads or c.n_heads, c.d_model // c.n_heads
    return Cache(c.n_layers, batch, heads, room, head_dim, like)


class Block(nn.Module):
    """One layer: x ``(B, T, D)`` -> ``(B, T, D)`` (Vaswani et al. 2017, section 3.1).

    ``mask`` is boolean, broadcastable to ``(B, H, T, T)``, True = may attend;
    ``causal`` hides later positions; ``cache`` holds the keys and values of earlier
    rows. Raises ValueError when x is not d_model wide.
    """

    def __init__(self, config: BlockConfig, rotary: Rotary | None = None) -> None:
        super().__init__()
        c = config
        self.d_model, self.order = c.d_model, c.order
        n_kv_heads, d_ff = c.n_kv_heads or c.n_heads, c.d_ff or 4 * c.d_model
        self.attention = MultiHeadAttention(
            c.d_model, c.n_heads, n_kv_heads, c.bias, c.dropout, rotary
        )
        self.feed_forward = (
            GatedFeedForward(c.d_model, d_ff)
            if c.activation == "swiglu"
            else FeedForward(c.d_model, d_ff, c.activation, c.bias)
        )
        self.norm_1 = make_norm(c)
        self.norm_2 = make_norm(c) if c.order != "parallel" else None
        self.dropout = Dropout(c.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(
                f"x must have shape (B, T, {self.d_model}), got {tuple(x.shape)}"
            )

        def attend(x: Tensor) -> Tensor:
            return self.dropout(self.attention(x, None, mask, causal, cache))

        def think(x: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(x))

        if self.norm_2 is None:  # parallel
            normed = self.norm_1(x)
            return x + attend(normed) + think(normed)
        if self.order == "post":
            x = self.norm_1(x + attend(x))
            return self.norm_2(x + think(x))
        x = x + attend(self.norm_1(x))
        return x + think(self.norm_2(x))


class Stack(nn.Module):
    """``n_layers`` blocks, each with weights of its own: ``(B, T, D)`` -> same.

    Pre-norm and parallel stacks end with one more norm (Radford et al. 2019, section
    2.3), since nothing else has normed the sum. ``mask`` and ``causal`` as in Block;
    ``cache`` has the keys and values of every layer.
    """

    kind = Block

    def __init__(self, config: BlockConfig, rotary: Rotary | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            self.kind(config, rotary) for _ in range(config.n_layers)
        )
        self.norm = nn.Identity() if config.order == "post" else make_norm(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        for i, block in enumerate(self.blocks):
            kept = None if cache is None else cache.layers[i]
            x = block(x, mask=mask, causal=causal, cache=kept)  # (B, T, D)
        return self.norm(x)
