"""Positions: telling a token where it stands."""

import torch
from torch import Tensor, nn

__all__ = ["LearnedPositions", "Rotary", "SinusoidalPositions", "sinusoidal"]


def sinusoidal(max_len: int, d_model: int, base: float = 10_000.0) -> Tensor:
    """The table of sines and cosines, ``(max_len, d_model)`` in float64.

    Row ``pos`` holds sin(pos / base^(2i/D)) in column 2i and the cosine of the same
    angle in column 2i+1 (Vaswani et al. 2017, section 3.5).
    """
    if d_model % 2:
        raise ValueError(f"d_model must be even for sine-cosine pairs, got {d_model}")
    position = torch.arange(max_len, dtype=torch.float64)  # (T,)
    pair = torch.arange(0, d_model, 2, dtype=torch.float64)  # (D/2,)
    angle = position[:, None] / base ** (pair / d_model)  # (T, D/2)
    table = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (T, D/2, 2)
    return table.flatten(1)  # (T, D)


class SinusoidalPositions(nn.Module):
    """Add row t of the fixed sine-cosine table to the vector at position t."""

    table: Tensor

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        table = sinusoidal(max_len, d_model).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)  # (T, D)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x ``(B, T, D)`` at positions ``start .. start+T-1`` -> ``(B, T, D)``."""
        return x + self.table[start : start + x.shape[-2]]  # (T, D) joins every batch


class LearnedPositions(nn.Module):
    """Add row t of a learned table to the vector at position t (GPT-2, BERT, ViT)."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_len, d_model))  # (T, D)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x ``(B, T, D)`` at positions ``start .. start+T-1`` -> ``(B, T, D)``."""
        return x + self.weight[start : start + x.shape[-2]]


class Rotary(nn.Module):
    """Rotate pairs of query and key entries by an angle that grows with the position.

    Entries i and i + K/2 of a head form a pair (the half-split layout of Llama
    weights); it turns by pos / base^(2i/K) (Su et al. 2021, section 3.4.2).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_len: int, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary pairs, got {head_dim}")
        position = torch.arange(max_len, dtype=torch.float64)  # (T,)
        pair = torch.arange(0, head_dim, 2, dtype=torch.float64)  # (K/2,)
        angle = position[:, None] / base ** (pair / head_dim)  # (T, K/2)
        dtype = torch.get_default_dtype()
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x ``(B, H, T, K)`` at positions ``start .. start+T-1``, rotated."""
        stop = start + x.shape[-2]
        cos, sin = self.cos[start:stop], self.sin[start:stop]  # (T, K/2)
        a, b = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)  # (B, H, T, K)
