"""Masks: who may attend to whom. Everywhere True means "may attend"."""

import torch
from torch import Tensor

__all__ = ["causal_mask", "check_mask", "padding_mask", "sliding_window_mask"]


def causal_mask(
    n_queries: int, n_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """``(T, S)``: query t sees keys up to its own position.

    With fewer queries than keys the queries are the *last* positions (a cached step).
    """
    n_keys = n_queries if n_keys is None else n_keys
    if n_keys < n_queries:
        raise ValueError(
            f"n_keys must be at least n_queries, got {n_keys} keys, {n_queries} queries"
        )
    all_true = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return all_true.tril(diagonal=n_keys - n_queries)  # (T, S)


def sliding_window_mask(
    n_queries: int,
    window: int,
    n_keys: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """``(T, S)``: causal, and no further back than ``window`` keys, itself included."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    causal = causal_mask(n_queries, n_keys, device)
    offset = causal.shape[1] - n_queries
    return causal & ~causal.tril(diagonal=offset - window)  # (T, S)


def padding_mask(is_token: Tensor) -> Tensor:
    """``(B, S)``, True = real token -> ``(B, 1, 1, S)``: no query sees padding."""
    if is_token.dtype != torch.bool or is_token.ndim != 2:
        raise TypeError(
            "mask must be boolean of shape (B, S), True = real token, got "
            f"{is_token.dtype} of shape {tuple(is_token.shape)}"
        )
    return is_token[:, None, None, :]  # (B, 1, 1, S)


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``mask`` is boolean and broadcasts to ``shape`` (B, H, T, S)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True = may attend, got {mask.dtype}")
    given = tuple(mask.shape)
    if len(given) > len(shape) or any(
        m not in (1, n) for m, n in zip(given[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(f"mask must broadcast to (B, H, T, S) = {shape}, got {given}")
