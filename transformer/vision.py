"""A picture is a sentence of patches, and a word can be looked up while drawing one.

Chapter 15 of Transformers, Matrix by Matrix.
Made from notebooks/15_vision.ipynb by tools/export.py: edit the notebook.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from transformer.block import BlockConfig, Stack
from transformer.dropout import Dropout
from transformer.embeddings import TokenEmbedding
from transformer.encoder_decoder import Decoder
from transformer.gpt import Loadable, check_batch
from transformer.masks import padding_mask
from transformer.positions import LearnedPositions, sinusoidal

__all__ = [
    "Denoiser",
    "DenoiserConfig",
    "ViT",
    "ViTConfig",
    "check_images",
    "draw",
    "from_patches",
    "patches",
    "resize_positions",
    "spoil",
]


def patches(images: Tensor, size: int) -> Tensor:
    """Cut images into squares, row by row: ``(B, C, h, w)`` -> ``(B, N, C*size*size)``.

    A patch lists its first channel row by row, then the next channel. Raises ValueError
    when size does not divide h and w.
    """
    if (
        size < 1
        or images.ndim != 4
        or images.shape[-2] % size
        or images.shape[-1] % size
    ):
        raise ValueError(
            f"images must have shape (B, C, h, w) with h and w divisible by {size}, "
            f"got {tuple(images.shape)}"
        )
    return rearrange(images, "B C (h p) (w q) -> B (h w) (C p q)", p=size, q=size)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(BlockConfig):
    """A vision Transformer's choices; the defaults are ViT's (Dosovitskiy et al. 2021).

    Beside the choices of a block: ``image_size`` and ``patch_size`` in pixels,
    ``n_channels`` C, ``n_classes`` (0 builds no head: the model gives hidden states).
    Raises ValueError for a choice that can't be built.
    """

    image_size: int
    patch_size: int
    n_channels: int = 3
    n_classes: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"image_size": 1, "patch_size": 1, "n_channels": 1, "n_classes": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"{name} must be at least {low}, got {getattr(self, name)}"
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                "image_size must be divisible by patch_size, "
                f"got {self.image_size} and {self.patch_size}"
            )

    @property
    def n_patches(self) -> int:
        """How many squares an image is cut into."""
        return (self.image_size // self.patch_size) ** 2


def check_images(images: Tensor, config: ViTConfig) -> None:
    """Raise unless images are ``(B, C, h, w)`` as ``config`` says, and not integers.

    ValueError for another shape, TypeError for another type.
    """
    expected = (config.n_channels, config.image_size, config.image_size)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise ValueError(
            f"images must have shape (B, {', '.join(map(str, expected))}), "
            f"got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}")


class ViT(Loadable):
    """An encoder whose words are squares of an image (Dosovitskiy et al. 2021, 3.1).

    images ``(B, C, h, w)`` -> logits ``(B, n_classes)``, or without classes the hidden
    states ``(B, 1 + N, D)``, the summary row first.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch = nn.Linear(c.n_channels * c.patch_size**2, c.d_model)
        self.summary = nn.Parameter(torch.empty(c.d_model))  # (D,)
        self.positions = LearnedPositions(1 + c.n_patches, c.d_model)
        self.dropout = Dropout(c.dropout)
        self.stack = Stack(c)
        self.head = nn.Linear(c.d_model, c.n_classes) if c.n_classes else None
        nn.init.normal_(self.summary, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.ndim == 2 and not name.startswith("positions"):
                nn.init.xavier_uniform_(weight)

    def encode(self, images: Tensor) -> Tensor:
        """Read images ``(B, C, h, w)`` into hidden states ``(B, 1 + N, D)``.

        Raises what ``check_images`` raises.
        """
        check_images(images, self.config)
        x = self.patch(patches(images, self.config.patch_size))  # (B, N, D)
        summary = self.summary.expand(len(x), 1, -1)  # (B, 1, D)
        x = self.positions(torch.cat((summary, x), dim=1))  # (B, 1 + N, D)
        return self.stack(self.dropout(x))  # (B, 1 + N, D), no mask

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.encode(images)  # (B, 1 + N, D)
        return hidden if self.head is None else self.head(hidden[:, 0])


def resize_positions(table: Tensor, across: int) -> Tensor:
    """Fit a table of positions to another grid: ``(1 + N, D)`` -> ``(1 + across², D)``.

    The summary's row stays. The others are taken as a square picture and resized with
    cubic curves (Dosovitskiy et al. 2021, section 3.2). Raises ValueError when N is not
    a square.
    """
    side = math.isqrt(len(table) - 1)
    if table.ndim != 2 or side**2 != len(table) - 1 or across < 1:
        raise ValueError(
            "table must have shape (1 + N, D) with a square N and across be at least "
            f"1, got {tuple(table.shape)} and {across}"
        )
    grid = rearrange(table[1:], "(h w) D -> 1 D h w", h=side)
    grid = F.interpolate(grid, size=(across, across), mode="bicubic")
    return torch.cat((table[:1], rearrange(grid, "1 D h w -> (h w) D")))


def from_patches(rows: Tensor, size: int, across: int) -> Tensor:
    """Put squares together again: ``(B, N, C*size*size)`` -> ``(B, C, h, w)``.

    The inverse of ``patches``; ``across`` is how many squares stand side by side.
    Raises ValueError when they don't fill a rectangle.
    """
    if (
        min(size, across) < 1
        or rows.ndim != 3
        or rows.shape[1] % across
        or rows.shape[2] % size**2
    ):
        raise ValueError(
            f"rows must have shape (B, N, C*{size}*{size}) with N divisible by "
            f"{across}, got {tuple(rows.shape)}"
        )
    return rearrange(
        rows, "B (h w) (C p q) -> B C (h p) (w q)", p=size, q=size, w=across
    )


def spoil(images: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
    """Stand between noise and picture: ``(B, C, h, w)`` each -> ``(B, C, h, w)``.

    progress ``(B,)`` runs from 0, all noise, to 1, the picture (Lipman et al. 2023,
    section 4.1, with no noise left at the end).
    """
    progress = progress[:, None, None, None]  # (B, 1, 1, 1)
    return (1 - progress) * noise + progress * images


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(ViTConfig):
    """What draws from words: the choices of a ViT without classes, and its text's.

    ``vocab_size`` V, how many letters there are; ``max_len``, the most in a name.
    """

    vocab_size: int
    max_len: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.n_classes:
            raise ValueError(f"n_classes must be 0 to draw, got {self.n_classes}")


class Denoiser(nn.Module):
    """Guess the picture behind a spoilt one, told by a word what it shows.

    images ``(B, C, h, w)``, progress ``(B,)`` from 0 to 1, ids ``(B, S)`` and their
    mask, True = real letter -> guess ``(B, C, h, w)``. Patches as tokens are Peebles
    and Xie 2023, section 3.2; cross-attention to text Rombach et al. 2022, 3.3.
    """

    table: Tensor

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = c = config
        area = c.n_channels * c.patch_size**2
        self.embedding = TokenEmbedding(c.vocab_size, c.d_model)
        self.text_positions = LearnedPositions(c.max_len, c.d_model)
        self.patch = nn.Linear(area, c.d_model)
        self.positions = LearnedPositions(c.n_patches, c.d_model)
        self.progress = nn.Linear(c.d_model, c.d_model)
        self.decoder = Decoder(c)
        self.head = nn.Linear(c.d_model, area)
        table = sinusoidal(1001, c.d_model).to(self.patch.weight.dtype)
        self.register_buffer("table", table, persistent=False)  # a row a thousandth

    def forward(
        self,
        images: Tensor,
        progress: Tensor,
        ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Guess, with a mask that may hide the whole word.

        Raises ValueError for a wrong shape, TypeError for a wrong type, IndexError for
        a letter outside the vocabulary or a progress outside 0 to 1.
        """
        c = self.config
        check_images(images, c)
        check_batch("ids", ids, c.max_len, mask)
        if progress.shape != images.shape[:1]:
            raise ValueError(
                f"progress must have shape {tuple(images.shape[:1])}, one number a "
                f"picture, got {tuple(progress.shape)}"
            )
        letters = self.text_positions(self.embedding(ids))  # (B, S, D)
        keep = None if mask is None else padding_mask(mask)  # (B, 1, 1, S)
        place = F.embedding((1000 * progress).round().long(), self.table)  # (B, D)
        x = self.positions(self.patch(patches(images, c.patch_size)))  # (B, N, D)
        x = x + self.progress(place)[:, None]  # (B, 1, D) joins every patch
        x = self.decoder(x, memory=letters, memory_mask=keep)  # (B, N, D)
        return from_patches(
            self.head(x), c.patch_size, c.image_size // c.patch_size
        )  # (B, C, h, w)


@torch.no_grad()
def draw(
    model: Denoiser,
    ids: Tensor,
    noise: Tensor,
    mask: Tensor | None = None,
    steps: int = 25,
) -> Tensor:
    """Walk from noise to a picture, each step a part of the way to the guess.

    ids ``(B, S)`` and their mask, noise ``(B, C, h, w)`` -> pictures of noise's shape.
    Euler's method on the flow (Lipman et al. 2023, section 2). Raises ValueError for
    less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    was_training = model.training
    model.eval()
    try:
        x = noise
        for k in range(steps):
            progress = x.new_full((len(x),), k / steps)  # (B,)
            guess = model(x, progress, ids, mask)  # (B, C, h, w)
            x = x + (guess - x) / (steps - k)
    finally:
        model.train(was_training)
    return x
