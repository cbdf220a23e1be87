"""Masks: who may attend to whom. Everywhere True means "may attend".

Chapter 5 of Transformers, Matrix by Matrix.
Made from notebooks/05_masks.ipynb by tools/export.py: edit the notebook.
"""

import torch
from torch import Tensor

__all__ = ["causal_mask", "check_mask", "padding_mask", "sliding_window_mask"]


def causal_mask(
    n_queries: int, n_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Query t sees keys up to its own position: boolean ``(T, S)``.

    With fewer queries than keys the queries are the *last* positions, as in a step with
    a cache. Raises ValueError when there are fewer keys than queries.
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_keys < n_queries:
        raise ValueError(
            f"n_keys must be at least n_queries, got {n_keys} keys, {n_queries} queries"
        )
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=n_keys - n_queries)  # (T, S)


def sliding_window_mask(
    n_queries: int,
    window: int,
    n_keys: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Causal, and no further back than ``window`` keys, its own included: ``(T, S)``.

    Beltagy et al. 2020, section 3.1, looking back only. Raises ValueError for a window
    of less than one.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    causal = causal_mask(n_queries, n_keys, device)  # (T, S)
    too_old = causal.tril(diagonal=causal.shape[1] - n_queries - window)
    return causal & ~too_old


def padding_mask(is_token: Tensor) -> Tensor:
    """``(B, S)``, True = real token -> ``(B, 1, 1, S)``: nobody looks at the filling.

    Raises TypeError for another type than boolean, ValueError for another shape.
    """
    if is_token.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean, True = real token, got {is_token.dtype}"
        )
    if is_token.ndim != 2:
        raise ValueError(f"mask must have shape (B, S), got {tuple(is_token.shape)}")
    return is_token[:, None, None, :]  # (B, 1, 1, S)


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``mask`` is boolean and broadcasts to ``shape``, (B, H, T, S).

    TypeError for another type, ValueError for a shape that does not fit.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True = may attend, got {mask.dtype}")
    given = tuple(mask.shape)
    pairs = zip(reversed(given), reversed(shape), strict=False)  # from the right
    if len(given) > len(shape) or any(m not in (1, n) for m, n in pairs):
        raise ValueError(f"mask must broadcast to (B, H, T, S) = {shape}, got {given}")
