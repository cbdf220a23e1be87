"""Positions: rows that are added to the words, or angles that turn queries and keys.

Chapter 3 of Transformers, Matrix by Matrix.
Made from notebooks/03_positions.ipynb by tools/export.py: edit the notebook.
"""

import torch
from torch import Tensor, nn

__all__ = [
    "LearnedPositions",
    "NoPositions",
    "Rotary",
    "SinusoidalPositions",
    "angles",
    "check_span",
    "make_positions",
    "rows_at",
    "sinusoidal",
]


def angles(max_len: int, pairs: int, base: float = 10_000.0) -> Tensor:
    """How far each pair has turned at each position, ``(max_len, pairs)``.

    Pair i stands at t / base^(i / pairs) radians at position t, in float64.
    """
    position = torch.arange(max_len, dtype=torch.float64)  # (T,)
    pair = torch.arange(pairs, dtype=torch.float64)  # (D/2,)
    return position[:, None] / base ** (pair / pairs)  # (T, D/2)


def sinusoidal(max_len: int, d_model: int, base: float = 10_000.0) -> Tensor:
    """The table of sines and cosines, ``(max_len, d_model)`` in float64.

    Row t holds sin(t / base^(2i/D)) in column 2i and the cosine of the same angle in
    column 2i+1 (Vaswani et al. 2017, section 3.5). Raises ValueError if ``d_model`` is
    odd.
    """
    if d_model % 2:
        raise ValueError(f"d_model must be even for sine-cosine pairs, got {d_model}")
    angle = angles(max_len, d_model // 2, base)  # (T, D/2)
    table = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (T, D/2, 2)
    return table.flatten(1)  # (T, D)


def check_span(x: Tensor, start: int, max_len: int, width: int) -> int:
    """Return where x ends, ``start + T``, if x ``(..., T, width)`` fits.

    Raises ValueError if the last axis is not ``width`` or if a position lies outside
    ``0 .. max_len-1``.
    """
    if x.ndim < 2 or x.shape[-1] != width:
        raise ValueError(f"x must have shape (..., T, {width}), got {tuple(x.shape)}")
    stop = start + x.shape[-2]
    if start < 0 or stop > max_len:
        raise ValueError(
            f"x must stand at positions 0 to {max_len - 1} (max_len = {max_len}), "
            f"got start = {start} and {x.shape[-2]} rows"
        )
    return stop


def rows_at(x: Tensor, start: int | Tensor, max_len: int, width: int) -> slice | Tensor:
    """What to index a table with for x ``(..., T, width)``, checked by check_span.

    Rows ``start .. start+T-1``, or the places ``(B, T)`` that ``start`` lists.
    """
    if isinstance(start, Tensor):  # its values are not looked at: that stalls a GPU
        check_span(x, 0, max_len, width)
        return start
    return slice(start, check_span(x, start, max_len, width))


class SinusoidalPositions(nn.Module):
    """Add row t of the sine-cosine table to the vector at position t.

    Nothing is learned (Vaswani et al. 2017, section 3.5). Raises ValueError if
    ``d_model`` is odd.
    """

    table: Tensor

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        table = sinusoidal(max_len, d_model).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)  # (T, D)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """x ``(B, T, D)`` at positions ``start .. start+T-1`` -> ``(B, T, D)``.

        ``start`` may list the place of each row instead, ``(B, T)``. Raises ValueError
        if x has another width or passes ``max_len``.
        """
        return x + self.table[rows_at(x, start, *self.table.shape)]  # + (T, D)


class LearnedPositions(nn.Module):
    """Add row t of a learned table to the vector at position t.

    GPT-2 and BERT do so (Radford et al. 2019; Devlin et al. 2019, section 3). Entries
    start with standard deviation 0.02.
    """

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_len, d_model))  # (T, D)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """x ``(B, T, D)`` at positions ``start .. start+T-1`` -> ``(B, T, D)``.

        ``start`` may list the place of each row instead, ``(B, T)``. Raises ValueError
        if x has another width or passes ``max_len``.
        """
        return x + self.weight[rows_at(x, start, *self.weight.shape)]  # + (T, D)


class Rotary(nn.Module):
    """Turn pairs of query and key entries by an angle that grows with the position.

    Entries i and i + K/2 of a head form a pair, the half-split layout. At position t it
    turns by t / base^(2i/K) (Su et al. 2021, section 3.2.2). Turned so, the dot product
    of a query at t and a key at s depends on t - s alone. Raises ValueError if
    ``head_dim`` is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, max_len: int, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary pairs, got {head_dim}")
        angle = angles(max_len, head_dim // 2, base)  # (T, K/2)
        dtype = torch.get_default_dtype()
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """x ``(B, H, T, K)`` at positions ``start .. start+T-1``, turned, same dtype.

        ``start`` may list the place of each row instead, ``(B, T)``. Raises ValueError
        if x has another width or passes ``max_len``.
        """
        max_len, pairs = self.cos.shape
        at = rows_at(x, start, max_len, 2 * pairs)
        cos, sin = self.cos[at], self.sin[at]  # (T, K/2) or (B, T, K/2)
        if isinstance(start, Tensor):  # the same for every head
            cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, K/2)
        a, b = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
        turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return turned.type_as(x)  # (B, H, T, K)


class NoPositions(nn.Module):
    """Add nothing, wherever the rows stand."""

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        return x


def make_positions(kind: str, max_len: int, d_model: int) -> nn.Module:
    """What is added to the embeddings: "learned", "sinusoidal", "rotary" or "none".

    The last two add nothing. Raises ValueError for another kind.
    """
    if kind == "learned":
        return LearnedPositions(max_len, d_model)
    if kind == "sinusoidal":
        return SinusoidalPositions(max_len, d_model)
    if kind in ("rotary", "none"):
        return NoPositions()
    raise ValueError(
        f"positions must be 'learned', 'sinusoidal', 'rotary' or 'none', got {kind!r}"
    )
