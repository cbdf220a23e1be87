"""Every position asks, every position answers: a weighted mean of value vectors.

Chapter 4 of Transformers, Matrix by Matrix.
Made from notebooks/04_attention.ipynb by tools/export.py: edit the notebook.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention", "attention_weights"]


def _refuse_numbers(mask: Tensor | None) -> None:
    """Raise TypeError unless the mask is boolean: the kernel would add numbers."""
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, True = may attend, got {mask.dtype}")


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(K)), written out (Vaswani et al. 2017, equation 1).

    query ``(..., T, K)``, key ``(..., S, K)``, mask boolean and broadcastable to
    ``(..., T, S)``, True = may attend -> weights ``(..., T, S)``. A row that may attend
    to nothing gets zeros. Raises TypeError for a mask of another type.
    """
    _refuse_numbers(mask)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., T, S)
    if mask is None:
        return scores.softmax(dim=-1)
    scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)  # a row of -inf is NaN


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """The weighted mean of the values, ``attention_weights(query, key, mask) @ value``.

    query ``(..., T, K)``, key and value ``(..., S, K)`` -> ``(..., T, K)``.
    The fused kernel need not store the ``(T, S)`` weights, dropout aside. ``causal``
    hides later positions without building a mask; it needs T == S and no ``mask``.
    Raises TypeError for a mask that isn't boolean, ValueError when ``causal`` comes
    with a mask or with T != S.
    """
    _refuse_numbers(mask)
    if causal and (mask is not None or query.shape[-2] != key.shape[-2]):
        raise ValueError(
            "causal=True needs as many queries as keys and no mask, got "
            f"{query.shape[-2]} queries, {key.shape[-2]} keys, "
            f"mask {'absent' if mask is None else 'given'}: pass causal_mask(T, S)"
        )
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
    )
